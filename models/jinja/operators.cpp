// Python's arithmetic, membership and slices. Integers have 64 bits; what does not fit is an error.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "models/jinja/interpreter.h"
#include "models/jinja/text.h"

namespace thimble::jinja {
namespace {

[[noreturn]] void no_operator(Meter& meter, const char* op, const Value& a, const Value& b) {
  for (const Value* v : {&a, &b})
    if (v->is(Kind::undefined)) meter.fail(v->complaint());
  meter.fail(fmt::format("{} and {} have no \"{}\"", kind_name(a), kind_name(b), op));
}

const char* sign_of(Op op) {
  switch (op) {
    case Op::add: return "+";
    case Op::subtract: return "-";
    case Op::multiply: return "*";
    case Op::divide: return "/";
    case Op::floor_divide: return "//";
    case Op::modulo: return "%";
    default: return "**";
  }
}

Value power(Meter& meter, int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) meter.fail("0 to a negative power");
    return Value::real(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  int64_t result = 1;
  while (exponent > 0) {
    if (exponent & 1)
      if (__builtin_mul_overflow(result, base, &result)) meter.fail("an integer exceeds 64 bits");
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) meter.fail("an integer exceeds 64 bits");
  }
  return Value::integer(result);
}

Value integers(Meter& meter, Op op, int64_t a, int64_t b) {
  int64_t out = 0;
  bool over = false;
  switch (op) {
    case Op::add:
      over = __builtin_add_overflow(a, b, &out);
      break;
    case Op::subtract:
      over = __builtin_sub_overflow(a, b, &out);
      break;
    case Op::multiply:
      over = __builtin_mul_overflow(a, b, &out);
      break;
    case Op::power:
      return power(meter, a, b);
    default: {
      if (b == 0) meter.fail("division by zero");
      if (op == Op::divide) return Value::real(static_cast<double>(a) / static_cast<double>(b));
      if (b == -1) {  // INT64_MIN / -1 does not fit
        if (op == Op::modulo) return Value::integer(0);
        over = __builtin_sub_overflow(int64_t{0}, a, &out);
        break;
      }
      const int64_t rest = a % b;
      const bool down = rest != 0 && (rest < 0) != (b < 0);
      out = op == Op::modulo ? (down ? rest + b : rest) : a / b - down;
    }
  }
  if (over) meter.fail("an integer exceeds 64 bits");
  return Value::integer(out);
}

Value reals(Meter& meter, Op op, double a, double b) {
  switch (op) {
    case Op::add:
      return Value::real(a + b);
    case Op::subtract:
      return Value::real(a - b);
    case Op::multiply:
      return Value::real(a * b);
    case Op::power: {
      const double v = std::pow(a, b);
      if (std::isnan(v) && !std::isnan(a) && !std::isnan(b)) meter.fail("a power that is no real number");
      return Value::real(v);
    }
    default: {
      if (b == 0) meter.fail("division by zero");
      if (op == Op::divide) return Value::real(a / b);
      double rest = std::fmod(a, b);
      if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
      return Value::real(op == Op::modulo ? rest : std::floor((a - rest) / b + 0.5));
    }
  }
}

// "ab" * 3, [1] * 3
Value repeat(Meter& meter, const Value& v, int64_t times) {
  times = std::max<int64_t>(0, times);
  const bool text = v.is(Kind::string);
  const auto unit = static_cast<int64_t>(text ? v.text().size() : v.sequence().elements.size() * sizeof(Value));
  int64_t all = 0;
  if (__builtin_mul_overflow(unit, times, &all)) all = INT64_MAX;
  meter.bytes(all);
  meter.step(unit == 0 ? 0 : times);
  if (unit == 0) times = 0;
  if (text) {
    std::string out;
    out.reserve(static_cast<size_t>(all));
    for (int64_t i = 0; i < times; ++i) out += v.text();
    return Value::string(meter, std::move(out));
  }
  List out;
  for (int64_t i = 0; i < times; ++i) out.insert(out.end(), v.sequence().elements.begin(), v.sequence().elements.end());
  return Value::sequence(meter, std::move(out), v.sequence().kind);
}

bool repeats(const Value& v) { return v.is(Kind::string) || v.is_sequence(SequenceKind::list) || v.is_sequence(SequenceKind::tuple); }

}  // namespace

Value arithmetic(Meter& meter, Op op, const Value& a, const Value& b) {
  meter.step();
  if (a.is_integral() && b.is_integral()) return integers(meter, op, a.integer(), b.integer());
  if (a.is_number() && b.is_number()) return reals(meter, op, a.number(), b.number());
  if (op == Op::add && a.is(Kind::string) && b.is(Kind::string)) {
    meter.bytes(static_cast<int64_t>(a.text().size() + b.text().size()));
    return Value::string(meter, a.text() + b.text());
  }
  if (op == Op::add && repeats(a) && repeats(b) && a.is(Kind::sequence) && b.is(Kind::sequence) &&
      a.sequence().kind == b.sequence().kind) {
    const List &x = a.sequence().elements, &y = b.sequence().elements;
    meter.bytes(static_cast<int64_t>((x.size() + y.size()) * sizeof(Value)));
    meter.step(static_cast<int64_t>(x.size() + y.size()));
    List out = x;
    out.insert(out.end(), y.begin(), y.end());
    return Value::sequence(meter, std::move(out), a.sequence().kind);
  }
  if (op == Op::multiply && repeats(a) && b.is_integral()) return repeat(meter, a, b.integer());
  if (op == Op::multiply && repeats(b) && a.is_integral()) return repeat(meter, b, a.integer());
  if (op == Op::modulo && a.is(Kind::string)) return Value::string(meter, percent_format(meter, a.text(), b));
  no_operator(meter, sign_of(op), a, b);
}

Value negate(Meter& meter, const Value& v, bool minus) {
  if (v.is(Kind::real)) return Value::real(minus ? -v.number() : v.number());
  if (!v.is_integral()) {
    if (v.is(Kind::undefined)) meter.fail(v.complaint());
    meter.fail(fmt::format("{} has no sign", kind_name(v)));
  }
  return integers(meter, Op::subtract, minus ? 0 : v.integer(), minus ? v.integer() : 0);
}

bool contains(Meter& meter, const Value& container, const Value& v) {
  meter.step();
  switch (container.kind()) {
    case Kind::undefined:
      return false;
    case Kind::string:
      if (v.is(Kind::undefined)) meter.fail(v.complaint());
      if (!v.is(Kind::string)) meter.fail(fmt::format("\"in\" a string needs a string, not {}", kind_name(v)));
      meter.step(static_cast<int64_t>(container.text().size() / 8));
      return container.text().find(v.text()) != std::string::npos;
    case Kind::dict:
      if (v.is_sequence(SequenceKind::list) || v.is(Kind::dict)) meter.fail(fmt::format("{} cannot be a key of a dict", kind_name(v)));
      return container.dict().find(v) != nullptr;
    case Kind::sequence:
      for (const Value& element : iterate(meter, container))
        if (equal(meter, element, v)) return true;
      return false;
    default:
      meter.fail(fmt::format("{} has no elements to look \"in\"", kind_name(container)));
  }
}

Value slice_of(Meter& meter, const Value& v, const Value& begin, const Value& end, const Value& step) {
  if (v.is(Kind::undefined)) meter.fail(v.complaint());
  if (!repeats(v)) meter.fail(fmt::format("{} has no slices", kind_name(v)));
  const auto bound = [&](const Value& b) {
    if (b.is(Kind::undefined)) meter.fail(b.complaint());
    if (!b.is_integral()) meter.fail(fmt::format("a slice needs integers, not {}", kind_name(b)));
    return b.integer();
  };
  const int64_t stride = step.is(Kind::none) ? 1 : bound(step);
  if (stride == 0) meter.fail("a slice with step 0");
  std::vector<std::string_view> letters;
  if (v.is(Kind::string)) {
    meter.bytes(static_cast<int64_t>(v.text().size()) * 16);
    meter.step(static_cast<int64_t>(v.text().size()));
    letters = characters(v.text());
  }
  const auto n = static_cast<int64_t>(v.is(Kind::string) ? letters.size() : v.sequence().elements.size());
  const int64_t low = stride > 0 ? 0 : -1, high = stride > 0 ? n : n - 1;
  const auto place = [&](const Value& b, int64_t fallback) {
    if (b.is(Kind::none)) return fallback;
    int64_t i = bound(b);
    if (i < 0) i = i < -n ? low : i + n;
    return std::clamp(i, low, high);
  };
  const int64_t from = place(begin, stride > 0 ? low : high), to = place(end, stride > 0 ? high : low);
  std::string text;
  List elements;
  // Counted by place, since from + k stride may overflow.
  const int64_t distance = stride > 0 ? to - from : from - to;
  if (distance > 0) {
    const uint64_t stride_size = stride > 0 ? static_cast<uint64_t>(stride) : uint64_t{0} - static_cast<uint64_t>(stride);
    const auto count = static_cast<int64_t>((static_cast<uint64_t>(distance) - 1) / stride_size) + 1;
    meter.step(count);
    for (int64_t k = 0; k < count; ++k) {
      const auto i = static_cast<size_t>(from + k * (count > 1 ? stride : 0));
      if (v.is(Kind::string))
        text += letters[i];
      else
        elements.push_back(v.sequence().elements[i]);
    }
  }
  if (v.is(Kind::string)) return Value::string(meter, std::move(text));
  return Value::sequence(meter, std::move(elements), v.sequence().kind);
}

}  // namespace thimble::jinja
