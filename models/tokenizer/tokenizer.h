// Text <-> token ids, for every tokenizer file the project reads. See README.md for the parts.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace thimble {

struct EncodeOptions {
  bool add_special = true;     // the post-processor's tokens (BOS and the like)
  bool parse_special = false;  // special strings inside the text become their token; otherwise they are plain text
};

struct DecodeOptions {
  bool skip_special = false;
};

// Immutable and cheap to copy (copies share one state); all const members may be called from several threads at once.
class Tokenizer {
 public:
  // path: tokenizer.json (any *.json with a "model"), vocab.json with merges.txt beside it, SentencePiece *.model, tiktoken
  // ranks (*.tiktoken, or a *.model that holds them), llama2.c *.bin, BERT's vocab.txt, *.gguf, or a directory that holds one
  // of these (looked for in this order). tokenizer_config.json beside the file supplies bos_token, eos_token, add_bos_token and
  // add_eos_token where the file itself says nothing.
  // Errors: input for a malformed file, unsupported for a well-formed one with a part that is not offered; both name
  // file and field.
  static Tokenizer load(const std::string& path);

  // Errors: input when the text is not UTF-8 (with the offset of the first bad byte).
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  // Always well-formed UTF-8: bytes that form no character show as U+FFFD. Errors: input for an id outside
  // [0, vocab_size()).
  std::string decode(const std::vector<int32_t>& ids, const DecodeOptions& options = {}) const;

  int32_t vocab_size() const;  // largest id + 1
  int32_t bos_id() const;      // -1 when there is none
  int32_t eos_id() const;
  // The piece as the vocabulary spells it; "" for an id that no token has. Errors as decode().
  const std::string& token(int32_t id) const;
  int32_t find_token(std::string_view piece) const;  // -1 when absent
  bool is_special(int32_t id) const;
  std::string kind() const;  // for display: "BPE (tokenizer.json)", "BPE (SentencePiece)", "BPE (llama2.c)", ...

  // The text of a tokenizer.json: what came from one as it was, other formats as the equivalent pipeline.
  std::string to_json() const;
  // Writes dir/tokenizer.json and dir/tokenizer_config.json; creates dir. What came from a tokenizer.json is written as it
  // was (merges in one of their two spellings); other formats are written as the equivalent pipeline.
  void save(const std::string& dir) const;

  struct State;
  explicit Tokenizer(std::shared_ptr<const State> state) : state_(std::move(state)) {}

 private:
  friend class DecodeStream;
  std::shared_ptr<const State> state_;
};

// Decoding token by token, for printing while generating. The concatenation of all results, finish() included, equals
// decode() of all ids; no result ends inside a character.
class DecodeStream {
 public:
  explicit DecodeStream(const Tokenizer& tokenizer, const DecodeOptions& options = {});
  ~DecodeStream();
  DecodeStream(DecodeStream&&) noexcept;
  DecodeStream& operator=(DecodeStream&&) noexcept;

  std::string push(int32_t id);  // what is certain now; often "" while bytes of a character are missing
  std::string finish();          // the rest; afterwards the stream is spent

 private:
  struct Run;
  std::unique_ptr<Run> run_;
};

}  // namespace thimble
