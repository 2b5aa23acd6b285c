// Each format is taken apart by one function into codes and per-group scale and minimum; decoding multiplies them out.
// The products d * sc and dmin * m are exact in f32 (an f16 has 11 significant bits, a sub-scale at most 8), so the
// value of a weight is rounded at most twice, whoever computes it.
#include "models/io/ggml_blocks.h"

#include <algorithm>
#include <cstring>

#include "models/io/half.h"
#include "tensor/error.h"

namespace thimble {

const int8_t kIq4NlValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

namespace {

using io_detail::bf16_to_f32;
using io_detail::f16_to_f32;

enum class Offset : uint8_t { zero, minimum };

// How the codes of a format look once taken apart.
struct Coding {
  GgmlType type;
  int bits;
  int group;  // elements that share scale and minimum
  int zero;   // code that stands for 0
  Offset offset;
  bool f16_scale;  // the scale is the block's own f16
};
constexpr Coding kCodings[] = {
    {GgmlType::q4_0, 4, 32, 8, Offset::zero, true},     {GgmlType::q4_1, 4, 32, 0, Offset::minimum, false},
    {GgmlType::q5_0, 5, 32, 16, Offset::zero, true},    {GgmlType::q5_1, 5, 32, 0, Offset::minimum, false},
    {GgmlType::q8_0, 8, 32, 128, Offset::zero, true},   {GgmlType::q2_k, 2, 16, 0, Offset::minimum, false},
    {GgmlType::q3_k, 3, 16, 4, Offset::zero, false},    {GgmlType::q4_k, 4, 32, 0, Offset::minimum, false},
    {GgmlType::q5_k, 5, 32, 0, Offset::minimum, false}, {GgmlType::q6_k, 6, 16, 32, Offset::zero, false},
    {GgmlType::iq4_nl, 8, 32, 128, Offset::zero, true},
};

const Coding* find_coding(GgmlType type) {
  for (const Coding& c : kCodings)
    if (c.type == type) return &c;
  return nullptr;
}

// A block taken apart; only the arrays that the coding uses are filled.
struct Block {
  uint8_t codes[256];
  uint16_t scale_bits;  // formats with f16_scale
  float scales[16];     // per group
  float mins[16];
};

uint16_t load16(const uint8_t* at) { return static_cast<uint16_t>(at[0] | at[1] << 8); }
float half_at(const uint8_t* at) { return f16_to_f32(load16(at)); }

// 16 bytes of nibbles: the low ones are elements 0..15, the high ones 16..31.
void split_nibbles(const uint8_t* qs, uint8_t* codes) {
  for (int j = 0; j < 16; ++j) {
    codes[j] = qs[j] & 15;
    codes[j + 16] = qs[j] >> 4;
  }
}

void add_fifth_bits(const uint8_t* qh, uint8_t* codes) {
  for (int j = 0; j < 32; ++j) codes[j] = static_cast<uint8_t>(codes[j] | (qh[j / 8] >> j % 8 & 1) << 4);
}

// The eight 6-bit scales and minima in 12 bytes of Q4_K and Q5_K.
void scales_of_k(const uint8_t* s, float d, float dmin, Block* b) {
  for (int j = 0; j < 8; ++j) {
    const int sc = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    const int m = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    b->scales[j] = d * static_cast<float>(sc);
    b->mins[j] = -(dmin * static_cast<float>(m));
  }
}

void take_q4_0(const uint8_t* p, Block* b) {
  b->scale_bits = load16(p);
  split_nibbles(p + 2, b->codes);
}

void take_q4_1(const uint8_t* p, Block* b) {
  b->scales[0] = half_at(p);
  b->mins[0] = half_at(p + 2);
  split_nibbles(p + 4, b->codes);
}

void take_q5_0(const uint8_t* p, Block* b) {
  b->scale_bits = load16(p);
  split_nibbles(p + 6, b->codes);
  add_fifth_bits(p + 2, b->codes);
}

void take_q5_1(const uint8_t* p, Block* b) {
  b->scales[0] = half_at(p);
  b->mins[0] = half_at(p + 2);
  split_nibbles(p + 8, b->codes);
  add_fifth_bits(p + 4, b->codes);
}

void take_q8_0(const uint8_t* p, Block* b) {
  b->scale_bits = load16(p);
  for (int j = 0; j < 32; ++j) b->codes[j] = p[2 + j] ^ 0x80;  // two's complement to offset 128
}

void take_iq4_nl(const uint8_t* p, Block* b) {
  b->scale_bits = load16(p);
  split_nibbles(p + 2, b->codes);
  for (int j = 0; j < 32; ++j) b->codes[j] = static_cast<uint8_t>(kIq4NlValues[b->codes[j]] + 128);
}

void take_q2_k(const uint8_t* p, Block* b) {
  const uint8_t* qs = p + 16;
  const float d = half_at(p + 80), dmin = half_at(p + 82);
  for (int g = 0; g < 16; ++g) {
    b->scales[g] = d * static_cast<float>(p[g] & 15);
    b->mins[g] = -(dmin * static_cast<float>(p[g] >> 4));
  }
  for (int i = 0; i < 256; ++i) b->codes[i] = qs[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
}

void take_q3_k(const uint8_t* p, Block* b) {
  const uint8_t *hmask = p, *qs = p + 32, *s = p + 96;
  const float d = half_at(p + 108);
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4;
    const int high = s[8 + g % 4] >> g / 4 * 2 & 3;
    b->scales[g] = d * static_cast<float>((low | high << 4) - 32);
  }
  for (int i = 0; i < 256; ++i) {
    const int two = qs[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3;
    const int high = hmask[i % 32] >> i / 32 & 1;
    b->codes[i] = static_cast<uint8_t>(two | high << 2);
  }
}

void take_q4_k(const uint8_t* p, Block* b) {
  scales_of_k(p + 4, half_at(p), half_at(p + 2), b);
  const uint8_t* qs = p + 16;
  for (int i = 0; i < 256; ++i) b->codes[i] = qs[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
}

void take_q5_k(const uint8_t* p, Block* b) {
  scales_of_k(p + 4, half_at(p), half_at(p + 2), b);
  const uint8_t *qh = p + 16, *qs = p + 48;
  for (int i = 0; i < 256; ++i) {
    const int four = qs[i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15;
    b->codes[i] = static_cast<uint8_t>(four | (qh[i % 32] >> i / 32 & 1) << 4);
  }
}

void take_q6_k(const uint8_t* p, Block* b) {
  const float d = half_at(p + 208);
  for (int g = 0; g < 16; ++g) b->scales[g] = d * static_cast<float>(static_cast<int8_t>(p[192 + g]));
  for (int i = 0; i < 256; ++i) {
    const uint8_t *ql = p + i / 128 * 64, *qh = p + 128 + i / 128 * 32;
    const int l = i % 32, row = i % 128 / 32;
    const int four = ql[l + row % 2 * 32] >> row / 2 * 4 & 15;
    b->codes[i] = static_cast<uint8_t>(four | (qh[l] >> row * 2 & 3) << 4);
  }
}

void take_apart(GgmlType type, const uint8_t* p, Block* b) {
  switch (type) {
    case GgmlType::q4_0:
      return take_q4_0(p, b);
    case GgmlType::q4_1:
      return take_q4_1(p, b);
    case GgmlType::q5_0:
      return take_q5_0(p, b);
    case GgmlType::q5_1:
      return take_q5_1(p, b);
    case GgmlType::q8_0:
      return take_q8_0(p, b);
    case GgmlType::q2_k:
      return take_q2_k(p, b);
    case GgmlType::q3_k:
      return take_q3_k(p, b);
    case GgmlType::q4_k:
      return take_q4_k(p, b);
    case GgmlType::q5_k:
      return take_q5_k(p, b);
    case GgmlType::q6_k:
      return take_q6_k(p, b);
    case GgmlType::iq4_nl:
      return take_iq4_nl(p, b);
    default:
      THIMBLE_CHECK(false);
  }
}

}  // namespace

bool ggml_is_plain(GgmlType type) {
  switch (type) {
    case GgmlType::f32:
    case GgmlType::f16:
    case GgmlType::bf16:
    case GgmlType::f64:
    case GgmlType::i8:
    case GgmlType::i16:
    case GgmlType::i32:
    case GgmlType::i64:
      return true;
    default:
      return false;
  }
}

SafetensorsDtype ggml_plain_dtype(GgmlType type) {
  switch (type) {
    case GgmlType::f16:
      return SafetensorsDtype::f16;
    case GgmlType::bf16:
      return SafetensorsDtype::bf16;
    case GgmlType::f64:
      return SafetensorsDtype::f64;
    case GgmlType::i8:
      return SafetensorsDtype::i8;
    case GgmlType::i16:
      return SafetensorsDtype::i16;
    case GgmlType::i32:
      return SafetensorsDtype::i32;
    case GgmlType::i64:
      return SafetensorsDtype::i64;
    default:
      THIMBLE_CHECK(type == GgmlType::f32);
  }
  return SafetensorsDtype::f32;
}

bool ggml_is_coded(GgmlType type) { return find_coding(type) != nullptr; }

void decode_ggml(GgmlType type, const std::byte* data, int64_t elements, float* out) {
  if (ggml_is_plain(type)) {
    TensorInfo info;
    info.dtype = ggml_plain_dtype(type);
    info.shape = {elements};
    TensorView{&info, data, {}}.read_f32(out);
    return;
  }
  const Coding* c = find_coding(type);
  THIMBLE_CHECK(c != nullptr);
  const GgmlTypeInfo& info = ggml_type_info(type);
  const auto* p = reinterpret_cast<const uint8_t*>(data);
  Block b;
  for (int64_t at = 0; at < elements; at += info.elements, p += info.bytes) {
    take_apart(type, p, &b);
    if (c->f16_scale) b.scales[0] = f16_to_f32(b.scale_bits);
    for (int i = 0; i < info.elements; ++i) {
      const int g = i / c->group;
      const float v = b.scales[g] * static_cast<float>(b.codes[i] - c->zero);
      out[at + i] = c->offset == Offset::minimum ? v + b.mins[g] : v;
    }
  }
}

CodedLinear read_ggml_coded(GgmlType type, const std::byte* data, int64_t rows, int64_t cols,
                            const std::vector<int32_t>& row_map) {
  const Coding* c = find_coding(type);
  THIMBLE_CHECK(c != nullptr);
  const GgmlTypeInfo& info = ggml_type_info(type);
  CodedLinear q;
  q.out = rows;
  q.in = cols;
  q.group_size = c->group;
  q.groups = cols / c->group;
  q.bits = c->bits;
  q.zero = static_cast<uint8_t>(c->zero);
  const auto n = static_cast<size_t>(rows * cols), groups = static_cast<size_t>(rows * q.groups);
  q.codes.resize(n);
  if (c->f16_scale)
    q.scales_f16.resize(groups);
  else
    q.scales_f32.resize(groups);
  if (c->offset == Offset::minimum) q.mins.resize(groups);
  const int64_t blocks = cols / info.elements, per_block = info.elements / c->group;
  Block b;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = row_map.empty() ? r : row_map[static_cast<size_t>(r)];
    const auto* p = reinterpret_cast<const uint8_t*>(data) + from * blocks * info.bytes;
    for (int64_t k = 0; k < blocks; ++k, p += info.bytes) {
      take_apart(type, p, &b);
      const auto at = static_cast<size_t>(r * cols + k * info.elements),
                 group = static_cast<size_t>(r * q.groups + k * per_block);
      std::copy_n(b.codes, info.elements, &q.codes[at]);
      if (c->f16_scale)
        q.scales_f16[group] = b.scale_bits;
      else
        std::copy_n(b.scales, per_block, &q.scales_f32[group]);
      if (c->offset == Offset::minimum) std::copy_n(b.mins, per_block, &q.mins[group]);
    }
  }
  return q;
}

}  // namespace thimble
