#include "rag/embedder.h"

#include <algorithm>

namespace thimble {

Embedder::Embedder(Transformer& transformer, Context& ctx, const Tokenizer& tokenizer, int64_t batch_rows)
    : transformer_(transformer), ctx_(ctx), tokenizer_(tokenizer), batch_rows_(batch_rows) {}

std::vector<std::vector<float>> Embedder::embed(const std::vector<std::string>& texts) {
  std::vector<std::vector<float>> vectors(texts.size());
  std::vector<int32_t> ids, cu_seqlens{0};
  std::vector<size_t> of;  // the text of each sequence
  const auto flush = [&] {
    if (of.empty()) return;
    const ArenaScope scope(ctx_.saved);
    Batch batch;
    batch.ids = ids.data();
    batch.n = static_cast<int64_t>(ids.size());
    batch.cu_seqlens = cu_seqlens.data();
    batch.n_seqs = static_cast<int64_t>(of.size());
    const Var hidden = transformer_.forward(ctx_, batch);
    const int64_t width = hidden.t.cols();
    std::vector<double> sum;
    for (size_t s = 0; s < of.size(); ++s) {
      sum.assign(static_cast<size_t>(width), 0.0);
      for (int32_t r = cu_seqlens[s]; r < cu_seqlens[s + 1]; ++r)
        for (int64_t c = 0; c < width; ++c) sum[static_cast<size_t>(c)] += double{hidden.t.f32()[r * width + c]};
      std::vector<float>& mean = vectors[of[s]];
      for (const double x : sum) mean.push_back(static_cast<float>(x / double(cu_seqlens[s + 1] - cu_seqlens[s])));
    }
    ids.clear();
    cu_seqlens.assign(1, 0);
    of.clear();
  };
  for (size_t i = 0; i < texts.size(); ++i) {
    std::vector<int32_t> tokens = tokenizer_.encode(texts[i]);
    if (static_cast<int64_t>(tokens.size()) > transformer_.max_tokens()) tokens.resize(static_cast<size_t>(transformer_.max_tokens()));
    if (tokens.empty()) {
      vectors[i].assign(static_cast<size_t>(transformer_.config().embed_dim), 0.0f);
      continue;
    }
    if (static_cast<int64_t>(ids.size() + tokens.size()) > batch_rows_) flush();
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    cu_seqlens.push_back(static_cast<int32_t>(ids.size()));
    of.push_back(i);
  }
  flush();
  return vectors;
}

}  // namespace thimble
