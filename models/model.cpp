#include "models/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/kernel_table.h"
#include "models/gguf_model.h"
#include "models/io/pickle.h"
#include "models/loader.h"
#include "models/packed_store.h"
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

void WeightStore::clear() {
  buffers_.clear();
  left_ = 0;
  at_ = nullptr;
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

std::string rule_name(const TensorRule& rule, int64_t layer, int64_t block) {
  std::string name = rule.name;
  for (int64_t number : {layer_of(layer), role_is_expert(rule.roles[0]) ? expert_of(layer) : block}) {
    const size_t at = name.find("{}");
    if (at != std::string::npos) name.replace(at, 2, std::to_string(number));
  }
  return name;
}

int64_t rule_blocks(const ModelConfig& c, const TensorRule& rule) {
  if (rule.when && !rule.when(c)) return 0;
  for (Role role : rule.roles)
    if (role_shape(c, role).rows == 0) return 0;
  if (rule.layout != Layout::blocks) return 1;
  switch (rule.roles[0]) {
    case Role::q_norm_w: return c.n_heads;
    case Role::k_norm_w: return c.n_kv_heads;
    default: return 1;
  }
}

int64_t source_row(const ModelConfig& c, Layout layout, int part, int64_t r) {
  switch (layout) {
    case Layout::thirds:
    case Layout::thirds_transposed: return part == 0 ? r : c.q_cols() + (part - 1) * c.kv_cols() + r;
    case Layout::halves: return part * c.intermediate + r;
    case Layout::per_head: {
      const int64_t group = c.n_heads / c.n_kv_heads, head = r / c.head_dim;
      const int64_t shared = part == 0 ? head / group : head, place = part == 0 ? head % group : group + part - 1;
      return (shared * (group + 2) + place) * c.head_dim + r % c.head_dim;
    }
    default: return r;
  }
}

std::vector<int64_t> file_shape(const ModelConfig& config, const TensorRule& rule) {
  const int64_t blocks = rule_blocks(config, rule);
  if (blocks == 0) return {};
  int64_t rows = 0, cols = 0;
  bool vector = false;
  for (Role role : rule.roles) {
    const RoleShape s = role_shape(config, role);
    vector = s.vector;
    rows += vector ? s.cols : s.rows;
    cols = s.cols;
  }
  rows /= blocks;
  if (rule.layout == Layout::head_rows) return {rows / config.head_dim, config.head_dim};
  if (vector) return {rows};
  return layout_is_transposed(rule.layout) ? std::vector<int64_t>{cols, rows} : std::vector<int64_t>{rows, cols};
}

namespace {

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
  m.weights.resize(c);
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

Model load_gguf(const std::string& path, const KernelTable& kernels, const LoadOptions& options) {
  auto source = std::make_unique<GgufModel>(path, options.budget);
  Model m = start_model(path, JsonObject(source->config(), path), options);
  m.file_bytes = static_cast<int64_t>(source->file_bytes());
  load_weights(m, kernels, options, {source.get(), source->coded(), &m.family->tensors, m.family->optional_prefix});
  if (!options.trainable) m.source = std::move(source);
  return m;
}

Model load_any(const std::string& path, const KernelTable& kernels, const LoadOptions& options) {
  if (const std::string gguf = gguf_path(path); !gguf.empty()) return load_gguf(gguf, kernels, options);
  if (!is_directory(path)) {
    if (!file_exists(path))
      throw Error(ErrorCode::input, path + ": no such file or directory",
                  "give a Hugging Face model directory (config.json and *.safetensors) or a llama2.c .bin file");
    if (path.ends_with(".bin")) return load_llama2c(path, options);
    throw Error(ErrorCode::input, path + ": is not a model: expected a directory with config.json, a GGUF file, or a llama2.c .bin file",
                "give the directory of a Hugging Face model");
  }
  const std::string config_path = join_path(path, "config.json");
  if (!file_exists(config_path))
    throw Error(ErrorCode::input, path + ": has no config.json", "give the directory of a Hugging Face model");
  if (is_packed_store(path)) return load_packed_store(path, options);
  const nlohmann::json json = parse_json_file(config_path);
  Model m = start_model(path, JsonObject(json, config_path), options);
  if (!SafetensorsSet::present(path) && PickleSet::present(path))
    m.source = std::make_unique<PickleSet>(path);
  else
    m.source = std::make_unique<SafetensorsSet>(path);
  m.file_bytes = static_cast<int64_t>(m.source->file_bytes());
  const std::unique_ptr<CodedSource> coded = open_coded_source(path, *m.source);
  load_weights(m, kernels, options, {m.source.get(), coded.get(), &m.family->tensors, m.family->optional_prefix});
  if (options.trainable) m.source.reset();  // everything was copied; mapped pages would count twice
  return m;
}

}  // namespace

Model load_model(const std::string& path, const KernelTable& kernels, const LoadOptions& options) {
  Model m = load_any(path, kernels, options);
  if (!options.consume) return m;
  // What the loader has not handed out already: weights that are views of a mapped file.
  for_each_weight(m.weights, [&](Role role, int64_t place, Weight& w) {
    options.consume(m, role, place, w);
    w = Weight{};
    if (m.source) m.source->release_pages();
    if (m.llama2c) m.llama2c->map.release_pages();
  });
  m.store.clear();
  return m;
}

void enable_gradients(Model& model) {
  for_each_weight(model.weights, [&](Role role, int64_t layer, Weight& w) {
    if (w.format != WeightFormat::f32)
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: weight {} is stored as {}: gradients need f32", model.path, weight_name(role, layer),
                              format_name(w.format)),
                  "load the model as trainable, or train adapters over it");
    w.grad = static_cast<float*>(model.store.allocate(size_t(w.numel()) * sizeof(float)));
    w.grad_written = false;
  });
}

namespace {

// Where the entries of one part of a file tensor lie in the weight and in the tensor.
struct Place {
  Place(const ModelConfig& config, const TensorRule& rule, const std::vector<int64_t>& shape, size_t part, int64_t block)
      : config_(config), layout_(rule.layout), part_(static_cast<int>(part)), transposed_(layout_is_transposed(rule.layout)) {
    const RoleShape s = role_shape(config, rule.roles[part]);
    inputs = s.vector ? 1 : s.cols;
    features = (s.vector ? s.cols : s.rows) / rule_blocks(config, rule);
    first = block * features;
    file_cols_ = transposed_ ? shape[1] : inputs;
  }
  int64_t in_weight(int64_t r, int64_t c) const { return (first + r) * inputs + c; }
  size_t in_file(int64_t r, int64_t c) const {
    const int64_t row = source_row(config_, layout_, part_, r);
    return static_cast<size_t>(transposed_ ? c * file_cols_ + row : row * file_cols_ + c);
  }
  int64_t features, inputs, first;

 private:
  const ModelConfig& config_;
  Layout layout_;
  int part_;
  bool transposed_;
  int64_t file_cols_;
};

bool export_rule(const Model& model, const KernelTable& kernels, const TensorRule& rule, int64_t layer, int64_t block,
                 ExportWhat what, ExportedTensor* out) {
  const std::vector<int64_t> shape = file_shape(model.config, rule);
  out->name = rule_name(rule, layer, block);
  out->shape = shape;
  int64_t numel = 1;
  for (int64_t d : shape) numel *= d;
  out->data.assign(static_cast<size_t>(numel), 0.0f);
  for (size_t part = 0; part < rule.roles.size(); ++part) {
    const Weight& w = model.weights.at(rule.roles[part], layer);
    if (!w) return false;
    if (what == ExportWhat::weights && w.numel() == numel && rule.layout == Layout::plain) {
      dequantize(kernels, w, out->data.data());
      continue;
    }
    std::vector<float> values;
    const float* data = w.grad;
    if (what == ExportWhat::weights) {
      values.resize(static_cast<size_t>(w.numel()));
      dequantize(kernels, w, values.data());
      data = values.data();
    } else if (!w.grad || !w.grad_written) {
      return false;
    }
    const Place at(model.config, rule, shape, part, block);
    for (int64_t r = 0; r < at.features; ++r)
      for (int64_t c = 0; c < at.inputs; ++c) out->data[at.in_file(r, c)] = data[at.in_weight(r, c)];
  }
  return true;
}

}  // namespace

void export_tensors(const Model& model, const KernelTable& kernels, ExportWhat what,
                    const std::function<void(const ExportedTensor&)>& fn) {
  for_each_tensor(model.config, model.family->tensors, [&](const TensorRule& rule, int64_t layer, int64_t block) {
    ExportedTensor tensor;
    if (export_rule(model, kernels, rule, layer, block, what, &tensor)) fn(tensor);
  });
}

ExportedTensor export_tensor(const Model& model, const KernelTable& kernels, const std::string& name) {
  ExportedTensor found;
  for_each_tensor(model.config, model.family->tensors, [&](const TensorRule& rule, int64_t layer, int64_t block) {
    ExportedTensor tensor;
    if (rule_name(rule, layer, block) == name && export_rule(model, kernels, rule, layer, block, ExportWhat::weights, &tensor))
      found = std::move(tensor);
  });
  return found;
}

bool import_tensor(Model& model, const ExportedTensor& tensor) {
  bool found = false;
  for_each_tensor(model.config, model.family->tensors, [&](const TensorRule& rule, int64_t layer, int64_t block) {
    if (rule_name(rule, layer, block) != tensor.name) return;
    const std::vector<int64_t> shape = file_shape(model.config, rule);
    THIMBLE_CHECK(shape == tensor.shape);
    for (size_t part = 0; part < rule.roles.size(); ++part) {
      Weight& w = model.weights.at(rule.roles[part], layer);
      THIMBLE_CHECK(w.format == WeightFormat::f32);
      auto* data = static_cast<float*>(const_cast<void*>(w.data));
      const Place at(model.config, rule, shape, part, block);
      for (int64_t r = 0; r < at.features; ++r)
        for (int64_t c = 0; c < at.inputs; ++c) data[at.in_weight(r, c)] = tensor.data[at.in_file(r, c)];
    }
    found = true;
  });
  return found;
}

}  // namespace thimble
