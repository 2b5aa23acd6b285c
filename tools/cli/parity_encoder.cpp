#include "tools/cli/parity_encoder.h"

#include <fmt/format.h>

#include <cmath>

#include "models/pooling.h"
#include "tensor/error.h"

namespace thimble::cli {
namespace {

class EncoderCase {
 public:
  EncoderCase(Transformer& transformer, Context& ctx, const SafetensorsFile& expected, int64_t n_seqs, int64_t length, const EncoderChecks& to)
      : transformer_(transformer), ctx_(ctx), expected_(expected), n_seqs_(n_seqs), length_(length), to_(to) {}

  // Packs the rows that are not padding.
  void pack(const std::vector<int32_t>& ids) {
    const std::vector<int64_t> mask = integers("attention_mask"), types = integers("token_type_ids");
    for (int64_t s = 0; s < n_seqs_; ++s) {
      bool ended = false;
      for (int64_t t = 0; t < length_; ++t) {
        const auto at = static_cast<size_t>(s * length_ + t);
        if (!mask.empty() && mask[at] != 1) {
          ended = true;
          continue;
        }
        if (ended)
          throw Error(ErrorCode::input, expected_.path() + ": tensor attention_mask: expected ones, then zeros for padding",
                      "only padding behind a text is supported");
        ids_.push_back(ids[at]);
        types_.push_back(types.empty() ? 0 : static_cast<int32_t>(types[at]));
        place_.push_back(s * length_ + t);
      }
      cu_seqlens_.push_back(static_cast<int32_t>(ids_.size()));
      if (cu_seqlens_[static_cast<size_t>(s)] == cu_seqlens_[static_cast<size_t>(s) + 1])
        throw Error(ErrorCode::input, expected_.path() + ": tensor attention_mask: a sequence has no tokens", "");
    }
    batch_.ids = ids_.data();
    batch_.n = static_cast<int64_t>(ids_.size());
    batch_.cu_seqlens = cu_seqlens_.data();
    batch_.n_seqs = n_seqs_;
    batch_.token_types = transformer_.config().token_types > 0 ? types_.data() : nullptr;
  }

  void compare(const EmbedRecipe& recipe) {
    const ArenaScope scope(ctx_.saved);
    const Var hidden = transformer_.forward(ctx_, batch_);
    if (expected_.find("last_hidden_state")) {
      const int64_t width = hidden.t.cols();
      const std::vector<float> all = to_.stored("last_hidden_state", n_seqs_ * length_ * width);
      std::vector<float> want;
      for (const int64_t row : place_) want.insert(want.end(), all.begin() + row * width, all.begin() + (row + 1) * width);
      compare_values("last_hidden_state", hidden, want);
    }
    if (expected_.find("mean_pooled")) {
      const EmbedRecipe mean;
      compare_key("mean_pooled", EmbedHead(mean, hidden.t.cols()).run(ctx_, hidden, batch_.cu_seqlens, n_seqs_));
    }
    if (expected_.find("embeddings")) compare_key("embeddings", EmbedHead(recipe, hidden.t.cols()).run(ctx_, hidden, batch_.cu_seqlens, n_seqs_));
    if (expected_.find("pooler_output")) compare_key("pooler_output", transformer_.pooler_output(ctx_, batch_, hidden));
  }

  void compare_gradients(const EmbedRecipe& recipe, bool wants_grads) {
    const EmbedHead head(recipe, transformer_.config().embed_dim);
    if (wants_grads && !head.differentiable())
      throw Error(ErrorCode::unsupported, expected_.path() + ": gradients through this pooling are not supported", "supported: one pooling other than max, without Dense");
    const std::vector<float> probe = to_.stored("probe", n_seqs_ * head.dimensions());
    const ArenaScope scope(ctx_.saved);
    Tape tape;
    if (wants_grads) ctx_.tape = &tape;
    const Var y = head.run(ctx_, transformer_.forward(ctx_, batch_), batch_.cu_seqlens, n_seqs_);
    double loss = 0;
    for (size_t i = 0; i < probe.size(); ++i) loss += double{y.t.f32()[i]} * double{probe[i]};
    if (wants_grads) {
      Tape::Value& out = tape.value(y.id);  // d loss / d embeddings
      out.grad = const_cast<float*>(probe.data());
      out.written = true;
      backward(ctx_);
    }
    ctx_.tape = nullptr;
    to_.remember("loss", &loss, sizeof loss);
    if (expected_.find("loss")) to_.check("loss", "abs", std::fabs(loss - double{to_.stored("loss", 1)[0]}), to_.atol_loss);
    if (wants_grads) to_.gradients();
  }

 private:
  std::vector<int64_t> integers(const char* key) {
    const TensorInfo* info = expected_.find(key);
    if (!info) return {};
    if (info->shape != std::vector<int64_t>{n_seqs_, length_})
      throw Error(ErrorCode::input, fmt::format("{}: tensor {}: expected the shape of input_ids", expected_.path(), key), "");
    std::vector<int64_t> values(static_cast<size_t>(info->elements()));
    expected_.read_i64(*info, values.data());
    to_.used(key);
    return values;
  }

  void compare_key(const std::string& key, const Var& got) { compare_values(key, got, to_.stored(key, got.t.numel())); }
  void compare_values(const std::string& key, const Var& got, const std::vector<float>& want) {
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double d = std::fabs(double{got.t.f32()[i]} - double{want[i]});
      if (!(d <= worst)) worst = d;
    }
    to_.remember(key, got.t.f32(), want.size() * sizeof(float));
    to_.check(key, "max_abs", worst, to_.atol_hidden);
  }

  Transformer& transformer_;
  Context& ctx_;
  const SafetensorsFile& expected_;
  int64_t n_seqs_, length_;
  const EncoderChecks& to_;
  std::vector<int32_t> ids_, types_, cu_seqlens_{0};
  std::vector<int64_t> place_;  // of each packed row in the padded batch
  Batch batch_;
};

}  // namespace

bool is_encoder_case(const SafetensorsFile& expected) {
  return expected.find("attention_mask") || expected.find("last_hidden_state") || expected.find("embeddings");
}

void compare_encoder(Transformer& transformer, Context& ctx, const std::string& dir, const SafetensorsFile& expected,
                     const std::vector<int32_t>& ids, int64_t n_seqs, int64_t length, bool wants_grads, const EncoderChecks& to) {
  const EmbedRecipe recipe = read_embed_recipe(dir);
  EncoderCase run(transformer, ctx, expected, n_seqs, length, to);
  run.pack(ids);
  run.compare(recipe);
  if (expected.find("probe")) run.compare_gradients(recipe, wants_grads);
}

}  // namespace thimble::cli
