// Training data as token sequences. Two shapes: examples (rows of JSONL, each a sequence of its own; only the answer part
// is learned where a row has one), and a stream (plain text, cut into windows at random offsets). Which items make up
// optimizer step n is a pure function of (seed, n), so the data cursor of a resumed run is the step number.
// Sequences are packed into a batch without padding, and attention never crosses from one into another.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "models/tokenizer/tokenizer.h"
#include "models/transformer.h"

namespace thimble {

// What to do with a row longer than the context: refuse it, cut its end off, or leave it out.
enum class Overlong : uint8_t { error, truncate, skip };

struct DatasetStats {
  int64_t rows = 0, tokens = 0, learned_tokens = 0, skipped = 0, truncated = 0, longest = 0;
};

// A token sequence whose losses count differently: weights[t] is that of predicting ids[t] (weights[0] is unused).
struct WeightedSequence {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

class Dataset {
 public:
  // Rows {"prompt", "completion"} (loss on the completion and the end-of-text token) or {"text"} (loss on everything).
  // Each sequence begins with BOS where the tokenizer adds one, and ends with EOS where it has one. ctx: tokens of a
  // sequence at most. Errors (input) name FILE:LINE and field: malformed rows, empty completions, overlong rows.
  static Dataset from_jsonl(const std::string& path, const Tokenizer& tokenizer, int64_t ctx, Overlong overlong);
  // A plain text file as one stream; windows of ctx + 1 tokens. Errors (input) when it is shorter than one window.
  static Dataset from_text(const std::string& path, const Tokenizer& tokenizer, int64_t ctx);
  // Ready token sequences: labels begin at label_from[i] (a row learns tokens at and after it).
  static Dataset from_ids(std::vector<std::vector<int32_t>> sequences, std::vector<int32_t> label_from, int64_t ctx);
  static Dataset from_stream(std::vector<int32_t> ids, int64_t ctx);

  // Sequences with weights.
  static Dataset from_weighted(const std::vector<WeightedSequence>& sequences, int64_t ctx);
  // Sequences without end, made when they are drawn: number k of any seed is make(k), at most ctx tokens with a positive
  // weight. Has no items, so it can be trained on but not walked over. A drawn item lives until the next draw.
  static Dataset from_generator(std::function<void(int64_t k, WeightedSequence& out)> make, int64_t ctx);

  bool is_stream() const { return stream_; }
  bool is_generated() const { return static_cast<bool>(make_); }
  // Examples; of a stream the number of disjoint windows (what evaluation walks over).
  int64_t size() const;
  int64_t ctx() const { return ctx_; }
  const DatasetStats& stats() const { return stats_; }

  // The sequence of item i: ids [n], and labels [n], the token that each row should predict or -1.
  struct Item {
    const int32_t* ids;
    int64_t n;
    int64_t label_from;  // row t is learned when t + 1 >= label_from
    const float* weights = nullptr;  // [n]; null: every learned token counts 1
  };
  // Examples: the example. Streams: window i of the disjoint ones (n = ctx + 1; the last id is only a label).
  Item item(int64_t i) const;
  // Draw number k of a training run: examples by a permutation per epoch, windows of a stream at random offsets.
  Item draw(uint64_t seed, int64_t k) const;

 private:
  std::vector<int32_t> ids_;
  std::vector<int64_t> begins_;     // [size + 1] into ids_
  std::vector<int32_t> label_from_;
  std::vector<float> weights_;      // as ids_; empty: none
  std::function<void(int64_t, WeightedSequence&)> make_;
  mutable WeightedSequence made_;
  bool stream_ = false;
  int64_t ctx_ = 0;
  DatasetStats stats_;
  mutable std::vector<int32_t> permutation_;  // of the epoch last asked for
  mutable int64_t epoch_ = -1;
  mutable uint64_t epoch_seed_ = 0;
};

// Rows of one forward pass. Buffers are reused: no allocation once they have grown.
struct MicroBatch {
  std::vector<int32_t> ids, labels, cu_seqlens;
  std::vector<float> weights;  // of the rows' losses; empty: every learned row counts 1
  int64_t learned = 0;         // labels that are not -1
  double weight = 0;           // sum over them: `learned` without weights
  AdapterSegment segment;

  void clear();
  // virtuals: rows of a prompt adapter in front; the last of them predicts the first token when that is learned.
  void append(const Dataset::Item& item, int64_t virtuals);
  Batch batch(Adapter* adapter);
};

}  // namespace thimble
