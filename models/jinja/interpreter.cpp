#include "models/jinja/interpreter.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "models/io/json.h"
#include "models/jinja/parser.h"
#include "models/jinja/text.h"
#include "tensor/error.h"

namespace thimble::jinja {
namespace {

constexpr int kMaxScopes = 1000;  // scopes around scopes
constexpr int64_t kMaxRange = 100000;  // as Jinja's sandbox has it
constexpr int64_t kScopeBytes = 160;

Value range(Interpreter& in, const Arguments& arguments) {
  Take take(in, "range", arguments);
  const Value& first = take.require("start");
  const Value* second = take.next("stop");
  const Value* third = take.next("step");
  take.done();
  for (const Value* v : {&first, second, third})
    if (v && !v->is_integral()) {
      if (v->is(Kind::undefined)) in.meter.fail(v->complaint());
      in.meter.fail(fmt::format("range() needs integers, not {}", kind_name(*v)));
    }
  const int64_t begin = second ? first.integer() : 0, end = second ? second->integer() : first.integer();
  const int64_t step = third ? third->integer() : 1;
  if (step == 0) in.meter.fail("range() with step 0");
  const bool any = step > 0 ? begin < end : begin > end;
  const auto low = static_cast<uint64_t>(step > 0 ? begin : end), high = static_cast<uint64_t>(step > 0 ? end : begin);
  const uint64_t stride = step > 0 ? static_cast<uint64_t>(step) : uint64_t{0} - static_cast<uint64_t>(step);
  const uint64_t count = any ? (high - low - 1) / stride + 1 : 0;
  if (count > static_cast<uint64_t>(kMaxRange)) in.meter.fail(fmt::format("range() of more than {} numbers", kMaxRange));
  in.meter.bytes(static_cast<int64_t>(count) * static_cast<int64_t>(sizeof(Value)));
  List out;
  for (int64_t k = 0; k < static_cast<int64_t>(count); ++k) out.push_back(Value::integer(begin + k * step));
  return Value::sequence(in.meter, std::move(out));
}

// dict(a=1), dict({...}), dict([[k, v]]) as a dict under construction.
std::shared_ptr<DictObject> dict_from(Interpreter& in, const Arguments& arguments) {
  auto out = std::make_shared<DictObject>();
  if (arguments.positional.size() > 1) in.meter.fail("dict() takes one argument beside named ones");
  for (const Value& from : arguments.positional) {
    if (from.is(Kind::dict)) {
      for (const auto& [key, value] : from.dict().items) out->set(in.meter, key, value);
    } else {
      for (const Value& pair : iterate(in.meter, from)) {
        const List two = iterate(in.meter, pair);
        if (two.size() != 2) in.meter.fail("dict() needs pairs of key and value");
        out->set(in.meter, two[0], two[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) out->set(in.meter, in.string(name), value);
  return out;
}

std::string time_text(Interpreter& in, const std::string& format, const std::optional<int64_t>& now) {
  if (format.size() > 200) in.meter.fail("strftime_now: the format has more than 200 bytes");
  const std::time_t seconds = now ? static_cast<std::time_t>(*now) : std::time(nullptr);
  std::tm parts{};
  if (!(now ? ::gmtime_r(&seconds, &parts) : ::localtime_r(&seconds, &parts))) in.meter.fail("strftime_now: no such time");
  // glibc takes field widths from the format; a template has no use for them and must not ask for gigabytes.
  if (format.find_first_of("0123456789") != std::string::npos)
    for (size_t i = 0; i + 1 < format.size(); ++i)
      if (format[i] == '%') {
        size_t j = i + 1;
        while (j < format.size() && std::string_view("-_^#+").find(format[j]) != std::string_view::npos) ++j;
        if (j < format.size() && format[j] >= '0' && format[j] <= '9') in.meter.fail("strftime_now: widths are not offered");
        i = j;
      }
  char buffer[8192];
  // A mark in front tells an empty result from one that did not fit.
  const size_t n = std::strftime(buffer, sizeof(buffer), ("." + format).c_str(), &parts);
  if (n == 0) in.meter.fail("strftime_now: the result is too long");
  std::string out(buffer + 1, n - 1);
  if (bad_utf8(out) != std::string_view::npos) in.meter.fail("strftime_now: the result is not UTF-8");
  return out;
}

}  // namespace

// --- arguments

const Value* Take::named(const char* name) {
  for (const auto& [key, value] : arguments_.named)
    if (key == name) {
      ++named_;
      return &value;
    }
  return nullptr;
}
const Value* Take::next(const char* name) {
  if (place_ < arguments_.positional.size()) return &arguments_.positional[place_++];
  return named(name);
}
Value Take::value(const char* name, Value fallback) {
  const Value* v = next(name);
  return v ? *v : std::move(fallback);
}
const Value& Take::require(const char* name) {
  const Value* v = next(name);
  if (!v) fail(fmt::format("misses the argument \"{}\"", name));
  return *v;
}
std::string Take::text(const char* name, const char* fallback) {
  const Value* v = next(name);
  if (!v && fallback) return fallback;
  if (!v) fail(fmt::format("misses the argument \"{}\"", name));
  if (v->is(Kind::undefined)) in_.meter.fail(v->complaint());
  if (!v->is(Kind::string)) fail(fmt::format("needs a string as \"{}\", not {}", name, kind_name(*v)));
  return v->text();
}
int64_t Take::integer(const char* name, int64_t fallback) {
  const Value* v = next(name);
  if (!v) return fallback;
  if (v->is(Kind::undefined)) in_.meter.fail(v->complaint());
  if (!v->is_integral()) fail(fmt::format("needs an integer as \"{}\", not {}", name, kind_name(*v)));
  return v->integer();
}
bool Take::flag(const char* name, bool fallback) {
  const Value* v = next(name);
  return v ? truth(*v) : fallback;
}
void Take::done() const {
  if (place_ < arguments_.positional.size() || named_ < arguments_.named.size()) fail("got an argument that it does not know");
}
void Take::fail(const std::string& what) const { in_.meter.fail(fmt::format("{}() {}", function_, what)); }

// --- rendering

Template::Template(const std::string& source, std::string name, const Limits& limits)
    : name_(std::move(name)), limits_(limits) {
  Meter meter(name_, limits_);
  block_ = std::make_shared<const Block>(parse_template(meter, source));
}

Rendered Template::render(const nlohmann::ordered_json& context, const RenderOptions& options) const {
  Meter meter(name_, limits_);
  Interpreter interpreter(meter, options);
  return interpreter.render(*block_, context);
}

Interpreter::~Interpreter() {
  for (const auto& space : spaces_) space->members.clear();
  for (const ScopePtr& scope : scopes_) scope->names.clear();
}

Rendered Interpreter::render(const Block& block, const nlohmann::ordered_json& context) {
  auto root = std::make_shared<Scope>();
  scopes_.push_back(root);
  for (const auto& item : context.items()) root->names[item.key()] = from_json(meter, item.value());
  top_ = &rendered_.text;
  run(block, inner(root), rendered_.text);
  return std::move(rendered_);
}

ScopePtr Interpreter::inner(const ScopePtr& parent) {
  meter.bytes(kScopeBytes);
  auto scope = std::make_shared<Scope>();
  scope->parent = parent;
  scope->depth = parent->depth + 1;
  if (scope->depth > kMaxScopes) meter.fail_limit("levels of scopes", kMaxScopes);
  return scope;
}

void Interpreter::emit(std::string& out, const std::string& text) {
  meter.bytes(static_cast<int64_t>(text.size()));
  out += text;
  if (out.size() > meter.limits.output_bytes)
    meter.fail_limit("bytes of output", static_cast<int64_t>(meter.limits.output_bytes));
}

Interpreter::Flow Interpreter::run(const Block& block, const ScopePtr& scope, std::string& out) {
  const Deeper deeper(meter);
  for (const auto& s : block) {
    meter.step();
    meter.line = s->line;
    const Flow flow = run(*s, scope, out);
    if (flow != Flow::next) return flow;
  }
  return Flow::next;
}

Interpreter::Flow Interpreter::run(const Statement& s, const ScopePtr& scope, std::string& out) {
  switch (s.what) {
    case Do::text:
      emit(out, s.text);
      return Flow::next;
    case Do::output:
      emit(out, text_of(meter, evaluate(*s.value, scope)));
      return Flow::next;
    case Do::if_else:
      return run(truth(evaluate(*s.value, scope)) ? s.body : s.other, scope, out);
    case Do::for_each: {
      const Value over = evaluate(*s.value, scope);
      meter.line = s.line;
      return run_loop(s, scope, over, 0, out);
    }
    case Do::set:
      assign(*s.target, evaluate(*s.value, scope), scope);
      return Flow::next;
    case Do::set_block: {
      std::string text;
      const Flow flow = run(s.body, inner(scope), text);
      if (flow != Flow::next) return flow;
      assign(*s.target, filter_text(s.filters.get(), string(std::move(text)), scope), scope);
      return Flow::next;
    }
    case Do::filter: {
      std::string text;
      const Flow flow = run(s.body, inner(scope), text);
      if (flow != Flow::next) return flow;
      emit(out, text_of(meter, filter_text(s.filters.get(), string(std::move(text)), scope)));
      return Flow::next;
    }
    case Do::macro: {
      Value made = macro(s, s.text, scope);
      scope->names[s.text] = std::move(made);
      return Flow::next;
    }
    case Do::call_block: {
      const Value function = evaluate(*s.value->args[0], scope);
      Arguments arguments = arguments_of(*s.value->call, scope);
      arguments.named.emplace_back("caller", macro(s, "caller", scope));
      meter.line = s.line;
      emit(out, text_of(meter, call(function, arguments)));
      return Flow::next;
    }
    case Do::with: {
      const ScopePtr body = inner(scope);
      for (const Parameter& p : s.parameters) {
        Value v = evaluate(*p.value, scope);
        body->names[p.name] = std::move(v);
      }
      return run(s.body, body, out);
    }
    case Do::scope: {
      const size_t begin = out.size();
      const Flow flow = run(s.body, inner(scope), out);
      if (&out == top_) rendered_.generated.emplace_back(begin, out.size());
      return flow;
    }
    case Do::break_loop:
      return Flow::break_loop;
    case Do::continue_loop:
      return Flow::continue_loop;
  }
  return Flow::next;
}

Interpreter::Flow Interpreter::run_loop(const Statement& s, const ScopePtr& scope, const Value& over, int level,
                                        std::string& out) {
  List all = iterate(meter, over);
  if (s.condition) {
    List kept;
    for (Value& v : all) {
      const ScopePtr test = inner(scope);
      assign(*s.target, v, test);
      if (truth(evaluate(*s.condition, test))) kept.push_back(std::move(v));
    }
    all = std::move(kept);
  }
  auto loop = std::make_shared<LoopObject>();
  const auto elements = std::make_shared<const List>(std::move(all));
  loop->elements = elements;
  loop->depth = depth_around(meter, *elements);
  loop->level = level;
  loop->changed = std::make_shared<List>();
  // What it keeps may hold the loop itself.
  const std::shared_ptr<void> forget(nullptr, [changed = loop->changed](void*) { changed->clear(); });
  if (s.recursive)
    loop->recurse = [&s, scope, level](Interpreter& in, const Arguments& arguments) {
      Take take(in, "loop", arguments);
      const Value again = take.require("iterable");
      take.done();
      std::string text;
      in.run_loop(s, scope, again, level + 1, text);
      return in.string(std::move(text));
    };
  for (size_t i = 0; i < elements->size(); ++i) {
    meter.step();
    const ScopePtr body = inner(scope);
    auto here = std::make_shared<LoopObject>(*loop);
    here->index = i;
    assign(*s.target, (*elements)[i], body);
    body->names["loop"] = Value::of(meter, std::move(here));
    const Flow flow = run(s.body, body, out);
    if (flow == Flow::break_loop) break;
  }
  if (elements->empty()) return run(s.other, inner(scope), out);
  return Flow::next;
}

void Interpreter::assign(const Expression& target, Value value, const ScopePtr& scope) {
  meter.line = target.line;
  if (target.op == Op::name) {
    scope->names[target.text] = std::move(value);
    return;
  }
  if (target.op == Op::attribute) {
    const Value space = look_up(target.args[0]->text, scope);
    if (!space.is(Kind::space))
      meter.fail(fmt::format("{} is {}: attributes can only be set on a namespace", quote_for_message(target.args[0]->text),
                             kind_name(space)),
                 "make one with {% set name = namespace() %}");
    meter.bytes(kScopeBytes);
    space.space().members[target.text] = std::move(value);
    return;
  }
  List parts = iterate(meter, value);
  if (parts.size() != target.args.size())
    meter.fail(fmt::format("{} values for {} names", parts.size(), target.args.size()));
  for (size_t i = 0; i < parts.size(); ++i) assign(*target.args[i], std::move(parts[i]), scope);
}

Value Interpreter::filter_text(const Expression* filters, Value text, const ScopePtr& scope) {
  if (!filters) return text;
  if (filters->args[0]) text = filter_text(filters->args[0].get(), std::move(text), scope);
  meter.line = filters->line;
  return apply_filter(*this, filters->text, text, arguments_of(*filters->call, scope));
}

Value Interpreter::function(std::string name, std::function<Value(Interpreter&, const Arguments&)> call) {
  auto object = std::make_shared<FunctionObject>();
  object->name = std::move(name);
  object->call = std::move(call);
  return Value::of(meter, std::move(object));
}

Value Interpreter::macro(const Statement& s, const std::string& name, const ScopePtr& scope) {
  scopes_.push_back(scope);
  return function(name, [&s, name, scope](Interpreter& in, const Arguments& arguments) {
    return in.call_macro(s, name, scope, arguments);
  });
}

Value Interpreter::call_macro(const Statement& s, const std::string& name, const ScopePtr& scope, const Arguments& arguments) {
  const ScopePtr body = inner(scope);
  List rest;
  for (size_t i = s.parameters.size(); i < arguments.positional.size(); ++i) rest.push_back(arguments.positional[i]);
  if (!rest.empty() && !s.uses_varargs)
    meter.fail(fmt::format("macro \"{}\" takes {} arguments, got {}", name, s.parameters.size(), arguments.positional.size()));
  auto unknown = std::make_shared<DictObject>();
  for (const auto& [key, value] : arguments.named) {
    size_t place = 0;
    while (place < s.parameters.size() && s.parameters[place].name != key) ++place;
    if (place < s.parameters.size()) {
      if (place < arguments.positional.size()) meter.fail(fmt::format("macro \"{}\" got \"{}\" twice", name, key));
    } else if (key == "caller" && s.uses_caller) {
      body->names["caller"] = value;
    } else if (s.uses_kwargs) {
      unknown->set(meter, string(key), value);
    } else {
      meter.fail(fmt::format("macro \"{}\" has no parameter \"{}\"", name, key));
    }
  }
  if (s.uses_varargs) body->names["varargs"] = Value::sequence(meter, std::move(rest), SequenceKind::tuple);
  if (s.uses_kwargs) body->names["kwargs"] = Value::of(meter, std::move(unknown));
  if (s.uses_caller && s.what == Do::macro && body->names.count("caller") == 0)
    body->names["caller"] = Value::undefined("no caller: the macro was not called by a {% call %} block");
  for (size_t i = 0; i < s.parameters.size(); ++i) {
    const Parameter& p = s.parameters[i];
    Value v = Value::undefined(fmt::format("the parameter '{}' was not given", p.name));
    const auto given = std::find_if(arguments.named.begin(), arguments.named.end(), [&](const auto& a) { return a.first == p.name; });
    if (i < arguments.positional.size())
      v = arguments.positional[i];
    else if (given != arguments.named.end())
      v = given->second;
    else if (p.value)
      v = evaluate(*p.value, body);
    body->names[p.name] = std::move(v);
  }
  std::string text;
  run(s.body, body, text);
  return string(std::move(text));
}

// --- expressions

Value Interpreter::look_up(const std::string& name, const ScopePtr& scope) {
  for (const Scope* s = scope.get(); s; s = s->parent.get()) {
    meter.step();
    const auto found = s->names.find(name);
    if (found != s->names.end()) return found->second;
  }
  return global(name);
}

Value Interpreter::global(const std::string& name) {
  if (name == "range") return function(name, [](Interpreter& in, const Arguments& a) { return range(in, a); });
  if (name == "dict") return function(name, [](Interpreter& in, const Arguments& a) { return Value::of(in.meter, dict_from(in, a)); });
  if (name == "namespace")
    return function(name, [](Interpreter& in, const Arguments& a) {
      auto space = std::make_shared<SpaceObject>();
      const std::shared_ptr<DictObject> from = dict_from(in, a);
      for (const auto& [key, value] : from->items) space->members[text_of(in.meter, key)] = value;
      in.meter.bytes(kScopeBytes * (1 + static_cast<int64_t>(space->members.size())));
      in.spaces_.push_back(space);
      return Value::of(space);
    });
  if (name == "raise_exception")
    return function(name, [](Interpreter& in, const Arguments& a) -> Value {
      Take take(in, "raise_exception", a);
      const std::string message = text_of(in.meter, take.require("message"));
      in.meter.fail("the template refuses this conversation: " + quote_for_message(message));
    });
  if (name == "strftime_now")
    return function(name, [](Interpreter& in, const Arguments& a) {
      Take take(in, "strftime_now", a);
      const std::string format = take.text("format");
      take.done();
      return in.string(time_text(in, format, in.options_.now));
    });
  return Value::undefined(fmt::format("'{}' is undefined", name));
}

Value Interpreter::call(const Value& f, const Arguments& arguments) {
  const Deeper deeper(meter);
  meter.step();
  if (f.is(Kind::function)) return f.function().call(*this, arguments);
  if (f.is(Kind::loop)) {
    if (!f.loop().recurse) meter.fail("the loop is not recursive", "write {% for ... recursive %}");
    return f.loop().recurse(*this, arguments);
  }
  if (f.is(Kind::undefined)) meter.fail(f.complaint());
  meter.fail(fmt::format("{} cannot be called", kind_name(f)));
}

Value Interpreter::attribute(const Value& v, const std::string& name) {
  switch (v.kind()) {
    case Kind::undefined:
      meter.fail(v.complaint());
    case Kind::dict: {
      Value method = method_of(*this, v, name);
      if (!method.is(Kind::undefined)) return method;
      if (const Value* found = v.dict().find(name)) return *found;
      break;
    }
    case Kind::space: {
      const auto found = v.space().members.find(name);
      if (found != v.space().members.end()) return found->second;
      break;
    }
    case Kind::function:
      if (name == "name") return string(v.function().name);
      break;
    default: {
      Value method = method_of(*this, v, name);
      if (!method.is(Kind::undefined)) return method;
    }
  }
  return Value::undefined(fmt::format("{} has no attribute '{}'", kind_name(v), name));
}

Value Interpreter::item(const Value& v, const Value& key) {
  switch (v.kind()) {
    case Kind::undefined:
      meter.fail(v.complaint());
    case Kind::dict:
      if (const Value* found = v.dict().find(key)) return *found;
      break;
    case Kind::sequence: {
      if (v.sequence().kind > SequenceKind::tuple || !key.is_integral()) break;
      const List& elements = v.sequence().elements;
      const auto n = static_cast<int64_t>(elements.size());
      const int64_t i = key.integer() < 0 ? key.integer() + n : key.integer();
      if (i >= 0 && i < n) return elements[static_cast<size_t>(i)];
      break;
    }
    case Kind::string: {
      if (!key.is_integral()) break;
      meter.step(static_cast<int64_t>(v.text().size() / 16));
      const int64_t n = character_count(v.text());
      const int64_t i = key.integer() < 0 ? key.integer() + n : key.integer();
      if (i < 0 || i >= n) break;
      if (static_cast<size_t>(n) == v.text().size()) return string(v.text().substr(static_cast<size_t>(i), 1));
      meter.bytes(static_cast<int64_t>(v.text().size()) * 16);
      return string(std::string(characters(v.text())[static_cast<size_t>(i)]));
    }
    default:
      break;
  }
  if (key.is(Kind::string) && !v.is(Kind::undefined)) {
    if (v.is(Kind::dict)) {
      Value method = method_of(*this, v, key.text());
      if (!method.is(Kind::undefined)) return method;
    } else {
      return attribute(v, key.text());
    }
  }
  if (key.is(Kind::undefined) && !v.is(Kind::dict)) return Value::undefined(key.complaint());
  return Value::undefined(fmt::format("{} has no element {}", kind_name(v), key.depth() > 1 ? kind_name(key) : text_of(meter, key)));
}

Value Interpreter::part(const Value& v, const Value& path) {
  if (path.is_integral()) return item(v, path);
  if (!path.is(Kind::string)) meter.fail(fmt::format("an attribute is named by a string, not by {}", kind_name(path)));
  Value at = v;
  for (const std::string_view name : split(path.text(), ".", -1)) {
    meter.step();
    const bool number = !name.empty() && name.size() < 18 && name.find_first_not_of("0123456789") == std::string_view::npos;
    at = item(at, number ? Value::integer(std::stoll(std::string(name))) : string(std::string(name)));
  }
  return at;
}

Arguments Interpreter::arguments_of(const CallArguments& call, const ScopePtr& scope) {
  Arguments out;
  for (const ExpressionPtr& e : call.positional) out.positional.push_back(evaluate(*e, scope));
  for (const auto& [name, e] : call.named) out.named.emplace_back(name, evaluate(*e, scope));
  if (call.list)
    for (Value& v : iterate(meter, evaluate(*call.list, scope))) out.positional.push_back(std::move(v));
  if (call.dict) {
    const Value dict = evaluate(*call.dict, scope);
    if (!dict.is(Kind::dict)) meter.fail(fmt::format("** needs a dict, not {}", kind_name(dict)));
    for (const auto& [key, value] : dict.dict().items) {
      if (!key.is(Kind::string)) meter.fail("** needs a dict whose keys are strings");
      out.named.emplace_back(key.text(), value);
    }
  }
  return out;
}

Value Interpreter::evaluate(const Expression& e, const ScopePtr& scope) {
  const Deeper deeper(meter);
  meter.step();
  meter.line = e.line;
  switch (e.op) {
    case Op::literal_none:
      return Value::none();
    case Op::literal_true:
    case Op::literal_false:
      return Value::boolean(e.op == Op::literal_true);
    case Op::literal_integer:
      return Value::integer(e.integer);
    case Op::literal_real:
      return Value::real(e.real);
    case Op::literal_string:
      return string(e.text);
    case Op::name:
      return look_up(e.text, scope);
    case Op::logical_and: {
      Value a = evaluate(*e.args[0], scope);
      return truth(a) ? evaluate(*e.args[1], scope) : a;
    }
    case Op::logical_or: {
      Value a = evaluate(*e.args[0], scope);
      return truth(a) ? a : evaluate(*e.args[1], scope);
    }
    case Op::logical_not:
      return Value::boolean(!truth(evaluate(*e.args[0], scope)));
    case Op::conditional:
      if (truth(evaluate(*e.args[1], scope))) return evaluate(*e.args[0], scope);
      if (e.args[2]) return evaluate(*e.args[2], scope);
      return Value::undefined("the inline if is false and has no else");
    default:
      return compute(e, scope);
  }
}

Value Interpreter::compute(const Expression& e, const ScopePtr& scope) {
  switch (e.op) {
    case Op::list:
    case Op::tuple: {
      List out;
      for (const ExpressionPtr& arg : e.args) out.push_back(evaluate(*arg, scope));
      return Value::sequence(meter, std::move(out), e.op == Op::list ? SequenceKind::list : SequenceKind::tuple);
    }
    case Op::dict: {
      auto out = std::make_shared<DictObject>();
      for (size_t i = 0; i < e.args.size(); i += 2) {
        const Value key = evaluate(*e.args[i], scope);
        out->set(meter, key, evaluate(*e.args[i + 1], scope));
      }
      return Value::of(meter, std::move(out));
    }
    case Op::attribute: {
      const Value v = evaluate(*e.args[0], scope);
      meter.line = e.line;
      return attribute(v, e.text);
    }
    case Op::index: {
      const Value v = evaluate(*e.args[0], scope);
      const Value key = evaluate(*e.args[1], scope);
      meter.line = e.line;
      return item(v, key);
    }
    case Op::slice:
      return slice(e, scope);
    case Op::call: {
      const Value f = evaluate(*e.args[0], scope);
      const Arguments arguments = arguments_of(*e.call, scope);
      meter.line = e.line;
      return call(f, arguments);
    }
    case Op::filter: {
      const Value v = evaluate(*e.args[0], scope);
      const Arguments arguments = arguments_of(*e.call, scope);
      meter.line = e.line;
      return apply_filter(*this, e.text, v, arguments);
    }
    case Op::test: {
      const Value v = evaluate(*e.args[0], scope);
      const Arguments arguments = arguments_of(*e.call, scope);
      meter.line = e.line;
      return Value::boolean(apply_test(*this, e.text, v, arguments));
    }
    case Op::negate:
    case Op::plus:
      return negate(meter, evaluate(*e.args[0], scope), e.op == Op::negate);
    case Op::concat: {
      std::string out;
      for (const ExpressionPtr& arg : e.args) append_text(meter, evaluate(*arg, scope), out);
      return string(std::move(out));
    }
    case Op::compare:
      return compare_all(e, scope);
    default: {
      const Value a = evaluate(*e.args[0], scope);
      const Value b = evaluate(*e.args[1], scope);
      meter.line = e.line;
      return arithmetic(meter, e.op, a, b);
    }
  }
}

Value Interpreter::slice(const Expression& e, const ScopePtr& scope) {
  const Value v = evaluate(*e.args[0], scope);
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) bounds[i] = e.args[i + 1] ? evaluate(*e.args[i + 1], scope) : Value::none();
  meter.line = e.line;
  return slice_of(meter, v, bounds[0], bounds[1], bounds[2]);
}

Value Interpreter::compare_all(const Expression& e, const ScopePtr& scope) {
  Value left = evaluate(*e.args[0], scope);
  for (size_t i = 0; i < e.comparisons.size(); ++i) {
    Value right = evaluate(*e.args[i + 1], scope);
    meter.line = e.line;
    bool holds = false;
    switch (e.comparisons[i]) {
      case Comparison::eq:
        holds = equal(meter, left, right);
        break;
      case Comparison::ne:
        holds = !equal(meter, left, right);
        break;
      case Comparison::lt:
        holds = compare(meter, left, right) < 0;
        break;
      case Comparison::le:
        holds = compare(meter, left, right) <= 0;
        break;
      case Comparison::gt:
        holds = compare(meter, left, right) > 0;
        break;
      case Comparison::ge:
        holds = compare(meter, left, right) >= 0;
        break;
      case Comparison::in:
        holds = contains(meter, right, left);
        break;
      case Comparison::not_in:
        holds = !contains(meter, right, left);
        break;
    }
    if (!holds) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

}  // namespace thimble::jinja
