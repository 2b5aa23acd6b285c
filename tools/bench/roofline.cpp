// Draws rooflines. In the plane of log intensity and log rate a fraction of a roof is a distance, the same everywhere.
#include "tools/bench/roofline.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "kernels/kernel_table.h"
#include "tensor/error.h"
#include "tools/dashboard/text.h"

namespace thimble::bench_tools {
namespace {

using dashboard::escape;

constexpr double kWidth = 1180, kHeight = 720;
constexpr double kLeft = 66, kTop = 62, kBottom = kHeight - 56;
constexpr double kMargin = 64;      // strips for rows without flops (left) or without bytes (right)
constexpr double kLegend = 196;     // right of everything
constexpr double kCharacter = 6.9;  // of 11.5 px text, in a wide font

struct Family {
  const char *name, *words;
  int series, shape;  // colour and marker of tools/dashboard
};
constexpr Family kFamilies[] = {
    {"gemm", "gemm, gemv, panels", 1, 0},
    {"attention", "attention", 3, 2},
    {"rows", "norms, softmax, rows", 4, 1},
    {"elementwise", "elementwise", 2, 3},
    {"convert", "conversions", 5, 4},
    {"pack", "packing", 6, 1},
    {"probe", "probes", 0, 0},
    {"driver", "drivers (whole products)", 7, 2},
    {"model", "whole models", 1, 3},
    {"other", "other", 0, 1},
};
const Family& family_of(const std::string& name) {
  for (const Family& f : kFamilies)
    if (name == f.name) return f;
  return kFamilies[std::size(kFamilies) - 1];
}

std::string c(double x) {
  std::string s = fmt::format("{:.1f}", x);
  if (s.size() > 2 && s.compare(s.size() - 2, 2, ".0") == 0) s.resize(s.size() - 2);
  return s == "-0" ? "0" : s;
}

// A logarithmic axis.
struct Axis {
  double lo, hi, from, to;
  double operator()(double v) const {
    return from + (std::log10(std::max(v, 1e-300)) - std::log10(lo)) / (std::log10(hi) - std::log10(lo)) * (to - from);
  }
};

std::string marker(double x, double y, const Family& f, bool best, const std::string& tip) {
  const std::string head = fmt::format(" class=\"k s{}{}\"{}", f.series, best ? "" : " dim", tip);
  const std::string tail = tip.rfind("><", 0) == 0 ? "" : "/>";
  const double r = best ? 4.6 : 3;
  switch (f.shape) {
    case 1:
      return fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"{}{}", c(x - r + 0.6), c(y - r + 0.6),
                         c(2 * r - 1.2), c(2 * r - 1.2), head, tail);
    case 2:
      return fmt::format("<path d=\"M{} {}l{} {}l{} {}l{} {}z\"{}{}", c(x), c(y - r - 1), c(r + 1), c(r + 1), c(-r - 1),
                         c(r + 1), c(-r - 1), c(-r - 1), head, tail);
    case 3:
      return fmt::format("<path d=\"M{} {}l{} {}h{}z\"{}{}", c(x), c(y - r - 0.8), c(r + 0.6), c(2 * r),
                         c(-2 * r - 1.2), head, tail);
    case 4:
      return fmt::format("<path d=\"M{} {}l{} {}h{}z\"{}{}", c(x), c(y + r + 0.8), c(r + 0.6), c(-2 * r),
                         c(-2 * r - 1.2), head, tail);
    default:
      return fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"{}\"{}{}", c(x), c(y), c(r), head, tail);
  }
}

std::string rate_text(double ops) {
  return ops >= 1e12  ? fmt::format("{:.3g} T", ops / 1e12)
         : ops >= 1e9 ? fmt::format("{:.3g} G", ops / 1e9)
         : ops >= 1e6 ? fmt::format("{:.3g} M", ops / 1e6)
                      : fmt::format("{:.3g} ", ops);
}

std::string time_words(double s) {
  return s < 1e-6   ? fmt::format("{:.3g} ns", s * 1e9)
         : s < 1e-3 ? fmt::format("{:.3g} µs", s * 1e6)
         : s < 1    ? fmt::format("{:.3g} ms", s * 1e3)
                    : fmt::format("{:.3g} s", s);
}

std::string words_of(const RooflinePoint& p) {
  std::string s = fmt::format("{}\n{}, median of {}", p.name, time_words(p.seconds),
                              dashboard::plural(static_cast<int64_t>(p.runs), "run"));
  if (p.flops > 0) s += fmt::format("\n{}op/s", rate_text(p.flops / p.seconds));
  if (p.bytes > 0) s += fmt::format("\n{}B/s", rate_text(p.bytes / p.seconds));
  if (p.flops > 0 && p.bytes > 0) s += fmt::format(", {:.3g} operations per byte", p.flops / p.bytes);
  if (p.roof_fraction > 0) s += fmt::format("\n{:.0f} % of its roof, by its own count", 100 * p.roof_fraction);
  return s;
}

struct Box {
  double x0, y0, x1, y1;
  bool hits(const Box& o) const { return x0 < o.x1 && o.x0 < x1 && y0 < o.y1 && o.y0 < y1; }
};

struct Line {
  double x0, y0, x1, y1;
  std::string cls;
};

struct Compute {
  const char* name;
  double Peaks::*field;
  int series;
};
constexpr Compute kComputes[] = {
    {"int8", &Peaks::int8_gops, 2}, {"bf16", &Peaks::bf16_gflops, 3}, {"f32", &Peaks::f32_gflops, 1}};

constexpr char kStyle[] = R"CSS(
svg{--card:#fff;--ink:#1b1f24;--soft:#59626e;--grid:#eceef1;--band:#f4f6f8;--c0:#6b7280;--c1:#0072b2;--c2:#c84e00;--c3:#a3428c;--c4:#00805c;--c5:#a87400;--c6:#3a8fc4;--c7:#7a5230;background:var(--card)}
@media(prefers-color-scheme:dark){svg{--card:#1c2026;--ink:#e8eaed;--soft:#a3acb8;--grid:#2a2f37;--band:#22272e;--c0:#9aa4b2;--c1:#56b4e9;--c2:#ff8f57;--c3:#e09ad0;--c4:#3ccb9a;--c5:#f0c24b;--c6:#a5d8f7;--c7:#cfa683}}
text{fill:var(--ink);font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
.e{text-anchor:end}.m{text-anchor:middle}.ax{fill:var(--soft)}.grid{stroke:var(--grid)}.band{fill:var(--band)}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}.s4{stroke:var(--c4)}.s5{stroke:var(--c5)}.s6{stroke:var(--c6)}.s7{stroke:var(--c7)}
.k.s0{fill:var(--c0)}.k.s1{fill:var(--c1)}.k.s2{fill:var(--c2)}.k.s3{fill:var(--c3)}.k.s4{fill:var(--c4)}.k.s5{fill:var(--c5)}.k.s6{fill:var(--c6)}.k.s7{fill:var(--c7)}
.t0{fill:var(--c0)}.t1{fill:var(--c1)}.t2{fill:var(--c2)}.t3{fill:var(--c3)}.t4{fill:var(--c4)}.t5{fill:var(--c5)}.t6{fill:var(--c6)}.t7{fill:var(--c7)}
)CSS";
// Names that a page's own style does not have.
constexpr char kOwnStyle[] =
    ".rl .dim{opacity:.38}.rl .roof{fill:none;stroke-width:2}.rl .many{stroke-dasharray:6 4;stroke-width:1.4}.rl "
    ".bw{stroke:var(--ink)}.rl .h{font-weight:600;font-size:15px}.rl "
    ".lead{stroke:var(--soft);stroke-width:.7}";

class Drawing {
 public:
  Drawing(const RooflineData& data, bool standalone) : data_(data), standalone_(standalone) {}

  std::string draw() {
    set_axes();
    frame();
    roofs();
    points();
    labels();
    legend();
    const std::string size = standalone_ ? fmt::format(" width=\"{}\" height=\"{}\"", kWidth, kHeight)
                                         : " style=\"max-width:100%;font-size:11.5px\"";
    return fmt::format(
               "<svg{} class=\"rl\" viewBox=\"0 {} {} {}\"{} role=\"img\" aria-label=\"{}\"><style>{}{}</style>\n",
               standalone_ ? " xmlns=\"http://www.w3.org/2000/svg\"" : "", standalone_ ? 0 : kTop - 26, kWidth,
               standalone_ ? kHeight : kHeight - kTop + 26, size, escape(data_.title), standalone_ ? kStyle : "",
               kOwnStyle) +
           out_ + "</svg>\n";
  }

 private:
  static double right() { return kWidth - kLegend; }
  double plot_left() const { return kLeft + (left_strip_ ? kMargin : 0); }
  double plot_right() const { return right() - (right_strip_ ? kMargin : 0); }

  void set_axes() {
    double x_lo = 1e30, x_hi = 0, y_lo = 1e30, y_hi = 0;
    for (const RooflinePoint& p : data_.points) {
      if (p.flops > 0) {
        y_lo = std::min(y_lo, p.flops / p.seconds);
        y_hi = std::max(y_hi, p.flops / p.seconds);
      }
      if (p.flops > 0 && p.bytes > 0) {
        x_lo = std::min(x_lo, p.flops / p.bytes);
        x_hi = std::max(x_hi, p.flops / p.bytes);
      }
      left_strip_ = left_strip_ || p.flops <= 0;
      right_strip_ = right_strip_ || p.bytes <= 0;
    }
    double slowest_bandwidth = 1e30;
    for (const Peaks& r : data_.roofs) {
      for (const Compute& k : kComputes) {
        y_hi = std::max(y_hi, r.*k.field * 1e9);
        if (r.read_gbs > 0) x_hi = std::max(x_hi, r.*k.field / r.read_gbs * 2);
      }
      if (r.read_gbs > 0) slowest_bandwidth = std::min(slowest_bandwidth, r.read_gbs * 1e9);
    }
    if (x_hi <= 0) x_lo = 0.1, x_hi = 100;
    x_lo = std::min(x_lo, x_hi / 100) / 1.6;
    x_hi *= 1.8;
    x_ = Axis{x_lo, x_hi, plot_left(), plot_right()};
    for (const RooflinePoint& p : data_.points)
      if (p.flops <= 0) {
        y_lo = std::min(y_lo, p.bytes / p.seconds * x_lo);
        y_hi = std::max(y_hi, p.bytes / p.seconds * x_lo);
      }
    if (slowest_bandwidth < 1e30) y_lo = std::min(y_lo, slowest_bandwidth * x_lo);
    if (y_hi <= 0) y_lo = 1e8, y_hi = 1e11;
    y_ = Axis{std::min(y_lo, y_hi / 100) / 1.6, y_hi * 1.9, kBottom, kTop};
  }

  void text(double x, double y, const std::string& content, const std::string& cls) {
    out_ += fmt::format("<text x=\"{}\" y=\"{}\" class=\"{}\">{}</text>\n", c(x), c(y), cls, escape(content));
  }
  void line(double x0, double y0, double x1, double y1, const std::string& cls) {
    out_ += fmt::format("<path class=\"{}\" d=\"M{} {}L{} {}\"/>\n", cls, c(x0), c(y0), c(x1), c(y1));
  }

  void frame() {
    if (standalone_) {
      text(kLeft, 24, data_.title, "h");
      text(kLeft, 43, data_.subtitle, "ax");
    }
    if (left_strip_) {
      out_ += fmt::format("<rect class=\"band\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\n", c(kLeft), c(kTop),
                          c(kMargin - 8), c(kBottom - kTop));
      text(kLeft + kMargin / 2 - 4, kBottom + 15, "bytes only", "m ax");
    }
    if (right_strip_) {
      out_ += fmt::format("<rect class=\"band\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"/>\n", c(plot_right() + 8),
                          c(kTop), c(kMargin - 8), c(kBottom - kTop));
      text(right() - kMargin / 2 + 4, kBottom + 15, "no bytes", "m ax");
    }
    for (int power = -6; power < 18; ++power) {
      const double v = std::pow(10.0, power);
      if (v >= x_.lo && v <= x_.hi) {
        line(x_(v), kTop, x_(v), kBottom, "grid");
        text(x_(v), kBottom + 15, fmt::format("{:g}", v), "m ax");
      }
      if (v >= y_.lo && v <= y_.hi) {
        line(kLeft, y_(v), right(), y_(v), "grid");
        text(kLeft - 7, y_(v) + 4, rate_text(v), "e ax");
      }
      for (const double m : {2.0, 5.0}) {  // few decades want more names
        if (m * v >= x_.lo && m * v <= x_.hi && x_.hi / x_.lo < 1e4)
          text(x_(m * v), kBottom + 15, fmt::format("{:g}", m * v), "m ax");
      }
    }
    text((plot_left() + plot_right()) / 2, kBottom + 36, "operations per byte of unavoidable memory traffic", "m ax");
    text(kLeft - 7, kTop - 8, "op/s", "e ax");
  }

  void roofs() {
    for (const Peaks& r : data_.roofs) {
      const bool many = r.threads > 1;
      double top = 0;
      for (const Compute& k : kComputes) top = std::max(top, r.*k.field * 1e9);
      if (top <= 0) continue;
      const double bandwidth = r.read_gbs * 1e9;
      const auto roof_class = [many](const std::string& colour) { return "roof " + colour + (many ? " many" : ""); };
      for (const Compute& k : kComputes) {
        const double peak = r.*k.field * 1e9;
        if (peak <= 0) continue;
        const double from = bandwidth > 0 ? std::clamp(peak / bandwidth, x_.lo, x_.hi) : x_.lo;
        line(x_(from), y_(peak), right(), y_(peak), roof_class(fmt::format("s{}", k.series)));
        roof_labels_.push_back(
            {y_(peak),
             fmt::format("{}{} {}op/s", many ? fmt::format("{} threads: ", r.threads) : "", k.name, rate_text(peak)),
             k.series});
      }
      if (bandwidth <= 0) continue;
      const double from = x_.lo, to = std::min(top / bandwidth, x_.hi),
                   start = std::max(kLeft, x_(from) - (left_strip_ ? kMargin : 0));
      // The strip on the left has no intensity of its own: the roof goes on level, at the height of its edge.
      line(x_(from), y_(bandwidth * from), x_(to), y_(bandwidth * to), roof_class("bw"));
      if (left_strip_) line(start, y_(bandwidth * from), x_(from), y_(bandwidth * from), roof_class("bw"));
      const double at = std::pow(10.0, std::log10(from) + (many ? 0.36 : 0.18) * (std::log10(to) - std::log10(from)));
      const double angle =
          std::atan2(y_(bandwidth * to) - y_(bandwidth * from), x_(to) - x_(from)) * 180 / 3.14159265358979;
      const std::string name =
          fmt::format("{}read {:.3g} GB/s", many ? fmt::format("{} threads: ", r.threads) : "", r.read_gbs);
      const double lift = many || data_.roofs.size() == 1 ? -6 : 15;  // two lines that are close: one above, one below
      out_ += fmt::format("<text x=\"{0}\" y=\"{1}\" transform=\"rotate({2} {0} {1})\">{3}</text>\n", c(x_(at)),
                          c(y_(bandwidth * at) + lift), c(angle), escape(name));
      const double slope = (y_(bandwidth * to) - y_(bandwidth * from)) / (x_(to) - x_(from));
      for (size_t i = 0; i < name.size(); ++i) {
        const double bx = x_(at) + kCharacter * static_cast<double>(i) * std::cos(angle * 3.14159265358979 / 180),
                     by = y_(bandwidth * at) + lift - 4 + slope * (bx - x_(at));
        taken_.push_back({bx - 4, by - 7, bx + 8, by + 7});
      }
    }
    std::stable_sort(roof_labels_.begin(), roof_labels_.end(),
                     [](const RoofLabel& a, const RoofLabel& b) { return a.y < b.y; });
    double last = -1e9;
    for (RoofLabel& l : roof_labels_) {
      const double y = std::max(l.y + 4, last + 14);
      if (y > l.y + 6) line(right() + 1, l.y, right() + 6, y - 4, "lead");
      text(right() + 8, y, l.text, fmt::format("t{}", l.series));
      last = y;
    }
    legend_top_ = std::max(last + 22, kTop + 150);
  }

  void points() {
    // The best are drawn last, above the others.
    for (const bool best : {false, true}) {
      size_t nth_left = 0, nth_right = 0;
      for (const RooflinePoint& p : data_.points) {
        if (p.best != best) continue;
        Placed at;
        at.point = &p;
        if (p.flops <= 0) {
          at.x = kLeft + 8 + 8.0 * static_cast<double>(nth_left++ % 6);
          at.y = y_(p.bytes / p.seconds * x_.lo);
        } else {
          at.x = p.bytes > 0 ? x_(p.flops / p.bytes) : plot_right() + 15 + 8.0 * static_cast<double>(nth_right++ % 6);
          at.y = y_(p.flops / p.seconds);
        }
        const std::string words = escape(words_of(p));
        const std::string tip = standalone_ ? "><title>" + words + "</title>" : " data-t=\"" + words + "\"";
        const Family& f = family_of(p.parts.family);
        std::string mark = marker(at.x, at.y, f, p.best, tip);
        if (standalone_) mark += f.shape == 0 ? "</circle>" : f.shape == 1 ? "</rect>" : "</path>";
        out_ += mark + "\n";
        if (best) placed_.push_back(at);
        taken_.push_back({at.x - 4, at.y - 4, at.x + 4, at.y + 4});
      }
    }
  }

  // One label per kernel, at the shape that reaches most of its roof; where it finds no room the hover text remains.
  void labels() {
    std::map<std::string, std::vector<const Placed*>> kernels;
    for (const Placed& p : placed_) kernels[p.point->parts.kernel].push_back(&p);
    std::vector<std::vector<const Placed*>> order;
    for (auto& [name, list] : kernels) {
      std::stable_sort(list.begin(), list.end(), [](const Placed* a, const Placed* b) {
        return a->point->roof_fraction > b->point->roof_fraction;
      });
      order.push_back(list);
    }
    std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.size() < b.size(); });
    for (const auto& list : order) {
      bool done = false;
      for (const Placed* p : list)
        if (!done) done = place(*p);
    }
  }

  struct Placed {
    double x = 0, y = 0;
    const RooflinePoint* point = nullptr;
  };
  struct RoofLabel {
    double y;
    std::string text;
    int series;
  };

  bool place(const Placed& p) {
    const std::string label = dashboard::shorten(p.point->parts.kernel, 28);
    const double w = static_cast<double>(dashboard::text_length(label)) * kCharacter;
    struct Try {
      double dx, dy;
      const char* anchor;
    };
    constexpr Try kTries[] = {{8, 4, ""},      {-8, 4, "e"},   {0, -9, "m"},  {0, 18, "m"},  {8, -8, ""},
                              {8, 16, ""},     {-8, -8, "e"},  {-8, 16, "e"}, {12, -18, ""}, {12, 26, ""},
                              {-12, -18, "e"}, {-12, 26, "e"}, {16, -30, ""}, {16, 38, ""},  {-16, -30, "e"},
                              {-16, 38, "e"},  {24, -44, ""},  {24, 52, ""}};
    for (const Try& t : kTries) {
      const double x = p.x + t.dx, y = p.y + t.dy, x0 = *t.anchor == 'e' ? x - w : *t.anchor == 'm' ? x - w / 2 : x;
      const Box box{x0 - 1, y - 10, x0 + w + 1, y + 3};
      if (box.x0 < kLeft || box.x1 > right() || box.y0 < kTop || box.y1 > kBottom) continue;
      if (std::any_of(taken_.begin(), taken_.end(), [&](const Box& o) { return o.hits(box); })) continue;
      if (std::abs(t.dy) > 17 && *t.anchor != 'm') line(p.x, p.y, x, t.dy < 0 ? y + 3 : y - 9, "lead");
      text(x, y, label, fmt::format("{} t{}", t.anchor, family_of(p.point->parts.family).series));
      taken_.push_back(box);
      return true;
    }
    return false;
  }

  void legend() {
    double y = legend_top_;
    const double x = right() + 14;
    std::set<std::string> seen;
    bool others = false;
    for (const RooflinePoint& p : data_.points) {
      seen.insert(family_of(p.parts.family).name);
      others = others || !p.best;
    }
    for (const Family& f : kFamilies) {
      if (seen.count(f.name) == 0) continue;
      out_ += marker(x, y - 4, f, true, "") + "\n";
      text(x + 11, y, f.words, "");
      y += 18;
    }
    if (others) {
      out_ += marker(x, y - 4, kFamilies[0], false, "") + "\n";
      text(x + 11, y, "pale: a lower tier", "ax");
      y += 18;
    }
    y += 4;
    for (const Peaks& r : data_.roofs) {
      line(x - 6, y - 4, x + 14, y - 4, r.threads > 1 ? "roof bw many" : "roof bw");
      text(x + 20, y, r.threads > 1 ? fmt::format("{} threads", r.threads) : "one thread", "ax");
      y += 18;
    }
    if (!data_.roofs.empty()) {
      text(x - 6, y, "of " + data_.roofs[0].tier, "ax");
      y += 18;
    }
    if (!data_.without.empty())
      text(x - 6, y, dashboard::plural(static_cast<int64_t>(data_.without.size()), "row") + " without counts", "ax");
  }

  const RooflineData& data_;
  const bool standalone_;
  bool left_strip_ = false, right_strip_ = false;
  Axis x_{}, y_{};
  std::string out_;
  std::vector<Box> taken_;
  std::vector<Placed> placed_;
  std::vector<RoofLabel> roof_labels_;
  double legend_top_ = 0;
};

}  // namespace

RooflineData roofline_data(const Record& record, const RooflineOptions& o) {
  const NameFilter filter(o.filter);
  RooflineData data;
  int most_threads = 1;
  bool kept = false;
  std::map<std::string, double> best;
  for (const Row& row : record.rows) {
    if (!filter.keeps(row.name)) continue;
    kept = true;
    if (row.flops <= 0 && row.bytes <= 0) {
      data.without.push_back(row.name);
      continue;
    }
    RooflinePoint p;
    p.name = row.name;
    p.parts = parse_row_name(row.name);
    p.seconds = row.median_seconds();
    p.flops = row.flops;
    p.bytes = row.bytes;
    p.roof_fraction = row.roof_fraction;
    p.runs = row.seconds.size();
    most_threads = std::max(most_threads, p.parts.threads);
    const auto [at, is_new] = best.emplace(p.parts.kernel + "/" + p.parts.shape, p.seconds);
    if (!is_new) at->second = std::min(at->second, p.seconds);
    data.points.push_back(std::move(p));
  }
  if (record.rows.empty())
    throw Error(ErrorCode::input, record.path + ": field \"benchmarks\": every run ended with an error",
                "its error_message says why");
  if (!kept)
    throw Error(ErrorCode::usage, "--filter: none of the record's benchmarks matches",
                record.rows.empty() ? "" : "for example " + record.rows[0].name);
  for (RooflinePoint& p : data.points) p.best = p.seconds <= best[p.parts.kernel + "/" + p.parts.shape];

  std::string tier = o.tier;
  if (!tier.empty() && !record.peaks_of(tier, 1)) {
    std::string known;
    for (const Peaks& p : record.peaks)
      if (p.threads == 1) known += (known.empty() ? "" : ", ") + p.tier;
    throw Error(ErrorCode::usage, fmt::format("--isa: {} has no measured peaks of tier \"{}\"", record.path, tier),
                known.empty() ? "it has none at all" : "it has " + known);
  }
  if (tier.empty() && !record.tier.empty() && record.peaks_of(record.tier, 1)) tier = record.tier;
  const Peaks* one = record.peaks_of(tier, 1);
  if (one) data.roofs.push_back(*one);
  const Peaks* all = one && most_threads > 1 ? record.peaks_of(one->tier, most_threads) : nullptr;
  if (all) data.roofs.push_back(*all);

  data.title = "Roofline" + (record.cpu.empty() ? "" : ", " + record.cpu);
  std::vector<std::string> parts;
  if (!record.date.empty()) parts.push_back(record.date.substr(0, 10));
  if (!record.commit.empty()) parts.push_back("commit " + record.commit);
  if (!record.compiler.empty()) parts.push_back(record.compiler);
  parts.push_back(dashboard::plural(static_cast<int64_t>(data.points.size()), "row"));
  if (one) parts.push_back("roofs measured in the same run");
  data.subtitle = dashboard::join(parts, ", ");
  return data;
}

std::string roofline_svg(const RooflineData& data, bool standalone) { return Drawing(data, standalone).draw(); }

nlohmann::ordered_json roofline_json(const RooflineData& data, const std::string& file) {
  using Json = nlohmann::ordered_json;
  const auto known = [](double x) { return x > 0 ? Json(x) : Json(nullptr); };
  Json json = {{"schema", "thimble.bench_roofline/1"},
               {"file", file.empty() ? Json(nullptr) : Json(file)},
               {"roofs", Json::array()},
               {"points", Json::array()}};
  for (const Peaks& r : data.roofs)
    json["roofs"].push_back({{"tier", r.tier},
                             {"threads", r.threads},
                             {"f32_gflops", r.f32_gflops},
                             {"bf16_gflops", r.bf16_gflops},
                             {"int8_gops", r.int8_gops},
                             {"read_gbs", r.read_gbs},
                             {"copy_gbs", r.copy_gbs}});
  for (const RooflinePoint& p : data.points)
    json["points"].push_back({{"name", p.name},
                              {"family", p.parts.family},
                              {"tier", p.parts.tier},
                              {"threads", p.parts.threads},
                              {"seconds", p.seconds},
                              {"flops", known(p.flops)},
                              {"bytes", known(p.bytes)},
                              {"roof_fraction", known(p.roof_fraction)}});
  json["without_counts"] = data.without;
  return json;
}

}  // namespace thimble::bench_tools
