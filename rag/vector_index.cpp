#include "rag/vector_index.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "tensor/error.h"
#include "tensor/parallel.h"

namespace thimble {
namespace {

constexpr const char* kNames[] = {"f32", "int8", "binary"};
constexpr int64_t kChunk = 2048;  // vectors per task of a scan

double inner(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double{a[i]} * double{b[i]};
  return sum;
}

struct Better {
  bool later_first;
  bool operator()(const Hit& a, const Hit& b) const {
    if (a.score != b.score) return a.score > b.score;
    return later_first ? a.index > b.index : a.index < b.index;
  }
};

// The best m of what it is offered: which ones they are does not depend on the order of the offers.
class TopK {
 public:
  TopK(int64_t m, bool later_first) : m_(m), better_{later_first} { heap_.reserve(static_cast<size_t>(m)); }

  void offer(const float* scores, int64_t n, int64_t first) {
    constexpr int64_t kBlock = 64;
    for (int64_t at = 0; at < n; at += kBlock) {
      const int64_t end = std::min(n, at + kBlock);
      if (full()) {  // almost every block of a long scan ends here
        const float floor = floor_;
        int any = 0;
        for (int64_t i = at; i < end; ++i) any |= scores[i] >= floor;
        if (!any) continue;
      }
      for (int64_t i = at; i < end; ++i)
        if (!full() || scores[i] >= floor_) add({first + i, double{scores[i]}});
    }
  }
  const std::vector<Hit>& hits() const { return heap_; }

 private:
  bool full() const { return static_cast<int64_t>(heap_.size()) == m_; }
  void add(Hit hit) {
    if (std::isnan(hit.score)) hit.score = -std::numeric_limits<double>::infinity();
    if (full()) {
      if (!better_(hit, heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end(), better_);  // the worst of them
      heap_.back() = hit;
    } else {
      heap_.push_back(hit);
    }
    std::push_heap(heap_.begin(), heap_.end(), better_);
    if (full()) floor_ = static_cast<float>(heap_.front().score);
  }

  int64_t m_;
  Better better_;
  std::vector<Hit> heap_;
  float floor_ = 0;
};

void cut(std::vector<Hit>& hits, int64_t k, bool later_first) {
  const auto kept = std::min<int64_t>(k, static_cast<int64_t>(hits.size()));
  std::partial_sort(hits.begin(), hits.begin() + kept, hits.end(), Better{later_first});
  hits.resize(static_cast<size_t>(kept));
}

// The signs of `n` components minus the center's.
void sign_bits(const float* v, const float* center, int64_t n, uint64_t* bits) {
  std::fill(bits, bits + (n + 63) / 64, uint64_t{0});
  for (int64_t c = 0; c < n; ++c) bits[c / 64] |= uint64_t{v[c] < center[c]} << (c % 64);
}

}  // namespace

const char* vector_precision_name(VectorPrecision precision) { return kNames[static_cast<int>(precision)]; }

bool vector_precision_from_name(const std::string& name, VectorPrecision* precision) {
  for (int i = 0; i < 3; ++i)
    if (name == kNames[i]) {
      *precision = static_cast<VectorPrecision>(i);
      return true;
    }
  return false;
}

int64_t VectorSet::scanned_bytes() const {
  switch (precision) {
    case VectorPrecision::f32: return count * width * int64_t{sizeof(float)};
    case VectorPrecision::int8: return count * (width + int64_t{sizeof(float)});
    case VectorPrecision::binary: return count * words() * int64_t{sizeof(uint64_t)};
  }
  return 0;
}

VectorSet make_vector_set(const std::vector<std::vector<float>>& vectors) {
  VectorSet set;
  set.count = static_cast<int64_t>(vectors.size());
  if (vectors.empty()) return set;
  set.width = static_cast<int64_t>(vectors[0].size());
  set.values.reserve(static_cast<size_t>(set.count * set.width));
  for (const std::vector<float>& v : vectors) {
    THIMBLE_CHECK(static_cast<int64_t>(v.size()) == set.width);
    set.values.insert(set.values.end(), v.begin(), v.end());
  }
  return set;
}

void normalize(VectorSet& set) {
  THIMBLE_CHECK(set.precision == VectorPrecision::f32);
  for (int64_t i = 0; i < set.count; ++i) {
    float* v = set.values.data() + i * set.width;
    const double square = inner(v, v, set.width), scale = square > 0 ? 1 / std::sqrt(square) : 0;
    for (int64_t c = 0; c < set.width; ++c) v[c] = static_cast<float>(v[c] * scale);
  }
}

void compress(VectorSet& set, const KernelTable& kernels, VectorPrecision precision, bool keep_values) {
  THIMBLE_CHECK(set.precision == VectorPrecision::f32);
  if (precision == VectorPrecision::f32) return;
  set.precision = precision;
  if (precision == VectorPrecision::int8) {
    set.codes.resize(set.values.size());
    set.scales.resize(static_cast<size_t>(set.count));
    std::vector<int32_t> sums(static_cast<size_t>(set.count));
    if (set.width > 0)
      kernels.quantize_i8({set.count, set.width, set.width, set.values.data(), set.width, 1, set.width, set.codes.data(), set.scales.data(), sums.data()});
  } else {
    std::vector<double> sums(static_cast<size_t>(set.width), 0.0);
    for (size_t i = 0; i < set.values.size(); ++i) sums[i % sums.size()] += double{set.values[i]};
    for (const double sum : sums) set.center.push_back(static_cast<float>(sum / double(set.count)));
    set.bits.resize(static_cast<size_t>(set.count * set.words()));
    for (int64_t i = 0; i < set.count; ++i)
      sign_bits(set.values.data() + i * set.width, set.center.data(), set.width, set.bits.data() + i * set.words());
  }
  if (!keep_values) {
    set.values.clear();
    set.values.shrink_to_fit();
  }
}

// The queries in the form that the scan reads.
struct VectorIndex::Query {
  int64_t n = 0;
  const float* values = nullptr;  // [n][width]
  std::vector<int8_t> codes;
  std::vector<float> scales;
  std::vector<uint64_t> bits;
};

VectorIndex::VectorIndex(VectorSet set, const KernelTable& kernels, int threads) : set_(std::move(set)), kernels_(kernels), threads_(threads) {
  THIMBLE_CHECK(set_.width <= 130000 || set_.precision != VectorPrecision::int8);
  has_values_ = !set_.values.empty() || set_.width == 0;
  const auto keep = [this](auto& rows) {
    scanned_ = Buffer(std::max<size_t>(1, rows.size() * sizeof(rows[0])));
    if (!rows.empty()) std::memcpy(scanned_.data(), rows.data(), rows.size() * sizeof(rows[0]));
    rows.clear();
    rows.shrink_to_fit();
  };
  if (set_.precision == VectorPrecision::int8) keep(set_.codes);
  if (set_.precision == VectorPrecision::binary) keep(set_.bits);
  if (set_.precision != VectorPrecision::f32) return;
  keep(set_.values);
  for (int64_t i = 0; i < set_.count; ++i) {
    const float* v = values() + i * set_.width;
    longest_ = std::max(longest_, std::sqrt(inner(v, v, set_.width)));
  }
}

double VectorIndex::exact(const float* query, int64_t i) const {
  const double score = inner(values() + i * set_.width, query, set_.width);
  return std::isnan(score) ? -std::numeric_limits<double>::infinity() : score;
}

// Each score is one sum in order, as of exact(); four run side by side, and the next four vectors, which lie anywhere, are
// fetched meanwhile.
void VectorIndex::rescore(const float* query, std::vector<Hit>& hits) const {
  constexpr size_t kAtOnce = 4;
  constexpr int64_t kLine = 16;  // floats
  const int64_t width = set_.width;
  const auto row = [&](size_t i) { return values() + hits[std::min(i, hits.size() - 1)].index * width; };
  const auto fetch = [&](size_t i) {
    for (size_t j = i; j < i + kAtOnce && j < hits.size(); ++j)
      for (int64_t c = 0; c < width; c += kLine) __builtin_prefetch(row(j) + c);
  };
  fetch(0);
  for (size_t i = 0; i < hits.size(); i += kAtOnce) {
    fetch(i + kAtOnce);
    const float *a = row(i), *b = row(i + 1), *c = row(i + 2), *d = row(i + 3);
    double sums[kAtOnce] = {0, 0, 0, 0};
    for (int64_t x = 0; x < width; ++x) {
      const double q = double{query[x]};
      sums[0] += double{a[x]} * q;
      sums[1] += double{b[x]} * q;
      sums[2] += double{c[x]} * q;
      sums[3] += double{d[x]} * q;
    }
    for (size_t j = 0; j < kAtOnce && i + j < hits.size(); ++j)
      hits[i + j].score = std::isnan(sums[j]) ? -std::numeric_limits<double>::infinity() : sums[j];
  }
}

VectorIndex::Query VectorIndex::prepare(const float* queries, int64_t n_queries) const {
  Query q;
  q.n = n_queries;
  q.values = queries;
  if (set_.precision == VectorPrecision::int8) {
    q.codes.resize(static_cast<size_t>(n_queries * set_.width));
    q.scales.resize(static_cast<size_t>(n_queries));
    std::vector<int32_t> sums(static_cast<size_t>(n_queries));
    if (set_.width > 0)
      kernels_.quantize_i8({n_queries, set_.width, set_.width, queries, set_.width, 1, set_.width, q.codes.data(), q.scales.data(), sums.data()});
  }
  if (set_.precision == VectorPrecision::binary) {
    q.bits.resize(static_cast<size_t>(n_queries * set_.words()));
    for (int64_t j = 0; j < n_queries; ++j)
      sign_bits(queries + j * set_.width, set_.center.data(), set_.width, q.bits.data() + j * set_.words());
  }
  return q;
}

void VectorIndex::scan(const Query& q, int64_t first, int64_t n, float* out, int64_t ldo) const {
  const int64_t width = set_.width;
  switch (set_.precision) {
    case VectorPrecision::f32:
      return kernels_.scan_f32({n, width, q.n, scanned_.f32() + first * width, width, q.values, out, ldo});
    case VectorPrecision::int8:
      return kernels_.scan_i8({n, width, q.n, static_cast<const int8_t*>(scanned_.data()) + first * width, width, set_.scales.data() + first, q.codes.data(), q.scales.data(), out, ldo});
    case VectorPrecision::binary:
      return kernels_.scan_binary({n, width, q.n, static_cast<const uint64_t*>(scanned_.data()) + first * set_.words(), set_.words(), q.bits.data(), out, ldo});
  }
}

// The best m of the first n by the scan's score, for every query.
std::vector<std::vector<Hit>> VectorIndex::candidates(const Query& q, int64_t m, int64_t n, bool later_first) const {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  const int threads = static_cast<int>(std::clamp<int64_t>(threads_, 1, chunks));
  std::vector<std::vector<TopK>> best(static_cast<size_t>(threads), std::vector<TopK>(static_cast<size_t>(q.n), TopK(m, later_first)));
  std::vector<std::vector<float>> scores(static_cast<size_t>(threads), std::vector<float>(static_cast<size_t>(q.n * kChunk)));
  parallel_for(threads, chunks, [&](int64_t chunk, int thread) {
    float* out = scores[static_cast<size_t>(thread)].data();
    const int64_t first = chunk * kChunk, count = std::min(kChunk, n - first);
    scan(q, first, count, out, kChunk);
    for (int64_t j = 0; j < q.n; ++j) best[static_cast<size_t>(thread)][static_cast<size_t>(j)].offer(out + j * kChunk, count, first);
  });
  std::vector<std::vector<Hit>> all(static_cast<size_t>(q.n));
  for (size_t j = 0; j < all.size(); ++j) {
    for (const std::vector<TopK>& of_thread : best) all[j].insert(all[j].end(), of_thread[j].hits().begin(), of_thread[j].hits().end());
    cut(all[j], m, later_first);
  }
  return all;
}

std::vector<std::vector<Hit>> VectorIndex::search(const float* queries, int64_t n_queries, int64_t k, int64_t n, bool later_first) const {
  THIMBLE_CHECK(n <= set_.count);
  std::vector<std::vector<Hit>> hits(static_cast<size_t>(n_queries));
  if (k <= 0 || n <= 0 || n_queries <= 0) return hits;
  k = std::min(k, n);
  const bool plain = set_.precision == VectorPrecision::f32, rescored = has_values_;
  const Query all = prepare(queries, n_queries);
  const int64_t first_m = !rescored ? k : std::min(n, plain ? 2 * k + 16 : kOversample * k);
  std::vector<std::vector<Hit>> found = candidates(all, first_m, n, later_first);
  for (int64_t j = 0; j < n_queries; ++j) {
    const float* query = queries + j * set_.width;
    std::vector<Hit>& mine = found[static_cast<size_t>(j)];
    for (int64_t m = first_m; rescored;) {
      const double last = mine.back().score;  // nothing left out has a better scan score
      rescore(query, mine);
      cut(mine, k, later_first);
      const double bound = double(set_.width + 16) * 0x1p-23 * std::sqrt(inner(query, query, set_.width)) * longest_;
      if (!plain || m == n || last + bound < mine.back().score) break;
      m = std::min(n, 4 * m);
      mine = candidates(prepare(query, 1), m, n, later_first)[0];
    }
    hits[static_cast<size_t>(j)] = std::move(mine);
  }
  return hits;
}

std::vector<double> VectorIndex::scores(const float* query) const {
  std::vector<double> scores(static_cast<size_t>(set_.count));
  if (has_values_) {
    for (int64_t i = 0; i < set_.count; ++i) scores[static_cast<size_t>(i)] = exact(query, i);
    return scores;
  }
  std::vector<float> out(scores.size());
  scan(prepare(query, 1), 0, set_.count, out.data(), set_.count);
  std::copy(out.begin(), out.end(), scores.begin());
  return scores;
}

}  // namespace thimble
