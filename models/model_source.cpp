#include "models/model_source.h"

#include <fmt/format.h>

#include <cstring>
#include <map>

#include "kernels/kernel_table.h"
#include "models/gguf_model.h"
#include "models/io/ggml_blocks.h"
#include "models/io/pickle.h"
#include "models/loader.h"
#include "models/packed_store.h"
#include "models/unpack.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

class Llama2cSource final : public TensorSource {
 public:
  explicit Llama2cSource(const std::string& path) : file_(path), path_(path) {
    const Llama2cFile& f = file_;
    const int64_t kv = f.kv_dim();
    add("model.embed_tokens.weight", {f.vocab_size, f.dim}, f.token_embedding);
    add("model.norm.weight", {f.dim}, f.rms_final);
    if (!f.tied) add("lm_head.weight", {f.vocab_size, f.dim}, f.wcls);
    for (int64_t l = 0; l < f.n_layers; ++l) {
      const std::string layer = "model.layers." + std::to_string(l) + ".";
      add(layer + "input_layernorm.weight", {f.dim}, f.rms_att + l * f.dim);
      add(layer + "post_attention_layernorm.weight", {f.dim}, f.rms_ffn + l * f.dim);
      add(layer + "self_attn.q_proj.weight", {f.dim, f.dim}, f.wq + l * f.dim * f.dim);
      add(layer + "self_attn.k_proj.weight", {kv, f.dim}, f.wk + l * kv * f.dim);
      add(layer + "self_attn.v_proj.weight", {kv, f.dim}, f.wv + l * kv * f.dim);
      add(layer + "self_attn.o_proj.weight", {f.dim, f.dim}, f.wo + l * f.dim * f.dim);
      add(layer + "mlp.gate_proj.weight", {f.hidden_dim, f.dim}, f.w1 + l * f.hidden_dim * f.dim);
      add(layer + "mlp.down_proj.weight", {f.dim, f.hidden_dim}, f.w2 + l * f.hidden_dim * f.dim);
      add(layer + "mlp.up_proj.weight", {f.hidden_dim, f.dim}, f.w3 + l * f.hidden_dim * f.dim);
    }
    for (const auto& [name, entry] : entries_) names_.push_back(name);
  }
  const Llama2cFile& file() const { return file_; }
  const std::string& path() const override { return path_; }
  const std::vector<std::string>& names() const override { return names_; }
  uint64_t file_bytes() const override { return file_.map.size(); }
  void release_pages() const override { file_.map.release_pages(); }
  // q and k are put in order in one buffer: their view lasts until the next one of theirs.
  TensorView find_view(const std::string& name) const override {
    const auto it = entries_.find(name);
    if (it == entries_.end()) return {};
    const auto& [info, data] = it->second;
    const bool q = name.find(".q_proj.") != std::string::npos, k = name.find(".k_proj.") != std::string::npos;
    if (!q && !k) return {&info, reinterpret_cast<const std::byte*>(data), path_};
    const std::vector<int32_t> map =
        gguf_row_map(GgufChange::pairs_q, {file_.n_heads, file_.n_kv_heads, file_.head_dim()}, info.shape[0]);
    ordered_.resize(static_cast<size_t>(info.elements()));
    const auto cols = static_cast<size_t>(info.shape[1]);
    for (size_t r = 0; r < map.size(); ++r)
      std::memcpy(&ordered_[r * cols], data + static_cast<size_t>(map[r]) * cols, cols * sizeof(float));
    return {&info, reinterpret_cast<const std::byte*>(ordered_.data()), path_};
  }

 private:
  void add(const std::string& name, std::vector<int64_t> shape, const float* data) {
    TensorInfo info;
    info.name = name;
    info.shape = std::move(shape);
    info.bytes = static_cast<uint64_t>(info.elements()) * sizeof(float);
    entries_.emplace(name, std::pair{std::move(info), data});
  }
  Llama2cFile file_;
  std::string path_;
  std::map<std::string, std::pair<TensorInfo, const float*>> entries_;
  std::vector<std::string> names_;
  mutable std::vector<float> ordered_;
};

bool is_llama2c(const std::string& path) { return path.size() > 4 && path.compare(path.size() - 4, 4, ".bin") == 0; }

}  // namespace

nlohmann::ordered_json llama2c_config(const Llama2cFile& f) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"vocab_size", f.vocab_size},
          {"hidden_size", f.dim},
          {"intermediate_size", f.hidden_dim},
          {"num_hidden_layers", f.n_layers},
          {"num_attention_heads", f.n_heads},
          {"num_key_value_heads", f.n_kv_heads},
          {"max_position_embeddings", f.max_seq_len},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", f.tied},
          {"bos_token_id", 1},
          {"eos_token_id", 2}};
}

int64_t SourceTensor::elements() const {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

ModelSource::~ModelSource() = default;

ModelSource::ModelSource(const std::string& path) : path_(path) {
  std::string config_name = path;
  if (const std::string gguf = gguf_path(path); !gguf.empty()) {
    auto model = std::make_unique<GgufModel>(gguf);
    container_ = "gguf";
    json_ = model->config();
    coded_ = model->coded();
    gguf_ = model.get();
    tensors_ = std::move(model);
  } else if (!is_directory(path)) {
    if (!file_exists(path))
      throw Error(ErrorCode::input, path + ": no such file or directory",
                  "give a Hugging Face directory, a GGUF file or a llama2.c .bin file");
    if (!is_llama2c(path))
      throw Error(
          ErrorCode::input,
          path + ": is not a model: expected a directory with config.json, a GGUF file, or a llama2.c .bin file", "");
    auto model = std::make_unique<Llama2cSource>(path);
    container_ = "llama2.c";
    json_ = llama2c_config(model->file());
    tensors_ = std::move(model);
  } else {
    config_name = join_path(path, "config.json");
    if (is_packed_store(path)) store_ = std::make_unique<Model>(load_packed_store(path, {}));
    if (!file_exists(config_name))
      throw Error(ErrorCode::input, path + ": has no config.json", "give the directory of a Hugging Face model");
    parse_json_file(config_name);
    json_ = nlohmann::ordered_json::parse(read_file(config_name));
    if (store_) {
      container_ = "thimble";
    } else if (!SafetensorsSet::present(path) && PickleSet::present(path)) {
      container_ = "pickle";
      tensors_ = std::make_unique<PickleSet>(path);
    } else {
      container_ = "safetensors";
      tensors_ = std::make_unique<SafetensorsSet>(path);
    }
    if (!store_) own_coded_ = open_coded_source(path, *tensors_);
    coded_ = own_coded_.get();
  }
  json_.erase("quantization_config");
  const nlohmann::json plain = json_;
  const JsonObject object(plain, config_name);
  family_ = &find_family(object);
  config_ = parse_config(object, *family_);
  (store_ ? list_store() : list_tensors());
}

void ModelSource::list_store() {
  config_.pooler = store_->config.pooler;
  bare_names_ = packed_store_statement(path_).bare_names;
  for_each_tensor(store_->config, family_->tensors, [&](const TensorRule& rule, int64_t place, int64_t block) {
    if (!store_->weights.at(rule.roles[0], place)) return;
    SourceTensor t;
    t.name = t.stored = rule_name(rule, place, block);
    if (bare_names_ && t.name.starts_with(family_->optional_prefix)) t.name.erase(0, std::strlen(family_->optional_prefix));
    t.shape = file_shape(store_->config, rule);
    // Vectors are f32 in memory, whatever the file holds.
    const TensorView rows = store_->source->find_view(weight_name(rule.roles[0], place));
    t.dtype = rows ? rows.info->dtype : stored_dtype(*store_, rule, place);
    t.coded = is_one_grid(*store_, rule, place);
    t.rule = &rule;
    t.layer = place;
    t.block = block;
    list_.push_back(std::move(t));
  });
}

void ModelSource::list_tensors() {
  const std::string prefix = family_->optional_prefix;
  for_each_tensor(config_, family_->tensors, [&](const TensorRule& rule, int64_t layer, int64_t block) {
    if (rule.roles[0] == Role::lm_head && config_.tied) return;
    const std::vector<int64_t> shape = file_shape(config_, rule);
    if (shape.empty()) return;
    SourceTensor t;
    t.name = rule_name(rule, layer, block);
    t.shape = shape;
    t.rule = &rule;
    t.layer = layer;
    t.block = block;
    const std::string bare = t.name.rfind(prefix, 0) == 0 ? t.name.substr(prefix.size()) : t.name;
    const auto plain = [&](const std::string& name, const std::vector<int64_t>& found, SafetensorsDtype dtype) {
      if (found != shape)
        throw Error(ErrorCode::input,
                    fmt::format("{}: tensor {} has another shape than config.json implies", path_, name),
                    "config.json and the weights belong to different models, or one of them is damaged");
      t.stored = name;
      t.dtype = dtype;
    };
    std::vector<std::string> spellings = {t.name, bare};
    for (const NameAlias& alias : family_->aliases) {
      const std::string end = alias.name;
      for (const std::string& name : {t.name, bare})
        if (name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0)
          spellings.push_back(name.substr(0, name.size() - end.size()) + alias.in_file);
    }
    for (const std::string& name : spellings) {
      const GgufModel::Entry* entry = gguf_ ? gguf_->find_entry(name) : nullptr;  // does not make the tensor
      if (entry && ggml_is_plain(entry->tensor->type)) {
        plain(name, entry->shape, ggml_plain_dtype(entry->tensor->type));
      } else if (const TensorView v = gguf_ ? TensorView{} : tensors_->find_view(name)) {
        plain(name, v.info->shape, v.info->dtype);
      } else if (coded_ && name.size() > 7 && name.compare(name.size() - 7, 7, ".weight") == 0 &&
                 coded_->has(name.substr(0, name.size() - 7))) {
        t.stored = name.substr(0, name.size() - 7);
        t.coded = true;
      }
      if (t.stored.empty()) continue;
      if (name == bare && name != t.name && !gguf_) {
        bare_names_ = true;
        t.name = bare;
      }
      break;
    }
    if (t.stored.empty() && rule.other.name && role_is_expert(rule.roles[0]) && !gguf_) {
      TensorRule renamed = rule;
      renamed.name = rule.other.name;
      const std::string name = rule_name(renamed, layer);
      if (const TensorView v = tensors_->find_view(name)) {
        if (v.info->shape != std::vector<int64_t>{config_.n_experts, rule.other.parts * shape[0], shape[1]})
          throw Error(ErrorCode::input,
                      fmt::format("{}: tensor {} has another shape than config.json implies", path_, name),
                      "config.json and the weights belong to different models, or one of them is damaged");
        t.stored = name;
        t.dtype = v.info->dtype;
        t.slice = expert_of(layer) * rule.other.parts + rule.other.part;
        t.slices = config_.n_experts * rule.other.parts;
      }
    }
    if (t.stored.empty() && (rule.roles[0] == Role::pooler_w || rule.roles[0] == Role::pooler_b)) return;
    if (t.stored.empty())
      throw Error(ErrorCode::input, fmt::format("{}: tensor {} is missing", path_, t.name),
                  "the file does not hold all weights that its config promises; download it again or fix the config");
    list_.push_back(std::move(t));
  });
}

TensorView ModelSource::view(const SourceTensor& t) const {
  THIMBLE_CHECK(!t.coded);
  if (store_) {
    static const KernelTable kernels = build_kernel_table(best_tier());
    made_ = tensor_bytes(*store_, kernels, *t.rule, t.layer, t.block, t.dtype);
    store_->source->done_with(made_.size());
    sliced_ = {t.name, t.dtype, t.shape, 0, made_.size()};
    return {&sliced_, reinterpret_cast<const std::byte*>(made_.data()), path_};
  }
  tensors_->forget_views();
  TensorView v = tensors_->view(t.stored);
  tensors_->done_with(v.info->bytes / static_cast<uint64_t>(t.slices));  // before the caller reads them: of the tensors so far
  if (t.slice < 0) return v;
  sliced_ = *v.info;
  sliced_.shape = t.shape;
  sliced_.bytes /= static_cast<uint64_t>(t.slices);
  v.data += sliced_.bytes * static_cast<uint64_t>(t.slice);
  v.info = &sliced_;
  return v;
}

CodedLinear ModelSource::read_codes(const SourceTensor& t) const {
  THIMBLE_CHECK(t.coded);
  if (store_) {
    CodedLinear q = unpack_linear(*store_, *t.rule, t.layer);
    store_->source->done_with(q.codes.size());
    return q;
  }
  CodedLinear q = coded_->read(t.stored);
  tensors_->done_with(q.codes.size() + q.dense.size());
  const bool turned = layout_is_transposed(t.rule->layout);
  if (q.out != t.shape[turned ? 1 : 0] || q.in != t.shape[turned ? 0 : 1])
    throw Error(ErrorCode::input,
                fmt::format("{}: quantized module {} is [{}, {}]: its config implies another shape", path_, t.stored,
                            q.out, q.in),
                "config.json and the weights belong to different models, or one of them is damaged");
  return q;
}

std::vector<float> ModelSource::read_f32(const SourceTensor& t) const {
  if (!t.coded) {
    std::vector<float> out(static_cast<size_t>(t.elements()));
    view(t).read_f32(out.data());
    return out;
  }
  std::vector<float> w = read_codes(t).dequantize();
  if (!layout_is_transposed(t.rule->layout)) return w;
  const auto rows = static_cast<size_t>(t.shape[0]), cols = static_cast<size_t>(t.shape[1]);
  std::vector<float> turned(w.size());
  for (size_t r = 0; r < rows; ++r)
    for (size_t c = 0; c < cols; ++c) turned[r * cols + c] = w[c * rows + r];
  return turned;
}

}  // namespace thimble
