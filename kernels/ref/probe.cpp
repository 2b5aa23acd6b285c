// Probes of the machine (kernel_args.h: ProbeArgs), as plain loops: what code without vector instructions reaches. They
// are also the definition that the other tiers are compared with.
#include <cstring>

#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

void probe_fma_f32(const ProbeArgs& p) noexcept {
  const float* a = static_cast<const float*>(p.src);
  const float* b = a + 16;
  float* out = static_cast<float*>(p.dst);
  std::memcpy(out, b + 16, kProbeChains * sizeof(float));
  for (int64_t i = 0; i < p.n; ++i) {
    for (int64_t j = 0; j < kProbeChains; ++j) out[j] += a[j % 16] * b[j % 16];
  }
}

void probe_int8(const ProbeArgs& p) noexcept {
  const uint8_t* a = static_cast<const uint8_t*>(p.src);
  const int8_t* b = static_cast<const int8_t*>(p.src) + 64;
  uint32_t sums[kProbeChains] = {};
  for (int64_t i = 0; i < p.n; ++i) {
    for (int64_t j = 0; j < kProbeChains; ++j) {
      int32_t dot = 0;
      for (int64_t k = j % 16 * 4; k < j % 16 * 4 + 4; ++k) dot += int32_t{a[k]} * int32_t{b[k]};
      sums[j] += static_cast<uint32_t>(dot);
    }
  }
  std::memcpy(p.dst, sums, sizeof sums);
}

float from_bf16(uint16_t x) {
  const uint32_t u = uint32_t{x} << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

void probe_bf16(const ProbeArgs& p) noexcept {
  const uint16_t* a = static_cast<const uint16_t*>(p.src);
  const uint16_t* b = a + 32;
  float* out = static_cast<float*>(p.dst);
  for (int64_t j = 0; j < kProbeChains; ++j) out[j] = 0;
  for (int64_t i = 0; i < p.n; ++i) {
    for (int64_t j = 0; j < kProbeChains; ++j) {
      const int64_t k = j % 16 * 2;
      out[j] += from_bf16(a[k]) * from_bf16(b[k]) + from_bf16(a[k + 1]) * from_bf16(b[k + 1]);
    }
  }
}

// Sixteen sums, so that the additions do not wait for one another.
void probe_read(const ProbeArgs& p) noexcept {
  const float* x = static_cast<const float*>(p.src);
  float sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= p.n; i += 16) {
    for (int64_t j = 0; j < 16; ++j) sums[j] += x[i + j];
  }
  float total = 0;
  for (; i < p.n; ++i) total += x[i];
  for (const float s : sums) total += s;
  *static_cast<float*>(p.dst) = total;
}

void probe_copy(const ProbeArgs& p) noexcept {
  const float* x = static_cast<const float*>(p.src);
  float* y = static_cast<float*>(p.dst);
  for (int64_t i = 0; i < p.n; ++i) y[i] = x[i];
}

}  // namespace

void init_probe(KernelTable& t) {
  t.probe_fma_f32 = probe_fma_f32;
  t.probe_int8 = probe_int8;
  t.probe_bf16 = probe_bf16;
  t.probe_read = probe_read;
  t.probe_copy = probe_copy;
}

}  // namespace thimble::ref
