#include "models/io/gptq.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "models/io/packed_words.h"
#include "tensor/error.h"

namespace thimble {
namespace {

using namespace io_detail;

constexpr const char* kHint = "the quantization config and the tensors disagree; download the model again";

[[noreturn]] void unsupported(const std::string& file, const std::string& what) {
  throw Error(ErrorCode::unsupported, file + ": " + what, "save the model in the plain gptq or gptq_v2 layout");
}

// The first of several spellings that is present.
const char* spelling(const JsonObject& o, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (o.has(name)) return name;
  return *names.begin();
}

bool known_width(int64_t bits) { return bits == 2 || bits == 3 || bits == 4 || bits == 8; }

// One entry of "dynamic": a pattern of module names behind "-:" (left alone), "+:" or nothing (settings of their own).
GptqConfig::Rule parse_rule(const JsonObject& o, const GptqConfig& c, const std::string& key,
                            const nlohmann::json& value) {
  const std::string where = o.file() + ": field \"dynamic\"";
  const bool minus = key.rfind("-:", 0) == 0, plus = key.rfind("+:", 0) == 0;
  GptqConfig::Rule rule{
      NamePattern(minus || plus ? key.substr(2) : key, where), minus, c.bits, c.group_size, c.sym, c.desc_act};
  if (minus) return rule;
  const JsonObject own(value, o.file(), "dynamic." + key);
  // What decides the layout, and what only the quantizer needed. Anything else might change what the codes mean.
  static const std::set<std::string> kKnown = {
      "bits",          "group_size",      "sym",          "desc_act",
      "static_groups", "true_sequential", "damp_percent", "damp_auto_increment",
      "mse",           "act_group_aware", "v2",           "v2_alpha"};
  for (const auto& item : value.items())
    if (!kKnown.count(item.key()))
      unsupported(o.file(),
                  fmt::format("field \"dynamic\": {} sets {}", quote_for_message(key), quote_for_message(item.key())));
  rule.bits = static_cast<int>(own.get_int("bits", c.bits, 1, 32));
  rule.group_size = own.get_int("group_size", c.group_size, -1, int64_t{1} << 31);
  rule.sym = own.get_bool("sym", c.sym);
  rule.desc_act = own.get_bool("desc_act", c.desc_act);
  if (!known_width(rule.bits)) own.fail("bits", "2, 3, 4 or 8");
  if (rule.group_size == 0) own.fail("group_size", "-1 or a positive integer");
  return rule;
}

GptqConfig parse_config(const QuantStatement& statement) {
  const JsonObject o = statement.object();
  const char* format_key = spelling(o, {"format", "checkpoint_format"});
  const std::string format = lower_case(o.get_string(format_key, "gptq"));
  if (o.get_bool("is_marlin_format", false)) unsupported(o.file(), "the layout marlin is not supported");
  if (format != "gptq" && format != "gptq_v2")
    unsupported(o.file(), fmt::format("field {}: the layout {} is not supported", quote_for_message(format_key),
                                      quote_for_message(format)));
  if (const std::string pack = lower_case(o.get_string("pack_dtype", "int32")); pack != "int32")
    unsupported(o.file(), "field \"pack_dtype\": " + quote_for_message(pack) + " is not supported, only int32");

  GptqConfig c;
  c.file = o.file();
  const char* bits_key = spelling(o, {"bits", "w_bit"});
  c.bits = static_cast<int>(o.require_int(bits_key, 1, 32));
  if (!known_width(c.bits))
    unsupported(o.file(), fmt::format("field \"{}\": {} bits are not supported, only 2, 3, 4 and 8", bits_key, c.bits));
  const char* group_key = spelling(o, {"group_size", "q_group_size"});
  c.group_size = o.require_int(group_key, -1, int64_t{1} << 31);
  if (c.group_size == 0) o.fail(group_key, "-1 or a positive integer");
  c.desc_act = o.get_bool("desc_act", false);
  c.v2 = format == "gptq_v2";
  if (!o.has("sym")) c.warnings.push_back(o.file() + ": field \"sym\" is missing; taken as true");
  c.sym = o.get_bool("sym", true);
  if (const std::optional<JsonObject> dynamic = o.object("dynamic"))
    for (const std::string& key : statement.ordered_keys("dynamic")) {
      const nlohmann::json* value = &dynamic->json()[key];
      c.rules.push_back(parse_rule(o, c, key, *value));
    }
  if (const std::optional<JsonObject> ours = o.object("thimble"))
    if (const std::optional<JsonObject> shapes = ours->object("shapes"))
      for (const auto& [module, shape] : shapes->json().items()) {
        const auto size = [](const nlohmann::json& n) {
          return n.is_number_integer() && n > 0 && n < (int64_t{1} << 31);
        };
        if (!shape.is_array() || shape.size() != 2 || !size(shape[0]) || !size(shape[1]))
          shapes->fail(module.c_str(), "the two sizes [outputs, inputs]");
        c.shapes[module] = {shape[0].get<int64_t>(), shape[1].get<int64_t>()};
      }
  return c;
}

// The word that zero points of a symmetric file make in the other version than the config says; empty for 3 bits, whose
// words are not all the same.
std::optional<uint32_t> other_version_word(const GptqConfig& config) {
  if (config.bits == 3) return std::nullopt;
  uint32_t v2_word = 0, field_ones = 0;
  for (int at = 0; at < 32; at += config.bits) {
    v2_word |= 1u << (at + config.bits - 1);
    field_ones |= 1u << at;
  }
  return config.v2 ? v2_word - field_ones : v2_word;
}

// A symmetric file has one zero point everywhere; if it is exactly what the other version would store, the label lies.
bool mislabelled(const TensorView& qzeros, const GptqConfig& config) {
  const std::optional<uint32_t> other = other_version_word(config);
  if (!config.sym || !other) return false;
  for (uint64_t i = 0; i + 4 <= qzeros.info->bytes; i += 4)
    if (word_at(qzeros, static_cast<int64_t>(i / 4)) != *other) return false;
  return qzeros.info->bytes > 0;
}

void check_version(const TensorView& qzeros, const GptqConfig& config) {
  if (!mislabelled(qzeros, config)) return;
  refuse_tensor(qzeros, fmt::format("every word is 0x{:08X}, which is what a symmetric {} file holds, but {} says {}",
                                    *other_version_word(config), config.v2 ? "gptq" : "gptq_v2", config.file,
                                    config.v2 ? "gptq_v2" : "gptq"));
}

class GptqCheckpoint final : public CodedSource {
 public:
  GptqCheckpoint(GptqConfig config, const TensorSource& tensors) : config_(std::move(config)), tensors_(tensors) {
    believe_zero_points();
  }

  bool has(const std::string& module) const override { return gptq_has(tensors_, module); }
  std::vector<std::string> tensors(const std::string& module) const override {
    return {module + ".qweight", module + ".qzeros", module + ".scales", module + ".g_idx"};
  }
  CodedLinear read(const std::string& module) const override {
    GptqSource source = gptq_source(tensors_, module);
    if (config_.skips(module))
      refuse_tensor(source.qweight, fmt::format("{}: field \"dynamic\" says that {} is not quantized", config_.file,
                                                quote_for_message(module)));
    const auto shape = config_.shapes.find(module);
    if (shape == config_.shapes.end()) return unpack_gptq(source, config_.of(module));
    source.bias = {};  // is not padded, and loads as a tensor of its own
    CodedLinear linear = unpack_gptq(source, config_.of(module));
    crop_gptq(linear, module, shape->second[0], shape->second[1]);
    return linear;
  }
  std::string description() const override {
    return fmt::format("gptq {}-bit {} {}{}", config_.bits,
                       config_.group_size > 0 ? "g" + std::to_string(config_.group_size) : "row",
                       config_.sym ? "sym" : "asym", config_.desc_act ? " act-order" : "");
  }
  const std::vector<std::string>& warnings() const override { return config_.warnings; }

 private:
  // The zero points of the first symmetric linear tell which version wrote the file, whatever its label.
  void believe_zero_points() {
    for (const std::string& name : tensors_.names()) {
      const size_t end = name.rfind(".qzeros");
      if (end == std::string::npos || end + 7 != name.size()) continue;
      const GptqConfig own = config_.of(name.substr(0, end));
      if (!own.sym || !other_version_word(own)) continue;
      if (mislabelled(tensors_.view(name), own)) {
        config_.warnings.push_back(fmt::format(
            "{}: the layout is said to be {}, but the zero points of {} are those of a symmetric {} file; read as {}",
            config_.file, own.v2 ? "gptq_v2" : "gptq", quote_for_message(name), own.v2 ? "gptq" : "gptq_v2",
            own.v2 ? "gptq" : "gptq_v2"));
        config_.v2 = !config_.v2;
      }
      return;
    }
  }

  GptqConfig config_;
  const TensorSource& tensors_;
};

}  // namespace

std::optional<GptqConfig> read_gptq_config(const std::string& dir) {
  const std::optional<QuantStatement> statement = read_quant_statement(dir);
  if (!statement || statement->method != "gptq") return std::nullopt;
  return parse_config(*statement);
}

std::unique_ptr<CodedSource> open_gptq(const QuantStatement& statement, const TensorSource& tensors) {
  return std::make_unique<GptqCheckpoint>(parse_config(statement), tensors);
}

GptqConfig GptqConfig::of(const std::string& module) const {
  GptqConfig c;
  c.bits = bits;
  c.group_size = group_size;
  c.desc_act = desc_act;
  c.sym = sym;
  c.v2 = v2;
  c.file = file;
  for (const Rule& rule : rules) {
    if (!rule.pattern.matches(module)) continue;
    c.bits = rule.bits;
    c.group_size = rule.group_size;
    c.sym = rule.sym;
    c.desc_act = rule.desc_act;
    break;
  }
  return c;
}

bool GptqConfig::skips(const std::string& module) const {
  for (const Rule& rule : rules)
    if (rule.pattern.matches(module)) return rule.skip;
  return false;
}

std::string gptq_dynamic_key(const std::string& module, bool quantized) {
  std::string key = quantized ? "+:^" : "-:^";
  for (char c : module) key += c == '.' ? std::string("\\.") : std::string(1, c);
  return key + "$";
}

bool gptq_has(const TensorSource& set, const std::string& module) { return set.has(module + ".qweight"); }

GptqSource gptq_source(const TensorSource& set, const std::string& module) {
  return {module,
          set.view(module + ".qweight"),
          set.view(module + ".qzeros"),
          set.view(module + ".scales"),
          set.find_view(module + ".g_idx"),
          set.find_view(module + ".bias")};
}

CodedLinear unpack_gptq(const GptqSource& source, const GptqConfig& config) {
  const int bits = config.bits;
  THIMBLE_CHECK(known_width(bits));
  expect_words(source.qweight, "[in*bits/32, out]");
  expect_words(source.qzeros, "[groups, out*bits/32]");
  const std::vector<int64_t>& words = source.qweight.info->shape;
  CodedLinear l;
  l.bits = bits;
  l.out = words[1];
  if (words[0] * 32 % bits != 0)
    refuse_tensor(source.qweight, fmt::format("{} words per column do not hold whole {}-bit codes", words[0], bits));
  l.in = words[0] * 32 / bits;
  if (l.in > INT32_MAX) refuse_tensor(source.qweight, fmt::format("{} inputs are too many", l.in));
  set_groups(config.group_size, l);

  const TensorInfo& zeros = *source.qzeros.info;
  if (zeros.shape[0] != l.groups || zeros.shape[1] * 32 != l.out * bits)
    refuse_tensor(source.qzeros,
                  fmt::format("expected [{}, {}] for {} bits, {} inputs, {} outputs and groups of {}, found {}",
                              l.groups, l.out * bits / 32, bits, l.in, l.out, l.group_size, describe_tensor(zeros)));
  check_version(source.qzeros, config);
  read_scales(source.scales, true, l);

  // Columns in group order. A file without act-order has the identity, and then no permutation is kept.
  if (source.g_idx && source.g_idx.info->elements() > 0) {
    read_group_order(source.g_idx, l);
  } else if (config.desc_act && l.groups > 1) {
    throw Error(ErrorCode::input,
                fmt::format("{}: module {}: {} says desc_act, but g_idx is missing", source.qweight.file,
                            quote_for_message(source.name), config.file),
                kHint);
  }

  const auto index = [](int64_t i) { return static_cast<size_t>(i); };
  const unsigned mask = (1u << bits) - 1;
  l.codes.resize(index(l.out * l.in));
  // In stripes of 16 outputs, whose words are neighbours.
  for (int64_t first = 0; first < l.out; first += 16)
    for (int64_t c = 0; c < l.in; ++c)
      for (int64_t o = first; o < std::min(first + 16, l.out); ++o)
        l.codes[index(o * l.in + c)] =
            BitStream(source.qweight.data + 4 * o, l.out, bits)(l.perm.empty() ? c : l.perm[index(c)]);
  l.zeros.resize(index(l.out * l.groups));
  for (int64_t g = 0; g < l.groups; ++g) {
    const BitStream row(source.qzeros.data + 4 * g * zeros.shape[1], 1, bits);
    for (int64_t o = 0; o < l.out; ++o)
      l.zeros[index(o * l.groups + g)] = static_cast<uint8_t>(config.v2 ? row(o) : (row(o) + 1u) & mask);
  }
  read_bias(source.bias, l);
  return l;
}

void crop_gptq(CodedLinear& l, const std::string& module, int64_t out, int64_t in) {
  const auto refuse_crop = [&](const char* what) {
    throw Error(ErrorCode::input,
                fmt::format("quantized module {} is [{}, {}], its real shape is said to be [{}, {}]: {}",
                            quote_for_message(module), l.out, l.in, out, in, what),
                kHint);
  };
  if (out > l.out || in > l.in || l.out - out >= 32 || l.in - in >= 32) refuse_crop("padding is less than 32");
  if ((l.group_size < l.in ? (in + l.group_size - 1) / l.group_size : 1) != l.groups)
    refuse_crop("a whole group is padding");
  for (size_t c = 0; c < l.perm.size(); ++c)
    if ((l.perm[c] >= in) != (static_cast<int64_t>(c) >= in)) refuse_crop("the padded inputs are not the last ones");
  const auto index = [](int64_t i) { return static_cast<size_t>(i); };
  for (int64_t o = 1; o < out; ++o) std::copy_n(&l.codes[index(o * l.in)], in, &l.codes[index(o * in)]);
  l.codes.resize(index(out * in));
  l.zeros.resize(index(out * l.groups));
  if (!l.scales_f16.empty()) l.scales_f16.resize(l.zeros.size());
  if (!l.scales_f32.empty()) l.scales_f32.resize(l.zeros.size());
  if (!l.perm.empty()) l.perm.resize(index(in));
  if (!l.bias.empty()) l.bias.resize(index(out));
  if (l.group_size == l.in) l.group_size = in;
  l.out = out;
  l.in = in;
}

GptqPacked pack_gptq(int64_t out, int64_t in, int bits, int64_t group, const uint8_t* codes, const uint8_t* zeros,
                     const uint16_t* scales_f16, const int32_t* perm, bool v2) {
  THIMBLE_CHECK(bits == 2 || bits == 3 || bits == 4 || bits == 8);
  const int64_t whole = bits == 3 ? 32 : 32 / bits;  // codes that fill whole words
  const auto round_up = [&](int64_t n) { return (n + whole - 1) / whole * whole; };
  const auto index = [](int64_t i) { return static_cast<size_t>(i); };
  GptqPacked p;
  p.out_padded = round_up(out);
  p.in_padded = round_up(in);
  p.groups = (in + group - 1) / group;
  p.qweight.resize(index(p.in_padded * bits / 32 * p.out_padded));
  p.qzeros.resize(index(p.groups * (p.out_padded * bits / 32)));
  p.scales.resize(index(p.groups * p.out_padded));
  p.g_idx.resize(index(p.in_padded));
  const auto put = [&](uint32_t* words, int64_t stride, int64_t i, uint32_t value) {
    const int64_t bit = i * bits;
    const uint64_t field = uint64_t{value} << (bit % 32);
    words[bit / 32 * stride] |= static_cast<uint32_t>(field);
    if (bit % 32 + bits > 32) words[(bit / 32 + 1) * stride] |= static_cast<uint32_t>(field >> 32);
  };
  const uint32_t mask = (1u << bits) - 1;
  const auto middle = static_cast<uint8_t>(1 << (bits - 1));  // the zero point of padded rows
  for (int64_t c = 0; c < p.in_padded; ++c) {
    const int64_t g = std::min(c / group, p.groups - 1), input = c < in && perm ? perm[c] : c;
    p.g_idx[index(input)] = static_cast<int32_t>(g);
    for (int64_t o = 0; o < p.out_padded; ++o) {
      const uint32_t zero = o < out ? zeros[o * p.groups + g] : middle;
      put(&p.qweight[index(o)], p.out_padded, input, c < in && o < out ? codes[o * in + c] : zero);
    }
  }
  for (int64_t g = 0; g < p.groups; ++g)
    for (int64_t o = 0; o < p.out_padded; ++o) {
      const uint32_t zero = o < out ? zeros[o * p.groups + g] : middle;
      put(&p.qzeros[index(g * (p.out_padded * bits / 32))], 1, o, v2 ? zero : (zero - 1) & mask);
      if (o < out) p.scales[index(g * p.out_padded + o)] = scales_f16[o * p.groups + g];
    }
  return p;
}

}  // namespace thimble
