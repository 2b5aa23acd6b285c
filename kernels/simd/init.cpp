// The entry point of a tier: calls the init of every kernel file that this tier compiles.
#include "kernels/simd/init.h"

namespace thimble::THIMBLE_ISA {

void init(KernelTable& t) {
#if defined(__AVX512BF16__)
  init_pairs(t);
  init_gemm_bf16(t);
  init_convert(t);
  init_attention_bf16(t);
  init_probe_bf16(t);
#elif defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  init_gemm_i8(t);
  init_scan_i8(t);
  init_probe_i8(t);
#else
  init_panel(t);
  init_gemm_f32(t);
  init_gemv(t);
  init_quantize(t);
  init_gemm_i8(t);
  init_pairs(t);
  init_gemm_bf16(t);
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
  init_scan_i8(t);
  init_attention(t);
  init_attention_cache(t);
  init_attention_bf16(t);
  init_attention_bwd(t);
  init_probe(t);
  init_probe_i8(t);
  init_probe_bf16(t);
#endif
}

}  // namespace thimble::THIMBLE_ISA
