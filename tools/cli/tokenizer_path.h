// Where a model's tokenizer lies when --tokenizer is not given.
#pragma once

#include <string>

namespace thimble::cli {

// What Tokenizer::load is to be given for the model at model_path: the directory itself; for a llama2.c checkpoint the
// tok*.bin or tokenizer.bin beside it, or the directory around it when that holds a tokenizer.json or tokenizer.model.
// Errors: input when there is none, or when several tok*.bin make the choice ambiguous; the hint names --tokenizer.
std::string default_tokenizer_path(const std::string& model_path);

}  // namespace thimble::cli
