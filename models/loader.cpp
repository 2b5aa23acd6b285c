#include "models/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "kernels/kernel_table.h"
#include "tensor/error.h"

namespace thimble {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

class Loader {
 public:
  Loader(Model& model, const KernelTable& kernels, const LoadOptions& options, const Checkpoint& checkpoint)
      : model_(model), kernels_(kernels), options_(options), set_(*checkpoint.tensors), coded_(checkpoint.coded),
        rules_(*checkpoint.rules), prefix_(checkpoint.optional_prefix) {}

  void run() {
    if (coded_) {
      for (const std::string& w : coded_->warnings()) model_.warnings.push_back(w);
      model_.quantization = coded_->description();
    }
    resolve_tied();
    resolve_pooler();
    model_.weights.resize(model_.config);
    for_each_tensor(model_.config, rules_, [&](const TensorRule& rule, int64_t layer, int64_t block) {
      load_rule(rule, layer, block);
      if (options_.consume && block + 1 == rule_blocks(model_.config, rule)) hand_out(rule, layer);
    });
    refuse_unused();
  }

 private:
  // The config may leave it open (or lie) whether the head is tied: a file without a head has a tied one only if the
  // family or the config says so.
  void resolve_tied() {
    for (const TensorRule& rule : rules_)
      if (rule.roles[0] == Role::lm_head && model_.config.tied) {
        const std::string name = rule_name(rule, 0);
        ignored_.insert(find_name(name));
        if (coded_ && name.ends_with(".weight"))
          for (const std::string& part : coded_->tensors(name.substr(0, name.size() - 7))) ignored_.insert(part);
      }
  }

  // No config says whether there is one; many checkpoints of encoders lack it.
  void resolve_pooler() {
    for (const TensorRule& rule : rules_)
      if (rule.roles[0] == Role::pooler_w && find_name(rule_name(rule, 0)).empty()) model_.config.pooler = false;
  }

  void hand_out(const TensorRule& rule, int64_t layer) {
    for (Role role : rule.roles) {
      Weight& w = model_.weights.at(role, layer);
      options_.consume(model_, role, layer, w);
      w = Weight{};
    }
    model_.store.clear();
    set_.forget_views();
  }

  // A rule's name as the file has it: perhaps without the prefix, perhaps under an alias; empty when absent.
  std::string find_name(const std::string& name) const {
    const std::string found = find_spelled(name);
    if (!found.empty()) return found;
    for (const NameAlias& alias : model_.family->aliases) {
      if (!name.ends_with(alias.name)) continue;
      const std::string other = find_spelled(name.substr(0, name.size() - std::strlen(alias.name)) + alias.in_file);
      if (!other.empty()) return other;
    }
    return {};
  }

  std::string find_spelled(const std::string& name) const {
    if (set_.has(name)) return name;
    const size_t n = std::strlen(prefix_);
    if (n > 0 && name.compare(0, n, prefix_) == 0 && set_.has(name.substr(n))) return name.substr(n);
    return {};
  }

  void load_rule(const TensorRule& rule, int64_t layer, int64_t block) {
    const std::vector<int64_t> shape = file_shape(model_.config, rule);
    const std::string wanted = rule_name(rule, layer, block);
    // Some formats keep their codes under the name of the weight.
    if (coded_ && wanted.ends_with(".weight") && load_coded(rule, layer, wanted.substr(0, wanted.size() - 7))) return;
    const std::string name = find_name(wanted);
    if (name.empty() && load_other(rule, layer, block, shape)) return;
    if (name.empty()) {
      throw Error(ErrorCode::input, fmt::format("{}: tensor {} is missing: expected shape {}", set_.path(), wanted, shape_text(shape)),
                  "the file does not hold all weights that config.json promises; download it again or fix config.json");
    }
    used_.insert(name);
    const TensorView view = set_.view(name);
    if (view.info->shape != shape)
      throw Error(ErrorCode::input,
                  fmt::format("{}: tensor {} has shape {}: config.json implies {}", view.file, name,
                              shape_text(view.info->shape), shape_text(shape)),
                  "config.json and the weights belong to different models, or one of them is damaged");
    for (size_t part = 0; part < rule.roles.size(); ++part)
      load_part(rule, static_cast<int>(part), layer, block, view, shape);
    if (options_.consume || options_.trainable) set_.done_with(view.info->bytes);
  }

  bool load_other(const TensorRule& rule, int64_t layer, int64_t block, std::vector<int64_t> shape) {
    if (!rule.other.name) return false;
    TensorRule renamed = rule;
    renamed.name = rule.other.name;
    const std::string name = find_name(rule_name(renamed, layer));
    if (name.empty()) return false;
    used_.insert(name);
    TensorView view = set_.view(name);
    TensorInfo own = *view.info;
    std::vector<int64_t> expected = shape;
    if (role_is_expert(rule.roles[0])) {
      expected = {model_.config.n_experts, rule.other.parts * shape[0], shape[1]};
      own.shape = shape;
    }
    if (view.info->shape != expected)
      throw Error(ErrorCode::input,
                  fmt::format("{}: tensor {} has shape {}: config.json implies {}", view.file, name,
                              shape_text(view.info->shape), shape_text(expected)),
                  "config.json and the weights belong to different models, or one of them is damaged");
    if (role_is_expert(rule.roles[0])) {
      own.bytes /= static_cast<uint64_t>(model_.config.n_experts * rule.other.parts);
      view.data += own.bytes * static_cast<uint64_t>(expert_of(layer) * rule.other.parts + rule.other.part);
      view.info = &own;
    }
    load_part(rule, 0, layer, block, view, shape);
    return true;
  }

  static WeightFormat stored_format(const TensorView& view) {
    switch (view.info->dtype) {
      case SafetensorsDtype::f16: return WeightFormat::f16;
      case SafetensorsDtype::bf16: return WeightFormat::bf16;
      case SafetensorsDtype::f32:
      case SafetensorsDtype::f64: return WeightFormat::f32;
      default: break;
    }
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: tensor {} has dtype {}: expected F32, F16, BF16 or F64", view.file, view.info->name,
                            safetensors_dtype_name(view.info->dtype)),
                "convert the checkpoint to one of these dtypes");
  }

  void load_part(const TensorRule& rule, int part, int64_t layer, int64_t block, const TensorView& view,
                 const std::vector<int64_t>& shape) {
    const ModelConfig& config = model_.config;
    const Role role = rule.roles[static_cast<size_t>(part)];
    const RoleShape s = role_shape(config, role);
    Weight& w = model_.weights.at(role, layer);
    w.rows = s.rows;
    w.cols = s.cols;
    const bool vector = s.vector, transposed = layout_is_transposed(rule.layout);
    const int64_t blocks = rule_blocks(config, rule);
    const int64_t features = (vector ? s.cols : s.rows) / blocks, inputs = vector ? 1 : s.cols;
    const WeightFormat stored = stored_format(view);
    w.format = vector || options_.trainable ? WeightFormat::f32 : stored;
    const int64_t size = format_bits(stored) / 8;
    const bool contiguous = !transposed && blocks == 1 && (rule.layout != Layout::per_head || config.n_kv_heads == 1);
    const int64_t first = source_row(model_.config, rule.layout, part, 0);
    const std::byte* source = view.data + first * inputs * size;
    const bool aligned = reinterpret_cast<uintptr_t>(source) % static_cast<uintptr_t>(size) == 0;
    if (contiguous && aligned && w.format == stored && view.info->dtype != SafetensorsDtype::f64 && !options_.trainable) {
      w.data = source;
      return;
    }
    // Everything else is copied: row by row into [features, inputs], in the target format.
    const int64_t out_size = format_bits(w.format) / 8;
    if (block == 0) w.data = model_.store.allocate(size_t(blocks * features * inputs * out_size));
    auto* out = static_cast<std::byte*>(const_cast<void*>(w.data)) + block * features * inputs * out_size;
    std::vector<float> all;
    if (w.format != stored || view.info->dtype == SafetensorsDtype::f64) {
      all.resize(static_cast<size_t>(view.info->elements()));
      view.read_f32(all.data());
    }
    const std::byte* base = all.empty() ? view.data : reinterpret_cast<const std::byte*>(all.data());
    const int64_t element = all.empty() ? size : 4;
    const int64_t file_features = transposed ? shape[1] : shape[0];
    for (int64_t r = 0; r < features; ++r) {
      const int64_t from = source_row(model_.config, rule.layout, part, r);
      std::byte* row = out + r * inputs * element;
      if (transposed)
        for (int64_t c = 0; c < inputs; ++c) std::memcpy(row + c * element, base + (c * file_features + from) * element, size_t(element));
      else
        std::memcpy(row, base + from * inputs * element, size_t(inputs * element));
    }
  }

  // Empty when the checkpoint has no quantized module of that name.
  std::string find_module(const std::string& module) const {
    if (coded_->has(module)) return module;
    const size_t n = std::strlen(prefix_);
    if (n > 0 && module.compare(0, n, prefix_) == 0 && coded_->has(module.substr(n))) return module.substr(n);
    return {};
  }

  bool load_coded(const TensorRule& rule, int64_t layer, const std::string& wanted) {
    const std::string module = find_module(wanted);
    if (module.empty()) return false;
    for (std::string& name : coded_->tensors(module)) used_.insert(std::move(name));
    const CodedLinear q = coded_->read(module);
    if (!q.bias.empty() && std::all_of(q.bias.begin(), q.bias.end(), [](float b) { return b == 0; })) used_.insert(module + ".bias");
    int64_t rows = 0, cols = 0;
    for (Role role : rule.roles) {
      rows += role_shape(model_.config, role).rows;
      cols = role_shape(model_.config, role).cols;
    }
    if (q.out != rows || q.in != cols)
      throw Error(ErrorCode::input,
                  fmt::format("{}: quantized module {} is [{}, {}]: config.json implies [{}, {}]", set_.path(), module, q.out, q.in, rows, cols),
                  "config.json and the weights belong to different models, or one of them is damaged");
    if (q.dense.empty())
      load_codes(rule, layer, module, q);
    else
      load_decoded(rule, layer, q);
    set_.done_with(q.codes.size() + q.dense.size());
    return true;
  }

  void load_decoded(const TensorRule& rule, int64_t layer, const CodedLinear& q) {
    const size_t row = static_cast<size_t>(q.in * format_bits(q.dense_format) / 8);
    for (size_t part = 0; part < rule.roles.size(); ++part) {
      const RoleShape s = role_shape(model_.config, rule.roles[part]);
      Weight& w = model_.weights.at(rule.roles[part], layer);
      w.rows = s.rows;
      w.cols = s.cols;
      w.format = q.dense_format;
      auto* out = static_cast<std::byte*>(model_.store.allocate(size_t(s.rows) * row));
      w.data = out;
      for (int64_t r = 0; r < s.rows; ++r) {
        const int64_t from = source_row(model_.config, rule.layout, static_cast<int>(part), r);
        std::memcpy(out + size_t(r) * row, &q.dense[size_t(from) * row], row);
      }
    }
  }

  void load_codes(const TensorRule& rule, int64_t layer, const std::string& module, const CodedLinear& q) {
    const int64_t group = q.groups == 1 ? 0 : q.group_size;
    if (group % 8 != 0)
      throw Error(ErrorCode::unsupported, fmt::format("{}: module {}: groups of {} columns are not supported", set_.path(), module, q.group_size),
                  "supported: one group per row, and multiples of 8");
    int32_t* perm = nullptr;
    if (!q.perm.empty()) {
      perm = static_cast<int32_t*>(model_.store.allocate(q.perm.size() * sizeof(int32_t)));
      std::memcpy(perm, q.perm.data(), q.perm.size() * sizeof(int32_t));
    }
    WeightFormat format = tile_format(q.bits);
    if (group % tile_col_align(format) != 0) format = WeightFormat::q4;  // 2 bits in odd multiples of 8
    const auto in = static_cast<size_t>(q.in), g = static_cast<size_t>(q.groups);
    for (size_t part = 0; part < rule.roles.size(); ++part) {
      const Role role = rule.roles[part];
      const auto n = static_cast<size_t>(role_shape(model_.config, role).rows);
      // The rows of this part out of [out][count].
      const auto rows_of = [&](const auto& from, size_t count) {
        auto to = from;
        if (from.empty()) return to;
        to.resize(n * count);
        for (size_t r = 0; r < n; ++r) {
          const auto row = static_cast<size_t>(source_row(model_.config, rule.layout, static_cast<int>(part), static_cast<int64_t>(r)));
          std::copy_n(&from[row * count], count, &to[r * count]);
        }
        return to;
      };
      const std::vector<uint8_t> codes = rows_of(q.codes, in), zeros = rows_of(q.zeros, g);
      const std::vector<uint16_t> scales_f16 = rows_of(q.scales_f16, g);
      const std::vector<float> scales_f32 = rows_of(q.scales_f32, g), mins = rows_of(q.mins, g);
      TileSource source;
      source.rows = static_cast<int64_t>(n);
      source.cols = q.in;
      source.group = group;
      source.codes = codes.data();
      source.scale_f32 = scales_f16.empty();
      source.scales = source.scale_f32 ? static_cast<const void*>(scales_f32.data()) : scales_f16.data();
      source.zeros = zeros.empty() ? nullptr : zeros.data();
      source.mins = mins.empty() ? nullptr : mins.data();
      source.zero = q.zero;
      TileStorage tiles = pack_tiles(kernels_, format, source, options_.budget);
      tiles.weight.perm = perm;
      model_.weights.at(role, layer) = tiles.weight;
      model_.store.adopt(std::move(tiles.buffer));
    }
  }

  void refuse_unused() {
    std::string list;
    int64_t count = 0;
    for (const std::string& name : set_.names()) {
      if (used_.count(name) || ignored_.count(name)) continue;
      if (std::any_of(model_.family->ignored.begin(), model_.family->ignored.end(),
                      [&](const char* suffix) { return ("." + name).ends_with(suffix); }))
        continue;
      if (++count <= 5) list += (list.empty() ? "" : ", ") + quote_for_message(name);
    }
    if (count == 0) return;
    throw Error(ErrorCode::input,
                fmt::format("{}: {} tensor{} of the file {} not used by a {} model with this config.json: {}{}", set_.path(), count,
                            count == 1 ? "" : "s", count == 1 ? "is" : "are", model_.config.family, list, count > 5 ? ", ..." : ""),
                "config.json and the weights belong to different models");
  }

  Model& model_;
  const KernelTable& kernels_;
  const LoadOptions& options_;
  const TensorSource& set_;
  const CodedSource* coded_;
  const std::vector<TensorRule>& rules_;
  const char* prefix_;
  std::set<std::string> used_, ignored_;
};

}  // namespace

Model start_model(const std::string& path, const JsonObject& config, const LoadOptions& options) {
  Model m;
  m.path = path;
  m.family = &find_family(config);
  m.config = parse_config(config, *m.family);
  m.store = WeightStore(options.budget);
  return m;
}

void load_weights(Model& model, const KernelTable& kernels, const LoadOptions& options, const Checkpoint& checkpoint) {
  Loader(model, kernels, options, checkpoint).run();
}

}  // namespace thimble
