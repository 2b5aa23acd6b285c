#include "tools/cli/quality.h"

#include <fmt/format.h>

#include <algorithm>

#include "models/compress.h"
#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/cli/tokenizer_path.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

std::vector<int32_t> encode_file(const std::string& path, const Model& model, const std::string& tokenizer, std::string* sha256) {
  if (!file_exists(path)) throw Error(ErrorCode::input, path + ": no such file", "give a text file, or self");
  const std::string text = read_file(path);
  *sha256 = sha256_hex(text);
  const std::string where = tokenizer.empty() ? default_tokenizer_path(model.path) : tokenizer;
  std::vector<int32_t> ids;
  try {
    ids = Tokenizer::load(where).encode(text, {false, false});
  } catch (const Error& e) {
    throw Error(e.code(), path + ": " + e.what(), e.hint());
  }
  for (int32_t id : ids)
    if (id >= model.config.vocab_size)
      throw Error(ErrorCode::input,
                  fmt::format("{}: {} gives token id {}: the vocabulary of {} has {} entries", path, where, id, model.path, model.config.vocab_size),
                  "tokenizer and model do not belong together: name the right one with --tokenizer");
  if (ids.size() < 2) throw Error(ErrorCode::input, fmt::format("{}: holds {} tokens", path, ids.size()), "give a text of at least two tokens");
  return ids;
}

Text sample_text(const TextSource& wanted, Model& model, Context& ctx, const CommonOptions& options, const char* what) {
  Text text;
  const int64_t count = std::max<int64_t>(1, (wanted.tokens + wanted.length - 1) / wanted.length);
  Progress progress(options, what, count * (wanted.length - 1), "tokens");
  text.sequences = sample_calibration(model, ctx, count, wanted.length, wanted.seed,
                                      [&](int64_t done, int64_t) { progress.update(done); });
  text.tokens = count * wanted.length;
  text.sha256 = sha256_of_ids(text.sequences);
  text.source = fmt::format("self (temperature 1, seed {})", wanted.seed);
  return text;
}

}  // namespace

Json Text::json(const TextSource& wanted) const {
  return {{"source", source}, {"tokens", tokens}, {"sequences", sequences.size()}, {"length", wanted.length}, {"sha256", sha256}};
}

Text calibration_text(const TextSource& wanted, Model& model, const std::string& tokenizer, Context& ctx,
                      const CommonOptions& options) {
  if (wanted.self()) return sample_text(wanted, model, ctx, options, "calibration text");
  Text text;
  const std::vector<int32_t> ids = encode_file(wanted.path, model, tokenizer, &text.sha256);
  text.source = wanted.path;
  const auto n = static_cast<int64_t>(ids.size()), length = std::min(wanted.length, n);
  const int64_t available = n / length, asked = std::max<int64_t>(1, (wanted.tokens + length - 1) / length);
  const int64_t count = wanted.tokens > 0 ? std::min(asked, available) : available;
  for (int64_t i = 0; i < count; ++i) {
    const auto begin = ids.begin() + i * available / count * length;
    text.sequences.emplace_back(begin, begin + length);
  }
  text.tokens = count * length;
  if (asked > available && wanted.tokens > 0)
    warn(fmt::format("{}: holds {} tokens: {} of the {} calibration tokens asked for are used", wanted.path, n, text.tokens, wanted.tokens));
  return text;
}

Text evaluation_text(const TextSource& wanted, Model& model, const std::string& tokenizer, Context& ctx,
                     const CommonOptions& options) {
  if (wanted.self()) {
    Text text = sample_text(wanted, model, ctx, options, "evaluation text");
    for (const auto& sequence : text.sequences) text.scored.push_back({sequence, 1});
    return text;
  }
  Text text;
  std::vector<int32_t> ids = encode_file(wanted.path, model, tokenizer, &text.sha256);
  text.source = wanted.path;
  if (wanted.tokens > 0 && static_cast<int64_t>(ids.size()) > wanted.tokens) ids.resize(static_cast<size_t>(std::max<int64_t>(2, wanted.tokens)));
  text.tokens = static_cast<int64_t>(ids.size());
  text.scored = scored_windows(ids, wanted.length, wanted.stride);
  return text;
}

Divergence measure_quality(Model& before, Model& after, const Text& text, Context& ctx, const CommonOptions& options,
                           const std::string& what, std::optional<Precision> after_precision) {
  int64_t longest = 1;
  for (const ScoredSequence& s : text.scored) longest = std::max(longest, static_cast<int64_t>(s.ids.size()));
  Transformer a(before, longest), b(after, longest);
  Progress progress(options, what, static_cast<int64_t>(text.scored.size()), "sequences");
  return divergence(a, b, ctx, text.scored, [&](int64_t done, int64_t) { progress.update(done); }, after_precision);
}

void put_quality(Json& json, const Divergence& d) {
  json["kl_mean"] = d.kl_mean;
  json["kl_stderr"] = d.kl_stderr;
  json["kl_p99"] = d.kl_p99;
  json["kl_max"] = d.kl_max;
  json["same_top1"] = d.same_top1;
  json["ppl_before"] = d.ppl_before;
  json["ppl_after"] = d.ppl_after;
  json["ppl_stderr"] = d.ppl_stderr;
  json["nll_difference"] = d.nll_after - d.nll_before;
  json["nll_difference_stderr"] = d.nll_diff_stderr;
}

Json protocol_json(const TextSource& wanted, const Text& text, const Divergence& d) {
  return {{"ctx", wanted.length}, {"stride", wanted.stride}, {"tokens", text.tokens}, {"scored", d.tokens},
          {"text_sha256", text.sha256}, {"source", text.source}};
}

std::string quality_text(const Divergence& d, const Text& text) {
  return fmt::format(
      "  KL divergence  {:.6f} ± {:.6f} nats, 99 % below {:.4f}\n"
      "  same choice    {:.2f} %\n"
      "  perplexity     {:.4f} -> {:.4f} ± {:.4f}\n"
      "  text           {}, {} tokens scored\n",
      d.kl_mean, d.kl_stderr, d.kl_p99, 100 * d.same_top1, d.ppl_before, d.ppl_after, d.ppl_stderr, text.source, d.tokens);
}

int64_t sequence_length(int64_t asked, const Model& model) {
  const int64_t positions = model.config.max_positions;
  if (asked > positions)
    throw Error(ErrorCode::usage, fmt::format("--ctx {}: {} has positions for {} tokens", asked, model.path, positions),
                fmt::format("use --ctx {} or less", positions));
  return asked > 0 ? asked : std::min<int64_t>(512, positions);
}

}  // namespace thimble::cli
