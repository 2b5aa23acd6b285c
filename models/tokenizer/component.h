// The parts a tokenizer is assembled from, after the sections of tokenizer.json: text -> normalizer -> pre-tokenizer ->
// model -> post-processor -> ids, and ids -> decoder -> text. Each section has one file with one table of types.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "models/io/json.h"
#include "models/tokenizer/scanner.h"

namespace thimble {

// Text on its way to the model; always well-formed UTF-8. at_start: begins where the whole input begins. The bytes
// belong to the input or to the TextArena that travels with the pieces.
struct Piece {
  std::string_view text;
  bool at_start = false;
};

// Owns texts that a component made new.
class TextArena {
 public:
  std::string_view keep(std::string text) { return texts_.emplace_back(std::move(text)); }

 private:
  std::deque<std::string> texts_;
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  virtual std::string normalize(std::string text) const = 0;
};

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // Replaces each piece by its parts; empty pieces are dropped. raw_bytes: the model spells bytes itself, so a
  // ByteLevel that comes last leaves them as they are.
  virtual void split(std::vector<Piece>& pieces, TextArena& arena, bool raw_bytes) const = 0;
  // The last step spells bytes as the 256 characters of byte-level vocabularies.
  virtual bool spells_bytes() const { return false; }
  // Not nullptr: with raw_bytes, cutting is all it does, and this rule does it.
  virtual const ScannerRule* whole_scanner() const { return nullptr; }
};

// Pieces of text -> ids. Immutable after construction and safe to share between threads.
class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // raw_bytes: pieces are plain bytes that the vocabulary spells byte by byte; only where takes_raw_bytes().
  virtual void encode(const Piece* pieces, size_t count, bool raw_bytes, std::vector<int32_t>& ids) const = 0;
  virtual bool takes_raw_bytes() const { return false; }
  virtual int32_t size() const = 0;                        // largest id + 1
  virtual const std::string& piece(int32_t id) const = 0;  // id in [0, size()); "" for a hole
  virtual int32_t find(std::string_view piece) const = 0;  // -1 when absent
  virtual std::string kind() const = 0;
  // The "model" section of tokenizer.json as text.
  virtual std::string to_json() const = 0;
};

class PostProcessor {
 public:
  virtual ~PostProcessor() = default;
  virtual void process(std::vector<int32_t>& ids) const = 0;
};

// One stage of a running decoder. A token arrives as put()* end_token(); finish() follows the last token. Stages pass
// on what can no longer change, so that a whole text and a stream go through the same code.
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

// A JSON string with its quotes, and null for none: for models that write themselves.
std::string json_string(const std::string& text);

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
