// Which of a person's documents stand beside a question? One index per person, built once and asked often; also with a
// limit, so that an example of training sees only what is older than itself.
//
// Every retriever compares the query with all documents and returns the best k. The order is a pure function of documents,
// options and query: equal scores are broken by position. `dense` is the one for many documents (see vector_index.h).
//
// `bm25` is Okapi's term weighting changed in three points, for histories of short texts that share their phrasing:
// - words are lower-cased runs of letters and digits (bytes above 127 count as letters), so "Boat," meets "boat";
// - words of a short list of English function words, and words that more than 30 % of the documents contain (counted
//   from 10 documents up), are ignored: they say how something is phrased, not what it is about, and six of them in common
//   would otherwise outweigh the one name that matters;
// - idf = ln(1 + (N - n + 0.5) / (n + 0.5)), never negative, so small histories need no floor.
// Equal scores: the newer document first; a query without any known word therefore returns the newest documents.
// With a limit, document frequencies and the mean length are still those of the whole index.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rag/vector_index.h"

namespace thimble {

struct Document {
  std::string text;
  std::string date;  // sorts as text ("yyyy-mm-dd"); only recency looks at it
};

// One vector per text, all of one length.
using EmbedTexts = std::function<std::vector<std::vector<float>>(const std::vector<std::string>& texts)>;

struct RetrieverOptions {
  std::string name = "bm25";  // one of retriever_names()
  uint64_t seed = 0;          // random
  bool cosine = false;        // dense: vectors are divided by their length; else the raw inner product
  EmbedTexts embed;           // dense
  EmbedTexts embed_query;     // dense: where a query is embedded otherwise than a document (another prompt); else embed
  const VectorSet* vectors = nullptr;  // dense: of the documents, where they are known (copied); else embed makes them.
                                       // cosine: int8 and binary ones were made from vectors of length 1
  VectorPrecision precision = VectorPrecision::f32;  // dense: how vectors that embed made are scanned
  bool keep_f32 = true;       // dense, other precisions: the best candidates are scored again with the floats
  const KernelTable* kernels = nullptr;  // dense: null: those of the best tier. Every tier gives the same hits
  int threads = 1;            // dense
};

class Retriever {
 public:
  virtual ~Retriever() = default;

  int64_t size() const { return size_; }
  // At most k hits among the first `limit` documents (limit < 0: all), best first.
  std::vector<Hit> search(std::string_view query, int64_t k, int64_t limit = -1) const;
  // One score per document.
  virtual std::vector<double> scores(std::string_view query) const = 0;

 protected:
  explicit Retriever(int64_t size, bool newer_first = true) : size_(size), newer_first_(newer_first) {}
  // The best k of the first n documents, 0 < k, 0 < n <= size(); this one asks scores().
  virtual std::vector<Hit> best(std::string_view query, int64_t k, int64_t n) const;

 private:
  int64_t size_;
  bool newer_first_;  // among equal scores
};

// bm25 (above); bm25_okapi: LaMP's, on whitespace words, the earlier document first among equals; dense: inner products of
// vectors; recency: newest first, by date and then position; random: an order per seed and query.
const std::vector<std::string>& retriever_names();

// Documents are given oldest first. Throws usage for an unknown name and for dense without embed.
std::unique_ptr<Retriever> make_retriever(const RetrieverOptions& options, const std::vector<Document>& documents);

// The words that `bm25` compares, function words included.
std::vector<std::string> lower_case_words(std::string_view text);
bool is_function_word(std::string_view word);

}  // namespace thimble
