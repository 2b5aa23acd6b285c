#include "train/memory_plan.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "tensor/error.h"
#include "train/dataset.h"

namespace thimble {
namespace {

template <class Args>
void silence(void (*&slot)(const Args&) noexcept) {
  slot = [](const Args&) noexcept {};
}

// Large blocks are backed by huge pages where the system allows it, so a touched block counts in whole huge pages.
int64_t page_bytes() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string text;
  std::getline(file, text);
  return text.empty() || text.find("[never]") != std::string::npos ? 4096 : int64_t{2} << 20;
}

// Bytes of a run outside arenas and buffers, measured.
constexpr int64_t kHeap = int64_t{6} << 20;

int64_t round_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

// Address space without memory behind it: only what is written to is ever backed.
class Unbacked {
 public:
  explicit Unbacked(size_t bytes) : bytes_(bytes) {
    data_ = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) throw Error(ErrorCode::budget, "the system refused address space for the memory plan", "raise ulimit -v");
  }
  ~Unbacked() { ::munmap(data_, bytes_); }
  Unbacked(const Unbacked&) = delete;
  Unbacked& operator=(const Unbacked&) = delete;
  float* f32() const { return static_cast<float*>(data_); }

 private:
  void* data_;
  size_t bytes_;
};

}  // namespace

int64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

KernelTable rehearsal_table(const KernelTable& like) {
  KernelTable t = like;
#define SLOT(field, type, name, kind) silence(t.field);
#include "kernels/kernel_slots.def"
#undef SLOT
  return t;
}

MemoryPlan plan_memory(Model& model, Adapter* adapter, const KernelTable& kernels, int threads, Precision precision,
                       const TrainShape& shape, Recompute recompute) {
  MemoryPlan plan;
  const int64_t page = page_bytes();
  int64_t parameters = 0, moments = 0;
  // Buffers below 4 MB are not advised to use huge pages (see Buffer).
  const auto buffer = [&](int64_t n) { return round_up(n, n >= (int64_t{4} << 20) ? page : 4096); };
  plan.weights = buffer(model.stored_bytes());
  plan.base = std::max<int64_t>(0, resident_bytes() - model.store.bytes());

  // The rehearsal works on a copy of the views, so that gradients can point into unbacked space.
  Model rehearsal;
  rehearsal.config = model.config;
  rehearsal.family = model.family;
  rehearsal.path = model.path;
  rehearsal.weights = model.weights;
  std::vector<Weight*> trained;
  std::vector<Weight> before;
  if (shape.full) {
    for_each_weight(rehearsal.weights, [&](Role, int64_t, Weight& w) { trained.push_back(&w); });
  } else if (adapter) {
    adapter->for_each_parameter([&](const std::string&, Weight& w) { trained.push_back(&w); });
  }
  for (const Weight* w : trained) {
    parameters += w->numel();
    moments += moment_bytes(shape.moments, w->numel());
    before.push_back(*w);
  }
  const Unbacked grads(size_t(parameters) * sizeof(float) + 4096);
  float* at = grads.f32();
  for (Weight* w : trained) {
    w->grad = at;
    w->grad_written = false;
    at += w->numel();
  }
  const int64_t bytes = parameters * int64_t{sizeof(float)};
  if (!shape.full && adapter) plan.adapters = round_up(bytes, int64_t{1} << 20);
  plan.grads = shape.full ? buffer(bytes) : round_up(bytes, int64_t{1} << 20);
  plan.optimizer = buffer(moments) + buffer(bytes * shape.snapshots);

  {
    MemoryBudget unlimited;
    Context ctx(rehearsal_table(kernels), threads, &unlimited);
    ctx.precision = precision;
    ctx.training = true;
    Transformer transformer(rehearsal, shape.length + (adapter ? adapter->n_virtual() : 0));
    MicroBatch rows;
    const std::vector<int32_t> ids(static_cast<size_t>(shape.length) + 1, 0);
    const int64_t virtuals = adapter && adapter->kind() == AdapterKind::prompt ? adapter->n_virtual() : 0;
    // Long sequences first: what matters is the number of rows and the longest of them.
    int64_t left = shape.rows > 0 ? shape.rows : shape.sequences * shape.length;
    for (int64_t s = shape.sequences; s > 0 && left > 0; --s) {
      const int64_t least = (s - 1) * (virtuals + 1);  // the others need a row each
      const int64_t n = std::max(std::min(shape.length, left - least), virtuals + 1);
      rows.append({ids.data(), n + 1 - virtuals, 1}, virtuals);
      left -= n;
    }
    Tape tape;
    {
      const ArenaScope scope(ctx.saved);
      ctx.tape = &tape;
      const Batch batch = rows.batch(adapter);
      const Var hidden = transformer.forward(ctx, batch, recompute);
      transformer.loss(ctx, hidden, rows.labels.data(), 1.0);
      backward(ctx);
      ctx.tape = nullptr;
    }
    // Evaluation between steps: no tape, but perhaps longer rows.
    rows.clear();
    for (int64_t s = 0; s < shape.sequences; ++s) rows.append({ids.data(), shape.length + 1 - virtuals, 1}, virtuals);
    {
      const ArenaScope scope(ctx.saved);
      const Batch batch = rows.batch(adapter);
      const Var hidden = transformer.forward(ctx, batch);
      transformer.loss(ctx, hidden, rows.labels.data(), 1.0);
    }
    // Tape, rows, tables, arena records,
    // the writer's buffer and the threads' stacks lie on the heap.
    plan.activations = round_up(int64_t(ctx.saved.peak()), page) + round_up(int64_t(ctx.grads.peak()), page) +
                       round_up(int64_t(ctx.scratch.peak()), page) + round_up(int64_t(ctx.replayed.peak()), page) + kHeap +
                       shape.length * (model.config.rope.dims + model.config.rope_local.dims) * int64_t{sizeof(float)};
  }
  for (size_t i = 0; i < trained.size(); ++i) *trained[i] = before[i];
  if (adapter) adapter->forget_norms();  // the rehearsal computed none
  return plan;
}

double step_flops(const ModelConfig& c, const TrainShape& shape, Recompute recompute, int64_t tokens) {
  const double layer = double(c.hidden) * double(2 * c.q_cols() + 2 * c.kv_cols() + (c.gated_mlp ? 3 : 2) * c.intermediate * std::max<int64_t>(1, c.n_experts_used));
  const double products = layer * double(c.n_layers) + double(c.vocab_size) * double(c.embed_dim);
  const double attention = double(c.n_layers) * double(c.q_cols()) * double(shape.length);  // causal: half of 2 T C per product
  const double forward = 2 * products + 2 * attention;
  const double backward = (shape.full ? 4 : 2) * products + 5 * attention;
  return double(tokens) * (forward + backward + (recompute == Recompute::block ? forward : 0));
}

}  // namespace thimble
