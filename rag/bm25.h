// BM25 ranking. `okapi` is the variant that the LaMP papers use: k1 1.5, b 0.75, natural-log idf without smoothing, and
// every negative idf replaced by 0.25 times the mean idf. Documents are split on whitespace, case-sensitive.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace thimble {

std::vector<std::string> split_whitespace(std::string_view text);

class Bm25Okapi {
 public:
  explicit Bm25Okapi(const std::vector<std::vector<std::string>>& documents, double k1 = 1.5, double b = 0.75,
                     double epsilon = 0.25);
  // One score per document, in document order; terms of the query count as often as they occur in it.
  std::vector<double> scores(const std::vector<std::string>& query) const;
  double idf(const std::string& term) const;  // 0 for unknown terms

 private:
  struct Posting {
    int32_t document;
    int32_t count;
  };
  struct Term {
    double idf = 0;
    std::vector<Posting> postings;
  };
  double k1_, b_, average_length_ = 0;
  std::vector<double> lengths_;
  std::unordered_map<std::string, Term> terms_;
};

}  // namespace thimble
