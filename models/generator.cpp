#include "models/generator.h"

#include <algorithm>
#include <cstring>

namespace thimble {

Generator::Generator(Transformer& transformer, Context& ctx, int64_t capacity)
    : transformer_(transformer), ctx_(ctx), cache_(transformer.config(), 1, capacity, ctx.budget),
      logits_(static_cast<size_t>(transformer.config().vocab_size)) {}

const float* Generator::feed(const int32_t* ids, int64_t n) {
  THIMBLE_CHECK(n > 0);
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const ArenaScope scope(ctx_.saved);
    const auto count = static_cast<int32_t>(std::min(kChunk, n - begin));
    const int32_t cu_seqlens[2] = {0, count};
    const Batch batch{ids + begin, count, cu_seqlens, 1, &cache_};
    const Var hidden = transformer_.forward(ctx_, batch);
    if (begin + count < n) continue;
    Var last;
    last.t = Tensor::matrix(hidden.t.f32() + (count - 1) * hidden.t.cols(), 1, hidden.t.cols());
    const Var logits = transformer_.logits(ctx_, last);
    std::memcpy(logits_.data(), logits.t.f32(), logits_.size() * sizeof(float));
  }
  return logits_.data();
}

}  // namespace thimble
