#include "models/quantize.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#include "kernels/kernel_table.h"
#include "quant/rtn.h"
#include "tensor/error.h"

namespace thimble {

void release_weight_pages(const Weight& weight) {
  const void* data = weight.data;
  const size_t bytes = weight.stored_bytes();
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (end > begin) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

LoadFormat parse_load_format(const std::string& text) {
  if (text.empty() || text == "stored") return {};
  for (const int bits : {8, 4, 2})
    for (const char* group : {"", "-g128", "-g64", "-g32", "-row"})
      for (const GroupKind kind : {GroupKind::zero_points, GroupKind::symmetric, GroupKind::minimum}) {
        const char* const kinds[] = {"", "-sym", "-min"};
        if (text != fmt::format("q{}{}{}", bits, group, kinds[static_cast<int>(kind)])) continue;
        const std::string name = group;
        return {bits, name == "-row" ? 0 : name.empty() ? 128 : std::stoll(name.substr(2)), kind};
      }
  throw Error(ErrorCode::usage, "--load-as: unknown format \"" + text.substr(0, 80) + "\"",
              "valid: stored, q8, q4, q2; with a group: q4-g32, q4-g64, q4-g128, q4-row; and a kind: q4-g32-sym, q4-g32-min");
}

bool is_packable(const ModelConfig& config, Role role) {
  return role_is_layer(role) && role != Role::router_w && !role_shape(config, role).vector;
}

TileStorage round_weight(const Weight& w, const KernelTable& kernels, const LoadFormat& format, int threads,
                         MemoryBudget* budget) {
  std::vector<float> values(static_cast<size_t>(w.numel()));
  dequantize(kernels, w, values.data());
  const bool has_min = format.kind == GroupKind::minimum;
  const WeightSpec spec{format.bits, format.group, format.kind == GroupKind::symmetric};
  const QuantizedMatrix q = has_min ? quantize_rtn_min(values.data(), w.rows, w.cols, format.bits, format.group, threads)
                                    : quantize_rtn(values.data(), w.rows, w.cols, spec, nullptr, threads);
  TileSource source;
  source.rows = w.rows;
  source.cols = w.cols;
  source.group = q.groups == 1 ? 0 : format.group;
  source.codes = q.codes.data();
  source.scales = q.scales_f16.data();
  source.zeros = has_min ? nullptr : q.zeros.data();
  source.mins = has_min ? q.mins_f16.data() : nullptr;
  return pack_tiles(kernels, tile_format(format.bits), source, budget);
}

void quantize_model(Model& model, const KernelTable& kernels, const LoadFormat& format, MemoryBudget* budget,
                    int threads) {
  if (format.bits == 0) return;
  for_each_weight(model.weights, [&](Role role, int64_t place, Weight& w) {
    if (!is_packable(model.config, role) || is_tiled(w.format) || w.grad) return;
    TileStorage tiles = with_context(model.path + ": weight " + weight_name(role, place),
                                     [&] { return round_weight(w, kernels, format, threads, budget); });
    release_weight_pages(w);
    w = tiles.weight;
    model.store.adopt(std::move(tiles.buffer));
  });
  const char* const kinds[] = {"asym", "sym", "min"};
  model.quantization = fmt::format("rtn {}-bit {} {}, packed while loading", format.bits,
                                   format.group > 0 ? "g" + std::to_string(format.group) : "row",
                                   kinds[static_cast<int>(format.kind)]);
}

}  // namespace thimble
