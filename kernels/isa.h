// What this CPU and operating system can run, and the instruction-set tiers made of it.
#pragma once

#include <cstdint>

namespace thimble {

// Tiers form a tree: avx512_bf16 -> avx512_vnni -> avx512 -> avx2 -> ref and avx2_vnni -> avx2. A tier means itself
// and its ancestors.
enum class Tier : uint8_t { ref, avx2, avx2_vnni, avx512, avx512_vnni, avx512_bf16 };
constexpr int kTierCount = 6;

const char* tier_name(Tier tier);
// The tier called `name`; false if there is none.
bool tier_from_name(const char* name, Tier* tier);
// The parent in the tree; ref is its own parent.
Tier tier_parent(Tier tier);
// True if `ancestor` is `tier` or stands above it.
bool tier_includes(Tier tier, Tier ancestor);

struct CpuInfo {
  char vendor[16];
  char model[64];
  bool avx2, fma, f16c, avx_vnni, avx512f, avx512bw, avx512dq, avx512vl, avx512_vnni, avx512_bf16;
  bool os_avx, os_avx512;  // the operating system saves these registers (XGETBV)
  int64_t l1d_bytes, l2_bytes, l3_bytes;  // per core, per core, shared; 0 when unknown
};
const CpuInfo& cpu_info();

// Compiled in, and supported by CPU and operating system.
bool tier_supported(Tier tier);
// The supported tier that is used when nothing is asked for.
Tier best_tier();

}  // namespace thimble
