// The tree that the parser makes of a template and the interpreter walks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace thimble::jinja {

struct Expression;
struct Statement;
using ExpressionPtr = std::unique_ptr<Expression>;
using Block = std::vector<std::unique_ptr<Statement>>;

enum class Op : uint8_t {
  literal_none, literal_true, literal_false, literal_integer, literal_real, literal_string,
  name,
  list, tuple, dict,         // elements in args; dict: key, value, key, value
  attribute,                 // args[0].text
  index,                     // args[0][args[1]]
  slice,                     // args[0][args[1]:args[2]:args[3]], null where left out
  call,                      // args[0](call)
  filter,                    // args[0] | text(call); args[0] is null in filter blocks
  test,                      // args[0] is text(call)
  add, subtract, multiply, divide, floor_divide, modulo, power, negate, plus,
  concat,                    // all args
  logical_and, logical_or, logical_not,
  compare,                   // args[0] comparisons[0] args[1] comparisons[1] args[2] ...
  conditional,               // args[0] if args[1] else args[2], which may be null
};

enum class Comparison : uint8_t { eq, ne, lt, le, gt, ge, in, not_in };

// *args and **kwargs of a call are kept apart; either may be null.
struct CallArguments {
  std::vector<ExpressionPtr> positional;
  std::vector<std::pair<std::string, ExpressionPtr>> named;
  ExpressionPtr list, dict;
};

struct Expression {
  Op op = Op::literal_none;
  int line = 1;
  int height = 1;  // levels of the tree below, itself included; limited, since trees are walked recursively
  std::string text;
  int64_t integer = 0;
  double real = 0;
  std::vector<ExpressionPtr> args;
  std::vector<Comparison> comparisons;
  std::unique_ptr<CallArguments> call;
};

enum class Do : uint8_t {
  text,        // text
  output,      // value
  if_else,     // value, body, other
  for_each,    // target, value, condition, body, other, recursive
  set,         // target, value
  set_block,   // target, filters, body
  macro,       // text, parameters, body
  call_block,  // value (a call), parameters, body
  filter,      // filters, body
  with,        // parameters as names and values, body
  scope,       // body in a scope of its own: generation
  break_loop, continue_loop,
};

struct Parameter {
  std::string name;
  ExpressionPtr value;  // the default; null when there is none
};

struct Statement {
  Do what = Do::text;
  int line = 1;
  std::string text;
  ExpressionPtr target;  // a name, a tuple of targets, or an attribute of a name
  ExpressionPtr value, condition;
  ExpressionPtr filters;  // a chain of Op::filter whose innermost argument is null
  std::vector<Parameter> parameters;
  Block body, other;
  bool recursive = false;
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;  // macro: names that its body mentions
};

}  // namespace thimble::jinja
