#include "models/io/json.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

// Builds the value from SAX events. nlohmann's own builder would keep the last of two equal keys and recurse without
// a limit of ours.
class DomBuilder {
 public:
  using json = nlohmann::json;

  DomBuilder(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  bool null() { return add(json(nullptr)); }
  bool boolean(bool v) { return add(json(v)); }
  bool number_integer(int64_t v) { return add(json(v)); }
  bool number_unsigned(uint64_t v) { return add(json(v)); }
  bool number_float(double v, const std::string&) { return add(json(v)); }
  bool string(std::string& v) { return add(json(std::move(v))); }
  bool binary(json::binary_t&) { return false; }
  bool start_object(size_t) { return open(json::object()); }
  bool start_array(size_t) { return open(json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& k) {
    json::object_t& members = stack_.back()->get_ref<json::object_t&>();
    const auto [place, fresh] = members.emplace(std::move(k), nullptr);
    if (!fresh) {
      // The lexer stands behind the closing quote; point at the opening one.
      size_t at = position - 1;
      const auto opens = [&](size_t i) {
        size_t backslashes = 0;
        while (backslashes < i && text_[i - 1 - backslashes] == '\\') ++backslashes;
        return text_[i] == '"' && backslashes % 2 == 0;
      };
      while (at > 0 && !opens(--at)) continue;
      fail(at, "the key " + quote_for_message(place->first) + " stands twice in one object",
           "remove one of the two: readers disagree on which one counts");
    }
    target_ = &place->second;
    return true;
  }

  bool parse_error(size_t at, const std::string&, const nlohmann::detail::exception& e) {
    fail(at > 0 ? at - 1 : 0, json_syntax_message(e.what()), "the file is not valid JSON; is it complete?");
  }

  // nlohmann's lexer takes a NUL byte for the end of the text and would never look behind it.
  [[noreturn]] void refuse_nul(size_t at) const {
    fail(at, "a NUL byte", "the file is not valid JSON; is it complete?");
  }

  size_t position = 0;
  json take() { return std::move(root_); }

 private:
  [[noreturn]] void fail(size_t at, const std::string& what, const std::string& hint) const {
    const JsonPosition p = json_position(text_, at);
    throw Error(ErrorCode::input, fmt::format("{}: line {}, column {}: {}", name_, p.line, p.column, what), hint);
  }

  json* place(json value) {
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (stack_.back()->is_array()) {
      json::array_t& elements = stack_.back()->get_ref<json::array_t&>();
      elements.push_back(std::move(value));
      return &elements.back();
    }
    *target_ = std::move(value);
    return target_;
  }

  bool add(json value) {
    place(std::move(value));
    return true;
  }

  bool open(json value) {
    if (stack_.size() >= static_cast<size_t>(kJsonMaxDepth))
      fail(position > 0 ? position - 1 : 0, fmt::format("nested deeper than {} levels", kJsonMaxDepth),
           "no model file needs such depth; is this the right file?");
    stack_.push_back(place(std::move(value)));
    return true;
  }

  bool close() {
    stack_.pop_back();
    return true;
  }

  std::string_view text_;
  const std::string& name_;
  json root_;
  std::vector<json*> stack_;  // open containers; stable, since only the innermost one grows
  json* target_ = nullptr;    // where the value of the last key goes
};

std::string describe(const nlohmann::json& v) {
  switch (v.type()) {
    case nlohmann::json::value_t::null:
      return "null";
    case nlohmann::json::value_t::object:
      return "an object";
    case nlohmann::json::value_t::array:
      return fmt::format("an array of {}", v.size());
    case nlohmann::json::value_t::string:
      return quote_for_message(v.get_ref<const std::string&>());
    default:
      return v.dump();
  }
}

// The exact integer in v, if it is one.
std::optional<int64_t> exact_int(const nlohmann::json& v) {
  if (v.is_number_unsigned()) {
    const uint64_t u = v.get<uint64_t>();
    if (u > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    return static_cast<int64_t>(u);
  }
  if (v.is_number_integer()) return v.get<int64_t>();
  if (v.is_number_float()) {
    const double d = v.get<double>();
    if (std::abs(d) <= 9007199254740992.0 && d == std::floor(d)) return static_cast<int64_t>(d);
  }
  return std::nullopt;
}

}  // namespace

std::string quote_for_message(std::string_view text) {
  constexpr size_t kMax = 120;
  std::string out = "\"";
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (i >= kMax && (c & 0xC0) != 0x80) {  // never cut inside a UTF-8 sequence
      out += "...";
      break;
    }
    if (c < 0x20 || c == 0x7F)
      out += fmt::format("\\x{:02x}", c);
    else
      out += static_cast<char>(c);
  }
  return out + "\"";
}

JsonPosition json_position(std::string_view text, size_t offset) {
  JsonPosition p;
  for (size_t i = 0; i < offset && i < text.size(); ++i) {
    ++p.column;
    if (text[i] == '\n') {
      ++p.line;
      p.column = 1;
    }
  }
  return p;
}

std::string json_syntax_message(const char* what) {
  std::string_view message(what);
  if (const size_t end = message.find("] "); end != std::string_view::npos) message.remove_prefix(end + 2);
  if (message.substr(0, 11) == "parse error")
    if (const size_t colon = message.find(": "); colon != std::string_view::npos) message.remove_prefix(colon + 2);
  std::string out;
  for (size_t i = 0; i < message.size() && i < 300; ++i) {
    const unsigned char c = static_cast<unsigned char>(message[i]);
    if (c >= 0x20 && c < 0x7F)
      out += static_cast<char>(c);
    else
      out += fmt::format("\\x{:02x}", c);
  }
  return out;
}

nlohmann::json parse_json(std::string_view text, const std::string& name) {
  DomBuilder builder(text, name);
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) builder.refuse_nul(nul);
  const char* begin = text.data();
  const char* end = begin + text.size();
  const bool ok = nlohmann::json::sax_parse(JsonCursor(begin, begin, &builder.position),
                                            JsonCursor(end, begin, &builder.position), &builder);
  THIMBLE_CHECK(ok);
  return builder.take();
}

nlohmann::json parse_json_file(const std::string& path, size_t max_bytes) {
  return parse_json(read_file(path, max_bytes), path);
}

JsonObject::JsonObject(const nlohmann::json& value, std::string file, std::string where)
    : value_(&value), file_(std::move(file)), where_(std::move(where)) {
  if (value.is_object()) return;
  const std::string what = where_.empty() ? "the file" : "field \"" + where_ + "\"";
  throw Error(ErrorCode::input, file_ + ": " + what + ": expected an object, found " + describe(value),
              "is this the right file?");
}

const nlohmann::json* JsonObject::find(const std::string& key) const {
  const auto it = value_->find(key);
  return it == value_->end() || it->is_null() ? nullptr : &*it;
}

void JsonObject::fail(const std::string& key, const std::string& expected) const {
  const auto it = value_->find(key);
  const std::string path = where_.empty() ? key : where_ + "." + key;
  throw Error(ErrorCode::input,
              fmt::format("{}: field {}: expected {}, found {}", file_, quote_for_message(path), expected,
                          it == value_->end() ? std::string("nothing") : describe(*it)),
              "correct the field, or check that the file belongs to this model");
}

int64_t JsonObject::require_int(const std::string& key, int64_t min, int64_t max) const {
  const nlohmann::json* v = find(key);
  const std::optional<int64_t> i = v ? exact_int(*v) : std::nullopt;
  if (!i || *i < min || *i > max) fail(key, fmt::format("an integer between {} and {}", min, max));
  return *i;
}

double JsonObject::require_double(const std::string& key, double min, double max) const {
  const nlohmann::json* v = find(key);
  const double d = v && v->is_number() ? v->get<double>() : std::nan("");
  if (!(d >= min && d <= max)) fail(key, fmt::format("a number between {} and {}", min, max));
  return d;
}

std::string JsonObject::require_string(const std::string& key) const {
  const nlohmann::json* v = find(key);
  if (!v || !v->is_string()) fail(key, "a string");
  return v->get<std::string>();
}

int64_t JsonObject::get_int(const std::string& key, int64_t fallback, int64_t min, int64_t max) const {
  return has(key) ? require_int(key, min, max) : fallback;
}

double JsonObject::get_double(const std::string& key, double fallback) const {
  const nlohmann::json* v = find(key);
  if (!v) return fallback;
  if (!v->is_number()) fail(key, "a number");
  return v->get<double>();
}

double JsonObject::get_double(const std::string& key, double fallback, double min, double max) const {
  return has(key) ? require_double(key, min, max) : fallback;
}

bool JsonObject::get_bool(const std::string& key, bool fallback) const {
  const nlohmann::json* v = find(key);
  if (!v) return fallback;
  if (!v->is_boolean()) fail(key, "true or false");
  return v->get<bool>();
}

std::string JsonObject::get_string(const std::string& key, const std::string& fallback) const {
  return has(key) ? require_string(key) : fallback;
}

std::optional<JsonObject> JsonObject::object(const std::string& key) const {
  const nlohmann::json* v = find(key);
  if (!v) return std::nullopt;
  return JsonObject(*v, file_, where_.empty() ? key : where_ + "." + key);
}

}  // namespace thimble
