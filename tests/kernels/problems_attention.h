// Problems of the attention signatures. Tolerances come from the error of exp and of the sums, evaluated in double
// with the probabilities of the case at hand; see problems_rows.h for the constants. Slots with bf16 products round operands
// as their reference does, so that sums are all that differs, but for the exponentials: these are rounded from sums.
#pragma once

#include "tests/kernels/problems_bf16.h"
#include "tests/kernels/problems_rows.h"

namespace thimble::testing {

// One attention case: buffers, arguments, and the double-precision probabilities that its tolerances are made of.
struct AttentionData {
  AttentionArgs args{};
  bool rounds_queries = false, rounds_keys = false;  // to bf16
  Guarded<float> q, k, v, prefix_k, prefix_v, o, lse, alibi, scratch;

  static Shape shape(int64_t tq, int64_t tk, int64_t group, int64_t head_dim, int64_t causal, int64_t window = 0,
                     int64_t prefix = 0, int64_t softcap = 0, int64_t alibi = 0, int64_t one = 0) {
    return make_shape({{"tq", tq},
                       {"tk", tk},
                       {"group", group},
                       {"D", head_dim},
                       {"causal", causal},
                       {"window", window},
                       {"prefix", prefix},
                       {"softcap", softcap},
                       {"alibi", alibi},
                       {"one", one}});
  }
  static std::vector<Shape> test_shapes() {
    std::vector<Shape> shapes;
    for (int64_t d : {1, 6, 8, 17, 64, 80, 127, 256}) shapes.push_back(shape(7, 9, 2, d, 1));
    for (int64_t g : {1, 3, 8}) shapes.push_back(shape(5, 300, g, 40, 1));
    shapes.push_back(shape(1, 1, 1, 64, 1));
    shapes.push_back(shape(1, 257, 4, 64, 1));
    shapes.push_back(shape(70, 150, 1, 32, 0));
    shapes.push_back(shape(140, 140, 1, 48, 1));
    shapes.push_back(shape(66, 270, 1, 16, 1, 50));
    shapes.push_back(shape(66, 270, 2, 16, 0, 50));
    shapes.push_back(shape(13, 20, 2, 24, 1, 3));
    shapes.push_back(shape(9, 9, 2, 20, 1, 0, 5));
    shapes.push_back(shape(9, 140, 1, 20, 1, 0, 133));
    shapes.push_back(shape(20, 150, 2, 20, 1, 0, 0, 5));
    shapes.push_back(shape(20, 150, 2, 20, 1, 0, 3, 0, 1));
    shapes.push_back(shape(20, 150, 2, 20, 1, 0, 0, 0, 0, 1));
    shapes.push_back(shape(20, 150, 3, 10, 1, 40, 7, 5, 1, 1));
    shapes.push_back(shape(2, 1100, 3, 12, 1, 0, 4, 0, 1, 1));
    shapes.push_back(shape(70, 1090, 1, 8, 1, 540));
    shapes.push_back(shape(3, 0, 1, 8, 0));
    shapes.push_back(shape(3, 0, 1, 8, 1, 0, 4));
    shapes.push_back(shape(0, 5, 1, 8, 0));
    return shapes;
  }
  static std::vector<Shape> bench_shapes() {
    return {shape(64, 512, 1, 64, 1), shape(512, 512, 1, 64, 1), shape(2048, 2048, 1, 64, 1), shape(1, 2048, 1, 64, 1),
            shape(1, 2048, 8, 64, 1)};
  }
  AttentionData(const Shape& s, uint64_t seed, int64_t misalign, int64_t scratch_floats) {
    Random random(seed);
    const auto& d = s.dims;
    const int64_t head_dim = d[3], group = d[2], n_prefix = d[6];
    args.tq = d[0];
    args.tk = d[1];
    args.group = group;
    args.head_dim = head_dim;
    args.causal = static_cast<int32_t>(d[4]);
    args.window = d[5];
    args.n_prefix = n_prefix;
    args.softcap = static_cast<float>(d[7]);
    args.softmax_one = static_cast<int32_t>(d[9]);
    args.q_pos0 = args.tk > args.tq ? args.tk - args.tq : 0;
    args.scale = 1.5f / std::sqrt(static_cast<float>(head_dim));
    args.q_head = head_dim + 1;
    args.q_row = group * args.q_head + 2;
    args.o_head = head_dim + 3;
    args.o_row = group * args.o_head;
    args.k_row = head_dim + 2;
    args.v_row = head_dim + 5;
    args.prefix_row = head_dim + 1;
    args.lse_head = args.tq + 1;
    q = normal_buffer(args.tq * args.q_row, misalign, random);
    k = normal_buffer(args.tk * args.k_row, misalign, random);
    v = normal_buffer(args.tk * args.v_row, misalign, random);
    prefix_k = normal_buffer(n_prefix * args.prefix_row, misalign, random);
    prefix_v = normal_buffer(n_prefix * args.prefix_row, misalign, random);
    o = Guarded<float>(args.tq * args.o_row, misalign);
    lse = Guarded<float>(group * args.lse_head, misalign);
    alibi = Guarded<float>(group, misalign);
    for (int64_t g = 0; g < group; ++g) alibi[g] = 0.05f / static_cast<float>(g + 1);
    scratch = Guarded<float>(scratch_floats, misalign);
    args.alibi = d[8] ? alibi.data() : nullptr;
    bind();
  }
  AttentionData(AttentionData&&) = delete;
  void bind() {
    args.q = q.data();
    args.k = k.data();
    args.v = v.data();
    args.prefix_k = args.n_prefix > 0 ? prefix_k.data() : nullptr;
    args.prefix_v = args.n_prefix > 0 ? prefix_v.data() : nullptr;
    args.o = o.data();
    args.lse = lse.data();
    args.scratch = scratch.data();
  }
  bool intact() const {
    return q.intact() && k.intact() && v.intact() && prefix_k.intact() && prefix_v.intact() && o.intact() &&
           lse.intact() && alibi.intact() && scratch.intact();
  }
  double visible_pairs() const {
    double pairs = 0;
    for (int64_t t = 0; t < args.tq; ++t) {
      for (int64_t j = -args.n_prefix; j < args.tk; ++j) pairs += sees(t, j) ? static_cast<double>(args.group) : 0.0;
    }
    return pairs;
  }

  // Key j; negative: prefix key j + n_prefix.
  bool sees(int64_t t, int64_t j) const {
    const int64_t pos = args.q_pos0 + t;
    return j < 0 || ((!args.causal || j <= pos) && (args.window == 0 || j > pos - args.window));
  }
  const float* key(int64_t j) const {
    return j < 0 ? args.prefix_k + (j + args.n_prefix) * args.prefix_row : args.k + j * args.k_row;
  }
  const float* value(int64_t j) const {
    return j < 0 ? args.prefix_v + (j + args.n_prefix) * args.prefix_row : args.v + j * args.v_row;
  }
  struct Pair {
    double p, score, slope,
        error;  // probability; score; d score / d (scale q.k); bound on the error of the score in f32
  };
  // Row (t, g) over all keys from -n_prefix on; p = 0 where it does not see. lse: natural log of the normaliser.
  std::vector<Pair> row(int64_t t, int64_t g, double* log_sum) const {
    std::vector<Pair> pairs;
    double max = args.softmax_one ? 0 : -std::numeric_limits<double>::infinity();
    const float* query = args.q + t * args.q_row + g * args.q_head;
    for (int64_t j = -args.n_prefix; j < args.tk; ++j) {
      Pair pair{0, 0, 1, 0};
      if (sees(t, j)) {
        double dot = 0, size = 0;
        for (int64_t d = 0; d < args.head_dim; ++d) {
          const double x = rounds_queries ? bf16_rounded(query[d]) : query[d];
          const double y = rounds_keys ? bf16_rounded(key(j)[d]) : key(j)[d];
          dot += x * y;
          size += std::abs(x * y);
        }
        pair.score = dot * args.scale;
        pair.error = static_cast<double>(args.head_dim + 2) * (rounds_queries ? 2 : 1) * kRound * size * args.scale;
        if (args.softcap != 0) {
          const double tanh = std::tanh(pair.score / args.softcap);
          pair.score = args.softcap * tanh;
          pair.slope = 1 - tanh * tanh;
          pair.error += 6 * kRound * std::abs(pair.score);
        }
        if (args.alibi && j >= 0) {
          const double bias = static_cast<double>(args.alibi[g]) * static_cast<double>(j);
          pair.score += bias;
          pair.error += 2 * kRound * (std::abs(pair.score) + std::abs(bias));
        }
        pair.p = 1;
        max = std::max(max, pair.score);
      }
      pairs.push_back(pair);
    }
    double sum = args.softmax_one ? std::exp(-max) : 0;
    for (Pair& pair : pairs) {
      if (pair.p != 0) sum += std::exp(pair.score - max);
    }
    for (Pair& pair : pairs) {
      if (pair.p == 0) continue;
      pair.p = std::exp(pair.score - max) / sum;
      // Rounding of score and maximum, both again as multiples of ln 2, of their difference, and of exp itself.
      pair.error += kRound * (4 * std::abs(pair.score) + 4 * std::abs(max) + 4);
    }
    *log_sum = max + std::log(sum);
    return pairs;
  }
};

// An exponential is rounded to bf16 on both sides, from numbers that differ by a factor.
constexpr double kWeightRounding = 2 * 0x1p-9 * (1 + 0x1p-8);

inline bool has_bf16_products(const SlotInfo& slot) { return std::string(slot.name).find("_bf16") != std::string::npos; }

template <>
struct Problem<AttentionFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return AttentionData::test_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) { return AttentionData::bench_shapes(); }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign)
      : data_(s, seed, misalign, attention_scratch_floats(s.dims[3])) {
    data_.rounds_queries = data_.rounds_keys = has_bf16_products(slot);
  }
  void run(AttentionFn fn) {
    for (int64_t i = 0; i < data_.o.size(); ++i) data_.o[i] = 7.0f;
    for (int64_t i = 0; i < data_.lse.size(); ++i) data_.lse[i] = 7.0f;
    fn(data_.args);
  }
  std::vector<Output> outputs() const { return outputs_of(data_); }
  static std::vector<Output> outputs_of(const AttentionData& data_) {
    const AttentionArgs& a = data_.args;
    std::vector<double> o(static_cast<size_t>(data_.o.size())), lse(static_cast<size_t>(data_.lse.size()));
    for (int64_t t = 0; t < a.tq; ++t) {
      for (int64_t g = 0; g < a.group; ++g) {
        double log_sum = 0, error = 0, seen = 0;
        const auto pairs = data_.row(t, g, &log_sum);
        for (const auto& pair : pairs) {
          error += pair.p * pair.error;
          seen += pair.p > 0;
        }
        // A chain over the keys, one rescaling by exp per block of keys, one division.
        // Merging a part is another rescaling; the reference rounds its parts too.
        const double blocks = static_cast<double>(a.tk + a.n_prefix) / static_cast<double>(kAttentionBlockK) + 2;
        const double parts = static_cast<double>(a.tk) / static_cast<double>(kAttentionChunkK) + 3;
        const double chain = (seen + 4 * blocks + 6 * parts + 8) * kRound;
        for (int64_t d = 0; d < a.head_dim; ++d) {
          double bound = 0;
          for (size_t i = 0; i < pairs.size(); ++i) {
            const double v = std::abs(data_.value(static_cast<int64_t>(i) - a.n_prefix)[d]);
            bound += pairs[i].p * v * (pairs[i].error + error + (data_.rounds_queries ? kWeightRounding + 4 * chain : 2 * chain));
          }
          o[static_cast<size_t>(t * a.o_row + g * a.o_head + d)] = bound;
        }
        lse[static_cast<size_t>(g * a.lse_head + t)] = error + chain + 2 * kRound * std::abs(log_sum);
        if (seen == 0) lse[static_cast<size_t>(g * a.lse_head + t)] = 0;
      }
    }
    return {whole_buffer("o", data_.o, o), whole_buffer("lse", data_.lse, lse)};
  }
  bool guards_intact() const { return data_.intact(); }
  double flops() const { return 4.0 * data_.visible_pairs() * static_cast<double>(data_.args.head_dim); }
  double bytes() const {
    const AttentionArgs& a = data_.args;
    return 8.0 * static_cast<double>((a.tq * a.group + a.tk + a.n_prefix) * a.head_dim);
  }

 private:
  AttentionData data_;
};

// A cache with the values of AttentionData's keys, which are rounded to what the cache holds: the tolerances of attention
// over these apply. Seen keys and values of the case are random; what lies behind them in the cache is NaN.
class CacheData {
 public:
  enum class Type { f32, f16, int8 };
  static Type type_of(const SlotInfo& slot) {
    const std::string name = slot.name;
    const auto starts = [&](const char* with) { return name.rfind(with, 0) == 0; };
    return starts("attention_cache_f32") ? Type::f32 : starts("attention_cache_f16") ? Type::f16 : Type::int8;
  }
  CacheData(Type type, AttentionData& data, int64_t misalign) {
    AttentionArgs& f = data.args;
    const int64_t dim = f.head_dim, keys = (f.tk + kAttentionBlockK - 1) / kAttentionBlockK * kAttentionBlockK;
    const int64_t element = type == Type::f32 ? 4 : type == Type::f16 ? 2 : 1;
    k_ = Guarded<uint8_t>(keys * dim * element, misalign * element);
    v_ = Guarded<uint8_t>(f.tk * dim * element + 64, misalign * element);
    k_scale_ = Guarded<float>(keys, misalign);
    v_scale_ = Guarded<float>(keys, misalign);
    for (int64_t i = 0; i < k_.size(); ++i) k_[i] = 0xFF;  // NaN as f32 and as f16
    for (int64_t i = 0; i < v_.size(); ++i) v_[i] = 0xFF;
    for (int64_t i = 0; i < keys; ++i) k_scale_[i] = v_scale_[i] = std::numeric_limits<float>::quiet_NaN();
    const KernelTable ref = build_kernel_table(Tier::ref);
    std::vector<uint16_t> half(static_cast<size_t>(dim));
    std::vector<int8_t> codes(static_cast<size_t>(dim));
    int32_t sum = 0;
    for (int64_t j = 0; j < f.tk; ++j) {
      for (const bool is_key : {true, false}) {
        float* row = is_key ? data.k.data() + j * f.k_row : data.v.data() + j * f.v_row;
        float& scale = is_key ? k_scale_[j] : v_scale_[j];
        if (type == Type::f16) {
          ref.f32_to_f16({dim, row, half.data()});
          ref.f16_to_f32({dim, half.data(), row});
        }
        if (type == Type::int8) {
          ref.quantize_i8({1, dim, dim, row, dim, 1, dim, codes.data(), &scale, &sum});
          for (int64_t d = 0; d < dim; ++d) row[d] = static_cast<float>(codes[static_cast<size_t>(d)]) * scale;
        }
        for (int64_t d = 0; d < dim; ++d) {
          const auto from = static_cast<size_t>(d);
          const int64_t block = j / kAttentionBlockK, at = (block * dim + d) * kAttentionBlockK + j % kAttentionBlockK;
          uint8_t* to = is_key ? k_.data() + at * element : v_.data() + (j * dim + d) * element;
          const void* source = type == Type::f32 ? static_cast<const void*>(row + d)
                               : type == Type::f16 ? static_cast<const void*>(&half[from])
                                                   : static_cast<const void*>(&codes[from]);
          std::memcpy(to, source, static_cast<size_t>(element));
        }
      }
    }
    args_.f = f;
    args_.k = k_.data();
    args_.v = v_.data();
    if (type == Type::int8) {
      args_.k_scale = k_scale_.data();
      args_.v_scale = v_scale_.data();
    }
    args_.part = kAttentionAllParts;
    bytes_ = static_cast<double>(2 * f.tk * (dim * element + (type == Type::int8 ? 4 : 0)));
  }
  CacheData(const CacheData&) = delete;
  const AttentionCacheArgs& args() const { return args_; }
  bool intact() const { return k_.intact() && v_.intact() && k_scale_.intact() && v_scale_.intact(); }
  double bytes() const { return bytes_; }

 private:
  AttentionCacheArgs args_{};
  Guarded<uint8_t> k_, v_;
  Guarded<float> k_scale_, v_scale_;
  double bytes_ = 0;
};

template <>
struct Problem<AttentionCacheFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes = AttentionData::test_shapes();
    for (int64_t g = 1; g <= 9; ++g) shapes.push_back(AttentionData::shape(1, 600, g, 20, 1));
    shapes.push_back(AttentionData::shape(3, 1200, 16, 128, 1));
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {AttentionData::shape(1, 2048, 1, 64, 1), AttentionData::shape(1, 2048, 8, 64, 1),
            AttentionData::shape(1, 2048, 1, 80, 1), AttentionData::shape(64, 2048, 1, 64, 1)};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign)
      : data_(s, seed, misalign, attention_scratch_floats(s.dims[3])), cache_(CacheData::type_of(slot), data_, misalign) {
    data_.rounds_queries = has_bf16_products(slot);
    data_.rounds_keys = data_.rounds_queries && CacheData::type_of(slot) != CacheData::Type::int8;
  }
  void run(AttentionCacheFn fn) {
    for (int64_t i = 0; i < data_.o.size(); ++i) data_.o[i] = 7.0f;
    for (int64_t i = 0; i < data_.lse.size(); ++i) data_.lse[i] = 7.0f;
    fn(cache_.args());
  }
  // A scale is applied to the score or the probability: two more roundings, inside what the chains allow.
  std::vector<Output> outputs() const { return Problem<AttentionFn>::outputs_of(data_); }
  bool guards_intact() const { return data_.intact() && cache_.intact(); }
  double flops() const { return 4.0 * data_.visible_pairs() * static_cast<double>(data_.args.head_dim); }
  double bytes() const {
    return cache_.bytes() + 8.0 * static_cast<double>(data_.args.tq * data_.args.group * data_.args.head_dim);
  }

 private:
  AttentionData data_;
  CacheData cache_;
};

// Parts of random sums: some empty, some far below the others.
template <>
struct Problem<AttentionMergeFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) {
    std::vector<Shape> shapes;
    for (int64_t d : {1, 7, 16, 40, 256}) {
      for (int64_t parts : {1, 2, 5}) shapes.push_back(shape(3, 2, d, parts, d % 2));
    }
    shapes.push_back(shape(0, 1, 8, 3, 0));
    return shapes;
  }
  static std::vector<Shape> bench_shapes(const SlotInfo&) { return {shape(1, 8, 64, 8, 0)}; }
  Problem(const SlotInfo&, const Shape& s, uint64_t seed, int64_t misalign) {
    Random random(seed);
    a_.tq = s.dims[0];
    a_.group = s.dims[1];
    a_.head_dim = s.dims[2];
    a_.n_parts = s.dims[3];
    a_.softmax_one = static_cast<int32_t>(s.dims[4]);
    a_.part_stride = a_.tq * a_.group * (a_.head_dim + 2) + 3;
    a_.o_head = a_.head_dim + 1;
    a_.o_row = a_.group * a_.o_head;
    a_.lse_head = a_.tq + 1;
    parts_ = normal_buffer(a_.n_parts * a_.part_stride, misalign, random);
    o_ = Guarded<float>(a_.tq * a_.o_row, misalign);
    lse_ = Guarded<float>(a_.group * a_.lse_head, misalign);
    for (int64_t p = 0; p < a_.n_parts; ++p) {
      for (int64_t r = 0; r < a_.tq * a_.group; ++r) {
        float* part = parts_.data() + p * a_.part_stride + r * (a_.head_dim + 2);
        const bool empty = (p + r) % 4 == 1;
        part[0] = empty ? -std::numeric_limits<float>::infinity() : 3.0f * random.normal() - (p % 3 == 2 ? 40.0f : 0.0f);
        part[1] = empty ? 0.0f : 1.0f + random.uniform();
      }
    }
    a_.parts = parts_.data();
    a_.o = o_.data();
    a_.lse = lse_.data();
  }
  void run(AttentionMergeFn fn) {
    for (int64_t i = 0; i < o_.size(); ++i) o_[i] = 7.0f;
    for (int64_t i = 0; i < lse_.size(); ++i) lse_[i] = 7.0f;
    fn(a_);
  }
  std::vector<Output> outputs() const {
    std::vector<double> o(static_cast<size_t>(o_.size())), lse(static_cast<size_t>(lse_.size()));
    for (int64_t t = 0; t < a_.tq; ++t) {
      for (int64_t g = 0; g < a_.group; ++g) {
        double max = a_.softmax_one ? 0 : -std::numeric_limits<double>::infinity();
        const auto part = [&](int64_t p) { return parts_.data() + p * a_.part_stride + (t * a_.group + g) * (a_.head_dim + 2); };
        for (int64_t p = 0; p < a_.n_parts; ++p) max = std::max(max, static_cast<double>(part(p)[0]));
        double sum = a_.softmax_one ? std::exp(-max) : 0, error = 0;
        for (int64_t p = 0; p < a_.n_parts; ++p) {
          if (part(p)[1] == 0) continue;
          const double weight = part(p)[1] * std::exp(part(p)[0] - max);
          sum += weight;
          // The difference of the maxima is rounded, once per merge, and so is what exp makes of it.
          error += weight * kRound * (2 * std::abs(part(p)[0] - max) + 4);
        }
        const double merges = 4 * static_cast<double>(a_.n_parts + 2) * kRound;
        const double relative = sum > 0 ? error / sum + merges : 0;
        for (int64_t d = 0; d < a_.head_dim; ++d) {
          double bound = 0;
          for (int64_t p = 0; p < a_.n_parts; ++p) {
            if (part(p)[1] == 0) continue;
            const double distance = std::abs(part(p)[0] - max);
            bound += std::exp(-distance) / sum * std::abs(part(p)[2 + d]) *
                     (2 * relative + merges + kRound * (2 * distance + 4) * static_cast<double>(a_.n_parts));
          }
          o[static_cast<size_t>(t * a_.o_row + g * a_.o_head + d)] = bound;
        }
        lse[static_cast<size_t>(g * a_.lse_head + t)] = sum > 0 ? relative + 2 * kRound * (std::abs(max) + std::abs(std::log(sum))) : 0;
      }
    }
    return {whole_buffer("o", o_, o), whole_buffer("lse", lse_, lse)};
  }
  bool guards_intact() const { return parts_.intact() && o_.intact() && lse_.intact(); }
  double flops() const { return 3.0 * static_cast<double>(a_.n_parts * a_.tq * a_.group * a_.head_dim); }
  double bytes() const { return 4.0 * static_cast<double>(parts_.size() + o_.size()); }

 private:
  static Shape shape(int64_t tq, int64_t group, int64_t head_dim, int64_t parts, int64_t one) {
    return make_shape({{"tq", tq}, {"group", group}, {"D", head_dim}, {"parts", parts}, {"one", one}});
  }
  AttentionMergeArgs a_{};
  Guarded<float> parts_, o_, lse_;
};

template <>
struct Problem<AttentionBwdFn> {
  static std::vector<Shape> test_shapes(const SlotInfo&) { return AttentionData::test_shapes(); }
  static std::vector<Shape> bench_shapes(const SlotInfo&) {
    return {AttentionData::shape(512, 512, 1, 64, 1), AttentionData::shape(2048, 2048, 1, 64, 1)};
  }
  Problem(const SlotInfo& slot, const Shape& s, uint64_t seed, int64_t misalign)
      : data_(s, seed, misalign, attention_bwd_scratch_floats(s.dims[3])) {
    Random random(seed + 1);
    AttentionArgs& a = data_.args;
    data_.rounds_queries = data_.rounds_keys = has_bf16_products(slot);
    const KernelTable ref = build_kernel_table(Tier::ref);
    (data_.rounds_keys ? ref.attention_bf16 : ref.attention)(a);
    d_o_ = normal_buffer(data_.o.size(), misalign, random);
    dq_ = Guarded<float>(data_.q.size(), misalign);
    dk_row_ = a.head_dim + 4;
    dv_row_ = a.head_dim + 1;
    dk_ = Guarded<float>(a.tk * dk_row_, misalign);
    dv_ = Guarded<float>(a.tk * dv_row_, misalign);
    dpk_ = normal_buffer(data_.prefix_k.size(), misalign, random);
    dpv_ = normal_buffer(data_.prefix_v.size(), misalign, random);
    dpk0_ = copy_of(dpk_);
    dpv0_ = copy_of(dpv_);
  }
  void run(AttentionBwdFn fn) {
    restore(dpk_, dpk0_);
    restore(dpv_, dpv0_);
    for (int64_t i = 0; i < dq_.size(); ++i) dq_[i] = 7.0f;
    for (int64_t i = 0; i < dk_.size(); ++i) dk_[i] = 7.0f;
    for (int64_t i = 0; i < dv_.size(); ++i) dv_[i] = 7.0f;
    const bool prefix = data_.args.n_prefix > 0;
    fn({data_.args, d_o_.data(), dq_.data(), dk_.data(), dv_.data(), dk_row_, dv_row_, prefix ? dpk_.data() : nullptr,
        prefix ? dpv_.data() : nullptr, 0, data_.args.tk});
  }
  std::vector<Output> outputs() const {
    const AttentionArgs& a = data_.args;
    std::vector<double> dq(static_cast<size_t>(dq_.size())), dk(static_cast<size_t>(dk_.size())),
        dv(static_cast<size_t>(dv_.size())), dpk(static_cast<size_t>(dpk_.size())),
        dpv(static_cast<size_t>(dpv_.size()));
    const bool bf16 = data_.rounds_keys;
    const auto operand = [&](float x) { return static_cast<double>(bf16 ? bf16_rounded(x) : x); };
    // vdpbf16ps rounds in ways of its own, and probabilities and gradients are rounded on both sides.
    const double sums = bf16 ? 2 : 1, weight = bf16 ? kWeightRounding : 0;
    const double rows = 2 * static_cast<double>(a.tq * a.group + 4) * sums * kRound;  // a chain over the rows, on both sides
    for (size_t i = 0; i < dpk.size(); ++i) dpk[i] = rows * std::abs(dpk0_[i]);
    for (size_t i = 0; i < dpv.size(); ++i) dpv[i] = rows * std::abs(dpv0_[i]);
    for (int64_t t = 0; t < a.tq; ++t) {
      for (int64_t g = 0; g < a.group; ++g) {
        const float* q = a.q + t * a.q_row + g * a.q_head;
        const float* o = a.o + t * a.o_row + g * a.o_head;
        const float* d_o = d_o_.data() + t * a.o_row + g * a.o_head;
        double log_sum = 0, delta = 0, delta_size = 0, seen = 0;
        const auto pairs = data_.row(t, g, &log_sum);
        for (const auto& pair : pairs) seen += pair.p > 0;
        for (int64_t d = 0; d < a.head_dim; ++d) {
          delta += operand(d_o[d]) * o[d];
          delta_size += std::abs(operand(d_o[d]) * o[d]);
        }
        const double dot = static_cast<double>(a.head_dim + 2) * sums * kRound;
        const double keys = 2 * (seen + 4) * sums * kRound + weight;
        for (size_t i = 0; i < pairs.size(); ++i) {
          const auto& pair = pairs[i];
          if (pair.p == 0) continue;
          const int64_t j = static_cast<int64_t>(i) - a.n_prefix;
          const float* k = data_.key(j);
          const float* v = data_.value(j);
          double dp = 0, dp_size = 0;
          for (int64_t d = 0; d < a.head_dim; ++d) {
            dp += operand(d_o[d]) * operand(v[d]);
            dp_size += std::abs(operand(d_o[d]) * operand(v[d]));
          }
          const double p_error = pair.p * (pair.error + kRound * (2 * std::abs(log_sum) + 4));
          const double dr = pair.p * std::abs(dp - delta) * a.scale;
          const double dr_error =
              a.scale * (p_error * std::abs(dp - delta) + pair.p * dot * (dp_size + delta_size)) + 12 * kRound * dr;
          for (int64_t d = 0; d < a.head_dim; ++d) {
            dq[static_cast<size_t>(t * a.q_row + g * a.q_head + d)] += std::abs(k[d]) * (dr_error + keys * dr);
            double& to_k = j < 0 ? dpk[i * static_cast<size_t>(a.prefix_row) + static_cast<size_t>(d)]
                                 : dk[static_cast<size_t>(j * dk_row_ + d)];
            double& to_v = j < 0 ? dpv[i * static_cast<size_t>(a.prefix_row) + static_cast<size_t>(d)]
                                 : dv[static_cast<size_t>(j * dv_row_ + d)];
            to_k += std::abs(q[d]) * (dr_error + (rows + weight) * dr);
            to_v += std::abs(d_o[d]) * (p_error + (rows + weight) * pair.p);
          }
        }
      }
    }
    return {whole_buffer("dq", dq_, dq), whole_buffer("dk", dk_, dk), whole_buffer("dv", dv_, dv),
            whole_buffer("d_prefix_k", dpk_, dpk), whole_buffer("d_prefix_v", dpv_, dpv)};
  }
  bool guards_intact() const {
    return data_.intact() && d_o_.intact() && dq_.intact() && dk_.intact() && dv_.intact() && dpk_.intact() &&
           dpv_.intact();
  }
  double flops() const { return 10.0 * data_.visible_pairs() * static_cast<double>(data_.args.head_dim); }
  double bytes() const {
    const AttentionArgs& a = data_.args;
    return 16.0 * static_cast<double>((a.tq * a.group + a.tk + a.n_prefix) * a.head_dim);
  }

 private:
  AttentionData data_;
  Guarded<float> d_o_, dq_, dk_, dv_, dpk_, dpv_;
  std::vector<float> dpk0_, dpv0_;
  int64_t dk_row_ = 0, dv_row_ = 0;
};

}  // namespace thimble::testing
