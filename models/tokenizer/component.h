// The parts a tokenizer is assembled from, after the sections of tokenizer.json: text -> normalizer -> pre-tokenizer ->
// model -> post-processor -> ids, and ids -> decoder -> text. Each section has one file with one table of types.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "models/io/json.h"

namespace thimble {

// Text on its way to the model; always well-formed UTF-8. at_start: begins where the whole input begins.
struct Piece {
  std::string text;
  bool at_start = false;
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual std::string normalize(std::string text) const = 0;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // Replaces each piece by its parts; empty pieces are dropped.
  virtual void split(std::vector<Piece>& pieces) const = 0;
};

// Pieces of text -> ids. Immutable after construction and safe to share between threads.
class TokenModel {
 public:
  virtual ~TokenModel() = default;
  virtual void encode(const std::vector<Piece>& pieces, std::vector<int32_t>& ids) const = 0;
  virtual int32_t size() const = 0;                             // largest id + 1
  virtual const std::string& piece(int32_t id) const = 0;       // id in [0, size()); "" for a hole
  virtual int32_t find(std::string_view piece) const = 0;       // -1 when absent
  virtual std::string kind() const = 0;
  // The "model" section of tokenizer.json as text.
  virtual std::string to_json() const = 0;
};

class PostProcessor {
 public:
  virtual ~PostProcessor() = default;
  virtual void process(std::vector<int32_t>& ids) const = 0;
};

// One stage of a running decoder. A token arrives as put()* end_token(); finish() follows the last token. Stages pass on
// what can no longer change, so that a whole text and a stream go through the same code.
class DecodeStage {
 public:
  virtual ~DecodeStage() = default;
  virtual void put(std::string_view bytes) = 0;
  virtual void end_token() = 0;
  virtual void finish() = 0;
  void connect(DecodeStage* next) { next_ = next; }

 protected:
  DecodeStage* next_ = nullptr;
};

class Decoder {
 public:
  virtual ~Decoder() = default;
  // Appends the stages of one run, in order.
  virtual void start(std::vector<std::unique_ptr<DecodeStage>>& stages) const = 0;
};

// Builders: `section` is the value in the file; null gives nullptr. An unknown type throws unsupported, a malformed one
// input; both name file and field.
std::unique_ptr<Normalizer> make_normalizer(const nlohmann::json& section, const std::string& file,
                                            const std::string& where);
std::unique_ptr<PreTokenizer> make_pre_tokenizer(const nlohmann::json& section, const std::string& file,
                                                 const std::string& where);
std::unique_ptr<PostProcessor> make_post_processor(const nlohmann::json& section, const std::string& file,
                                                   const std::string& where);
std::unique_ptr<Decoder> make_decoder(const nlohmann::json& section, const std::string& file, const std::string& where);
std::unique_ptr<TokenModel> make_token_model(const nlohmann::json& section, const std::string& file,
                                             const std::string& where);

// The 256 characters that stand for bytes in byte-level vocabularies.
void append_byte_level(std::string& out, std::string_view bytes);
// Back to bytes; false when a character is none of the 256.
bool from_byte_level(std::string_view text, std::string& bytes);

// "<0x0A>" -> 10; -1 when the piece is no byte token. Digits of either case.
int byte_token_value(std::string_view piece);
std::string byte_token(int value);

// Shared by the tables.
struct ComponentSource {
  JsonObject object;
  std::string where;  // path of the object inside the file
  const std::string& file() const { return object.file(); }
  std::string at(const std::string& key) const { return object.file() + ": field \"" + where + "." + key + "\""; }
  // The list under key, for the Sequence types.
  const nlohmann::json& list(const std::string& key) const;
};

// Finds section["type"] in a table of {name, make(const ComponentSource&)} and runs it.
template <typename Result, typename Row, size_t N>
std::unique_ptr<Result> make_component(const nlohmann::json& section, const std::string& file, const std::string& where,
                                       const Row (&table)[N]);

[[noreturn]] void throw_unknown_component(const std::string& type, const std::string& file, const std::string& where,
                                          const std::string& known);

template <typename Result, typename Row, size_t N>
std::unique_ptr<Result> make_component(const nlohmann::json& section, const std::string& file, const std::string& where,
                                       const Row (&table)[N]) {
  if (section.is_null()) return nullptr;
  const ComponentSource source{JsonObject(section, file, where), where};
  const std::string type = source.object.require_string("type");
  std::string known;
  for (const Row& row : table) {
    if (type == row.type) return row.make(source);
    known += (known.empty() ? "" : ", ") + std::string(row.type);
  }
  throw_unknown_component(type, file, where, known);
}

}  // namespace thimble
