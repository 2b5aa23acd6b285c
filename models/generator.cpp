#include "models/generator.h"

#include <algorithm>
#include <cstring>

namespace thimble {

Generator::Generator(Transformer& transformer, Context& ctx, int64_t capacity, Adapter* adapter, KvType kv)
    : transformer_(transformer),
      ctx_(ctx),
      adapter_(adapter),
      virtuals_(adapter && adapter->kind() == AdapterKind::prompt ? adapter->n_virtual() : 0),
      cache_(transformer.config(), 1, capacity + virtuals_, ctx.budget, kv),
      logits_(static_cast<size_t>(transformer.config().vocab_size)) {}

void Generator::run(const int32_t* ids, int64_t n, bool want_logits) {
  const ArenaScope scope(ctx_.saved);
  const int32_t cu_seqlens[2] = {0, static_cast<int32_t>(n)};
  const AdapterSegment segment{0, n, adapter_};
  Batch batch{ids, n, cu_seqlens, 1, &cache_};
  if (adapter_) {
    batch.segments = &segment;
    batch.n_segments = 1;
  }
  const Var hidden = transformer_.forward(ctx_, batch);
  if (!want_logits) return;
  Var last;
  last.t = Tensor::matrix(hidden.t.f32() + (n - 1) * hidden.t.cols(), 1, hidden.t.cols());
  const Var logits = transformer_.logits(ctx_, last);
  std::memcpy(logits_.data(), logits.t.f32(), logits_.size() * sizeof(float));
}

const float* Generator::feed(const int32_t* ids, int64_t n) {
  THIMBLE_CHECK(n > 0);
  if (virtuals_ > 0 && cache_.length(0) == 0) {
    const std::vector<int32_t> virtual_ids(static_cast<size_t>(virtuals_), kVirtualToken);
    run(virtual_ids.data(), virtuals_, false);
  }
  for (int64_t begin = 0; begin < n; begin += kChunk)
    run(ids + begin, std::min(kChunk, n - begin), begin + kChunk >= n);
  return logits_.data();
}

}  // namespace thimble
