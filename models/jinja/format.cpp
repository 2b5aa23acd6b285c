// '%s of %d' % (a, b), and '{} of {name}'.format(a, name=b), with the conversions that templates use.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "models/jinja/interpreter.h"
#include "models/jinja/text.h"

namespace thimble::jinja {
namespace {

constexpr int64_t kMaxWidth = 4096;

struct Spec {
  bool left = false, zero = false, plus = false, space = false, center = false;
  char fill = ' ';
  int64_t width = 0, precision = -1;
};

int64_t number_at(Meter& meter, const std::string& s, size_t& i) {
  int64_t n = 0;
  for (; i < s.size() && s[i] >= '0' && s[i] <= '9'; ++i) {
    n = n * 10 + (s[i] - '0');
    if (n > kMaxWidth) meter.fail(fmt::format("a format with a width beyond {}", kMaxWidth));
  }
  return n;
}

std::string padded(Meter& meter, const std::string& text, const Spec& spec, bool number) {
  const int64_t missing = spec.width - character_count(text);
  if (missing <= 0) return text;
  meter.bytes(missing);
  const auto n = static_cast<size_t>(missing);
  if (spec.left) return text + std::string(n, spec.fill);
  if (spec.center) return std::string(n / 2, spec.fill) + text + std::string(n - n / 2, spec.fill);
  if (spec.zero && number) {
    const size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+' || text[0] == ' ') ? 1 : 0;
    return text.substr(0, sign) + std::string(n, '0') + text.substr(sign);
  }
  return std::string(n, spec.fill) + text;
}

std::string number_text(Meter& meter, const Value& v, char conversion, const Spec& spec) {
  if (v.is(Kind::undefined)) meter.fail(v.complaint());
  if (!v.is_number()) meter.fail(fmt::format("a format of numbers got {}", kind_name(v)));
  std::string digits;
  bool negative;
  if (std::string_view("diuxXob").find(conversion) != std::string_view::npos) {
    if (v.is(Kind::real) && !(std::abs(v.number()) < 9.2e18)) meter.fail("a float that is no integer of 64 bits");
    const int64_t n = v.is(Kind::real) ? static_cast<int64_t>(v.number()) : v.integer();
    negative = n < 0;
    const uint64_t size = negative ? uint64_t{0} - static_cast<uint64_t>(n) : static_cast<uint64_t>(n);
    digits = conversion == 'x'   ? fmt::format("{:x}", size)
             : conversion == 'X' ? fmt::format("{:X}", size)
             : conversion == 'o' ? fmt::format("{:o}", size)
             : conversion == 'b' ? fmt::format("{:b}", size)
                                 : fmt::format("{}", size);
  } else {
    const int precision = spec.precision < 0 ? 6 : static_cast<int>(std::min<int64_t>(spec.precision, 100));
    const double x = v.number();
    negative = std::signbit(x) && !std::isnan(x);
    const double size = std::abs(x);
    switch (conversion) {
      case 'e': digits = fmt::format("{:.{}e}", size, precision); break;
      case 'E': digits = fmt::format("{:.{}E}", size, precision); break;
      case 'g': digits = fmt::format("{:.{}g}", size, std::max(1, precision)); break;
      case 'G': digits = fmt::format("{:.{}G}", size, std::max(1, precision)); break;
      case '%': digits = fmt::format("{:.{}f}%", size * 100, precision); break;
      default: digits = fmt::format("{:.{}f}", size, precision);
    }
  }
  const std::string sign = negative ? "-" : spec.plus ? "+" : spec.space ? " " : "";
  return padded(meter, sign + digits, spec, true);
}

std::string cut(const std::string& text, int64_t precision) {
  if (precision < 0 || character_count(text) <= precision) return text;
  std::string out;
  for (const std::string_view c : characters(text)) {
    if (precision-- == 0) break;
    out += c;
  }
  return out;
}

}  // namespace

std::string percent_format(Meter& meter, const std::string& format, const Value& arguments) {
  std::string out;
  size_t used = 0;
  bool named = false;
  const bool tuple = arguments.is_sequence(SequenceKind::tuple);
  const auto next = [&]() -> const Value& {
    if (!tuple) {
      if (used++ > 0) meter.fail("a format with fewer values than places");
      return arguments;
    }
    if (used >= arguments.sequence().elements.size()) meter.fail("a format with fewer values than places");
    return arguments.sequence().elements[used++];
  };
  for (size_t i = 0; i < format.size();) {
    if (format[i] != '%') {
      const size_t end = std::min(format.find('%', i), format.size());
      meter.bytes(static_cast<int64_t>(end - i));
      out.append(format, i, end - i);
      i = end;
      continue;
    }
    ++i;
    meter.step();
    const Value* value = nullptr;
    if (i < format.size() && format[i] == '(') {
      const size_t end = format.find(')', i);
      if (end == std::string::npos || !arguments.is(Kind::dict)) meter.fail("a format with a name needs a dict");
      const std::string key = format.substr(i + 1, end - i - 1);
      value = arguments.dict().find(key);
      if (!value) meter.fail(fmt::format("a format names '{}', which the dict lacks", key));
      named = true;
      i = end + 1;
    }
    Spec spec;
    for (; i < format.size() && std::string_view("-+ 0#").find(format[i]) != std::string_view::npos; ++i) {
      spec.left |= format[i] == '-';
      spec.plus |= format[i] == '+';
      spec.space |= format[i] == ' ';
      spec.zero |= format[i] == '0';
    }
    spec.width = number_at(meter, format, i);
    if (i < format.size() && format[i] == '.') spec.precision = number_at(meter, format, ++i);
    if (i >= format.size()) meter.fail("a format ends behind \"%\"");
    const char conversion = format[i++];
    if (conversion == '%') {
      out += '%';
      continue;
    }
    if (std::string_view("srdiuxXofFeEgG").find(conversion) == std::string_view::npos)
      meter.fail(fmt::format("a format with the unknown conversion \"{}\"", conversion));
    const Value& v = value ? *value : next();
    if (conversion == 's' || conversion == 'r') {
      std::string text;
      if (conversion == 's')
        append_text(meter, v, text);
      else
        append_repr(meter, v, text);
      out += padded(meter, cut(text, spec.precision), spec, false);
    } else {
      out += number_text(meter, v, conversion, spec);
    }
    meter.bytes(16);
  }
  const size_t given = tuple ? arguments.sequence().elements.size() : 1;
  const bool ignorable = arguments.is(Kind::dict) || arguments.is(Kind::undefined) || (arguments.is(Kind::sequence) && !tuple);
  if (used < given && !named && !ignorable) meter.fail("a format with more values than places");
  return out;
}

std::string brace_format(Interpreter& in, const std::string& format, const Arguments& arguments) {
  Meter& meter = in.meter;
  std::string out;
  size_t used = 0;
  for (size_t i = 0; i < format.size();) {
    const char c = format[i];
    if (c != '{' && c != '}') {
      const size_t end = std::min(format.find_first_of("{}", i), format.size());
      meter.bytes(static_cast<int64_t>(end - i));
      out.append(format, i, end - i);
      i = end;
      continue;
    }
    if (i + 1 < format.size() && format[i + 1] == c) {
      out += c;
      i += 2;
      continue;
    }
    if (c == '}') meter.fail("format(): a single \"}\"");
    meter.step();
    const size_t end = format.find('}', i);
    if (end == std::string::npos) meter.fail("format(): \"{\" without \"}\"");
    std::string field = format.substr(i + 1, end - i - 1), style;
    i = end + 1;
    if (field.find('{') != std::string::npos) meter.fail("format(): nested fields are not offered");
    if (const size_t colon = field.find(':'); colon != std::string::npos) {
      style = field.substr(colon + 1);
      field.resize(colon);
    }
    char as = '\0';
    if (const size_t mark = field.find('!'); mark != std::string::npos) {
      if (field.substr(mark) != "!s" && field.substr(mark) != "!r") meter.fail("format(): an unknown conversion");
      as = field[mark + 1];
      field.resize(mark);
    }
    const size_t path = std::min(field.find_first_of(".["), field.size());
    if (path < field.size()) meter.fail("format(): fields of fields are not offered");
    Value v;
    if (field.empty() || field.find_first_not_of("0123456789") == std::string::npos) {
      size_t at = 0;
      const size_t place = field.empty() ? used++ : static_cast<size_t>(number_at(meter, field, at));
      if (place >= arguments.positional.size()) meter.fail("format(): fewer values than places");
      v = arguments.positional[place];
    } else {
      const auto found = std::find_if(arguments.named.begin(), arguments.named.end(), [&](const auto& a) { return a.first == field; });
      if (found == arguments.named.end()) meter.fail(fmt::format("format(): no value is named '{}'", field));
      v = found->second;
    }
    Spec spec;
    size_t at = 0;
    const auto align = [&](size_t place) { return place < style.size() && std::string_view("<>^=").find(style[place]) != std::string_view::npos; };
    bool aligned = true;
    if (align(1)) {
      if (static_cast<unsigned char>(style[0]) >= 0x80) meter.fail("format(): fill with an ASCII character");
      spec.fill = style[0];
      at = 1;
    } else if (!align(0)) {
      aligned = false;
    }
    if (aligned) {
      spec.left = style[at] == '<';
      spec.center = style[at] == '^';
      ++at;
    }
    if (at < style.size() && (style[at] == '+' || style[at] == '-' || style[at] == ' ')) {
      spec.plus = style[at] == '+';
      spec.space = style[at] == ' ';
      ++at;
    }
    if (at < style.size() && style[at] == '0') {
      spec.zero = true;
      ++at;
    }
    spec.width = number_at(meter, style, at);
    if (at < style.size() && style[at] == '.') spec.precision = number_at(meter, style, ++at);
    char conversion = at < style.size() ? style[at++] : '\0';
    if (at < style.size() || (conversion && std::string_view("sdxXobfFeEgG%").find(conversion) == std::string_view::npos))
      meter.fail(fmt::format("format(): the style '{}' is not offered", style));
    if (as || conversion == 's' || (!conversion && !v.is_number()) || (!conversion && spec.precision < 0) || v.is(Kind::boolean)) {
      std::string text;
      if (as == 'r')
        append_repr(meter, v, text);
      else
        append_text(meter, v, text);
      const bool number = !as && v.is_number() && !v.is(Kind::boolean);
      if (number && !aligned) spec.left = false;
      else if (!aligned) spec.left = true;
      out += padded(meter, cut(text, number ? -1 : spec.precision), spec, number);
    } else {
      out += number_text(meter, v, conversion ? conversion : 'g', spec);
    }
    meter.bytes(16);
  }
  return out;
}

}  // namespace thimble::jinja
