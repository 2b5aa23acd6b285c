#include "models/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "kernels/kernel_table.h"
#include "models/io/gptq.h"
#include "tensor/error.h"

namespace thimble {

void* WeightStore::allocate(size_t bytes) {
  const size_t rounded = (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
  if (rounded > left_) {
    const size_t chunk = std::max(rounded, size_t{1} << 20);
    buffers_.emplace_back(chunk, budget_, "weights");
    if (chunk == rounded) return buffers_.back().data();  // a large one of its own; keep filling the current chunk
    at_ = static_cast<std::byte*>(buffers_.back().data());
    left_ = chunk;
  }
  void* p = at_;
  at_ += rounded;
  left_ -= rounded;
  return p;
}

int64_t WeightStore::bytes() const {
  int64_t n = 0;
  for (const Buffer& b : buffers_) n += static_cast<int64_t>(b.bytes());
  return n;
}

int64_t Model::parameters() const {
  int64_t n = 0;
  for_each_weight(weights, [&](Role, int64_t, const Weight& w) { n += w.numel(); });
  return n;
}

int64_t Model::stored_bytes() const {
  int64_t n = 0;
  for_each_weight(weights, [&](Role, int64_t, const Weight& w) { n += static_cast<int64_t>(w.stored_bytes()); });
  return n;
}

std::string rule_name(const TensorRule& rule, int64_t layer) {
  std::string name = rule.name;
  const size_t at = name.find("{}");
  if (at != std::string::npos) name.replace(at, 2, std::to_string(layer));
  return name;
}

int64_t source_row(const ModelConfig& c, Layout layout, int part, int64_t r) {
  switch (layout) {
    case Layout::plain:
    case Layout::transposed: return r;
    case Layout::thirds:
    case Layout::thirds_transposed: return part * c.q_cols() + r;
    case Layout::per_head: return (r / c.head_dim * 3 + part) * c.head_dim + r % c.head_dim;
  }
  return r;
}

namespace {

bool ends_with(const std::string& text, const char* suffix) {
  const size_t n = std::strlen(suffix);
  return text.size() >= n && text.compare(text.size() - n, n, suffix) == 0;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// The shape that a rule's tensor has in the file; empty when the model has no such tensor.
std::vector<int64_t> file_shape(const ModelConfig& config, const TensorRule& rule) {
  int64_t rows = 0, cols = 0;
  bool vector = false;
  for (Role role : rule.roles) {
    const RoleShape s = role_shape(config, role);
    if (s.rows == 0) return {};
    vector = s.vector;
    rows += vector ? s.cols : s.rows;
    cols = s.cols;
  }
  if (vector) return {rows};
  return layout_is_transposed(rule.layout) ? std::vector<int64_t>{cols, rows} : std::vector<int64_t>{rows, cols};
}

class Loader {
 public:
  Loader(Model& model, const KernelTable& kernels, const LoadOptions& options)
      : model_(model), kernels_(kernels), options_(options), set_(*model.files[0]) {}

  void run() {
    gptq_ = read_gptq_config(model_.path);
    if (!gptq_) refuse_other_quantization(model_.path);
    if (gptq_) {
      for (const std::string& w : gptq_->warnings) model_.warnings.push_back(w);
      model_.quantization = fmt::format("gptq {}-bit {} {}{}", gptq_->bits,
                                        gptq_->group_size > 0 ? "g" + std::to_string(gptq_->group_size) : "row",
                                        gptq_->sym ? "sym" : "asym", gptq_->desc_act ? " act-order" : "");
    }
    resolve_tied();
    model_.weights.layers.resize(static_cast<size_t>(model_.config.n_layers));
    for (const TensorRule& rule : model_.family->tensors) {
      const int64_t copies = role_is_layer(rule.roles[0]) ? model_.config.n_layers : 1;
      for (int64_t layer = 0; layer < copies; ++layer) load_rule(rule, layer);
    }
    refuse_unused();
  }

 private:
  // The config may leave it open (or lie) whether the head is tied: a file without a head has a tied one only if the
  // family or the config says so.
  void resolve_tied() {
    for (const TensorRule& rule : model_.family->tensors)
      if (rule.roles[0] == Role::lm_head && model_.config.tied) ignored_.insert(find_name(rule_name(rule, 0)));
  }

  std::string find_name(const std::string& name) const {
    if (set_.has(name)) return name;
    const char* prefix = model_.family->optional_prefix;
    const size_t n = std::strlen(prefix);
    if (n > 0 && name.compare(0, n, prefix) == 0 && set_.has(name.substr(n))) return name.substr(n);
    return {};
  }

  void load_rule(const TensorRule& rule, int64_t layer) {
    const std::vector<int64_t> shape = file_shape(model_.config, rule);
    const std::string wanted = rule_name(rule, layer);
    if (shape.empty()) return;
    const std::string name = find_name(wanted);
    if (name.empty()) {
      if (gptq_ && ends_with(wanted, ".weight") && load_gptq(rule, layer, wanted.substr(0, wanted.size() - 7))) return;
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
      load_part(rule, static_cast<int>(part), layer, view, shape);
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

  void load_part(const TensorRule& rule, int part, int64_t layer, const TensorView& view, const std::vector<int64_t>& shape) {
    const Role role = rule.roles[static_cast<size_t>(part)];
    const RoleShape s = role_shape(model_.config, role);
    Weight& w = model_.weights.at(role, layer);
    w.rows = s.rows;
    w.cols = s.cols;
    const bool vector = shape.size() == 1;
    const bool transposed = layout_is_transposed(rule.layout);
    const int64_t features = vector ? s.cols : s.rows, inputs = vector ? 1 : s.cols;
    const WeightFormat stored = stored_format(view);
    w.format = vector || options_.trainable ? WeightFormat::f32 : stored;
    const int64_t size = format_bits(stored) / 8;
    const bool contiguous = !transposed && rule.layout != Layout::per_head;
    const int64_t first = source_row(model_.config, rule.layout, part, 0);
    const std::byte* source = view.data + first * inputs * size;
    const bool aligned = reinterpret_cast<uintptr_t>(source) % static_cast<uintptr_t>(size) == 0;
    if (contiguous && aligned && w.format == stored && view.info->dtype != SafetensorsDtype::f64 && !options_.trainable) {
      w.data = source;
      return;
    }
    // Everything else is copied: row by row into [features, inputs], in the target format.
    const int64_t out_size = format_bits(w.format) / 8;
    auto* out = static_cast<std::byte*>(model_.store.allocate(size_t(features * inputs * out_size)));
    w.data = out;
    std::vector<float> all;
    if (w.format != stored || view.info->dtype == SafetensorsDtype::f64) {
      all.resize(static_cast<size_t>(view.info->elements()));
      view.read_f32(all.data());
    }
    const std::byte* base = all.empty() ? view.data : reinterpret_cast<const std::byte*>(all.data());
    const int64_t element = all.empty() ? size : 4;
    const int64_t file_features = vector ? shape[0] : transposed ? shape[1] : shape[0];
    for (int64_t r = 0; r < features; ++r) {
      const int64_t from = source_row(model_.config, rule.layout, part, r);
      std::byte* row = out + r * inputs * element;
      if (transposed)
        for (int64_t c = 0; c < inputs; ++c) std::memcpy(row + c * element, base + (c * file_features + from) * element, size_t(element));
      else
        std::memcpy(row, base + from * inputs * element, size_t(inputs * element));
    }
  }

  bool load_gptq(const TensorRule& rule, int64_t layer, const std::string& module) {
    std::string found = module;
    if (!gptq_has(set_, found)) {
      const char* prefix = model_.family->optional_prefix;
      const size_t n = std::strlen(prefix);
      if (n == 0 || module.compare(0, n, prefix) != 0 || !gptq_has(set_, module.substr(n))) return false;
      found = module.substr(n);
    }
    for (const char* part : {".qweight", ".qzeros", ".scales", ".g_idx"}) used_.insert(found + part);
    GptqSource source = gptq_source(set_, found);
    const auto shape = gptq_->shapes.find(found);
    if (shape != gptq_->shapes.end()) source.bias = {};  // is not padded, and loads as a tensor of its own
    GptqLinear q = unpack_gptq(source, gptq_->of(found));
    if (shape != gptq_->shapes.end()) crop_gptq(q, found, shape->second[0], shape->second[1]);
    if (!q.bias.empty() && std::all_of(q.bias.begin(), q.bias.end(), [](float b) { return b == 0; })) used_.insert(found + ".bias");
    int64_t rows = 0, cols = 0;
    for (Role role : rule.roles) {
      rows += role_shape(model_.config, role).rows;
      cols = role_shape(model_.config, role).cols;
    }
    if (q.out != rows || q.in != cols)
      throw Error(ErrorCode::input,
                  fmt::format("{}: quantized module {} is [{}, {}]: config.json implies [{}, {}]", set_.path(), found, q.out, q.in, rows, cols),
                  "config.json and the weights belong to different models, or one of them is damaged");
    const int64_t group = q.groups == 1 ? 0 : q.group_size;
    if (group % 8 != 0)
      throw Error(ErrorCode::unsupported, fmt::format("{}: field \"group_size\": {} is not supported", gptq_->file, q.group_size),
                  "supported: -1 and multiples of 8");
    int32_t* perm = nullptr;
    if (!q.perm.empty()) {
      perm = static_cast<int32_t*>(model_.store.allocate(q.perm.size() * sizeof(int32_t)));
      std::memcpy(perm, q.perm.data(), q.perm.size() * sizeof(int32_t));
    }
    WeightFormat format = tile_format(q.bits);
    if (group % tile_col_align(format) != 0) format = WeightFormat::q4;  // 2 bits in odd multiples of 8
    for (size_t part = 0; part < rule.roles.size(); ++part) {
      const Role role = rule.roles[part];
      const RoleShape s = role_shape(model_.config, role);
      const auto n = static_cast<size_t>(s.rows), g = static_cast<size_t>(q.groups), in = static_cast<size_t>(q.in);
      std::vector<uint8_t> codes(n * in), zeros(n * g);
      std::vector<uint16_t> scales_f16(q.scales_f16.empty() ? 0 : n * g);
      std::vector<float> scales_f32(q.scales_f32.empty() ? 0 : n * g);
      for (size_t r = 0; r < n; ++r) {
        const auto from = static_cast<size_t>(source_row(model_.config, rule.layout, static_cast<int>(part), static_cast<int64_t>(r)));
        std::copy_n(&q.codes[from * in], in, &codes[r * in]);
        std::copy_n(&q.zeros[from * g], g, &zeros[r * g]);
        if (!scales_f16.empty()) std::copy_n(&q.scales_f16[from * g], g, &scales_f16[r * g]);
        if (!scales_f32.empty()) std::copy_n(&q.scales_f32[from * g], g, &scales_f32[r * g]);
      }
      TileStorage tiles = pack_tiles(kernels_, format, s.rows, q.in, group, codes.data(), zeros.data(),
                                     scales_f16.empty() ? nullptr : scales_f16.data(),
                                     scales_f32.empty() ? nullptr : scales_f32.data(), options_.budget);
      tiles.weight.perm = perm;
      model_.weights.at(role, layer) = tiles.weight;
      model_.store.adopt(std::move(tiles.buffer));
    }
    return true;
  }

  void refuse_unused() {
    std::string list;
    int64_t count = 0;
    for (const std::string& name : set_.names()) {
      if (used_.count(name) || ignored_.count(name)) continue;
      if (std::any_of(model_.family->ignored.begin(), model_.family->ignored.end(),
                      [&](const char* suffix) { return ends_with("." + name, suffix); }))
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
  const SafetensorsSet& set_;
  std::optional<GptqConfig> gptq_;
  std::set<std::string> used_, ignored_;
};

Model load_llama2c(const std::string& path, const LoadOptions& options) {
  Model m;
  m.path = path;
  m.family = &kLlamaFamily;
  m.store = WeightStore(options.budget);
  m.llama2c = std::make_unique<Llama2cFile>(path);
  const Llama2cFile& f = *m.llama2c;
  m.file_bytes = static_cast<int64_t>(f.map.size());
  ModelConfig& c = m.config;
  c.family = "llama";
  c.vocab_size = f.vocab_size;
  c.hidden = c.embed_dim = f.dim;
  c.intermediate = f.hidden_dim;
  c.n_layers = f.n_layers;
  c.n_heads = f.n_heads;
  c.n_kv_heads = f.n_kv_heads;
  c.head_dim = f.head_dim();
  c.max_positions = f.max_seq_len;
  c.rope.dims = c.head_dim;
  c.rope.interleaved = true;
  c.tied = f.tied;
  c.bos_id = 1;
  c.eos_ids = {2};
  check_config(c, path);
  m.weights.layers.resize(static_cast<size_t>(c.n_layers));
  const auto put = [&](Role role, int64_t layer, const float* data) {
    Weight& w = m.weights.at(role, layer);
    const RoleShape s = role_shape(c, role);
    w.rows = s.rows;
    w.cols = s.cols;
    const float* from = data + (layer < 0 ? 0 : layer * w.numel());
    if (options.trainable) {
      void* copy = m.store.allocate(size_t(w.numel()) * sizeof(float));
      std::memcpy(copy, from, size_t(w.numel()) * sizeof(float));
      w.data = copy;
    } else {
      w.data = from;
    }
  };
  put(Role::token_embed, -1, f.token_embedding);
  put(Role::final_norm_w, -1, f.rms_final);
  if (!c.tied) put(Role::lm_head, -1, f.wcls);
  for (int64_t l = 0; l < c.n_layers; ++l) {
    put(Role::norm1_w, l, f.rms_att);
    put(Role::q_w, l, f.wq);
    put(Role::k_w, l, f.wk);
    put(Role::v_w, l, f.wv);
    put(Role::o_w, l, f.wo);
    put(Role::norm2_w, l, f.rms_ffn);
    put(Role::gate_w, l, f.w1);
    put(Role::down_w, l, f.w2);
    put(Role::up_w, l, f.w3);
  }
  return m;
}

}  // namespace

Model load_model(const std::string& path, const KernelTable& kernels, const LoadOptions& options) {
  if (!is_directory(path)) {
    if (!file_exists(path))
      throw Error(ErrorCode::input, path + ": no such file or directory",
                  "give a Hugging Face model directory (config.json and *.safetensors) or a llama2.c .bin file");
    if (ends_with(path, ".bin")) return load_llama2c(path, options);
    if (ends_with(path, ".gguf"))
      throw Error(ErrorCode::unsupported, path + ": GGUF files are not supported", "use the model's Hugging Face directory");
    throw Error(ErrorCode::input, path + ": is not a model: expected a directory with config.json, or a llama2.c .bin file",
                "give the directory of a Hugging Face model");
  }
  const std::string config_path = join_path(path, "config.json");
  if (!file_exists(config_path))
    throw Error(ErrorCode::input, path + ": has no config.json", "give the directory of a Hugging Face model");
  const nlohmann::json json = parse_json_file(config_path);
  const JsonObject object(json, config_path);
  Model m;
  m.path = path;
  m.family = &find_family(object);
  m.config = parse_config(object, *m.family);
  m.store = WeightStore(options.budget);
  m.files.push_back(std::make_unique<SafetensorsSet>(path));
  for (const auto& file : m.files[0]->files()) m.file_bytes += static_cast<int64_t>(file->file_bytes());
  Loader(m, kernels, options).run();
  if (options.trainable) m.files.clear();  // everything was copied; mapped pages would count twice
  return m;
}

void enable_gradients(Model& model) {
  for_each_weight(model.weights, [&](Role role, int64_t layer, Weight& w) {
    if (w.format != WeightFormat::f32)
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: weight {}{} is stored as {}: gradients need f32", model.path, role_name(role),
                              layer >= 0 ? " of layer " + std::to_string(layer) : "", format_name(w.format)),
                  "load the model as trainable, or train adapters over it");
    w.grad = static_cast<float*>(model.store.allocate(size_t(w.numel()) * sizeof(float)));
    w.grad_written = false;
  });
}

namespace {

bool export_rule(const Model& model, const KernelTable& kernels, const TensorRule& rule, int64_t layer, ExportWhat what,
                 ExportedTensor* out) {
  const std::vector<int64_t> shape = file_shape(model.config, rule);
  if (shape.empty()) return false;
  out->name = rule_name(rule, layer);
  out->shape = shape;
  int64_t numel = 1;
  for (int64_t d : shape) numel *= d;
  out->data.assign(static_cast<size_t>(numel), 0.0f);
  const bool transposed = layout_is_transposed(rule.layout), vector = shape.size() == 1;
  for (size_t part = 0; part < rule.roles.size(); ++part) {
    const Weight& w = model.weights.at(rule.roles[part], layer);
    if (!w) return false;
    std::vector<float> values;
    const float* data = w.grad;
    if (what == ExportWhat::weights) {
      values.resize(static_cast<size_t>(w.numel()));
      dequantize(kernels, w, values.data());
      data = values.data();
    } else if (!w.grad || !w.grad_written) {
      return false;
    }
    const int64_t features = vector ? w.cols : w.rows, inputs = vector ? 1 : w.cols;
    for (int64_t r = 0; r < features; ++r) {
      const int64_t to = source_row(model.config, rule.layout, static_cast<int>(part), r);
      for (int64_t c = 0; c < inputs; ++c)
        out->data[static_cast<size_t>(transposed ? c * shape[1] + to : to * inputs + c)] = data[r * inputs + c];
    }
  }
  return true;
}

}  // namespace

void export_tensors(const Model& model, const KernelTable& kernels, ExportWhat what,
                    const std::function<void(const ExportedTensor&)>& fn) {
  for (const TensorRule& rule : model.family->tensors) {
    const int64_t copies = role_is_layer(rule.roles[0]) ? model.config.n_layers : 1;
    for (int64_t layer = 0; layer < copies; ++layer) {
      ExportedTensor tensor;
      if (export_rule(model, kernels, rule, layer, what, &tensor)) fn(tensor);
    }
  }
}

ExportedTensor export_tensor(const Model& model, const KernelTable& kernels, const std::string& name) {
  ExportedTensor tensor;
  for (const TensorRule& rule : model.family->tensors) {
    const int64_t copies = role_is_layer(rule.roles[0]) ? model.config.n_layers : 1;
    for (int64_t layer = 0; layer < copies; ++layer)
      if (rule_name(rule, layer) == name && export_rule(model, kernels, rule, layer, ExportWhat::weights, &tensor)) return tensor;
  }
  return {};
}

bool import_tensor(Model& model, const ExportedTensor& tensor) {
  for (const TensorRule& rule : model.family->tensors) {
    const int64_t copies = role_is_layer(rule.roles[0]) ? model.config.n_layers : 1;
    for (int64_t layer = 0; layer < copies; ++layer) {
      if (rule_name(rule, layer) != tensor.name) continue;
      const std::vector<int64_t> shape = file_shape(model.config, rule);
      if (shape.empty()) return false;
      THIMBLE_CHECK(shape == tensor.shape);
      const bool transposed = layout_is_transposed(rule.layout), vector = shape.size() == 1;
      for (size_t part = 0; part < rule.roles.size(); ++part) {
        Weight& w = model.weights.at(rule.roles[part], layer);
        THIMBLE_CHECK(w.format == WeightFormat::f32);
        auto* data = static_cast<float*>(const_cast<void*>(w.data));
        const int64_t features = vector ? w.cols : w.rows, inputs = vector ? 1 : w.cols;
        for (int64_t r = 0; r < features; ++r) {
          const int64_t from = source_row(model.config, rule.layout, static_cast<int>(part), r);
          for (int64_t c = 0; c < inputs; ++c)
            data[r * inputs + c] = tensor.data[static_cast<size_t>(transposed ? c * shape[1] + from : from * inputs + c)];
        }
      }
      return true;
    }
  }
  return false;
}

}  // namespace thimble
