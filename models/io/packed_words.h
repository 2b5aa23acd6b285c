// What the readers of packed formats share: fields in 32-bit words, scales, groups, and checks of shapes. Errors name
// file and tensor.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "models/io/coded_linear.h"

namespace thimble::io_detail {

// Throws input: FILE: tensor "NAME": what.
[[noreturn]] void refuse_tensor(const TensorView& t, const std::string& what);
// Throws unsupported in the same words.
[[noreturn]] void unsupported_tensor(const TensorView& t, const std::string& what, const std::string& hint);

// A matrix of 32-bit words (I32 or U32) with at least one row and column. what: its shape in words, for the message.
void expect_words(const TensorView& t, const char* what);

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

inline uint32_t word_at(const TensorView& t, int64_t i) {
  uint32_t v;
  std::memcpy(&v, t.data + 4 * i, sizeof v);
  return v;
}

// Fills the scales of l, which knows out and groups, from F16, BF16 or F32 [groups, out] (by_group) or [out, groups].
void read_scales(const TensorView& t, bool by_group, CodedLinear& l);

// l.perm from the group of every input [in]; left empty when it is the identity. Groups other than l.group_size
// neighbours in sorted order are refused (unsupported).
void read_group_order(const TensorView& t, CodedLinear& l);

// l.bias from [out]; nothing when t is empty.
void read_bias(const TensorView& t, CodedLinear& l);

// The number of groups of l.in inputs, and l.group_size; group < 0 or 0: one group.
void set_groups(int64_t group, CodedLinear& l);

inline bool is_float(SafetensorsDtype d) {
  return d == SafetensorsDtype::f16 || d == SafetensorsDtype::bf16 || d == SafetensorsDtype::f32;
}

}  // namespace thimble::io_detail
