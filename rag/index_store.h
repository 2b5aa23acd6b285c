// An index on disk: a directory with index.json (what it is and the digests of its data), documents-<digest>.jsonl and, for
// dense retrieval, vectors-<digest>.safetensors: "vectors" [n, width] F32 where floats are kept, "codes" [n, width] I8 and
// "scales" [n] F32 for int8, "bits" [n, words] U64 and "center" [width] F32 for binary. Data files are named after their content and index.json is replaced last,
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
  VectorSet vectors;                       // dense: one per document; int8 and binary under cosine: of vectors of length 1
};

// Version 1 knew vectors of f32 only, and still opens.
inline constexpr int kIndexVersion = 2;

// Creates dir. Data files of an index that was replaced are removed.
// Errors: input or budget when something cannot be written; input for a text that is not UTF-8.
void write_index(const std::string& dir, const StoredIndex& index);

// Errors (input) name file and field: no index, another version, data whose digest differs from the recorded one.
StoredIndex read_index(const std::string& dir);

// embed: needed for dense only, as are kernels (null: those of the best tier) and threads, which change no hit.
std::unique_ptr<Retriever> open_retriever(const StoredIndex& index, EmbedTexts embed = {}, const KernelTable* kernels = nullptr, int threads = 1);

}  // namespace thimble
