// The page of many records: what changed, on which machine, since when; every benchmark's trend; rooflines.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tools/bench/history.h"
#include "tools/bench/roofline.h"
#include "tools/bench/trend.h"
#include "tools/dashboard/page.h"
#include "tools/dashboard/text.h"

namespace thimble::bench_tools {
namespace {

using dashboard::Column;
using dashboard::escape;
using dashboard::fixed;
using dashboard::plural;
using dashboard::TableCell;

constexpr size_t kChartsMax = 12;

constexpr char kStyle[] = R"CSS(
svg .slower{fill:var(--no)}svg .faster{fill:var(--yes)}
.badge.slower{color:var(--no);background:var(--nob)}.badge.faster{color:var(--yes);background:var(--yesb)}
.badge.same,.badge.few{color:var(--open);background:var(--openb);font-weight:500}
svg.spark{width:120px;height:24px;max-width:none;display:inline-block;vertical-align:middle}
.spark .ln{stroke-width:1.3}.rl{max-width:100%!important}.rlbox{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px;margin-top:10px;overflow-x:auto}
.rlbox svg{min-width:820px}.panel h3{overflow-wrap:break-word}.panel h3::first-letter{text-transform:none}.pick{max-width:560px;margin-top:12px;scroll-margin-top:12px}.pick svg{max-width:520px}
main{max-width:1380px}td .nm{display:inline-block;white-space:normal;width:310px;overflow-wrap:break-word;line-height:1.3}
td .n2{color:var(--soft)}td a{text-decoration:none}td a:hover{text-decoration:underline}.h3{font-size:16px;font-weight:600;margin:28px 0 0}tr.on td{background:var(--band)}
)CSS";

constexpr char kScript[] = R"JS(
(function(){
document.addEventListener('click',function(e){var a=e.target.closest&&e.target.closest('a[data-k]');if(!a)return;
var t=document.getElementById('t-'+a.getAttribute('data-k')),box=document.getElementById(a.getAttribute('href').slice(1));if(!t||!box)return;
e.preventDefault();box.textContent='';box.appendChild(t.content.cloneNode(true));
document.querySelectorAll('tr.on').forEach(function(r){r.classList.remove('on')});var row=a.closest('tr');if(row)row.classList.add('on');
var r=box.getBoundingClientRect();if(r.top<0||r.bottom>innerHeight)box.scrollIntoView({block:'nearest',behavior:'smooth'})});
var d=document.getElementById('data'),s=document.getElementById('save');
if(d&&s){s.hidden=false;s.href=URL.createObjectURL(new Blob([d.textContent],{type:'application/json'}));s.download='bench-history.json'}
})();
)JS";

TableCell words(std::string text) {
  TableCell c;
  c.text = std::move(text);
  return c;
}
TableCell number(double value, std::string shown) {
  TableCell c;
  c.text = std::move(shown);
  if (std::isfinite(value)) c.sort = fmt::format("{:.9g}", value);
  return c;
}
TableCell html_cell(std::string html, std::string sort) {
  TableCell c;
  c.html = std::move(html);
  c.sort = std::move(sort);
  return c;
}

std::string badge(Verdict v) {
  const char* cls = v == Verdict::slower   ? "slower"
                    : v == Verdict::faster ? "faster"
                    : v == Verdict::same   ? "same"
                                           : "few";
  return fmt::format("<span class=\"badge {}\">{}</span>", cls, verdict_name(v));
}
// Sorted: slower, faster, same, too few runs.
TableCell verdict_cell(const ComparedRow& c, bool known) {
  if (!known) return number(NAN, "–");
  const int rank = c.verdict == Verdict::slower   ? 0
                   : c.verdict == Verdict::faster ? 1
                   : c.verdict == Verdict::same   ? 2
                                                  : 3;
  TableCell cell = html_cell(fmt::format("{} <span class=\"n2\">{}</span>", badge(c.verdict), fixed(c.ratio, 2)),
                             fmt::format("{}{:012.6f}", rank, rank == 0 ? 1e5 - c.ratio : c.ratio));
  cell.tip = fmt::format("{} times the time before ({} to {}), p {:.2g}, threshold {:.1f} %", fixed(c.ratio, 3),
                         fixed(c.lo, 3), fixed(c.hi, 3), c.p, 100 * c.threshold);
  return cell;
}

// A name that may break behind its commas.
std::string breakable(const std::string& name) {
  std::string out;
  for (const char c : escape(name)) {
    out += c;
    if (c == ',') out += "<wbr>";
  }
  return out;
}

std::string fact(const std::string& value, const std::string& name) {
  return "<div><b>" + escape(value) + "</b><span>" + escape(name) + "</span></div>";
}

std::string size_text(int64_t bytes) {
  return bytes >= int64_t{1} << 20 ? fmt::format("{:g} MiB", double(bytes) / double(1 << 20))
                                   : fmt::format("{:g} KiB", double(bytes) / 1024.0);
}

bool is_change(const ComparedRow& c) { return c.verdict == Verdict::slower || c.verdict == Verdict::faster; }

// A benchmark has drifted when first and newest differ although no step did.
bool crept(const Series& s) {
  if (s.points.size() < 3 || !is_change(s.since_first)) return false;
  return std::none_of(s.points.begin(), s.points.end(),
                      [](const Point& p) { return p.has_change && is_change(p.change); });
}

struct Counts {
  size_t slower = 0, faster = 0, same = 0, few = 0;
  void add(Verdict v) {
    ++(v == Verdict::slower ? slower : v == Verdict::faster ? faster : v == Verdict::same ? same : few);
  }
};

// Of the newest record, each benchmark against the record before that has it.
Counts newest_changes(const History& h) {
  Counts n;
  for (const Series& s : h.series)
    if (s.points.back().record + 1 == h.records.size() && s.points.back().has_change)
      n.add(s.points.back().change.verdict);
  return n;
}

std::string below(const std::string& path, const std::string& root) {
  const std::string start = root.empty() || root.back() == '/' ? root : root + "/";
  return path.compare(0, start.size(), start) == 0 ? path.substr(start.size()) : path;
}

class MachineSection {
 public:
  MachineSection(const History& h, size_t index, const std::string& root)
      : h_(h), root_(root), id_(fmt::format("m{}", index)) {}

  std::string html() {
    const Record& last = *h_.records.back();
    out_ += fmt::format("<section id=\"{}\"><h2>{} <span class=\"soft small\">{}</span></h2>\n", id_,
                        escape(h_.cpu.empty() ? "Unknown machine" : h_.cpu), escape(h_.fingerprint));
    std::vector<std::string> parts;
    if (last.cores > 0) parts.push_back(plural(last.cores, "core"));
    if (last.l1d_bytes > 0)
      parts.push_back("caches " + size_text(last.l1d_bytes) + ", " + size_text(last.l2_bytes) + ", " +
                      size_text(last.l3_bytes));
    if (!last.tiers.empty()) parts.push_back("tiers " + last.tiers);
    if (!last.governor.empty()) parts.push_back("governor " + last.governor);
    out_ += "<p class=\"small soft\">" + escape(dashboard::join(parts, "; ")) + "</p>\n";
    summary();
    changes();
    charts();
    all_benchmarks();
    roofline();
    records();
    for (const std::string& t : templates_) out_ += t;
    return out_ + "</section>\n";
  }

 private:
  void summary() {
    const Record& last = *h_.records.back();
    const Counts n = newest_changes(h_);
    if (h_.records.size() == 1) {
      out_ += "<p>One record: nothing to compare with yet.</p>\n";
      return;
    }
    out_ += fmt::format(
        "<p>Newest record, commit <b>{}</b> of {}: <b>{} slower</b>, <b>{} faster</b>, {} same{} than in the record "
        "before.</p>\n",
        escape(short_commit(last)), escape(last.date.substr(0, 16)), n.slower, n.faster, n.same,
        n.few > 0 ? fmt::format(", {} with too few runs to tell", n.few) : "");
    const Record& before = *h_.records[h_.records.size() - 2];
    const Peaks* now = last.peaks_of(last.tier, 1);
    const Peaks* then = now ? before.peaks_of(now->tier, 1) : nullptr;
    const auto moved = [&](double a, double b, const char* what) {
      if (a > 0 && b > 0 && (b / a > 1.1 || b / a < 1 / 1.1))
        out_ += fmt::format(
            "<div class=\"warn\">The machine's own measured {} moved by {} % between these two records: slower or "
            "faster rows may be the machine.</div>\n",
            what, escape(fixed(100 * (b / a - 1), 0)));
    };
    if (then) {
      moved(then->f32_gflops, now->f32_gflops, "f32 peak");
      moved(then->read_gbs, now->read_gbs, "read bandwidth");
    }
  }

  void changes() {
    if (h_.records.size() < 2) return;
    struct Step {
      const Series* series;
      size_t point;
    };
    std::vector<Step> steps;
    for (const Series& s : h_.series)
      for (size_t i = 1; i < s.points.size(); ++i)
        if (is_change(s.points[i].change)) steps.push_back({&s, i});
    std::stable_sort(steps.begin(), steps.end(), [](const Step& a, const Step& b) {
      const Point &x = a.series->points[a.point], &y = b.series->points[b.point];
      if (x.record != y.record) return x.record > y.record;
      return std::abs(std::log(x.change.ratio)) > std::abs(std::log(y.change.ratio));
    });
    out_ += "<p class=\"h3\">Changes beyond the noise, newest first</p>\n";
    if (steps.empty())
      out_ += "<p class=\"soft\">None: no benchmark's interval lies beyond its threshold in any step.</p>\n";
    std::vector<std::vector<TableCell>> rows;
    for (const Step& step : steps) {
      const Point &p = step.series->points[step.point], &q = step.series->points[step.point - 1];
      const Record &to = *h_.records[p.record], &from = *h_.records[q.record];
      const ComparedRow& c = p.change;
      rows.push_back(
          {link(*step.series), html_cell(badge(c.verdict), verdict_name(c.verdict)), number(c.ratio, fixed(c.ratio, 3)),
           number(c.lo, fmt::format("{} – {}", fixed(c.lo, 3), fixed(c.hi, 3))),
           number(c.threshold, fmt::format("{:.1f} %", 100 * c.threshold)), number(c.p, fmt::format("{:.2g}", c.p)),
           words(fmt::format("{} → {}", short_time(q.seconds.median), short_time(p.seconds.median))),
           words(fmt::format("{} → {}", short_commit(from), short_commit(to))), words(to.date.substr(0, 16))});
    }
    if (!rows.empty())
      out_ += dashboard::table({{"Benchmark", false, ""},
                                {"Verdict", false, ""},
                                {"Ratio", true, "time after / time before"},
                                {"Interval", true, "bootstrap over repetitions"},
                                {"Threshold", true, "noise of both records, at least 5 %"},
                                {"p", true, "rank test"},
                                {"Median time", false, ""},
                                {"Commits", false, ""},
                                {"Date", false, ""}},
                               rows, id_ + "-changes", rows.size() > 8, "softmax slower");
    std::vector<const Series*> slow;
    for (const Series& s : h_.series)
      if (crept(s)) slow.push_back(&s);
    if (slow.empty()) return;
    out_ += "<p>Changed since the first record in steps that are each below the threshold: ";
    for (size_t i = 0; i < slow.size(); ++i)
      out_ += fmt::format("{}{} ({} {})", i ? ", " : "", link(*slow[i]).html,
                          verdict_name(slow[i]->since_first.verdict), fixed(slow[i]->since_first.ratio, 2));
    out_ += ".</p>\n";
  }

  void charts() {
    std::vector<const Series*> list;
    for (const Series& s : h_.series)
      if (crept(s) || std::any_of(s.points.begin(), s.points.end(),
                                  [](const Point& p) { return p.has_change && is_change(p.change); }))
        list.push_back(&s);
    const auto size = [](const Series* s) {
      double most = std::abs(std::log(s->points.size() > 1 ? s->since_first.ratio : 1.0));
      for (const Point& p : s->points)
        if (p.has_change && is_change(p.change)) most = std::max(most, std::abs(std::log(p.change.ratio)));
      return most;
    };
    std::stable_sort(list.begin(), list.end(), [&](const Series* a, const Series* b) { return size(a) > size(b); });
    if (list.empty()) return;
    out_ += fmt::format(
        "<p class=\"h3\">Trends of what changed{}</p>\n<p class=\"small soft\">Medians with 95 % intervals. <svg "
        "style=\"display:inline-block;width:12px;height:11px;"
        "vertical-align:-1px\" viewBox=\"0 0 12 11\"><path class=\"slower\" d=\"M6 0l6 11h-12z\"/></svg> slower than "
        "the record before, <svg style=\"display:inline-block;"
        "width:12px;height:11px;vertical-align:-1px\" viewBox=\"0 0 12 11\"><path class=\"faster\" d=\"M6 "
        "11l6-11h-12z\"/></svg> faster.</p>\n<div class=\"panels\">\n",
        list.size() > kChartsMax ? fmt::format(": the {} largest of {}", kChartsMax, list.size()) : "");
    for (size_t i = 0; i < std::min(list.size(), kChartsMax); ++i) out_ += panel(*list[i]);
    out_ += "</div>\n";
  }

  void all_benchmarks() {
    out_ += fmt::format("<p class=\"h3\">All {}</p>\n", plural(static_cast<int64_t>(h_.series.size()), "benchmark"));
    out_ += fmt::format(
        "<div class=\"panel pick\" id=\"{}-pick\"><span class=\"soft small\">Choose a benchmark in the table: its "
        "trend is shown here.</span></div>\n",
        id_);
    std::vector<std::vector<TableCell>> rows;
    for (size_t i = 0; i < h_.series.size(); ++i) {
      const Series& s = h_.series[i];
      const Point& p = s.points.back();
      const double t = p.seconds.median;
      TableCell spark = html_cell(s.points.size() > 1 ? sparkline_svg(h_, s) : "", "");
      TableCell fraction = number(p.row->roof_fraction > 0 ? p.row->roof_fraction : NAN,
                                  p.row->roof_fraction > 0 ? fmt::format("{:.0f} %", 100 * p.row->roof_fraction) : "–");
      if (p.row->roof_fraction > 0) fraction.bar = std::min(1.0, p.row->roof_fraction);
      const double spread = p.row->seconds.size() > 1 ? std::max(p.seconds.hi / t - 1, 1 - p.seconds.lo / t) : NAN;
      rows.push_back({link(s), std::move(spark), number(t, short_time(t)), verdict_cell(p.change, p.has_change),
                      verdict_cell(s.since_first, s.points.size() > 1), std::move(fraction),
                      number(p.row->flops > 0 ? p.row->flops / t : NAN,
                             p.row->flops > 0 ? dashboard::compact(p.row->flops / t / 1e9) : "–"),
                      number(p.row->bytes > 0 ? p.row->bytes / t : NAN,
                             p.row->bytes > 0 ? dashboard::compact(p.row->bytes / t / 1e9) : "–"),
                      number(spread, std::isfinite(spread) ? fmt::format("±{:.1f} %", 100 * spread) : "–"),
                      words(s.parts.family)});
      templates_.push_back(fmt::format("<template id=\"t-{}-{}\">{}</template>\n", id_, i, panel_inside(s)));
    }
    out_ +=
        dashboard::table({{"Benchmark", false, "kernel / tier / shape"},
                          {"Trend", false, "medians and intervals over all records; marks: changes, and the newest"},
                          {"Time", true, "median of the newest record"},
                          {"Against last", false, "the newest record against the one before that has this benchmark"},
                          {"Against first", false, "the newest record against the oldest"},
                          {"Of roof", true, "the bench's own count: roofline time / measured time"},
                          {"GFLOP/s", true, ""},
                          {"GB/s", true, ""},
                          {"Spread", true, "the interval of the median"},
                          {"Family", false, ""}},
                         rows, id_ + "-all", true, "softmax avx512");
  }

  void roofline() {
    const RooflineData data = roofline_data(h_.newest_rows, {});
    if (data.points.empty()) return;
    out_ +=
        "<p class=\"h3\">Roofline of the newest runs</p>\n<p class=\"small soft\">Every benchmark where it stands, "
        "against measured peaks" +
        std::string(data.roofs.empty() ? " (which these records do not have)" : "") +
        ". Hover or tap for the numbers.</p>\n<div class=\"rlbox\">" + roofline_svg(data, false) + "</div>\n";
    if (!data.without.empty()) {
      out_ += "<p class=\"small soft\">Not drawn, because they record neither operations nor bytes: ";
      for (size_t i = 0; i < data.without.size(); ++i) out_ += (i ? ", " : "") + escape(short_name(data.without[i]));
      out_ += ".</p>\n";
    }
  }

  void records() {
    out_ += fmt::format("<p class=\"h3\">{}</p>\n", plural(static_cast<int64_t>(h_.records.size()), "record"));
    std::vector<std::vector<TableCell>> rows;
    for (size_t i = h_.records.size(); i-- > 0;) {
      const Record& r = *h_.records[i];
      const Peaks* p = r.peaks_of(r.tier, 1);
      size_t most = 0;
      for (const Row& row : r.rows) most = std::max(most, row.seconds.size());
      const auto peak = [p](double Peaks::*field) {
        return p && p->*field > 0 ? number(p->*field, dashboard::compact(p->*field)) : number(NAN, "–");
      };
      rows.push_back(
          {number(static_cast<double>(r.time), r.date.substr(0, 16)), words(r.commit.empty() ? "?" : r.commit),
           words(r.compiler), words(r.build_type), words(r.tier),
           number(static_cast<double>(r.rows.size()), std::to_string(r.rows.size())),
           number(static_cast<double>(most), std::to_string(most)), peak(&Peaks::f32_gflops), peak(&Peaks::bf16_gflops),
           peak(&Peaks::int8_gops), peak(&Peaks::read_gbs), peak(&Peaks::copy_gbs),
           number(static_cast<double>(r.failed.size()), std::to_string(r.failed.size())), words(below(r.path, root_))});
    }
    out_ += dashboard::table({{"Date", true, ""},
                              {"Commit", false, ""},
                              {"Compiler", false, ""},
                              {"Build", false, ""},
                              {"Tier", false, "highest in use"},
                              {"Rows", true, ""},
                              {"Runs", true, "most repetitions of a row"},
                              {"f32", true, "measured peak of one thread, GFLOP/s"},
                              {"bf16", true, "measured peak of one thread, GFLOP/s"},
                              {"int8", true, "measured peak of one thread, GOP/s"},
                              {"Read", true, "measured, one thread, GB/s"},
                              {"Copy", true, "measured, one thread, GB/s"},
                              {"Errors", true, "rows that ended with an error"},
                              {"File", false, ""}},
                             rows, id_ + "-records", false);
  }

  // Opens the trend of a series; the template has the same number.
  TableCell link(const Series& s) const {
    const size_t i = static_cast<size_t>(&s - h_.series.data());
    const std::string name = short_name(s.name);
    return html_cell(
        fmt::format("<a class=\"nm\" href=\"#{}-pick\" data-k=\"{}-{}\">{}</a>", id_, id_, i, breakable(name)), name);
  }

  std::string panel_inside(const Series& s) const {
    const Point& p = s.points.back();
    std::string sub = short_time(p.seconds.median) + ", " + plural(static_cast<int64_t>(p.row->seconds.size()), "run");
    if (p.row->roof_fraction > 0) sub += fmt::format(", {:.0f} % of roof", 100 * p.row->roof_fraction);
    if (s.points.size() > 1) sub += fmt::format(", {} × the first", fixed(s.since_first.ratio, 2));
    return "<h3>" + breakable(short_name(s.name)) + "</h3><div class=\"sub\">" + escape(sub) + "</div>" +
           trend_svg(h_, s);
  }
  std::string panel(const Series& s) const { return "<div class=\"panel\">" + panel_inside(s) + "</div>\n"; }

  const History& h_;
  const std::string root_, id_;
  std::string out_;
  std::vector<std::string> templates_;
};

// JSON inside a script element must not close it.
std::string embedded(const nlohmann::ordered_json& json) {
  std::string out;
  for (const char c : json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace))
    out += c == '<' ? std::string("\\u003c") : std::string(1, c);
  return out;
}

}  // namespace

std::string history_page(const std::vector<History>& machines, const std::vector<Skipped>& skipped,
                         const std::string& root, const CompareOptions& options) {
  size_t records = 0;
  std::set<std::string> names;
  Counts n;
  std::string newest;
  for (const History& h : machines) {
    records += h.records.size();
    for (const Series& s : h.series) names.insert(s.name);
    const Counts m = newest_changes(h);
    n.slower += m.slower;
    n.faster += m.faster;
    newest = std::max(newest, h.records.back()->date);
  }
  std::string body =
      "<header><h1>Benchmarks</h1>\n<p class=\"soft\">Trends per machine, and what changed beyond the noise.</p>\n<div "
      "class=\"facts\">" +
      fact(std::to_string(records), records == 1 ? "record" : "records") +
      fact(std::to_string(machines.size()), machines.size() == 1 ? "machine" : "machines") +
      fact(std::to_string(names.size()), names.size() == 1 ? "benchmark" : "benchmarks") +
      fact(std::to_string(n.slower), "slower in the newest") + fact(std::to_string(n.faster), "faster in the newest") +
      fact(newest.substr(0, 10), "newest record") + "</div>\n";
  if (!skipped.empty()) {
    body += fmt::format("<details class=\"warn\"><summary>{} passed over</summary><ul>",
                        plural(static_cast<int64_t>(skipped.size()), "file was", "files were"));
    for (const Skipped& s : skipped) body += "<li>" + escape(below(s.path, root)) + ": " + escape(s.reason) + "</li>";
    body += "</ul></details>\n";
  }
  body += "<nav>";
  for (size_t i = 0; i < machines.size(); ++i)
    body += fmt::format("<a href=\"#m{}\">{} ({})</a>", i,
                        escape(machines[i].cpu.empty() ? machines[i].fingerprint : machines[i].cpu),
                        plural(static_cast<int64_t>(machines[i].records.size()), "record"));
  body += "<a href=\"#rules\">How to read this</a><a id=\"save\" hidden href=\"#\">Save the data</a></nav></header>\n";
  for (size_t i = 0; i < machines.size(); ++i) body += MachineSection(machines[i], i, root).html();
  body += fmt::format(
      "<section id=\"rules\"><h2>How to read this</h2><ul>"
      "<li>Machines are told apart by their fingerprint: CPU model, cores, caches and instruction-set tiers. Times of "
      "two machines are never compared.</li>"
      "<li>A point is the median over a record's repetitions; its interval is a {:g} % bootstrap over them. A record "
      "with one repetition has no interval.</li>"
      "<li>A benchmark is <b>slower</b> than in the record before when the whole interval of the ratio lies above 1 + "
      "threshold and a rank test gives p ≤ {:g} "
      "(Wilcoxon for pairs of repetitions, Mann-Whitney otherwise). The threshold is the noise of both records, at "
      "least {:g} %. <b>Faster</b> is the mirror image.</li>"
      "<li><b>Same</b> means that no such change was shown. <b>Too few runs</b>: too few repetitions, or too much "
      "noise, "
      "to tell faster from slower; record nine or more.</li>"
      "<li>Changes that all benchmarks share are rather the machine's: look at its measured peaks in the table of "
      "records.</li></ul></section>\n",
      100 * (1 - options.alpha), options.alpha, 100 * options.floor);
  body += "<script type=\"application/json\" id=\"data\">" + embedded(history_json(machines, skipped, root)) +
          "</script>\n";
  return dashboard::page("Benchmarks", body, kStyle, kScript);
}

}  // namespace thimble::bench_tools
