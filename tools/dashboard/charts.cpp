// Charts as inline SVG. All are 360 units wide, so that several stand side by side on a wide page and one fills a phone
// with text of the same size.
#include "tools/dashboard/charts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "tensor/error.h"
#include "tools/dashboard/text.h"

namespace thimble::dashboard {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kWidth = 360;
constexpr double kCharacter = 5.9;  // mean advance of 11 px text

double number(const Json& j, const char* key, double fallback) {
  return j.contains(key) && j[key].is_number() ? j[key].get<double>() : fallback;
}
bool has_number(const Json& j, const char* key) { return j.contains(key) && j[key].is_number(); }
std::string text_of(const Json& j, const char* key) {
  return j.contains(key) && j[key].is_string() ? j[key].get<std::string>() : "";
}
bool flag(const Json& j, const char* key) { return j.contains(key) && j[key].is_boolean() && j[key].get<bool>(); }
const Json& list(const Json& j, const char* key) {
  static const Json kEmpty = Json::array();
  return j.contains(key) && j[key].is_array() ? j[key] : kEmpty;
}

// Coordinates with one decimal and no trailing zero.
std::string c(double x) {
  std::string s = fmt::format("{:.1f}", x);
  if (s.size() > 2 && s.compare(s.size() - 2, 2, ".0") == 0) s.resize(s.size() - 2);
  return s == "-0" ? "0" : s;
}

std::string line(double x1, double y1, double x2, double y2, const std::string& cls, const std::string& extra = "") {
  return fmt::format("<path class=\"{}\" d=\"M{} {}L{} {}\"{}/>", cls, c(x1), c(y1), c(x2), c(y2), extra);
}

// anchor: "" (start), "e" (end), "m" (middle).
std::string text(double x, double y, const std::string& content, const std::string& cls = "") {
  return fmt::format("<text x=\"{}\" y=\"{}\"{}>{}</text>", c(x), c(y), cls.empty() ? "" : " class=\"" + cls + "\"",
                     escape(content));
}

std::string tip_attribute(const std::string& tip) { return tip.empty() ? "" : " data-t=\"" + escape(tip) + "\""; }

std::string marker(double x, double y, int series, int shape, const std::string& tip, double r = 4.5) {
  const std::string head =
      fmt::format(" class=\"k s{}{}\"{}", series, shape >= 5 && shape <= 6 ? " o" : "", tip_attribute(tip));
  switch (shape) {
    case 1:
    case 6:
      return fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"{}/>", c(x - r + 0.5), c(y - r + 0.5),
                         c(2 * r - 1), c(2 * r - 1), head);
    case 2:
      return fmt::format("<path d=\"M{} {}l{} {}l{} {}l{} {}z\"{}/>", c(x), c(y - r - 1), c(r + 1), c(r + 1), c(-r - 1),
                         c(r + 1), c(-r - 1), c(-r - 1), head);
    case 3:
      return fmt::format("<path d=\"M{} {}l{} {}h{}z\"{}/>", c(x), c(y - r - 0.5), c(r + 0.5), c(2 * r), c(-2 * r - 1),
                         head);
    case 4:
      return fmt::format("<path d=\"M{} {}l{} {}h{}z\"{}/>", c(x), c(y + r + 0.5), c(r + 0.5), c(-2 * r), c(-2 * r - 1),
                         head);
    default:
      return fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"{}\"{}/>", c(x), c(y), c(shape == 7 ? r - 1.5 : r), head);
  }
}

struct Axis {
  double lo = 0, hi = 1, from = 0, to = 1;
  bool log = false;
  double operator()(double v) const {
    const double a = log ? std::log2(lo) : lo, b = log ? std::log2(hi) : hi,
                 x = log ? std::log2(std::max(v, 1e-300)) : v;
    return b == a ? 0.5 * (from + to) : from + (std::clamp(x, a, b) - a) / (b - a) * (to - from);
  }
};

// Round steps: 1, 2, 5 times a power of ten, about `count` of them.
double nice_step(double range, int count) {
  const double raw = std::max(range, 1e-9) / count, power = std::pow(10.0, std::floor(std::log10(raw)));
  for (double m : {1.0, 2.0, 5.0})
    if (raw <= m * power * 1.0001) return m * power;
  return 10 * power;
}

std::vector<double> ticks(double lo, double hi, int count) {
  const double step = nice_step(hi - lo, count);
  std::vector<double> out;
  for (double t = std::ceil(lo / step - 1e-9); t * step <= hi + 1e-9 * step; ++t) out.push_back(t * step);
  return out;
}

struct Range {
  double lo = INFINITY, hi = -INFINITY;
  void add(double x) {
    if (!std::isfinite(x)) return;
    lo = std::min(lo, x);
    hi = std::max(hi, x);
  }
  void add(const Json& j, std::initializer_list<const char*> keys) {
    for (const char* k : keys)
      if (has_number(j, k)) add(j[k].get<double>());
  }
  void settle(double least) {
    if (lo > hi) lo = 0, hi = 1;
    if (hi - lo < least) {
      const double middle = 0.5 * (lo + hi);
      lo = middle - least / 2;
      hi = middle + least / 2;
    }
  }
  void pad(double share) {
    const double d = (hi - lo) * share;
    lo -= d;
    hi += d;
  }
};

std::string open_svg(double height, const Json& panel) {
  return fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">", c(kWidth), c(height),
                     escape(text_of(panel, "title")));
}

// "62.4 (58.1 to 66.0)"
std::string value_text(const Json& j, const char* key) {
  std::string out = fixed(number(j, key, NAN), 1);
  if (has_number(j, "lo") && has_number(j, "hi"))
    out += fmt::format(" ({} to {})", fixed(j["lo"].get<double>(), 1), fixed(j["hi"].get<double>(), 1));
  return out;
}

std::string tip_of(const Json& j, const char* key, const std::string& title) {
  std::string out = title + "\n" + value_text(j, key);
  const std::string note = text_of(j, "note");
  return note.empty() ? out : out + "\n" + note;
}

// Labels of vertical marks in as few lines as keep them apart.
struct PlacedMark {
  double x = 0;
  std::string label;
  int level = 0;
  double left = 0;
};
std::vector<PlacedMark> place_marks(const Json& marks, const Axis& x, int& levels) {
  std::vector<PlacedMark> out;
  for (const Json& m : marks)
    if (has_number(m, "value")) out.push_back({x(m["value"].get<double>()), text_of(m, "label"), 0, 0});
  std::stable_sort(out.begin(), out.end(), [](const PlacedMark& a, const PlacedMark& b) { return a.x < b.x; });
  std::vector<double> ends;
  for (PlacedMark& m : out) {
    const double w = static_cast<double>(text_length(m.label)) * 5.3;
    m.left = std::clamp(m.x - w / 2, 0.0, kWidth - w);
    size_t level = 0;
    while (level < ends.size() && ends[level] + 6 > m.left) ++level;
    if (level == ends.size()) ends.push_back(0);
    ends[level] = m.left + w;
    m.level = static_cast<int>(level);
  }
  levels = static_cast<int>(ends.size());
  return out;
}

std::string forest(const Json& panel) {
  const Json& rows = list(panel, "rows");
  const bool stacked = flag(panel, "stacked"), zero = flag(panel, "zero");
  Range range;
  size_t longest = 0, longest_text = 0;
  for (const Json& r : rows) {
    range.add(r, {"value", "lo", "hi"});
    longest = std::max(longest, text_length(text_of(r, "label")));
    longest_text = std::max(longest_text, text_length(text_of(r, "text")));
  }
  for (const Json& m : list(panel, "marks")) range.add(m, {"value"});
  const double margin = number(panel, "margin", 0);
  if (zero) range.add(-1.5 * margin), range.add(1.5 * margin), range.add(0);
  range.settle(zero ? 1 : 10);
  range.pad(0.03);
  if (has_number(panel, "min")) range.lo = panel["min"].get<double>();
  if (has_number(panel, "max")) range.hi = panel["max"].get<double>();

  const double left = stacked ? 6 : std::min(static_cast<double>(longest) * kCharacter + 10, 150.0);
  const double right = kWidth - 8 - static_cast<double>(longest_text) * 6.2;
  const Axis x{range.lo, range.hi, left, right, false};
  int levels = 0;
  const auto marks = place_marks(list(panel, "marks"), x, levels);
  const double row_height = stacked ? 31 : 20, top = 4 + 12 * levels,
               bottom = top + row_height * static_cast<double>(rows.size()) + 2;
  std::string s = open_svg(bottom + 20, panel);
  if (zero && margin > 0)
    s += fmt::format("<rect class=\"band\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>", c(x(-margin)), c(top),
                     c(x(margin) - x(-margin)), c(bottom - top));
  for (double t : ticks(range.lo, range.hi, 5)) {
    s += line(x(t), top, x(t), bottom, zero && t == 0 ? "zero" : "grid");
    s += text(x(t), bottom + 13, fixed(t, nice_step(range.hi - range.lo, 5) < 1 ? 1 : 0), "m ax");
  }
  for (const PlacedMark& m : marks) {
    s += line(m.x, 12 * m.level + 12.0, m.x, bottom, "mark");
    s += text(m.left, 12 * m.level + 9.0, m.label, "mk");
  }
  double y = top + row_height / 2;
  for (const Json& r : rows) {
    const int series = static_cast<int>(number(r, "series", 1)), shape = static_cast<int>(number(r, "shape", 0));
    const double at = stacked ? y + 7 : y;
    const std::string label = text_of(r, "label"), tip = tip_of(r, "value", label);
    if (stacked)
      s += text(left, y - 4, shorten(label, 56), "lb");
    else
      s += text(left - 8, y + 4, shorten(label, 24), "e lb");
    if (has_number(r, "lo") && has_number(r, "hi"))
      s += line(x(r["lo"].get<double>()), at, x(r["hi"].get<double>()), at, fmt::format("ci s{}", series));
    if (has_number(r, "value")) s += marker(x(r["value"].get<double>()), at, series, shape, tip);
    if (!text_of(r, "text").empty()) s += text(kWidth - 2, at + 4, text_of(r, "text"), "e v");
    y += row_height;
  }
  return s + "</svg>";
}

// Direct labels at the right end of lines, pushed apart.
struct EndLabel {
  double y = 0;
  std::string label;
  int series = 0;
};
void spread(std::vector<EndLabel>& labels, double lo, double hi) {
  std::stable_sort(labels.begin(), labels.end(), [](const EndLabel& a, const EndLabel& b) { return a.y < b.y; });
  const double gap = labels.size() > 1 ? std::min(13.0, (hi - lo) / static_cast<double>(labels.size() - 1)) : 0;
  for (size_t i = 1; i < labels.size(); ++i) labels[i].y = std::max(labels[i].y, labels[i - 1].y + gap);
  if (!labels.empty() && labels.back().y > hi) {
    labels.back().y = hi;
    for (size_t i = labels.size() - 1; i-- > 0;) labels[i].y = std::min(labels[i].y, labels[i + 1].y - gap);
  }
}

std::string x_tick_text(double v, const std::string& format) {
  return format == "bytes" ? bytes_text(v) : fmt::format("{:g}", v);
}

std::string y_axis(const Range& range, const Axis& y, double left, double right) {
  std::string s;
  const double step = nice_step(range.hi - range.lo, 5);
  for (double t : ticks(range.lo, range.hi, 5)) {
    s += line(left, y(t), right, y(t), std::abs(t) < step * 1e-6 && range.lo < 0 ? "zero" : "grid");
    s += text(left - 5, y(t) + 4, fixed(t, step < 1 ? 1 : 0), "e ax");
  }
  return s;
}

std::string lines(const Json& panel) {
  Range xs, ys;
  std::vector<double> values;
  size_t longest = 0;
  for (const Json& series : list(panel, "series")) {
    longest = std::max(longest, std::min<size_t>(text_length(text_of(series, "label")), 22));
    for (const Json& p : list(series, "points")) {
      xs.add(p, {"x"});
      ys.add(p, {"y", "lo", "hi"});
      values.push_back(number(p, "x", 0));
    }
  }
  for (const Json& m : list(panel, "marks")) ys.add(m, {"value"});
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  ys.settle(10);
  ys.pad(0.04);
  const bool log = flag(panel, "log_x") && xs.lo > 0;
  if (xs.lo > xs.hi) xs.lo = 0, xs.hi = 1;
  const double height = 236, left = 32, right = kWidth - 14 - static_cast<double>(longest) * kCharacter, top = 10,
               bottom = height - 36;
  const Axis x{xs.lo, xs.hi, left + 8, right - 6, log}, y{ys.lo, ys.hi, bottom, top, false};
  std::string s = open_svg(height, panel) + y_axis(ys, y, left, right);

  double last = -1e9;
  for (double v : values) {
    const Json& names = panel.contains("x_names") ? panel["x_names"] : Json::object();
    const std::string key = fmt::format("{:g}", v);
    const std::string name = names.is_object() && names.contains(key) ? names[key].get<std::string>() : compact(v);
    const double half = static_cast<double>(text_length(name)) * 3.1;
    if (x(v) - half < last + 5) continue;
    s += text(x(v), bottom + 14, name, "m ax");
    last = x(v) + half;
  }
  s += text((left + right) / 2, height - 5, text_of(panel, "x_label"), "m ax");
  for (const Json& m : list(panel, "marks")) {
    if (!has_number(m, "value")) continue;
    const double at = y(m["value"].get<double>());
    s += line(left, at, right, at, "mark",
              tip_attribute(text_of(m, "label") + "\n" + fixed(m["value"].get<double>(), 1)));
    s += text(right, at - 3, text_of(m, "label"), "e mk");
  }
  std::vector<EndLabel> labels;
  for (const Json& series : list(panel, "series")) {
    const int colour = static_cast<int>(number(series, "series", 1)),
              shape = static_cast<int>(number(series, "shape", 0));
    const Json& points = list(series, "points");
    std::string path, whiskers, dots;
    for (const Json& p : points) {
      const double px = x(number(p, "x", 0)), py = y(number(p, "y", 0));
      path += fmt::format("{}{} {}", path.empty() ? "M" : "L", c(px), c(py));
      if (has_number(p, "lo") && has_number(p, "hi"))
        whiskers += fmt::format("M{} {}V{}", c(px), c(y(p["lo"].get<double>())), c(y(p["hi"].get<double>())));
      dots +=
          marker(px, py, colour, shape,
                 tip_of(p, "y",
                        text_of(series, "label") + ", " + text_of(panel, "x_label") + " " + compact(number(p, "x", 0))),
                 3.6);
    }
    if (!whiskers.empty()) s += fmt::format("<path class=\"ci thin s{}\" d=\"{}\"/>", colour, whiskers);
    if (flag(series, "dashed"))  // a bound, not a measurement
      s += fmt::format("<path class=\"mark\" d=\"{}\"/>", path);
    else
      s += fmt::format("<path class=\"ln s{}\" d=\"{}\"/>", colour, path) + dots;
    if (!points.empty()) labels.push_back({y(number(points.back(), "y", 0)), text_of(series, "label"), colour});
  }
  spread(labels, top + 2, bottom - 2);
  for (const EndLabel& l : labels) s += text(right + 4, l.y + 4, shorten(l.label, 22), fmt::format("el t{}", l.series));
  return s + "</svg>";
}

struct Box {
  double x0, y0, x1, y1;
  bool hits(const Box& o) const { return x0 < o.x1 && o.x0 < x1 && y0 < o.y1 && o.y0 < y1; }
};

std::string scatter(const Json& panel) {
  const Json& points = list(panel, "points");
  Range xs, ys;
  for (const Json& p : points) {
    xs.add(p, {"x"});
    ys.add(p, {"y", "lo", "hi"});
  }
  const bool log = flag(panel, "log_x") && xs.lo > 0, zero = flag(panel, "zero");
  if (zero) ys.add(-1), ys.add(1);
  ys.settle(10);
  ys.pad(0.05);
  const std::string format = text_of(panel, "x_format");
  if (log) {
    xs.lo /= 1.35;
    xs.hi *= 1.35;
  } else {
    xs.settle(1e-6);
    xs.pad(0.08);
  }
  const double height = 250, left = 34, right = kWidth - 8, top = 10, bottom = height - 36;
  const Axis x{xs.lo, xs.hi, left + 4, right - 4, log}, y{ys.lo, ys.hi, bottom, top, false};
  std::string s = open_svg(height, panel);
  if (zero)
    s += fmt::format("<rect class=\"band\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>", c(left), c(y(1)),
                     c(right - left), c(y(-1) - y(1)));
  s += y_axis(ys, y, left, right);
  std::vector<double> at;
  if (log) {
    for (int power = -3; power < 15; ++power)
      for (double m : {1.0, 2.0, 5.0}) {
        const double v = m * std::pow(10.0, power);
        if (v >= xs.lo && v <= xs.hi) at.push_back(v);
      }
  } else {
    at = ticks(xs.lo, xs.hi, 5);
  }
  double last = -1e9;
  for (double v : at) {
    const std::string name = x_tick_text(std::abs(v) < 1e-12 ? 0 : v, format);
    const double half = static_cast<double>(text_length(name)) * 3.1;
    if (x(v) - half < last + 8 || x(v) - half < left - 8 || x(v) + half > kWidth) continue;
    s += line(x(v), bottom, x(v), bottom + 4, "zero") + text(x(v), bottom + 15, name, "m ax");
    last = x(v) + half;
  }
  s += text((left + right) / 2, height - 5, text_of(panel, "x_label"), "m ax");
  if (flag(panel, "frontier")) {
    std::vector<std::pair<double, double>> front;
    for (const Json& p : points) front.push_back({number(p, "x", 0), number(p, "y", 0)});
    std::sort(front.begin(), front.end());
    std::string path;
    double best = -INFINITY;
    for (const auto& [px, py] : front)
      if (py > best) {
        path += path.empty() ? fmt::format("M{} {}", c(x(px)), c(y(py))) : fmt::format("H{}V{}", c(x(px)), c(y(py)));
        best = py;
      }
    if (!path.empty()) s += fmt::format("<path class=\"front\" d=\"{}H{}\"/>", path, c(right));
  }
  std::vector<Box> taken;
  for (const Json& p : points)
    taken.push_back(
        {x(number(p, "x", 0)) - 6, y(number(p, "y", 0)) - 6, x(number(p, "x", 0)) + 6, y(number(p, "y", 0)) + 6});
  std::string marks, labels;
  for (const Json& p : points) {
    const int series = static_cast<int>(number(p, "series", 1)), shape = static_cast<int>(number(p, "shape", 0));
    const double px = x(number(p, "x", 0)), py = y(number(p, "y", 0));
    if (has_number(p, "lo") && has_number(p, "hi"))
      s += line(px, y(p["lo"].get<double>()), px, y(p["hi"].get<double>()), fmt::format("ci thin s{}", series));
    const std::string tip = tip_of(p, "y", text_of(p, "label"));
    marks += marker(px, py, series, shape, tip);
    const std::string label = shorten(text_of(p, "label"), 38);
    const double w = static_cast<double>(text_length(label)) * 5.9;
    struct Place {
      double dx, dy;
      const char* anchor;
    };
    const Place places[] = {{8, 3.5, ""}, {-8, 3.5, "e"}, {0, -9, "m"}, {0, 17, "m"},
                            {6, -8, ""},  {-6, 16, "e"},  {6, 16, ""},  {-6, -8, "e"}};
    for (const Place& place : places) {  // a label without room stays in the tooltip
      const double x0 = px + place.dx -
                        (*place.anchor == 'e'   ? w
                         : *place.anchor == 'm' ? w / 2
                                                : 0),
                   baseline = py + place.dy;
      const Box b{x0, baseline - 9, x0 + w, baseline + 3};
      if (b.x0 < left || b.x1 > kWidth || b.y0 < 0 || b.y1 > bottom) continue;
      if (std::any_of(taken.begin(), taken.end(), [&](const Box& o) { return o.hits(b); })) continue;
      labels += text(px + place.dx, baseline, label, fmt::format("sl {} t{}", place.anchor, series));
      taken.push_back(b);
      break;
    }
  }
  return s + labels + marks + "</svg>";
}

std::string bars(const Json& panel) {
  const Json& rows = list(panel, "rows");
  double most = 0;
  size_t longest = 0;
  for (const Json& r : rows) {
    most = std::max(most, number(r, "value", 0));
    longest = std::max(longest, text_length(text_of(r, "label")));
  }
  most = number(panel, "max", most > 0 ? most : 1);
  const double left = std::min(static_cast<double>(longest) * kCharacter + 10, 170.0), right = kWidth - 46;
  const Axis x{0, most, left, right, false};
  std::string s = open_svg(static_cast<double>(rows.size()) * 22 + 6, panel);
  double y = 14;
  for (const Json& r : rows) {
    const double to = x(number(r, "value", 0));
    const int series = static_cast<int>(number(r, "series", 1));
    const std::string note = text_of(r, "note");
    s += text(left - 8, y + 4, shorten(text_of(r, "label"), 28), "e lb");
    s +=
        fmt::format("<rect class=\"k s{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"12\" rx=\"2\"{}/>", series, c(left),
                    c(y - 6), c(std::max(1.0, to - left)),
                    tip_attribute(text_of(r, "label") + "\n" + text_of(r, "text") + (note.empty() ? "" : "\n" + note)));
    s += text(std::max(to, left + 1) + 6, y + 4, text_of(r, "text"), "v");
    y += 22;
  }
  return s + "</svg>";
}

std::string heat(const Json& panel) {
  const Json& columns = list(panel, "columns");
  const Json& rows = list(panel, "rows");
  const Json& cells = list(panel, "cells");
  Range range;
  for (const Json& row : cells)
    for (const Json& cell : row)
      if (cell.is_object()) range.add(cell, {"value"});
  range.settle(0.1);
  const double left = 46, top = 30,
               width = (kWidth - left - 4) / std::max<double>(1, static_cast<double>(columns.size()));
  const double height = 26;
  std::string s = open_svg(top + height * static_cast<double>(rows.size()) + 4, panel);
  s += text(left + (kWidth - left) / 2, 11, text_of(panel, "x_label"), "m ax");
  s += text(left - 8, 25, text_of(panel, "y_label"), "e ax");
  for (size_t j = 0; j < columns.size(); ++j)
    s += text(left + width * (static_cast<double>(j) + 0.5), 25, columns[j].get<std::string>(), "m ax");
  for (size_t i = 0; i < cells.size() && i < rows.size(); ++i) {
    const double y = top + height * static_cast<double>(i);
    s += text(left - 8, y + 17, rows[i].get<std::string>(), "e ax");
    for (size_t j = 0; j < cells[i].size(); ++j) {
      const Json& cell = cells[i][j];
      if (!cell.is_object()) continue;
      const double v = number(cell, "value", 0), share = (v - range.lo) / (range.hi - range.lo),
                   x = left + width * static_cast<double>(j);
      s += fmt::format(
          "<rect class=\"ht\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"2\" fill-opacity=\"{:.2f}\"{}/>",
          c(x + 1), c(y + 1), c(width - 2), c(height - 2), 0.06 + 0.84 * share,
          tip_attribute(tip_of(cell, "value",
                               text_of(panel, "x_label") + " " + columns[j].get<std::string>() + ", " +
                                   text_of(panel, "y_label") + " " + rows[i].get<std::string>())));
      s += text(x + width / 2, y + 17, fixed(v, 1), share > 0.55 ? "m hv on" : "m hv");
    }
  }
  return s + "</svg>";
}

}  // namespace

std::string chart_svg(const Json& panel) {
  const std::string type = text_of(panel, "type");
  if (type == "forest") return forest(panel);
  if (type == "line") return lines(panel);
  if (type == "scatter") return scatter(panel);
  if (type == "bars") return bars(panel);
  if (type == "heat") return heat(panel);
  throw Error(ErrorCode::internal, "chart: type " + type + " is none of forest, line, scatter, bars, heat");
}

}  // namespace thimble::dashboard
