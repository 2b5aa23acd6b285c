// Every component of the pipeline on tokenizers small enough to work out by hand.
#include "models/tokenizer/base64.h"
#include "tests/tokenizer/charsmap_blob.h"
#include "tests/tokenizer/support.h"

namespace thimble {
namespace {

const std::string kMark = "\xE2\x96\x81";

// The expected words are the vocabulary and ignore_merges takes them whole, so the pieces show where the text was cut.
Tokenizer words_tokenizer(const Json& pre_tokenizer, const std::vector<std::string>& words) {
  std::vector<std::string> vocab = {"?"};
  for (const std::string& word : words) {
    if (std::find(vocab.begin(), vocab.end(), word) == vocab.end()) vocab.push_back(word);
  }
  Json json = bpe_json(vocab);
  json["model"]["ignore_merges"] = true;
  json["model"]["unk_token"] = "?";
  json["model"]["fuse_unk"] = true;
  json["pre_tokenizer"] = pre_tokenizer;
  return load_json(json);
}

void expect_cut(const Json& pre_tokenizer, const std::string& text, const std::vector<std::string>& want) {
  EXPECT_EQ(pieces(words_tokenizer(pre_tokenizer, want), text), want) << pre_tokenizer.dump() << " on " << text;
}

Json split(const std::string& behavior, bool invert = false) {
  return {{"type", "Split"}, {"pattern", {{"String", "-"}}}, {"behavior", behavior}, {"invert", invert}};
}

TEST(PreTokenizer, SplitBehaviours) {
  const std::string text = "the-final--countdown";
  expect_cut(split("Removed"), text, {"the", "final", "countdown"});
  expect_cut(split("Isolated"), text, {"the", "-", "final", "-", "-", "countdown"});
  expect_cut(split("MergedWithPrevious"), text, {"the-", "final-", "-", "countdown"});
  expect_cut(split("MergedWithNext"), text, {"the", "-final", "-", "-countdown"});
  expect_cut(split("Contiguous"), text, {"the", "-", "final", "--", "countdown"});
  expect_cut(split("Removed", true), text, {"-", "-", "-"});
}

TEST(PreTokenizer, SplitByRegex) {
  const Json regex = {{"type", "Split"}, {"pattern", {{"Regex", "\\d{1,3}|\\s+(?!\\S)|\\s"}}}, {"behavior", "Isolated"}};
  expect_cut(regex, "ab12345  c", {"ab", "123", "45", " ", " ", "c"});
}

TEST(PreTokenizer, RegexClassesFollowOniguruma) {
  // U+180E is no white space, U+0085 is; a combining mark is a word character.
  const Json space = {{"type", "Split"}, {"pattern", {{"Regex", "\\s"}}}, {"behavior", "Removed"}};
  expect_cut(space, "a\xE1\xA0\x8E" "b\xC2\x85" "c", {"a\xE1\xA0\x8E" "b", "c"});
  const Json word = {{"type", "Split"}, {"pattern", {{"Regex", "\\w+"}}}, {"behavior", "Isolated"}};
  expect_cut(word, "e\xCC\x81!x", {"e\xCC\x81", "!", "x"});
  const Json not_space = {{"type", "Split"}, {"pattern", {{"Regex", "[^\\s\\w]+"}}}, {"behavior", "Removed"}};
  expect_cut(not_space, "a+b c", {"a", "b c"});
  const auto runs = [](const char* regex) {
    return Json{{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Removed"}, {"invert", true}};
  };
  // Superscripts and fractions of Latin-1 are word characters outside of a class, others are not.
  expect_cut(runs("[\\w]+"), "m\xC2\xB2", {"m"});
  expect_cut(runs("b{,2}c"), "abbbca", {"bbc"});
  expect_cut(runs("(?m:a.)|b."), "a\nb\nbc", {"a\n", "bc"});  // m lets the point meet line ends
  expect_cut(runs("(?mi-m:A.)+|x"), "aBac\na\nx", {"aBac", "x"});
  expect_cut(runs("\\R"), "a\r\nb\xE2\x80\xA8\n", {"\r\n", "\xE2\x80\xA8", "\n"});
  expect_cut(runs("\\w+"), "m\xC2\xB2 \xC2\xBD \xE2\x81\xB4", {"m\xC2\xB2", "\xC2\xBD"});
  expect_cut(runs("[[:alnum:]]+"), "a\xE2\x85\xA7" "1+", {"a\xE2\x85\xA7" "1"});  // a Roman number is alphabetic
  expect_cut(runs("[[:punct:]]+"), "a+\xE2\x82\xAC!b", {"+\xE2\x82\xAC!"});          // symbols are punctuation
  // A script holds its own characters only: an ideographic comma belongs to no script.
  expect_cut(runs("\\p{Han}+"), "\xE4\xB8\xAD\xE3\x80\x81\xE5\x9B\xBD" "a", {"\xE4\xB8\xAD", "\xE5\x9B\xBD"});
  expect_cut(runs("[^\\P{Han}]+|\\P{Han}+"), "\xE4\xB8\xAD\xE3\x80\x81", {"\xE4\xB8\xAD", "\xE3\x80\x81"});
  // Intersection, under a quantifier.
  expect_cut(runs("[\\p{L}\\p{N}&&[^\\p{Han}]]+"), "ab1\xE4\xB8\xAD" "c", {"ab1", "c"});
  expect_cut(runs("[a-z&&[aeiou]]{2}x?"), "aeixbaix", {"ae", "aix"});
}

TEST(PreTokenizer, UnsupportedRegexIsNamed) {
  for (const char* pattern : {"[a&&b]", "[^a&&[b]]", "[a&&[b[c]]]", "[[:^punct:]]", "[\\R]", "(?x) .", "\\h\\K", "(unclosed", "\\p{NoSuch}"}) {
    const Json json = {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}};
    const std::string message = error_of([&] { words_tokenizer(json, {"a"}); }, ErrorCode::unsupported);
    EXPECT_NE(message.find("pre_tokenizer.pattern.Regex"), std::string::npos) << message;
  }
}

TEST(PreTokenizer, ByteLevel) {
  const Json plain = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  expect_cut(plain, "it's 12  ok!", {"it", "'s", "\xC4\xA0" "12", "\xC4\xA0", "\xC4\xA0ok", "!"});
  const Json prefixed = {{"type", "ByteLevel"}, {"add_prefix_space", true}};
  expect_cut(prefixed, "it", {"\xC4\xA0it"});
  expect_cut(prefixed, " it", {"\xC4\xA0it"});
  const Json whole = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  expect_cut(whole, "a b\n", {"a\xC4\xA0" "b\xC4\x8A"});
}

TEST(PreTokenizer, Metaspace) {
  const auto json = [](const std::string& scheme, bool cut) {
    return Json{{"type", "Metaspace"}, {"replacement", kMark}, {"prepend_scheme", scheme}, {"split", cut}};
  };
  expect_cut(json("always", true), "ab c", {kMark + "ab", kMark + "c"});
  expect_cut(json("always", true), " ab", {kMark + "ab"});
  expect_cut(json("never", true), "ab c", {"ab", kMark + "c"});
  expect_cut(json("first", false), "ab c", {kMark + "ab" + kMark + "c"});
  expect_cut({{"type", "Metaspace"}, {"add_prefix_space", false}}, "ab", {"ab"});
}

TEST(PreTokenizer, MetaspaceFirstOnlyAtTheStartOfTheInput) {
  Json json = bpe_json({"?", kMark, "a", "X"});
  json["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", kMark}, {"prepend_scheme", "first"}};
  json["added_tokens"] = {{{"id", 3}, {"content", "X"}, {"special", false}, {"normalized", false}}};
  const Tokenizer tokenizer = load_json(json);
  EXPECT_EQ(pieces(tokenizer, "aXa"), (std::vector<std::string>{kMark, "a", "X", "a"}));
}

TEST(PreTokenizer, CharacterClasses) {
  expect_cut({{"type", "Whitespace"}}, "don't  stop_it", {"don", "'", "t", "stop_it"});
  expect_cut({{"type", "WhitespaceSplit"}}, " a.b\tc\xE3\x80\x80" "d ", {"a.b", "c", "d"});
  expect_cut({{"type", "Digits"}}, "ab12c", {"ab", "12", "c"});
  expect_cut({{"type", "Digits"}, {"individual_digits", true}}, "ab12c", {"ab", "1", "2", "c"});
  expect_cut({{"type", "Digits"}, {"individual_digits", true}}, "\xC2\xBD" "a", {"\xC2\xBD", "a"});
  expect_cut({{"type", "Punctuation"}}, "a,b\xE3\x80\x82", {"a", ",", "b", "\xE3\x80\x82"});
  expect_cut({{"type", "Punctuation"}, {"behavior", "Contiguous"}}, "a,;b", {"a", ",;", "b"});
  expect_cut({{"type", "CharDelimiterSplit"}, {"delimiter", "|"}}, "a|b", {"a", "b"});
  expect_cut({{"type", "Sequence"}, {"pretokenizers", {{{"type", "WhitespaceSplit"}}, {{"type", "Digits"}}}}}, "a1 b",
             {"a", "1", "b"});
}

TEST(PreTokenizer, Bert) {
  expect_cut({{"type", "BertPreTokenizer"}}, "Hey friend!  ($5)\xE3\x80\x82 a",
             {"Hey", "friend", "!", "(", "$", "5", ")", "\xE3\x80\x82", "a"});
}

TEST(PreTokenizer, FixedLength) {
  expect_cut({{"type", "FixedLength"}, {"length", 2}}, "a\xC3\xA9" "bcd", {"a\xC3\xA9", "bc", "d"});
  expect_cut({{"type", "FixedLength"}}, "abcdefg", {"abcde", "fg"});
  Json json = bpe_json({"a"});
  json["pre_tokenizer"] = {{"type", "FixedLength"}, {"length", 0}};
  error_of([&] { load_json(json); }, ErrorCode::input);
}

TEST(PreTokenizer, UnicodeScripts) {
  const Json scripts = {{"type", "UnicodeScripts"}};
  // Han and both kana are one script, a space belongs to the script before it, digits are Common.
  expect_cut(scripts, "\xE3\x81\xA9\xE6\x97\xA5\xE3\x82\xAB\xE3\x83\xBC" "abc d\xD0\xB6 1",
             {"\xE3\x81\xA9\xE6\x97\xA5\xE3\x82\xAB\xE3\x83\xBC", "abc d", "\xD0\xB6 ", "1"});
  expect_cut(scripts, "  a", {"a"});
  expect_cut(scripts, "Apples are \xE3\x82\x8A", {"Apples are ", "\xE3\x82\x8A"});
}

TEST(PreTokenizer, NestedClassesAreUnions) {
  // Bloom's expression has a class inside a negated class.
  const Json bloom = {{"type", "Split"}, {"pattern", {{"Regex", " ?[^(\\s|[.,!?])]+"}}}, {"behavior", "Isolated"}};
  expect_cut(bloom, "ab cd,e!", {"ab", " cd", ",", "e", "!"});
}

TEST(PreTokenizer, KnownExpressionsCutAsTheirRegexDoes) {
  const char* llama3 =
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|"
      "\\s+(?!\\S)|\\s+";
  const std::string text = "We'LL go,  12345 km\n\n  on";
  const std::vector<std::string> want = {"We", "'LL", " go", ",", " ", " ", "123", "45", " km", "\n\n", " ", " on"};
  for (const std::string behaviour : {"Isolated", "Removed"}) {
    expect_cut({{"type", "Split"}, {"pattern", {{"Regex", llama3}}}, {"behavior", behaviour}, {"invert", behaviour == "Removed"}},
               text, want);
  }
  // The same expression in brackets has no scanner.
  expect_cut({{"type", "Split"}, {"pattern", {{"Regex", "(?:" + std::string(llama3) + ")"}}}, {"behavior", "Isolated"}}, text, want);
}

TEST(PreTokenizer, ByteLevelWithoutAllBytesSpellsThePieces) {
  // The vocabulary lacks most bytes, so the model cannot take plain bytes; what it has is found all the same.
  Json json = bpe_json({"?", "\xC4\xA0", "a", "\xC3\x83", "\xC4\xA0" "a"}, {"\xC4\xA0 a"});
  json["model"]["unk_token"] = "?";
  json["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  EXPECT_EQ(load_json(json).encode("a a\xC3\xA9"), (Ids{2, 4, 3, 0}));
}

void expect_normal(const Json& normalizer, const std::string& text, const std::string& want) {
  Json json = bpe_json({"?", "<", want.empty() ? "x" : want});
  json["model"]["ignore_merges"] = true;
  json["normalizer"] = normalizer;
  std::string got;
  for (const std::string& piece : pieces(load_json(json), text)) got += piece;
  EXPECT_EQ(got, want) << normalizer.dump();
}

TEST(Normalizer, EachType) {
  expect_normal({{"type", "Prepend"}, {"prepend", "ab"}}, "c", "abc");
  expect_normal({{"type", "Prepend"}, {"prepend", "ab"}}, "", "");
  expect_normal({{"type", "Replace"}, {"pattern", {{"String", "a."}}}, {"content", "X"}}, "a.aba.", "XabX");
  expect_normal({{"type", "Replace"}, {"pattern", {{"Regex", "a."}}}, {"content", "X"}}, "a.abc", "XXc");
  expect_normal({{"type", "NFC"}}, "e\xCC\x81", "\xC3\xA9");
  expect_normal({{"type", "NFD"}}, "\xC3\xA9", "e\xCC\x81");
  expect_normal({{"type", "NFKC"}}, "\xEF\xAC\x81\xC2\xBD", "fi1\xE2\x81\x84" "2");
  expect_normal({{"type", "NFKD"}}, "\xEF\xAC\x81\xC3\xA9", "fie\xCC\x81");
  expect_normal({{"type", "NFC"}}, std::string("\xEA\xB0\x80\x00\xEF\xBF\xBF", 7), std::string("\xEA\xB0\x80\x00\xEF\xBF\xBF", 7));
  expect_normal({{"type", "Lowercase"}}, "\xC3\x89" "AB\xC4\xB0\xCE\xA3", "\xC3\xA9" "abi\xCC\x87\xCF\x83");
  expect_normal({{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}}, " \t a b\n", "a b");
  expect_normal({{"type", "Strip"}, {"strip_left", false}, {"strip_right", true}}, " a ", " a");
  expect_normal({{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}}, "  ", "");
  expect_normal({{"type", "StripAccents"}}, "e\xCC\x81o", "eo");
  // Spacing and enclosing marks are accents here, too (not in BertNormalizer), and newer ones.
  expect_normal({{"type", "StripAccents"}}, "\xE0\xA4\x95\xE0\xA4\xBE" "a\xE2\x83\x9D\xF0\x9E\xA5\x84", "\xE0\xA4\x95" "a");
  expect_normal({{"type", "BertNormalizer"}, {"strip_accents", true}}, "\xE0\xA4\x95\xE0\xA4\xBE", "\xE0\xA4\x95\xE0\xA4\xBE");
  expect_normal({{"type", "ByteLevel"}}, " \xC3\xA9", "\xC4\xA0\xC3\x83\xC2\xA9");
  expect_normal({{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}, {{"type", "Prepend"}, {"prepend", "<"}}}}},
                "A", "<a");
}

TEST(Normalizer, Bert) {
  const auto bert = [](bool clean, bool chinese, Json accents, bool lower) {
    return Json{{"type", "BertNormalizer"}, {"clean_text", clean}, {"handle_chinese_chars", chinese}, {"strip_accents", accents},
                {"lowercase", lower}};
  };
  expect_normal(bert(true, true, nullptr, true), "H\xC3\x89" "a\tb\xE2\x80\x8B" "c\xC2\xA0" "d", "hea bc d");
  expect_normal(bert(true, true, nullptr, false), "\xC3\x89\x01" "a", "\xC3\x89" "a");
  expect_normal(bert(true, true, true, false), "\xC3\x89" "A", "EA");
  expect_normal(bert(true, true, false, true), "\xC3\x89" "A", "\xC3\xA9" "a");
  expect_normal(bert(false, true, false, false), "a\xE6\x97\xA5\t", "a \xE6\x97\xA5 \t");
  expect_normal(bert(true, false, false, false), "a\xE6\x97\xA5\xEF\xBF\xBD" "b", "a\xE6\x97\xA5" "b");
  // Unicode 9 and later are unknown to the tables of the tokenizers library: U+1E944 is a mark since 9, U+0300 always was.
  expect_normal(bert(false, false, true, false), "a\xCC\x80\xF0\x9E\xA5\x84", "a\xF0\x9E\xA5\x84");
  // All of the private use areas count as controls.
  expect_normal(bert(true, false, false, false), "a\xEE\x84\xA3" "b\xEE\x80\x80" "c\xF3\xB0\x80\x81", "abc");
}

TEST(Normalizer, Nmt) {
  expect_normal({{"type", "Nmt"}}, "a\x01" "b\tc\xE2\x80\x8B" "d\xE2\x96\x81\xEF\xBB\xBF\x7F", "ab c d  ");
}

TEST(Normalizer, NormalFormsBesideAscii) {
  // A mark joins the ASCII letter before it, also behind a long plain run; U+FB01 becomes two letters.
  expect_normal({{"type", "NFC"}}, "plain text ne\xCC\x81" "e x\xCC\xA3\xCC\x81", "plain text n\xC3\xA9" "e x\xCC\xA3\xCC\x81");
  expect_normal({{"type", "NFKC"}}, "o\xEF\xAC\x81\xCC\x81", "of\xC3\xAD");
}

TEST(Normalizer, PrecompiledLooksUpClusters) {
  const auto json = [](const std::map<std::string, std::string>& entries) {
    return Json{{"type", "Precompiled"}, {"precompiled_charsmap", encode_base64(charsmap_blob(entries))}};
  };
  expect_normal(json({{"\xEF\xAC\x81", "fi"}, {"x", "yy"}}), "\xEF\xAC\x81xa", "fiyya");
  // One cluster e + accent: an entry for the pair replaces it, and so does one for its beginning, accent and all.
  expect_normal(json({{"e\xCC\x81", "E"}}), "e\xCC\x81" "e", "Ee");
  expect_normal(json({{"e", "E"}}), "e\xCC\x81" "e", "EE");
  Json bad = bpe_json({"a"});
  bad["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", "!!"}};
  EXPECT_NE(error_of([&] { load_json(bad); }, ErrorCode::input).find("normalizer.precompiled_charsmap"), std::string::npos);
  bad["normalizer"]["precompiled_charsmap"] = encode_base64("abcdefghij");
  error_of([&] { load_json(bad); }, ErrorCode::input);
}

std::string decoded(const Json& decoder, const std::vector<std::string>& tokens) {
  std::vector<std::string> vocab = {"?"};
  for (const std::string& token : tokens) {
    if (std::find(vocab.begin(), vocab.end(), token) == vocab.end()) vocab.push_back(token);
  }
  Json json = bpe_json(vocab);
  json["decoder"] = decoder;
  const Tokenizer tokenizer = load_json(json);
  Ids ids;
  for (const std::string& token : tokens) ids.push_back(tokenizer.find_token(token));
  return tokenizer.decode(ids);
}

TEST(Decoder, EachType) {
  EXPECT_EQ(decoded(nullptr, {"a", "b"}), "a b");
  EXPECT_EQ(decoded({{"type", "ByteLevel"}}, {"\xC3\x83", "\xC2\xA9\xC4\xA0", "x"}), "\xC3\xA9 x");
  EXPECT_EQ(decoded({{"type", "ByteLevel"}}, {"x", "\xC3\x83"}), "x\xEF\xBF\xBD") << "a character cut off at the end";
  EXPECT_EQ(decoded({{"type", "ByteLevel"}}, {"\xE6\x97\xA5", "x"}), "\xE6\x97\xA5x") << "no byte-level piece: as it is";
  EXPECT_EQ(decoded({{"type", "Replace"}, {"pattern", {{"String", "_"}}}, {"content", " "}}, {"a_b", "_"}), "a b ");
  EXPECT_EQ(decoded({{"type", "ByteFallback"}}, {"<0xC3>", "<0xA9>", "a"}), "\xC3\xA9" "a");
  EXPECT_EQ(decoded({{"type", "ByteFallback"}}, {"<0xC3>", "<0x41>", "a"}), "\xEF\xBF\xBD\xEF\xBF\xBD" "a");
  EXPECT_EQ(decoded({{"type", "Fuse"}}, {"a", "b"}), "ab");
  EXPECT_EQ(decoded({{"type", "Strip"}, {"content", "x"}, {"start", 2}, {"stop", 1}}, {"xxxaxx", "x", "bx"}), "xaxb");
  EXPECT_EQ(decoded({{"type", "Metaspace"}, {"replacement", kMark}}, {kMark + "a", kMark + "b"}), "a b");
  EXPECT_EQ(decoded({{"type", "Metaspace"}, {"replacement", kMark}, {"prepend_scheme", "never"}}, {kMark + "a"}), " a");
  EXPECT_EQ(decoded({{"type", "BPEDecoder"}, {"suffix", "</w>"}}, {"a", "b</w>", "c</w>"}), "ab c");
  const Json fused = {{"type", "Sequence"},
                      {"decoders", {{{"type", "Fuse"}}, {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}};
  EXPECT_EQ(decoded(fused, {" ", " a", " b"}), " a b") << "one space of the whole text";
}

TEST(Decoder, WordPiece) {
  const Json plain = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", false}};
  EXPECT_EQ(decoded(plain, {"un", "##able", "to", "."}), "unable to .");
  EXPECT_EQ(decoded(plain, {"##able", "a"}), "##able a") << "the first token stays as it is";
  const Json clean = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}};
  EXPECT_EQ(decoded(clean, {"do", "n't", "stop", ".", "ok", "?"}), "don't stop. ok?");
  EXPECT_EQ(decoded(clean, {"i", "'", "m"}), "i ' m") << "token by token: \" '\" and \" m\" are seen apart";
}

TEST(Decoder, Ctc) {
  const Json ctc = {{"type", "CTC"}, {"pad_token", "<pad>"}, {"word_delimiter_token", "|"}, {"cleanup", true}};
  EXPECT_EQ(decoded(ctc, {"<pad>", "h", "h", "e", "l", "<pad>", "l", "l", "o", "|", "|", "x"}), "hello x");
  Json raw = ctc;
  raw["cleanup"] = false;
  EXPECT_EQ(decoded(raw, {"a", "|", "b"}), "a|b");
}

TEST(PostProcessor, EachType) {
  Json json = bpe_json({"a", "<s>", "</s>", "b"});
  const Json special = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const Json end = {{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}};
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const Json entries = {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}},
                        {"</s>", {{"id", "</s>"}, {"ids", {2, 2}}, {"tokens", {"</s>"}}}}};
  json["post_processor"] = {{"type", "TemplateProcessing"}, {"single", {special, text, end}}, {"special_tokens", entries}};
  EXPECT_EQ(load_json(json).encode("ab"), (Ids{1, 0, 3, 2, 2}));
  EXPECT_EQ(load_json(json).encode("ab", {false, false}), (Ids{0, 3}));
  json["post_processor"] = {{"type", "Sequence"}, {"processors", {{{"type", "ByteLevel"}}, json["post_processor"]}}};
  EXPECT_EQ(load_json(json).encode(""), (Ids{1, 2, 2}));
  json["post_processor"] = {{"type", "RobertaProcessing"}, {"cls", {"<s>", 1}}, {"sep", {"</s>", 2}}};
  EXPECT_EQ(load_json(json).encode("a"), (Ids{1, 0, 2}));
  json["post_processor"]["type"] = "BertProcessing";
  EXPECT_EQ(load_json(json).encode("a"), (Ids{1, 0, 2}));
  json["post_processor"]["sep"][1] = 99;
  error_of([&] { load_json(json); }, ErrorCode::input);
}

TEST(AddedTokens, FlagsDecideWhatMatches) {
  Json json = bpe_json({"?", "a", "b", " ", "x"});
  json["model"]["unk_token"] = "?";
  const auto token = [](int id, const std::string& content, std::initializer_list<const char*> on) {
    Json entry = {{"id", id}, {"content", content}, {"special", false}, {"normalized", false}};
    for (const char* flag : on) entry[flag] = true;
    return entry;
  };
  json["normalizer"] = {{"type", "Lowercase"}};
  json["added_tokens"] = {token(10, "<s>", {"special"}),      token(11, "WORD", {"single_word"}),
                          token(12, "<l>", {"lstrip"}),       token(13, "<r>", {"rstrip"}),
                          token(14, "NORM", {"normalized"}),  token(15, "<s>long", {})};
  const Tokenizer t = load_json(json);
  EXPECT_EQ(t.vocab_size(), 16);
  const EncodeOptions parse{true, true};
  EXPECT_EQ(t.encode("a<s>b", parse), (Ids{1, 10, 2}));
  EXPECT_EQ(t.encode("a<s>b"), (Ids{1, 0, 0, 0, 2})) << "special strings are text unless parsed";
  EXPECT_EQ(t.encode("<s>long", parse), Ids{15}) << "the longest wins";
  EXPECT_EQ(t.encode("<s>long"), Ids{15});
  EXPECT_EQ(t.encode("a WORD b"), (Ids{1, 3, 11, 3, 2}));
  EXPECT_EQ(t.encode("aWORD").back(), 0) << "touches a word";
  EXPECT_EQ(t.encode("a \t<l> b"), (Ids{1, 12, 3, 2}));
  EXPECT_EQ(t.encode("a <r> \n b"), (Ids{1, 3, 13, 2}));
  EXPECT_EQ(t.encode("a <r>  <l>b"), (Ids{1, 3, 13, 12, 2})) << "white space is swallowed once";
  EXPECT_EQ(t.encode("anormNoRmb"), (Ids{1, 14, 14, 2})) << "found after lower-casing";
  EXPECT_TRUE(t.is_special(10));
  EXPECT_FALSE(t.is_special(11));
  EXPECT_EQ(t.token(7), "") << "a hole";
  EXPECT_EQ(t.decode({1, 10, 2}, {true}), "a b");
  EXPECT_EQ(t.decode({1, 10, 2}), "a <s> b");
}

TEST(AddedTokens, SwallowedSpaceBeginsTokens) {
  Json json = bpe_json({"?", "a", "b", " ", "x"});
  json["model"]["unk_token"] = "?";
  json["added_tokens"] = {{{"id", 5}, {"content", "  "}, {"special", false}, {"normalized", false}, {"rstrip", true}}};
  EXPECT_EQ(load_json(json).encode("a     b"), (Ids{1, 5, 5, 2})) << "the first swallows five, the second is found inside";
  json["added_tokens"][0]["lstrip"] = true;
  EXPECT_EQ(load_json(json).encode("a     b"), (Ids{1, 5, 2})) << "nothing is left of the second";
}

TEST(Config, BosAndEosComeFromTheConfigBeside) {
  Json json = bpe_json({"a", "[B]", "[E]"});
  TempDir dir;
  dir.write("tokenizer.json", json.dump());
  EXPECT_EQ(Tokenizer::load(dir.path()).bos_id(), -1);
  dir.write("tokenizer_config.json",
            R"({"bos_token": "[B]", "eos_token": {"content": "[E]"}, "add_bos_token": true, "add_eos_token": true})");
  const Tokenizer t = Tokenizer::load(dir.path());
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.encode("a"), (Ids{1, 0, 2}));
  EXPECT_EQ(t.encode("a", {false, false}), Ids{0});
}

TEST(Text, MustBeUtf8) {
  const Tokenizer t = load_json(bpe_json({"a"}));
  const std::string message = error_of([&] { t.encode("aa\xC3"); }, ErrorCode::input);
  EXPECT_NE(message.find("byte 2"), std::string::npos) << message;
  for (const char* bad : {"\xED\xA0\x80", "\xC0\x80", "\xF4\x90\x80\x80", "\x80", "\xFF"}) {
    error_of([&] { t.encode(bad); }, ErrorCode::input);
  }
}

TEST(Decode, IdOutOfRangeIsNamed) {
  const Tokenizer t = load_json(bpe_json({"a", "b"}));
  for (const int32_t id : {-1, 2, INT32_MAX}) {
    const std::string message = error_of([&] { t.decode({0, id}); }, ErrorCode::input);
    EXPECT_NE(message.find(std::to_string(id)), std::string::npos) << message;
    EXPECT_NE(message.find("[0, 2)"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace thimble
