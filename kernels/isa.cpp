// CPUID for what the processor has, XGETBV for what the operating system saves; the tiers follow from both. Builds
// without CPUID too, and then offers the reference tier only.
#include "kernels/isa.h"

#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define THIMBLE_HAS_CPUID 1
#endif

namespace thimble {
namespace {

constexpr const char* kTierNames[kTierCount] = {"ref", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16"};
constexpr Tier kTierParents[kTierCount] = {Tier::ref,  Tier::ref,    Tier::avx2,
                                           Tier::avx2, Tier::avx512, Tier::avx512_vnni};

#if defined(THIMBLE_HAS_CPUID)

struct Registers {
  unsigned eax, ebx, ecx, edx;
};

Registers cpuid(unsigned leaf, unsigned sub_leaf) {
  Registers r{};
  const auto last_leaf = static_cast<unsigned>(__get_cpuid_max(leaf & 0x80000000u, nullptr));
  if (leaf <= last_leaf) __cpuid_count(leaf, sub_leaf, r.eax, r.ebx, r.ecx, r.edx);
  return r;
}

bool bit(unsigned value, int index) { return (value >> index & 1u) != 0; }

// XCR0. Only after CPUID has said OSXSAVE. As an instruction, because the intrinsic needs -mxsave.
uint64_t xgetbv0() {
  unsigned lo = 0, hi = 0;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return static_cast<uint64_t>(hi) << 32 | lo;
}

// Intel's leaf 4 and AMD's leaf 0x8000001D have one layout: one sub-leaf per cache until the type is 0.
void read_caches(unsigned leaf, CpuInfo* info) {
  for (unsigned i = 0; i < 16; ++i) {
    const Registers r = cpuid(leaf, i);
    const unsigned type = r.eax & 31u;  // 1 data, 2 instructions, 3 unified
    if (type == 0) return;
    const unsigned level = r.eax >> 5 & 7u;
    const int64_t ways = (r.ebx >> 22) + 1, partitions = (r.ebx >> 12 & 1023u) + 1, line = (r.ebx & 4095u) + 1;
    const int64_t bytes = ways * partitions * line * (static_cast<int64_t>(r.ecx) + 1);
    if (level == 1 && type == 1) info->l1d_bytes = bytes;
    if (level == 2 && type != 2) info->l2_bytes = bytes;
    if (level == 3 && type != 2) info->l3_bytes = bytes;
  }
}

CpuInfo detect() {
  CpuInfo info{};
  const Registers vendor = cpuid(0, 0);
  std::memcpy(info.vendor, &vendor.ebx, 4);
  std::memcpy(info.vendor + 4, &vendor.edx, 4);
  std::memcpy(info.vendor + 8, &vendor.ecx, 4);
  if (cpuid(0x80000000u, 0).eax >= 0x80000004u) {
    for (unsigned i = 0; i < 3; ++i) {
      const Registers r = cpuid(0x80000002u + i, 0);
      std::memcpy(info.model + 16 * i, &r, 16);
    }
  }
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  info.fma = bit(one.ecx, 12);
  info.f16c = bit(one.ecx, 29);
  info.avx2 = bit(seven.ebx, 5);
  info.avx512f = bit(seven.ebx, 16);
  info.avx512dq = bit(seven.ebx, 17);
  info.avx512bw = bit(seven.ebx, 30);
  info.avx512vl = bit(seven.ebx, 31);
  info.avx512_vnni = bit(seven.ecx, 11);
  info.avx_vnni = bit(seven_one.eax, 4);
  info.avx512_bf16 = bit(seven_one.eax, 5);
  if (bit(one.ecx, 27) && bit(one.ecx, 28)) {  // OSXSAVE, AVX
    const uint64_t xcr0 = xgetbv0();
    info.os_avx = (xcr0 & 0x6u) == 0x6u;       // XMM, YMM
    info.os_avx512 = (xcr0 & 0xE6u) == 0xE6u;  // and opmask, both halves of ZMM
  }
  const bool amd = std::strcmp(info.vendor, "AuthenticAMD") == 0 || std::strcmp(info.vendor, "HygonGenuine") == 0;
  read_caches(amd ? 0x8000001Du : 4u, &info);
  return info;
}

#else

CpuInfo detect() {
  CpuInfo info{};
  std::memcpy(info.vendor, "unknown", 8);
  std::memcpy(info.model, "unknown", 8);
  return info;
}

#endif

}  // namespace

const char* tier_name(Tier tier) { return kTierNames[static_cast<int>(tier)]; }

bool tier_from_name(const char* name, Tier* tier) {
  for (int i = 0; i < kTierCount; ++i) {
    if (std::strcmp(name, kTierNames[i]) != 0) continue;
    *tier = static_cast<Tier>(i);
    return true;
  }
  return false;
}

Tier tier_parent(Tier tier) { return kTierParents[static_cast<int>(tier)]; }

bool tier_includes(Tier tier, Tier ancestor) {
  while (tier != ancestor && tier != Tier::ref) tier = tier_parent(tier);
  return tier == ancestor;
}

const CpuInfo& cpu_info() {
  static const CpuInfo info = detect();
  return info;
}

bool tier_supported(Tier tier) {
  if (tier == Tier::ref) return true;
#if defined(THIMBLE_SIMD_TIERS)
  const CpuInfo& c = cpu_info();
  if (!tier_supported(tier_parent(tier))) return false;
  switch (tier) {
    case Tier::ref:
      return true;
    case Tier::avx2:
      return c.os_avx && c.avx2 && c.fma && c.f16c;
    case Tier::avx2_vnni:
      return c.avx_vnni;
    case Tier::avx512:
      return c.os_avx512 && c.avx512f && c.avx512bw && c.avx512dq && c.avx512vl;
    case Tier::avx512_vnni:
      return c.avx512_vnni;
    case Tier::avx512_bf16:
      return c.avx512_bf16;
  }
#endif
  return false;
}

Tier best_tier() {
  constexpr Tier kBestFirst[] = {Tier::avx512_bf16, Tier::avx512_vnni, Tier::avx512, Tier::avx2_vnni, Tier::avx2};
  for (const Tier tier : kBestFirst) {
    if (tier_supported(tier)) return tier;
  }
  return Tier::ref;
}

}  // namespace thimble
