#include "models/adapter_gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <set>

#include "models/adapter_names.h"
#include "models/io/ggml_blocks.h"
#include "models/io/gguf.h"
#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

// llama.cpp's name of a family's architecture, and whether its files hold the rows of q and k as neighbouring rotary pairs.
struct Architecture {
  const char* family;
  const char* name;
  bool paired;
};
constexpr Architecture kArchitectures[] = {
    {"llama", "llama", true},        {"mistral", "llama", true},       {"mixtral", "llama", true},      {"qwen2", "qwen2", false},
    {"qwen3", "qwen3", false},       {"gemma", "gemma", false},        {"gemma2", "gemma2", false},     {"gemma3_text", "gemma3", false},
    {"phi", "phi2", false},          {"phi3", "phi3", false},          {"stablelm", "stablelm", false}, {"gpt_neox", "gptneox", false},
    {"gpt2", "gpt2", false},         {"gpt_bigcode", "starcoder", false}, {"starcoder2", "starcoder2", false}, {"falcon", "falcon", false},
    {"bloom", "bloom", false},       {"olmo", "olmo", true},           {"olmo2", "olmo2", false},       {"cohere", "command-r", false}};

const Architecture* architecture_of(const std::string& family) {
  for (const Architecture& a : kArchitectures)
    if (family == a.family) return &a;
  return nullptr;
}

// The weight of a rule's linears in GGUF; "" when it has none of its own.
std::string gguf_weight(const TensorRule& rule, int64_t layer) {
  const char* part = nullptr;
  if (rule.roles.size() == 1) {
    switch (rule.roles[0]) {
      case Role::q_w: part = "attn_q"; break;
      case Role::k_w: part = "attn_k"; break;
      case Role::v_w: part = "attn_v"; break;
      case Role::o_w: part = "attn_output"; break;
      case Role::gate_w: part = "ffn_gate"; break;
      case Role::up_w: part = "ffn_up"; break;
      case Role::down_w: part = "ffn_down"; break;
      default: break;
    }
  } else if (rule.roles[0] == Role::q_w) {
    part = "attn_qkv";
  } else if (rule.roles[0] == Role::gate_w) {
    part = "ffn_up";
  }
  return part ? fmt::format("blk.{}.{}.weight", layer, part) : std::string();
}

// Row of the GGUF part for row r of the same part in Hugging Face's order.
int64_t gguf_row(const ModelConfig& c, bool paired, Role role, int64_t r) {
  if (!paired || (role != Role::q_w && role != Role::k_w)) return r;
  const int64_t in_head = r % c.head_dim, half = c.head_dim / 2;
  return r - in_head + 2 * (in_head % half) + in_head / half;
}

// fn(file row, row of PEFT's lora_B) over the outputs of a rule.
template <class Fn>
void for_each_row(const ModelConfig& c, bool paired, const TensorRule& rule, Fn&& fn) {
  int64_t first = 0;
  for (size_t part = 0; part < rule.roles.size(); ++part) {
    const int64_t rows = role_shape(c, rule.roles[part]).rows;
    for (int64_t r = 0; r < rows; ++r)
      fn(first + gguf_row(c, paired, rule.roles[part], r), source_row(c, rule.layout, static_cast<int>(part), r));
    first += rows;
  }
}

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
  const Architecture* known = architecture_of(c.family);
  const std::string arch = file.get_string("general.architecture").value_or("");
  if (known && arch != known->name)
    throw Error(ErrorCode::input, fmt::format("{}: key \"general.architecture\" is {}: the base model is {}", path, quote_for_message(arch), known->name),
                "the adapter belongs to another model");
  const double alpha = file.get_float("adapter.lora.alpha").value_or(0);
  GgufAdapter out;
  auto tensors = std::make_unique<MemoryTensors>(path);
  out.config.kind = AdapterKind::lora;
  out.config.alpha = alpha;
  std::vector<std::string> modules;
  std::set<std::string> used;
  const bool paired = known && known->paired;
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
      const std::string weight = gguf_weight(rule, layer);
      const GgufTensor *a = file.find_tensor(weight + ".lora_a"), *b = file.find_tensor(weight + ".lora_b");
      if (!a || !b) continue;  // half of a pair stays unused, which is reported
      const int64_t in = role_shape(c, rule.roles[0]).cols, rank = a->dims.size() == 2 ? a->dims[1] : 0;
      if (rank < 1 || rank > 1 << 16)
        throw Error(ErrorCode::input, fmt::format("{}: tensor {}: expected two dimensions, a rank of 1 to 65536", path, quote_for_message(a->name)), "");
      int64_t rows = 0;
      for (Role role : rule.roles) rows += role_shape(c, role).rows;
      const std::vector<float> theirs = matrix(*b, rows, rank);
      std::vector<float> mine(theirs.size());
      for_each_row(c, paired, rule, [&](int64_t from, int64_t to) {
        std::memcpy(&mine[static_cast<size_t>(to * rank)], &theirs[static_cast<size_t>(from * rank)], size_t(rank) * sizeof(float));
      });
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

namespace {

// The parts of a GGUF file that an adapter needs: strings, one float, F32 matrices.
class Writer {
 public:
  void text(const std::string& s) {
    number(uint64_t{s.size()});
    bytes_ += s;
  }
  template <class T>
  void number(T value) {
    char raw[sizeof value];
    std::memcpy(raw, &value, sizeof value);
    bytes_.append(raw, sizeof value);
  }
  void pad() { bytes_.resize((bytes_.size() + 31) / 32 * 32, '\0'); }
  void floats(const std::vector<float>& values) { bytes_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)); }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

}  // namespace

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
  const Architecture* arch = architecture_of(c.family);
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
      const std::string weight = gguf_weight(rule, layer);
      const int64_t rank = a->second.shape[0], rows = b.shape[0];
      const double own = double(adapter.module(layer, rule.roles[0]).scale) * double(rank);
      if (alpha == 0) alpha = own;
      const double factor = alpha != 0 ? own / alpha : 0;  // a scale of zero is written as a B of zeros
      std::vector<float> values(b.data.size());
      for_each_row(c, arch->paired, rule, [&](int64_t to, int64_t from) {
        for (int64_t k = 0; k < rank; ++k)
          values[static_cast<size_t>(to * rank + k)] =
              factor == 1 ? b.data[static_cast<size_t>(from * rank + k)] : static_cast<float>(double(b.data[static_cast<size_t>(from * rank + k)]) * factor);
      });
      matrices.push_back({weight + ".lora_a", rank, a->second.shape[1], a->second.data});
      matrices.push_back({weight + ".lora_b", rows, rank, std::move(values)});
    }

  Writer w;
  w.number(uint32_t{0x46554747});  // "GGUF"
  w.number(uint32_t{3});
  w.number(uint64_t{matrices.size()});
  const std::pair<const char*, std::string> texts[] = {{"general.architecture", arch->name}, {"general.type", "adapter"}, {"adapter.type", "lora"}};
  w.number(uint64_t{4});
  for (const auto& [key, value] : texts) {
    w.text(key);
    w.number(static_cast<uint32_t>(GgufType::string));
    w.text(value);
  }
  w.text("adapter.lora.alpha");
  w.number(static_cast<uint32_t>(GgufType::f32));
  w.number(alpha != 0 ? static_cast<float>(alpha) : 1.0f);
  uint64_t offset = 0;
  for (const Matrix& m : matrices) {
    w.text(m.name);
    w.number(uint32_t{2});
    w.number(static_cast<uint64_t>(m.cols));
    w.number(static_cast<uint64_t>(m.rows));
    w.number(static_cast<uint32_t>(GgmlType::f32));
    w.number(offset);
    offset += (m.values.size() * sizeof(float) + 31) / 32 * 32;
  }
  w.pad();
  for (const Matrix& m : matrices) {
    w.floats(m.values);
    w.pad();
  }
  write_file(path, w.bytes());
}

}  // namespace thimble
