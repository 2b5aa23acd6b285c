#include "models/gguf_export.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>

#include "models/embed_recipe.h"
#include "models/gguf_model.h"
#include "models/io/ggml_blocks.h"
#include "models/io/ggml_encode.h"
#include "models/io/json.h"
#include "tensor/error.h"

namespace thimble {
namespace {

// The numbers in the places of {}; false when the name is of another pattern.
bool match(const std::string& pattern, const std::string& name, std::vector<int64_t>* numbers) {
  numbers->clear();
  size_t n = 0;
  for (size_t p = 0; p < pattern.size();) {
    if (pattern.compare(p, 2, "{}") == 0) {
      const size_t begin = n;
      while (n < name.size() && name[n] >= '0' && name[n] <= '9' && n - begin < 9) ++n;
      if (n == begin) return false;
      numbers->push_back(std::stoll(name.substr(begin, n - begin)));
      p += 2;
    } else {
      if (n >= name.size() || name[n] != pattern[p]) return false;
      ++n;
      ++p;
    }
  }
  return n == name.size();
}

std::string fill(std::string pattern, int64_t value) {
  const size_t at = pattern.find("{}");
  if (at != std::string::npos) pattern.replace(at, 2, std::to_string(value));
  return pattern;
}

uint32_t file_type(GgmlType type) {
  switch (type) {
    case GgmlType::f32:
      return 0;
    case GgmlType::f16:
      return 1;
    case GgmlType::q4_0:
      return 2;
    case GgmlType::q4_1:
      return 3;
    case GgmlType::q8_0:
      return 7;
    case GgmlType::q4_k:
      return 14;
    case GgmlType::q6_k:
      return 18;
    default:
      return 32;  // bf16
  }
}

// The first of the type and ever finer ones whose blocks fit into rows of `cols`.
GgmlType fitting(GgmlType type, int64_t cols) {
  if (cols % ggml_type_info(type).elements == 0) return type;
  if (type == GgmlType::q4_k || type == GgmlType::q6_k)
    if (cols % 32 == 0) return GgmlType::q8_0;
  return GgmlType::f16;
}

[[noreturn]] void no_place(const ModelSource& source, const std::string& what) {
  throw Error(ErrorCode::unsupported, fmt::format("{}: {}: GGUF has no place for it", source.path(), what),
              "export it as safetensors");
}

}  // namespace

namespace {

bool same_rotation(const RopeConfig& a, const RopeConfig& b, int64_t tokens) {
  if (a.dims != b.dims) return false;
  const RopeFrequencies x = rope_frequencies(a, tokens), y = rope_frequencies(b, tokens);
  for (size_t j = 0; j < x.inv_freq.size(); ++j)
    if (std::fabs(x.inv_freq[j] - y.inv_freq[j]) > 1e-5f * std::fabs(x.inv_freq[j])) return false;
  return std::fabs(x.attention_factor - y.attention_factor) < 1e-5f;
}

// The first thing in which two models would compute differently; empty: none.
std::string difference(ModelConfig a, const ModelConfig& b) {
  const auto close = [](double x, double y) { return std::fabs(x - y) <= 1e-6 * std::max(std::fabs(x), std::fabs(y)); };
  if (a.positions == PositionKind::rope && b.positions == PositionKind::rope) {
    for (int64_t tokens : {int64_t{2}, a.max_positions})
      if (!same_rotation(a.rope, b.rope, tokens)) return "rotary frequencies";
    if (a.local_rope && b.local_rope && !same_rotation(a.rope_local, b.rope_local, 2))
      return "rotary frequencies of layers with a window";
  }
  if (a.local_rope != b.local_rope) return "rotary frequencies of layers with a window";
  if (!close(a.norm_eps, b.norm_eps)) return "the epsilon of norms";
  if (std::fabs(a.embed_scale - b.embed_scale) > 0.01 * a.embed_scale) return "the scale of embeddings";
  if (!close(a.logit_scale, b.logit_scale) || !close(a.logit_softcap, b.logit_softcap))
    return "scale or softcap of logits";
  if (!close(a.attn_softcap, b.attn_softcap)) return "the softcap of scores";
  if (!close(a.query_pre_attn_scalar, b.query_pre_attn_scalar)) return "the scale of scores";
  if (!close(a.qkv_clip, b.qkv_clip)) return "the clip of q, k and v";
  for (int64_t l = 0; l < a.n_layers; ++l)
    if (a.n_layers == b.n_layers && (a.has_window(l) != b.has_window(l) || (a.has_window(l) && a.window != b.window)))
      return "windows of attention";
  // What has been compared, what names the model only, and what is no part of its computation.
  a.family = b.family;
  a.rope = b.rope;
  a.rope_local = b.rope_local;
  a.norm_eps = b.norm_eps;
  a.embed_scale = b.embed_scale;
  a.logit_scale = b.logit_scale;
  a.logit_softcap = b.logit_softcap;
  a.attn_softcap = b.attn_softcap;
  a.query_pre_attn_scalar = b.query_pre_attn_scalar;
  a.qkv_clip = b.qkv_clip;
  a.window = b.window;
  a.window_from_layer = b.window_from_layer;
  a.window_layers = b.window_layers;
  a.bos_id = b.bos_id;
  a.eos_ids = b.eos_ids;
  a.max_positions = b.max_positions;
  a.pooler = b.pooler;
  return a == b ? "" : "its structure";
}

}  // namespace

uint64_t GgufExportTensor::bytes() const {
  uint64_t n = 1;
  for (int64_t d : dims) n *= static_cast<uint64_t>(d);
  const GgmlTypeInfo& info = ggml_type_info(type);
  return n / static_cast<uint64_t>(info.elements) * static_cast<uint64_t>(info.bytes);
}

GgufExport::GgufExport(const ModelSource& source, GgmlType type) : source_(source), type_(type) {
  const std::string model_type = source.json().value("model_type", std::string());
  arch_ = find_gguf_arch_of(model_type);
  if (!arch_)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: GGUF has no architecture for {}", source.path(), quote_for_message(model_type)),
                "architectures: " + known_gguf_archs());
  if (std::strcmp(arch_->arch, "gptj") == 0) no_place(source, "a GPT-J model (llama.cpp reads none)");
  plan();
}

void GgufExport::plan() {
  const ModelConfig& c = source_.config();
  bool two_norms = false;
  for (const SourceTensor& t : source_.tensors())
    two_norms = two_norms || t.name.find(".ln_attn.") != std::string::npos;
  const std::vector<GgufName>& names = gguf_names(*arch_, two_norms);
  std::map<std::string, size_t> index;
  const std::string prefix = source_.family().optional_prefix;
  for (const SourceTensor& t : source_.tensors()) {
    if (t.name.find("pooler.dense.") != std::string::npos)
      continue;  // embeddings do not use it, and GGUF has no name for it
    std::string suffix = t.name.ends_with(".weight") ? ".weight" : t.name.ends_with(".bias") ? ".bias" : "";
    const std::string bare = t.name.substr(0, t.name.size() - suffix.size());
    std::vector<int64_t> numbers;
    const GgufName* row = nullptr;
    for (const GgufName& n : names) {
      if (n.change == GgufChange::only_q || n.change == GgufChange::only_k || n.change == GgufChange::only_v) continue;
      const bool prefixed = bare.rfind(prefix, 0) == 0;  // names of the table stand without it where files do, too
      if (match(n.hf, bare, &numbers) || (prefixed && match(n.hf, bare.substr(prefix.size()), &numbers))) {
        row = &n;
        break;
      }
    }
    if (!row) no_place(source_, "tensor " + quote_for_message(t.name));
    const std::string name = (numbers.empty() ? std::string(row->gguf) : fill(row->gguf, numbers[0])) + suffix;
    const auto [at, fresh] = index.emplace(name, tensors_.size());
    if (!fresh) {  // the next expert or head
      tensors_[at->second].parts.push_back(&t);
      ++tensors_[at->second].dims.back();
      continue;
    }
    GgufExportTensor out;
    out.name = name;
    out.change = row->change;
    out.parts = {&t};
    out.dims = {t.shape.rbegin(), t.shape.rend()};
    if (row->change == GgufChange::transposed && out.dims.size() == 2) std::swap(out.dims[0], out.dims[1]);
    const bool stacked = row->change == GgufChange::experts || row->change == GgufChange::head_norms;
    const bool matrix = t.shape.size() == 2;
    const std::string& n = out.name;
    const bool keep_f32 = !matrix || n.ends_with("_norm.weight") || n == "position_embd.weight" || n == "token_types.weight" ||
                          n.find("ffn_gate_inp") != std::string::npos;
    if (!keep_f32) {
      const bool head = n == "output.weight" || (c.tied && n == "token_embd.weight");
      const bool four_bits = type_ == GgmlType::q4_0 || type_ == GgmlType::q4_1 || type_ == GgmlType::q4_k;
      out.type = fitting(head && four_bits ? GgmlType::q6_k : type_, out.dims[0]);
    }
    if (stacked) out.dims.push_back(1);
    tensors_.push_back(std::move(out));
  }
  // llama.cpp wants a head of its own for these two even when they have none.
  const bool head_needed = std::strcmp(arch_->arch, "gpt2") == 0 || std::strcmp(arch_->arch, "bloom") == 0;
  for (size_t i = 0; i < tensors_.size() && head_needed && c.tied; ++i)
    if (tensors_[i].name == "token_embd.weight") {
      GgufExportTensor head = tensors_[i];
      head.name = "output.weight";
      tensors_.push_back(std::move(head));
      break;
    }
}

uint64_t GgufExport::data_bytes() const {
  uint64_t n = 0;
  for (const GgufExportTensor& t : tensors_) n += (t.bytes() + 31) / 32 * 32;
  return n;
}

std::vector<float> GgufExport::rope_factors() const {
  const RopeConfig& r = source_.config().rope;
  std::vector<float> out;
  if (r.scaling != RopeScaling::llama3) return out;
  RopeConfig plain = r;
  plain.scaling = RopeScaling::none;
  const RopeFrequencies scaled = rope_frequencies(r, 1), unscaled = rope_frequencies(plain, 1);
  for (size_t j = 0; j < scaled.inv_freq.size(); ++j) out.push_back(unscaled.inv_freq[j] / scaled.inv_freq[j]);
  return out;
}

void GgufExport::settings(GgufWriter& out) const {
  const ModelConfig& c = source_.config();
  const std::string arch = arch_->arch, type = arch_->model_type;
  const auto number = [&](const char* key, int64_t v) { out.set_u32(arch + "." + key, static_cast<uint32_t>(v)); };
  const auto real = [&](const char* key, double v) { out.set_f32(arch + "." + key, static_cast<float>(v)); };
  out.set_string("general.architecture", arch);
  out.set_string("general.type", "model");
  std::string name = source_.path();
  while (!name.empty() && name.back() == '/') name.pop_back();
  out.set_string("general.name", name.substr(name.rfind('/') + 1));
  out.set_u32("general.file_type", file_type(type_));
  out.set_u32("general.quantization_version", 2);
  number("vocab_size", c.vocab_size);
  number("context_length", c.max_positions);
  number("embedding_length", c.hidden);
  number("block_count", c.n_layers);
  number("feed_forward_length", c.intermediate);
  number("attention.head_count", c.n_heads);
  number("attention.head_count_kv", c.n_kv_heads);
  if (c.head_dim * c.n_heads != c.hidden || arch.rfind("gemma", 0) == 0 || type == "qwen3") {
    number("attention.key_length", c.head_dim);
    number("attention.value_length", c.head_dim);
  }
  real(c.norm == NormKind::rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon", c.norm_eps);
  if (c.positions == PositionKind::rope) {
    number("rope.dimension_count", c.rope.dims);
    real("rope.freq_base", c.rope.theta);
    switch (c.rope.scaling) {
      case RopeScaling::none:
      case RopeScaling::llama3:
        break;
      case RopeScaling::linear:
        out.set_string(arch + ".rope.scaling.type", "linear");
        real("rope.scaling.factor", c.rope.factor);
        break;
      case RopeScaling::yarn:
        out.set_string(arch + ".rope.scaling.type", "yarn");
        real("rope.scaling.factor", c.rope.factor);
        number("rope.scaling.original_context_length", c.rope.original_max_positions);
        if (!c.rope.truncate || c.rope.beta_fast != 32 || c.rope.beta_slow != 1 ||
            (c.rope.attention_factor > 0 &&
             std::fabs(c.rope.attention_factor - (0.1 * std::log(c.rope.factor) + 1)) > 1e-6))
          no_place(source_, "yarn with settings of its own");
        break;
      case RopeScaling::longrope: {
        number("rope.scaling.original_context_length", c.rope.original_max_positions);
        real("rope.scaling.attn_factor", c.rope.attention_factor > 0 ? c.rope.attention_factor : 1.0);
        break;
      }
      case RopeScaling::dynamic:
        no_place(source_, "dynamic rotary scaling");
    }
  } else if (c.positions == PositionKind::alibi && type != "bloom") {
    no_place(source_, "a " + type + " model with alibi");
  }
  if (type == "mixtral" || c.n_experts > 0) {
    number("expert_count", c.n_experts);
    number("expert_used_count", c.n_experts_used);
  }
  if (type == "gpt_neox" || type == "stablelm") out.set_bool(arch + ".use_parallel_residual", c.parallel_residual);
  if (type == "falcon") out.set_string("falcon.tensor_data_layout", "jploski");
  if (type == "olmo" && c.qkv_clip > 0) real("attention.clamp_kqv", c.qkv_clip);
  if (type == "cohere") {
    real("logit_scale", c.logit_scale);
    out.set_string("command-r.rope.scaling.type", "none");
  }
  if ((type == "gemma2" || type == "gemma3_text" || type == "starcoder2") && c.window > 0)
    number("attention.sliding_window", c.window);
  if (type == "phi3")
    number("attention.sliding_window", c.window > 0 ? c.window : c.max_positions);  // llama.cpp insists on it
  if (type == "mistral" && c.window > 0 && c.window < c.max_positions)
    no_place(source_, "a window of attention in a mistral model");
  if (type == "gemma2" && c.attn_softcap > 0) real("attn_logit_softcapping", c.attn_softcap);
  if ((type == "gemma2" || type == "gemma3_text") && c.logit_softcap > 0) real("final_logit_softcapping", c.logit_softcap);
  if (type == "bert") {
    out.set_bool("bert.attention.causal", false);
    const EmbedRecipe recipe = read_embed_recipe(source_.path());
    const uint32_t pooling = pooling_number(recipe);
    if (pooling == 0)
      throw Error(ErrorCode::unsupported, fmt::format("{}: GGUF has no place for this pooling: {}", source_.path(), describe(recipe)),
                  "supported: mean, cls or lasttoken, without Dense modules");
    out.set_u32("bert.pooling_type", pooling);
    out.set_u32("tokenizer.ggml.token_type_count", static_cast<uint32_t>(c.token_types));
  }
}

void GgufExport::write_tensor(GgufWriter& out, const GgufExportTensor& t) const {
  const ModelConfig& c = source_.config();
  const GgmlTypeInfo& info = ggml_type_info(t.type);
  const bool row_major = t.dims.size() > 1;
  for (const SourceTensor* part : t.parts) {
    const int64_t rows = part->shape.empty()                               ? 1
                         : t.change == GgufChange::transposed && row_major ? part->shape[1]
                                                                           : part->shape[0];
    const int64_t width = row_major && t.change != GgufChange::head_norms ? t.dims[0] : 1;
    const auto row_bytes = static_cast<size_t>(width / info.elements * info.bytes);
    // GGUF's row map[r] is row r here.
    std::vector<int32_t> from(static_cast<size_t>(rows));
    const std::vector<int32_t> map = gguf_row_map(t.change, {c.n_heads, c.n_kv_heads, c.head_dim}, rows);
    for (int64_t r = 0; r < rows; ++r)
      from[map.empty() ? static_cast<size_t>(r) : static_cast<size_t>(map[static_cast<size_t>(r)])] =
          static_cast<int32_t>(r);
    if (part->coded && info.elements > 1) {
      // Weights that already lie on this grid keep their codes.
      const CodedLinear q = source_.read_codes(*part);
      std::vector<std::byte> blocks(static_cast<size_t>(rows) * row_bytes);
      if (encode_ggml_codes(t.type, q, blocks.data())) {
        for (int32_t r : from) out.write(t.name, &blocks[static_cast<size_t>(r) * row_bytes], row_bytes);
        continue;
      }
    }
    const std::vector<float> values = source_.read_f32(*part);
    if (info.elements == 1 && width == 1) {
      std::vector<std::byte> bytes(values.size() * static_cast<size_t>(info.bytes));
      std::vector<float> ordered(values.size());
      for (size_t r = 0; r < values.size(); ++r)
        ordered[r] = values[static_cast<size_t>(from[r])] + (t.change == GgufChange::plus_one ? 1.0f : 0.0f);
      encode_ggml(t.type, ordered.data(), static_cast<int64_t>(ordered.size()), bytes.data(), t.name);
      out.write(t.name, bytes.data(), bytes.size());
      continue;
    }
    std::vector<std::byte> bytes(row_bytes);
    std::vector<float> row(static_cast<size_t>(width));
    for (int32_t r : from) {
      if (t.change == GgufChange::transposed)
        for (int64_t k = 0; k < width; ++k) row[static_cast<size_t>(k)] = values[static_cast<size_t>(k * rows + r)];
      else
        std::copy_n(&values[static_cast<size_t>(r * width)], width, row.data());
      encode_ggml(t.type, row.data(), width, bytes.data(), part->name);
      out.write(t.name, bytes.data(), bytes.size());
    }
  }
}

std::vector<std::string> GgufExport::write(const std::string& path, const std::string& tokenizer,
                                           const std::function<void(uint64_t)>& progress) const {
  GgufWriter out(path);
  settings(out);
  std::vector<std::string> warnings;
  if (const GgufModel* from = source_.gguf()) {
    const GgufFile& f = from->file();
    for (const std::string& key : f.keys()) {
      if (key.rfind("tokenizer.", 0) != 0) continue;
      const GgufEntry& e = *f.find(key);
      if (e.type == GgufType::string) {
        out.set_string(key, *f.get_string(key));
      } else if (e.type == GgufType::boolean) {
        out.set_bool(key, *f.get_bool(key));
      } else if (e.type != GgufType::array) {
        if (e.type == GgufType::f32)
          out.set_f32(key, static_cast<float>(*f.get_float(key)));
        else
          out.set_u32(key, static_cast<uint32_t>(*f.get_int(key)));
      } else if (e.element == GgufType::string) {
        std::vector<std::string> copy;
        for (std::string_view s : f.get_strings(key)) copy.emplace_back(s);
        out.set_strings(key, copy);
      } else if (e.element == GgufType::f32) {
        out.set_floats(key, f.get_floats(key));
      } else {
        std::vector<int32_t> copy;
        for (int64_t v : f.get_ints(key)) copy.push_back(static_cast<int32_t>(v));
        out.set_ints(key, copy);
      }
    }
  } else if (!tokenizer.empty()) {
    warnings = write_gguf_tokenizer(out, tokenizer, source_.config());
  }
  // Factors of rotary frequencies are tensors.
  std::vector<std::pair<std::string, std::vector<float>>> factors;
  if (const std::vector<float> f = rope_factors(); !f.empty()) factors.emplace_back("rope_freqs.weight", f);
  const RopeConfig& r = source_.config().rope;
  if (source_.config().positions == PositionKind::rope && r.scaling == RopeScaling::longrope) {
    if (r.short_factors == r.long_factors) {
      factors.emplace_back("rope_freqs.weight", std::vector<float>(r.long_factors.begin(), r.long_factors.end()));
    } else {
      factors.emplace_back("rope_factors_long.weight",
                           std::vector<float>(r.long_factors.begin(), r.long_factors.end()));
      factors.emplace_back("rope_factors_short.weight",
                           std::vector<float>(r.short_factors.begin(), r.short_factors.end()));
    }
  }
  for (const auto& [name, values] : factors) out.declare(name, {static_cast<int64_t>(values.size())}, GgmlType::f32);
  for (const GgufExportTensor& t : tensors_) out.declare(t.name, t.dims, t.type);
  for (const auto& [name, values] : factors) out.write(name, values.data(), values.size() * sizeof(float));
  uint64_t done = 0;
  for (const GgufExportTensor& t : tensors_) {
    write_tensor(out, t);
    done += t.bytes();
    if (progress) progress(done);
  }
  out.finish();
  // The file is read back: what GGUF has no key for shows as another model.
  std::string changed;
  try {
    changed = difference(source_.config(), ModelSource(path).config());
  } catch (const Error& e) {
    changed = e.what();
  }
  if (!changed.empty()) {
    std::remove(path.c_str());
    no_place(source_, changed);
  }
  return warnings;
}

}  // namespace thimble
