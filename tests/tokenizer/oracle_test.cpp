// Recorded encodings of the reference implementations, and round trips of real texts. Third-party data: skipped where
// absent.
#include <sstream>

#include "models/tokenizer/check.h"
#include "models/tokenizer/unicode.h"
#include "tests/tokenizer/support.h"

namespace thimble {
namespace {

void expect_exact(const std::string& tokenizer, const std::string& cases) {
  const CheckReport report = check_cases(Tokenizer::load(shared_path(tokenizer)), shared_path(cases));
  EXPECT_EQ(report.lines, 211);
  EXPECT_EQ(report.failed, 0);
  for (const CheckMismatch& m : report.first) {
    ADD_FAILURE() << "line " << m.line << " " << m.field << "\n want " << m.want << "\n got  " << m.got;
  }
}

class Oracle : public ::testing::TestWithParam<std::string> {};

TEST_P(Oracle, EveryCaseIsExact) {
  const std::string dir = "oracle/tok/" + GetParam();
  SKIP_WITHOUT(dir);
  expect_exact(dir, dir + "/cases.jsonl");
}

TEST_P(Oracle, SavedAndReloadedStaysExact) {
  const std::string dir = "oracle/tok/" + GetParam();
  SKIP_WITHOUT(dir);
  const Tokenizer original = Tokenizer::load(shared_path(dir));
  TempDir temp;
  original.save(temp.path());
  const Tokenizer copy = Tokenizer::load(temp.path());
  EXPECT_EQ(copy.bos_id(), original.bos_id());
  EXPECT_EQ(copy.eos_id(), original.eos_id());
  EXPECT_EQ(check_cases(copy, shared_path(dir + "/cases.jsonl")).failed, 0);
  // All but the model section is the same JSON.
  Json before = Json::parse(read_file(shared_path(dir + "/tokenizer.json")));
  Json after = Json::parse(read_file(temp.file("tokenizer.json")));
  EXPECT_EQ(before["model"]["vocab"], after["model"]["vocab"]);
  EXPECT_EQ(before["model"]["merges"].size(), after["model"]["merges"].size());
  before.erase("model");
  after.erase("model");
  EXPECT_EQ(before, after);
}

INSTANTIATE_TEST_SUITE_P(HuggingFace, Oracle, ::testing::Values("gpt2", "llama2", "llama3_trunc12k", "bert_uncased"));

TEST(Oracle, SentencePieceFileGivesTheSameIds) {
  SKIP_WITHOUT("data/tokenizers/llama2/tokenizer.model");
  SKIP_WITHOUT("oracle/tok/llama2");
  expect_exact("data/tokenizers/llama2/tokenizer.model", "oracle/tok/llama2/cases.jsonl");
}

TEST(Oracle, BertVocabularyFileGivesTheSameIds) {
  SKIP_WITHOUT("oracle/tok/bert_uncased");
  expect_exact("oracle/tok/bert_uncased/vocab.txt", "oracle/tok/bert_uncased/cases.jsonl");
  SKIP_WITHOUT("data/tokenizers/bert_base_uncased/vocab.txt");
  expect_exact("data/tokenizers/bert_base_uncased/vocab.txt", "oracle/tok/bert_uncased/cases.jsonl");
}

// The same text token by token: what has been said is never taken back, and no part ends inside a character.
TEST_P(Oracle, StreamedTextIsTheWholeText) {
  const std::string dir = "oracle/tok/" + GetParam();
  SKIP_WITHOUT(dir);
  const Tokenizer tokenizer = Tokenizer::load(shared_path(dir));
  std::istringstream lines(read_file(shared_path(dir + "/cases.jsonl")));
  for (std::string line; std::getline(lines, line);) {
    const Ids ids = Json::parse(line)["ids"].get<Ids>();
    for (const bool skip : {false, true}) {
      DecodeStream stream(tokenizer, {skip});
      std::string text;
      for (const int32_t id : ids) {
        const std::string part = stream.push(id);
        EXPECT_EQ(find_invalid_utf8(part), std::string::npos);
        text += part;
      }
      ASSERT_EQ(text + stream.finish(), tokenizer.decode(ids, {skip}));
    }
  }
}

// Items separated by a line; the .out file has the ids of each, separated by spaces.
void expect_ggml_pairs(const std::string& tokenizer_path, const std::string& name) {
  const Tokenizer tokenizer = Tokenizer::load(shared_path(tokenizer_path));
  const std::string base = shared_path("data/tokenizers/ggml_vocab/" + name);
  const std::string input = read_file(base + ".inp"), output = read_file(base + ".out");
  const std::string separator = "\n__ggml_vocab_test__\n";
  size_t from = 0, line = 0;
  int count = 0;
  while (from < input.size()) {
    const size_t end = std::min(input.find(separator, from), input.size());
    const std::string text = input.substr(from, end - from);
    from = end + separator.size();
    const size_t newline = std::min(output.find('\n', line), output.size());
    Ids want;
    std::istringstream numbers(output.substr(line, newline - line));
    for (int32_t id; numbers >> id;) want.push_back(id);
    line = newline + 1;
    if (from > input.size() && want.empty() && line > output.size()) break;  // what follows the last separator
    EXPECT_EQ(tokenizer.encode(text, {false, false}), want) << Json(text).dump();
    ++count;
  }
  EXPECT_GT(count, 30);
}

TEST(Oracle, GgmlPairsGpt2) {
  SKIP_WITHOUT("data/tokenizers/ggml_vocab");
  expect_ggml_pairs("data/tokenizers/gpt2/tokenizer.json", "ggml-vocab-gpt-2.gguf");
}

TEST(Oracle, GgmlPairsLlama) {
  SKIP_WITHOUT("data/tokenizers/ggml_vocab");
  expect_ggml_pairs("data/tokenizers/llama2/tokenizer.model", "ggml-vocab-llama-spm.gguf");
}

class GgufOracle : public ::testing::TestWithParam<const char*> {};

TEST_P(GgufOracle, PairsAreExact) {
  SKIP_WITHOUT("data/tokenizers/ggml_vocab");
  const std::string name = GetParam();
  expect_ggml_pairs("data/tokenizers/ggml_vocab/" + name, name);
}

INSTANTIATE_TEST_SUITE_P(LlamaCpp, GgufOracle,
                         ::testing::Values("ggml-vocab-gpt-2.gguf", "ggml-vocab-llama-spm.gguf",
                                           "ggml-vocab-phi-3.gguf"));

TEST(Oracle, GgufVocabulariesAgreeWithTheirOriginals) {
  SKIP_WITHOUT("data/tokenizers/ggml_vocab");
  SKIP_WITHOUT("data/text/wikitext-2");
  const std::string text = read_file(shared_path("data/text/wikitext-2/wiki.test.raw"));
  const auto load = [](const std::string& name) { return Tokenizer::load(shared_path("data/tokenizers/" + name)); };
  EXPECT_EQ(load("ggml_vocab/ggml-vocab-gpt-2.gguf").encode(text, {false, false}),
            load("gpt2/tokenizer.json").encode(text, {false, false}));
  EXPECT_EQ(load("ggml_vocab/ggml-vocab-llama-spm.gguf").encode(text), load("llama2/tokenizer.model").encode(text));
}

TEST(Oracle, RealTextsRoundTrip) {
  SKIP_WITHOUT("data/tokenizers");
  for (const char* name : {"oracle/tok/gpt2", "oracle/tok/llama2", "oracle/tok/llama3_trunc12k",
                           "data/tokenizers/gpt_neox_20b/20B_tokenizer.json",
                           "data/tokenizers/mistral/tokenizer.model.v1", "data/models/stories260K"}) {
    const Tokenizer tokenizer = Tokenizer::load(shared_path(name));
    for (const char* text : {"data/text/tinyshakespeare/input.txt", "data/text/wikitext-2/wiki.test.raw"}) {
      const std::string content = read_file(shared_path(text));
      const Ids ids = tokenizer.encode(content);
      EXPECT_TRUE(tokenizer.decode(ids, {true}) == content) << name << " " << text;
    }
  }
}

TEST(Oracle, NeoXWhiteSpaceTokensAreFoundInNormalisedText) {
  SKIP_WITHOUT("data/tokenizers/gpt_neox_20b");
  const Tokenizer tokenizer = Tokenizer::load(shared_path("data/tokenizers/gpt_neox_20b/20B_tokenizer.json"));
  EXPECT_EQ(tokenizer.vocab_size(), 50277);
  for (const int n : {2, 3, 24}) EXPECT_EQ(tokenizer.encode(std::string(static_cast<size_t>(n), ' ')), Ids{50278 - n});
  EXPECT_EQ(tokenizer.encode(std::string(26, ' ')), (Ids{50254, 50276}));
  // NFC first: e + combining acute is the same text as é.
  EXPECT_EQ(tokenizer.encode("e\xCC\x81"), tokenizer.encode("\xC3\xA9"));
}

TEST(Oracle, GreedyTextsOfLlama2cDecode) {
  SKIP_WITHOUT("data/models/stories260K");
  const Tokenizer tokenizer = Tokenizer::load(shared_path("data/models/stories260K"));
  EXPECT_EQ(tokenizer.vocab_size(), 512);
  EXPECT_EQ(tokenizer.kind(), "BPE (llama2.c)");
  const std::string text = read_file(shared_path("data/models/stories260K/greedy_n200.txt"));
  const Ids ids = tokenizer.encode(text);
  EXPECT_EQ(ids[0], 1);
  EXPECT_EQ(tokenizer.token(ids[1]), " Once") << "the leading space is there and merges";
  EXPECT_EQ(tokenizer.decode(ids, {true}), text);
  const Tokenizer characters = Tokenizer::load(shared_path("data/models/babyllama_tok105/tok105.bin"));
  EXPECT_EQ(characters.encode("Hi \xE2\x98\x83\n").back(), 0) << "no byte tokens: what has no piece is unk";
  const std::string story = "Once upon a time, there was a little girl.";
  EXPECT_EQ(characters.decode(characters.encode(story), {true}), story);
  // The .model of the same vocabulary.
  const Tokenizer model = Tokenizer::load(shared_path("data/models/babyllama_tok105/tok105.model"));
  EXPECT_EQ(model.encode(story), characters.encode(story));
}

}  // namespace
}  // namespace thimble
