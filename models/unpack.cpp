#include "models/unpack.h"

#include <algorithm>
#include <cstring>

#include "kernels/kernel_table.h"
#include "models/io/half.h"
#include "quant/rtn.h"

namespace thimble {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

bool is_query_or_key(Role role) { return role == Role::q_w || role == Role::k_w; }

float f32_of(const void* values, bool f32, int64_t i) {
  return f32 ? static_cast<const float*>(values)[i] : f16_value(static_cast<const uint16_t*>(values)[i]);
}

}  // namespace

int64_t rotary_file_row(const ModelConfig& config, int64_t row) {
  if (!moves_rotary_rows(config)) return row;
  const int64_t d = config.rope.dims, in_head = row % config.head_dim;
  if (in_head >= d) return row;
  return row - in_head + (in_head % 2 == 0 ? in_head / 2 : d / 2 + in_head / 2);
}

void order_rotary_rows(const ModelConfig& config, ExportedTensor* matrix) {
  if (!moves_rotary_rows(config)) return;
  const std::vector<float> from = matrix->data;
  const int64_t cols = matrix->shape[1];
  for (int64_t r = 0; r < matrix->shape[0]; ++r)
    std::copy_n(&from[at(r * cols)], cols, &matrix->data[at(rotary_file_row(config, r) * cols)]);
}

int64_t file_row(const ModelConfig& config, const TensorRule& rule, size_t part, int64_t r) {
  const int64_t row = is_query_or_key(rule.roles[part]) ? rotary_file_row(config, r) : r;
  return source_row(config, rule.layout, static_cast<int>(part), row);
}

bool is_one_grid(const Model& model, const TensorRule& rule, int64_t place) {
  const Weight& first = model.weights.at(rule.roles[0], place);
  return std::all_of(rule.roles.begin(), rule.roles.end(), [&](Role role) {
    const Weight& w = model.weights.at(role, place);
    return is_tiled(w.format) && (w.mins != nullptr) == (first.mins != nullptr) && w.cols == first.cols &&
           w.group == first.group && (w.perm != nullptr) == (first.perm != nullptr) &&
           (!w.perm || std::equal(w.perm, w.perm + w.cols, first.perm));
  });
}

CodedLinear unpack_linear(const Model& model, const TensorRule& rule, int64_t place) {
  THIMBLE_CHECK(is_one_grid(model, rule, place));
  const Weight& first = model.weights.at(rule.roles[0], place);
  CodedLinear q;
  q.in = first.cols;
  for (Role role : rule.roles) {
    const Weight& w = model.weights.at(role, place);
    q.out += w.rows;
    q.bits = std::max(q.bits, static_cast<int>(format_bits(w.format)));
  }
  q.group_size = first.group > 0 && first.group < q.in ? first.group : q.in;
  q.groups = (q.in + q.group_size - 1) / q.group_size;
  if (first.perm) q.perm.assign(first.perm, first.perm + q.in);
  q.codes.resize(at(q.out * q.in));
  const size_t parameters = at(q.out * q.groups);
  (first.mins ? q.mins.resize(parameters) : q.zeros.resize(parameters));
  // In f16, which holds the scales of most formats; beside them in f32, in case that it does not.
  q.scales_f16.resize(parameters);
  q.scales_f32.resize(parameters);
  bool exact = !first.mins;
  for (size_t part = 0; part < rule.roles.size(); ++part) {
    const Weight& w = model.weights.at(rule.roles[part], place);
    const TileGeometry g = w.geometry();
    const auto* codes = static_cast<const uint8_t*>(w.data);
    for (int64_t r = 0; r < w.rows; ++r) {
      const int64_t to = file_row(model.config, rule, part, r), tile = r / kTileRows, lane = r % kTileRows;
      for (int64_t c = 0; c < q.in; ++c) {
        const CodePlace code = code_place(w.format, lane, c);
        const int mask = (1 << format_bits(w.format)) - 1;
        q.codes[at(to * q.in + c)] = static_cast<uint8_t>(codes[tile * g.steps * 64 + code.byte] >> code.shift & mask);
      }
      for (int64_t k = 0; k < q.groups; ++k) {
        const int64_t from = (tile * g.groups + k) * kTileRows + lane;
        const size_t i = at(to * q.groups + k);
        if (w.mins)
          q.mins[i] = f32_of(w.mins, w.scale_f32, from);
        else
          q.zeros[i] = tile_zero(w, g, r, k);
        q.scales_f32[i] = f32_of(w.scales, w.scale_f32, from);
        q.scales_f16[i] = w.scale_f32 ? f16_bits(q.scales_f32[i]) : static_cast<const uint16_t*>(w.scales)[from];
        exact = exact && f16_value(q.scales_f16[i]) == q.scales_f32[i];
      }
    }
  }
  (exact ? q.scales_f32.clear() : q.scales_f16.clear());
  return q;
}

SafetensorsDtype dtype_of(WeightFormat format) {
  return format == WeightFormat::f16    ? SafetensorsDtype::f16
         : format == WeightFormat::bf16 ? SafetensorsDtype::bf16
                                        : SafetensorsDtype::f32;
}

SafetensorsDtype stored_dtype(const Model& model, const TensorRule& rule, int64_t place) {
  return dtype_of(model.weights.at(rule.roles[0], place).format);
}

void write_floats(const KernelTable& kernels, const float* values, int64_t n, SafetensorsDtype dtype, void* out) {
  if (dtype == SafetensorsDtype::f16) {
    kernels.f32_to_f16({n, values, out});
  } else if (dtype == SafetensorsDtype::bf16) {
    // The conversion kernel would flush subnormal ones.
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t half = io_detail::f32_to_bf16(values[i]);
      std::memcpy(static_cast<char*>(out) + 2 * i, &half, 2);
    }
  } else {
    std::memcpy(out, values, at(n) * sizeof(float));
  }
}

std::string tensor_bytes(const Model& model, const KernelTable& kernels, const TensorRule& rule, int64_t place,
                         int64_t block, SafetensorsDtype dtype) {
  ExportedTensor t = export_tensor(model, kernels, rule_name(rule, place, block));
  if (is_query_or_key(rule.roles[0]) && t.shape.size() == 2) order_rotary_rows(model.config, &t);
  std::string bytes(t.data.size() * size_t(safetensors_dtype_bits(dtype)) / 8, '\0');
  write_floats(kernels, t.data.data(), static_cast<int64_t>(t.data.size()), dtype, bytes.data());
  return bytes;
}

}  // namespace thimble
