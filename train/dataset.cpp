// Prompt and completion are encoded as one text: what a completion begins with may join the end of its prompt in one
// token, and that token is learned. Draws of an epoch are a Fisher-Yates shuffle keyed by (seed, epoch).
#include "train/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/rng.h"

namespace thimble {
namespace {

// Streams of Philox: the high byte tells shuffles from offsets, the rest counts.
constexpr uint64_t kShuffleStream = uint64_t{0x51} << 56, kOffsetStream = uint64_t{0x52} << 56;

std::vector<int32_t> encode_text(const Tokenizer& tokenizer, std::string_view text, const std::string& where) {
  try {
    return tokenizer.encode(text, {false, false});
  } catch (const Error& e) {
    throw Error(e.code(), where + ": " + e.what(), e.hint());
  }
}

bool adds_bos(const Tokenizer& tokenizer) {
  if (tokenizer.bos_id() < 0) return false;
  const std::vector<int32_t> ids = tokenizer.encode("a");
  return !ids.empty() && ids.front() == tokenizer.bos_id();
}

}  // namespace

Dataset Dataset::from_jsonl(const std::string& path, const Tokenizer& tokenizer, int64_t ctx, Overlong overlong) {
  const std::string content = read_file(path);
  const bool bos = adds_bos(tokenizer);
  const int32_t eos = tokenizer.eos_id();
  Dataset d;
  d.ctx_ = ctx;
  d.begins_.push_back(0);
  int64_t number = 0;
  std::vector<int32_t> ids;
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    ++d.stats_.rows;
    const std::string where = path + ":" + std::to_string(number);
    const nlohmann::json json = parse_json(line, where);
    const JsonObject row(json, where);
    const bool pair = row.has("prompt") || row.has("completion");
    if (pair == row.has("text"))
      throw Error(ErrorCode::input,
                  where + (pair ? ": has both \"text\" and \"prompt\" or \"completion\""
                                : ": has neither \"text\" nor \"prompt\""),
                  "expected one JSON object per line: {\"prompt\": ..., \"completion\": ...} or {\"text\": ...}");
    ids.clear();
    if (bos) ids.push_back(tokenizer.bos_id());
    auto label_from = static_cast<int64_t>(ids.size());
    if (pair) {
      const std::string prompt = row.require_string("prompt"), completion = row.require_string("completion");
      if (completion.empty()) row.fail("completion", "a text that is not empty: there is nothing to learn");
      const std::vector<int32_t> alone = encode_text(tokenizer, prompt, where);
      const std::vector<int32_t> whole = encode_text(tokenizer, prompt + completion, where);
      size_t common = 0;
      if (!prompt.empty())
        while (common < alone.size() && common < whole.size() && alone[common] == whole[common]) ++common;
      if (common == whole.size()) row.fail("completion", "a text that gives tokens of its own behind the prompt");
      label_from += static_cast<int64_t>(common);
      ids.insert(ids.end(), whole.begin(), whole.end());
    } else {
      const std::string text = row.require_string("text");
      if (text.empty()) row.fail("text", "a text that is not empty");
      const std::vector<int32_t> whole = encode_text(tokenizer, text, where);
      ids.insert(ids.end(), whole.begin(), whole.end());
    }
    if (eos >= 0) ids.push_back(eos);
    const auto n = static_cast<int64_t>(ids.size());
    if (n < 2)
      row.fail(pair ? "completion" : "text",
               "at least two tokens: the first has nothing before it to be predicted from");
    if (n > ctx) {
      if (overlong == Overlong::error)
        throw Error(ErrorCode::input, fmt::format("{}: the row has {} tokens: the context holds {}", where, n, ctx),
                    "raise --ctx, shorten the row, or choose --overlong truncate or skip");
      if (overlong == Overlong::skip || std::max<int64_t>(label_from, 1) >= ctx) {  // nothing to learn would be left
        ++d.stats_.skipped;
        continue;
      }
      ++d.stats_.truncated;
      ids.resize(static_cast<size_t>(ctx));
    }
    const auto kept = static_cast<int64_t>(ids.size());
    d.ids_.insert(d.ids_.end(), ids.begin(), ids.end());
    d.begins_.push_back(static_cast<int64_t>(d.ids_.size()));
    d.label_from_.push_back(static_cast<int32_t>(label_from));
    d.stats_.tokens += kept;
    d.stats_.learned_tokens += kept - std::max<int64_t>(label_from, 1);
    d.stats_.longest = std::max(d.stats_.longest, kept);
  }
  if (d.stats_.rows == 0) throw Error(ErrorCode::input, path + ": holds no rows", "expected one JSON object per line");
  if (d.label_from_.empty())
    throw Error(ErrorCode::input,
                fmt::format("{}: none of the {} rows fits a context of {} tokens", path, d.stats_.rows, ctx),
                "raise --ctx, or choose --overlong truncate");
  return d;
}

Dataset Dataset::from_text(const std::string& path, const Tokenizer& tokenizer, int64_t ctx) {
  std::vector<int32_t> ids = encode_text(tokenizer, read_file(path), path);
  const auto n = static_cast<int64_t>(ids.size());
  if (n < ctx + 1)
    throw Error(ErrorCode::input,
                fmt::format("{}: the text has {} tokens: a window of --ctx {} takes {}", path, n, ctx, ctx + 1),
                "give a longer text, or lower --ctx");
  return from_stream(std::move(ids), ctx);
}

Dataset Dataset::from_ids(std::vector<std::vector<int32_t>> sequences, std::vector<int32_t> label_from, int64_t ctx) {
  THIMBLE_CHECK(sequences.size() == label_from.size());
  Dataset d;
  d.ctx_ = ctx;
  d.label_from_ = std::move(label_from);
  d.begins_.push_back(0);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const auto n = static_cast<int64_t>(sequences[i].size());
    if (n == 0 || n > ctx)
      throw Error(ErrorCode::input, fmt::format("sequence {} has {} tokens: expected 1 to {}", i, n, ctx), "");
    d.ids_.insert(d.ids_.end(), sequences[i].begin(), sequences[i].end());
    d.begins_.push_back(static_cast<int64_t>(d.ids_.size()));
    d.stats_.learned_tokens += std::max<int64_t>(0, n - std::max(d.label_from_[i], 1));
    d.stats_.longest = std::max(d.stats_.longest, n);
  }
  d.stats_.rows = static_cast<int64_t>(sequences.size());
  d.stats_.tokens = static_cast<int64_t>(d.ids_.size());
  if (sequences.empty()) throw Error(ErrorCode::input, "there are no sequences to learn from", "");
  return d;
}

Dataset Dataset::from_weighted(const std::vector<WeightedSequence>& sequences, int64_t ctx) {
  std::vector<std::vector<int32_t>> ids;
  for (const WeightedSequence& s : sequences) {
    THIMBLE_CHECK(s.ids.size() == s.weights.size());
    ids.push_back(s.ids);
  }
  Dataset d = from_ids(std::move(ids), std::vector<int32_t>(sequences.size(), 0), ctx);
  for (const WeightedSequence& s : sequences) d.weights_.insert(d.weights_.end(), s.weights.begin(), s.weights.end());
  return d;
}

Dataset Dataset::from_generator(std::function<void(int64_t, WeightedSequence&)> make, int64_t ctx) {
  Dataset d;
  d.make_ = std::move(make);
  d.ctx_ = ctx;
  d.stats_.longest = ctx;
  return d;
}

Dataset Dataset::from_stream(std::vector<int32_t> ids, int64_t ctx) {
  const auto n = static_cast<int64_t>(ids.size());
  if (n < ctx + 1)
    throw Error(ErrorCode::input, fmt::format("the text has {} tokens: a window of --ctx {} takes {}", n, ctx, ctx + 1),
                "give a longer text, or lower --ctx");
  Dataset d;
  d.ids_ = std::move(ids);
  d.stream_ = true;
  d.ctx_ = ctx;
  d.stats_.rows = 1;
  d.stats_.tokens = n;
  d.stats_.learned_tokens = n - 1;
  d.stats_.longest = ctx + 1;
  return d;
}

int64_t Dataset::size() const {
  return stream_ ? (static_cast<int64_t>(ids_.size()) - 1) / ctx_ : static_cast<int64_t>(label_from_.size());
}

Dataset::Item Dataset::item(int64_t i) const {
  THIMBLE_CHECK(i >= 0 && i < size());
  if (stream_) return {ids_.data() + i * ctx_, ctx_ + 1, 1};
  const auto at = static_cast<size_t>(i);
  return {ids_.data() + begins_[at], begins_[at + 1] - begins_[at], label_from_[at], weights_.empty() ? nullptr : weights_.data() + begins_[at]};
}

Dataset::Item Dataset::draw(uint64_t seed, int64_t k) const {
  if (make_) {
    make_(k, made_);
    const auto n = static_cast<int64_t>(made_.ids.size());
    THIMBLE_CHECK(n > 0 && n <= ctx_ && made_.weights.size() == made_.ids.size());
    return {made_.ids.data(), n, 0, made_.weights.data()};
  }
  if (stream_) {
    Philox rng(seed, kOffsetStream + static_cast<uint64_t>(k));
    const auto offset =
        static_cast<int64_t>(rng.below(static_cast<uint64_t>(static_cast<int64_t>(ids_.size()) - ctx_)));
    return {ids_.data() + offset, ctx_ + 1, 1};
  }
  const int64_t epoch = k / size();
  if (epoch != epoch_ || seed != epoch_seed_) {
    permutation_.resize(label_from_.size());
    std::iota(permutation_.begin(), permutation_.end(), 0);
    Philox rng(seed, kShuffleStream + static_cast<uint64_t>(epoch));
    for (size_t i = permutation_.size() - 1; i > 0; --i) std::swap(permutation_[i], permutation_[rng.below(i + 1)]);
    epoch_ = epoch;
    epoch_seed_ = seed;
  }
  return item(permutation_[static_cast<size_t>(k % size())]);
}

void MicroBatch::clear() {
  ids.clear();
  labels.clear();
  cu_seqlens.clear();
  weights.clear();
  learned = 0;
  weight = 0;
}

void MicroBatch::append(const Dataset::Item& item, int64_t virtuals) {
  if (cu_seqlens.empty()) cu_seqlens.push_back(0);
  for (int64_t i = 0; i < virtuals; ++i) {
    ids.push_back(kVirtualToken);
    labels.push_back(-1);
    if (item.weights && i + 1 < virtuals) weights.push_back(0);  // the last row's follows from what it predicts
  }
  // Items with and without weights do not mix in one batch.
  THIMBLE_CHECK(cu_seqlens.size() == 1 || weights.empty() == (item.weights == nullptr));
  const auto learn = [&](int64_t token) {
    const bool wanted = token >= item.label_from && (!item.weights || item.weights[token] > 0);
    learned += wanted ? 1 : 0;
    const float w = item.weights ? item.weights[token] : 1.0f;
    weight += wanted ? double(w) : 0.0;
    if (item.weights) weights.push_back(wanted ? w : 0.0f);
    return wanted ? item.ids[token] : -1;
  };
  if (virtuals > 0) labels.back() = learn(0);
  for (int64_t t = 0; t + 1 < item.n; ++t) {
    ids.push_back(item.ids[t]);
    labels.push_back(learn(t + 1));
  }
  cu_seqlens.push_back(static_cast<int32_t>(ids.size()));
}

Batch MicroBatch::batch(Adapter* adapter) {
  Batch b;
  b.ids = ids.data();
  b.n = static_cast<int64_t>(ids.size());
  b.cu_seqlens = cu_seqlens.data();
  b.n_seqs = static_cast<int64_t>(cu_seqlens.size()) - 1;
  if (adapter) {
    segment = {0, b.n, adapter};
    b.segments = &segment;
    b.n_segments = 1;
  }
  return b;
}

}  // namespace thimble
