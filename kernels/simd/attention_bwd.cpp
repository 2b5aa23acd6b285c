// Backward of attention with f32 products (attention_backward.h).
#include "kernels/simd/attention_backward.h"
#include "kernels/simd/init.h"

namespace thimble::THIMBLE_ISA {

void init_attention_bwd(KernelTable& t) { t.attention_bwd = attention_backward<float>; }

}  // namespace thimble::THIMBLE_ISA
