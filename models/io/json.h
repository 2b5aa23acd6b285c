// Strict JSON for files that come from strangers, and typed access to the fields of an object.
// Every error is an Error with ErrorCode::input whose message opens with the file's name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace thimble {

// Parses a whole text. Refused, with line and column: anything after the value, invalid UTF-8, duplicate keys of one
// object (most parsers keep the last one silently, so two programs would read two different files), numbers that
// overflow a double, and nesting deeper than kJsonMaxDepth.
inline constexpr int kJsonMaxDepth = 128;
nlohmann::json parse_json(std::string_view text, const std::string& name);

// Reads and parses a file of at most max_bytes.
nlohmann::json parse_json_file(const std::string& path, size_t max_bytes = size_t{256} << 20);

// A name from a file made safe for one line of an error message: quoted, control characters escaped, shortened.
std::string quote_for_message(std::string_view text);

// Helpers for handlers of nlohmann's SAX events, which themselves carry no position.
struct JsonPosition {
  size_t line = 1, column = 1;  // both from 1; column counts bytes
};
JsonPosition json_position(std::string_view text, size_t offset);
// nlohmann's message without its "[json.exception...] ...:" prefix and without unprintable bytes.
std::string json_syntax_message(const char* what);

// An input iterator over text that publishes how far the lexer has read: at an event for a key or a string,
// *position is the offset just behind its closing quote.
class JsonCursor {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  JsonCursor(const char* at, const char* begin, size_t* position) : at_(at), begin_(begin), position_(position) {}
  reference operator*() const { return *at_; }
  JsonCursor& operator++() {
    ++at_;
    *position_ = static_cast<size_t>(at_ - begin_);
    return *this;
  }
  JsonCursor operator++(int) {
    JsonCursor old = *this;
    ++*this;
    return old;
  }
  bool operator==(const JsonCursor& other) const { return at_ == other.at_; }
  bool operator!=(const JsonCursor& other) const { return at_ != other.at_; }

 private:
  const char* at_;
  const char* begin_;
  size_t* position_;
};

// Typed reads of one object's fields. Refers to the json value, which must outlive it. A field whose value is null
// counts as absent. Integers written as floats are accepted where exact (2.0), booleans never stand in for numbers.
// Messages: FILE: field "a.b": expected an integer between 1 and 64, found "many".
class JsonObject {
 public:
  // Throws when value is not an object. `where` is the path of the object inside the file, "" for the root.
  JsonObject(const nlohmann::json& value, std::string file, std::string where = {});

  bool has(const std::string& key) const { return find(key) != nullptr; }
  int64_t require_int(const std::string& key, int64_t min, int64_t max) const;
  double require_double(const std::string& key, double min, double max) const;
  std::string require_string(const std::string& key) const;
  int64_t get_int(const std::string& key, int64_t fallback, int64_t min, int64_t max) const;
  double get_double(const std::string& key, double fallback) const;
  double get_double(const std::string& key, double fallback, double min, double max) const;
  bool get_bool(const std::string& key, bool fallback) const;
  std::string get_string(const std::string& key, const std::string& fallback) const;
  // The object under key; empty when absent.
  std::optional<JsonObject> object(const std::string& key) const;

  // The value under key, or nullptr when absent or null.
  const nlohmann::json* find(const std::string& key) const;
  const nlohmann::json& json() const { return *value_; }
  const std::string& file() const { return file_; }
  // Throws: FILE: field "where.key": expected <expected>, found <value>.
  [[noreturn]] void fail(const std::string& key, const std::string& expected) const;

 private:
  const nlohmann::json* value_;
  std::string file_, where_;
};

}  // namespace thimble
