#include "models/packed_formats.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "models/io/awq.h"
#include "models/io/compressed_tensors.h"
#include "models/io/gptq.h"
#include "models/io/half.h"
#include "tensor/error.h"

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kNames[] = {"gptq", "awq", "compressed-tensors", "int-quantized"};

size_t at(int64_t i) { return static_cast<size_t>(i); }

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

// Scales [out, groups] as the narrowest type that holds them; by_group: [groups, out].
PackedTensor scale_tensor(const std::string& name, const PackedModule& m, bool by_group) {
  PackedTensor t{name,
                 SafetensorsDtype::f16,
                 by_group ? std::vector<int64_t>{m.groups, m.out} : std::vector<int64_t>{m.out, m.groups},
                 {}};
  const auto in_order = [&](auto values) {
    if (!by_group) return values;
    auto turned = values;
    for (int64_t o = 0; o < m.out; ++o)
      for (int64_t g = 0; g < m.groups; ++g) turned[at(g * m.out + o)] = values[at(o * m.groups + g)];
    return turned;
  };
  if (!m.scales_f16.empty()) {
    t.bytes = bytes_of(in_order(m.scales_f16));
    return t;
  }
  std::vector<uint16_t> halves;
  for (float s : m.scales_f32) halves.push_back(io_detail::f32_to_bf16(s));
  const bool exact = std::equal(halves.begin(), halves.end(), m.scales_f32.begin(),
                                [](uint16_t half, float s) { return io_detail::bf16_to_f32(half) == s; });
  t.dtype = exact ? SafetensorsDtype::bf16 : SafetensorsDtype::f32;
  t.bytes = exact ? bytes_of(in_order(halves)) : bytes_of(in_order(m.scales_f32));
  return t;
}

std::vector<PackedTensor> pack_as_gptq(const PackedModule& m, bool v2) {
  // Scales go through scale_tensor unless they are padded, which only f16 ones are.
  const std::vector<uint16_t> none(m.scales_f16.empty() ? m.zeros.size() : 0);
  const GptqPacked p =
      pack_gptq(m.out, m.in, m.spec.bits, m.group, m.codes.data(), m.zeros.data(),
                m.scales_f16.empty() ? none.data() : m.scales_f16.data(), m.perm.empty() ? nullptr : m.perm.data(), v2);
  const int64_t bits = m.spec.bits;
  std::vector<PackedTensor> tensors = {
      {m.name + ".qweight", SafetensorsDtype::i32, {p.in_padded * bits / 32, p.out_padded}, bytes_of(p.qweight)},
      {m.name + ".qzeros", SafetensorsDtype::i32, {p.groups, p.out_padded * bits / 32}, bytes_of(p.qzeros)},
      {m.name + ".scales", SafetensorsDtype::f16, {p.groups, p.out_padded}, bytes_of(p.scales)},
      {m.name + ".g_idx", SafetensorsDtype::i32, {p.in_padded}, bytes_of(p.g_idx)}};
  if (m.scales_f16.empty()) tensors[2] = scale_tensor(m.name + ".scales", m, true);
  return tensors;
}

std::vector<PackedTensor> pack_as_awq(const PackedModule& m) {
  const AwqPacked p = pack_awq(m.out, m.in, m.group, m.codes.data(), m.zeros.data(), m.scales_f16.data());
  return {{m.name + ".qweight", SafetensorsDtype::i32, {m.in, m.out / 8}, bytes_of(p.qweight)},
          {m.name + ".qzeros", SafetensorsDtype::i32, {m.groups, m.out / 8}, bytes_of(p.qzeros)},
          {m.name + ".scales", SafetensorsDtype::f16, {m.groups, m.out}, bytes_of(p.scales)}};
}

std::vector<PackedTensor> pack_as_compressed(const PackedModule& m, bool bytes) {
  const int bits = m.spec.bits;
  std::vector<PackedTensor> tensors;
  if (bytes) {
    std::vector<uint8_t> codes = m.codes, zeros = m.zeros;
    for (uint8_t& c : codes) c = static_cast<uint8_t>(c - (1 << (bits - 1)));
    for (uint8_t& z : zeros) z = static_cast<uint8_t>(z - (1 << (bits - 1)));
    tensors.push_back({m.name + ".weight", SafetensorsDtype::i8, {m.out, m.in}, bytes_of(codes)});
    if (!m.spec.symmetric)
      tensors.push_back({m.name + ".weight_zero_point", SafetensorsDtype::i8, {m.out, m.groups}, bytes_of(zeros)});
  } else {
    // Codes stand in the order of the inputs.
    std::vector<uint8_t> codes = m.codes;
    if (!m.perm.empty())
      for (int64_t o = 0; o < m.out; ++o)
        for (int64_t c = 0; c < m.in; ++c) codes[at(o * m.in + m.perm[at(c)])] = m.codes[at(o * m.in + c)];
    const CtPacked p = pack_compressed(m.out, m.in, m.groups, bits, codes.data(), m.zeros.data());
    const int64_t per_word = ct_per_word(bits);
    tensors.push_back({m.name + ".weight_packed",
                       SafetensorsDtype::i32,
                       {m.out, (m.in + per_word - 1) / per_word},
                       bytes_of(p.weight)});
    tensors.push_back(
        {m.name + ".weight_shape", SafetensorsDtype::i64, {2}, bytes_of(std::vector<int64_t>{m.out, m.in})});
    if (!m.spec.symmetric)
      tensors.push_back({m.name + ".weight_zero_point",
                         SafetensorsDtype::i32,
                         {(m.out + per_word - 1) / per_word, m.groups},
                         bytes_of(p.zero_point)});
    if (m.ordered && m.spec.group > 0) {
      std::vector<int32_t> group(at(m.in));
      for (int64_t c = 0; c < m.in; ++c)
        group[at(m.perm.empty() ? c : m.perm[at(c)])] = static_cast<int32_t>(c / m.group);
      tensors.push_back({m.name + ".weight_g_idx", SafetensorsDtype::i32, {m.in}, bytes_of(group)});
    }
  }
  tensors.push_back(scale_tensor(m.name + ".weight_scale", m, false));
  return tensors;
}

Json gptq_config(const PackedModel& model) {
  Json dynamic = Json::object();
  for (const auto& [name, spec] : model.others)
    dynamic[gptq_dynamic_key(name, true)] = {
        {"bits", spec.bits}, {"group_size", spec.group > 0 ? spec.group : -1}, {"sym", spec.symmetric}};
  for (const std::string& name : model.dense) dynamic[gptq_dynamic_key(name, false)] = Json::object();
  const char* layout = model.v2 ? "gptq_v2" : "gptq";
  const bool symmetric = model.common.symmetric && std::all_of(model.others.begin(), model.others.end(),
                                                               [](const auto& o) { return o.second.symmetric; });
  Json q = {{"quant_method", "gptq"},
            {"method", "gptq"},
            {"bits", model.common.bits},
            {"group_size", model.common.group > 0 ? model.common.group : -1},
            {"sym", symmetric},
            {"desc_act", model.permuted},
            {"checkpoint_format", layout},
            {"format", layout},
            {"pack_dtype", "int32"},
            {"lm_head", model.lm_head}};
  if (!dynamic.empty()) q["dynamic"] = dynamic;
  return q;
}

Json awq_config(const PackedModel& model) {
  if (!model.others.empty())
    throw Error(ErrorCode::unsupported,
                fmt::format("--format awq: {} is {}, most linears are {}: the layout has one grid for all",
                            model.others[0].first, model.others[0].second.name(), model.common.name()),
                "use one spec for all linears, or the format gptq");
  std::vector<std::string> floats = model.dense;
  floats.insert(floats.end(), model.heads.begin(), model.heads.end());
  return {{"quant_method", "awq"},
          {"bits", 4},
          {"group_size", model.common.group > 0 ? model.common.group : -1},
          {"zero_point", true},
          {"version", "gemm"},
          {"modules_to_not_convert", floats.empty() ? Json(nullptr) : Json(floats)}};
}

Json compressed_config(const PackedModel& model, bool bytes) {
  const auto group = [&](const WeightSpec& spec, const Json& targets) {
    Json weights = {{"num_bits", spec.bits},
                    {"type", "int"},
                    {"symmetric", spec.symmetric},
                    {"strategy", spec.group > 0 ? "group" : "channel"},
                    {"group_size", spec.group > 0 ? Json(spec.group) : Json(nullptr)},
                    {"actorder", model.permuted && spec.group > 0 ? Json("group") : Json(nullptr)},
                    {"dynamic", false}};
    Json inputs;
    if (bytes)
      inputs = {{"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "token"}, {"dynamic", true}};
    return Json{
        {"targets", targets}, {"weights", weights}, {"input_activations", inputs}, {"output_activations", nullptr}};
  };
  Json groups = {{"group_0", group(model.common, {"Linear"})}};
  // One group per grid; names count before the class.
  std::vector<std::pair<WeightSpec, Json>> grids;
  for (const auto& [name, spec] : model.others) {
    const auto known =
        std::find_if(grids.begin(), grids.end(), [&, wanted = spec](const auto& g) { return g.first == wanted; });
    if (known != grids.end())
      known->second.push_back(name);
    else
      grids.push_back({spec, Json::array({name})});
  }
  for (const auto& [spec, targets] : grids) groups["group_" + std::to_string(groups.size())] = group(spec, targets);
  std::vector<std::string> ignore = model.dense;
  ignore.insert(ignore.end(), model.heads.begin(), model.heads.end());
  if (std::find(ignore.begin(), ignore.end(), "lm_head") == ignore.end()) ignore.push_back("lm_head");  // a tied one
  return {{"quant_method", "compressed-tensors"},
          {"format", bytes ? "int-quantized" : "pack-quantized"},
          {"quantization_status", "compressed"},
          {"config_groups", groups},
          {"ignore", ignore},
          {"kv_cache_scheme", nullptr}};
}

}  // namespace

const char* packed_format_name(PackedFormat format) { return kNames[static_cast<size_t>(format)]; }

PackedFormat parse_packed_format(const std::string& text, const std::string& where) {
  std::string names;
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (text == kNames[i]) return static_cast<PackedFormat>(i);
    names += (i ? ", " : "") + std::string(kNames[i]);
  }
  throw Error(ErrorCode::usage, fmt::format("{}: there is no format \"{}\"", where, text), "formats: " + names);
}

std::string cannot_hold(PackedFormat format, const PackedModule& m) {
  if (format == PackedFormat::gptq) {
    const int64_t whole = m.spec.bits == 3 ? 32 : 32 / m.spec.bits;
    if (m.scales_f16.empty() && (m.out % whole != 0 || m.in % whole != 0))
      return "scales beyond f16 in a shape that has to be padded";
    return {};
  }
  if (m.groups > 1 && m.in % m.group != 0)
    return fmt::format("{} inputs are no multiple of the group size {}", m.in, m.group);
  if (m.spec.group > m.in) return fmt::format("{} inputs are fewer than the group size {}", m.in, m.spec.group);
  if (format == PackedFormat::awq) {
    if (m.spec.bits != 4) return fmt::format("codes of {} bits: the layout has only 4", m.spec.bits);
    if (!m.perm.empty()) return "columns in act-order";
    if (m.out % 8 != 0) return fmt::format("{} outputs are no multiple of 8", m.out);
    if (m.scales_f16.empty()) return "scales beyond f16";
    return {};
  }
  if (m.transposed) return "a Conv1D, which compressed-tensors does not quantize";
  if (format == PackedFormat::int_quantized) {
    if (m.spec.bits != 8) return fmt::format("codes of {} bits: the layout is for 8", m.spec.bits);
    if (!m.perm.empty()) return "columns in act-order";
  }
  return {};
}

std::vector<PackedTensor> pack_module(PackedFormat format, const PackedModule& module, bool v2) {
  switch (format) {
    case PackedFormat::gptq:
      return pack_as_gptq(module, v2);
    case PackedFormat::awq:
      return pack_as_awq(module);
    case PackedFormat::compressed_tensors:
      return pack_as_compressed(module, false);
    case PackedFormat::int_quantized:
      return pack_as_compressed(module, true);
  }
  return {};
}

Json quantization_config(PackedFormat format, const PackedModel& model) {
  switch (format) {
    case PackedFormat::gptq:
      return gptq_config(model);
    case PackedFormat::awq:
      return awq_config(model);
    case PackedFormat::compressed_tensors:
      return compressed_config(model, false);
    case PackedFormat::int_quantized:
      return compressed_config(model, true);
  }
  return {};
}

}  // namespace thimble
