// Trend charts. Colours are classes of the page: s0 and t0 grey, s1 blue; slower and faster are the page's no and yes.
#include "tools/bench/trend.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "tools/dashboard/text.h"

namespace thimble::bench_tools {
namespace {

using dashboard::escape;

std::string c(double x) {
  std::string s = fmt::format("{:.1f}", x);
  if (s.size() > 2 && s.compare(s.size() - 2, 2, ".0") == 0) s.resize(s.size() - 2);
  return s == "-0" ? "0" : s;
}

struct Scale {
  double lo, hi, from, to;
  double operator()(double v) const { return hi <= lo ? 0.5 * (from + to) : from + (v - lo) / (hi - lo) * (to - from); }
};

// Range of the intervals; wild ones are cut off at a few times the spread of the medians, so that one bad record does
// not flatten all others.
std::pair<double, double> range_of(const Series& s, double least_share) {
  double lo = INFINITY, hi = 0, lowest = INFINITY, highest = 0;
  for (const Point& p : s.points) {
    lowest = std::min(lowest, p.seconds.median);
    highest = std::max(highest, p.seconds.median);
    lo = std::min(lo, p.seconds.lo);
    hi = std::max(hi, p.seconds.hi);
  }
  const double spread = std::max(highest - lowest, 0.25 * highest);
  lo = std::max({lo, lowest - spread, 0.0});
  hi = std::min(hi, highest + spread);
  const double least = least_share * highest, short_of = least - (hi - lo);
  if (short_of > 0) {
    lo = std::max(0.0, lo - short_of / 2);
    hi += short_of / 2;
  }
  return {lo, hi};
}

std::string mark(double x, double y, const Point& p, double r, const std::string& tip) {
  const Verdict v = p.has_change ? p.change.verdict : Verdict::same;
  if (v == Verdict::slower)
    return fmt::format("<path class=\"slower\" d=\"M{} {}l{} {}h{}z\"{}/>", c(x), c(y - r - 1.5), c(r + 1), c(2 * r),
                       c(-2 * r - 2), tip);
  if (v == Verdict::faster)
    return fmt::format("<path class=\"faster\" d=\"M{} {}l{} {}h{}z\"{}/>", c(x), c(y + r + 1.5), c(r + 1), c(-2 * r),
                       c(-2 * r - 2), tip);
  return fmt::format("<circle class=\"k s1\" cx=\"{}\" cy=\"{}\" r=\"{}\"{}/>", c(x), c(y), c(r - 0.7), tip);
}

std::string tip_of(const History& h, const Point& p) {
  const Record& r = *h.records[p.record];
  std::string s = fmt::format("{} ({}{})\n{}", short_commit(r), r.date.substr(0, 16),
                              r.compiler.empty() ? "" : ", " + r.compiler, short_time(p.seconds.median));
  if (p.row->seconds.size() > 1) s += fmt::format(" ({} to {})", short_time(p.seconds.lo), short_time(p.seconds.hi));
  s += ", " + dashboard::plural(static_cast<int64_t>(p.row->seconds.size()), "run");
  if (p.has_change)
    s += fmt::format("\n{} to the record before: {} times ({} to {}), threshold {:.1f} %",
                     verdict_name(p.change.verdict), dashboard::fixed(p.change.ratio, 3),
                     dashboard::fixed(p.change.lo, 3), dashboard::fixed(p.change.hi, 3), 100 * p.change.threshold);
  return s;
}

}  // namespace

std::string short_time(double s) {
  if (!std::isfinite(s)) return "–";
  const double scale = s < 1e-6 ? 1e9 : s < 1e-3 ? 1e6 : s < 1 ? 1e3 : 1;
  return fmt::format("{:.4g} {}", s * scale, scale == 1e9 ? "ns" : scale == 1e6 ? "µs" : scale == 1e3 ? "ms" : "s");
}

std::string short_name(const std::string& name) {
  const RowName parts = parse_row_name(name);
  std::string s = parts.kernel;
  if (!parts.tier.empty()) s += "/" + parts.tier;
  return parts.shape.empty() ? s : s + "/" + parts.shape;
}

std::string short_commit(const Record& r) {
  const size_t dash = r.commit.find("-dirty");
  const std::string hash = r.commit.substr(0, std::min(dash, size_t{9}));
  return hash.empty() ? "?" : hash + (dash == std::string::npos ? "" : "+");
}

std::string trend_svg(const History& h, const Series& s) {
  constexpr double kWidth = 360, kHeight = 168, kLeft = 56, kRight = kWidth - 10, kTop = 10, kBottom = kHeight - 34;
  const auto [lo, hi] = range_of(s, 0.12);
  const double last = static_cast<double>(h.records.size()) - 1;
  const Scale x{0, last, kLeft + 10, kRight - 8}, y{lo, hi, kBottom - 4, kTop + 4};
  std::string out = fmt::format("<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">", kWidth, kHeight,
                                escape(short_name(s.name)));
  const double raw = (hi - lo) / 4, power = std::pow(10.0, std::floor(std::log10(std::max(raw, 1e-15))));
  const double step = raw <= power ? power : raw <= 2 * power ? 2 * power : raw <= 5 * power ? 5 * power : 10 * power;
  for (double t = std::ceil(lo / step) * step; t <= hi * (1 + 1e-9); t += step)
    out += fmt::format("<path class=\"grid\" d=\"M{} {}H{}\"/><text class=\"e ax\" x=\"{}\" y=\"{}\">{}</text>",
                       c(kLeft), c(y(t)), c(kRight), c(kLeft - 5), c(y(t) + 4), escape(short_time(t)));
  double taken = -1e9;
  for (size_t i = 0; i < h.records.size(); ++i) {
    // The last name is worth more than the one before it.
    const std::string name = short_commit(*h.records[i]);
    const double half = 3.2 * static_cast<double>(name.size()),
                 at = std::clamp(x(static_cast<double>(i)), half, kWidth - half);
    const bool is_last = i + 1 == h.records.size();
    const double end =
        std::clamp(x(last), 0.0, kWidth - 3.2 * static_cast<double>(short_commit(*h.records.back()).size()));
    if (at - half < taken + 6 || (!is_last && at + half > end - half - 6)) continue;
    out += fmt::format("<text class=\"m ax\" x=\"{}\" y=\"{}\">{}</text>", c(at), c(kBottom + 14), escape(name));
    const std::string day = h.records[i]->date.substr(0, 10);
    if (half > 20)
      out += fmt::format("<text class=\"m ax mk\" x=\"{}\" y=\"{}\">{}</text>", c(at), c(kBottom + 27), escape(day));
    taken = at + half;
  }
  std::string path, whiskers, marks;
  for (const Point& p : s.points) {
    const double px = x(static_cast<double>(p.record)), py = std::clamp(y(p.seconds.median), kTop, kBottom);
    path += fmt::format("{}{} {}", path.empty() ? "M" : "L", c(px), c(py));
    if (p.row->seconds.size() > 1)
      whiskers += fmt::format("M{} {}V{}", c(px), c(std::clamp(y(p.seconds.lo), kTop, kBottom)),
                              c(std::clamp(y(p.seconds.hi), kTop, kBottom)));
    marks += mark(px, py, p, 4.2, " data-t=\"" + escape(tip_of(h, p)) + "\"");
  }
  out += fmt::format("<path class=\"ln s0\" d=\"{}\" opacity=\".55\"/>", path);
  if (!whiskers.empty()) out += fmt::format("<path class=\"ci thin s1\" d=\"{}\"/>", whiskers);
  return out + marks + "</svg>";
}

std::string sparkline_svg(const History& h, const Series& s) {
  constexpr double kWidth = 120, kHeight = 24;
  const auto [lo, hi] = range_of(s, 0.10);
  const Scale x{0, static_cast<double>(h.records.size()) - 1, 5, kWidth - 5}, y{lo, hi, kHeight - 4, 4};
  std::string path, whiskers, marks;
  for (const Point& p : s.points) {
    const double px = x(static_cast<double>(p.record)), py = std::clamp(y(p.seconds.median), 3.0, kHeight - 3);
    path += fmt::format("{}{} {}", path.empty() ? "M" : "L", c(px), c(py));
    if (p.row->seconds.size() > 1)
      whiskers += fmt::format("M{} {}V{}", c(px), c(std::clamp(y(p.seconds.lo), 1.0, kHeight - 1)),
                              c(std::clamp(y(p.seconds.hi), 1.0, kHeight - 1)));
    const bool changed = p.has_change && (p.change.verdict == Verdict::slower || p.change.verdict == Verdict::faster);
    if (changed || &p == &s.points.back()) marks += mark(px, py, p, 3, "");
  }
  std::string out = fmt::format("<svg class=\"spark\" viewBox=\"0 0 {} {}\" aria-hidden=\"true\">", kWidth, kHeight);
  if (!whiskers.empty()) out += fmt::format("<path class=\"s1\" opacity=\".35\" d=\"{}\"/>", whiskers);
  return out + fmt::format("<path class=\"ln s0\" d=\"{}\"/>", path) + marks + "</svg>";
}

}  // namespace thimble::bench_tools
