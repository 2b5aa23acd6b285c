// Row-major codes [rows][cols] to tiles and back (weight_format.h). Padding columns get the zero point of their group, so
// that they add nothing; padding rows get code 0 (their scale is 0). Offline work: there is no SIMD version.
#include "kernels/ref/init.h"
#include "kernels/ref/weights.h"

namespace thimble::ref {
namespace {

template <WeightFormat F>
void pack(const PackCodesArgs& a) noexcept {
  constexpr int64_t kCodes = step_columns(F);
  const int64_t tiles = (a.rows + kTileRows - 1) / kTileRows;
  const auto code = [&](int64_t r, int64_t c) -> uint32_t {
    if (r >= a.rows) return 0;
    if (c < a.cols) return a.codes[r * a.cols + c];
    return a.zeros != nullptr ? a.zeros[(r / 16 * a.groups + c / a.group) * 16 + r % 16] : static_cast<uint32_t>(a.zero);
  };
  for (int64_t tile = 0; tile < tiles; ++tile) {
    for (int64_t step = 0; step < a.steps; ++step) {
      for (int64_t lane = 0; lane < 16; ++lane) {
        for (int64_t b = 0; b < 4; ++b) {
          const int64_t r = tile * 16 + lane, c = step * kCodes + b;
          uint32_t byte = 0;
          for (int64_t i = 0; i < kCodes / 4; ++i) byte |= code(r, c + 4 * i) << (i * format_bits(F));
          a.out[(tile * a.steps + step) * 64 + lane * 4 + b] = static_cast<uint8_t>(byte);
        }
      }
    }
  }
}

template <WeightFormat F>
void unpack(const UnpackCodesArgs& a) noexcept {
  for (int64_t r = 0; r < a.w.rows; ++r)
    for (int64_t c = 0; c < a.w.cols; ++c) a.codes[r * a.w.cols + c] = static_cast<uint8_t>(weight_code<F>(a.w, r, c));
}

}  // namespace

void init_pack(KernelTable& t) {
  t.pack_q8 = pack<WeightFormat::q8>;
  t.pack_q4 = pack<WeightFormat::q4>;
  t.pack_q2 = pack<WeightFormat::q2>;
  t.unpack_q8 = unpack<WeightFormat::q8>;
  t.unpack_q4 = unpack<WeightFormat::q4>;
  t.unpack_q2 = unpack<WeightFormat::q2>;
}

}  // namespace thimble::ref
