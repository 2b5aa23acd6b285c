#include "models/gguf_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "models/io/ggml_blocks.h"
#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

std::string fill(std::string pattern, int64_t value) {
  const size_t at = pattern.find("{}");
  if (at != std::string::npos) pattern.replace(at, 2, std::to_string(value));
  return pattern;
}

// "blk.12.attn_q.weight" -> {"blk.{}.attn_q", 12, ".weight"}.
struct TensorName {
  std::string pattern, suffix;
  int64_t layer = -1;

  explicit TensorName(const std::string& name) : pattern(name) {
    for (const char* end : {".weight", ".bias"})
      if (pattern.ends_with(end)) {
        suffix = end;
        pattern.resize(pattern.size() - suffix.size());
        break;
      }
    if (pattern.rfind("blk.", 0) != 0) return;
    size_t end = 4;
    while (end < pattern.size() && pattern[end] >= '0' && pattern[end] <= '9' && end < 12) ++end;
    if (end == 4) return;
    layer = std::stoll(pattern.substr(4, end - 4));
    pattern = "blk.{}" + pattern.substr(end);
  }
};

// Tensors that say what the metadata also says, or what gguf_config() has already used.
bool is_setting(const std::string& name) {
  for (const char* known : {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
    if (name == known) return true;
  return name.ends_with(".attn_rot_embd.weight") || name.ends_with(".attn_rot_embd");
}

}  // namespace

std::string gguf_path(const std::string& path) {
  if (!is_directory(path))
    return file_exists(path) && (path.ends_with(".gguf") || GgufFile::present(path)) ? path : "";
  if (file_exists(join_path(path, "config.json"))) return {};
  std::vector<std::string> found;
  std::error_code failed;
  for (std::filesystem::directory_iterator it(path, failed), end; !failed && it != end; it.increment(failed))
    if (it->path().filename().string().ends_with(".gguf")) found.push_back(it->path().string());
  std::sort(found.begin(), found.end());
  if (found.size() > 1)
    throw Error(ErrorCode::input, fmt::format("{}: holds {} GGUF files", path, found.size()),
                "name the one to load, such as " + found[0]);
  return found.empty() ? "" : found[0];
}

class GgufModel::Coded final : public CodedSource {
 public:
  explicit Coded(const GgufModel& model) : model_(model) {
    std::map<std::string, uint64_t> bytes;
    for (const GgufTensor& t : model.file_.tensors())
      if (ggml_is_coded(t.type)) bytes[ggml_type_info(t.type).name] += t.bytes;
    std::vector<std::pair<uint64_t, std::string>> order;
    for (const auto& [name, n] : bytes) order.emplace_back(n, name);
    std::sort(order.rbegin(), order.rend());
    for (const auto& [n, name] : order) description_ += (description_.empty() ? "gguf " : " + ") + name;
  }

  bool has(const std::string& module) const override { return find(module) != nullptr; }
  std::vector<std::string> tensors(const std::string& module) const override { return {module + ".weight"}; }
  CodedLinear read(const std::string& module) const override {
    const Entry& e = *find(module);
    const int64_t in = e.tensor->dims[0];
    const std::vector<int32_t> map = model_.row_map(e);
    const int64_t rows = e.change == GgufChange::experts ? e.tensor->dims[1]
                         : map.empty()                   ? e.tensor->elements() / in
                                                         : static_cast<int64_t>(map.size());
    return read_ggml_coded(e.tensor->type, model_.data_of(e), rows, in, map);
  }
  std::string description() const override { return description_; }
  const std::vector<std::string>& warnings() const override { return warnings_; }

 private:
  const Entry* find(const std::string& module) const {
    const Entry* e = model_.find_entry(module + ".weight");
    return e && ggml_is_coded(e->tensor->type) && e->tensor->dims.size() >= 2 ? e : nullptr;
  }
  const GgufModel& model_;
  std::string description_;
  std::vector<std::string> warnings_;
};

GgufModel::GgufModel(const std::string& path, MemoryBudget* budget)
    : file_(path), config_(gguf_config(file_)), budget_(budget) {
  const std::string arch = file_.require_string("general.architecture");
  heads_.heads = file_.require_int(arch + ".attention.head_count", 1, 1 << 16);
  heads_.kv_heads = file_.get_int(arch + ".attention.head_count_kv").value_or(heads_.heads);
  if (heads_.kv_heads < 1 || heads_.heads % heads_.kv_heads != 0)
    throw Error(ErrorCode::input,
                fmt::format("{}: metadata key {}.attention.head_count_kv: {} does not divide {} heads", path, arch,
                            heads_.kv_heads, heads_.heads),
                "the file is damaged");
  heads_.head_dim = file_.get_int(arch + ".attention.key_length")
                        .value_or(file_.require_int(arch + ".embedding_length", 1, 1 << 24) / heads_.heads);
  if (heads_.head_dim < 1 || heads_.head_dim > 1 << 16)
    throw Error(ErrorCode::input, fmt::format("{}: heads of {} entries", path, heads_.head_dim), "the file is damaged");
  add_tensors(gguf_names(*find_gguf_arch(arch), file_.find_tensor("blk.0.attn_norm_2.weight") != nullptr));
  for (const auto& [name, entry] : entries_) names_.push_back(name);
  for (const GgufTensor& t : file_.tensors())
    if (ggml_is_coded(t.type)) {
      coded_ = std::make_unique<Coded>(*this);
      break;
    }
}

GgufModel::~GgufModel() = default;
const CodedSource* GgufModel::coded() const { return coded_.get(); }

void GgufModel::add_tensors(const std::vector<GgufName>& names) {
  for (const GgufTensor& t : file_.tensors()) {
    if (is_setting(t.name) || (t.name == "output.weight" && config_["tie_word_embeddings"] == true)) continue;
    if (!ggml_is_plain(t.type) && !ggml_is_coded(t.type))
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: tensor {} has type {}", file_.path(), quote_for_message(t.name),
                              ggml_type_info(t.type).name),
                  "supported: F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL; convert the model "
                  "to one of them");
    const TensorName name(t.name);
    bool used = false;
    for (const GgufName& row : names) {
      if (name.pattern != row.gguf) continue;
      used = true;
      Entry e;
      e.tensor = &t;
      e.change = row.change;
      e.shape = t.shape();
      std::string hf = name.layer >= 0 ? fill(row.hf, name.layer) : row.hf;
      const auto wrong = [&](const char* expected) {
        throw Error(ErrorCode::input,
                    fmt::format("{}: tensor {}: expected {}, found {} dimensions", file_.path(),
                                quote_for_message(t.name), expected, t.dims.size()),
                    "the file is damaged");
      };
      int64_t blocks = 1;
      if (row.change == GgufChange::experts || row.change == GgufChange::head_norms) {
        if (t.dims.size() != (row.change == GgufChange::experts ? 3 : 2)) wrong("one more for the experts or heads");
        blocks = e.shape[0];
        e.shape.erase(e.shape.begin());
        if (blocks > 1 << 16) wrong("fewer experts or heads");
      } else if (t.dims.size() == 2 && e.change == GgufChange::transposed) {
        std::swap(e.shape[0], e.shape[1]);
      } else if (e.change != GgufChange::none && e.change != GgufChange::plus_one &&
                 e.change != GgufChange::transposed) {
        const int64_t q = heads_.heads * heads_.head_dim, kv = heads_.kv_heads * heads_.head_dim;
        const int64_t expected = e.change == GgufChange::pairs_q   ? q
                                 : e.change == GgufChange::pairs_k ? kv
                                                                   : q + 2 * kv;
        const bool pairs = e.change == GgufChange::pairs_q || e.change == GgufChange::pairs_k;
        if (e.shape.empty() || e.shape.size() > 2 || e.shape[0] != expected || (pairs && heads_.head_dim % 2 != 0))
          throw Error(ErrorCode::input,
                      fmt::format("{}: tensor {} has {} rows: its heads imply {}", file_.path(),
                                  quote_for_message(t.name), e.shape.empty() ? 0 : e.shape[0], expected),
                      "the file's metadata and tensors belong to different models");
        if (e.change == GgufChange::only_q) e.shape[0] = q;
        if (e.change == GgufChange::only_k || e.change == GgufChange::only_v) e.shape[0] = kv;
      }
      for (e.block = 0; e.block < blocks; ++e.block) {
        e.name = (blocks > 1 || hf.find("{}") != std::string::npos ? fill(hf, e.block) : hf) + name.suffix;
        if (!entries_.emplace(e.name, e).second)
          throw Error(ErrorCode::input, fmt::format("{}: several tensors stand for {}", file_.path(), e.name),
                      "the file is damaged");
      }
    }
    if (!used) {  // the loader refuses what nobody uses, by this name
      Entry e;
      e.tensor = &t;
      e.name = t.name;
      e.shape = t.shape();
      entries_.emplace(e.name, e);
    }
  }
}

const GgufModel::Entry* GgufModel::find_entry(const std::string& name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : &it->second;
}

const GgufModel::Entry* GgufModel::entry_of(const std::string& gguf_name) const {
  for (const auto& [name, e] : entries_)
    if (e.tensor->name == gguf_name || e.tensor->name == gguf_name + ".weight") return &e;
  return nullptr;
}

std::vector<int32_t> GgufModel::row_map(const Entry& e) const {
  return gguf_row_map(e.change, heads_, e.shape.empty() ? 1 : e.shape[0]);
}

const std::byte* GgufModel::data_of(const Entry& e) const {
  const std::byte* data = file_.data(*e.tensor);
  if (e.change != GgufChange::experts && e.change != GgufChange::head_norms) return data;
  return data + e.tensor->bytes / static_cast<uint64_t>(e.tensor->dims.back()) * static_cast<uint64_t>(e.block);
}

TensorView GgufModel::find_view(const std::string& name) const {
  const Entry* e = find_entry(name);
  if (!e || !ggml_is_plain(e->tensor->type)) return {};
  const auto have = views_.find(name);
  if (have != views_.end()) {
    const Made& made = have->second;
    return {&made.info, made.data.bytes() ? static_cast<const std::byte*>(made.data.data()) : data_of(*e),
            file_.path()};
  }
  Made made;
  made.info.name = name;
  made.info.dtype = ggml_plain_dtype(e->tensor->type);
  made.info.shape = e->shape;
  const auto size = static_cast<size_t>(safetensors_dtype_bits(made.info.dtype)) / 8;
  const auto n = static_cast<size_t>(made.info.elements());
  made.info.bytes = n * size;
  const std::vector<int32_t> map = row_map(*e);
  const bool transposed = e->change == GgufChange::transposed && e->shape.size() == 2;
  const std::byte* from = data_of(*e);
  if (e->change == GgufChange::plus_one) {
    made.info.dtype = SafetensorsDtype::f32;
    made.info.bytes = n * sizeof(float);
    made.data = Buffer(made.info.bytes, budget_, "weights");
    decode_ggml(e->tensor->type, from, static_cast<int64_t>(n), made.data.f32());
    for (size_t i = 0; i < n; ++i) made.data.f32()[i] -= 1;
  } else if (!map.empty() && n > 0) {
    const size_t row = n / map.size() * size;
    made.data = Buffer(made.info.bytes, budget_, "weights");
    auto* to = static_cast<std::byte*>(made.data.data());
    for (size_t r = 0; r < map.size(); ++r) std::memcpy(to + r * row, from + static_cast<size_t>(map[r]) * row, row);
  } else if (transposed && n > 0) {
    const auto rows = static_cast<size_t>(e->shape[0]), cols = static_cast<size_t>(e->shape[1]);  // of the result
    made.data = Buffer(made.info.bytes, budget_, "weights");
    auto* to = static_cast<std::byte*>(made.data.data());
    for (size_t r = 0; r < rows; ++r)
      for (size_t c = 0; c < cols; ++c) std::memcpy(to + (r * cols + c) * size, from + (c * rows + r) * size, size);
  }
  const auto at = views_.emplace(name, std::move(made)).first;
  const Made& kept = at->second;
  return {&kept.info, kept.data.bytes() ? static_cast<const std::byte*>(kept.data.data()) : from, file_.path()};
}

std::vector<float> GgufModel::read_f32(const Entry& e) const {
  const GgufTensor& t = *e.tensor;
  const int64_t row = t.dims.empty() ? 1 : t.dims[0];
  const std::vector<int32_t> map = row_map(e);
  int64_t n = 1;
  for (int64_t d : e.shape) n *= d;
  std::vector<float> out(static_cast<size_t>(n));
  const std::byte* from = data_of(e);
  if (map.empty()) {
    decode_ggml(t.type, from, n, out.data());
  } else {
    const bool vector = e.shape.size() == 1;
    const int64_t width = vector ? 1 : row;
    const GgmlTypeInfo& info = ggml_type_info(t.type);
    const int64_t bytes = width / info.elements * info.bytes;
    for (size_t r = 0; r < map.size(); ++r)
      decode_ggml(t.type, from + map[r] * bytes, width, &out[r * static_cast<size_t>(width)]);
  }
  if (e.change == GgufChange::plus_one)
    for (float& v : out) v -= 1;
  if (e.change == GgufChange::transposed && e.shape.size() == 2) {
    const auto rows = static_cast<size_t>(e.shape[0]), cols = static_cast<size_t>(e.shape[1]);
    std::vector<float> turned(out.size());
    for (size_t r = 0; r < rows; ++r)
      for (size_t c = 0; c < cols; ++c) turned[r * cols + c] = out[c * rows + r];
    out = std::move(turned);
  }
  return out;
}

}  // namespace thimble
