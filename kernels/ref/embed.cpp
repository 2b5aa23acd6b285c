// out[i, :] = W(ids[i], :) as f32, from any weight format. Tiles are gathered, so that a tied table needs one copy.
#include "kernels/ref/init.h"
#include "kernels/ref/weights.h"

namespace thimble::ref {
namespace {

template <WeightFormat F>
void embed(const EmbedArgs& a) noexcept {
  for (int64_t i = 0; i < a.n; ++i)
    for (int64_t c = 0; c < a.w.cols; ++c) a.out[i * a.ldo + c] = weight<F>(a.w, a.ids[i], c);
}

}  // namespace

void init_embed(KernelTable& t) {
  t.embed_f32 = embed<WeightFormat::f32>;
  t.embed_f16 = embed<WeightFormat::f16>;
  t.embed_bf16 = embed<WeightFormat::bf16>;
  t.embed_q8 = embed<WeightFormat::q8>;
  t.embed_q4 = embed<WeightFormat::q4>;
  t.embed_q2 = embed<WeightFormat::q2>;
}

}  // namespace thimble::ref
