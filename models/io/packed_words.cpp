#include "models/io/packed_words.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "models/io/json.h"
#include "tensor/error.h"

namespace thimble::io_detail {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

}  // namespace

void refuse_tensor(const TensorView& t, const std::string& what) {
  throw Error(ErrorCode::input, fmt::format("{}: tensor {}: {}", t.file, quote_for_message(t.info->name), what),
              "the quantization config and the tensors disagree; download the model again");
}

void unsupported_tensor(const TensorView& t, const std::string& what, const std::string& hint) {
  throw Error(ErrorCode::unsupported, fmt::format("{}: tensor {}: {}", t.file, quote_for_message(t.info->name), what),
              hint);
}

void expect_words(const TensorView& t, const char* what) {
  if (t.info->dtype != SafetensorsDtype::i32 && t.info->dtype != SafetensorsDtype::u32)
    refuse_tensor(t, std::string("expected I32 ") + what + ", found " + describe_tensor(*t.info));
  if (t.info->shape.size() != 2 || t.info->shape[0] < 1 || t.info->shape[1] < 1)
    refuse_tensor(t, std::string("expected two dimensions ") + what + ", found " + describe_tensor(*t.info));
}

void read_scales(const TensorView& t, bool by_group, CodedLinear& l) {
  const std::vector<int64_t> shape =
      by_group ? std::vector<int64_t>{l.groups, l.out} : std::vector<int64_t>{l.out, l.groups};
  if (t.info->shape != shape || !is_float(t.info->dtype))
    refuse_tensor(
        t, fmt::format("expected F16, BF16 or F32 [{}, {}], found {}", shape[0], shape[1], describe_tensor(*t.info)));
  const int64_t n = l.out * l.groups;
  const auto from = [&](int64_t o, int64_t g) { return by_group ? g * l.out + o : o * l.groups + g; };
  if (t.info->dtype == SafetensorsDtype::f16) {
    l.scales_f16.resize(at(n));
    for (int64_t o = 0; o < l.out; ++o)
      for (int64_t g = 0; g < l.groups; ++g)
        std::memcpy(&l.scales_f16[at(o * l.groups + g)], t.data + 2 * from(o, g), 2);
    return;
  }
  std::vector<float> stored(at(n));
  t.read_f32(stored.data());
  l.scales_f32.resize(at(n));
  for (int64_t o = 0; o < l.out; ++o)
    for (int64_t g = 0; g < l.groups; ++g) l.scales_f32[at(o * l.groups + g)] = stored[at(from(o, g))];
}

void read_group_order(const TensorView& t, CodedLinear& l) {
  if (t.info->shape != std::vector<int64_t>{l.in} ||
      (t.info->dtype != SafetensorsDtype::i32 && t.info->dtype != SafetensorsDtype::i64))
    refuse_tensor(t, fmt::format("expected I32 [{}], found {}", l.in, describe_tensor(*t.info)));
  std::vector<int64_t> group(at(l.in));
  t.read_i64(group.data());
  for (size_t i = 0; i < group.size(); ++i)
    if (group[i] < 0 || group[i] >= l.groups)
      refuse_tensor(t, fmt::format("input {}: expected a group between 0 and {}, found {}", i, l.groups - 1, group[i]));
  l.perm.resize(group.size());
  std::iota(l.perm.begin(), l.perm.end(), 0);
  std::stable_sort(l.perm.begin(), l.perm.end(), [&](int32_t a, int32_t b) { return group[at(a)] < group[at(b)]; });
  for (int64_t c = 0; c < l.in; ++c)
    if (group[at(l.perm[at(c)])] != c / l.group_size)
      unsupported_tensor(
          t, fmt::format("the groups are not all of {} inputs (group {} differs)", l.group_size, c / l.group_size),
          "quantize the model again with act-order groups of equal size, or without desc_act");
  if (std::is_sorted(l.perm.begin(), l.perm.end())) l.perm.clear();
}

void read_bias(const TensorView& t, CodedLinear& l) {
  if (!t) return;
  if (t.info->shape != std::vector<int64_t>{l.out})
    refuse_tensor(t, fmt::format("expected [{}], found {}", l.out, describe_tensor(*t.info)));
  l.bias.resize(at(l.out));
  t.read_f32(l.bias.data());
}

void set_groups(int64_t group, CodedLinear& l) {
  l.group_size = group <= 0 ? l.in : std::min(group, l.in);
  l.groups = (l.in + l.group_size - 1) / l.group_size;
}

}  // namespace thimble::io_detail
