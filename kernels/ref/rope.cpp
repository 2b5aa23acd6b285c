// Rotary position embedding (Su et al. 2021): in each head the pair (a, b) turns by the angle of (position, j) into
// (a c - b s, b c + a s), j < rot_dim / 2; the rest of the head is copied. x [rows][heads * head_dim], y may be x.
#include "kernels/ref/init.h"

namespace thimble::ref {
namespace {

void rope(const RopeArgs& a) noexcept {
  const int64_t half = a.rot_dim / 2;
  for (int64_t r = 0; r < a.rows; ++r) {
    const float* cos_row = a.cos_table + a.positions[r] * half;
    const float* sin_row = a.sin_table + a.positions[r] * half;
    for (int64_t h = 0; h < a.heads; ++h) {
      const float* x = a.x + r * a.ldx + h * a.head_dim;
      float* y = a.y + r * a.ldy + h * a.head_dim;
      for (int64_t j = 0; j < half; ++j) {
        const int64_t first = a.interleaved ? 2 * j : j, second = a.interleaved ? 2 * j + 1 : j + half;
        const float c = cos_row[j], s = a.inverse ? -sin_row[j] : sin_row[j];
        const float u = x[first], v = x[second];
        y[first] = u * c - v * s;
        y[second] = v * c + u * s;
      }
      for (int64_t d = 2 * half; d < a.head_dim; ++d) y[d] = x[d];
    }
  }
}

}  // namespace

void init_rope(KernelTable& t) { t.rope = rope; }

}  // namespace thimble::ref
