#include "train/workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "tensor/error.h"
#include "tensor/rng.h"

namespace thimble {
namespace {

int64_t longest(const Model& model, const WorkOptions& o) {
  const int64_t tokens = o.prompt_tokens + (o.kind == WorkKind::decode ? o.tokens : 0);
  if (o.prompt_tokens < 1 || o.tokens < 1 || tokens > model.config.max_positions)
    throw Error(
        ErrorCode::usage,
        fmt::format("{} tokens do not fit the {} positions of {}", tokens, model.config.max_positions, model.path),
        fmt::format("give between 1 and {} tokens in all", model.config.max_positions));
  return tokens;
}

}  // namespace

Workload::Workload(Model& model, Context& ctx, const WorkOptions& options)
    : ctx_(ctx), options_(options), transformer_(model, longest(model, options)) {
  Philox random(options.seed, 0x574F524Bu);
  const int64_t wanted = options.kind == WorkKind::train ? 8 * options.batch * options.prompt_tokens + 1 : transformer_.max_tokens();
  for (int64_t i = 0; i < wanted; ++i)
    ids_.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(model.config.vocab_size))));
  if (options.kind != WorkKind::train) return;
  if (options.full) {
    if (!model.weights.token_embed.grad) enable_gradients(model);
  } else {
    adapter_ = std::make_unique<Adapter>(model, ctx.kernels, options.adapter, ctx.budget);
    adapter_->enable_gradients();
  }
  data_ = std::make_unique<Dataset>(Dataset::from_stream(ids_, options.prompt_tokens));
  TrainOptions train;
  train.steps = std::numeric_limits<int32_t>::max();
  train.batch = options.batch;
  train.recompute = options.recompute;
  train.moments = options.moments;
  train.lr = 1e-4;
  train.adamw.clip_norm = 1;
  train.seed = options.seed;
  trainer_ = std::make_unique<Trainer>(ctx, transformer_, adapter_.get(), *data_, nullptr, train);
}

void Workload::prepare() {
  if (options_.kind == WorkKind::train) return;
  const bool decode = options_.kind == WorkKind::decode;
  if (!generator_) {
    generator_ = std::make_unique<Generator>(transformer_, ctx_, transformer_.max_tokens());
    if (decode) generator_->feed(ids_.data(), options_.prompt_tokens);
    at_ = decode ? options_.prompt_tokens : 0;
    return;
  }
  if (decode && at_ < static_cast<int64_t>(ids_.size())) return;
  at_ = decode ? options_.prompt_tokens : 0;
  generator_->cache().rewind(0, at_);
}

void Workload::run() {
  switch (options_.kind) {
    case WorkKind::prefill:
      generator_->feed(ids_.data(), options_.prompt_tokens);
      break;
    case WorkKind::decode:
      generator_->feed(&ids_[static_cast<size_t>(at_++)], 1);
      break;
    case WorkKind::train:
      trainer_->step();
      break;
  }
}

}  // namespace thimble
