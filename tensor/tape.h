// The tape: an array of plain nodes, no closures, no virtual calls, no heap once warm. An op pushes a node only when a
// tape is present and an input or a parameter needs a gradient. The first write to a gradient overwrites and later ones
// add: per optimizer step for parameters, per backward for activations.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"
#include "tensor/weight.h"

namespace thimble {

struct Context;

enum class Op : int {
#define OP(name, has_backward) name,
#include "tensor/op_rows.def"
#undef OP
  count
};
constexpr int kOpCount = static_cast<int>(Op::count);
const char* op_name(Op op);
bool op_has_backward(Op op);

// A value of the forward pass. id >= 0: its gradient is wanted and lives on the tape.
struct Var {
  Tensor t;
  int32_t id = -1;
};

struct AttentionSpec;
struct BlockCall;

struct Node {
  Op op = Op::count;
  int32_t in[3] = {-1, -1, -1};
  int32_t out = -1;
  Weight* w = nullptr;
  Weight* b = nullptr;
  int64_t rows = 0;
  int64_t dims[5] = {};
  float attr[2] = {};
  const float* saved[6] = {};        // data that backward reads
  uint64_t rng[2] = {};              // seed and stream of a dropout mask
  const int32_t* ids = nullptr;      // token ids or positions
  const AttentionSpec* attention = nullptr;
  const BlockCall* block = nullptr;
  Weight* const* group = nullptr;    // several weights of one op
  float* output = nullptr;  // of an op that backward runs again (Recompute::cheap); null: kept
  const uint16_t* packed = nullptr;  // what pack() kept of the output, and where backward widens it to
  float* widened = nullptr;
};

class Tape {
 public:
  struct Value {
    Tensor t;
    float* grad = nullptr;
    bool written = false;  // grad holds something
    bool shared = false;   // grad is another value's buffer: copy before adding
  };

  Tape() {
    nodes_.reserve(1 << 12);
    values_.reserve(1 << 13);
    segments.reserve(16);
  }

  int32_t add_value(const Tensor& t) {
    values_.push_back({t, nullptr, false, false});
    return static_cast<int32_t>(values_.size()) - 1;
  }
  Node& push(Op op) {
    nodes_.emplace_back();
    nodes_.back().op = op;
    return nodes_.back();
  }
  void truncate(size_t nodes, size_t values) {
    nodes_.resize(nodes);
    values_.resize(values);
  }
  void clear() { truncate(0, 0); }
  size_t cursor = 0;  // index of the node that the running backward is at
  size_t node_count() const { return nodes_.size(); }
  size_t value_count() const { return values_.size(); }
  const Node& node(size_t i) const { return nodes_[i]; }
  // The node whose output is `value`, a short way back.
  Node& producer(int32_t value) {
    size_t i = nodes_.size() - 1;
    while (nodes_[i].out != value) --i;
    return nodes_[i];
  }
  Value& value(int32_t id) { return values_[static_cast<size_t>(id)]; }

  // State of a running backward: the open blocks, and two buffers of the residual stream's gradient.
  struct Segment {
    Arena::Mark mark, replayed;
    int32_t out;
  };
  struct Turns {
    int64_t numel = 0;
    float* buffer[2] = {};
    int32_t owner[2] = {-1, -1};  // the value whose gradient a buffer holds; -1: free
    int depth = 0;                // blocks whose backward is running
    bool holds(const float* p) const { return p && (p == buffer[0] || p == buffer[1]); }
    // The producer of this value has run backward.
    void release(int32_t value) {
      for (int32_t& o : owner)
        if (o == value) o = -1;
    }
  };
  std::vector<Segment> segments;
  Turns turns;

 private:
  std::vector<Node> nodes_;
  std::vector<Value> values_;
};

// The gradient of value `id`, null when nothing was written.
const float* grad_of(Context& ctx, int32_t id);
// Where a gradient of value `id` goes, or null when none is wanted (id < 0); *accumulate: add to what is there.
float* grad_target(Context& ctx, int32_t id, bool* accumulate);
// Makes `id` share the gradient `grad` (read-only until somebody adds); adds when a gradient is there already.
void grad_share(Context& ctx, int32_t id, const float* grad);
// True when this parameter gradient must be added to what is there.
inline bool grad_begin(Weight* w) {
  const bool accumulate = w->grad_written;
  w->grad_written = true;
  return accumulate;
}

// Runs backward over the nodes [first, node_count) from last to first. Gradients of the outputs must be in place.
void run_backward(Context& ctx, size_t first);
// The same from the start, for a tape whose last node is a loss; resets the gradient arena and clears the tape.
void backward(Context& ctx);

}  // namespace thimble
