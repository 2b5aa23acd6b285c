// How a directory wants its hidden states turned into one vector per text: sentence-transformers' modules.json, Pooling,
// Dense and Normalize modules, length limit and prompts; model2vec's config.json; the pooling that a GGUF file states; and
// for everything else the default: the mean over all tokens, not normalized.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace thimble {

// One vector of a sequence h[0..n): the first; the largest of each column; sum / n; sum / sqrt(n);
// sum (i + 1) h[i] / sum (i + 1); the last.
enum class Pooling : uint8_t { cls, max, mean, mean_sqrt_len, weighted_mean, last_token };
const char* pooling_name(Pooling pooling);  // "cls", "max", "mean", "mean_sqrt_len", "weightedmean", "lasttoken"
// "mean", or several joined by "+", which are concatenated. Throws usage, naming `option` and the valid names.
std::vector<Pooling> parse_pooling(const std::string& text, const std::string& option);

// y = activation(x Wᵀ + b)
struct DenseModule {
  int64_t in = 0, out = 0;
  std::vector<float> weight;  // [out][in]
  std::vector<float> bias;    // [out], or empty
  bool tanh = false;          // else identity
};

struct EmbedStep {
  bool normalize = false;  // division by the length; else `dense`
  DenseModule dense;
};

struct EmbedRecipe {
  std::string model_path;    // where the transformer or the static table lies
  bool is_static = false;    // a table of one vector per token, whose mean is the text's vector
  std::vector<Pooling> pooling = {Pooling::mean};  // concatenated
  bool include_prompt = true;   // false: the tokens of a prompt are read but not pooled
  std::vector<EmbedStep> steps;  // in order, behind the pooling
  int64_t max_tokens = 0;       // special tokens included; 0: what the model takes
  bool lower_case = false;      // before tokenization
  bool strip = false;           // white space around a text is dropped
  std::map<std::string, std::string> prompts;  // by name: what stands in front of a text
  std::string default_prompt;   // a name, or ""
  std::string source = "default";  // where this comes from: "default", "sentence-transformers", "model2vec", "gguf"

  bool normalizes() const;
};

// "mean, dense 64 tanh, normalize"
std::string describe(const EmbedRecipe& recipe);

// llama.cpp's number of a recipe that is one pooling, normalized or not: 1 (mean), 2 (cls), 3 (last token); 0: GGUF cannot say it.
uint32_t pooling_number(const EmbedRecipe& recipe);

// path: a directory, or a file, which has the default recipe. Errors: input for malformed files; unsupported for modules,
// pooling modes and activations that are not offered; both name file and field.
EmbedRecipe read_embed_recipe(const std::string& path);

}  // namespace thimble
