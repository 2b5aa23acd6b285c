#include "models/jinja/value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "models/jinja/text.h"
#include "tensor/error.h"

namespace thimble::jinja {
namespace {

constexpr size_t kMaxKey = size_t{1} << 20;  // bytes of a tuple that is the key of a dict
constexpr int64_t kValueBytes = static_cast<int64_t>(sizeof(Value));

void set_depth(Meter& meter, Object& object, int inside) {
  object.depth = inside + 1;
  if (object.depth > kMaxValueDepth) meter.fail_limit("levels of nested values", kMaxValueDepth);
}

// The text under which a dict finds a key; false for what is no key.
bool key_text(const Value& key, std::string* out) {
  switch (key.kind()) {
    case Kind::string:
      *out = "s" + key.text();
      return true;
    case Kind::none:
      *out = "n";
      return true;
    case Kind::boolean:
    case Kind::integer:
      *out = fmt::format("i{}", key.integer());
      return true;
    case Kind::real: {
      const double v = key.number();
      *out = std::abs(v) < 9e15 && v == std::floor(v) ? fmt::format("i{}", static_cast<int64_t>(v)) : fmt::format("f{}", v);
      return true;
    }
    case Kind::undefined:
      *out = "u";
      return true;
    case Kind::sequence: {
      if (key.sequence().kind != SequenceKind::tuple) return false;
      std::string all = "t";
      for (const Value& part : key.sequence().elements) {
        std::string one;
        if (!key_text(part, &one)) return false;
        all += fmt::format("{}:{}", one.size(), one);
        if (all.size() > kMaxKey) return false;
      }
      *out = std::move(all);
      return true;
    }
    default:
      return false;
  }
}

// Compares an integer with a double exactly.
int compare_numbers(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.integer() < b.integer() ? -1 : a.integer() > b.integer();
  const double x = a.number(), y = b.number();
  return x < y ? -1 : x > y;
}

}  // namespace

Value Value::undefined(std::string what) {
  auto object = std::make_shared<StringObject>();
  object->text = std::move(what);
  return Value(Kind::undefined, std::move(object));
}

Value Value::string(Meter& meter, std::string text) {
  meter.bytes(static_cast<int64_t>(text.size()) + kValueBytes);
  auto object = std::make_shared<StringObject>();
  object->text = std::move(text);
  return Value(Kind::string, std::move(object));
}

Value Value::sequence(Meter& meter, List elements, SequenceKind kind) {
  meter.bytes((static_cast<int64_t>(elements.size()) + 2) * kValueBytes);
  auto object = std::make_shared<SequenceObject>();
  int depth = 0;
  for (const Value& v : elements) depth = std::max(depth, v.depth());
  set_depth(meter, *object, depth);
  object->elements = std::move(elements);
  object->kind = kind;
  return Value(Kind::sequence, std::move(object));
}

Value Value::of(Meter& meter, std::shared_ptr<DictObject> dict) {
  meter.bytes((static_cast<int64_t>(dict->items.size()) * 5 + 2) * kValueBytes);
  int depth = 0;
  for (const auto& [key, value] : dict->items) depth = std::max({depth, key.depth(), value.depth()});
  set_depth(meter, *dict, depth);
  return Value(Kind::dict, std::move(dict));
}

Value Value::of(Meter& meter, std::shared_ptr<FunctionObject> function) {
  meter.bytes(4 * kValueBytes);
  set_depth(meter, *function, function->depth);
  return Value(Kind::function, std::move(function));
}

int depth_around(Meter& meter, const List& elements) {
  Object object;
  int depth = 0;
  for (const Value& v : elements) depth = std::max(depth, v.depth());
  set_depth(meter, object, depth);
  return object.depth;
}

Value Value::of(std::shared_ptr<SpaceObject> space) { return Value(Kind::space, std::move(space)); }

Value Value::of(Meter& meter, std::shared_ptr<LoopObject> loop) {
  meter.bytes(6 * kValueBytes);
  return Value(Kind::loop, std::move(loop));
}

bool Value::is_sequence(SequenceKind k) const { return kind_ == Kind::sequence && sequence().kind == k; }
const std::string& Value::text() const { return static_cast<const StringObject&>(*object_).text; }
const std::string& Value::complaint() const {
  static const std::string nothing = "a value is undefined";
  return object_ ? static_cast<const StringObject&>(*object_).text : nothing;
}
SequenceObject& Value::sequence() const { return static_cast<SequenceObject&>(*object_); }
const DictObject& Value::dict() const { return static_cast<const DictObject&>(*object_); }
SpaceObject& Value::space() const { return static_cast<SpaceObject&>(*object_); }
const FunctionObject& Value::function() const { return static_cast<const FunctionObject&>(*object_); }
const LoopObject& Value::loop() const { return static_cast<const LoopObject&>(*object_); }

void DictObject::set(Meter& meter, const Value& key, Value value) {
  std::string text;
  if (!key_text(key, &text)) meter.fail(fmt::format("{} cannot be a key of a dict", kind_name(key)));
  const auto [place, fresh] = places_.emplace(std::move(text), items.size());
  if (fresh)
    items.emplace_back(key, std::move(value));
  else
    items[place->second].second = std::move(value);
}

const Value* DictObject::find(const Value& key) const {
  std::string text;
  if (!key_text(key, &text)) return nullptr;
  const auto place = places_.find(text);
  return place == places_.end() ? nullptr : &items[place->second].second;
}

const Value* DictObject::find(const std::string& key) const {
  const auto place = places_.find("s" + key);
  return place == places_.end() ? nullptr : &items[place->second].second;
}

bool truth(const Value& v) {
  switch (v.kind()) {
    case Kind::undefined:
    case Kind::none:
      return false;
    case Kind::boolean:
    case Kind::integer:
      return v.integer() != 0;
    case Kind::real:
      return v.number() != 0;
    case Kind::string:
      return !v.text().empty();
    case Kind::sequence:
      return v.sequence().kind == SequenceKind::generator || !v.sequence().elements.empty();
    case Kind::dict:
      return !v.dict().items.empty();
    default:
      return true;
  }
}

const char* kind_name(const Value& v) {
  switch (v.kind()) {
    case Kind::undefined:
      return "an undefined value";
    case Kind::none:
      return "none";
    case Kind::boolean:
      return "a boolean";
    case Kind::integer:
      return "an integer";
    case Kind::real:
      return "a float";
    case Kind::string:
      return "a string";
    case Kind::sequence:
      switch (v.sequence().kind) {
        case SequenceKind::list:
          return "a list";
        case SequenceKind::tuple:
          return "a tuple";
        case SequenceKind::generator:
          return "a generator";
        case SequenceKind::view:
          return "a view of a dict";
      }
      return "a sequence";
    case Kind::dict:
      return "a dict";
    case Kind::space:
      return "a namespace";
    case Kind::function:
      return "a function";
    case Kind::loop:
      return "the loop";
  }
  return "a value";
}

bool equal(Meter& meter, const Value& a, const Value& b) {
  meter.step();
  if (a.is_number() && b.is_number()) return compare_numbers(a, b) == 0 && a.number() == b.number();
  if (a.kind() != b.kind()) return false;
  const Deeper deeper(meter);
  switch (a.kind()) {
    case Kind::undefined:
    case Kind::none:
      return true;
    case Kind::string:
      meter.step(static_cast<int64_t>(std::min(a.text().size(), b.text().size()) / 16));
      return a.text() == b.text();
    case Kind::sequence: {
      const SequenceObject& x = a.sequence();
      const SequenceObject& y = b.sequence();
      if (&x == &y) return true;
      if (x.kind != y.kind || x.kind == SequenceKind::generator || x.elements.size() != y.elements.size()) return false;
      for (size_t i = 0; i < x.elements.size(); ++i)
        if (!equal(meter, x.elements[i], y.elements[i])) return false;
      return true;
    }
    case Kind::dict: {
      const DictObject& x = a.dict();
      const DictObject& y = b.dict();
      if (x.items.size() != y.items.size()) return false;
      for (const auto& [key, value] : x.items) {
        const Value* other = y.find(key);
        if (!other || !equal(meter, value, *other)) return false;
      }
      return true;
    }
    case Kind::space:
      return &a.space() == &b.space();
    case Kind::function:
      return &a.function() == &b.function();
    case Kind::loop:
      return &a.loop() == &b.loop();
    default:
      return false;
  }
}

int compare(Meter& meter, const Value& a, const Value& b) {
  meter.step();
  if (a.is_number() && b.is_number()) return compare_numbers(a, b);
  if (a.is(Kind::string) && b.is(Kind::string)) {
    meter.step(static_cast<int64_t>(std::min(a.text().size(), b.text().size()) / 16));
    const int c = a.text().compare(b.text());  // the order of UTF-8 bytes is that of characters
    return c < 0 ? -1 : c > 0;
  }
  if (a.is(Kind::sequence) && b.is(Kind::sequence) && a.sequence().kind == b.sequence().kind &&
      a.sequence().kind <= SequenceKind::tuple) {
    const Deeper deeper(meter);
    const List& x = a.sequence().elements;
    const List& y = b.sequence().elements;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equal(meter, x[i], y[i])) return compare(meter, x[i], y[i]);
    return x.size() < y.size() ? -1 : x.size() > y.size();
  }
  for (const Value* v : {&a, &b})
    if (v->is(Kind::undefined)) meter.fail(v->complaint());
  meter.fail(fmt::format("{} and {} have no order", kind_name(a), kind_name(b)));
}

void append_repr(Meter& meter, const Value& v, std::string& out) {
  const Deeper deeper(meter);
  meter.step();
  const size_t before = out.size();
  const auto list = [&](const char* open, const List& elements, const char* close) {
    out += open;
    for (size_t i = 0; i < elements.size(); ++i) {
      if (i) out += ", ";
      append_repr(meter, elements[i], out);
    }
    out += close;
  };
  switch (v.kind()) {
    case Kind::undefined:
      out += "Undefined";
      break;
    case Kind::none:
      out += "None";
      break;
    case Kind::boolean:
      out += v.integer() ? "True" : "False";
      break;
    case Kind::integer:
      out += std::to_string(v.integer());
      break;
    case Kind::real:
      out += real_text(v.number());
      break;
    case Kind::string:
      meter.step(static_cast<int64_t>(v.text().size()));
      out += quote(v.text());
      break;
    case Kind::sequence: {
      const SequenceObject& s = v.sequence();
      switch (s.kind) {
        case SequenceKind::list:
          return list("[", s.elements, "]");
        case SequenceKind::tuple:
          return list("(", s.elements, s.elements.size() == 1 ? ",)" : ")");
        case SequenceKind::generator:
          out += "<generator>";
          break;
        case SequenceKind::view:
          return list("dict_view([", s.elements, "])");
      }
      break;
    }
    case Kind::dict: {
      out += "{";
      bool first = true;
      for (const auto& [key, value] : v.dict().items) {
        if (!first) out += ", ";
        first = false;
        append_repr(meter, key, out);
        out += ": ";
        append_repr(meter, value, out);
      }
      out += "}";
      return;
    }
    case Kind::space:
      out += "<Namespace>";
      break;
    case Kind::function:
      out += "<function " + v.function().name + ">";
      break;
    case Kind::loop:
      out += fmt::format("<LoopContext {}/{}>", v.loop().index + 1, v.loop().elements->size());
      break;
  }
  meter.bytes(static_cast<int64_t>(out.size() - before));
}

void append_text(Meter& meter, const Value& v, std::string& out) {
  if (v.is(Kind::undefined)) return;
  if (v.is(Kind::string)) {
    meter.bytes(static_cast<int64_t>(v.text().size()));
    out += v.text();
    return;
  }
  append_repr(meter, v, out);
}

std::string text_of(Meter& meter, const Value& v) {
  std::string out;
  append_text(meter, v, out);
  return out;
}

void append_json(Meter& meter, const Value& v, const JsonStyle& style, std::string& out, int level) {
  const Deeper deeper(meter);
  meter.step();
  const size_t before = out.size();
  const auto new_line = [&](int of) {
    if (style.indent < 0) return;
    meter.bytes(static_cast<int64_t>(style.indent) * of);
    out += '\n';
    out.append(static_cast<size_t>(style.indent) * static_cast<size_t>(of), ' ');
  };
  switch (v.kind()) {
    case Kind::none:
      out += "null";
      break;
    case Kind::boolean:
      out += v.integer() ? "true" : "false";
      break;
    case Kind::integer:
      out += std::to_string(v.integer());
      break;
    case Kind::real:
      out += std::isnan(v.number())   ? "NaN"
             : std::isinf(v.number()) ? (v.number() < 0 ? "-Infinity" : "Infinity")
                                      : real_text(v.number());
      break;
    case Kind::string:
      meter.step(static_cast<int64_t>(v.text().size()));
      out += quote_json(v.text(), style.ensure_ascii);
      break;
    case Kind::sequence: {
      const SequenceObject& s = v.sequence();
      if (s.kind > SequenceKind::tuple) meter.fail(fmt::format("tojson: {} is not serializable", kind_name(v)));
      out += '[';
      for (size_t i = 0; i < s.elements.size(); ++i) {
        if (i) out += style.comma;
        new_line(level + 1);
        append_json(meter, s.elements[i], style, out, level + 1);
      }
      if (!s.elements.empty()) new_line(level);
      out += ']';
      return;
    }
    case Kind::dict: {
      std::vector<const std::pair<Value, Value>*> items;
      for (const auto& item : v.dict().items) items.push_back(&item);
      if (style.sort_keys)
        std::stable_sort(items.begin(), items.end(),
                         [&](const auto* a, const auto* b) { return compare(meter, a->first, b->first) < 0; });
      out += '{';
      for (size_t i = 0; i < items.size(); ++i) {
        if (i) out += style.comma;
        new_line(level + 1);
        const Value& key = items[i]->first;
        std::string name;
        if (key.is(Kind::string))
          name = key.text();
        else
          append_json(meter, key, style, name);
        meter.step(static_cast<int64_t>(name.size()));
        out += quote_json(name, style.ensure_ascii) + style.colon;
        append_json(meter, items[i]->second, style, out, level + 1);
      }
      if (!items.empty()) new_line(level);
      out += '}';
      return;
    }
    case Kind::undefined:
      meter.fail("tojson: " + v.complaint());
    default:
      meter.fail(fmt::format("tojson: {} is not serializable", kind_name(v)));
  }
  meter.bytes(static_cast<int64_t>(out.size() - before));
}

List iterate(Meter& meter, const Value& v) {
  List out;
  switch (v.kind()) {
    case Kind::undefined:
      return out;
    case Kind::string:
      meter.bytes(static_cast<int64_t>(v.text().size()) * kValueBytes);
      for (const std::string_view c : characters(v.text())) out.push_back(Value::string(meter, std::string(c)));
      break;
    case Kind::sequence:
      if (v.sequence().kind == SequenceKind::generator) {
        out = std::move(v.sequence().elements);
        v.sequence().elements.clear();
      } else {
        meter.bytes(static_cast<int64_t>(v.sequence().elements.size()) * kValueBytes);
        out = v.sequence().elements;
      }
      break;
    case Kind::dict:
      meter.bytes(static_cast<int64_t>(v.dict().items.size()) * kValueBytes);
      for (const auto& item : v.dict().items) out.push_back(item.first);
      break;
    default:
      meter.fail(fmt::format("{} cannot be iterated over", kind_name(v)));
  }
  meter.step(static_cast<int64_t>(out.size()));
  return out;
}

int64_t length(Meter& meter, const Value& v) {
  switch (v.kind()) {
    case Kind::undefined:
      return 0;
    case Kind::string:
      meter.step(static_cast<int64_t>(v.text().size() / 16));
      return character_count(v.text());
    case Kind::sequence:
      if (v.sequence().kind == SequenceKind::generator)
        meter.fail("a generator has no length", "the template misses a \"| list\"");
      return static_cast<int64_t>(v.sequence().elements.size());
    case Kind::dict:
      return static_cast<int64_t>(v.dict().items.size());
    case Kind::loop:
      return static_cast<int64_t>(v.loop().elements->size());
    default:
      meter.fail(fmt::format("{} has no length", kind_name(v)));
  }
}

Value from_json(Meter& meter, const nlohmann::ordered_json& json) {
  const Deeper deeper(meter);
  switch (json.type()) {
    case nlohmann::json::value_t::null:
      return Value::none();
    case nlohmann::json::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case nlohmann::json::value_t::number_integer:
      return Value::integer(json.get<int64_t>());
    case nlohmann::json::value_t::number_unsigned:
      return json.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX) ? Value::integer(json.get<int64_t>())
                                                                      : Value::real(json.get<double>());
    case nlohmann::json::value_t::number_float:
      return Value::real(json.get<double>());
    case nlohmann::json::value_t::string: {
      const auto& text = json.get_ref<const std::string&>();
      if (bad_utf8(text) != std::string_view::npos)
        throw Error(ErrorCode::input, "a text of the conversation is not UTF-8", "convert it to UTF-8");
      return Value::string(meter, text);
    }
    case nlohmann::json::value_t::array: {
      List list;
      list.reserve(json.size());
      for (const auto& item : json) list.push_back(from_json(meter, item));
      return Value::sequence(meter, std::move(list));
    }
    case nlohmann::json::value_t::object: {
      auto dict = std::make_shared<DictObject>();
      for (const auto& item : json.items())
        dict->set(meter, Value::string(meter, item.key()), from_json(meter, item.value()));
      return Value::of(meter, std::move(dict));
    }
    default:
      return Value::none();
  }
}

}  // namespace thimble::jinja
