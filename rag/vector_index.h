// Vectors of documents, stored as floats, int8 codes or signs, and the exact scan that finds the best of them for a
// query. Hits are the same for any number of threads and on every instruction-set tier.
//
// f32: the hits and scores of inner products in double. A scan in f32 chooses candidates, at least twice k, which are
// scored again in double; where a vector left out could still belong to the best k (its scan score lies within the bound
// of the f32 sum's rounding), more candidates are taken.
// int8: codes with a scale per vector; binary: the signs of vector minus mean vector, compared by Hamming distance. Both
// take kOversample * k candidates and score them again in double where the floats are kept; where they are not, the
// scan's score is the answer (binary: width - 2 * distance).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"
#include "tensor/arena.h"

namespace thimble {

struct Hit {
  int64_t index;  // of the document
  double score;
};

enum class VectorPrecision : uint8_t { f32, int8, binary };
const char* vector_precision_name(VectorPrecision precision);
bool vector_precision_from_name(const std::string& name, VectorPrecision* precision);

struct VectorSet {
  VectorPrecision precision = VectorPrecision::f32;
  int64_t count = 0, width = 0;
  std::vector<float> values;   // [count][width]; int8 and binary: empty where the floats are not kept
  std::vector<int8_t> codes;   // int8: [count][width], in [-127, 127]
  std::vector<float> scales;   // int8: [count]
  std::vector<uint64_t> bits;  // binary: [count][words()], set where the component lies below the center's
  std::vector<float> center;   // binary: [width]

  int64_t words() const { return (width + 63) / 64; }
  bool empty() const { return count == 0; }
  int64_t scanned_bytes() const;  // what a query reads
};

// All of one length. No vectors: an empty set.
VectorSet make_vector_set(const std::vector<std::vector<float>>& vectors);
// Divides every vector by its length; one of zeros stays.
void normalize(VectorSet& set);
// From f32 to `precision`; the floats stay only if keep_values (always for f32).
void compress(VectorSet& set, const KernelTable& kernels, VectorPrecision precision, bool keep_values);

class VectorIndex {
 public:
  static constexpr int64_t kOversample = 4;

  VectorIndex() = default;
  VectorIndex(VectorSet set, const KernelTable& kernels, int threads);

  int64_t width() const { return set_.width; }
  int64_t scanned_bytes() const { return set_.scanned_bytes(); }
  // The best k of the first n vectors, n <= their number, for each of n_queries queries [n_queries][width], best first. Equal
  // scores: the lower index first, or the higher one if later_first.
  std::vector<std::vector<Hit>> search(const float* queries, int64_t n_queries, int64_t k, int64_t n, bool later_first = false) const;
  // One score per vector.
  std::vector<double> scores(const float* query) const;

 private:
  struct Query;
  double exact(const float* query, int64_t i) const;
  void rescore(const float* query, std::vector<Hit>& hits) const;  // by the floats
  Query prepare(const float* queries, int64_t n_queries) const;
  void scan(const Query& q, int64_t first, int64_t n, float* out, int64_t ldo) const;
  std::vector<std::vector<Hit>> candidates(const Query& q, int64_t m, int64_t n, bool later_first) const;

  const float* values() const { return set_.precision == VectorPrecision::f32 ? scanned_.f32() : set_.values.data(); }

  VectorSet set_;   // without what the scan reads
  Buffer scanned_;  // that: on large pages where the system gives them, a fifth faster
  bool has_values_ = false;
  KernelTable kernels_{};
  int threads_ = 1;
  double longest_ = 0;  // largest length of a vector (f32)
};

}  // namespace thimble
