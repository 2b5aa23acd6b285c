#include "models/io/gptq.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

constexpr const char* kHint = "the quantization config and the tensors disagree; download the model again";

[[noreturn]] void refuse(const TensorView& t, const std::string& what) {
  throw Error(ErrorCode::input, fmt::format("{}: tensor {}: {}", t.file, quote_for_message(t.info->name), what), kHint);
}

[[noreturn]] void unsupported(const std::string& file, const std::string& what) {
  throw Error(ErrorCode::unsupported, file + ": " + what, "save the model in the plain gptq or gptq_v2 layout");
}

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

// The first of several spellings that is present.
const char* spelling(const JsonObject& o, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (o.has(name)) return name;
  return *names.begin();
}

// The quantization method a config states. Without a name, a version means AWQ and a load_in flag bitsandbytes.
std::string stated_method(const JsonObject& o) {
  const std::string version =
      lower(o.find("version") && o.find("version")->is_string() ? o.require_string("version") : "");
  const bool loads = o.has("load_in_4bit") || o.has("load_in_8bit");
  return lower(o.get_string(spelling(o, {"method", "quant_method"}),
                            !version.empty() ? "awq" : loads ? "bitsandbytes" : "gptq"));
}

// Calls fn with the object that describes the quantization, if the model has one.
template <typename Fn>
void with_quantization_config(const std::string& dir, const Fn& fn) {
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    const std::string path = join_path(dir, name);
    if (!file_exists(path)) continue;
    const nlohmann::json json = parse_json_file(path);
    return fn(JsonObject(json, path));
  }
  const std::string path = join_path(dir, "config.json");
  if (!file_exists(path)) return;
  const nlohmann::json json = parse_json_file(path);
  if (const std::optional<JsonObject> o = JsonObject(json, path).object("quantization_config")) fn(*o);
}

// The text that a regular expression matches when it is ^, a text with \\. for dots, and $; "" for any other one.
std::string literal_pattern(const std::string& pattern) {
  if (pattern.size() < 3 || pattern.front() != '^' || pattern.back() != '$') return {};
  std::string text;
  for (size_t i = 1; i + 1 < pattern.size(); ++i) {
    const char c = pattern[i];
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
    if (c == '\\' && pattern[i + 1] == '.') {
      text += '.';
      ++i;
    } else if (plain) {
      text += c;
    } else {
      return {};
    }
  }
  return text;
}

std::optional<GptqConfig> parse_config(const JsonObject& o) {
  const char* format_key = spelling(o, {"format", "checkpoint_format"});
  const std::string method = stated_method(o);
  std::string format = lower(o.get_string(format_key, "gptq"));
  for (const char* other : {"marlin", "bitblas", "exl3", "gptq_p"})
    if (method == other || format == other) unsupported(o.file(), fmt::format("the layout {} is not supported", other));
  if (method != "gptq") return std::nullopt;
  if (o.get_bool("is_marlin_format", false)) unsupported(o.file(), "the layout marlin is not supported");
  if (format != "gptq" && format != "gptq_v2")
    unsupported(o.file(), fmt::format("field {}: the layout {} is not supported", quote_for_message(format_key),
                                      quote_for_message(format)));
  if (const std::string pack = lower(o.get_string("pack_dtype", "int32")); pack != "int32")
    unsupported(o.file(), "field \"pack_dtype\": " + quote_for_message(pack) + " is not supported, only int32");

  GptqConfig c;
  c.file = o.file();
  const char* bits_key = spelling(o, {"bits", "w_bit"});
  c.bits = static_cast<int>(o.require_int(bits_key, 1, 32));
  if (c.bits != 2 && c.bits != 3 && c.bits != 4 && c.bits != 8)
    unsupported(o.file(), fmt::format("field \"{}\": {} bits are not supported, only 2, 3, 4 and 8", bits_key, c.bits));
  const char* group_key = spelling(o, {"group_size", "q_group_size"});
  c.group_size = o.require_int(group_key, -1, int64_t{1} << 31);
  if (c.group_size == 0) o.fail(group_key, "-1 or a positive integer");
  c.desc_act = o.get_bool("desc_act", false);
  c.v2 = format == "gptq_v2";
  if (!o.has("sym")) c.warnings.push_back(o.file() + ": field \"sym\" is missing; taken as true");
  c.sym = o.get_bool("sym", true);
  if (const std::optional<JsonObject> dynamic = o.object("dynamic"))
    for (const auto& [key, value] : dynamic->json().items()) {
      if (key.rfind("-:", 0) == 0) {
        c.skipped.push_back(key.substr(2));
        continue;
      }
      const std::string module = key.rfind("+:", 0) == 0 ? literal_pattern(key.substr(2)) : "";
      if (module.empty() || !value.is_object())
        unsupported(o.file(), "field \"dynamic\": settings of its own for " + quote_for_message(key));
      const JsonObject own(value, o.file());
      for (const auto& item : value.items())
        if (item.key() != "bits" && item.key() != "group_size" && item.key() != "sym" && item.key() != "desc_act")
          unsupported(o.file(), fmt::format("field \"dynamic\": {} sets {}", quote_for_message(key), quote_for_message(item.key())));
      GptqConfig::Override over;
      over.bits = static_cast<int>(own.get_int("bits", c.bits, 1, 32));
      over.group_size = own.get_int("group_size", c.group_size, -1, int64_t{1} << 31);
      if ((over.bits != 2 && over.bits != 3 && over.bits != 4 && over.bits != 8) || over.group_size == 0)
        own.fail("bits", "2, 3, 4 or 8, and a group_size of -1 or above 0");
      c.overrides[module] = over;
    }
  if (const std::optional<JsonObject> ours = o.object("thimble"))
    if (const std::optional<JsonObject> shapes = ours->object("shapes"))
      for (const auto& [module, shape] : shapes->json().items()) {
        const auto size = [](const nlohmann::json& n) { return n.is_number_integer() && n > 0 && n < (int64_t{1} << 31); };
        if (!shape.is_array() || shape.size() != 2 || !size(shape[0]) || !size(shape[1]))
          shapes->fail(module.c_str(), "the two sizes [outputs, inputs]");
        c.shapes[module] = {shape[0].get<int64_t>(), shape[1].get<int64_t>()};
      }
  return c;
}

// Field i of a little-endian bit stream of `bits`-wide fields in 32-bit words that lie `stride` words apart.
class BitStream {
 public:
  BitStream(const std::byte* words, int64_t stride, int bits) : words_(words), stride_(stride), bits_(bits) {}

  uint8_t operator()(int64_t i) const {
    const int64_t bit = i * bits_;
    const int shift = static_cast<int>(bit % 32);
    uint64_t window = word(bit / 32);
    if (shift + bits_ > 32) window |= static_cast<uint64_t>(word(bit / 32 + 1)) << 32;  // a field that straddles
    return static_cast<uint8_t>(window >> shift & ((1u << bits_) - 1));
  }

 private:
  uint32_t word(int64_t i) const {
    uint32_t v;
    std::memcpy(&v, words_ + 4 * i * stride_, sizeof v);
    return v;
  }

  const std::byte* words_;
  int64_t stride_;
  int bits_;
};

void expect_matrix(const TensorView& t, const char* what) {
  if (t.info->dtype != SafetensorsDtype::i32 && t.info->dtype != SafetensorsDtype::u32)
    refuse(t, std::string("expected I32 ") + what + ", found " + describe_tensor(*t.info));
  if (t.info->shape.size() != 2 || t.info->shape[0] < 1 || t.info->shape[1] < 1)
    refuse(t, std::string("expected two dimensions ") + what + ", found " + describe_tensor(*t.info));
}

// A symmetric file has one zero point everywhere; if it is exactly what the other version would store, the label lies.
void check_version(const TensorView& qzeros, const GptqConfig& config) {
  if (!config.sym || config.bits == 3) return;
  uint32_t v2_word = 0;
  for (int at = config.bits - 1; at < 32; at += config.bits) v2_word |= 1u << at;
  uint32_t field_ones = 0;
  for (int at = 0; at < 32; at += config.bits) field_ones |= 1u << at;
  const uint32_t other = config.v2 ? v2_word - field_ones : v2_word;
  for (uint64_t i = 0; i < qzeros.info->bytes; i += 4) {
    uint32_t word;
    std::memcpy(&word, qzeros.data + i, sizeof word);
    if (word != other) return;
  }
  refuse(qzeros, fmt::format("every word is 0x{:08X}, which is what a symmetric {} file holds, but {} says {}", other,
                             config.v2 ? "gptq" : "gptq_v2", config.file, config.v2 ? "gptq_v2" : "gptq"));
}

}  // namespace

std::optional<GptqConfig> read_gptq_config(const std::string& dir) {
  std::optional<GptqConfig> config;
  with_quantization_config(dir, [&](const JsonObject& o) { config = parse_config(o); });
  return config;
}

void refuse_other_quantization(const std::string& dir) {
  with_quantization_config(dir, [](const JsonObject& o) {
    const std::string method = stated_method(o);
    if (method != "gptq")
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: the quantization method {} is not supported", o.file(), quote_for_message(method)),
                  "supported: gptq, or the model without quantization");
  });
}

GptqConfig GptqConfig::of(const std::string& module) const {
  GptqConfig c = *this;
  const auto own = overrides.find(module);
  if (own == overrides.end()) return c;
  c.bits = own->second.bits;
  c.group_size = own->second.group_size;
  return c;
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
  THIMBLE_CHECK(bits == 2 || bits == 3 || bits == 4 || bits == 8);
  expect_matrix(source.qweight, "[in*bits/32, out]");
  expect_matrix(source.qzeros, "[groups, out*bits/32]");
  const std::vector<int64_t>& words = source.qweight.info->shape;
  CodedLinear l;
  l.bits = bits;
  l.out = words[1];
  if (words[0] * 32 % bits != 0)
    refuse(source.qweight, fmt::format("{} words per column do not hold whole {}-bit codes", words[0], bits));
  l.in = words[0] * 32 / bits;
  l.group_size = config.group_size < 0 ? l.in : std::min(config.group_size, l.in);
  l.groups = (l.in + l.group_size - 1) / l.group_size;
  if (l.in > INT32_MAX) refuse(source.qweight, fmt::format("{} inputs are too many", l.in));

  const TensorInfo& zeros = *source.qzeros.info;
  if (zeros.shape[0] != l.groups || zeros.shape[1] * 32 != l.out * bits)
    refuse(source.qzeros,
           fmt::format("expected [{}, {}] for {} bits, {} inputs, {} outputs and groups of {}, found {}", l.groups,
                       l.out * bits / 32, bits, l.in, l.out, l.group_size, describe_tensor(zeros)));
  check_version(source.qzeros, config);

  const TensorInfo& scales = *source.scales.info;
  if (scales.shape != std::vector<int64_t>{l.groups, l.out} ||
      (scales.dtype != SafetensorsDtype::f16 && scales.dtype != SafetensorsDtype::bf16 &&
       scales.dtype != SafetensorsDtype::f32))
    refuse(source.scales,
           fmt::format("expected F16, BF16 or F32 [{}, {}], found {}", l.groups, l.out, describe_tensor(scales)));

  // Columns in group order. A file without act-order has the identity, and then no permutation is kept.
  if (source.g_idx) {
    if (source.g_idx.info->shape != std::vector<int64_t>{l.in} ||
        (source.g_idx.info->dtype != SafetensorsDtype::i32 && source.g_idx.info->dtype != SafetensorsDtype::i64))
      refuse(source.g_idx, fmt::format("expected I32 [{}], found {}", l.in, describe_tensor(*source.g_idx.info)));
    std::vector<int64_t> group(static_cast<size_t>(l.in));
    source.g_idx.read_i64(group.data());
    for (size_t i = 0; i < group.size(); ++i)
      if (group[i] < 0 || group[i] >= l.groups)
        refuse(source.g_idx,
               fmt::format("input {}: expected a group between 0 and {}, found {}", i, l.groups - 1, group[i]));
    l.perm.resize(group.size());
    std::iota(l.perm.begin(), l.perm.end(), 0);
    std::stable_sort(l.perm.begin(), l.perm.end(), [&](int32_t a, int32_t b) {
      return group[static_cast<size_t>(a)] < group[static_cast<size_t>(b)];
    });
    for (int64_t c = 0; c < l.in; ++c)
      if (group[static_cast<size_t>(l.perm[static_cast<size_t>(c)])] != c / l.group_size)
        throw Error(
            ErrorCode::unsupported,
            fmt::format("{}: tensor {}: the groups are not all of {} inputs (group {} differs)", source.g_idx.file,
                        quote_for_message(source.g_idx.info->name), l.group_size, c / l.group_size),
            "quantize the model again with act-order groups of equal size, or without desc_act");
    if (std::is_sorted(l.perm.begin(), l.perm.end())) l.perm.clear();
  } else if (config.desc_act && l.groups > 1) {
    throw Error(ErrorCode::input,
                fmt::format("{}: module {}: {} says desc_act, but g_idx is missing", source.qweight.file,
                            quote_for_message(source.name), config.file),
                kHint);
  }

  const auto index = [](int64_t i) { return static_cast<size_t>(i); };
  const unsigned mask = (1u << bits) - 1;
  l.codes.resize(index(l.out * l.in));
  for (int64_t o = 0; o < l.out; ++o) {
    const BitStream column(source.qweight.data + 4 * o, l.out, bits);
    uint8_t* row = &l.codes[index(o * l.in)];
    for (int64_t c = 0; c < l.in; ++c) row[c] = column(l.perm.empty() ? c : l.perm[index(c)]);
  }
  l.zeros.resize(index(l.out * l.groups));
  for (int64_t g = 0; g < l.groups; ++g) {
    const BitStream row(source.qzeros.data + 4 * g * zeros.shape[1], 1, bits);
    for (int64_t o = 0; o < l.out; ++o)
      l.zeros[index(o * l.groups + g)] = static_cast<uint8_t>(config.v2 ? row(o) : (row(o) + 1u) & mask);
  }
  if (scales.dtype == SafetensorsDtype::f16) {
    l.scales_f16.resize(l.zeros.size());
    for (int64_t g = 0; g < l.groups; ++g)
      for (int64_t o = 0; o < l.out; ++o)
        std::memcpy(&l.scales_f16[index(o * l.groups + g)], source.scales.data + 2 * (g * l.out + o), 2);
  } else {
    std::vector<float> by_group(l.zeros.size());
    source.scales.read_f32(by_group.data());
    l.scales_f32.resize(l.zeros.size());
    for (int64_t g = 0; g < l.groups; ++g)
      for (int64_t o = 0; o < l.out; ++o) l.scales_f32[index(o * l.groups + g)] = by_group[index(g * l.out + o)];
  }
  if (source.bias) {
    if (source.bias.info->shape != std::vector<int64_t>{l.out})
      refuse(source.bias, fmt::format("expected [{}], found {}", l.out, describe_tensor(*source.bias.info)));
    l.bias.resize(index(l.out));
    source.bias.read_f32(l.bias.data());
  }
  return l;
}

void crop_gptq(CodedLinear& l, const std::string& module, int64_t out, int64_t in) {
  const auto refuse_crop = [&](const char* what) {
    throw Error(ErrorCode::input,
                fmt::format("quantized module {} is [{}, {}], its real shape is said to be [{}, {}]: {}",
                            quote_for_message(module), l.out, l.in, out, in, what), kHint);
  };
  if (out > l.out || in > l.in || l.out - out >= 32 || l.in - in >= 32) refuse_crop("padding is less than 32");
  if ((l.group_size < l.in ? (in + l.group_size - 1) / l.group_size : 1) != l.groups) refuse_crop("a whole group is padding");
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
