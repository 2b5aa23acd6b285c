// The hand-written scanners against PCRE2 with the same expressions, on texts made to hurt. A second in the suite;
//   THIMBLE_SCANNER_DIFF_SECONDS=1200 build/release/bin/test_tokenizer --gtest_filter='ScannerDiff.*'
// runs longer, with other texts (the seed is printed, and THIMBLE_SCANNER_DIFF_SEED repeats it).
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "models/tokenizer/char_classes.h"
#include "models/tokenizer/regex.h"
#include "models/tokenizer/scanner.h"
#include "models/tokenizer/unicode.h"
#include "tensor/env.h"
#include "tests/tokenizer/support.h"

namespace thimble {
namespace {

std::vector<size_t> ends_by_scanner(const ScannerRule& rule, std::string_view text) {
  std::vector<size_t> all;
  size_t block[7];
  for (size_t pos = 0;;) {
    const size_t count = scan_pieces(rule, text, pos, block, 7);
    if (count == 0) return all;
    all.insert(all.end(), block, block + count);
    pos = all.back();
  }
}

// Matches and the gaps between them, as Split with Isolated cuts.
std::vector<size_t> ends_by_regex(const Regex& regex, std::string_view text) {
  std::vector<size_t> all;
  size_t from = 0;
  for (const auto& [begin, end] : regex.find_all(text)) {
    if (begin > from) all.push_back(begin);
    if (end > begin) all.push_back(end);
    from = end;
  }
  if (from < text.size()) all.push_back(text.size());
  return all;
}

std::string all_code_points() {
  std::string text;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c < 0xD800 || c >= 0xE000) append_utf8(text, c);
  }
  return text;
}

TEST(ScannerDiff, ClassesAreThoseOfPcre2) {
  using namespace char_class;
  const std::string text = all_code_points();
  const std::pair<const char*, uint8_t> classes[] = {{"\\p{L}", kLetter},
                                                     {"\\p{N}", kNumber},
                                                     {"\\s", kSpace},
                                                     {"[\\r\\n]", kNewline},
                                                     {"[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", kUpperPart},
                                                     {"[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]", kLowerPart}};
  for (const auto& [regex, bit] : classes) {
    std::vector<bool> member(text.size(), false);
    for (const auto& [begin, end] : Regex(regex, "test").find_all(text)) member[begin] = true;
    for (size_t pos = 0; pos < text.size();) {
      const size_t at = pos;
      const char32_t c = next_code_point(text, pos);
      ASSERT_EQ((CharClasses::get().of(c) & bit) != 0, member[at]) << regex << " U+" << std::hex << static_cast<uint32_t>(c);
    }
  }
}

TEST(ScannerDiff, EveryCodePointAloneAndInContext) {
  const std::string alone = all_code_points();
  const char* const around[][2] = {{"", ""}, {"a", "b"}, {" ", "a"}, {"'", "e"}, {" ", " "}, {"1", "2"}, {"!", "\n"}, {"A", "A"}};
  for (size_t i = 0; i < kKnownPatternCount; ++i) {
    const Regex regex(kKnownPatterns[i].regex, "test");
    EXPECT_EQ(ends_by_scanner(kKnownPatterns[i].rule, alone), ends_by_regex(regex, alone)) << kKnownPatterns[i].name;
    for (const auto& [before, behind] : around) {
      std::string text;
      for (size_t pos = 0; pos < alone.size();) {
        const size_t at = pos;
        if (next_code_point(alone, pos) >= 0x3100) break;  // every class occurs below
        text += before;
        text.append(alone, at, pos - at);
        text += behind;
      }
      EXPECT_TRUE(ends_by_scanner(kKnownPatterns[i].rule, text) == ends_by_regex(regex, text))
          << kKnownPatterns[i].name << " between \"" << before << "\" and \"" << behind << "\"";
    }
  }
}

// What the alternatives look at, and what looks like it.
const char* const kParts[] = {
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'vE", "'LL", "'D", "'", "''", "\xE2\x80\x99s", "'\xC5\xBF", "'x",
    "\xC5\xBF", "'l", "'r", "'v", " ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", " \n", "\n ", "\xC2\xA0", "\xE3\x80\x80", "\xE2\x80\xA8",
    "\xC2\x85", "\x0B", "\x0C", "\xE1\xA0\x8E", "\xE2\x80\x8B", "a", "b", "Z", "s", "S", "word", "Word", "WORD", "camelCase", "\xC3\xA9",
    "\xC3\x89", "e\xCC\x81", "\xCC\x81", "\xCE\xA3", "\xCF\x82", "\xC7\x85", "\xCA\xB0", "\xD7\x90", "\xE6\x97\xA5", "\xE6\x97\xA5\xE6\x9C\xAC",
    "\xE0\xA4\xBF", "\xE2\x83\x9D", "\xF0\x9F\x98\x80", "\xF0\x9F\x91\xA8\xE2\x80\x8D\xF0\x9F\x91\xA9", "\xEF\xB8\x8F", "1", "12", "123", "1234",
    "\xC2\xBD", "\xE2\x85\xA7", "\xD9\xA3", "\xF0\x9D\x9F\x98", ".", ",", "!", "?!", "--", "/", "//", "/\n", "_", "@", "#", "(", ")", "{}",
    "\\", "\"", "$", "+", "=", "\xC2\xAB", "\xE3\x80\x82", "\xEF\xBC\x81"};

std::string random_text(Random& random) {
  std::string text;
  const size_t style = random.below(4);
  for (size_t n = 1 + random.below(style == 3 ? 200 : 24); n > 0; --n) {
    if (style == 1 && random.below(3) == 0) {
      auto c = static_cast<char32_t>(random.below(random.below(2) == 0 ? 0x3000 : 0x110000));
      if (c >= 0xD800 && c < 0xE000) c = 0xFFFD;
      append_utf8(text, c);
    } else if (style == 2) {
      text += static_cast<char>(random.below(128));
    } else {
      const char* part = kParts[random.below(std::size(kParts))];
      for (size_t times = random.below(12) == 0 ? 1 + random.below(30) : 1; times > 0; --times) text += part;
    }
  }
  return text;
}

TEST(ScannerDiff, RandomTexts) {
  const double seconds = std::atof(env_get("SCANNER_DIFF_SECONDS").value_or("1").c_str());
  const auto given = env_get("SCANNER_DIFF_SEED");
  const bool long_run = seconds > 1;
  const uint64_t seed = given ? std::strtoull(given->c_str(), nullptr, 10)
                              : long_run ? static_cast<uint64_t>(std::chrono::system_clock::now().time_since_epoch().count()) : 1;
  std::vector<Regex> regexes;
  for (size_t i = 0; i < kKnownPatternCount; ++i) regexes.emplace_back(kKnownPatterns[i].regex, "test");
  Random random(seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  int64_t texts = 0, bytes = 0;
  while (std::chrono::steady_clock::now() < end) {
    for (int round = 0; round < 100; ++round) {
      const std::string text = random_text(random);
      for (size_t i = 0; i < kKnownPatternCount; ++i) {
        ASSERT_EQ(ends_by_scanner(kKnownPatterns[i].rule, text), ends_by_regex(regexes[i], text))
            << kKnownPatterns[i].name << " on " << Json(text).dump(-1, ' ', true) << ", seed " << seed;
      }
      ++texts;
      bytes += static_cast<int64_t>(text.size());
    }
  }
  if (long_run) {
    std::printf("seed %llu: %lld texts, %lld bytes, %zu expressions, no difference\n", static_cast<unsigned long long>(seed),
                static_cast<long long>(texts), static_cast<long long>(bytes), kKnownPatternCount);
  }
  EXPECT_GT(texts, 0);
}

TEST(ScannerDiff, FilesAreRecognisedByTheTextOfTheirExpression) {
  EXPECT_EQ(find_known_pattern("\\p{L}+"), nullptr);
  SKIP_WITHOUT("oracle/tok/llama3_trunc12k");
  const Json json = Json::parse(read_file(shared_path("oracle/tok/llama3_trunc12k/tokenizer.json")));
  const KnownPattern* known = find_known_pattern(json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].get<std::string>());
  ASSERT_NE(known, nullptr);
  EXPECT_STREQ(known->name, "llama-3");
}

TEST(ScannerDiff, RealTexts) {
  SKIP_WITHOUT("data/text/wikitext-2");
  const std::string text = read_file(shared_path("data/text/wikitext-2/wiki.test.raw"));
  for (size_t i = 0; i < kKnownPatternCount; ++i) {
    EXPECT_TRUE(ends_by_scanner(kKnownPatterns[i].rule, text) == ends_by_regex(Regex(kKnownPatterns[i].regex, "test"), text))
        << kKnownPatterns[i].name;
  }
}

}  // namespace
}  // namespace thimble
