// Text to ids on one thread: a vocabulary trained here on made-up text, and the published ones where ../shared has
// them, on prose and on the texts that make careless tokenizers quadratic. `first` is the first call of a fresh
// tokenizer, with nothing in its caches; the time of the row is that of later calls.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>

#include "bench/bench.h"
#include "models/tokenizer/bpe_trainer.h"
#include "models/tokenizer/tokenizer.h"
#include "tensor/file.h"

namespace thimble::bench {
namespace {

constexpr size_t kAdversarial = 1000000;

// Words of two to four syllables with the frequencies of a language, commas and full stops.
std::string made_up_text(size_t bytes) {
  static const char* const kSyllables[] = {"ka",  "to", "mi",  "ren", "sol", "ba", "ne",  "lu",
                                           "dor", "vi", "tan", "es",  "pra", "or", "shi", "un"};
  std::string text;
  uint64_t state = 1;
  const auto below = [&](uint64_t n) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (state >> 33) % n;
  };
  while (text.size() < bytes) {
    uint64_t word = below(1 + below(20000));  // small numbers are frequent
    do {
      text += kSyllables[word % 16];
      word /= 16;
    } while (word > 0);
    const uint64_t end = below(12);
    text += end == 0 ? ".\n" : end == 1 ? ", " : " ";
  }
  return text;
}

std::string shared(const std::string& name) { return std::string(THIMBLE_SOURCE_DIR) + "/../shared/" + name; }

std::string prose() {
  const std::string path = shared("data/text/wikitext-2/wiki.test.raw");
  return file_exists(path) ? read_file(path) : made_up_text(1300000);
}

Tokenizer load(const std::string& path) {
  if (!path.empty()) return Tokenizer::load(path);
  BpeTrainerOptions options;
  options.vocab_size = 2048;
  return train_bpe(made_up_text(200000), options);
}

void tokenize(benchmark::State& state, const std::string& path, const std::string& text) {
  const Tokenizer tokenizer = load(path);
  const double bytes = static_cast<double>(text.size());
  const double first = time_of([&] { benchmark::DoNotOptimize(tokenizer.encode(text)); });
  std::vector<int32_t> ids;
  std::vector<double> times;
  for (auto _ : state) {
    times.push_back(time_of([&] { ids = tokenizer.encode(text); }));
    state.SetIterationTime(times.back());
  }
  const double decode = time_of([&] { benchmark::DoNotOptimize(tokenizer.decode(ids)); });
  state.counters["bytes"] = bytes;
  state.counters["tokens"] = static_cast<double>(ids.size());
  state.counters["MB/s"] = bytes / median(times) / 1e6;
  state.counters["first_MB/s"] = bytes / first / 1e6;
  state.counters["decode_MB/s"] = bytes / decode / 1e6;
}

}  // namespace

void register_tokenize() {
  const std::pair<const char*, std::string> tokenizers[] = {
      {"trained", ""},
      {"gpt2", shared("data/tokenizers/gpt2/tokenizer.json")},
      {"llama3", shared("oracle/tok/llama3_trunc12k")},
      {"llama2", shared("data/tokenizers/llama2/tokenizer.json")},
      {"bert", shared("oracle/tok/bert_uncased")},
  };
  const auto repeated = [](const std::string& unit) {
    std::string text;
    while (text.size() < kAdversarial) text += unit;
    return text;
  };
  const std::pair<const char*, std::string (*)()> texts[] = {{"prose", prose}};
  const std::pair<const char*, std::string> hostile[] = {
      {"1M_a", "a"}, {"1M_spaces", " "}, {"1M_ab", "ab"}, {"1M_space_newline", " \n"}};
  for (const auto& [name, path] : tokenizers) {
    if (!path.empty() && !file_exists(path) && !is_directory(path)) continue;
    const auto add = [&, tokenizer_path = path](const std::string& row, const auto& make) {
      benchmark::RegisterBenchmark(row.c_str(),
                                   [tokenizer_path, make](benchmark::State& s) { tokenize(s, tokenizer_path, make()); })
          ->UseManualTime()
          ->Unit(benchmark::kMillisecond);
    };
    const std::string start = "tokenize/" + std::string(name) + "/";
    for (const auto& [kind, make] : texts) add(start + kind, make);
    for (const auto& [kind, unit] : hostile) {
      add(start + kind, [repeated, u = unit] { return repeated(u); });
    }
  }
}

}  // namespace thimble::bench
