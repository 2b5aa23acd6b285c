#include "models/io/awq.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

#include "models/io/packed_words.h"
#include "tensor/error.h"

namespace thimble {
namespace {

using namespace io_detail;

// The nibble that holds output 8 c + j.
constexpr int kNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

size_t at(int64_t i) { return static_cast<size_t>(i); }

bool ends_with(const std::string& text, const std::string& suffix) {
  return text.size() > suffix.size() && text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

[[noreturn]] void unsupported(const QuantStatement& s, const std::string& what) {
  throw Error(ErrorCode::unsupported, s.file + ": " + what, "supported: AutoAWQ's gemm layout with 4 bits");
}

class AwqCheckpoint final : public CodedSource {
 public:
  AwqCheckpoint(const QuantStatement& s, const TensorSource& tensors) : tensors_(tensors) {
    const JsonObject o = s.object();
    const std::string version = lower_case(o.get_string(o.has("version") ? "version" : "format", "gemm"));
    // exllama and ipex are kernels over the same layout.
    if (version != "gemm" && version != "exllama" && version != "ipex")
      unsupported(s, fmt::format("field \"version\": the AWQ layout {} is not supported", quote_for_message(version)));
    if (const std::string backend = lower_case(o.get_string("backend", "autoawq")); backend == "llm-awq")
      unsupported(s, "field \"backend\": the AWQ layout llm-awq is not supported");
    const char* bits_key = o.has("bits") ? "bits" : "w_bit";
    if (const int64_t bits = o.get_int(bits_key, 4, 1, 32); bits != 4)
      unsupported(s, fmt::format("field \"{}\": {} bits are not supported, only 4", bits_key, bits));
    const char* group_key = o.has("group_size") ? "group_size" : "q_group_size";
    group_ = o.get_int(group_key, 128, -1, int64_t{1} << 31);
    if (group_ == 0) o.fail(group_key, "-1 or a positive integer");
    symmetric_ = !o.get_bool("zero_point", true);
    find_activation_scales();
  }

  bool has(const std::string& module) const override { return tensors_.has(module + ".qweight"); }

  std::vector<std::string> tensors(const std::string& module) const override {
    std::vector<std::string> names = {module + ".qweight", module + ".qzeros", module + ".scales"};
    if (const auto scales = divided_by_.find(module); scales != divided_by_.end()) names.push_back(scales->second);
    return names;
  }

  CodedLinear read(const std::string& module) const override {
    CodedLinear l = unpack(module);
    if (const auto scales = divided_by_.find(module); scales != divided_by_.end())
      fold(tensors_.view(scales->second), l);
    return l;
  }

  std::string description() const override {
    return fmt::format("awq 4-bit {} {}", group_ > 0 ? "g" + std::to_string(group_) : "row",
                       symmetric_ ? "sym" : "asym");
  }
  const std::vector<std::string>& warnings() const override { return warnings_; }

 private:
  CodedLinear unpack(const std::string& module) const {
    const TensorView qweight = tensors_.view(module + ".qweight"), qzeros = tensors_.view(module + ".qzeros");
    expect_words(qweight, "[in, out/8]");
    expect_words(qzeros, "[groups, out/8]");
    const int64_t words = qweight.info->shape[1];
    CodedLinear l;
    l.bits = 4;
    l.in = qweight.info->shape[0];
    l.out = words * 8;
    if (l.in > INT32_MAX) refuse_tensor(qweight, fmt::format("{} inputs are too many", l.in));
    set_groups(group_, l);
    if (l.in % l.group_size != 0)
      refuse_tensor(qweight, fmt::format("{} inputs are no multiple of the group size {}", l.in, l.group_size));
    if (qzeros.info->shape != std::vector<int64_t>{l.groups, words})
      refuse_tensor(qzeros, fmt::format("expected [{}, {}] for {} inputs, {} outputs and groups of {}, found {}",
                                        l.groups, words, l.in, l.out, l.group_size, describe_tensor(*qzeros.info)));
    read_scales(tensors_.view(module + ".scales"), true, l);
    l.codes.resize(at(l.out * l.in));
    // In stripes of 64 inputs, so that the bytes of a row that is written are neighbours.
    for (int64_t first = 0; first < l.in; first += 64)
      for (int64_t c = 0; c < words; ++c)
        for (int64_t i = first; i < std::min(first + 64, l.in); ++i) {
          const uint32_t word = word_at(qweight, i * words + c);
          for (int64_t j = 0; j < 8; ++j)
            l.codes[at((8 * c + j) * l.in + i)] = static_cast<uint8_t>(word >> 4 * kNibble[j] & 15);
        }
    l.zeros.resize(at(l.out * l.groups));
    for (int64_t g = 0; g < l.groups; ++g)
      for (int64_t c = 0; c < words; ++c)
        for (int64_t j = 0; j < 8; ++j)
          l.zeros[at((8 * c + j) * l.groups + g)] =
              static_cast<uint8_t>(word_at(qzeros, g * words + c) >> 4 * kNibble[j] & 15);
    read_bias(tensors_.find_view(module + ".bias"), l);
    return l;
  }

  // Whatever is called .scales and belongs to no packed linear divides an activation: the input of the one linear
  // beside it that has as many inputs.
  void find_activation_scales() {
    std::vector<std::string> activations;
    std::map<std::pair<std::string, int64_t>, std::vector<std::string>> linears;  // by parent and number of inputs
    const auto parent_of = [](const std::string& module) {
      const size_t dot = module.rfind('.');
      return module.substr(0, dot == std::string::npos ? 0 : dot);
    };
    for (const std::string& name : tensors_.names()) {
      if (ends_with(name, ".scales") && !has(name.substr(0, name.size() - 7)))
        activations.push_back(name.substr(0, name.size() - 7));
      if (!ends_with(name, ".qweight")) continue;
      const std::string module = name.substr(0, name.size() - 8);
      const TensorView codes = tensors_.view(name);
      if (!codes.info->shape.empty()) linears[{parent_of(module), codes.info->shape[0]}].push_back(module);
    }
    for (const std::string& activation : activations) {
      const TensorView scales = tensors_.view(activation + ".scales");
      const auto readers = linears.find({parent_of(activation), scales.info->elements()});
      const size_t n = readers == linears.end() ? 0 : readers->second.size();
      if (n != 1 || !divided_by_.emplace(readers->second[0], activation + ".scales").second)
        unsupported_tensor(
            scales,
            fmt::format("scales of an activation (ScaledActivation), {}, which {} linears beside it read",
                        describe_tensor(*scales.info), n),
            "supported: a vector with as many entries as exactly one linear beside it has inputs");
    }
    if (!divided_by_.empty())
      warnings_.push_back(
          fmt::format("{}: the scales of {} activations are folded into the linears behind them, which are held in f32",
                      tensors_.path(), divided_by_.size()));
  }

  static void fold(const TensorView& scales, CodedLinear& l) {
    std::vector<float> divisor(at(scales.info->elements()));
    if (static_cast<int64_t>(divisor.size()) != l.in)
      refuse_tensor(scales, fmt::format("expected [{}], found {}", l.in, describe_tensor(*scales.info)));
    scales.read_f32(divisor.data());
    for (float s : divisor)
      if (s == 0 || !std::isfinite(s)) refuse_tensor(scales, "expected finite scales other than 0");
    std::vector<float> w = l.dequantize();
    for (int64_t o = 0; o < l.out; ++o)
      for (int64_t i = 0; i < l.in; ++i) w[at(o * l.in + i)] /= divisor[at(i)];
    CodedLinear dense;
    dense.out = l.out;
    dense.in = l.in;
    dense.bias = std::move(l.bias);
    dense.dense.resize(w.size() * sizeof(float));
    std::memcpy(dense.dense.data(), w.data(), dense.dense.size());
    l = std::move(dense);
  }

  const TensorSource& tensors_;
  int64_t group_ = 128;
  bool symmetric_ = false;
  std::map<std::string, std::string> divided_by_;  // linear -> scales of the activation before it
  std::vector<std::string> warnings_;
};

}  // namespace

std::unique_ptr<CodedSource> open_awq(const QuantStatement& statement, const TensorSource& tensors) {
  return std::make_unique<AwqCheckpoint>(statement, tensors);
}

AwqPacked pack_awq(int64_t out, int64_t in, int64_t group, const uint8_t* codes, const uint8_t* zeros,
                   const uint16_t* scales_f16) {
  THIMBLE_CHECK(out % 8 == 0 && group > 0);
  const int64_t words = out / 8, groups = (in + group - 1) / group;
  AwqPacked p;
  p.qweight.resize(at(in * words));
  p.qzeros.resize(at(groups * words));
  p.scales.resize(at(groups * out));
  const auto word_of = [&](const uint8_t* from, int64_t c, int64_t stride, int64_t column) {
    uint32_t word = 0;
    for (int64_t j = 0; j < 8; ++j) {
      const uint8_t code = from[(8 * c + j) * stride + column];
      THIMBLE_DCHECK(code < 16);
      word |= uint32_t{code} << 4 * kNibble[j];
    }
    return word;
  };
  for (int64_t i = 0; i < in; ++i)
    for (int64_t c = 0; c < words; ++c) p.qweight[at(i * words + c)] = word_of(codes, c, in, i);
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t c = 0; c < words; ++c) p.qzeros[at(g * words + c)] = word_of(zeros, c, groups, g);
    for (int64_t o = 0; o < out; ++o) p.scales[at(g * out + o)] = scales_f16[o * groups + g];
  }
  return p;
}

}  // namespace thimble
