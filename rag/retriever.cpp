#include "rag/retriever.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <unordered_set>

#include "rag/bm25.h"
#include "tensor/error.h"
#include "tensor/rng.h"

namespace thimble {
namespace {

class OkapiRetriever : public Retriever {
 public:
  explicit OkapiRetriever(const std::vector<Document>& documents)
      : Retriever(static_cast<int64_t>(documents.size()), false), index_(words_of(documents)) {}
  std::vector<double> scores(std::string_view query) const override { return index_.scores(split_whitespace(query)); }

 private:
  static std::vector<std::vector<std::string>> words_of(const std::vector<Document>& documents) {
    std::vector<std::vector<std::string>> words;
    for (const Document& d : documents) words.push_back(split_whitespace(d.text));
    return words;
  }
  Bm25Okapi index_;
};

class Bm25Retriever : public Retriever {
 public:
  static constexpr double kK1 = 1.5, kB = 0.75, kCommon = 0.3;
  static constexpr size_t kCountedFrom = 10;  // documents, for a word to be called common

  explicit Bm25Retriever(const std::vector<Document>& documents) : Retriever(static_cast<int64_t>(documents.size())) {
    double total = 0;
    for (size_t d = 0; d < documents.size(); ++d) {
      const std::vector<std::string> words = lower_case_words(documents[d].text);
      lengths_.push_back(static_cast<double>(words.size()));
      total += lengths_.back();
      for (const std::string& word : words) {
        if (is_function_word(word)) continue;
        std::vector<Posting>& postings = terms_[word];
        if (postings.empty() || postings.back().document != d) postings.push_back({d, 0});
        postings.back().count += 1;
      }
    }
    mean_length_ = documents.empty() ? 0 : total / static_cast<double>(documents.size());
  }

  std::vector<double> scores(std::string_view query) const override {
    std::vector<double> score(lengths_.size(), 0.0);
    const double n_documents = static_cast<double>(lengths_.size());
    for (const std::string& word : lower_case_words(query)) {
      const auto found = terms_.find(word);
      if (found == terms_.end()) continue;
      const double n = static_cast<double>(found->second.size());
      if (lengths_.size() >= kCountedFrom && n > kCommon * n_documents) continue;
      const double idf = std::log(1 + (n_documents - n + 0.5) / (n + 0.5));
      for (const Posting& p : found->second)
        score[p.document] += idf * p.count * (kK1 + 1) / (p.count + kK1 * (1 - kB + kB * lengths_[p.document] / mean_length_));
    }
    return score;
  }

 private:
  struct Posting {
    size_t document;
    double count;
  };
  std::vector<double> lengths_;  // words, function words included
  double mean_length_ = 0;
  std::unordered_map<std::string, std::vector<Posting>> terms_;
};

class DenseRetriever : public Retriever {
 public:
  DenseRetriever(const RetrieverOptions& options, const std::vector<Document>& documents)
      : Retriever(static_cast<int64_t>(documents.size())), embed_(options.embed), embed_query_(options.embed_query ? options.embed_query : options.embed), cosine_(options.cosine) {
    const KernelTable kernels = options.kernels ? *options.kernels : build_kernel_table(best_tier());
    VectorSet set;
    if (options.vectors && !options.vectors->empty()) {
      set = *options.vectors;
      if (cosine_ && set.precision == VectorPrecision::f32) normalize(set);
    } else if (!documents.empty()) {
      std::vector<std::string> texts;
      for (const Document& d : documents) texts.push_back(d.text);
      set = embed(embed_, texts);
      compress(set, kernels, options.precision, options.keep_f32);
    }
    THIMBLE_CHECK(set.count == size());
    index_ = VectorIndex(std::move(set), kernels, options.threads);
  }

  std::vector<double> scores(std::string_view query) const override {
    if (size() == 0) return {};
    return index_.scores(vector_of(query).values.data());
  }

 protected:
  std::vector<Hit> best(std::string_view query, int64_t k, int64_t n) const override {
    return std::move(index_.search(vector_of(query).values.data(), 1, k, n, true)[0]);
  }

 private:
  VectorSet embed(const EmbedTexts& fn, const std::vector<std::string>& texts) const {
    const std::vector<std::vector<float>> vectors = fn(texts);
    THIMBLE_CHECK(vectors.size() == texts.size());
    VectorSet set = make_vector_set(vectors);
    if (cosine_) normalize(set);
    return set;
  }
  VectorSet vector_of(std::string_view query) const {
    VectorSet q = embed(embed_query_, {std::string(query)});
    if (q.width != index_.width())
      throw Error(ErrorCode::input, "dense retrieval: the query's vector has another length than the documents'",
                  "index and query with the same model");
    return q;
  }
  EmbedTexts embed_, embed_query_;
  bool cosine_;
  VectorIndex index_;
};

class RecencyRetriever : public Retriever {
 public:
  explicit RecencyRetriever(const std::vector<Document>& documents) : Retriever(static_cast<int64_t>(documents.size())) {
    std::vector<std::string> dates;
    for (const Document& d : documents) dates.push_back(d.date);
    std::sort(dates.begin(), dates.end());
    dates.erase(std::unique(dates.begin(), dates.end()), dates.end());
    for (const Document& d : documents)
      ranks_.push_back(static_cast<double>(std::lower_bound(dates.begin(), dates.end(), d.date) - dates.begin()));
  }
  std::vector<double> scores(std::string_view) const override { return ranks_; }

 private:
  std::vector<double> ranks_;  // of the document's date among all
};

class RandomRetriever : public Retriever {
 public:
  RandomRetriever(const RetrieverOptions& options, int64_t size) : Retriever(size), seed_(options.seed) {}
  std::vector<double> scores(std::string_view query) const override {
    uint64_t stream = 0xcbf29ce484222325;  // FNV-1a of the query
    for (const char c : query) stream = (stream ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    Philox draw(seed_, stream);
    std::vector<double> score;
    for (int64_t i = 0; i < size(); ++i) score.push_back(draw.uniform());
    return score;
  }

 private:
  uint64_t seed_;
};

}  // namespace

std::vector<Hit> Retriever::search(std::string_view query, int64_t k, int64_t limit) const {
  const int64_t n = limit < 0 ? size_ : std::min(limit, size_);
  return n <= 0 || k <= 0 ? std::vector<Hit>() : best(query, k, n);
}

std::vector<Hit> Retriever::best(std::string_view query, int64_t k, int64_t n) const {
  const std::vector<double> score = scores(query);
  std::vector<Hit> hits;
  for (int64_t i = 0; i < n; ++i) hits.push_back({i, score[static_cast<size_t>(i)]});
  const bool newer_first = newer_first_;
  const auto better = [newer_first](const Hit& a, const Hit& b) {
    if (a.score != b.score) return a.score > b.score;
    return newer_first ? a.index > b.index : a.index < b.index;
  };
  const int64_t kept = std::min(k, n);
  std::partial_sort(hits.begin(), hits.begin() + kept, hits.end(), better);
  hits.resize(static_cast<size_t>(kept));
  return hits;
}

const std::vector<std::string>& retriever_names() {
  static const std::vector<std::string> names{"bm25", "bm25_okapi", "dense", "recency", "random"};
  return names;
}

std::unique_ptr<Retriever> make_retriever(const RetrieverOptions& options, const std::vector<Document>& documents) {
  if (options.name == "bm25") return std::make_unique<Bm25Retriever>(documents);
  if (options.name == "bm25_okapi") return std::make_unique<OkapiRetriever>(documents);
  if (options.name == "recency") return std::make_unique<RecencyRetriever>(documents);
  if (options.name == "random") return std::make_unique<RandomRetriever>(options, static_cast<int64_t>(documents.size()));
  if (options.name == "dense") {
    if (!options.embed)
      throw Error(ErrorCode::usage, "the retriever dense needs a model that turns texts into vectors", "give --model, or use bm25");
    return std::make_unique<DenseRetriever>(options, documents);
  }
  std::string names;
  for (const std::string& name : retriever_names()) names += (names.empty() ? "" : ", ") + name;
  throw Error(ErrorCode::usage, "unknown retriever \"" + options.name + "\"", "valid retrievers: " + names);
}

std::vector<std::string> lower_case_words(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    const bool upper = u >= 'A' && u <= 'Z';
    if (upper || (u >= 'a' && u <= 'z') || (u >= '0' && u <= '9') || u >= 0x80) {
      word += upper ? static_cast<char>(u - 'A' + 'a') : c;
    } else if (!word.empty()) {
      words.push_back(std::move(word));
      word.clear();
    }
  }
  if (!word.empty()) words.push_back(std::move(word));
  return words;
}

bool is_function_word(std::string_view word) {
  static const std::unordered_set<std::string_view> words{
      "a",     "about", "after", "all",   "also",  "am",    "an",    "and",   "another", "any",   "are",   "as",    "at",
      "be",    "been",  "before", "being", "both",  "but",   "by",    "can",   "could",  "did",   "do",    "does",  "each",
      "for",   "from",  "had",   "has",   "have",  "he",    "her",   "here",  "him",    "his",   "how",   "i",     "if",
      "in",    "into",  "is",    "it",    "its",   "just",  "may",   "me",    "more",   "most",  "much",  "must",  "my",
      "near",  "no",    "nor",   "not",   "of",    "off",   "on",    "once",  "one",    "only",  "or",    "other", "our",
      "out",   "over",  "own",   "s",     "she",   "should", "so",    "some",  "such",   "t",     "than",  "that",  "the",
      "their", "them",  "then",  "there", "these", "they",  "this",  "those", "through", "to",    "too",   "two",   "under",
      "until", "up",    "upon",  "us",    "very",  "was",   "we",    "were",  "what",   "when",  "where", "which", "while",
      "who",   "whom",  "whose", "why",   "will",  "with",  "would", "you",   "your"};
  return words.count(word) > 0;
}

}  // namespace thimble
