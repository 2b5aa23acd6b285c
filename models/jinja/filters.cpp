// What may stand behind "|".
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <unordered_map>

#include "models/io/json.h"
#include "models/jinja/interpreter.h"
#include "models/jinja/text.h"

namespace thimble::jinja {
namespace {

using Filter = Value (*)(Interpreter& in, const Value& v, Take& take, const Arguments& arguments);

int64_t size_of(std::string_view s) { return static_cast<int64_t>(s.size()); }

std::string text(Interpreter& in, const Value& v) {
  std::string out = text_of(in.meter, v);
  in.meter.step(size_of(out));
  return out;
}
Value list(Interpreter& in, List elements) { return Value::sequence(in.meter, std::move(elements)); }
Value generator(Interpreter& in, List elements) {
  return Value::sequence(in.meter, std::move(elements), SequenceKind::generator);
}

// What a filter that sorts or compares looks at: the element or a part of it, strings without case unless asked.
struct Key {
  Interpreter& in;
  const Value* attribute;
  bool case_sensitive;

  Value operator()(const Value& v) const {
    if (!attribute || attribute->is(Kind::none)) return folded(v);
    if (!attribute->is(Kind::string) || attribute->text().find(',') == std::string::npos) return folded(in.part(v, *attribute));
    List parts;
    for (const std::string_view name : split(attribute->text(), ",", -1))
      parts.push_back(folded(in.part(v, in.string(std::string(name)))));
    return list(in, std::move(parts));
  }
  Value folded(const Value& v) const {
    if (case_sensitive || !v.is(Kind::string)) return v;
    in.meter.step(size_of(v.text()));
    return in.string(lower(v.text()));
  }
};

// Stable. std::stable_sort with a comparison that throws or is inconsistent (NaN) stays in bounds: it only moves pairs.
List sorted(Interpreter& in, List elements, const Key& key, bool reverse) {
  std::vector<std::pair<Value, size_t>> keys;
  in.meter.bytes(static_cast<int64_t>(elements.size()) * 64);
  for (size_t i = 0; i < elements.size(); ++i) keys.emplace_back(key(elements[i]), i);
  std::stable_sort(keys.begin(), keys.end(), [&](const auto& a, const auto& b) {
    return reverse ? compare(in.meter, b.first, a.first) < 0 : compare(in.meter, a.first, b.first) < 0;
  });
  List out;
  for (const auto& [k, i] : keys) out.push_back(elements[i]);
  return out;
}

template <bool largest>
Value extreme(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  const bool case_sensitive = take.flag("case_sensitive", false);
  const Value* attribute = take.next("attribute");
  take.done();
  const Key key{in, attribute, case_sensitive};
  const List elements = iterate(in.meter, v);
  if (elements.empty()) return Value::undefined("no element of an empty sequence");
  size_t best = 0;
  Value best_key = key(elements[0]);
  for (size_t i = 1; i < elements.size(); ++i) {
    Value k = key(elements[i]);
    const int c = compare(in.meter, k, best_key);
    if (largest ? c > 0 : c < 0) {
      best = i;
      best_key = std::move(k);
    }
  }
  return elements[best];
}

// select, reject, selectattr, rejectattr: the arguments are (attribute,) test, and what the test takes.
template <bool keep, bool by_attribute>
Value select(Interpreter& in, const Value& v, Take&, const Arguments& arguments) {
  size_t at = 0;
  if (by_attribute && arguments.positional.empty()) in.meter.fail("selectattr() and rejectattr() need the name of an attribute");
  const Value* attribute = by_attribute ? &arguments.positional[at++] : nullptr;
  std::string test;
  if (at < arguments.positional.size()) {
    if (!arguments.positional[at].is(Kind::string)) in.meter.fail("the name of a test is a string");
    test = arguments.positional[at++].text();
  }
  Arguments rest;
  rest.positional.assign(arguments.positional.begin() + static_cast<long>(at), arguments.positional.end());
  rest.named = arguments.named;
  List out;
  if (!truth(v)) return generator(in, {});  // also what cannot be iterated over
  for (Value& element : iterate(in.meter, v)) {
    in.meter.step();
    const Value what = attribute ? in.part(element, *attribute) : element;
    if ((test.empty() ? truth(what) : apply_test(in, test, what, rest)) == keep) out.push_back(std::move(element));
  }
  return generator(in, std::move(out));
}

Value map(Interpreter& in, const Value& v, Take&, const Arguments& arguments) {
  List out;
  if (arguments.positional.empty()) {
    const Value *attribute = nullptr, *fallback = nullptr;
    for (const auto& [name, value] : arguments.named)
      if (name == "attribute")
        attribute = &value;
      else if (name == "default")
        fallback = &value;
      else
        in.meter.fail("map() knows \"attribute\" and \"default\", not " + quote_for_message(name));
    if (!attribute) in.meter.fail("map() needs the name of a filter, or attribute=");
    if (!truth(v)) return generator(in, {});
    for (const Value& element : iterate(in.meter, v)) {
      Value part = in.part(element, *attribute);
      if (fallback && part.is(Kind::undefined)) part = *fallback;
      out.push_back(std::move(part));
    }
    return generator(in, std::move(out));
  }
  if (!arguments.positional[0].is(Kind::string)) in.meter.fail("map(): the name of a filter is a string");
  const std::string filter = arguments.positional[0].text();
  Arguments rest;
  rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
  rest.named = arguments.named;
  if (!truth(v)) return generator(in, {});
  const Deeper deeper(in.meter);  // map('map', 'map' ...)
  for (const Value& element : iterate(in.meter, v)) out.push_back(apply_filter(in, filter, element, rest));
  return generator(in, std::move(out));
}

Value join(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  const Value by = take.value("d", in.string(""));
  const Value* attribute = take.next("attribute");
  take.done();
  const std::string separator = text(in, by);
  std::string out;
  bool first = true;
  for (const Value& element : iterate(in.meter, v)) {
    if (!first) {
      in.meter.bytes(size_of(separator));
      out += separator;
    }
    first = false;
    append_text(in.meter, attribute && !attribute->is(Kind::none) ? in.part(element, *attribute) : element, out);
  }
  return in.string(std::move(out));
}

Value to_json(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  JsonStyle style;
  style.ensure_ascii = take.flag("ensure_ascii", false);
  const Value indent = take.value("indent", Value::none());
  const Value separators = take.value("separators", Value::none());
  style.sort_keys = take.flag("sort_keys", false);
  take.done();
  if (!indent.is(Kind::none)) {
    if (!indent.is_integral() || indent.integer() < 0 || indent.integer() > 64)
      in.meter.fail("tojson: indent is a number between 0 and 64");
    style.indent = static_cast<int>(indent.integer());
    style.comma = ",";
  }
  if (!separators.is(Kind::none)) {
    const List two = iterate(in.meter, separators);
    if (two.size() != 2 || !two[0].is(Kind::string) || !two[1].is(Kind::string))
      in.meter.fail("tojson: separators are two strings");
    style.comma = two[0].text();
    style.colon = two[1].text();
    if (style.comma.size() + style.colon.size() > 64) in.meter.fail("tojson: separators of more than 64 bytes");
  }
  std::string out;
  append_json(in.meter, v, style, out);
  return in.string(std::move(out));
}

Value indent(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  const Value width = take.value("width", Value::integer(4));
  const bool first = take.flag("first", false), blank = take.flag("blank", false);
  take.done();
  std::string by;
  if (width.is(Kind::string)) {
    by = width.text();
  } else {
    if (!width.is_integral() || width.integer() > 10000) in.meter.fail("indent: the width is a string or a number up to 10000");
    by.assign(static_cast<size_t>(std::max<int64_t>(0, width.integer())), ' ');
  }
  if (v.is(Kind::undefined)) in.meter.fail(v.complaint());
  if (!v.is(Kind::string)) in.meter.fail(fmt::format("indent needs a string, not {}", kind_name(v)));
  const std::string all = text(in, v) + "\n";
  std::string out;
  bool begin = true;
  in.meter.bytes(size_of(all) * 16);
  for (const std::string_view line : split_lines(all)) {
    if (!begin) out += '\n';
    const bool add = begin ? first : blank || !line.empty();
    in.meter.bytes(size_of(line) + (add ? size_of(by) : 0) + 1);
    if (add) out += by;
    out += line;
    begin = false;
  }
  return in.string(std::move(out));
}

// Jinja's title: a capital behind blanks, hyphens and opening brackets.
Value title_words(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  take.done();
  const std::string s = text(in, v);
  in.meter.bytes(size_of(s) * 20);
  std::string out, word;
  const auto flush = [&] {
    if (word.empty()) return;
    const std::vector<std::string_view> letters = characters(word);
    out += upper(letters[0]);
    out += lower(std::string_view(word).substr(letters[0].size()));
    word.clear();
  };
  for (const std::string_view c : characters(s)) {
    const uint32_t p = code_point(c);
    if (p == '-' || p == '(' || p == '{' || p == '[' || p == '<' || is_space(p)) {
      flush();
      out += c;
    } else {
      word += c;
    }
  }
  flush();
  return in.string(std::move(out));
}

std::string without_underscores(std::string_view s) {
  std::string out(strip(s, Side::both));
  for (size_t i = 1; i + 1 < out.size(); ++i)
    if (out[i] == '_' && std::isdigit(static_cast<unsigned char>(out[i - 1])) && std::isdigit(static_cast<unsigned char>(out[i + 1])))
      out.erase(i--, 1);
  return out;
}

bool parse_real(std::string_view s, double* out) {
  std::string t = without_underscores(s.substr(0, 4096));
  if (!t.empty() && t[0] == '+') t.erase(0, 1);
  std::string low = lower(t);
  const bool negative = !low.empty() && low[0] == '-';
  if (negative) low.erase(0, 1);
  if (low == "inf" || low == "infinity" || low == "nan") {
    *out = low == "nan" ? std::nan("") : negative ? -INFINITY : INFINITY;
    return true;
  }
  if (low.empty() || !(std::isdigit(static_cast<unsigned char>(low[0])) || low[0] == '.') || low.find('x') != std::string::npos) return false;
  char* end = nullptr;
  *out = std::strtod(t.c_str(), &end);
  return end == t.c_str() + t.size();
}

Value to_int(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  const Value fallback = take.value("default", Value::integer(0));
  const int64_t base = take.integer("base", 10);
  take.done();
  if (v.is(Kind::undefined)) in.meter.fail(v.complaint());
  if (base != 10 && base != 16 && base != 8 && base != 2) in.meter.fail("int: base is 2, 8, 10 or 16");
  if (v.is_integral()) return Value::integer(v.integer());
  double real = v.number();
  if (v.is(Kind::string)) {
    in.meter.step(size_of(v.text()));
    std::string t = without_underscores(std::string_view(v.text()).substr(0, 4096));
    const bool negative = !t.empty() && t[0] == '-';
    if (!t.empty() && (t[0] == '-' || t[0] == '+')) t.erase(0, 1);
    const char* prefix = base == 16 ? "0x" : base == 8 ? "0o" : base == 2 ? "0b" : "";
    if (*prefix && lower(t).compare(0, 2, prefix) == 0) t.erase(0, 2);
    if (negative) t.insert(0, "-");
    int64_t n = 0;
    const auto [end, error] = std::from_chars(t.data(), t.data() + t.size(), n, static_cast<int>(base));
    if (!t.empty() && end == t.data() + t.size()) {
      if (error == std::errc()) return Value::integer(n);
      if (error == std::errc::result_out_of_range) in.meter.fail("an integer exceeds 64 bits");
    }
    if (!parse_real(v.text(), &real)) return fallback;
  } else if (!v.is(Kind::real)) {
    return fallback;
  }
  if (std::isnan(real) || std::isinf(real)) return fallback;
  if (std::abs(real) >= 9.2e18) in.meter.fail("an integer exceeds 64 bits");
  return Value::integer(static_cast<int64_t>(real));
}

Value to_float(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  const Value fallback = take.value("default", Value::real(0));
  take.done();
  if (v.is(Kind::undefined)) in.meter.fail(v.complaint());
  if (v.is_number()) return Value::real(v.number());
  double real = 0;
  if (v.is(Kind::string) && parse_real(v.text(), &real)) return Value::real(real);
  return fallback;
}

Value round_value(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  const int64_t precision = take.integer("precision", 0);
  const std::string method = take.text("method", "common");
  take.done();
  if (v.is(Kind::undefined)) in.meter.fail(v.complaint());
  if (!v.is_number()) in.meter.fail(fmt::format("round needs a number, not {}", kind_name(v)));
  if (precision < -18 || precision > 100) in.meter.fail("round: the precision lies between -18 and 100");
  if (method == "ceil" || method == "floor") {
    const double scale = std::pow(10.0, static_cast<double>(precision));
    return Value::real((method == "ceil" ? std::ceil(v.number() * scale) : std::floor(v.number() * scale)) / scale);
  }
  if (method != "common") in.meter.fail("round: the method is common, ceil or floor");
  if (v.is_integral() && precision >= 0) return Value::integer(v.integer());
  if (v.is_integral()) {
    int64_t scale = 1;
    for (int64_t i = 0; i < -precision; ++i) scale *= 10;
    const int64_t n = v.integer();
    int64_t rest = n % scale, out = n - rest;  // towards zero; then to the nearer, or to the even one of two
    const bool negative = rest < 0;
    if (negative) rest = -rest;
    if (rest * 2 > scale || (rest * 2 == scale && (out / scale) % 2 != 0))
      if (__builtin_add_overflow(out, negative ? -scale : scale, &out)) in.meter.fail("an integer exceeds 64 bits");
    return Value::integer(out);
  }
  if (!std::isfinite(v.number())) return v;
  if (precision >= 0) return Value::real(std::strtod(fmt::format("{:.{}f}", v.number(), precision).c_str(), nullptr));
  const double scale = std::pow(10.0, static_cast<double>(-precision));
  return Value::real(std::nearbyint(v.number() / scale) * scale);
}

Value absolute(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  take.done();
  if (v.is(Kind::real)) return Value::real(std::abs(v.number()));
  if (v.is_integral()) return negate(in.meter, v, v.integer() < 0);
  if (v.is(Kind::undefined)) in.meter.fail(v.complaint());
  in.meter.fail(fmt::format("abs needs a number, not {}", kind_name(v)));
}

Value sum(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  const Value attribute = take.value("attribute", Value::none());
  Value total = take.value("start", Value::integer(0));
  take.done();
  for (const Value& element : iterate(in.meter, v)) {
    const Value what = attribute.is(Kind::none) ? element : in.part(element, attribute);
    if (total.is(Kind::string)) in.meter.fail("sum() does not join strings", "use join");
    total = arithmetic(in.meter, Op::add, total, what);
  }
  return total;
}

Value dict_sort(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  const bool case_sensitive = take.flag("case_sensitive", false);
  const std::string by = take.text("by", "key");
  const bool reverse = take.flag("reverse", false);
  take.done();
  if (v.is(Kind::undefined)) in.meter.fail(v.complaint());
  if (!v.is(Kind::dict)) in.meter.fail(fmt::format("dictsort needs a dict, not {}", kind_name(v)));
  if (by != "key" && by != "value") in.meter.fail("dictsort: by is key or value");
  List pairs;
  for (const auto& [key, value] : v.dict().items) pairs.push_back(Value::sequence(in.meter, {key, value}, SequenceKind::tuple));
  const Value part = Value::integer(by == "key" ? 0 : 1);
  return list(in, sorted(in, std::move(pairs), Key{in, &part, case_sensitive}, reverse));
}

Value unique(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  const bool case_sensitive = take.flag("case_sensitive", false);
  const Value* attribute = take.next("attribute");
  take.done();
  const Key key{in, attribute, case_sensitive};
  DictObject seen;  // refuses what Python could not hash
  List out;
  for (Value& element : iterate(in.meter, v)) {
    const Value k = key(element);
    in.meter.bytes(64);
    if (seen.find(k)) continue;
    seen.set(in.meter, k, Value::none());
    out.push_back(std::move(element));
  }
  return generator(in, std::move(out));
}

Value reversed(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  take.done();
  if (v.is(Kind::string)) return slice_of(in.meter, v, Value::none(), Value::none(), Value::integer(-1));
  List elements = iterate(in.meter, v);
  std::reverse(elements.begin(), elements.end());
  return generator(in, std::move(elements));
}

Value first(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  take.done();
  if (v.is_sequence(SequenceKind::generator)) {
    List& elements = v.sequence().elements;
    if (elements.empty()) return Value::undefined("the first element of nothing");
    Value out = elements.front();
    elements.erase(elements.begin());
    return out;
  }
  List elements = iterate(in.meter, v);
  return elements.empty() ? Value::undefined("the first element of nothing") : elements.front();
}

Value last(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  take.done();
  if (v.is_sequence(SequenceKind::generator)) in.meter.fail("a generator has no last element", "the template misses a \"| list\"");
  List elements = iterate(in.meter, v);
  return elements.empty() ? Value::undefined("the last element of nothing") : elements.back();
}

Value fallback(Interpreter&, const Value& v, Take& take, const Arguments&) {
  Value other = take.value("default_value", Value());
  const bool also_false = take.flag("boolean", false);
  take.done();
  return v.is(Kind::undefined) || (also_false && !truth(v)) ? other : v;
}

Value replace(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  const Value from = take.require("old"), to = take.require("new");
  const Value count = take.value("count", Value::none());
  take.done();
  const Value self = in.string(text(in, v));
  Arguments arguments;
  arguments.positional = {in.string(text(in, from)), in.string(text(in, to)), count.is(Kind::none) ? Value::integer(-1) : count};
  return in.call(method_of(in, self, "replace"), arguments);
}

Value items(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  take.done();
  if (v.is(Kind::undefined)) return generator(in, {});
  if (!v.is(Kind::dict)) in.meter.fail(fmt::format("items needs a dict, not {}", kind_name(v)));
  List out;
  for (const auto& [key, value] : v.dict().items) out.push_back(Value::sequence(in.meter, {key, value}, SequenceKind::tuple));
  return generator(in, std::move(out));
}

template <std::string (*change)(std::string_view)>
Value change_text(Interpreter& in, const Value& v, Take& take, const Arguments&) {
  take.done();
  const std::string s = text(in, v);
  in.meter.bytes(size_of(s) * 20);
  return in.string(change(s));
}

const std::unordered_map<std::string, Filter>& filters() {
  static const std::unordered_map<std::string, Filter> table = [] {
    std::unordered_map<std::string, Filter> t = {
        {"tojson", to_json},
        {"join", join},
        {"items", items},
        {"dictsort", dict_sort},
        {"select", select<true, false>},
        {"reject", select<false, false>},
        {"selectattr", select<true, true>},
        {"rejectattr", select<false, true>},
        {"map", map},
        {"first", first},
        {"last", last},
        {"default", fallback},
        {"d", fallback},
        {"lower", change_text<lower>},
        {"upper", change_text<upper>},
        {"capitalize", change_text<capitalize>},
        {"title", title_words},
        {"e", change_text<escape_html>},
        {"escape", change_text<escape_html>},
        {"forceescape", change_text<escape_html>},
        {"replace", replace},
        {"int", to_int},
        {"float", to_float},
        {"round", round_value},
        {"abs", absolute},
        {"sum", sum},
        {"min", extreme<false>},
        {"max", extreme<true>},
        {"unique", unique},
        {"reverse", reversed},
        {"indent", indent},
    };
    t["trim"] = [](Interpreter& in, const Value& v, Take& take, const Arguments&) {
      const Value chars = take.value("chars", Value::none());
      take.done();
      const std::string s = text(in, v), set = chars.is(Kind::none) ? "" : text(in, chars);
      if (!chars.is(Kind::none) && set.empty()) return in.string(s);
      in.meter.step(size_of(s) * (1 + size_of(set) / 8));
      return in.string(std::string(strip(s, Side::both, set)));
    };
    t["length"] = t["count"] = [](Interpreter& in, const Value& v, Take& take, const Arguments&) {
      take.done();
      return Value::integer(length(in.meter, v));
    };
    t["list"] = [](Interpreter& in, const Value& v, Take& take, const Arguments&) {
      take.done();
      return list(in, iterate(in.meter, v));
    };
    t["string"] = t["safe"] = [](Interpreter& in, const Value& v, Take& take, const Arguments&) {
      take.done();
      return in.string(text(in, v));
    };
    t["sort"] = [](Interpreter& in, const Value& v, Take& take, const Arguments&) {
      const bool reverse = take.flag("reverse", false), case_sensitive = take.flag("case_sensitive", false);
      const Value* attribute = take.next("attribute");
      take.done();
      return list(in, sorted(in, iterate(in.meter, v), Key{in, attribute, case_sensitive}, reverse));
    };
    t["format"] = [](Interpreter& in, const Value& v, Take&, const Arguments& arguments) {
      if (!arguments.positional.empty() && !arguments.named.empty()) in.meter.fail("format takes values or names, not both");
      if (arguments.named.empty())
        return in.string(percent_format(in.meter, text(in, v),
                                        Value::sequence(in.meter, arguments.positional, SequenceKind::tuple)));
      auto dict = std::make_shared<DictObject>();
      for (const auto& [name, value] : arguments.named) dict->set(in.meter, in.string(name), value);
      return in.string(percent_format(in.meter, text(in, v), Value::of(in.meter, std::move(dict))));
    };
    t["attr"] = [](Interpreter& in, const Value& v, Take& take, const Arguments&) {
      const std::string name = take.text("name");
      take.done();
      if (v.is(Kind::dict)) return method_of(in, v, name);  // a dict's keys are no attributes
      return in.attribute(v, name);
    };
    t["wordcount"] = [](Interpreter& in, const Value& v, Take& take, const Arguments&) {
      take.done();
      const std::string s = text(in, v);
      in.meter.bytes(size_of(s) * 16);
      int64_t words = 0;
      bool inside = false;
      for (const std::string_view c : characters(s)) {
        const bool part = is_word(code_point(c));
        words += part && !inside;
        inside = part;
      }
      return Value::integer(words);
    };
    return t;
  }();
  return table;
}

}  // namespace

Value apply_filter(Interpreter& in, const std::string& name, const Value& v, const Arguments& arguments) {
  in.meter.step();
  const auto found = filters().find(name);
  if (found == filters().end()) in.meter.fail_unsupported("there is no filter " + quote_for_message(name));
  Take take(in, name.c_str(), arguments);
  return found->second(in, v, take, arguments);
}

}  // namespace thimble::jinja
