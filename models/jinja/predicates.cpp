// What may stand behind "is".
#include <fmt/format.h>

#include <unordered_map>

#include "models/io/json.h"
#include "models/jinja/interpreter.h"
#include "models/jinja/text.h"

namespace thimble::jinja {
namespace {

using Predicate = bool (*)(Interpreter& in, const Value& v, Take& take);

bool is_mapping(const Value& v) { return v.is(Kind::dict); }
bool has_parts(const Value& v) {
  return v.is(Kind::undefined) || v.is(Kind::string) || v.is(Kind::sequence) || v.is(Kind::dict) || v.is(Kind::loop);
}

int64_t remainder(Interpreter& in, const Value& v, int64_t by) {
  const Value rest = arithmetic(in.meter, Op::modulo, v, Value::integer(by));
  if (!rest.is_number()) return -1;  // a text, of a format
  if (!rest.is_integral()) return rest.number() == 0 ? 0 : rest.number() == 1 ? 1 : -1;
  return rest.integer();
}

const std::unordered_map<std::string, Predicate>& predicates() {
  static const std::unordered_map<std::string, Predicate> table = [] {
    std::unordered_map<std::string, Predicate> t;
    const auto add = [&](std::initializer_list<const char*> names, Predicate p) {
      for (const char* name : names) t[name] = p;
    };
    add({"defined"}, [](Interpreter&, const Value& v, Take&) { return !v.is(Kind::undefined); });
    add({"undefined"}, [](Interpreter&, const Value& v, Take&) { return v.is(Kind::undefined); });
    add({"none"}, [](Interpreter&, const Value& v, Take&) { return v.is(Kind::none); });
    add({"boolean"}, [](Interpreter&, const Value& v, Take&) { return v.is(Kind::boolean); });
    add({"true"}, [](Interpreter&, const Value& v, Take&) { return v.is(Kind::boolean) && v.integer() == 1; });
    add({"false"}, [](Interpreter&, const Value& v, Take&) { return v.is(Kind::boolean) && v.integer() == 0; });
    add({"integer"}, [](Interpreter&, const Value& v, Take&) { return v.is(Kind::integer); });
    add({"float"}, [](Interpreter&, const Value& v, Take&) { return v.is(Kind::real); });
    add({"number"}, [](Interpreter&, const Value& v, Take&) { return v.is_number(); });
    add({"string"}, [](Interpreter&, const Value& v, Take&) { return v.is(Kind::string); });
    add({"mapping"}, [](Interpreter&, const Value& v, Take&) { return is_mapping(v); });
    add({"iterable"}, [](Interpreter&, const Value& v, Take&) { return has_parts(v); });
    // What has a length and gives elements for an index or key; Jinja counts dicts in.
    add({"sequence"}, [](Interpreter&, const Value& v, Take&) {
      return v.is(Kind::undefined) || v.is(Kind::string) || v.is(Kind::dict) ||
             (v.is(Kind::sequence) && v.sequence().kind <= SequenceKind::tuple);
    });
    add({"callable"}, [](Interpreter&, const Value& v, Take&) { return v.is(Kind::function) || v.is(Kind::loop) || v.is(Kind::undefined); });
    add({"odd"}, [](Interpreter& in, const Value& v, Take&) { return remainder(in, v, 2) == 1; });
    add({"even"}, [](Interpreter& in, const Value& v, Take&) { return remainder(in, v, 2) == 0; });
    add({"divisibleby"}, [](Interpreter& in, const Value& v, Take& take) {
      const Value rest = arithmetic(in.meter, Op::modulo, v, take.require("num"));
      return !truth(rest);
    });
    add({"lower"}, [](Interpreter& in, const Value& v, Take&) { return is_lower(text_of(in.meter, v)); });
    add({"upper"}, [](Interpreter& in, const Value& v, Take&) { return is_upper(text_of(in.meter, v)); });
    add({"sameas"}, [](Interpreter& in, const Value& v, Take& take) {
      const Value& other = take.require("other");
      return v.kind() == other.kind() && equal(in.meter, v, other);
    });
    add({"escaped"}, [](Interpreter&, const Value&, Take&) { return false; });
    add({"in"}, [](Interpreter& in, const Value& v, Take& take) { return contains(in.meter, take.require("seq"), v); });
    add({"equalto", "==", "eq"}, [](Interpreter& in, const Value& v, Take& take) { return equal(in.meter, v, take.require("other")); });
    add({"ne", "!="}, [](Interpreter& in, const Value& v, Take& take) { return !equal(in.meter, v, take.require("other")); });
    add({"lt", "<", "lessthan"}, [](Interpreter& in, const Value& v, Take& take) { return compare(in.meter, v, take.require("other")) < 0; });
    add({"le", "<="}, [](Interpreter& in, const Value& v, Take& take) { return compare(in.meter, v, take.require("other")) <= 0; });
    add({"gt", ">", "greaterthan"}, [](Interpreter& in, const Value& v, Take& take) { return compare(in.meter, v, take.require("other")) > 0; });
    add({"ge", ">="}, [](Interpreter& in, const Value& v, Take& take) { return compare(in.meter, v, take.require("other")) >= 0; });
    return t;
  }();
  return table;
}

}  // namespace

bool apply_test(Interpreter& in, const std::string& name, const Value& v, const Arguments& arguments) {
  in.meter.step();
  const auto found = predicates().find(name);
  if (found == predicates().end()) in.meter.fail_unsupported("there is no test " + quote_for_message(name));
  Take take(in, name.c_str(), arguments);
  const bool holds = found->second(in, v, take);
  take.done();
  return holds;
}

}  // namespace thimble::jinja
