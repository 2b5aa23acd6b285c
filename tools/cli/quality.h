// Texts for calibration and evaluation, and the figures that say how far a changed model is from the original: shared by
// quantize, prune and model diff.
#pragma once

#include <string>
#include <vector>

#include "models/divergence.h"
#include "models/model.h"
#include "tools/cli/cli.h"

namespace thimble::cli {

// A file, or texts that the model writes itself.
struct TextSource {
  std::string path = "self";
  int64_t tokens = 0;   // wanted; 0 with a file: all of it
  int64_t length = 0;   // tokens per sequence
  int64_t stride = 0;   // of windows over a file; 0: half of the length
  uint64_t seed = 0;    // of texts of the model's own

  bool self() const { return path == "self"; }
};

struct Text {
  std::vector<std::vector<int32_t>> sequences;  // for calibration
  std::vector<ScoredSequence> scored;           // for evaluation
  int64_t tokens = 0;                           // of all sequences; overlapping windows count once
  std::string sha256;                           // of the file, or of the token ids
  std::string source;                           // "self (temperature 1, seed 1)", or the path

  nlohmann::ordered_json json(const TextSource& wanted) const;
};

// A file is cut into sequences without overlap, evenly spread when it has more tokens than are wanted.
Text calibration_text(const TextSource& wanted, Model& model, const std::string& tokenizer, Context& ctx,
                      const CommonOptions& options);
// A file is cut into windows as eval --ppl does (no BOS), the first `tokens` tokens of it.
Text evaluation_text(const TextSource& wanted, Model& model, const std::string& tokenizer, Context& ctx,
                     const CommonOptions& options);

// Measures `after` against `before` with a progress line. after_precision: as in divergence().
Divergence measure_quality(Model& before, Model& after, const Text& text, Context& ctx, const CommonOptions& options,
                           const std::string& what, std::optional<Precision> after_precision = {});

// kl_mean ... ppl_stderr, in the order of the contract.
void put_quality(nlohmann::ordered_json& json, const Divergence& d);
// {ctx, stride, tokens, scored, text_sha256, source}
nlohmann::ordered_json protocol_json(const TextSource& wanted, const Text& text, const Divergence& d);
std::string quality_text(const Divergence& d, const Text& text);

// The sequence length to use: what was asked for, else the model's positions, at most 512. Throws usage beyond them.
int64_t sequence_length(int64_t asked, const Model& model);

}  // namespace thimble::cli
