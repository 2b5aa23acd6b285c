#include "models/static_embedding.h"

#include <fmt/format.h>

#include <algorithm>

#include "models/io/json.h"
#include "tensor/error.h"

namespace thimble {
namespace {

[[noreturn]] void fail(const TensorView& tensor, const std::string& expected) {
  throw Error(ErrorCode::input,
              fmt::format("{}: tensor {} is {}: expected {}", tensor.file, tensor.info->name, describe_tensor(*tensor.info), expected),
              "the file is damaged, or no static embedder");
}

}  // namespace

StaticEmbedding::StaticEmbedding(const std::string& dir) : file_(join_path(dir, "model.safetensors")) {
  const char* const known[] = {"embeddings", "embedding.weight", "weights", "mapping"};
  for (const TensorInfo& t : file_.tensors())
    if (std::find(std::begin(known), std::end(known), t.name) == std::end(known))
      throw Error(ErrorCode::input, fmt::format("{}: tensor {} belongs to no static embedder", file_.path(), quote_for_message(t.name)),
                  "expected: embeddings or embedding.weight, and optionally weights and mapping");
  model2vec_ = file_.find("embeddings") != nullptr;
  const char* name = model2vec_ ? "embeddings" : "embedding.weight";
  if (!file_.find(name))
    throw Error(ErrorCode::input, file_.path() + ": holds neither the tensor embeddings nor embedding.weight",
                "give the directory of a static embedder");
  const TensorView table = file_.view(name);
  if (table.info->shape.size() != 2 || table.info->elements() == 0) fail(table, "a non-empty matrix [rows, dimensions]");
  dtype_ = table.info->dtype;
  rows_ = table.info->shape[0];
  cols_ = table.info->shape[1];
  if (dtype_ == SafetensorsDtype::f32 && reinterpret_cast<uintptr_t>(table.data) % alignof(float) == 0) {
    table_ = reinterpret_cast<const float*>(table.data);
  } else {
    converted_.resize(static_cast<size_t>(table.info->elements()));
    table.read_f32(converted_.data());
    table_ = converted_.data();
  }
  ids_ = rows_;
  if (file_.find("mapping")) {
    const TensorView mapping = file_.view("mapping");
    if (mapping.info->shape.size() != 1) fail(mapping, "a vector with a row number per token");
    std::vector<int64_t> wide(static_cast<size_t>(mapping.info->elements()));
    mapping.read_i64(wide.data());
    for (const int64_t row : wide) {
      if (row < 0 || row >= rows_)
        throw Error(ErrorCode::input, fmt::format("{}: tensor mapping holds {}: expected row numbers from 0 to {}", mapping.file, row, rows_ - 1),
                    "the file is damaged");
      mapping_.push_back(static_cast<int32_t>(row));
    }
    ids_ = static_cast<int64_t>(mapping_.size());
  }
  if (file_.find("weights")) {
    const TensorView weights = file_.view("weights");
    if (weights.info->shape != std::vector<int64_t>{ids_}) fail(weights, fmt::format("a vector of {} weights, one per token", ids_));
    weights_.resize(static_cast<size_t>(ids_));
    weights.read_f64(weights_.data());
  }
  parameters_ = table.info->elements() + static_cast<int64_t>(weights_.size());
  for (const TensorInfo& t : file_.tensors()) stored_bytes_ += static_cast<int64_t>(t.bytes);
}

std::string StaticEmbedding::description() const {
  return fmt::format("{} x {} {}, {} tokens{}{}", rows_, cols_, safetensors_dtype_name(dtype_), ids_, mapping_.empty() ? "" : ", mapped",
                     weights_.empty() ? "" : ", weighted");
}

void StaticEmbedding::mean(const int32_t* ids, int64_t n, float* out) const {
  constexpr int64_t kColumns = 64;  // whose sums stay in the caches while the tokens go by
  for (int64_t c0 = 0; c0 < cols_; c0 += kColumns) {
    const int64_t count = std::min(kColumns, cols_ - c0);
    double sum[kColumns] = {};
    for (int64_t i = 0; i < n; ++i) {
      const auto id = static_cast<size_t>(ids[i]);
      const double w = weights_.empty() ? 1.0 : weights_[id];
      const float* row = table_ + (mapping_.empty() ? int64_t{ids[i]} : int64_t{mapping_[id]}) * cols_ + c0;
      for (int64_t c = 0; c < count; ++c) sum[c] += w * double{row[c]};
    }
    for (int64_t c = 0; c < count; ++c) out[c0 + c] = n > 0 ? static_cast<float>(sum[c] / double(n)) : 0.0f;
  }
}

}  // namespace thimble
