#include "models/packed.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "models/io/safetensors.h"
#include "models/loader.h"
#include "models/quantize.h"
#include "models/unpack.h"
#include "quant/rtn.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

size_t at(int64_t i) { return static_cast<size_t>(i); }

PackedModule empty_module(const Model& model, const TensorRule& rule, int64_t layer) {
  PackedModule m;
  m.name = rule_name(rule, layer);
  m.name.resize(m.name.size() - std::strlen(".weight"));
  m.transposed = layout_is_transposed(rule.layout);
  for (Role role : rule.roles) m.out += model.weights.at(role, layer).rows;
  m.in = model.weights.at(rule.roles[0], layer).cols;
  return m;
}

PackedModule unpack_tiles(const Model& model, const TensorRule& rule, int64_t layer, const WeightSpec& spec) {
  CodedLinear q = unpack_linear(model, rule, layer);
  THIMBLE_CHECK(q.mins.empty());
  PackedModule m = empty_module(model, rule, layer);
  m.spec = spec;
  m.group = q.group_size;
  m.groups = q.groups;
  m.codes = std::move(q.codes);
  m.zeros = std::move(q.zeros);
  m.scales_f16 = std::move(q.scales_f16);
  m.scales_f32 = std::move(q.scales_f32);
  m.perm = std::move(q.perm);
  return m;
}

// The same linear from floats, rounded to nearest.
PackedModule round_module(const Model& model, const KernelTable& kernels, const TensorRule& rule, int64_t layer,
                          const WeightSpec& spec, int threads) {
  PackedModule m = empty_module(model, rule, layer);
  std::vector<float> dense(at(m.out * m.in));
  for (size_t part = 0; part < rule.roles.size(); ++part) {
    const Weight& w = model.weights.at(rule.roles[part], layer);
    std::vector<float> values(at(w.numel()));
    dequantize(kernels, w, values.data());
    for (int64_t r = 0; r < w.rows; ++r)
      std::copy_n(&values[at(r * m.in)], m.in, &dense[at(file_row(model.config, rule, part, r) * m.in)]);
  }
  QuantizedMatrix q = with_context(model.path + ": " + m.name, [&] {
    return quantize_rtn(dense.data(), m.out, m.in, spec, nullptr, threads);
  });
  m.spec = spec;
  m.group = q.group;
  m.groups = q.groups;
  m.codes = std::move(q.codes);
  m.zeros = std::move(q.zeros);
  m.scales_f16 = std::move(q.scales_f16);
  return m;
}

// The grid that a linear with codes lies on: the fewest bits of the format that hold its codes and zero points.
WeightSpec grid_of(PackedFormat format, const PackedModule& m) {
  WeightSpec spec;
  const uint8_t largest =
      std::max(*std::max_element(m.codes.begin(), m.codes.end()), *std::max_element(m.zeros.begin(), m.zeros.end()));
  spec.bits = largest < 4 ? 2 : largest < 8 ? 3 : largest < 16 ? 4 : 8;
  if (format == PackedFormat::awq) spec.bits = std::max(spec.bits, 4);
  if (format == PackedFormat::int_quantized) spec.bits = 8;
  spec.group = m.groups > 1 ? m.group : 0;
  spec.symmetric = std::all_of(m.zeros.begin(), m.zeros.end(), [&](uint8_t z) { return z == 1 << (spec.bits - 1); });
  return spec;
}

// A tensor of the file to write.
struct Entry {
  const TensorRule* rule;
  int64_t layer, block;
  bool linear;                     // of a layer; embeddings, heads and routers are not rounded
  std::optional<WeightSpec> spec;  // of a quantized one
  bool round;                      // from floats
};

std::vector<Entry> entries_of(const Model& model) {
  std::vector<Entry> entries;
  for_each_tensor(model.config, model.family->tensors, [&](const TensorRule& rule, int64_t l, int64_t block) {
    if (model.weights.at(rule.roles[0], l))
      entries.push_back(
          {&rule, l, block, is_packable(model.config, rule.roles[0]), std::nullopt, false});
  });
  return entries;
}

void refuse_module(PackedFormat format, const PackedModule& m) {
  const std::string why = cannot_hold(format, m);
  if (why.empty()) return;
  throw Error(ErrorCode::unsupported, fmt::format("--format {}: {}: {}", packed_format_name(format), m.name, why),
              "choose another --spec or another --format; gptq holds every shape");
}

// Writes config.json and model.safetensors, or only counts the bytes.
class PackedWriter {
 public:
  PackedWriter(const Model& model, const KernelTable& kernels, std::vector<Entry> entries, const PackedOptions& options)
      : model_(model), kernels_(kernels), entries_(std::move(entries)), options_(options) {}

  int64_t tensors() const { return tensors_; }

  int64_t run(const std::string& dir, Json config) {
    const bool was_there = options_.dry_run || is_directory(dir);
    try {
      return write_all(dir, std::move(config));
    } catch (...) {  // a linear that the format cannot hold leaves nothing behind
      if (!was_there) ::rmdir(dir.c_str());
      throw;
    }
  }

 private:
  int64_t write_all(const std::string& dir, Json config) {
    choose_common();
    std::optional<SafetensorsWriter> writer;
    if (!options_.dry_run) {
      make_directories(dir);
      writer.emplace(join_path(dir, "model.safetensors"));
      writer->set_metadata("format", "pt");
    }
    // Every tensor is read, whole, in both passes: its pages need not wait for the last one.
    const auto give_back = [&] {
      if (model_.source) model_.source->release_pages();
    };
    for (const Entry& e : entries_) {
      declare(e, writer ? &*writer : nullptr);
      give_back();
    }
    for (const char* key : {"quantization_config", "compression_config"}) config.erase(key);
    Json ours = options_.provenance;
    if (quantized_ && !packed_.shapes.empty()) ours["shapes"] = packed_.shapes;
    if (quantized_) {
      config["quantization_config"] = quantization_config(options_.format, packed_);
      if (!ours.empty()) config["quantization_config"]["thimble"] = ours;
    } else if (!ours.empty()) {
      config["thimble"] = ours;
    }
    if (!writer) return bytes_;
    for (const Entry& e : entries_) {
      write(e, *writer);
      give_back();
    }
    write_file(join_path(dir, "config.json"), config.dump(2) + "\n");
    writer->finish();
    return bytes_;
  }

  PackedModule module_of(const Entry& e) const {
    PackedModule m = e.round ? round_module(model_, kernels_, *e.rule, e.layer, *e.spec, options_.threads)
                             : unpack_tiles(model_, *e.rule, e.layer, *e.spec);
    m.ordered = packed_.permuted;
    refuse_module(options_.format, m);
    THIMBLE_CHECK(!m.spec.symmetric || options_.format == PackedFormat::gptq || options_.format == PackedFormat::awq ||
                  std::all_of(m.zeros.begin(), m.zeros.end(), [&](uint8_t z) { return z == 1 << (m.spec.bits - 1); }));
    return m;
  }

  // The grid of most linears stands in the config, the others have settings of their own there.
  void choose_common() {
    std::map<std::string, std::pair<int64_t, WeightSpec>> votes;
    for (const Entry& e : entries_) {
      if (!e.spec) continue;
      auto& vote = votes[e.spec->name()];
      ++vote.first;
      vote.second = *e.spec;
      packed_.permuted = packed_.permuted || (!e.round && model_.weights.at(e.rule->roles[0], e.layer).perm);
    }
    int64_t most = 0;
    for (const auto& [name, vote] : votes)
      if (vote.first > most) {
        most = vote.first;
        packed_.common = vote.second;
      }
    quantized_ = most > 0;
  }

  void declare_one(SafetensorsWriter* writer, const std::string& name, SafetensorsDtype dtype,
                   const std::vector<int64_t>& shape) {
    if (writer) writer->declare(name, dtype, shape);
    int64_t n = safetensors_dtype_bits(dtype) / 8;
    for (int64_t d : shape) n *= d;
    bytes_ += n;
    ++tensors_;
  }

  void declare(const Entry& e, SafetensorsWriter* writer) {
    const std::string name = rule_name(*e.rule, e.layer, e.block);
    if (!e.spec) {
      declare_one(writer, name, stored_dtype(model_, *e.rule, e.layer), file_shape(model_.config, *e.rule));
      const Role role = e.rule->roles[0];
      const std::string module = name.substr(0, name.size() - std::strlen(".weight"));
      if (e.linear || role == Role::router_w) packed_.dense.push_back(module);
      if (role == Role::lm_head || role == Role::project_in || role == Role::project_out)
        packed_.heads.push_back(module);
      return;
    }
    const PackedModule m = module_of(e);
    // Version 1 stores zero - 1: what others make of a zero point of 0 depends on the reader.
    packed_.v2 = packed_.v2 || std::count(m.zeros.begin(), m.zeros.end(), 0) > 0;
    if (!e.linear) packed_.lm_head = true;
    if (*e.spec != packed_.common) packed_.others.emplace_back(m.name, *e.spec);
    const std::vector<PackedTensor> tensors = pack_module(options_.format, m, false);
    for (const PackedTensor& t : tensors) declare_one(writer, t.name, t.dtype, t.shape);
    if (options_.format == PackedFormat::gptq && (tensors[0].shape[1] != m.out || tensors[3].shape[0] != m.in))
      packed_.shapes[m.name] = {m.out, m.in};
  }

  void write(const Entry& e, SafetensorsWriter& writer) {
    if (!e.spec) {
      const std::string data =
          tensor_bytes(model_, kernels_, *e.rule, e.layer, e.block, stored_dtype(model_, *e.rule, e.layer));
      writer.write(rule_name(*e.rule, e.layer, e.block), data.data(), data.size());
      return;
    }
    const PackedModule m = module_of(e);
    if (options_.progress) options_.progress(m.name);
    for (const PackedTensor& t : pack_module(options_.format, m, packed_.v2))
      writer.write(t.name, t.bytes.data(), t.bytes.size());
  }

  const Model& model_;
  const KernelTable& kernels_;
  std::vector<Entry> entries_;
  const PackedOptions& options_;
  PackedModel packed_;
  bool quantized_ = false;
  int64_t bytes_ = 0, tensors_ = 0;
};

}  // namespace

int64_t write_compressed(const std::string& dir, const Model& model, const KernelTable& kernels, Json config,
                         const CompressReport& report, const Json& provenance, PackedFormat format) {
  std::map<std::pair<int64_t, Role>, const TensorReport*> reports;
  for (const TensorReport& r : report.tensors) reports[{r.layer, r.role}] = &r;
  std::vector<Entry> entries = entries_of(model);
  for (Entry& e : entries) {
    if (!is_tiled(model.weights.at(e.rule->roles[0], e.layer).format)) continue;
    const auto r = reports.find({e.layer, e.rule->roles[0]});
    THIMBLE_CHECK(r != reports.end() && r->second->bits > 0);
    e.spec = r->second->weight_spec;
  }
  PackedOptions options;
  options.format = format;
  options.provenance = provenance;
  return PackedWriter(model, kernels, std::move(entries), options).run(dir, std::move(config));
}

void require_packed_format(const Model& model, PackedFormat format, const WeightSpec& spec, bool permuted) {
  for (const Entry& e : entries_of(model)) {
    if (!e.linear) continue;
    PackedModule m = empty_module(model, *e.rule, e.layer);
    m.spec = spec;
    m.group = group_width(spec, m.in);
    m.groups = group_count(spec, m.in);
    m.scales_f16.resize(1);
    if (permuted && m.groups > 1) m.perm.resize(1);
    refuse_module(format, m);
  }
}

PackedReport write_quantized(const std::string& dir, const Model& model, const KernelTable& kernels, Json config,
                             const PackedOptions& options) {
  PackedReport report;
  std::vector<Entry> entries = entries_of(model);
  const auto any_tiled = [&](const Entry& e) {
    return std::any_of(e.rule->roles.begin(), e.rule->roles.end(),
                       [&](Role role) { return is_tiled(model.weights.at(role, e.layer).format); });
  };
  const bool quantized =
      std::any_of(entries.begin(), entries.end(), [&](const Entry& e) { return e.linear && any_tiled(e); });
  bool symmetric = true;
  for (Entry& e : entries) {
    const bool tiled = any_tiled(e), head = e.rule->roles[0] == Role::lm_head;
    if (!e.linear && !(tiled && head && options.format == PackedFormat::gptq)) continue;
    if (!tiled) {
      if (quantized) continue;
      e.spec = options.spec;
      e.round = true;
      ++report.rounded;
      continue;
    }
    std::string why = "a grid with minima, or of several kinds";
    if (is_one_grid(model, *e.rule, e.layer) && !model.weights.at(e.rule->roles[0], e.layer).mins) {
      PackedModule m = unpack_tiles(model, *e.rule, e.layer, {});
      m.spec = grid_of(options.format, m);
      why = cannot_hold(options.format, m);
      if (why.empty()) {
        e.spec = m.spec;
        symmetric = symmetric && m.spec.symmetric;
        ++report.kept;
        continue;
      }
    }
    if (head) continue;  // in floats then
    e.spec = options.spec;
    e.round = true;
    report.requantized.push_back(rule_name(*e.rule, e.layer) + ": " + why);
  }
  // A few linears of an asymmetric model may have the middle as their zero point everywhere, or be exactly one group
  // wide: they are no grid of their own.
  std::map<int64_t, int64_t> groups;
  for (const Entry& e : entries)
    if (e.spec && !e.round && e.spec->group > 0) ++groups[e.spec->group];
  const auto most =
      std::max_element(groups.begin(), groups.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  for (Entry& e : entries) {
    if (!e.spec || e.round) continue;
    e.spec->symmetric = symmetric;
    if (e.spec->group == 0 && most != groups.end() && model.weights.at(e.rule->roles[0], e.layer).cols == most->first)
      e.spec->group = most->first;
  }
  PackedWriter writer(model, kernels, std::move(entries), options);
  report.bytes = writer.run(dir, std::move(config));
  report.tensors = writer.tensors();
  return report;
}

}  // namespace thimble
