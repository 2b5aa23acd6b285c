// Fills every slot with the reference version.
#include "kernels/ref/init.h"

namespace thimble::ref {

void init(KernelTable& t) {
  init_panel(t);
  init_gemm_f32(t);
  init_gemv(t);
  init_quantize(t);
  init_gemm_i8(t);
  init_pairs(t);
  init_gemm_bf16(t);
  init_pack(t);
  init_embed(t);
  init_activation(t);
  init_elementwise(t);
  init_cap(t);
  init_convert(t);
  init_norm(t);
  init_softmax(t);
  init_rope(t);
  init_adamw(t);
  init_adamw_q8(t);
  init_scan(t);
  init_attention(t);
  init_attention_cache(t);
  init_attention_bwd(t);
  init_probe(t);
}

}  // namespace thimble::ref
