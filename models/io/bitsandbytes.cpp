#include "models/io/bitsandbytes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "models/io/half.h"
#include "models/io/packed_words.h"
#include "quant/rtn.h"
#include "tensor/error.h"

namespace thimble {
namespace {

using namespace io_detail;

size_t at(int64_t i) { return static_cast<size_t>(i); }

constexpr const char* kStates[] = {"nf4", "fp4"};

class Bitsandbytes final : public CodedSource {
 public:
  Bitsandbytes(const QuantStatement& s, const TensorSource& tensors) : tensors_(tensors) {
    const JsonObject o = s.object();
    const bool four = o.get_bool("load_in_4bit", false);
    description_ = four ? fmt::format("bitsandbytes {} 4-bit, decoded", o.get_string("bnb_4bit_quant_type", "fp4"))
                        : "bitsandbytes int8 row";
    if (!four && o.get_bool("load_in_8bit", false))
      warnings_.push_back(
          s.file +
          ": the model is meant to round the inputs of its linears to 8 bits while it runs; they stay in floats, or "
          "--precision int8_act");
  }

  bool has(const std::string& module) const override {
    return !state_name(module).empty() || tensors_.has(module + ".SCB");
  }

  std::vector<std::string> tensors(const std::string& module) const override {
    std::vector<std::string> names;
    for (const char* part : {".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax",
                             ".weight.nested_quant_map", ".SCB", ".weight_format"})
      names.push_back(module + part);
    if (std::string state = state_name(module); !state.empty()) names.push_back(std::move(state));
    return names;
  }

  CodedLinear read(const std::string& module) const override {
    const std::string state = state_name(module);
    CodedLinear l = state.empty() ? read_int8(module) : read_4bit(module, tensors_.view(state));
    read_bias(tensors_.find_view(module + ".bias"), l);
    return l;
  }

  std::string description() const override { return description_; }
  const std::vector<std::string>& warnings() const override { return warnings_; }

 private:
  std::string state_name(const std::string& module) const {
    for (const char* type : kStates)
      if (std::string name = module + ".weight.quant_state.bitsandbytes__" + type; tensors_.has(name)) return name;
    return {};
  }

  CodedLinear read_int8(const std::string& module) const {
    const TensorView weight = tensors_.view(module + ".weight"), absmax = tensors_.view(module + ".SCB");
    const TensorInfo& info = *weight.info;
    if (info.dtype != SafetensorsDtype::i8 || info.shape.size() != 2 || info.shape[0] < 1 || info.shape[1] < 1 ||
        info.shape[1] > INT32_MAX)
      refuse_tensor(weight, "expected I8 [out, in], found " + describe_tensor(info));
    if (const TensorView format = tensors_.find_view(module + ".weight_format")) {
      if (format.info->elements() != 1)
        refuse_tensor(format, "expected one value, found " + describe_tensor(*format.info));
      int64_t tag;
      format.read_i64(&tag);
      if (tag != 0)
        unsupported_tensor(format, fmt::format("the layout {} of int8 weights is not supported", tag),
                           "supported: 0, rows");
    }
    CodedLinear l;
    l.bits = 8;
    l.out = info.shape[0];
    l.in = info.shape[1];
    set_groups(0, l);
    l.zero = 128;
    l.codes.resize(at(l.out * l.in));
    for (int64_t i = 0; i < l.out * l.in; ++i)
      l.codes[at(i)] = static_cast<uint8_t>(static_cast<uint8_t>(weight.data[i]) ^ 0x80u);
    if (absmax.info->elements() != l.out || !is_float(absmax.info->dtype))
      refuse_tensor(absmax, fmt::format("expected F32 [{}], found {}", l.out, describe_tensor(*absmax.info)));
    l.scales_f32.resize(at(l.out));
    absmax.read_f32(l.scales_f32.data());
    for (float& s : l.scales_f32) s /= 127.0f;
    return l;
  }

  // What the JSON text in quant_state says.
  struct State {
    int64_t out = 0, in = 0, block = 64;
    WeightFormat format = WeightFormat::f32;
    bool nested = false;
    int64_t nested_block = 256;
    float nested_offset = 0;
  };

  static State read_state(const TensorView& t) {
    if (t.info->dtype != SafetensorsDtype::u8 || t.info->bytes > size_t{1} << 16)
      refuse_tensor(t, "expected the bytes of a JSON text, found " + describe_tensor(*t.info));
    const std::string where = t.file + ": tensor " + quote_for_message(t.info->name);
    const nlohmann::json json =
        parse_json({reinterpret_cast<const char*>(t.data), static_cast<size_t>(t.info->bytes)}, where);
    const JsonObject o(json, where);
    State s;
    const auto block_size = [&](const char* key, int64_t fallback) { return o.get_int(key, fallback, 1, 1 << 20); };
    s.block = block_size("blocksize", 64);
    const std::string dtype = o.get_string("dtype", "float16");
    if (dtype != "float32" && dtype != "float16" && dtype != "bfloat16")
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: field \"dtype\": {} is not supported", where, quote_for_message(dtype)),
                  "supported: float32, float16, bfloat16");
    s.format = dtype == "float32" ? WeightFormat::f32 : dtype == "float16" ? WeightFormat::f16 : WeightFormat::bf16;
    const nlohmann::json* shape = o.find("shape");
    const auto size = [](const nlohmann::json& n) { return n.is_number_integer() && n > 0 && n <= INT32_MAX; };
    if (!shape || !shape->is_array() || shape->size() != 2 || !size((*shape)[0]) || !size((*shape)[1]))
      o.fail("shape", "the two sizes [outputs, inputs]");
    s.out = (*shape)[0].get<int64_t>();
    s.in = (*shape)[1].get<int64_t>();
    s.nested = o.has("nested_blocksize") || o.has("nested_offset");
    s.nested_block = block_size("nested_blocksize", 256);
    s.nested_offset = static_cast<float>(o.get_double("nested_offset", 0, -3e38, 3e38));
    if (const std::string nested = o.get_string("nested_dtype", "float32"); nested != "float32")
      throw Error(ErrorCode::unsupported,
                  fmt::format("{}: field \"nested_dtype\": {} is not supported", where, quote_for_message(nested)),
                  "supported: float32");
    return s;
  }

  // A vector of so many floats.
  std::vector<float> floats(const std::string& name, int64_t n) const {
    const TensorView t = tensors_.view(name);
    if (t.info->elements() != n || !is_float(t.info->dtype))
      refuse_tensor(t, fmt::format("expected F32 [{}], found {}", n, describe_tensor(*t.info)));
    std::vector<float> values(at(n));
    t.read_f32(values.data());
    return values;
  }

  CodedLinear read_4bit(const std::string& module, const TensorView& state_tensor) const {
    const State s = read_state(state_tensor);
    const std::string name = module + ".weight";
    const TensorView weight = tensors_.view(name);
    const int64_t n = s.out * s.in;  // both fit into 31 bits
    // Any dtype may carry the bytes (bnb_4bit_quant_storage), padded to whole elements.
    const auto element = static_cast<uint64_t>(std::max(8, safetensors_dtype_bits(weight.info->dtype)) / 8),
               bytes = static_cast<uint64_t>((n + 1) / 2);
    if (weight.info->bytes < bytes || weight.info->bytes >= bytes + element)
      refuse_tensor(weight, fmt::format("expected the {} bytes of [{}, {}] in 4 bits, found {}", bytes, s.out, s.in,
                                        describe_tensor(*weight.info)));
    const std::vector<float> book = floats(name + ".quant_map", 16);
    const int64_t blocks = (n + s.block - 1) / s.block;
    std::vector<float> absmax;
    if (s.nested) {
      const TensorView codes = tensors_.view(name + ".absmax");
      if (codes.info->dtype != SafetensorsDtype::u8 || codes.info->elements() != blocks)
        refuse_tensor(codes, fmt::format("expected U8 [{}], found {}", blocks, describe_tensor(*codes.info)));
      const std::vector<float> outer = floats(name + ".nested_absmax", (blocks + s.nested_block - 1) / s.nested_block);
      const std::vector<float> map = floats(name + ".nested_quant_map", 256);
      absmax.resize(at(blocks));
      for (int64_t b = 0; b < blocks; ++b) {
        const float product =
            map[static_cast<uint8_t>(codes.data[b])] * outer[at(b / s.nested_block)];  // rounded before the sum
        absmax[at(b)] = product + s.nested_offset;
      }
    } else {
      absmax = floats(name + ".absmax", blocks);
    }
    CodedLinear l;
    l.out = s.out;
    l.in = s.in;
    l.dense_format = s.format;
    l.dense.resize(at(n * format_bits(s.format) / 8));
    std::array<uint32_t, 16> block_values{};
    for (int64_t b = 0; b < blocks; ++b) {
      for (size_t k = 0; k < 16; ++k) block_values[k] = rounded(book[k] * absmax[at(b)], s.format);
      for (int64_t i = b * s.block; i < std::min(n, (b + 1) * s.block); ++i) {
        const auto pair = static_cast<uint8_t>(weight.data[i / 2]);
        const uint32_t value =
            block_values[i % 2 == 0 ? pair >> 4 : pair & 15];  // the first of a pair is the high half
        if (s.format == WeightFormat::f32) {
          std::memcpy(&l.dense[at(4 * i)], &value, 4);
        } else {
          const auto half = static_cast<uint16_t>(value);
          std::memcpy(&l.dense[at(2 * i)], &half, 2);
        }
      }
    }
    return l;
  }

  // The bits of a value in a format.
  static uint32_t rounded(float value, WeightFormat format) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return format == WeightFormat::f32 ? bits : format == WeightFormat::f16 ? f16_bits(value) : f32_to_bf16(value);
  }

  const TensorSource& tensors_;
  std::string description_;
  std::vector<std::string> warnings_;
};

}  // namespace

std::unique_ptr<CodedSource> open_bitsandbytes(const QuantStatement& statement, const TensorSource& tensors) {
  return std::make_unique<Bitsandbytes>(statement, tensors);
}

}  // namespace thimble
