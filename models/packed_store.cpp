#include "models/packed_store.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>
#include <optional>
#include <set>
#include <sstream>

#include "models/io/quant_config.h"
#include "models/io/safetensors.h"
#include "models/loader.h"
#include "models/model_source.h"
#include "models/unpack.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kVersion = 1;
constexpr const char* kMethod = "thimble";
constexpr uint64_t kAlignment = 64;  // of tiles in memory: a step is a cache line
constexpr const char* kDamaged = "the file is damaged, or config.json belongs to another model; convert it again";

constexpr const char* kKinds[] = {"zero_points", "symmetric", "minimum"};

std::string tiling_text(const Weight& w) {
  return fmt::format("{} {} {}{}", format_name(w.format), w.group > 0 ? "g" + std::to_string(w.group) : "row",
                     kKinds[static_cast<int>(w.kind)],
                     w.kind == GroupKind::symmetric ? " " + std::to_string(w.zero) : "");
}

// Whole numbers from min to max without sign.
std::optional<int64_t> number(std::string_view text, int64_t min, int64_t max) {
  int64_t value = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc() || end != text.data() + text.size() || value < min || value > max) return std::nullopt;
  return value;
}

// Fills format, group, kind and zero; false when the text is none of tiling_text().
bool parse_tiling(const std::string& text, Weight* w) {
  std::vector<std::string> words;
  std::istringstream in(text);
  for (std::string word; in >> word;) words.push_back(word);
  if (words.size() < 3) return false;
  const WeightFormat formats[] = {WeightFormat::q8, WeightFormat::q4, WeightFormat::q2};
  const auto* format = std::find_if(std::begin(formats), std::end(formats),
                                    [&](WeightFormat f) { return words[0] == format_name(f); });
  const auto* kind = std::find(std::begin(kKinds), std::end(kKinds), words[2]);
  if (format == std::end(formats) || kind == std::end(kKinds)) return false;
  w->format = *format;
  w->kind = static_cast<GroupKind>(kind - kKinds);
  if (words[1] != "row") {
    const auto group = words[1][0] == 'g' ? number(std::string_view(words[1]).substr(1), 1, int64_t{1} << 40) : std::nullopt;
    if (!group || *group % tile_col_align(w->format) != 0) return false;
    w->group = *group;
  }
  if (w->kind == GroupKind::symmetric) {
    const auto zero = words.size() > 3 ? number(words[3], 0, 255) : std::nullopt;
    if (!zero) return false;
    w->zero = static_cast<uint8_t>(*zero);
  }
  return tiling_text(*w) == text;
}

// The tensors of a weight in the file.
struct Part {
  std::string name;
  SafetensorsDtype dtype;
  std::vector<int64_t> shape;
  const void* data;
  size_t bytes;
};
std::vector<Part> parts_of(const std::string& name, const Weight& w) {
  if (!is_tiled(w.format)) return {{name, dtype_of(w.format), {w.rows, w.cols}, w.data, w.stored_bytes()}};
  const TileGeometry g = w.geometry();
  const SafetensorsDtype scale = w.scale_f32 ? SafetensorsDtype::f32 : SafetensorsDtype::f16;
  std::vector<Part> parts = {
      {name + ".codes", SafetensorsDtype::u8, {g.tiles, g.steps, 64}, w.data, g.code_bytes},
      {name + ".scales", scale, {g.tiles, g.groups, kTileRows}, w.scales, g.scale_bytes}};
  if (w.kind == GroupKind::zero_points)
    parts.push_back({name + ".zeros", SafetensorsDtype::u8, {g.tiles, g.groups, kTileRows}, w.zeros, g.offset_bytes});
  if (w.kind == GroupKind::minimum)
    parts.push_back({name + ".mins", scale, {g.tiles, g.groups, kTileRows}, w.mins, g.offset_bytes});
  if (w.perm) parts.push_back({name + ".perm", SafetensorsDtype::i32, {w.cols}, w.perm, size_t(w.cols) * 4});
  return parts;
}

// Takes the weights twice: declare() all, then start() and write() all. What fails leaves no folder behind.
class StoreWriter {
 public:
  StoreWriter(const std::string& dir, const KernelTable& kernels) : dir_(dir), kernels_(kernels) {}
  ~StoreWriter() {
    if (!writer_) return;
    writer_.reset();
    if (fresh_) ::rmdir(dir_.c_str());
  }

  // dtype: of a vector.
  void declare(const ModelConfig& config, Role role, int64_t place, const Weight& w, SafetensorsDtype dtype) {
    const std::string name = weight_name(role, place);
    std::vector<Part> parts;
    if (role_shape(config, role).vector)
      parts.push_back({name, dtype, {w.cols}, nullptr, size_t(w.cols * safetensors_dtype_bits(dtype) / 8)});
    else
      parts = parts_of(name, w);
    for (Part& part : parts) {
      bytes_ += static_cast<int64_t>(part.bytes);
      part.data = nullptr;
      declared_.push_back(std::move(part));
    }
    if (is_tiled(w.format)) tilings_[name] = tiling_text(w);
  }

  void start() {
    fresh_ = !is_directory(dir_);
    make_directories(dir_);
    writer_.emplace(join_path(dir_, "model.safetensors"), kAlignment);
    writer_->set_metadata("format", kMethod);
    for (const auto& [name, text] : tilings_) writer_->set_metadata(name, text);
    for (const Part& part : declared_) writer_->declare(part.name, part.dtype, part.shape);
  }

  void write(const ModelConfig& config, Role role, int64_t place, const Weight& w, SafetensorsDtype dtype) {
    const std::string name = weight_name(role, place);
    if (!role_shape(config, role).vector) {
      for (const Part& part : parts_of(name, w)) writer_->write(part.name, part.data, part.bytes);
      return;
    }
    std::string bytes(size_t(w.cols * safetensors_dtype_bits(dtype) / 8), '\0');
    write_floats(kernels_, w.f32(), w.cols, dtype, bytes.data());
    writer_->write(name, bytes.data(), bytes.size());
  }

  void finish(const ModelConfig& model, Json config, const Json& provenance, bool bare_names) {
    for (const char* key : {"quantization_config", "compression_config"}) config.erase(key);
    Json statement = {{"quant_method", kMethod}, {"version", kVersion}};
    // Weights of a llama2.c file keep the order of their rows.
    if (model.rope.interleaved != model.rope.hf_interleaved) statement["rope_interleaved"] = model.rope.interleaved;
    if (bare_names) statement["bare_names"] = true;
    if (!provenance.empty()) statement["thimble"] = provenance;
    config["quantization_config"] = statement;
    write_file(join_path(dir_, "config.json"), config.dump(2) + "\n");
    writer_->finish();
    writer_.reset();
  }

  int64_t bytes() const { return bytes_; }
  int64_t tensors() const { return static_cast<int64_t>(declared_.size()); }

 private:
  std::string dir_;
  const KernelTable& kernels_;
  std::vector<Part> declared_;
  std::map<std::string, std::string> tilings_;
  std::optional<SafetensorsWriter> writer_;
  bool fresh_ = false;  // dir_ was made here
  int64_t bytes_ = 0;
};

class StoreLoader {
 public:
  StoreLoader(Model& model, const SafetensorsSet& set, const LoadOptions& options)
      : model_(model), set_(set), options_(options) {}

  void run() {
    // No config says whether an encoder has a pooler.
    if (!set_.has(weight_name(Role::pooler_w, -1)) && !tiling(weight_name(Role::pooler_w, -1))) model_.config.pooler = false;
    model_.weights.resize(model_.config);
    for_each_tensor(model_.config, model_.family->tensors, [&](const TensorRule& rule, int64_t place, int64_t) {
      for (Role role : rule.roles)
        if (Weight& w = model_.weights.at(role, place); !w) load(role, place, w);
    });
    refuse_unused();
    std::vector<std::pair<int64_t, std::string>> order;
    for (const auto& [text, bytes] : tilings_) order.emplace_back(bytes, text);
    std::sort(order.rbegin(), order.rend());
    model_.quantization = kMethod;
    for (size_t i = 0; i < order.size(); ++i) model_.quantization += (i ? " + " : " ") + order[i].second;
  }

 private:
  [[noreturn]] void refuse(const std::string& what, const char* hint = kDamaged) const {
    throw Error(ErrorCode::input, set_.path() + ": " + what, hint);
  }

  const std::string* tiling(const std::string& name) const {
    const auto it = set_.metadata().find(name);
    return it == set_.metadata().end() ? nullptr : &it->second;
  }

  void load(Role role, int64_t place, Weight& w) {
    const RoleShape shape = role_shape(model_.config, role);
    const std::string name = weight_name(role, place);
    w.rows = shape.rows;
    w.cols = shape.cols;
    if (const std::string* text = tiling(name))
      load_tiles(name, *text, shape.vector, w);
    else
      load_rows(name, shape.vector, w);
  }

  TensorView take(const std::string& name, const std::vector<int64_t>& shape) {
    const TensorView view = set_.find_view(name);
    if (!view) refuse(fmt::format("tensor {} is missing: expected shape [{}]", name, fmt::join(shape, ", ")));
    if (view.info->shape != shape)
      refuse(fmt::format("tensor {} has shape [{}]: config.json implies [{}]", name, fmt::join(view.info->shape, ", "),
                         fmt::join(shape, ", ")));
    used_.insert(name);
    return view;
  }

  void expect_dtype(const TensorView& view, SafetensorsDtype dtype) const {
    if (view.info->dtype != dtype)
      refuse(fmt::format("tensor {} has dtype {}: expected {}", view.info->name,
                         safetensors_dtype_name(view.info->dtype), safetensors_dtype_name(dtype)));
  }

  // The bytes where they are, or a copy when another writer has put them at an odd place.
  const void* place(const TensorView& view, size_t alignment) {
    if (reinterpret_cast<uintptr_t>(view.data) % alignment == 0) return view.data;
    void* copy = model_.store.allocate(view.info->bytes);
    std::memcpy(copy, view.data, view.info->bytes);
    return copy;
  }

  void load_rows(const std::string& name, bool vector, Weight& w) {
    const TensorView view = take(name, vector ? std::vector<int64_t>{w.cols} : std::vector<int64_t>{w.rows, w.cols});
    const SafetensorsDtype dtype = view.info->dtype;
    if (dtype != SafetensorsDtype::f16 && dtype != SafetensorsDtype::bf16) expect_dtype(view, SafetensorsDtype::f32);
    if (options_.trainable || (vector && dtype != SafetensorsDtype::f32)) {
      void* copy = model_.store.allocate(size_t(w.numel()) * sizeof(float));
      view.read_f32(static_cast<float*>(copy));
      w.data = copy;
      return;
    }
    w.format = dtype == SafetensorsDtype::f16    ? WeightFormat::f16
               : dtype == SafetensorsDtype::bf16 ? WeightFormat::bf16
                                                 : WeightFormat::f32;
    w.data = place(view, size_t(format_bits(w.format)) / 8);
  }

  void load_tiles(const std::string& name, const std::string& text, bool vector, Weight& w) {
    if (vector || !parse_tiling(text, &w))
      refuse(fmt::format("metadata {}: {} is no layout of this weight", name, quote_for_message(text)),
             "expected for a matrix: q8, q4 or q2; row or g and a multiple of 8 columns (q2: 16); zero_points, minimum, or "
             "symmetric with a zero point up to 255");
    tiled_.insert(name);
    const TileGeometry plain = w.geometry();
    const TensorView codes = take(name + ".codes", {plain.tiles, plain.steps, 64});
    expect_dtype(codes, SafetensorsDtype::u8);
    const TensorView scales = take(name + ".scales", {plain.tiles, plain.groups, kTileRows});
    if (scales.info->dtype != SafetensorsDtype::f16) expect_dtype(scales, SafetensorsDtype::f32);
    w.scale_f32 = scales.info->dtype == SafetensorsDtype::f32;
    const size_t scale_size = w.scale_f32 ? 4 : 2;
    const void* data = place(codes, kAlignment);
    w.scales = place(scales, scale_size);
    check_padding(w, scales, w.scales, scale_size);
    if (w.kind == GroupKind::zero_points) {
      const TensorView zeros = take(name + ".zeros", {plain.tiles, plain.groups, kTileRows});
      expect_dtype(zeros, SafetensorsDtype::u8);
      w.zeros = reinterpret_cast<const uint8_t*>(zeros.data);
    }
    if (w.kind == GroupKind::minimum) {
      const TensorView mins = take(name + ".mins", {plain.tiles, plain.groups, kTileRows});
      expect_dtype(mins, scales.info->dtype);
      w.mins = place(mins, scale_size);
      check_padding(w, mins, w.mins, scale_size);
    }
    if (set_.has(name + ".perm")) {
      const TensorView perm = take(name + ".perm", {w.cols});
      expect_dtype(perm, SafetensorsDtype::i32);
      w.perm = static_cast<const int32_t*>(place(perm, sizeof(int32_t)));
      check_order(w, name);
    }
    w.data = data;  // last: this makes the weight one that is there
    tilings_[text] += static_cast<int64_t>(w.stored_bytes());
  }

  // Products with the transposed matrix add padding rows, too, with zeros as their factors: no NaN may lie there.
  void check_padding(const Weight& w, const TensorView& view, const void* values, size_t size) const {
    const TileGeometry g = w.geometry();
    if (w.rows % kTileRows == 0) return;
    static constexpr char kZeros[4] = {};
    const auto* last = static_cast<const char*>(values) + size_t((g.tiles - 1) * g.groups * kTileRows) * size;
    for (int64_t k = 0; k < g.groups; ++k)
      for (int64_t lane = w.rows % kTileRows; lane < kTileRows; ++lane)
        if (std::memcmp(last + size_t(k * kTileRows + lane) * size, kZeros, size) != 0)
          refuse(fmt::format("tensor {}: padding row {} of the last tile is not 0", view.info->name, lane));
  }

  void check_order(const Weight& w, const std::string& name) const {
    std::vector<bool> seen(static_cast<size_t>(w.cols));
    for (int64_t c = 0; c < w.cols; ++c) {
      const int32_t from = w.perm[c];
      if (from < 0 || from >= w.cols || seen[static_cast<size_t>(from)])
        refuse(fmt::format("tensor {}.perm: entry {} is {}: expected every column from 0 to {} once", name, c, from, w.cols - 1));
      seen[static_cast<size_t>(from)] = true;
    }
  }

  void refuse_unused() const {
    for (const std::string& name : set_.names())
      if (used_.count(name) == 0)
        refuse(fmt::format("tensor {} is not used by a {} model with this config.json", quote_for_message(name), model_.config.family));
    for (const auto& [key, value] : set_.metadata())
      if (key != "format" && tiled_.count(key) == 0)
        refuse(fmt::format("metadata {}: a {} model with this config.json has no such weight", quote_for_message(key), model_.config.family));
  }

  Model& model_;
  const SafetensorsSet& set_;
  const LoadOptions& options_;
  std::set<std::string> used_, tiled_;
  std::map<std::string, int64_t> tilings_;
};

}  // namespace

bool is_packed_store(const std::string& dir) {
  if (!is_directory(dir) || !file_exists(join_path(dir, "config.json"))) return false;
  const std::optional<QuantStatement> statement = read_quant_statement(dir);
  return statement && statement->method == kMethod;
}

StoreStatement packed_store_statement(const std::string& dir) {
  const std::optional<QuantStatement> found = read_quant_statement(dir);
  THIMBLE_CHECK(found.has_value());
  const JsonObject object = found->object();
  StoreStatement s;
  s.version = object.require_int("version", 1, INT64_MAX);
  if (s.version != kVersion)
    throw Error(ErrorCode::unsupported,
                fmt::format("{}: version {} of the packed store: this program reads {}", found->file, s.version, kVersion),
                "use the thimble that wrote it, or convert the original again");
  if (object.has("rope_interleaved")) s.rope_interleaved = object.get_bool("rope_interleaved", false);
  s.bare_names = object.get_bool("bare_names", false);
  return s;
}

Model load_packed_store(const std::string& dir, const LoadOptions& options) {
  const std::string config_path = join_path(dir, "config.json");
  const nlohmann::json json = parse_json_file(config_path);
  Model m = start_model(dir, JsonObject(json, config_path), options);
  if (const std::optional<bool> pairs = packed_store_statement(dir).rope_interleaved) m.config.rope.interleaved = *pairs;
  auto set = std::make_unique<SafetensorsSet>(dir);
  m.file_bytes = static_cast<int64_t>(set->file_bytes());
  StoreLoader(m, *set, options).run();
  m.source = std::move(set);
  return m;
}

StoreReport write_packed_store(const std::string& dir, const Model& model, const KernelTable& kernels, Json config,
                               const Json& provenance) {
  StoreReport report;
  StoreWriter writer(dir, kernels);
  for_each_weight(model.weights, [&](Role role, int64_t place, const Weight& w) {
    report.kept += is_packable(model.config, role) && is_tiled(w.format);
    writer.declare(model.config, role, place, w, SafetensorsDtype::f32);
  });
  writer.start();
  for_each_weight(model.weights, [&](Role role, int64_t place, const Weight& w) {
    writer.write(model.config, role, place, w, SafetensorsDtype::f32);
  });
  writer.finish(model.config, std::move(config), provenance, false);
  report.bytes = writer.bytes();
  report.tensors = writer.tensors();
  return report;
}

StoreReport import_packed_store(const std::string& dir, const ModelSource& source, const KernelTable& kernels,
                                const StoreImport& options) {
  StoreReport report;
  StoreWriter writer(dir, kernels);
  std::map<std::pair<Role, int64_t>, SafetensorsDtype> dtypes;
  for (const SourceTensor& t : source.tensors())
    for (Role role : t.rule->roles)
      if (t.dtype == SafetensorsDtype::f16 || t.dtype == SafetensorsDtype::bf16) dtypes[{role, t.layer}] = t.dtype;
  int64_t done = 0, total = 0;
  // One pass over the file: fn(config, role, place, weight, dtype) for all weights.
  const auto pass = [&](const auto& fn, bool first) {
    LoadOptions load;
    load.budget = options.budget;
    load.consume = [&](const Model& model, Role role, int64_t place, const Weight& w) {
      const bool linear = is_packable(model.config, role), rounds = linear && !is_tiled(w.format) && options.linears.bits > 0;
      const auto found = dtypes.find({role, role_is_layer(role) ? place : 0});
      const SafetensorsDtype dtype = found == dtypes.end() ? SafetensorsDtype::f32 : found->second;
      if (first) {
        ++total;
        report.kept += linear && is_tiled(w.format);
        report.rounded += rounds;
      } else if (options.progress) {
        options.progress(++done, total);
      }
      if (!rounds) return fn(model.config, role, place, w, dtype);
      const TileStorage tiles = with_context(source.path() + ": weight " + weight_name(role, place), [&] {
        return round_weight(w, kernels, options.linears, options.threads, options.budget);
      });
      fn(model.config, role, place, tiles.weight, dtype);
    };
    return load_model(source.path(), kernels, load);
  };
  pass([&](const ModelConfig& c, Role role, int64_t place, const Weight& w, SafetensorsDtype d) { writer.declare(c, role, place, w, d); }, true);
  report.bytes = writer.bytes();
  report.tensors = writer.tensors();
  if (options.dry_run) return report;
  writer.start();
  const Model model = pass([&](const ModelConfig& c, Role role, int64_t place, const Weight& w, SafetensorsDtype d) { writer.write(c, role, place, w, d); }, false);
  writer.finish(model.config, source.json(), Json::object(), source.bare_names());
  return report;
}

}  // namespace thimble
