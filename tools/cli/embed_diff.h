// thimble model diff for models that make vectors instead of next tokens.
#pragma once

#include <string>

#include "tools/cli/cli.h"

namespace thimble::cli {

// Whether the path holds an encoder or a static embedder, by its config alone.
bool makes_vectors(const std::string& path);

// Embeds the lines of a file with both and compares: cosine of each text's two vectors (where both have the same number of
// dimensions), and the share of texts (of the first 2000) whose nearest other text is the same. Prints it; the exit status.
// Errors: usage without a file; input for fewer than two texts.
int run_embed_diff(const CommonOptions& common, const std::string& before, const std::string& after, const std::string& text_file);

// Refuses (input) two models whose tokenizers give ids another meaning; nothing where one has no tokenizer of its own.
void require_same_tokens(const std::string& before, const std::string& after);

}  // namespace thimble::cli
