// Static embedders (model2vec and sentence-transformers' StaticEmbedding): a text's vector is the mean of one row per token,
// with no network behind it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/io/safetensors.h"

namespace thimble {

// model.safetensors of a directory with
//   embeddings [rows, D] (model2vec) or embedding.weight (StaticEmbedding), in any float or integer type,
//   weights [ids], optional: what each token's row is multiplied with,
//   mapping [ids], optional: the row of each token (tokens share the rows of a vector-quantized table).
// Errors: input with file and tensor for what is missing, misshapen, unknown or out of range.
class StaticEmbedding {
 public:
  explicit StaticEmbedding(const std::string& dir);

  int64_t dimensions() const { return cols_; }
  int64_t token_count() const { return ids_; }  // ids below this have a row
  int64_t rows() const { return rows_; }
  int64_t parameters() const { return parameters_; }
  int64_t stored_bytes() const { return stored_bytes_; }
  const std::string& path() const { return file_.path(); }
  std::string description() const;  // "128 x 64 F32, 29524 tokens mapped and weighted"
  // Whether a token that stands for an unknown word is left out: model2vec does that.
  bool drops_unknown() const { return model2vec_; }

  // out[D] = sum of weights[id] * row(id) / n, in double, ids in order; zeros for n = 0. ids are below token_count().
  void mean(const int32_t* ids, int64_t n, float* out) const;

 private:
  SafetensorsFile file_;
  bool model2vec_ = false;
  int64_t rows_ = 0, cols_ = 0, ids_ = 0, parameters_ = 0, stored_bytes_ = 0;
  SafetensorsDtype dtype_ = SafetensorsDtype::f32;
  const float* table_ = nullptr;  // in the mapped file where that holds aligned f32, else in converted_
  std::vector<float> converted_;
  std::vector<double> weights_;
  std::vector<int32_t> mapping_;
};

}  // namespace thimble
