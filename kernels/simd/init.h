// One init function per kernel file and tier: it overwrites the slots that the tier improves. Which files a tier
// compiles stands in kernels/CMakeLists.txt.
#pragma once

#include "kernels/kernel_table.h"

namespace thimble::THIMBLE_ISA {

void init(KernelTable& t);
void init_panel(KernelTable& t);
void init_gemm_f32(KernelTable& t);  // also the gemm block sizes
void init_gemv(KernelTable& t);
void init_quantize(KernelTable& t);
void init_gemm_i8(KernelTable& t);
void init_pairs(KernelTable& t);
void init_gemm_bf16(KernelTable& t);
void init_embed(KernelTable& t);
void init_activation(KernelTable& t);
void init_elementwise(KernelTable& t);
void init_cap(KernelTable& t);
void init_convert(KernelTable& t);
void init_norm(KernelTable& t);
void init_softmax(KernelTable& t);
void init_rope(KernelTable& t);
void init_adamw(KernelTable& t);
void init_adamw_q8(KernelTable& t);
void init_scan(KernelTable& t);
void init_scan_i8(KernelTable& t);
void init_attention(KernelTable& t);
void init_attention_cache(KernelTable& t);
void init_attention_bf16(KernelTable& t);
void init_attention_bwd(KernelTable& t);
void init_probe(KernelTable& t);
void init_probe_i8(KernelTable& t);
void init_probe_bf16(KernelTable& t);

}  // namespace thimble::THIMBLE_ISA
