#include "models/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "models/io/json.h"
#include "models/jinja/lexer.h"

namespace thimble::jinja {
namespace {

using Names = std::initializer_list<std::string_view>;

class Parser {
 public:
  Parser(Meter& meter, std::vector<Token> tokens) : meter_(meter), tokens_(std::move(tokens)) {}

  Block run() {
    Block block = body({});
    return block;
  }

 private:
  const Token& now() const { return tokens_[at_]; }
  const Token& ahead(size_t n = 1) const { return tokens_[std::min(at_ + n, tokens_.size() - 1)]; }
  const Token& take() {
    const Token& t = now();
    if (at_ + 1 < tokens_.size()) ++at_;
    meter_.line = t.line;
    return t;
  }
  bool is(TokenKind kind) const { return now().kind == kind; }
  bool is_op(std::string_view op) const { return is(TokenKind::op) && now().text == op; }
  bool is_name(std::string_view name) const { return is(TokenKind::name) && now().text == name; }
  bool is_name(Names names) const {
    return is(TokenKind::name) && std::find(names.begin(), names.end(), now().text) != names.end();
  }
  bool skip_op(std::string_view op) {
    if (!is_op(op)) return false;
    take();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!is_name(name)) return false;
    take();
    return true;
  }
  [[noreturn]] void fail_expected(const std::string& what) {
    meter_.line = now().line;
    std::string found;
    switch (now().kind) {
      case TokenKind::text:
        found = "text";
        break;
      case TokenKind::end:
        found = "the end of the template";
        break;
      case TokenKind::block_end:
        found = "%}";
        break;
      case TokenKind::output_end:
        found = "}}";
        break;
      case TokenKind::block_begin:
        found = "{%";
        break;
      case TokenKind::output_begin:
        found = "{{";
        break;
      default:
        found = quote_for_message(now().text);
    }
    meter_.fail(fmt::format("expected {}, found {}", what, found));
  }
  void expect_op(std::string_view op) {
    if (!skip_op(op)) fail_expected(quote_for_message(op));
  }
  void expect_name(std::string_view name) {
    if (!skip_name(name)) fail_expected(quote_for_message(name));
  }
  std::string identifier(const char* what) {
    if (!is(TokenKind::name)) fail_expected(what);
    return take().text;
  }
  void end_of_block() {
    if (!is(TokenKind::block_end)) fail_expected("%}");
    take();
  }

  // --- expressions

  ExpressionPtr make(Op op, std::string text = {}) {
    auto e = std::make_unique<Expression>();
    e->op = op;
    e->line = meter_.line;
    e->text = std::move(text);
    return e;
  }
  ExpressionPtr finish(ExpressionPtr e) {
    int below = 0;
    const auto look = [&](const ExpressionPtr& child) {
      if (child) below = std::max(below, child->height);
    };
    for (const ExpressionPtr& child : e->args) look(child);
    if (e->call) {
      for (const ExpressionPtr& child : e->call->positional) look(child);
      for (const auto& [name, child] : e->call->named) look(child);
      look(e->call->list);
      look(e->call->dict);
    }
    e->height = below + 1;
    if (e->height > meter_.limits.depth) meter_.fail_limit("levels of nesting", meter_.limits.depth);
    return e;
  }
  ExpressionPtr node(Op op, ExpressionPtr a, ExpressionPtr b = nullptr) {
    ExpressionPtr e = make(op);
    e->args.push_back(std::move(a));
    if (b) e->args.push_back(std::move(b));
    return finish(std::move(e));
  }

  // condition: whether an inline if may follow (not in the iterable of a for loop).
  ExpressionPtr expression(bool condition = true) {
    const Deeper deeper(meter_);
    if (!condition) return either();
    ExpressionPtr e = either();
    int chain = 0;
    while (skip_name("if")) {
      if (++chain > meter_.limits.depth) meter_.fail_limit("levels of nesting", meter_.limits.depth);
      ExpressionPtr choice = make(Op::conditional);
      choice->args.push_back(std::move(e));
      choice->args.push_back(either());
      choice->args.push_back(skip_name("else") ? expression() : nullptr);
      e = finish(std::move(choice));
    }
    return e;
  }
  ExpressionPtr either() {
    ExpressionPtr e = both();
    while (skip_name("or")) e = node(Op::logical_or, std::move(e), both());
    return e;
  }
  ExpressionPtr both() {
    ExpressionPtr e = negation();
    while (skip_name("and")) e = node(Op::logical_and, std::move(e), negation());
    return e;
  }
  ExpressionPtr negation() {
    const Deeper deeper(meter_);
    if (skip_name("not")) return node(Op::logical_not, negation());
    return comparison();
  }
  bool comparison_sign(Comparison* c) {
    if (is(TokenKind::op)) {
      static constexpr std::pair<std::string_view, Comparison> kSigns[] = {
          {"==", Comparison::eq}, {"!=", Comparison::ne}, {"<", Comparison::lt},
          {"<=", Comparison::le}, {">", Comparison::gt},  {">=", Comparison::ge}};
      for (const auto& [text, sign] : kSigns)
        if (now().text == text) {
          *c = sign;
          take();
          return true;
        }
      return false;
    }
    if (skip_name("in")) {
      *c = Comparison::in;
      return true;
    }
    if (is_name("not") && ahead().kind == TokenKind::name && ahead().text == "in") {
      take();
      take();
      *c = Comparison::not_in;
      return true;
    }
    return false;
  }
  ExpressionPtr comparison() {
    ExpressionPtr e = sum();
    Comparison sign = Comparison::eq;
    if (!comparison_sign(&sign)) return e;
    ExpressionPtr all = make(Op::compare);
    all->args.push_back(std::move(e));
    do {
      all->comparisons.push_back(sign);
      all->args.push_back(sum());
    } while (comparison_sign(&sign));
    return finish(std::move(all));
  }
  ExpressionPtr sum() {
    ExpressionPtr e = concatenation();
    for (;;) {
      if (skip_op("+"))
        e = node(Op::add, std::move(e), concatenation());
      else if (skip_op("-"))
        e = node(Op::subtract, std::move(e), concatenation());
      else
        return e;
    }
  }
  ExpressionPtr concatenation() {
    ExpressionPtr e = product();
    if (!is_op("~")) return e;
    ExpressionPtr all = make(Op::concat);
    all->args.push_back(std::move(e));
    while (skip_op("~")) all->args.push_back(product());
    return finish(std::move(all));
  }
  ExpressionPtr product() {
    ExpressionPtr e = power();
    for (;;) {
      if (skip_op("*"))
        e = node(Op::multiply, std::move(e), power());
      else if (skip_op("/"))
        e = node(Op::divide, std::move(e), power());
      else if (skip_op("//"))
        e = node(Op::floor_divide, std::move(e), power());
      else if (skip_op("%"))
        e = node(Op::modulo, std::move(e), power());
      else
        return e;
    }
  }
  ExpressionPtr power() {
    ExpressionPtr e = unary();
    while (skip_op("**")) e = node(Op::power, std::move(e), unary());
    return e;
  }
  ExpressionPtr unary(bool with_filters = true) {
    const Deeper deeper(meter_);
    ExpressionPtr e;
    if (skip_op("-"))
      e = node(Op::negate, unary(false));
    else if (skip_op("+"))
      e = node(Op::plus, unary(false));
    else
      e = primary();
    e = postfix(std::move(e));
    return with_filters ? filters_and_tests(std::move(e)) : std::move(e);
  }

  ExpressionPtr primary() {
    const Token& t = now();
    meter_.line = t.line;
    switch (t.kind) {
      case TokenKind::name: {
        take();
        if (t.text == "true" || t.text == "True") return make(Op::literal_true);
        if (t.text == "false" || t.text == "False") return make(Op::literal_false);
        if (t.text == "none" || t.text == "None") return make(Op::literal_none);
        return make(Op::name, t.text);
      }
      case TokenKind::string: {
        std::string text;
        while (is(TokenKind::string)) text += take().text;
        return make(Op::literal_string, std::move(text));
      }
      case TokenKind::integer: {
        ExpressionPtr e = make(Op::literal_integer);
        e->integer = take().integer;
        return e;
      }
      case TokenKind::real: {
        ExpressionPtr e = make(Op::literal_real);
        e->real = take().real;
        return e;
      }
      default:
        break;
    }
    if (skip_op("(")) {
      ExpressionPtr e = tuple(true, true);
      expect_op(")");
      return e;
    }
    if (skip_op("[")) {
      ExpressionPtr e = make(Op::list);
      while (!is_op("]")) {
        if (!e->args.empty()) expect_op(",");
        if (is_op("]")) break;
        e->args.push_back(expression());
      }
      expect_op("]");
      return finish(std::move(e));
    }
    if (skip_op("{")) {
      ExpressionPtr e = make(Op::dict);
      while (!is_op("}")) {
        if (!e->args.empty()) expect_op(",");
        if (is_op("}")) break;
        e->args.push_back(expression());
        expect_op(":");
        e->args.push_back(expression());
      }
      expect_op("}");
      return finish(std::move(e));
    }
    fail_expected("an expression");
  }

  bool tuple_ends(Names stop) const {
    return is(TokenKind::block_end) || is(TokenKind::output_end) || is(TokenKind::end) || is_op(")") || is_name(stop);
  }

  // One expression, or several with commas between them.
  ExpressionPtr tuple(bool condition, bool in_parentheses = false, Names stop = {}) {
    ExpressionPtr all = make(Op::tuple);
    bool is_tuple = false;
    for (;;) {
      if (!all->args.empty()) {
        if (!skip_op(",")) break;
        is_tuple = true;
      }
      if (tuple_ends(stop)) break;
      all->args.push_back(expression(condition));
    }
    if (!is_tuple && all->args.size() == 1) return std::move(all->args[0]);
    if (all->args.empty() && !in_parentheses) fail_expected("an expression");
    return finish(std::move(all));
  }

  ExpressionPtr postfix(ExpressionPtr e) {
    for (;;) {
      if (is_op(".")) {
        take();
        if (is(TokenKind::integer)) {
          ExpressionPtr at = make(Op::literal_integer);
          at->integer = take().integer;
          e = node(Op::index, std::move(e), std::move(at));
        } else {
          ExpressionPtr member = make(Op::attribute);
          member->text = identifier("the name of an attribute");
          member->args.push_back(std::move(e));
          e = finish(std::move(member));
        }
      } else if (is_op("[")) {
        e = subscript(std::move(e));
      } else if (is_op("(")) {
        e = call(std::move(e));
      } else {
        return e;
      }
    }
  }

  ExpressionPtr subscript(ExpressionPtr e) {
    expect_op("[");
    ExpressionPtr first, parts[3];
    bool slice = false;
    if (!is_op(":")) first = expression();
    if (is_op(":")) {
      slice = true;
      parts[0] = std::move(first);
      for (int i = 1; i < 3 && skip_op(":"); ++i)
        if (!is_op(":") && !is_op("]")) parts[i] = expression();
    } else if (is_op(",")) {
      ExpressionPtr all = make(Op::tuple);
      all->args.push_back(std::move(first));
      while (skip_op(",") && !is_op("]")) all->args.push_back(expression());
      first = finish(std::move(all));
    }
    expect_op("]");
    ExpressionPtr out = make(slice ? Op::slice : Op::index);
    out->args.push_back(std::move(e));
    if (slice)
      for (ExpressionPtr& part : parts) out->args.push_back(std::move(part));
    else
      out->args.push_back(std::move(first));
    return finish(std::move(out));
  }

  std::unique_ptr<CallArguments> arguments() {
    auto out = std::make_unique<CallArguments>();
    expect_op("(");
    bool first = true;
    while (!is_op(")")) {
      if (!first) expect_op(",");
      first = false;
      if (is_op(")")) break;
      if (skip_op("*")) {
        if (out->list || out->dict) fail_expected("one *list of arguments");
        out->list = expression();
      } else if (skip_op("**")) {
        if (out->dict) fail_expected("one **dict of arguments");
        out->dict = expression();
      } else if (is(TokenKind::name) && ahead().kind == TokenKind::op && ahead().text == "=") {
        std::string name = take().text;
        take();
        for (const auto& [known, value] : out->named)
          if (known == name) meter_.fail("the argument " + quote_for_message(name) + " stands twice");
        out->named.emplace_back(std::move(name), expression());
      } else {
        if (!out->named.empty() || out->list || out->dict) fail_expected("a named argument");
        out->positional.push_back(expression());
      }
    }
    expect_op(")");
    return out;
  }
  ExpressionPtr call(ExpressionPtr e) {
    ExpressionPtr out = make(Op::call);
    out->args.push_back(std::move(e));
    out->call = arguments();
    return finish(std::move(out));
  }

  std::string dotted_name(const char* what) {
    std::string name = identifier(what);
    while (is_op(".")) {
      take();
      name += "." + identifier(what);
    }
    return name;
  }

  // | name(arguments); e may be null (filter blocks).
  ExpressionPtr filter(ExpressionPtr e) {
    ExpressionPtr out = make(Op::filter);
    out->text = dotted_name("the name of a filter");
    out->line = meter_.line;
    out->args.push_back(std::move(e));
    out->call = is_op("(") ? arguments() : std::make_unique<CallArguments>();
    return finish(std::move(out));
  }

  ExpressionPtr test(ExpressionPtr e) {
    const bool negated = skip_name("not");
    ExpressionPtr out = make(Op::test);
    out->text = dotted_name("the name of a test");
    out->args.push_back(std::move(e));
    if (is_op("(")) {
      out->call = arguments();
    } else {
      out->call = std::make_unique<CallArguments>();
      const bool argument = is(TokenKind::string) || is(TokenKind::integer) || is(TokenKind::real) || is_op("[") || is_op("{") ||
                            (is(TokenKind::name) && !is_name({"else", "or", "and"}));
      if (argument) {
        if (is_name("is")) meter_.fail("tests cannot be chained with \"is\"");
        out->call->positional.push_back(postfix(primary()));
      }
    }
    out = finish(std::move(out));
    return negated ? node(Op::logical_not, std::move(out)) : std::move(out);
  }

  ExpressionPtr filters_and_tests(ExpressionPtr e) {
    for (;;) {
      if (skip_op("|"))
        e = filter(std::move(e));
      else if (skip_name("is"))
        e = test(std::move(e));
      else if (is_op("("))
        e = call(std::move(e));
      else
        return e;
    }
  }

  // --- statements

  std::unique_ptr<Statement> statement_of(Do what) {
    auto s = std::make_unique<Statement>();
    s->what = what;
    s->line = meter_.line;
    return s;
  }

  // A name, names with commas, or (for set) an attribute of a name.
  ExpressionPtr assignment_target(bool attribute, Names stop) {
    ExpressionPtr all = make(Op::tuple);
    bool is_tuple = false;
    for (;;) {
      if (!all->args.empty()) {
        if (!skip_op(",")) break;
        is_tuple = true;
        if (tuple_ends(stop) || is_op("=")) break;
      }
      all->args.push_back(one_target(stop));
    }
    if (is_tuple) return finish(std::move(all));
    ExpressionPtr e = std::move(all->args[0]);
    if (attribute && e->op == Op::name && skip_op(".")) {
      ExpressionPtr member = make(Op::attribute, identifier("the name of an attribute"));
      member->args.push_back(std::move(e));
      return finish(std::move(member));
    }
    return e;
  }
  ExpressionPtr one_target(Names stop) {
    const Deeper deeper(meter_);
    if (skip_op("(")) {
      ExpressionPtr e = assignment_target(false, stop);
      expect_op(")");
      return e;
    }
    std::string name = identifier("a name to assign to");
    for (const char* reserved : {"true", "false", "none", "True", "False", "None"})
      if (name == reserved) meter_.fail(quote_for_message(name) + " cannot be assigned to");
    return make(Op::name, std::move(name));
  }

  std::vector<Parameter> parameters() {
    std::vector<Parameter> out;
    expect_op("(");
    while (!is_op(")")) {
      if (!out.empty()) expect_op(",");
      if (is_op(")")) break;
      Parameter p;
      p.name = identifier("the name of a parameter");
      for (const Parameter& known : out)
        if (known.name == p.name) meter_.fail("the parameter " + quote_for_message(p.name) + " stands twice");
      if (skip_op("="))
        p.value = expression();
      else if (!out.empty() && out.back().value)
        fail_expected("a default: one parameter before has one");
      out.push_back(std::move(p));
    }
    expect_op(")");
    return out;
  }

  // Statements until a block whose name is one of `end`, which is left unread behind its name.
  Block body(Names end) {
    const Deeper deeper(meter_);
    Block block;
    const int opened = meter_.line;
    for (;;) {
      switch (now().kind) {
        case TokenKind::end:
          if (end.size() == 0) return block;
          meter_.line = opened;
          meter_.fail(fmt::format("the block that begins here has no {{% {} %}}", std::string(*(end.end() - 1))));
        case TokenKind::text: {
          auto s = statement_of(Do::text);
          s->text = take().text;
          block.push_back(std::move(s));
          break;
        }
        case TokenKind::output_begin: {
          take();
          auto s = statement_of(Do::output);
          s->value = tuple(true);
          if (!is(TokenKind::output_end)) fail_expected("}}");
          take();
          block.push_back(std::move(s));
          break;
        }
        case TokenKind::block_begin:
          take();
          if (!is(TokenKind::name)) fail_expected("the name of a statement");
          if (is_name(end)) return block;
          block.push_back(statement());
          break;
        default:
          fail_expected("text or a tag");
      }
    }
  }
  // The body up to {% end %}, which is read.
  Block body_to(std::string_view end) {
    end_of_block();
    Block block = body({end});
    take();
    end_of_block();
    return block;
  }

  std::unique_ptr<Statement> statement() {
    const std::string name = take().text;
    if (name == "if") return if_statement();
    if (name == "for") return for_statement();
    if (name == "set") return set_statement();
    if (name == "macro") return macro_statement();
    if (name == "call") {
      auto s = statement_of(Do::call_block);
      if (is_op("(")) s->parameters = parameters();
      s->value = expression();
      if (s->value->op != Op::call) meter_.fail("{% call %} needs the call of a macro");
      macro_body(*s, "endcall");
      return s;
    }
    if (name == "filter") {
      auto s = statement_of(Do::filter);
      s->filters = filter(nullptr);
      while (skip_op("|")) s->filters = filter(std::move(s->filters));
      s->body = body_to("endfilter");
      return s;
    }
    if (name == "with") {
      auto s = statement_of(Do::with);
      while (!is(TokenKind::block_end)) {
        if (!s->parameters.empty()) expect_op(",");
        Parameter p;
        p.name = identifier("a name");
        expect_op("=");
        p.value = expression();
        s->parameters.push_back(std::move(p));
      }
      s->body = body_to("endwith");
      return s;
    }
    if (name == "generation") {
      auto s = statement_of(Do::scope);
      s->body = body_to("endgeneration");
      return s;
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) meter_.fail("{% " + name + " %} stands outside of a loop");
      auto s = statement_of(name == "break" ? Do::break_loop : Do::continue_loop);
      end_of_block();
      return s;
    }
    for (const char* known : {"include", "extends", "import", "from", "block", "autoescape", "do", "trans"})
      if (name == known)
        meter_.fail_unsupported("the statement {% " + name + " %} is not offered",
                                "chat templates do not need it; give another template with --template");
    meter_.fail("unknown statement {% " + quote_for_message(name) + " %}");
  }

  std::unique_ptr<Statement> if_statement() {
    const Deeper deeper(meter_);
    auto s = statement_of(Do::if_else);
    s->value = tuple(false);
    end_of_block();
    s->body = body({"elif", "else", "endif"});
    const std::string end = take().text;
    if (end == "elif") {
      s->other.push_back(if_statement());  // reads {% endif %}
      return s;
    }
    if (end == "else")
      s->other = body_to("endif");
    else
      end_of_block();
    return s;
  }

  std::unique_ptr<Statement> for_statement() {
    auto s = statement_of(Do::for_each);
    s->target = assignment_target(false, {"in"});
    expect_name("in");
    s->value = tuple(false, false, {"recursive", "if"});
    if (skip_name("if")) s->condition = expression();
    s->recursive = skip_name("recursive");
    end_of_block();
    ++loops_;
    s->body = body({"else", "endfor"});
    --loops_;
    if (take().text == "else")
      s->other = body_to("endfor");
    else
      end_of_block();
    return s;
  }

  std::unique_ptr<Statement> set_statement() {
    auto s = statement_of(Do::set);
    s->target = assignment_target(true, {});
    if (skip_op("=")) {
      s->value = tuple(true);
      end_of_block();
      return s;
    }
    s->what = Do::set_block;
    while (skip_op("|")) s->filters = filter(std::move(s->filters));
    if (s->target->op == Op::tuple) fail_expected("\"=\"");
    s->body = body_to("endset");
    return s;
  }

  std::unique_ptr<Statement> macro_statement() {
    auto s = statement_of(Do::macro);
    s->text = identifier("the name of a macro");
    s->parameters = parameters();
    macro_body(*s, "endmacro");
    return s;
  }

  // A loop around a macro's definition is none that its body could break.
  void macro_body(Statement& s, std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    s.body = body_to(end);
    loops_ = loops;
    for (const std::string_view name : {std::string_view("varargs"), std::string_view("kwargs"), std::string_view("caller")}) {
      const bool used = mentions(s.body, name);
      (name == "varargs" ? s.uses_varargs : name == "kwargs" ? s.uses_kwargs : s.uses_caller) = used;
    }
  }
  static bool mentions(const ExpressionPtr& e, std::string_view name) {
    if (!e) return false;
    if (e->op == Op::name && e->text == name) return true;
    for (const ExpressionPtr& child : e->args)
      if (mentions(child, name)) return true;
    if (!e->call) return false;
    for (const ExpressionPtr& child : e->call->positional)
      if (mentions(child, name)) return true;
    for (const auto& [key, child] : e->call->named)
      if (mentions(child, name)) return true;
    return mentions(e->call->list, name) || mentions(e->call->dict, name);
  }
  static bool mentions(const Block& block, std::string_view name) {
    for (const auto& s : block) {
      if (s->what == Do::macro) continue;
      if (mentions(s->value, name) || mentions(s->condition, name) || mentions(s->filters, name) || mentions(s->body, name) ||
          mentions(s->other, name))
        return true;
    }
    return false;
  }

  Meter& meter_;
  const std::vector<Token> tokens_;
  size_t at_ = 0;
  int loops_ = 0;
};

}  // namespace

Block parse_template(Meter& meter, std::string_view source) {
  std::vector<Token> tokens = tokenize_template(meter, source);
  meter.line = 1;
  return Parser(meter, std::move(tokens)).run();
}

}  // namespace thimble::jinja
