// Texts as vectors for dense retrieval: the mean of a model's last hidden states over the tokens of the text (those the
// tokenizer adds included), as Contriever and sentence encoders pool them. Any model of the project serves: decoders give
// weaker vectors than encoders that were trained for retrieval.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/tokenizer/tokenizer.h"
#include "models/transformer.h"

namespace thimble {

class Embedder {
 public:
  // Everything outlives the embedder. batch_rows: tokens per forward pass, which bounds the memory of activations.
  Embedder(Transformer& transformer, Context& ctx, const Tokenizer& tokenizer, int64_t batch_rows = 2048);

  // One vector per text, in order. A text is cut to the first transformer.max_tokens() tokens; one without tokens is a
  // vector of zeros. A text's vector does not depend on its neighbours in the batch.
  // Errors: input when the tokenizer gives ids that the model does not have.
  std::vector<std::vector<float>> embed(const std::vector<std::string>& texts);

 private:
  Transformer& transformer_;
  Context& ctx_;
  const Tokenizer& tokenizer_;
  int64_t batch_rows_;
};

}  // namespace thimble
