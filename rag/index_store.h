// An index on disk: a directory with index.json (what it is and the digests of its data), documents-<digest>.jsonl and, for
// dense retrieval, vectors-<digest>.safetensors. Data files are named after their content and index.json is replaced last,
// by one rename, so a reader sees the old index or the new one, never a mixture. Word statistics are counted when the
// index is opened: reading the texts is the larger part of that.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rag/retriever.h"

namespace thimble {

struct StoredDocument {
  std::string id, text, date;
};

struct StoredIndex {
  std::string retriever = "bm25";
  uint64_t seed = 0;
  bool cosine = false;
  std::string model, model_sha256;         // dense: where the model lay, and what it was
  std::vector<StoredDocument> documents;   // oldest first
  std::vector<std::vector<float>> vectors;  // dense: one per document, all of one length
};

inline constexpr int kIndexVersion = 1;

// Creates dir. Data files of an index that was replaced are removed.
// Errors: input or budget when something cannot be written; input for a text that is not UTF-8.
void write_index(const std::string& dir, const StoredIndex& index);

// Errors (input) name file and field: no index, another version, data whose digest differs from the recorded one.
StoredIndex read_index(const std::string& dir);

// embed: needed for dense only.
std::unique_ptr<Retriever> open_retriever(const StoredIndex& index, EmbedTexts embed = {});

}  // namespace thimble
