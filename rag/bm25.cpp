#include "rag/bm25.h"

#include <cmath>

namespace thimble {

std::vector<std::string> split_whitespace(std::string_view text) {
  std::vector<std::string> words;
  size_t i = 0;
  const auto space = [](char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= '\x1c' && c <= '\x1f'); };
  while (i < text.size()) {
    while (i < text.size() && space(text[i])) ++i;
    const size_t begin = i;
    while (i < text.size() && !space(text[i])) ++i;
    if (i > begin) words.emplace_back(text.substr(begin, i - begin));
  }
  return words;
}

Bm25Okapi::Bm25Okapi(const std::vector<std::vector<std::string>>& documents, double k1, double b, double epsilon) : k1_(k1), b_(b) {
  std::vector<Term*> in_order;  // of first appearance, so that the mean idf is summed in a fixed order
  double total = 0;
  for (size_t d = 0; d < documents.size(); ++d) {
    lengths_.push_back(static_cast<double>(documents[d].size()));
    total += lengths_.back();
    for (const std::string& word : documents[d]) {
      const auto [it, inserted] = terms_.try_emplace(word);
      Term& term = it->second;
      if (inserted) in_order.push_back(&term);
      if (term.postings.empty() || term.postings.back().document != static_cast<int32_t>(d))
        term.postings.push_back({static_cast<int32_t>(d), 0});
      ++term.postings.back().count;
    }
  }
  if (documents.empty()) return;
  average_length_ = total / double(documents.size());
  double sum = 0;
  for (Term* term : in_order) {
    const double n = double(term->postings.size());
    term->idf = std::log(double(documents.size()) - n + 0.5) - std::log(n + 0.5);
    sum += term->idf;
  }
  const double floor = in_order.empty() ? 0 : epsilon * sum / double(in_order.size());
  for (Term* term : in_order)
    if (term->idf < 0) term->idf = floor;
}

std::vector<double> Bm25Okapi::scores(const std::vector<std::string>& query) const {
  std::vector<double> score(lengths_.size(), 0.0);
  for (const std::string& word : query) {
    const auto it = terms_.find(word);
    if (it == terms_.end()) continue;
    for (const Posting& p : it->second.postings) {
      const double tf = p.count, length = lengths_[static_cast<size_t>(p.document)];
      score[static_cast<size_t>(p.document)] += it->second.idf * tf * (k1_ + 1) / (tf + k1_ * (1 - b_ + b_ * length / average_length_));
    }
  }
  return score;
}

double Bm25Okapi::idf(const std::string& term) const {
  const auto it = terms_.find(term);
  return it == terms_.end() ? 0.0 : it->second.idf;
}

}  // namespace thimble
