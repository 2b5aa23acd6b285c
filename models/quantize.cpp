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
  LoadFormat f;
  const auto fail = [&]() {
    throw Error(ErrorCode::usage, "--load-as: unknown format \"" + text + "\"", "valid: stored, q8, q4, and with a group: q4-g32, q4-g64, q4-g128, q4-row");
  };
  const std::string head = text.substr(0, 2);
  f.bits = head == "q8" ? 8 : head == "q4" ? 4 : 0;
  if (f.bits == 0) fail();
  const std::string tail = text.substr(2);
  if (tail.empty() || tail == "-g128") f.group = 128;
  else if (tail == "-g64") f.group = 64;
  else if (tail == "-g32") f.group = 32;
  else if (tail == "-row") f.group = 0;
  else fail();
  return f;
}

void quantize_model(Model& model, const KernelTable& kernels, const LoadFormat& format, MemoryBudget* budget) {
  if (format.bits == 0) return;
  std::vector<float> values;
  for_each_weight(model.weights, [&](Role role, int64_t, Weight& w) {
    if (!role_is_layer(role) || role_shape(model.config, role).vector || is_tiled(w.format) || w.grad) return;
    values.resize(static_cast<size_t>(w.numel()));
    dequantize(kernels, w, values.data());
    const QuantizedMatrix q = quantize_rtn(values.data(), w.rows, w.cols, format.bits, format.group, false);
    TileStorage tiles = pack_tiles(kernels, format.bits == 8 ? WeightFormat::q8 : WeightFormat::q4, w.rows, w.cols,
                                   q.groups == 1 ? 0 : format.group, q.codes.data(), q.zeros.data(), q.scales_f16.data(), nullptr, budget);
    release_weight_pages(w);
    w = tiles.weight;
    model.store.adopt(std::move(tiles.buffer));
  });
  model.quantization = fmt::format("rtn {}-bit {} asym, packed while loading", format.bits,
                                   format.group > 0 ? "g" + std::to_string(format.group) : "row");
}

}  // namespace thimble
