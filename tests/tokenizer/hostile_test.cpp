// Damaged and malicious files: an Error that names the field, never anything else.
#include "tests/tokenizer/support.h"

namespace thimble {
namespace {

Json good_json() {
  Json json = bpe_json({"<unk>", "<s>", "a", "b", "ab", "<0x0A>", " ", " a"}, {"a b", "a ab"});
  json["model"]["merges"] = Json::array({Json::array({"a", "b"}), Json::array({" ", "a"})});
  json["model"]["unk_token"] = "<unk>";
  json["model"]["byte_fallback"] = true;
  json["added_tokens"] = {{{"id", 1}, {"content", "<s>"}, {"special", true}, {"normalized", false}, {"lstrip", true}}};
  json["normalizer"] = {{"type", "Sequence"},
                        {"normalizers", {{{"type", "NFC"}}, {{"type", "Prepend"}, {"prepend", " "}}}}};
  json["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "\\s+|[^\\s]+"}}}, {"behavior", "Isolated"}};
  json["post_processor"] = {{"type", "RobertaProcessing"}, {"cls", {"<s>", 1}}, {"sep", {"<s>", 1}}};
  json["decoder"] = {{"type", "Sequence"}, {"decoders", {{{"type", "ByteFallback"}}, {{"type", "Fuse"}}}}};
  return json;
}

// What a loaded tokenizer does must be an Error or a result, too.
void exercise(const Tokenizer& t) {
  try {
    const Ids ids = t.encode("ab a\n<s> x\xC3\xA9", {true, true});
    t.decode(ids);
  } catch (const Error&) {
  }
}

TEST(Hostile, RandomDamageOfTokenizerJson) {
  TempDir dir;
  const std::string good = good_json().dump();
  exercise(Tokenizer::load(dir.write("tokenizer.json", good)));
  Random random(1);
  int loaded = 0;
  const std::string alphabet = "\"{}[],:0123456789-.eaxntfu\\ \xC3\xA9";
  for (int i = 0; i < 6000; ++i) {
    std::string bad = good;
    for (size_t n = 1 + random.below(3); n > 0; --n) {
      const size_t at = random.below(bad.size());
      switch (random.below(4)) {
        case 0: bad[at] = static_cast<char>(random.below(256)); break;
        case 1: bad[at] = alphabet[random.below(alphabet.size())]; break;
        case 2: bad.erase(at, 1 + random.below(8)); break;
        default: bad.insert(at, bad.substr(random.below(bad.size()), random.below(30)));
      }
      if (bad.empty()) bad = "{";
    }
    if (i % 5 == 0) bad.resize(random.below(bad.size()));
    const std::string path = dir.write("tokenizer.json", bad);
    try {
      exercise(Tokenizer::load(path));
      ++loaded;
    } catch (const Error& error) {
      ASSERT_TRUE(error.code() == ErrorCode::input || error.code() == ErrorCode::unsupported) << error.what() << "\n" << bad;
      ASSERT_NE(std::string(error.what()).find("tokenizer.json"), std::string::npos) << error.what() << "\n" << bad;
    }
  }
  EXPECT_GT(loaded, 50) << "some damage must be harmless, else the test tests only the parser";
}

// Replaces single values by values of every other kind: finds unchecked types.
TEST(Hostile, EveryFieldWithEveryKindOfValue) {
  const Json good = good_json();
  const std::vector<Json> values = {nullptr, true, -1, 0, 7, 1e300, 4294967296LL, 1.5, "", "x", "a b c", "\xC3\xA9",
                                    Json::array(), Json::array({1, 2}), Json::object(), Json{{"type", "Fuse"}}};
  const Json flat = good.flatten();
  std::vector<std::string> paths;
  for (const auto& item : flat.items()) {
    std::string path = item.key();
    while (!path.empty()) {
      if (std::find(paths.begin(), paths.end(), path) == paths.end()) paths.push_back(path);
      path.resize(path.rfind('/'));
    }
  }
  TempDir dir;
  for (const std::string& path : paths) {
    for (const Json& value : values) {
      Json bad = good;
      bad[Json::json_pointer(path)] = value;
      const std::string file = dir.write("tokenizer.json", bad.dump());
      try {
        exercise(Tokenizer::load(file));
      } catch (const Error& error) {
        ASSERT_TRUE(error.code() == ErrorCode::input || error.code() == ErrorCode::unsupported) << path << " " << error.what();
      }
    }
  }
}

struct Case {
  const char* name;
  void (*damage)(Json&);
  const char* field;
  ErrorCode code;
};

TEST(Hostile, NamesTheField) {
  const Case cases[] = {
      {"negative id", [](Json& j) { j["model"]["vocab"]["a"] = -2; }, "model.vocab", ErrorCode::input},
      {"huge id", [](Json& j) { j["model"]["vocab"]["a"] = 2000000000; }, "model.vocab", ErrorCode::input},
      {"id above 64 bits signed", [](Json& j) { j["model"]["vocab"]["a"] = UINT64_MAX; }, "model.vocab", ErrorCode::input},
      {"real id", [](Json& j) { j["model"]["vocab"]["a"] = 1.5; }, "model.vocab", ErrorCode::input},
      {"two pieces with one id", [](Json& j) { j["model"]["vocab"]["a"] = 3; }, "model.vocab", ErrorCode::input},
      {"unknown piece in merge", [](Json& j) { j["model"]["merges"][0][0] = "zz"; }, "model.merges[0]", ErrorCode::input},
      {"result of merge unknown", [](Json& j) { j["model"]["merges"][0] = {"b", "b"}; }, "model.merges[0]", ErrorCode::input},
      {"empty part", [](Json& j) { j["model"]["merges"][0] = {"", "b"}; }, "model.merges[0]", ErrorCode::input},
      {"merge of three", [](Json& j) { j["model"]["merges"][1] = "a b c"; }, "model.merges[1]", ErrorCode::input},
      {"merges missing", [](Json& j) { j["model"].erase("merges"); }, "model.merges", ErrorCode::input},
      {"unk not in vocabulary", [](Json& j) { j["model"]["unk_token"] = "?"; }, "model.unk_token", ErrorCode::input},
      {"model type", [](Json& j) { j["model"]["type"] = "Magic"; }, "model.type", ErrorCode::unsupported},
      {"model missing", [](Json& j) { j.erase("model"); }, "model", ErrorCode::input},
      {"added id taken", [](Json& j) { j["added_tokens"][0] = {{"id", 2}, {"content", "new"}}; }, "added_tokens[0].id",
       ErrorCode::input},
      {"added id differs", [](Json& j) { j["added_tokens"][0]["id"] = 99; }, "added_tokens[0].id", ErrorCode::input},
      {"added id huge", [](Json& j) { j["added_tokens"][0] = {{"id", 100000000}, {"content", "n"}}; }, "added_tokens[0].id",
       ErrorCode::input},
      {"normalizer", [](Json& j) { j["normalizer"]["normalizers"][1]["type"] = "Magic"; }, "normalizer.normalizers[1].type",
       ErrorCode::unsupported},
      {"pre-tokenizer", [](Json& j) { j["pre_tokenizer"]["type"] = "Magic"; }, "pre_tokenizer.type", ErrorCode::unsupported},
      {"behaviour", [](Json& j) { j["pre_tokenizer"]["behavior"] = "Eaten"; }, "pre_tokenizer.behavior", ErrorCode::input},
      {"post-processor", [](Json& j) { j["post_processor"]["type"] = "Magic"; }, "post_processor.type",
       ErrorCode::unsupported},
      {"decoder", [](Json& j) { j["decoder"]["decoders"][0]["type"] = "Magic"; }, "decoder.decoders[0].type",
       ErrorCode::unsupported},
  };
  for (const Case& c : cases) {
    Json bad = good_json();
    c.damage(bad);
    const std::string message = error_of([&] { load_json(bad); }, c.code);
    EXPECT_NE(message.find(c.field), std::string::npos) << c.name << ": " << message;
  }
}

TEST(Hostile, DuplicateKeysAreRefused) {
  TempDir dir;
  const std::string path =
      dir.write("tokenizer.json", R"({"version":"1.0","model":{"type":"BPE","vocab":{"a":0,"a":1},"merges":[]}})");
  EXPECT_NE(error_of([&] { Tokenizer::load(path); }, ErrorCode::input).find("tokenizer.json"), std::string::npos);
}

TEST(Hostile, DeepNestingIsRefused) {
  std::string nested;
  for (int i = 0; i < 100000; ++i) nested += R"({"type":"Sequence","normalizers":[)";
  TempDir dir;
  const std::string path = dir.write("tokenizer.json", "{\"model\":{},\"normalizer\":" + nested);
  error_of([&] { Tokenizer::load(path); }, ErrorCode::input);
}

TEST(Hostile, EndlessBacktrackingEnds) {
  Json json = bpe_json({"a", "b"});
  json["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "(a+)+$|(a|aa)+c"}}}, {"behavior", "Isolated"}};
  const Tokenizer t = load_json(json);
  const std::string message = error_of([&] { t.encode(std::string(60, 'a') + "b"); }, ErrorCode::input);
  EXPECT_NE(message.find("pre_tokenizer.pattern.Regex"), std::string::npos) << message;
}

TEST(Hostile, RandomDamageOfLlama2cFile) {
  std::string good(4, '\0');
  good[0] = 4;
  for (const char* text : {"<unk>", "<s>", "</s>", " ", "a", "b", "ab", " a", "<0x0A>"}) {
    good.append(4, '\0');
    good += static_cast<char>(std::string(text).size());
    good.append(3, '\0');
    good += text;
  }
  TempDir dir;
  exercise(Tokenizer::load(dir.write("tok.bin", good)));
  Random random(2);
  int loaded = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string bad = good;
    for (size_t n = 1 + random.below(4); n > 0; --n) bad[random.below(bad.size())] = static_cast<char>(random.below(256));
    if (i % 4 == 0) bad.resize(random.below(bad.size()));
    const std::string path = dir.write("tok.bin", bad);
    try {
      exercise(Tokenizer::load(path));
      ++loaded;
    } catch (const Error& error) {
      ASSERT_TRUE(error.code() == ErrorCode::input || error.code() == ErrorCode::unsupported) << error.what();
    }
  }
  EXPECT_GT(loaded, 100);
}

}  // namespace
}  // namespace thimble
