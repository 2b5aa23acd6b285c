// Walks the tree of a template. What a template can call lives in filters.cpp, predicates.cpp (tests), methods.cpp and
// format.cpp; operators.cpp computes.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "models/jinja/ast.h"
#include "models/jinja/template.h"
#include "models/jinja/value.h"

namespace thimble::jinja {

struct Scope {
  std::shared_ptr<Scope> parent;
  std::unordered_map<std::string, Value> names;
  int depth = 1;
};
using ScopePtr = std::shared_ptr<Scope>;

class Interpreter {
 public:
  Interpreter(Meter& counts, const RenderOptions& options) : meter(counts), options_(options) {}
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  Rendered render(const Block& block, const nlohmann::ordered_json& context);

  Meter& meter;

  // For functions, filters and tests.
  Value string(std::string text) { return Value::string(meter, std::move(text)); }
  Value call(const Value& function, const Arguments& arguments);
  Value attribute(const Value& v, const std::string& name);
  Value item(const Value& v, const Value& key);
  // "a.b.0" or an integer, as the filters' `attribute` names a part.
  Value part(const Value& v, const Value& path);

 private:
  enum class Flow : uint8_t { next, break_loop, continue_loop };

  Flow run(const Block& block, const ScopePtr& scope, std::string& out);
  Flow run(const Statement& s, const ScopePtr& scope, std::string& out);
  Flow run_loop(const Statement& s, const ScopePtr& scope, const Value& over, int level, std::string& out);
  void emit(std::string& out, const std::string& text);
  void assign(const Expression& target, Value value, const ScopePtr& scope);
  Value macro(const Statement& s, const std::string& name, const ScopePtr& scope);
  Value call_macro(const Statement& s, const std::string& name, const ScopePtr& scope, const Arguments& arguments);
  Value filter_text(const Expression* filters, Value text, const ScopePtr& scope);

  Value evaluate(const Expression& e, const ScopePtr& scope);
  Value compute(const Expression& e, const ScopePtr& scope);
  Value slice(const Expression& e, const ScopePtr& scope);
  Value compare_all(const Expression& e, const ScopePtr& scope);
  Value look_up(const std::string& name, const ScopePtr& scope);
  Value global(const std::string& name);
  Arguments arguments_of(const CallArguments& call, const ScopePtr& scope);
  ScopePtr inner(const ScopePtr& parent);
  Value function(std::string name, std::function<Value(Interpreter&, const Arguments&)> call);

  const RenderOptions& options_;
  std::string* top_ = nullptr;  // the output itself, as opposed to captured text
  Rendered rendered_;
  // Namespaces can refer to themselves and scopes to their macros. They are kept until the end and emptied then.
  std::vector<std::shared_ptr<SpaceObject>> spaces_;
  std::vector<ScopePtr> scopes_;
};

// Reads the arguments of one call by name and place, and refuses those that nothing took.
class Take {
 public:
  Take(Interpreter& in, const char* function, const Arguments& arguments) : in_(in), function_(function), arguments_(arguments) {}
  // The next place, or the argument of that name; nullptr when absent.
  const Value* next(const char* name);
  const Value* named(const char* name);
  Value value(const char* name, Value fallback);
  const Value& require(const char* name);
  std::string text(const char* name, const char* fallback = nullptr);  // required without fallback
  int64_t integer(const char* name, int64_t fallback);
  bool flag(const char* name, bool fallback);
  void done() const;

 private:
  [[noreturn]] void fail(const std::string& what) const;
  Interpreter& in_;
  const char* function_;
  const Arguments& arguments_;
  size_t place_ = 0, named_ = 0;
};

// operators.cpp
Value arithmetic(Meter& meter, Op op, const Value& a, const Value& b);
Value negate(Meter& meter, const Value& v, bool minus);
bool contains(Meter& meter, const Value& container, const Value& v);
Value slice_of(Meter& meter, const Value& v, const Value& begin, const Value& end, const Value& step);

// filters.cpp, predicates.cpp, methods.cpp, format.cpp
Value apply_filter(Interpreter& in, const std::string& name, const Value& v, const Arguments& arguments);
bool apply_test(Interpreter& in, const std::string& name, const Value& v, const Arguments& arguments);
// The method of a value as a function, or undefined.
Value method_of(Interpreter& in, const Value& v, const std::string& name);
std::string percent_format(Meter& meter, const std::string& format, const Value& arguments);
std::string brace_format(Interpreter& in, const std::string& format, const Arguments& arguments);

}  // namespace thimble::jinja
