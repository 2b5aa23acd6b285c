#include "models/adapter_gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <set>

#include "models/adapter_names.h"
#include "models/gguf_arch.h"
#include "models/io/ggml_blocks.h"
#include "models/io/gguf.h"
#include "models/io/gguf_write.h"
#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

// A linear of the base in GGUF's terms: the tensor's name, and where its rows lie there.
struct GgufLinear {
  std::string name;           // "blk.0.attn_q.weight"; empty: has none
  std::vector<int32_t> rows;  // row r of Hugging Face's is rows[r]; empty: the same
};

// With q, k and v in one tensor there and three here, `fused` names that one; files are written with three.
GgufLinear gguf_linear(const GgufArch& arch, const ModelConfig& c, const TensorRule& rule, int64_t layer, bool fused) {
  const std::string pattern = std::string(rule.name).substr(0, std::strlen(rule.name) - std::strlen(".weight"));
  int64_t rows = 0;
  for (Role role : rule.roles) rows += role_shape(c, role).rows;
  for (const GgufName& n : gguf_names(arch, c.parallel_residual && !c.shared_norm)) {
    const bool part = n.change == GgufChange::only_q || n.change == GgufChange::only_k || n.change == GgufChange::only_v;
    if (pattern != n.hf || part != fused) continue;
    std::string name = n.gguf;
    if (const size_t at = name.find("{}"); at != std::string::npos) name.replace(at, 2, std::to_string(layer));
    return {name + ".weight", gguf_row_map(n.change, {c.n_heads, c.n_kv_heads, c.head_dim}, rows)};
  }
  return {};
}

// Whether the tensor holds more than this linear.
bool is_fused(const GgufLinear& linear, int64_t rows) {
  return linear.name.find(".attn_qkv.") != std::string::npos && static_cast<int64_t>(linear.rows.size()) == rows;
}

int64_t row_of(const GgufLinear& linear, int64_t r) { return linear.rows.empty() ? r : linear.rows[static_cast<size_t>(r)]; }

class MemoryTensors final : public TensorSource {
 public:
  explicit MemoryTensors(std::string path) : path_(std::move(path)) {}
  void add(const std::string& name, std::vector<int64_t> shape, std::vector<float> data) {
    TensorInfo info;
    info.name = name;
    info.dtype = SafetensorsDtype::f32;
    info.shape = std::move(shape);
    info.bytes = data.size() * sizeof(float);
    tensors_.emplace(name, Item{std::move(info), std::move(data)});
    names_.insert(std::lower_bound(names_.begin(), names_.end(), name), name);
  }
  const std::string& path() const override { return path_; }
  const std::vector<std::string>& names() const override { return names_; }
  uint64_t file_bytes() const override {
    uint64_t n = 0;
    for (const auto& [name, item] : tensors_) n += item.info.bytes;
    return n;
  }
  TensorView find_view(const std::string& name) const override {
    const auto at = tensors_.find(name);
    if (at == tensors_.end()) return {};
    return {&at->second.info, reinterpret_cast<const std::byte*>(at->second.data.data()), path_};
  }

 private:
  struct Item {
    TensorInfo info;
    std::vector<float> data;
  };
  std::string path_;
  std::vector<std::string> names_;
  std::map<std::string, Item> tensors_;
};

}  // namespace

GgufAdapter read_gguf_adapter(const Model& model, const std::string& path) {
  const GgufFile file(path);
  const ModelConfig& c = model.config;
  if (file.get_string("general.type").value_or("") != "adapter")
    throw Error(ErrorCode::input, path + ": key \"general.type\" is not adapter", "give a LoRA adapter; a model goes to --model");
  const std::string type = file.get_string("adapter.type").value_or("");
  if (type != "lora")
    throw Error(ErrorCode::unsupported, fmt::format("{}: key \"adapter.type\": {} is not supported", path, quote_for_message(type)), "supported: lora");
  const std::string named = file.get_string("general.architecture").value_or("");
  const GgufArch* arch = find_gguf_arch_of(c.family);
  if (!arch)
    throw Error(ErrorCode::unsupported, fmt::format("{}: GGUF has no architecture for the family {} of the base model", path, c.family), "give a PEFT adapter");
  if (named != arch->arch)
    throw Error(ErrorCode::input, fmt::format("{}: key \"general.architecture\" is {}: the base model is {}", path, quote_for_message(named), arch->arch),
                "the adapter belongs to another model");
  const double alpha = file.get_float("adapter.lora.alpha").value_or(0);
  GgufAdapter out;
  auto tensors = std::make_unique<MemoryTensors>(path);
  out.config.kind = AdapterKind::lora;
  out.config.alpha = alpha;
  std::vector<std::string> modules;
  std::set<std::string> used;
  const auto matrix = [&](const GgufTensor& t, int64_t rows, int64_t cols) {
    if (t.shape() != std::vector<int64_t>{rows, cols})
      throw Error(ErrorCode::input, fmt::format("{}: tensor {} has {} elements: the base model implies [{}, {}]", path, quote_for_message(t.name), t.elements(), rows, cols),
                  "the adapter belongs to another model");
    std::vector<float> values(static_cast<size_t>(rows * cols));
    decode_ggml(t.type, file.data(t), rows * cols, values.data());
    used.insert(t.name);
    return values;
  };
  for (int64_t layer = 0; layer < c.n_layers; ++layer)
    for (const TensorRule& rule : model.family->tensors) {
      const std::string module = module_path(rule, layer);
      if (module.empty() || !is_linear(rule.roles[0]) || rule_blocks(c, rule) == 0) continue;
      GgufLinear linear = gguf_linear(*arch, c, rule, layer, false);
      if (!file.find_tensor(linear.name + ".lora_a")) linear = gguf_linear(*arch, c, rule, layer, true);
      const GgufTensor *a = file.find_tensor(linear.name + ".lora_a"), *b = file.find_tensor(linear.name + ".lora_b");
      if (linear.name.empty() || !a || !b) continue;  // half of a pair stays unused, which is reported
      const int64_t in = role_shape(c, rule.roles[0]).cols, rank = a->dims.size() == 2 ? a->dims[1] : 0;
      if (rank < 1 || rank > 1 << 16)
        throw Error(ErrorCode::input, fmt::format("{}: tensor {}: expected two dimensions, a rank of 1 to 65536", path, quote_for_message(a->name)), "");
      int64_t rows = 0;
      for (Role role : rule.roles) rows += role_shape(c, role).rows;
      int64_t file_rows = rows;
      if (rule.roles.size() == 1 && is_fused(linear, rows)) file_rows = c.q_cols() + 2 * c.kv_cols();
      const std::vector<float> theirs = matrix(*b, file_rows, rank);
      std::vector<float> mine(static_cast<size_t>(rows * rank));
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(&mine[static_cast<size_t>(r * rank)], &theirs[static_cast<size_t>(row_of(linear, r) * rank)], size_t(rank) * sizeof(float));
      const std::string key = "base_model.model." + module;
      tensors->add(key + ".lora_A.weight", {rank, in}, matrix(*a, rank, in));
      tensors->add(key + ".lora_B.weight", {rows, rank}, std::move(mine));
      if (modules.empty()) out.config.rank = rank;
      if (rank != out.config.rank) out.config.ranks.add(module, double(rank), path);
      if (alpha == 0) out.config.alphas.add(module, double(rank), path);  // llama.cpp: the scale is 1
      modules.push_back(module);
    }
  std::string unused;
  for (const GgufTensor& t : file.tensors())
    if (!used.count(t.name)) unused += (unused.empty() ? "" : ", ") + quote_for_message(t.name);
  if (!unused.empty() || modules.empty())
    throw Error(ErrorCode::input, fmt::format("{}: {}", path, modules.empty() ? "no tensor adapts a linear of the base model" : "tensors that adapt no linear of the base model: " + unused),
                "the adapter belongs to another model or uses a feature that is not supported");
  out.config.targets = ModuleNames(modules);
  out.tensors = std::move(tensors);
  return out;
}

void write_gguf_adapter(const Model& model, const Adapter& adapter, const std::string& path) {
  const ModelConfig& c = model.config;
  const AdapterConfig& config = adapter.config();
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorCode::unsupported, fmt::format("{}: {} cannot be written as a GGUF adapter", path, what), "fold the adapter into its base: thimble model merge");
  };
  if (config.kind != AdapterKind::lora) refuse(fmt::format("a {} adapter", adapter_kind_name(config.kind)));
  if (config.dora) refuse("DoRA");
  if (adapter.replaces()) refuse("an adapter that replaces weights of the base");
  if (adapter.embedding().lora_a) refuse("an adapter of the embedding");
  const GgufArch* arch = find_gguf_arch_of(c.family);
  if (!arch) refuse(fmt::format("an adapter of the family {}", c.family));

  struct Matrix {
    std::string name;
    int64_t rows, cols;
    std::vector<float> values;
  };
  std::vector<Matrix> matrices;
  double alpha = 0;
  // PEFT's order of rows, whatever the base in memory has.
  std::map<std::string, ExportedTensor> exported;
  adapter.export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) { exported[t.name] = t; });
  for (int64_t layer = 0; layer < c.n_layers; ++layer)
    for (const TensorRule& rule : model.family->tensors) {
      const std::string module = module_path(rule, layer);
      if (role_is_expert(rule.roles[0]) || rule.roles[0] == Role::router_w) {
        for (int64_t e = 0; e < c.n_experts; ++e)
          if (adapter.module(expert_place(layer, e), rule.roles[0]).lora_a) refuse("an adapter of experts or their router");
        continue;
      }
      if (module.empty() || !is_linear(rule.roles[0]) || !adapter.module(layer, rule.roles[0]).lora_a) continue;
      const auto a = exported.find("base_model.model." + module + ".lora_A.weight");
      if (a == exported.end()) continue;
      const ExportedTensor& b = exported.at("base_model.model." + module + ".lora_B.weight");
      const GgufLinear linear = gguf_linear(*arch, c, rule, layer, false);
      if (linear.name.empty()) refuse(fmt::format("an adapter of {}", module));
      const int64_t rank = a->second.shape[0], rows = b.shape[0];
      const double own = double(adapter.module(layer, rule.roles[0]).scale) * double(rank);
      if (alpha == 0) alpha = own;
      const double factor = alpha != 0 ? own / alpha : 0;  // a scale of zero is written as a B of zeros
      std::vector<float> values(b.data.size());
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t to = row_of(linear, r);
        for (int64_t k = 0; k < rank; ++k) {
          const float value = b.data[static_cast<size_t>(r * rank + k)];
          values[static_cast<size_t>(to * rank + k)] = factor == 1 ? value : static_cast<float>(double(value) * factor);
        }
      }
      matrices.push_back({linear.name + ".lora_a", rank, a->second.shape[1], a->second.data});
      matrices.push_back({linear.name + ".lora_b", rows, rank, std::move(values)});
    }

  GgufWriter writer(path);
  writer.set_string("general.architecture", arch->arch);
  writer.set_string("general.type", "adapter");
  writer.set_string("adapter.type", "lora");
  writer.set_f32("adapter.lora.alpha", alpha != 0 ? static_cast<float>(alpha) : 1.0f);
  for (const Matrix& m : matrices) writer.declare(m.name, {m.cols, m.rows}, GgmlType::f32);
  for (const Matrix& m : matrices) writer.write(m.name, m.values.data(), m.values.size() * sizeof(float));
  writer.finish();
}

}  // namespace thimble
