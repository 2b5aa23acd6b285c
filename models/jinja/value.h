// What a template computes with: Python's values as far as chat templates use them. Values are immutable and shared,
// namespaces excepted; so the depth of nesting of a value is known when it is made, and is limited.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "models/jinja/meter.h"

namespace thimble::jinja {

class Value;
class Interpreter;
struct Arguments;
using List = std::vector<Value>;

constexpr int kMaxValueDepth = 200;

struct Object {
  virtual ~Object() = default;
  int depth = 1;  // levels of values inside, itself included
};

enum class Kind : uint8_t { undefined, none, boolean, integer, real, string, sequence, dict, space, function, loop };

// Generators give their elements once and have neither length nor index; views are what items(), keys() and values()
// return.
enum class SequenceKind : uint8_t { list, tuple, generator, view };

struct StringObject;
struct SequenceObject;
struct DictObject;
struct SpaceObject;
struct FunctionObject;
struct LoopObject;

class Value {
 public:
  Value() = default;  // undefined, without words
  // Of undefined values: what an error says when one is used.
  static Value undefined(std::string what);
  static Value none() { return Value(Kind::none); }
  static Value boolean(bool v) {
    Value out(Kind::boolean);
    out.integer_ = v;
    return out;
  }
  static Value integer(int64_t v) {
    Value out(Kind::integer);
    out.integer_ = v;
    return out;
  }
  static Value real(double v) {
    Value out(Kind::real);
    out.real_ = v;
    return out;
  }
  // These count their memory in the meter, and refuse nesting beyond kMaxValueDepth.
  static Value string(Meter& meter, std::string text);
  static Value sequence(Meter& meter, List elements, SequenceKind kind = SequenceKind::list);
  static Value of(Meter& meter, std::shared_ptr<DictObject> dict);
  static Value of(Meter& meter, std::shared_ptr<FunctionObject> function);
  static Value of(std::shared_ptr<SpaceObject> space);
  static Value of(Meter& meter, std::shared_ptr<LoopObject> loop);  // whose depth is set already

  Kind kind() const { return kind_; }
  bool is(Kind k) const { return kind_ == k; }
  bool is_number() const { return kind_ == Kind::boolean || kind_ == Kind::integer || kind_ == Kind::real; }
  bool is_integral() const { return kind_ == Kind::boolean || kind_ == Kind::integer; }
  bool is_sequence(SequenceKind k) const;

  int64_t integer() const { return integer_; }  // boolean, integer
  double number() const { return kind_ == Kind::real ? real_ : static_cast<double>(integer_); }
  const std::string& text() const;      // string
  const std::string& complaint() const; // undefined
  SequenceObject& sequence() const;
  const DictObject& dict() const;
  SpaceObject& space() const;
  const FunctionObject& function() const;
  const LoopObject& loop() const;

  int depth() const { return object_ ? object_->depth : 1; }

 private:
  explicit Value(Kind kind) : kind_(kind) {}
  Value(Kind kind, std::shared_ptr<Object> object) : kind_(kind), object_(std::move(object)) {}

  Kind kind_ = Kind::undefined;
  union {
    int64_t integer_ = 0;
    double real_;
  };
  std::shared_ptr<Object> object_;
};

// The depth of what holds these elements; refused beyond kMaxValueDepth.
int depth_around(Meter& meter, const List& elements);

struct StringObject : Object {
  std::string text;
};

struct SequenceObject : Object {
  List elements;
  SequenceKind kind = SequenceKind::list;
};

// In the order of insertion. Keys are strings, numbers, booleans, none and tuples of these, and equal as in Python: 1, 1.0 and true are one.
struct DictObject : Object {
  std::vector<std::pair<Value, Value>> items;
  // Throws for keys that Python could not hash, or that are not offered as keys.
  void set(Meter& meter, const Value& key, Value value);
  const Value* find(const Value& key) const;  // nullptr when absent, also for keys of other kinds
  const Value* find(const std::string& key) const;

 private:
  std::unordered_map<std::string, size_t> places_;
};

// namespace(): the only thing that changes, and only through {% set ns.name = ... %}.
struct SpaceObject : Object {
  std::unordered_map<std::string, Value> members;
};

struct FunctionObject : Object {
  std::string name;
  std::function<Value(Interpreter&, const Arguments&)> call;
};

// The variable `loop`.
struct LoopObject : Object {
  std::shared_ptr<const List> elements;
  size_t index = 0;
  int level = 0;  // of recursion
  std::function<Value(Interpreter&, const Arguments&)> recurse;  // empty in loops that are not recursive
  std::shared_ptr<List> changed;  // the arguments of the last call of loop.changed()
};

// The arguments of one call.
struct Arguments {
  List positional;
  std::vector<std::pair<std::string, Value>> named;
};

bool truth(const Value& v);
// What messages call it: "an int", "a string" ...
const char* kind_name(const Value& v);
bool equal(Meter& meter, const Value& a, const Value& b);
// -1, 0, 1. Fails for values that Python does not order.
int compare(Meter& meter, const Value& a, const Value& b);
// str() and repr(), appended.
void append_text(Meter& meter, const Value& v, std::string& out);
void append_repr(Meter& meter, const Value& v, std::string& out);
std::string text_of(Meter& meter, const Value& v);
// json.dumps.
struct JsonStyle {
  int indent = -1;  // < 0: one line
  bool ensure_ascii = false, sort_keys = false;
  std::string comma = ", ", colon = ": ";
};
void append_json(Meter& meter, const Value& v, const JsonStyle& style, std::string& out, int level = 0);
// The elements that a for loop sees: characters of strings, keys of dicts. A generator is empty afterwards.
List iterate(Meter& meter, const Value& v);
// Length as len(); fails for what has none.
int64_t length(Meter& meter, const Value& v);
Value from_json(Meter& meter, const nlohmann::ordered_json& json);

}  // namespace thimble::jinja
