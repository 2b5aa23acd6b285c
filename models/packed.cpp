#include "models/packed.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "models/io/gptq.h"
#include "models/io/safetensors.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

size_t at(int64_t i) { return static_cast<size_t>(i); }

// One linear of the file: the roles of a rule side by side, as rows of the file.
struct PackedModule {
  std::string name;
  int64_t out = 0, in = 0, group = 0, groups = 0;
  WeightSpec spec;
  std::vector<uint8_t> codes, zeros;
  std::vector<uint16_t> scales;
  const int32_t* perm = nullptr;
};

bool is_query_or_key(Role role) { return role == Role::q_w || role == Role::k_w; }

// Row of the file for row r of a part.
int64_t file_row(const ModelConfig& config, const TensorRule& rule, size_t part, int64_t r) {
  const int64_t row = is_query_or_key(rule.roles[part]) ? rotary_file_row(config, r) : r;
  return source_row(config, rule.layout, static_cast<int>(part), row);
}

PackedModule unpack_tiles(const Model& model, const TensorRule& rule, int64_t layer, const WeightSpec& spec) {
  PackedModule m;
  m.name = rule_name(rule, layer);
  m.name.resize(m.name.size() - std::strlen(".weight"));
  m.spec = spec;
  for (Role role : rule.roles) m.out += model.weights.at(role, layer).rows;
  const Weight& first = model.weights.at(rule.roles[0], layer);
  m.in = first.cols;
  m.group = first.group > 0 && first.group < m.in ? first.group : m.in;
  m.groups = (m.in + m.group - 1) / m.group;
  m.perm = first.perm;
  m.codes.resize(at(m.out * m.in));
  m.zeros.resize(at(m.out * m.groups));
  m.scales.resize(m.zeros.size());
  for (size_t part = 0; part < rule.roles.size(); ++part) {
    const Weight& w = model.weights.at(rule.roles[part], layer);
    THIMBLE_CHECK(w.cols == m.in && w.group == first.group && !w.scale_f32 && !w.mins && (w.perm != nullptr) == (m.perm != nullptr));
    THIMBLE_CHECK(!m.perm || std::equal(m.perm, m.perm + m.in, w.perm));
    const TileGeometry g = w.geometry();
    const auto* codes = static_cast<const uint8_t*>(w.data);
    const auto* scales = static_cast<const uint16_t*>(w.scales);
    for (int64_t r = 0; r < w.rows; ++r) {
      const int64_t to = file_row(model.config, rule, part, r), tile = r / kTileRows, lane = r % kTileRows;
      for (int64_t c = 0; c < m.in; ++c) {
        const CodePlace place = code_place(w.format, lane, c);
        const int mask = (1 << format_bits(w.format)) - 1;
        m.codes[at(to * m.in + c)] = static_cast<uint8_t>(codes[tile * g.steps * 64 + place.byte] >> place.shift & mask);
      }
      for (int64_t k = 0; k < m.groups; ++k) {
        m.scales[at(to * m.groups + k)] = scales[(tile * g.groups + k) * kTileRows + lane];
        m.zeros[at(to * m.groups + k)] = tile_zero(w, g, r, k);
      }
    }
  }
  return m;
}

SafetensorsDtype dtype_of(const Weight& w) {
  return w.format == WeightFormat::f16 ? SafetensorsDtype::f16 : w.format == WeightFormat::bf16 ? SafetensorsDtype::bf16 : SafetensorsDtype::f32;
}

// The bytes of a tensor that is not quantized, in the dtype that the model holds it in.
std::string stored_bytes_of(const Model& model, const KernelTable& kernels, const TensorRule& rule, int64_t layer, ExportedTensor t) {
  if (moves_rotary_rows(model.config) && is_query_or_key(rule.roles[0]) && t.shape.size() == 2) {
    const std::vector<float> from = t.data;
    const int64_t cols = t.shape[1];
    for (int64_t r = 0; r < t.shape[0]; ++r)
      std::copy_n(&from[at(r * cols)], cols, &t.data[at(rotary_file_row(model.config, r) * cols)]);
  }
  const Weight& w = model.weights.at(rule.roles[0], layer);
  std::string bytes(t.data.size() * (dtype_of(w) == SafetensorsDtype::f32 ? 4 : 2), '\0');
  if (w.format == WeightFormat::f16) {
    kernels.f32_to_f16({static_cast<int64_t>(t.data.size()), t.data.data(), bytes.data()});
  } else if (w.format == WeightFormat::bf16) {
    // The values are bf16 already; the conversion kernel would flush subnormal ones.
    for (size_t i = 0; i < t.data.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, &t.data[i], 4);
      const auto half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(&bytes[2 * i], &half, 2);
    }
  } else {
    std::memcpy(bytes.data(), t.data.data(), bytes.size());
  }
  return bytes;
}

}  // namespace

int64_t rotary_file_row(const ModelConfig& config, int64_t row) {
  if (!moves_rotary_rows(config)) return row;
  const int64_t d = config.rope.dims, in_head = row % config.head_dim;
  if (in_head >= d) return row;
  return row - in_head + (in_head % 2 == 0 ? in_head / 2 : d / 2 + in_head / 2);
}

int64_t write_compressed(const std::string& dir, const Model& model, const KernelTable& kernels, Json config,
                         const CompressReport& report, const Json& provenance) {
  std::map<std::pair<int64_t, Role>, const TensorReport*> reports;
  for (const TensorReport& r : report.tensors) reports[{r.layer, r.role}] = &r;

  // The grid of most linears stands in the config, the others have settings of their own there.
  std::map<std::string, std::pair<int64_t, WeightSpec>> votes;
  bool symmetric = true, zero_at_zero = false, permuted = false;
  struct Entry {
    const TensorRule* rule;
    int64_t layer, block;
    std::optional<WeightSpec> spec;  // of a quantized one
    bool linear;
  };
  std::vector<Entry> entries;
  for_each_tensor(model.config, model.family->tensors, [&](const TensorRule& rule, int64_t l, int64_t block) {
    const Weight& w = model.weights.at(rule.roles[0], l);
    if (!w) return;
    Entry e{&rule, l, block, std::nullopt, role_is_layer(rule.roles[0]) && !role_shape(model.config, rule.roles[0]).vector};
    if (is_tiled(w.format)) {
      const auto r = reports.find({l, rule.roles[0]});
      THIMBLE_CHECK(r != reports.end() && r->second->bits > 0);
      e.spec = r->second->weight_spec;
      auto& vote = votes[e.spec->name()];
      ++vote.first;
      vote.second = *e.spec;
      symmetric = symmetric && e.spec->symmetric;
      const PackedModule m = unpack_tiles(model, rule, l, *e.spec);
      zero_at_zero = zero_at_zero || std::count(m.zeros.begin(), m.zeros.end(), 0) > 0;
      permuted = permuted || m.perm;
    }
    entries.push_back(e);
  });
  std::pair<int64_t, WeightSpec> common{0, {}};
  for (const auto& [name, vote] : votes)
    if (vote.first > common.first) common = vote;
  // Version 1 stores zero - 1: what others make of a zero point of 0 depends on the reader.
  const bool quantized = common.first > 0, v2 = zero_at_zero;

  make_directories(dir);
  SafetensorsWriter writer(join_path(dir, "model.safetensors"));
  writer.set_metadata("format", "pt");
  Json shapes = Json::object(), dynamic = Json::object();
  const auto pack = [&](const Entry& e) {
    PackedModule m = unpack_tiles(model, *e.rule, e.layer, *e.spec);
    GptqPacked p = pack_gptq(m.out, m.in, m.spec.bits, m.group, m.codes.data(), m.zeros.data(), m.scales.data(), m.perm, v2);
    return std::make_pair(std::move(m), std::move(p));
  };
  int64_t bytes = 0;
  const auto declare = [&](const std::string& name, SafetensorsDtype dtype, const std::vector<int64_t>& shape) {
    writer.declare(name, dtype, shape);
    int64_t n = safetensors_dtype_bits(dtype) / 8;
    for (int64_t d : shape) n *= d;
    bytes += n;
  };
  for (const Entry& e : entries) {
    const std::string name = rule_name(*e.rule, e.layer, e.block);
    if (!e.spec) {
      const ExportedTensor t = export_tensor(model, kernels, name);
      declare(name, dtype_of(model.weights.at(e.rule->roles[0], e.layer)), t.shape);
      if (quantized && e.linear) dynamic[gptq_dynamic_key(name.substr(0, name.size() - std::strlen(".weight")), false)] = Json::object();
      continue;
    }
    const auto [m, p] = pack(e);
    const int64_t words = m.spec.bits;
    declare(m.name + ".qweight", SafetensorsDtype::i32, {p.in_padded * words / 32, p.out_padded});
    declare(m.name + ".qzeros", SafetensorsDtype::i32, {p.groups, p.out_padded * words / 32});
    declare(m.name + ".scales", SafetensorsDtype::f16, {p.groups, p.out_padded});
    declare(m.name + ".g_idx", SafetensorsDtype::i32, {p.in_padded});
    if (p.out_padded != m.out || p.in_padded != m.in) shapes[m.name] = {m.out, m.in};
    if (*e.spec != common.second)
      dynamic[gptq_dynamic_key(m.name, true)] = {{"bits", e.spec->bits},
                                                 {"group_size", e.spec->group > 0 ? e.spec->group : -1},
                                                 {"sym", e.spec->symmetric}};
  }

  config.erase("quantization_config");
  Json ours = provenance;
  if (quantized) {
    if (!shapes.empty()) ours["shapes"] = shapes;
    Json q = {{"quant_method", "gptq"},
              {"bits", common.second.bits},
              {"group_size", common.second.group > 0 ? common.second.group : -1},
              {"sym", symmetric},
              {"desc_act", permuted},
              {"checkpoint_format", v2 ? "gptq_v2" : "gptq"},
              {"pack_dtype", "int32"},
              {"lm_head", false}};
    if (!dynamic.empty()) q["dynamic"] = dynamic;
    q["thimble"] = ours;
    config["quantization_config"] = q;
  } else {
    config["thimble"] = ours;
  }
  for (const Entry& e : entries) {
    if (!e.spec) {
      ExportedTensor t = export_tensor(model, kernels, rule_name(*e.rule, e.layer, e.block));
      const std::string name = t.name, data = stored_bytes_of(model, kernels, *e.rule, e.layer, std::move(t));
      writer.write(name, data.data(), data.size());
      continue;
    }
    const auto [m, p] = pack(e);
    writer.write(m.name + ".qweight", p.qweight.data(), p.qweight.size() * 4);
    writer.write(m.name + ".qzeros", p.qzeros.data(), p.qzeros.size() * 4);
    writer.write(m.name + ".scales", p.scales.data(), p.scales.size() * 2);
    writer.write(m.name + ".g_idx", p.g_idx.data(), p.g_idx.size() * 4);
  }
  write_file(join_path(dir, "config.json"), config.dump(2) + "\n");
  writer.finish();
  return bytes;
}

}  // namespace thimble
