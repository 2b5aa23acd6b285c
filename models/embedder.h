// Texts as vectors: an encoder, a decoder or a static table behind one interface. open() reads what sentence-transformers or
// model2vec files beside the model say about pooling, length, prompts and normalization; a directory without such files
// gives the mean of the last hidden states over all tokens, those that the tokenizer adds included (decoders give weaker
// vectors than encoders that were trained for retrieval).
//
// A text's vector depends on the text alone: not on its neighbours, the batch size or the number of threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "models/embed_recipe.h"
#include "models/static_embedding.h"
#include "models/tokenizer/tokenizer.h"
#include "models/transformer.h"

namespace thimble {

struct EmbedderOptions {
  MemoryBudget* budget = nullptr;
  std::string tokenizer;           // path; "": beside the model
  std::string pooling;             // as parse_pooling reads it; "": what the files say
  std::optional<bool> normalize;   // divide by the length, or do not; absent: what the files say
  int64_t max_tokens = 0;          // of a text, special tokens included; 0: what the files say
  int64_t batch_rows = 2048;       // tokens of one forward pass, which bounds the memory of activations
};

// A text as ids, for callers that tokenize themselves.
struct TokenText {
  std::vector<int32_t> ids;
  std::vector<int32_t> types;  // token types; empty: all 0
  int64_t prompt = 0;          // the first so many ids are a prompt's
};

class Embedder {
 public:
  using Vectors = std::vector<std::vector<float>>;
  using Progress = std::function<void(int64_t done, int64_t total)>;  // texts

  // ctx outlives the embedder. Errors: those of load_model, Tokenizer::load and read_embed_recipe.
  static Embedder open(const std::string& path, Context& ctx, const EmbedderOptions& options = {});
  // Over a loaded model, which outlives the embedder, as does ctx. Texts are cut to transformer.max_tokens().
  Embedder(Transformer& transformer, Context& ctx, Tokenizer tokenizer, EmbedRecipe recipe = {}, int64_t batch_rows = 2048);
  ~Embedder();
  Embedder(Embedder&&) noexcept;
  Embedder& operator=(Embedder&&) noexcept;

  int64_t dimensions() const;
  int64_t max_tokens() const;  // longer texts lose their end; special tokens stay
  const EmbedRecipe& recipe() const;
  const Model* model() const;                   // null: a static table
  const StaticEmbedding* static_table() const;  // null: a transformer
  const Tokenizer& tokenizer() const;

  // One vector per text, in order; a text without tokens is a vector of zeros. prompt: text that stands in front of every
  // text. Errors: input for text that is not UTF-8 and for ids that the model does not have.
  Vectors embed(const std::vector<std::string>& texts, const std::string& prompt = "", const Progress& progress = {}) const;
  // The same from ids; rows of ids are read as they are, nothing is cut or added.
  Vectors embed_ids(const std::vector<TokenText>& texts, const Progress& progress = {}) const;
  // What embed() reads of a text.
  TokenText tokenize(const std::string& text, const std::string& prompt = "") const;
  // The text of a prompt by its name in config_sentence_transformers.json. Errors: usage for an unknown name, listing them.
  std::string prompt_text(const std::string& name) const;
  // The texts of the prompts for what is looked for ("query") and for what is found ("document", "passage" or "corpus");
  // where there are none of these names, the default prompt's, or "".
  std::string query_prompt() const;
  std::string document_prompt() const;

 private:
  struct State;
  explicit Embedder(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace thimble
