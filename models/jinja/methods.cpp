// Methods of strings, dicts and lists, and the members of the variable `loop`. Those that would change a value are
// refused, as Jinja's immutable sandbox does.
#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "models/jinja/interpreter.h"
#include "models/jinja/text.h"

namespace thimble::jinja {
namespace {

using Method = Value (*)(Interpreter& in, const Value& self, const Arguments& arguments);
using Table = std::unordered_map<std::string, Method>;

int64_t size_of(std::string_view s) { return static_cast<int64_t>(s.size()); }

// Cuts white space, or the characters of the argument.
template <Side side>
Value strip_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take take(in, "strip", arguments);
  const Value* chars = take.next("chars");
  take.done();
  std::string set;
  if (chars && !chars->is(Kind::none)) {
    if (!chars->is(Kind::string)) in.meter.fail(fmt::format("strip() needs a string, not {}", kind_name(*chars)));
    set = chars->text();
    if (set.empty()) return self;
  }
  in.meter.step(size_of(self.text()) * (1 + size_of(set) / 8));
  return in.string(std::string(strip(self.text(), side, set)));
}

template <bool from_right>
Value split_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take take(in, "split", arguments);
  const Value* separator = take.next("sep");
  const int64_t limit = take.integer("maxsplit", -1);
  take.done();
  std::string by;
  if (separator && !separator->is(Kind::none)) {
    if (!separator->is(Kind::string)) in.meter.fail(fmt::format("split() needs a string, not {}", kind_name(*separator)));
    by = separator->text();
    if (by.empty()) in.meter.fail("split() with an empty separator");
  }
  in.meter.step(size_of(self.text()));
  in.meter.bytes(size_of(self.text()) * 16);
  List out;
  for (const std::string_view part : from_right ? rsplit(self.text(), by, limit) : split(self.text(), by, limit))
    out.push_back(in.string(std::string(part)));
  return Value::sequence(in.meter, std::move(out));
}

// startswith and endswith: one string, or a tuple of them.
template <bool at_end>
Value affix_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  const char* name = at_end ? "endswith" : "startswith";
  Take take(in, name, arguments);
  const Value affix = take.require("affix");
  take.done();
  const std::string& text = self.text();
  const auto has = [&](const Value& v) {
    if (v.is(Kind::undefined)) in.meter.fail(v.complaint());
    if (!v.is(Kind::string)) in.meter.fail(fmt::format("{}() needs a string, not {}", name, kind_name(v)));
    const std::string& a = v.text();
    in.meter.step(1 + size_of(a) / 16);
    return a.size() <= text.size() && text.compare(at_end ? text.size() - a.size() : 0, a.size(), a) == 0;
  };
  if (!affix.is_sequence(SequenceKind::tuple)) return Value::boolean(has(affix));
  for (const Value& v : affix.sequence().elements)
    if (has(v)) return Value::boolean(true);
  return Value::boolean(false);
}

template <std::string (*change)(std::string_view)>
Value case_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take(in, "this method", arguments).done();
  in.meter.step(size_of(self.text()));
  in.meter.bytes(size_of(self.text()) * 2);
  return in.string(change(self.text()));
}

template <bool (*test)(uint32_t)>
Value all_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take(in, "this method", arguments).done();
  in.meter.step(size_of(self.text()));
  in.meter.bytes(size_of(self.text()) * 16);
  bool all = !self.text().empty();
  for (const std::string_view c : characters(self.text())) all = all && test(code_point(c));
  return Value::boolean(all);
}
bool ascii_digit(uint32_t c) { return c >= '0' && c <= '9'; }
bool ascii_letter(uint32_t c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool letter(uint32_t c) {
  if (c < 0x80) return ascii_letter(c);
  std::string one;
  append_code_point(one, c);
  return is_upper(one) || is_lower(one);
}
bool letter_or_digit(uint32_t c) { return letter(c) || ascii_digit(c); }

Value replace_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take take(in, "replace", arguments);
  const std::string from = take.text("old"), to = take.text("new");
  const int64_t limit = take.integer("count", -1);
  take.done();
  const std::string& text = self.text();
  std::string out;
  int64_t done = 0;
  in.meter.step(size_of(text));
  if (from.empty()) {
    in.meter.bytes(size_of(text) * 16);
    for (const std::string_view c : characters(text)) {
      if (limit < 0 || done < limit) {
        in.meter.bytes(size_of(to));
        out += to;
        ++done;
      }
      out += c;
    }
    if (limit < 0 || done < limit) out += to;
    return in.string(std::move(out));
  }
  size_t at = 0;
  while (limit < 0 || done < limit) {
    const size_t found = text.find(from, at);
    if (found == std::string::npos) break;
    in.meter.step();
    in.meter.bytes(size_of(to) + static_cast<int64_t>(found - at));
    out.append(text, at, found - at);
    out += to;
    at = found + from.size();
    ++done;
  }
  out.append(text, at);
  return in.string(std::move(out));
}

Value join_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take take(in, "join", arguments);
  const Value over = take.require("iterable");
  take.done();
  std::string out;
  bool first = true;
  for (const Value& v : iterate(in.meter, over)) {
    if (!v.is(Kind::string)) in.meter.fail(fmt::format("join() needs strings, not {}", kind_name(v)));
    in.meter.bytes(size_of(v.text()) + size_of(self.text()));
    if (!first) out += self.text();
    first = false;
    out += v.text();
  }
  return in.string(std::move(out));
}

template <bool from_right, bool must>
Value find_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take take(in, "find", arguments);
  const std::string what = take.text("sub");
  const int64_t begin = take.integer("start", 0);
  take.done();
  in.meter.step(size_of(self.text()));
  const std::vector<std::string_view> letters = characters(self.text());
  in.meter.bytes(size_of(self.text()) * 16);
  const auto n = static_cast<int64_t>(letters.size());
  const int64_t from = begin < 0 ? std::max<int64_t>(0, begin + n) : begin;
  size_t at = std::string::npos;
  if (from <= n) {
    const auto offset = from == n ? self.text().size()
                                  : static_cast<size_t>(letters[static_cast<size_t>(from)].data() - self.text().data());
    at = from_right ? self.text().rfind(what) : self.text().find(what, offset);
    if (from_right && at != std::string::npos && at < offset) at = std::string::npos;
  }
  if (at != std::string::npos) return Value::integer(character_count(std::string_view(self.text()).substr(0, at)));
  if (must) in.meter.fail("index(): the substring is not there");
  return Value::integer(-1);
}

Value count_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take take(in, "count", arguments);
  const std::string what = take.text("sub");
  take.done();
  in.meter.step(size_of(self.text()));
  if (what.empty()) return Value::integer(character_count(self.text()) + 1);
  int64_t n = 0;
  for (size_t at = self.text().find(what); at != std::string::npos; at = self.text().find(what, at + what.size())) ++n;
  return Value::integer(n);
}

Value splitlines_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take(in, "splitlines", arguments).done();
  in.meter.step(size_of(self.text()));
  in.meter.bytes(size_of(self.text()) * 16);
  List out;
  for (const std::string_view line : split_lines(self.text())) out.push_back(in.string(std::string(line)));
  return Value::sequence(in.meter, std::move(out));
}

template <bool at_end>
Value remove_affix_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take take(in, at_end ? "removesuffix" : "removeprefix", arguments);
  const std::string affix = take.text("affix");
  take.done();
  std::string text = self.text();
  in.meter.bytes(size_of(text));
  if (affix.size() <= text.size() && text.compare(at_end ? text.size() - affix.size() : 0, affix.size(), affix) == 0)
    text.erase(at_end ? text.size() - affix.size() : 0, affix.size());
  return in.string(std::move(text));
}

template <bool from_right>
Value partition_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take take(in, "partition", arguments);
  const std::string by = take.text("sep");
  take.done();
  if (by.empty()) in.meter.fail("partition() with an empty separator");
  const std::string& text = self.text();
  in.meter.step(size_of(text));
  const size_t at = from_right ? text.rfind(by) : text.find(by);
  List out;
  if (at == std::string::npos)
    out = {from_right ? in.string("") : self, in.string(""), from_right ? self : in.string("")};
  else
    out = {in.string(text.substr(0, at)), in.string(by), in.string(text.substr(at + by.size()))};
  return Value::sequence(in.meter, std::move(out), SequenceKind::tuple);
}

template <int align>
Value pad_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take take(in, "ljust", arguments);
  const int64_t width = take.integer("width", 0);
  const std::string fill = take.text("fillchar", align == 3 ? "0" : " ");
  take.done();
  if (character_count(fill) != 1) in.meter.fail("ljust(), rjust() and center() fill with one character");
  const std::string& text = self.text();
  const int64_t missing = std::max<int64_t>(0, width - character_count(text));
  if (missing > in.meter.limits.bytes) in.meter.fail_limit("bytes of memory", in.meter.limits.bytes);
  in.meter.bytes(missing * size_of(fill));
  const auto times = [&](int64_t n) {
    std::string out;
    for (int64_t i = 0; i < n; ++i) out += fill;
    return out;
  };
  if (align == 0) return in.string(text + times(missing));
  if (align == 1) return in.string(times(missing) + text);
  if (align == 3) {
    const size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
    return in.string(text.substr(0, sign) + times(missing) + text.substr(sign));
  }
  const int64_t left = missing / 2 + (missing & width & 1);
  return in.string(times(left) + text + times(missing - left));
}

const Table& string_methods() {
  static const Table table = {
      {"strip", strip_method<Side::both>},
      {"lstrip", strip_method<Side::left>},
      {"rstrip", strip_method<Side::right>},
      {"split", split_method<false>},
      {"rsplit", split_method<true>},
      {"splitlines", splitlines_method},
      {"startswith", affix_method<false>},
      {"endswith", affix_method<true>},
      {"upper", case_method<upper>},
      {"lower", case_method<lower>},
      {"casefold", case_method<lower>},
      {"title", case_method<title>},
      {"capitalize", case_method<capitalize>},
      {"isdigit", all_method<ascii_digit>},
      {"isdecimal", all_method<ascii_digit>},
      {"isnumeric", all_method<ascii_digit>},
      {"isalpha", all_method<letter>},
      {"isalnum", all_method<letter_or_digit>},
      {"isspace", all_method<is_space>},
      {"isupper", [](Interpreter& in, const Value& self, const Arguments& a) {
         Take(in, "isupper", a).done();
         in.meter.step(size_of(self.text()));
         return Value::boolean(is_upper(self.text()));
       }},
      {"islower", [](Interpreter& in, const Value& self, const Arguments& a) {
         Take(in, "islower", a).done();
         in.meter.step(size_of(self.text()));
         return Value::boolean(is_lower(self.text()));
       }},
      {"replace", replace_method},
      {"join", join_method},
      {"find", find_method<false, false>},
      {"rfind", find_method<true, false>},
      {"index", find_method<false, true>},
      {"rindex", find_method<true, true>},
      {"count", count_method},
      {"removeprefix", remove_affix_method<false>},
      {"removesuffix", remove_affix_method<true>},
      {"partition", partition_method<false>},
      {"rpartition", partition_method<true>},
      {"ljust", pad_method<0>},
      {"rjust", pad_method<1>},
      {"center", pad_method<2>},
      {"zfill", pad_method<3>},
      {"format", [](Interpreter& in, const Value& self, const Arguments& a) { return in.string(brace_format(in, self.text(), a)); }},
  };
  return table;
}

template <bool keys, bool values>
Value view_method(Interpreter& in, const Value& self, const Arguments& arguments) {
  Take(in, "a view of a dict", arguments).done();
  List out;
  for (const auto& [key, value] : self.dict().items) {
    in.meter.step();
    if (keys && values)
      out.push_back(Value::sequence(in.meter, {key, value}, SequenceKind::tuple));
    else
      out.push_back(keys ? key : value);
  }
  return Value::sequence(in.meter, std::move(out), SequenceKind::view);
}

const Table& dict_methods() {
  static const Table table = {
      {"items", view_method<true, true>},
      {"keys", view_method<true, false>},
      {"values", view_method<false, true>},
      {"get", [](Interpreter& in, const Value& self, const Arguments& a) {
         Take take(in, "get", a);
         const Value& key = take.require("key");
         Value fallback = take.value("default", Value::none());
         take.done();
         const Value* found = self.dict().find(key);
         return found ? *found : fallback;
       }},
      {"copy", [](Interpreter& in, const Value& self, const Arguments& a) {
         Take(in, "copy", a).done();
         return self;
       }},
  };
  return table;
}

const Table& list_methods() {
  static const Table table = {
      {"index", [](Interpreter& in, const Value& self, const Arguments& a) {
         Take take(in, "index", a);
         const Value& what = take.require("value");
         take.done();
         const List& elements = self.sequence().elements;
         for (size_t i = 0; i < elements.size(); ++i)
           if (equal(in.meter, elements[i], what)) return Value::integer(static_cast<int64_t>(i));
         in.meter.fail("index(): the value is not in the list");
       }},
      {"count", [](Interpreter& in, const Value& self, const Arguments& a) {
         Take take(in, "count", a);
         const Value& what = take.require("value");
         take.done();
         int64_t n = 0;
         for (const Value& v : self.sequence().elements) n += equal(in.meter, v, what);
         return Value::integer(n);
       }},
      {"copy", [](Interpreter& in, const Value& self, const Arguments& a) {
         Take(in, "copy", a).done();
         return self;
       }},
  };
  return table;
}

const char* const kChanging[] = {"append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "update", "setdefault", "popitem"};

Value function_of(Interpreter& in, const std::string& name, std::function<Value(Interpreter&, const Arguments&)> call, int depth) {
  auto object = std::make_shared<FunctionObject>();
  object->name = name;
  object->call = std::move(call);
  object->depth = depth;
  return Value::of(in.meter, std::move(object));
}

Value loop_member(Interpreter& in, const Value& v, const std::string& name) {
  const LoopObject& loop = v.loop();
  const auto n = static_cast<int64_t>(loop.elements->size()), i = static_cast<int64_t>(loop.index);
  if (name == "index") return Value::integer(i + 1);
  if (name == "index0") return Value::integer(i);
  if (name == "revindex") return Value::integer(n - i);
  if (name == "revindex0") return Value::integer(n - i - 1);
  if (name == "first") return Value::boolean(i == 0);
  if (name == "last") return Value::boolean(i + 1 == n);
  if (name == "length") return Value::integer(n);
  if (name == "depth") return Value::integer(loop.level + 1);
  if (name == "depth0") return Value::integer(loop.level);
  if (name == "previtem") return i > 0 ? (*loop.elements)[loop.index - 1] : Value::undefined("there is no previous item");
  if (name == "nextitem") return i + 1 < n ? (*loop.elements)[loop.index + 1] : Value::undefined("there is no next item");
  if (name == "cycle")
    return function_of(in, name, [v](Interpreter& in2, const Arguments& a) {
      if (a.positional.empty() || !a.named.empty()) in2.meter.fail("loop.cycle() needs values");
      return a.positional[v.loop().index % a.positional.size()];
    }, v.depth());
  if (name == "changed")
    return function_of(in, name, [v](Interpreter& in2, const Arguments& a) {
      List& last = *v.loop().changed;
      bool same = last.size() == a.positional.size() + 1;  // a mark stands in front once it was called
      for (size_t k = 0; same && k < a.positional.size(); ++k) same = equal(in2.meter, last[k + 1], a.positional[k]);
      if (same) return Value::boolean(false);
      in2.meter.bytes(static_cast<int64_t>(a.positional.size() * sizeof(Value)));
      last.assign(1, Value::none());
      last.insert(last.end(), a.positional.begin(), a.positional.end());
      return Value::boolean(true);
    }, v.depth());
  return {};
}

}  // namespace

Value method_of(Interpreter& in, const Value& v, const std::string& name) {
  if (v.is(Kind::loop)) return loop_member(in, v, name);
  const Table* table = v.is(Kind::string) ? &string_methods()
                       : v.is(Kind::dict) ? &dict_methods()
                       : v.is(Kind::sequence) && v.sequence().kind <= SequenceKind::tuple ? &list_methods()
                                                                                          : nullptr;
  if (!table) return {};
  const auto found = table->find(name);
  if (found == table->end()) {
    const bool changing = !v.is(Kind::string) && std::find(std::begin(kChanging), std::end(kChanging), name) != std::end(kChanging);
    if (!changing || (v.is(Kind::dict) && v.dict().find(name))) return {};
    return function_of(in, name, [name](Interpreter& in2, const Arguments&) -> Value {
      in2.meter.fail(fmt::format("{}() would change a value, which templates may not", name), "build a new list with +, or use namespace()");
    }, 1);
  }
  const Method method = found->second;
  return function_of(in, name, [v, method](Interpreter& in2, const Arguments& a) { return method(in2, v, a); }, v.depth());
}

}  // namespace thimble::jinja
