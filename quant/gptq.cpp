#include "quant/gptq.h"

#include <algorithm>
#include <numeric>

#include "tensor/error.h"
#include "tensor/gemm.h"
#include "tensor/parallel.h"

namespace thimble {
namespace {

constexpr int64_t kBlock = 128;       // columns whose errors are spread over the rest together
constexpr int64_t kRowsPerChunk = 8;

size_t at(int64_t i) { return static_cast<size_t>(i); }

// Sorts the columns of every group by their input: the order inside a group means nothing, and files keep groups only.
void sort_within_groups(QuantizedMatrix& q) {
  std::vector<int32_t> order(q.perm.size());
  std::iota(order.begin(), order.end(), 0);
  for (int64_t g = 0; g < q.groups; ++g)
    std::sort(order.begin() + g * q.group, order.begin() + std::min(q.cols, (g + 1) * q.group),
              [&](int32_t a, int32_t b) { return q.perm[size_t(a)] < q.perm[size_t(b)]; });
  const std::vector<uint8_t> codes = q.codes;
  const std::vector<int32_t> perm = q.perm;
  for (int64_t c = 0; c < q.cols; ++c) {
    q.perm[at(c)] = perm[size_t(order[at(c)])];
    for (int64_t r = 0; r < q.rows; ++r) q.codes[at(r * q.cols + c)] = codes[at(r * q.cols + order[at(c)])];
  }
  if (std::is_sorted(q.perm.begin(), q.perm.end())) q.perm.clear();
}

}  // namespace

QuantizedMatrix gptq(const float* w, int64_t rows, const InverseFactor& factor, const GptqOptions& options,
                     const KernelTable& kernels, int threads) {
  THIMBLE_CHECK(factor.ok && rows > 0);
  const int64_t n = factor.cols;
  check_finite(w, rows * n);
  const WeightSpec& spec = options.spec;
  QuantizedMatrix q;
  q.rows = rows;
  q.cols = n;
  q.bits = spec.bits;
  q.group = group_width(spec, n);
  q.groups = group_count(spec, n);
  q.codes.resize(at(rows * n));
  q.zeros.resize(at(rows * q.groups));
  q.scales_f16.resize(q.zeros.size());
  const auto input = [&](int64_t p) -> int64_t { return factor.perm.empty() ? p : factor.perm[at(p)]; };
  const bool in_place = options.static_groups || q.groups == 1;  // groups are of neighbouring inputs
  std::vector<Grid> grids(q.zeros.size());
  const auto set_grid = [&](int64_t r, int64_t g, const float* x, int64_t count) {
    const float shrink = options.clip ? choose_shrink(x, count, spec.bits, spec.symmetric) : 1.0f;
    const auto i = at(r * q.groups + g);
    grids[i] = choose_grid(x, count, spec.bits, spec.symmetric, shrink);
    q.scales_f16[i] = grids[i].scale_f16;
    q.zeros[i] = static_cast<uint8_t>(grids[i].zero);
  };

  const int64_t chunks = (rows + kRowsPerChunk - 1) / kRowsPerChunk;
  std::vector<float> work(at(rows * n));  // columns in the order of rounding
  parallel_for(threads, chunks, [&](int64_t chunk, int) {
    for (int64_t r = chunk * kRowsPerChunk; r < std::min(rows, (chunk + 1) * kRowsPerChunk); ++r) {
      for (int64_t p = 0; p < n; ++p) work[at(r * n + p)] = w[r * n + input(p)];
      if (in_place)
        for (int64_t g = 0; g < q.groups; ++g) set_grid(r, g, w + r * n + g * q.group, std::min(q.group, n - g * q.group));
    }
  });

  std::vector<float> errors(at(rows * kBlock)), scratch;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin), end = begin + count;
    parallel_for(threads, chunks, [&](int64_t chunk, int) {
      for (int64_t r = chunk * kRowsPerChunk; r < std::min(rows, (chunk + 1) * kRowsPerChunk); ++r) {
        float* row = &work[at(r * n)];
        for (int64_t p = begin; p < end; ++p) {
          // A group never starts inside a block and ends behind it (widths divide the block, or cover the row), so the
          // weights it is chosen from carry every error so far.
          if (!in_place && p % q.group == 0) set_grid(r, p / q.group, row + p, std::min(q.group, n - p));
          const int64_t g = in_place ? input(p) / q.group : p / q.group;
          const Grid& grid = grids[at(r * q.groups + g)];
          const float code = grid.code(row[p]);
          q.codes[at(r * n + (in_place ? input(p) : p))] = static_cast<uint8_t>(code);
          const float* u = &factor.upper[at(p * n)];
          const float error = (row[p] - grid.scale * (code - grid.zero)) / u[p];
          for (int64_t j = p; j < end; ++j) row[j] -= error * u[j];
          errors[at(r * kBlock + p - begin)] = -error;
        }
      }
    });
    factor.spread(kernels, threads, rows, errors.data(), kBlock, begin, end, work.data() + end, scratch);
  }
  if (!in_place && !factor.perm.empty()) {
    q.perm = factor.perm;
    sort_within_groups(q);
  }
  return q;
}

}  // namespace thimble
