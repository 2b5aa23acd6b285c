#include "models/io/compressed_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "models/io/packed_words.h"
#include "tensor/error.h"

namespace thimble {
namespace {

using namespace io_detail;

constexpr const char* kHint =
    "supported: pack-quantized with 2, 3, 4 or 8 bits, int-quantized and naive-quantized, inputs in floats or "
    "quantized per token";

size_t at(int64_t i) { return static_cast<size_t>(i); }

// How the weights of the modules of one config group are stored.
struct Scheme {
  std::string field;  // "config_groups.group_0", for messages
  int bits = 0;
  bool symmetric = true, packed = true;
  enum class Strategy { tensor, channel, group } strategy = Strategy::channel;
  int64_t group = 0;
};

struct Target {
  std::optional<NamePattern> pattern;  // "re:...": else a name, or the class of a module
  std::string text;
  size_t scheme = 0;

  bool names(const std::string& module) const { return pattern ? pattern->matches(module) : text == module; }
};

class CompressedTensors final : public CodedSource {
 public:
  CompressedTensors(const QuantStatement& s, const TensorSource& tensors) : file_(s.file), tensors_(tensors) {
    const JsonObject o = s.object();
    const std::string format = lower_case(o.get_string("format", "pack-quantized"));
    // quantization_status is not asked: writers before 2025 leave "frozen" beside packed weights.
    refuse_present(o, "kv_cache_scheme", "a quantized key/value cache is not supported");
    refuse_present(o, "transform_config", "transformed weights are not supported");
    if (const std::optional<JsonObject> sparsity = o.object("sparsity_config"))
      if (const std::string layout = sparsity->get_string("format", "dense"); layout != "dense")
        unsupported("sparsity_config.format", fmt::format("the format {} is not supported", quote_for_message(layout)));
    if (const nlohmann::json* list = o.find("ignore")) {
      if (!list->is_array()) o.fail("ignore", "a list of names");
      for (const nlohmann::json& name : *list) ignored_.push_back(target(o, "ignore", name, 0));
    }
    const std::optional<JsonObject> groups = o.object("config_groups");
    if (!groups) o.fail("config_groups", "an object");
    for (const std::string& name : s.ordered_keys("config_groups")) add_group(*groups, name, format);
    if (schemes_.empty()) o.fail("config_groups", "at least one group with weights");
  }

  bool has(const std::string& module) const override {
    if (tensors_.has(module + ".weight_packed")) return true;
    const TensorView weight = tensors_.find_view(module + ".weight");
    return weight && weight.info->dtype == SafetensorsDtype::i8 && tensors_.has(module + ".weight_scale");
  }

  std::vector<std::string> tensors(const std::string& module) const override {
    std::vector<std::string> names;
    for (const char* part : {".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", ".weight_g_idx"})
      names.push_back(module + part);
    if (!tensors_.has(module + ".weight_packed")) names.push_back(module + ".weight");
    return names;
  }

  CodedLinear read(const std::string& module) const override {
    const Scheme& scheme = scheme_of(module);
    CodedLinear l;
    l.bits = scheme.bits;
    if (scheme.packed)
      read_packed(module, scheme, l);
    else
      read_bytes(module, scheme, l);
    set_groups(scheme.strategy == Scheme::Strategy::group ? scheme.group : 0, l);
    read_grid(module, scheme, l);
    if (const TensorView g_idx = tensors_.find_view(module + ".weight_g_idx")) read_order(g_idx, l);
    read_bias(tensors_.find_view(module + ".bias"), l);
    return l;
  }

  std::string description() const override { return description_; }
  const std::vector<std::string>& warnings() const override { return warnings_; }

 private:
  [[noreturn]] void unsupported(const std::string& field, const std::string& what) const {
    throw Error(ErrorCode::unsupported, fmt::format("{}: field \"{}\": {}", file_, field, what), kHint);
  }

  void refuse_present(const JsonObject& o, const char* key, const char* what) const {
    const nlohmann::json* value = o.find(key);
    if (value && !value->empty()) unsupported(key, what);
  }

  Target target(const JsonObject& o, const char* key, const nlohmann::json& text, size_t scheme) const {
    if (!text.is_string()) o.fail(key, "a list of names");
    Target t;
    t.text = text.get<std::string>();
    t.scheme = scheme;
    if (t.text.rfind("re:", 0) == 0) t.pattern.emplace(t.text.substr(3), fmt::format("{}: field \"{}\"", file_, key));
    return t;
  }

  void add_group(const JsonObject& groups, const std::string& name, std::string format) {
    const std::string field = "config_groups." + name;
    const std::optional<JsonObject> group = groups.object(name);
    if (!group) return;
    const std::optional<JsonObject> weights = group->object("weights");
    if (!weights) unsupported(field + ".weights", "groups without quantized weights are not supported");
    if (group->has("format")) format = lower_case(group->require_string("format"));
    Scheme s;
    s.field = field;
    s.packed = format == "pack-quantized";
    if (!s.packed && format != "int-quantized" && format != "naive-quantized")
      unsupported("format", fmt::format("the format {} is not supported", quote_for_message(format)));
    if (const std::string type = lower_case(weights->get_string("type", "int")); type != "int")
      unsupported(field + ".weights.type",
                  fmt::format("weights of type {} are not supported", quote_for_message(type)));
    s.bits = static_cast<int>(weights->get_int("num_bits", 8, 1, 64));
    if (s.bits != 2 && s.bits != 3 && s.bits != 4 && s.bits != 8)
      unsupported(field + ".weights.num_bits", fmt::format("{} bits are not supported, only 2, 3, 4 and 8", s.bits));
    s.symmetric = weights->get_bool("symmetric", true);
    if (const nlohmann::json* dynamic = weights->find("dynamic"); dynamic && *dynamic != nlohmann::json(false))
      unsupported(field + ".weights.dynamic", "weights that are quantized while the model runs are not supported");
    s.group = weights->get_int("group_size", 0, -1, int64_t{1} << 31);
    const std::string strategy = lower_case(weights->get_string("strategy", s.group > 0   ? "group"
                                                                            : s.group < 0 ? "channel"
                                                                                          : "tensor"));
    if (strategy == "group") {
      s.strategy = Scheme::Strategy::group;
      if (s.group < 1) weights->fail("group_size", "a positive integer");
    } else if (strategy == "channel" || strategy == "tensor") {
      s.strategy = strategy == "channel" ? Scheme::Strategy::channel : Scheme::Strategy::tensor;
    } else {
      unsupported(field + ".weights.strategy",
                  fmt::format("the strategy {} is not supported", quote_for_message(strategy)));
    }
    bool reordered = false;  // whether a module is, weight_g_idx says
    if (const nlohmann::json* order = weights->find("actorder"); order && *order != nlohmann::json(false)) {
      const std::string text = order->is_string()    ? lower_case(order->get<std::string>())
                               : order->is_boolean() ? "group"
                                                     : "";
      if (text != "group" && text != "dynamic" && text != "weight" && text != "static")
        weights->fail("actorder", "group, weight, static or dynamic");
      reordered = text == "group" || text == "dynamic";
    }
    read_activations(*group, field);
    const nlohmann::json* list = group->find("targets");
    if (!list || !list->is_array() || list->empty()) group->fail("targets", "a list of names");
    for (const nlohmann::json& text : *list) targets_.push_back(target(*group, "targets", text, schemes_.size()));
    if (description_.empty())
      description_ = fmt::format("compressed-tensors {} {}-bit {} {}", format, s.bits,
                                 s.strategy == Scheme::Strategy::group     ? "g" + std::to_string(s.group)
                                 : s.strategy == Scheme::Strategy::channel ? "row"
                                                                           : "tensor",
                                 s.symmetric ? "sym" : "asym") +
                     (reordered ? " act-order" : "");
    schemes_.push_back(s);
  }

  // Weights are what this reader delivers; that the model was made to compute with quantized inputs is said, and inputs
  // whose scales stand in the file are refused.
  void read_activations(const JsonObject& group, const std::string& field) {
    if (group.has("output_activations"))
      unsupported(field + ".output_activations", "quantized outputs are not supported");
    const std::optional<JsonObject> input = group.object("input_activations");
    if (!input) return;
    const nlohmann::json* dynamic = input->find("dynamic");
    if (!dynamic || *dynamic == nlohmann::json(false))
      unsupported(field + ".input_activations",
                  "inputs with scales that are stored in the file (dynamic: false) are not supported");
    const int64_t bits = input->get_int("num_bits", 8, 1, 64);
    const std::string type = input->get_string("type", "int");
    std::string warning = fmt::format(
        "{}: the model is meant to round the inputs of its linears to {} bits ({}) while it runs; they stay in floats",
        file_, bits, type);
    if (bits == 8 && type == "int") warning += ", or --precision int8_act";
    if (std::find(warnings_.begin(), warnings_.end(), warning) == warnings_.end()) warnings_.push_back(warning);
  }

  // A name counts before a pattern, and a pattern before the class, which is Linear for everything that is read here.
  const Scheme& scheme_of(const std::string& module) const {
    for (const Target& t : ignored_)
      if (t.names(module))
        throw Error(ErrorCode::input,
                    fmt::format("{}: module {} is quantized, but {}: field \"ignore\" names it ({})", tensors_.path(),
                                quote_for_message(module), file_, quote_for_message(t.text)),
                    "download the model again");
    const Target* found = nullptr;
    for (const Target& t : targets_)
      if (!t.pattern && t.text == module) return schemes_[t.scheme];
    for (const Target& t : targets_) {
      if (!t.pattern || !t.names(module)) continue;
      if (found && found->scheme != t.scheme)
        throw Error(ErrorCode::unsupported,
                    fmt::format("{}: module {} belongs to two groups, by the targets {} and {}", file_,
                                quote_for_message(module), quote_for_message(found->text), quote_for_message(t.text)),
                    "make the targets exclusive");
      found = &t;
    }
    for (const Target& t : targets_)
      if (!found && t.text == "Linear") found = &t;
    if (!found)
      throw Error(ErrorCode::input,
                  fmt::format("{}: module {} is quantized, but no group of {} has it as a target", tensors_.path(),
                              quote_for_message(module), file_),
                  "download the model again");
    return schemes_[found->scheme];
  }

  void read_packed(const std::string& module, const Scheme& scheme, CodedLinear& l) const {
    const TensorView packed = tensors_.view(module + ".weight_packed"), shape = tensors_.view(module + ".weight_shape");
    expect_words(packed, "[out, words]");
    if ((shape.info->dtype != SafetensorsDtype::i32 && shape.info->dtype != SafetensorsDtype::i64) ||
        shape.info->elements() != 2)
      refuse_tensor(shape, "expected two integers, found " + describe_tensor(*shape.info));
    int64_t size[2];
    shape.read_i64(size);
    const int64_t per_word = ct_per_word(scheme.bits), words = packed.info->shape[1];
    l.out = packed.info->shape[0];
    l.in = size[1];
    if (size[0] != l.out || l.in < 1 || l.in > INT32_MAX || (l.in + per_word - 1) / per_word != words)
      refuse_tensor(packed, fmt::format("expected the words of [{}, {}] with {} bits, found {}", size[0], size[1],
                                        scheme.bits, describe_tensor(*packed.info)));
    l.codes.resize(at(l.out * l.in));
    const uint32_t mask = (1u << scheme.bits) - 1;
    for (int64_t o = 0; o < l.out; ++o)
      for (int64_t i = 0; i < l.in; ++i)
        l.codes[at(o * l.in + i)] =
            static_cast<uint8_t>(word_at(packed, o * words + i / per_word) >> scheme.bits * (i % per_word) & mask);
  }

  void read_bytes(const std::string& module, const Scheme& scheme, CodedLinear& l) const {
    const TensorView weight = tensors_.view(module + ".weight");
    const TensorInfo& info = *weight.info;
    if (info.dtype != SafetensorsDtype::i8 || info.shape.size() != 2 || info.shape[0] < 1 || info.shape[1] < 1 ||
        info.shape[1] > INT32_MAX)
      refuse_tensor(weight, "expected I8 [out, in], found " + describe_tensor(info));
    l.out = info.shape[0];
    l.in = info.shape[1];
    l.codes.resize(at(l.out * l.in));
    shift(weight, scheme.bits, l.codes.data());
  }

  // Signed bytes to codes.
  static void shift(const TensorView& t, int bits, uint8_t* codes) {
    const int half = 1 << (bits - 1);
    for (int64_t i = 0; i < t.info->elements(); ++i) {
      int8_t value;
      std::memcpy(&value, t.data + i, 1);
      if (value < -half || value >= half)
        refuse_tensor(t, fmt::format("element {} is {}, which is not of {} bits", i, int{value}, bits));
      codes[i] = static_cast<uint8_t>(value + half);
    }
  }

  void read_grid(const std::string& module, const Scheme& scheme, CodedLinear& l) const {
    const TensorView scale = tensors_.view(module + ".weight_scale"),
                     zero = tensors_.find_view(module + ".weight_zero_point");
    const auto middle = static_cast<uint8_t>(1 << (scheme.bits - 1));
    if (scheme.strategy == Scheme::Strategy::tensor) {
      if (scale.info->elements() != 1 || !is_float(scale.info->dtype))
        refuse_tensor(
            scale, "expected one F16, BF16 or F32 scale for the whole matrix, found " + describe_tensor(*scale.info));
      float value;
      scale.read_f32(&value);
      l.scales_f32.assign(at(l.out), value);
    } else {
      read_scales(scale, false, l);
    }
    l.zero = middle;
    if (scheme.symmetric && !zero) return;
    if (!zero)
      throw Error(ErrorCode::input,
                  fmt::format("{}: module {} has no weight_zero_point, but {}: field \"{}.weights.symmetric\" is false",
                              tensors_.path(), quote_for_message(module), file_, scheme.field),
                  "download the model again");
    const int64_t values = scheme.strategy == Scheme::Strategy::tensor ? 1 : l.out * l.groups,
                  per_word = ct_per_word(scheme.bits);
    std::vector<uint8_t> zeros(at(values));
    if (zero.info->dtype == SafetensorsDtype::i8) {
      if (zero.info->elements() != values)
        refuse_tensor(zero,
                      fmt::format("expected I8 [{}, {}], found {}", l.out, l.groups, describe_tensor(*zero.info)));
      shift(zero, scheme.bits, zeros.data());
    } else {
      expect_words(zero, "[words, groups]");
      if (!scheme.packed || scheme.strategy == Scheme::Strategy::tensor ||
          zero.info->shape != std::vector<int64_t>{(l.out + per_word - 1) / per_word, l.groups})
        refuse_tensor(zero, fmt::format("expected the words of [{}, {}], packed along outputs, found {}", l.out,
                                        l.groups, describe_tensor(*zero.info)));
      const uint32_t mask = (1u << scheme.bits) - 1;
      for (int64_t o = 0; o < l.out; ++o)
        for (int64_t g = 0; g < l.groups; ++g)
          zeros[at(o * l.groups + g)] =
              static_cast<uint8_t>(word_at(zero, o / per_word * l.groups + g) >> scheme.bits * (o % per_word) & mask);
    }
    if (values == 1)
      l.zero = zeros[0];
    else
      l.zeros = std::move(zeros);
  }

  // Codes stand in the order of the inputs; here they are sorted into groups. All -1 means that nothing was reordered.
  static void read_order(const TensorView& g_idx, CodedLinear& l) {
    if (g_idx.info->dtype == SafetensorsDtype::i32 && g_idx.info->shape == std::vector<int64_t>{l.in} &&
        static_cast<int32_t>(word_at(g_idx, 0)) == -1)
      return;
    read_group_order(g_idx, l);
    if (l.perm.empty()) return;
    std::vector<uint8_t> row(at(l.in));
    for (int64_t o = 0; o < l.out; ++o) {
      uint8_t* codes = &l.codes[at(o * l.in)];
      for (int64_t c = 0; c < l.in; ++c) row[at(c)] = codes[l.perm[at(c)]];
      std::copy(row.begin(), row.end(), codes);
    }
  }

  std::string file_, description_;
  const TensorSource& tensors_;
  std::vector<Scheme> schemes_;
  std::vector<Target> targets_, ignored_;
  std::vector<std::string> warnings_;
};

}  // namespace

std::unique_ptr<CodedSource> open_compressed_tensors(const QuantStatement& statement, const TensorSource& tensors) {
  return std::make_unique<CompressedTensors>(statement, tensors);
}

CtPacked pack_compressed(int64_t out, int64_t in, int64_t groups, int bits, const uint8_t* codes,
                         const uint8_t* zeros) {
  const int64_t per_word = ct_per_word(bits), words = (in + per_word - 1) / per_word;
  CtPacked p;
  p.weight.resize(at(out * words));
  p.zero_point.resize(at((out + per_word - 1) / per_word * groups));
  for (int64_t o = 0; o < out; ++o)
    for (int64_t i = 0; i < in; ++i)
      p.weight[at(o * words + i / per_word)] |= uint32_t{codes[o * in + i]} << bits * (i % per_word);
  for (int64_t o = 0; o < out; ++o)
    for (int64_t g = 0; g < groups; ++g)
      p.zero_point[at(o / per_word * groups + g)] |= uint32_t{zeros[o * groups + g]} << bits * (o % per_word);
  return p;
}

}  // namespace thimble
