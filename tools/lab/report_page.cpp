// The page, drawn from the report's data.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "tools/dashboard/charts.h"
#include "tools/dashboard/page.h"
#include "tools/dashboard/text.h"
#include "tools/lab/report_data.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;
using dashboard::bytes_text;
using dashboard::Column;
using dashboard::compact;
using dashboard::escape;
using dashboard::fixed;
using dashboard::plural;
using dashboard::seconds_text;
using dashboard::TableCell;

double number(const Json& j, const char* key) {
  return j.contains(key) && j[key].is_number() ? j[key].get<double>() : NAN;
}
std::string text(const Json& j, const char* key) {
  return j.is_object() && j.contains(key) && j[key].is_string() ? j[key].get<std::string>() : "";
}
int64_t count(const Json& j, const char* key) {
  return j.contains(key) && j[key].is_number_integer() ? j[key].get<int64_t>() : 0;
}

std::string names(const Json& list) {
  std::vector<std::string> out;
  for (const Json& x : list) out.push_back(x.get<std::string>());
  return dashboard::join(out, ", ");
}

TableCell numeric(double x, const std::string& shown) {
  TableCell c;
  c.text = shown;
  if (std::isfinite(x)) c.sort = fmt::format("{:.6g}", x);
  return c;
}
TableCell numeric(double x, int decimals) { return numeric(x, fixed(x, decimals)); }
TableCell words(std::string x) { return {std::move(x), "", "", -1}; }

std::string fact(const std::string& value, const std::string& name) {
  return "<div><b>" + escape(value) + "</b><span>" + escape(name) + "</span></div>";
}

std::string header(const Json& r) {
  const Json& s = r["summary"];
  std::string h = "<header><h1>" + escape(text(r, "name")) +
                  "</h1>\n<p class=\"soft\">Personalizing small language models: what was measured, and what it says "
                  "about six claims.</p>\n";
  h += "<div class=\"facts\">" + fact(fmt::format("{} of {}", count(s, "done"), count(s, "cells")), "cells done");
  if (s["people_most"].is_number()) {
    const int64_t least = count(s, "people_least"), most = count(s, "people_most");
    h += fact(least == most ? std::to_string(least) : fmt::format("{} to {}", least, most), "people per task");
  }
  h += fact(std::to_string(count(s, "seeds")), count(s, "seeds") == 1 ? "seed" : "seeds") +
       fact(std::to_string(count(s, "tasks")), count(s, "tasks") == 1 ? "task" : "tasks");
  h += fact(compact(static_cast<double>(count(s, "answers"))), "questions answered") + "</div>\n";
  h += "<p class=\"small soft\">Models: " + escape(names(s["models"])) + ". ";
  const Json& m = r["machine"];
  if (m.is_object()) {
    std::vector<std::string> parts;
    if (!text(m, "cpu").empty()) parts.push_back(text(m, "cpu"));
    if (count(m, "threads_available") > 0) parts.push_back(plural(count(m, "threads_available"), "core"));
    if (count(m, "memory_bytes") > 0) parts.push_back(bytes_text(number(m, "memory_bytes")) + " memory");
    if (!text(m, "os").empty()) parts.push_back(text(m, "os"));
    if (!text(m, "commit").empty()) parts.push_back("commit " + text(m, "commit"));
    if (!parts.empty()) h += "Machine: " + escape(dashboard::join(parts, ", ")) + ". ";
  }
  if (r["device"].is_object()) {
    std::vector<std::string> parts;
    if (count(r["device"], "ram") > 0) parts.push_back("memory limit " + bytes_text(number(r["device"], "ram")));
    if (count(r["device"], "threads") > 0) parts.push_back(plural(count(r["device"], "threads"), "thread"));
    if (!parts.empty()) h += "Device of the plan: " + escape(dashboard::join(parts, ", ")) + ". ";
  }
  h += "Data: <a href=\"report.json\">report.json</a>, <a href=\"cells.csv\">cells.csv</a>.</p>\n";
  for (size_t i = 1; i < r["in_short"].size(); ++i)
    h += "<div class=\"warn\">" + escape(r["in_short"][i].get<std::string>()) + "</div>\n";
  h += "<nav><a href=\"#verdicts\">Verdicts</a>";
  for (const Json& c : r["charts"])
    h += fmt::format("<a href=\"#{}\">{}</a>", escape(text(c, "id")), escape(text(c, "title")));
  h += "<a href=\"#cost\">Cost</a><a href=\"#tasks\">Tasks</a><a href=\"#cells\">All cells</a><a href=\"#notes\">How "
       "to read this</a></nav></header>\n";
  return h;
}

std::string effect_cell_text(const Json& e) {
  return fmt::format("{} ({} to {})", signed_number(number(e, "mean")),
                     signed_number(e["lo"].is_null() ? -INFINITY : number(e, "lo")),
                     signed_number(e["hi"].is_null() ? INFINITY : number(e, "hi")));
}

// The rows that decide, or the pooled and most extreme ones where there are many.
Json small_chart(const Json& v) {
  std::vector<const Json*> rows;
  for (const Json& row : v["rows"])
    if (row["decides"].get<bool>() && row["effect"]["mean"].is_number()) rows.push_back(&row);
  if (rows.size() == 1)  // what stands behind the one number
    for (const Json& row : v["rows"])
      if (!row["decides"].get<bool>() && row["effect"]["mean"].is_number() && rows.size() < 8) rows.push_back(&row);
  const size_t fixed_rows = rows.size() > 0 && rows.size() <= 8 && !(*rows.back())["decides"].get<bool>() ? 1 : 0;
  std::stable_sort(
      rows.begin() + static_cast<std::ptrdiff_t>(fixed_rows), rows.end(),
      [](const Json* a, const Json* b) { return number((*a)["effect"], "mean") > number((*b)["effect"], "mean"); });
  if (rows.size() > 8) rows.erase(rows.begin() + 4, rows.end() - 4);
  const bool lead = text(v, "id") == "C1";
  Json panel = {{"type", "forest"}, {"title", text(v, "claim")},    {"stacked", true},
                {"zero", true},     {"margin", v["margin_points"]}, {"rows", Json::array()}};
  for (const Json* row : rows) {
    const Json& e = (*row)["effect"];
    const double mean = number(e, "mean");
    Json line = {
        {"label", (*row)["label"]}, {"value", mean}, {"lo", e["lo"]}, {"hi", e["hi"]}, {"text", signed_number(mean)}};
    const bool decides = (*row)["decides"].get<bool>();
    line["series"] = lead ? (mean >= 0 ? method_series("rag") : method_series("lora")) : decides ? 1 : 0;
    line["shape"] = lead ? (mean >= 0 ? method_shape("rag") : method_shape("lora")) : decides ? 2 : 0;
    line["note"] = fmt::format("{} {} − {} {}\n{}", text(*row, "first"), fixed(number(*row, "first_mean"), 1),
                               text(*row, "second"), fixed(number(*row, "second_mean"), 1), text(*row, "reading"));
    panel["rows"].push_back(std::move(line));
  }
  return panel;
}

std::string verdict_board(const Json& r) {
  std::string h = "<section id=\"verdicts\"><h2>Six claims, six verdicts</h2>\n<p class=\"soft\">" +
                  escape(r["in_short"][0].get<std::string>()) +
                  " Supported and refuted need a 95 % interval beyond one point; inconclusive means that this "
                  "experiment cannot tell. The grey band is one "
                  "point either way. The claims are those of <i>Empirical Guidelines for Deploying LLMs onto "
                  "Resource-constrained Edge Devices</i> (arXiv "
                  "2406.03777).</p>\n<div class=\"board\">\n";
  for (const Json& v : r["verdicts"]) {
    const std::string verdict = text(v, "verdict");
    const char* sign = verdict == "supported"      ? "✓ "
                       : verdict == "refuted"      ? "✗ "
                       : verdict == "inconclusive" ? "? "
                                                   : "– ";
    h += fmt::format(
        "<article class=\"card\"><div class=\"top\"><span class=\"badge {}\">{}{}</span><span>{}</span></div><p "
        "class=\"claim\">{}</p>",
        verdict == "no data" ? "nodata" : escape(verdict), sign, escape(verdict), escape(text(v, "id")),
        escape(text(v, "claim")));
    h += "<p class=\"effect\">" + escape(text(v, "headline")) + "</p><p class=\"small\">" +
         escape(text(v, "sentence")) + "</p>";
    const Json panel = small_chart(v);
    if (!panel["rows"].empty())
      h += "<div class=\"small soft\">" + escape(text(v, "contrast")) + "</div>" + dashboard::chart_svg(panel);
    h += "<details><summary>Rule and all " + plural(static_cast<int64_t>(v["rows"].size()), "comparison") +
         "</summary><p>" + escape(text(v, "rule")) + "</p>";
    for (const Json& note : v["notes"]) h += "<p>" + escape(note.get<std::string>()) + "</p>";
    if (!v["rows"].empty()) {
      std::vector<std::vector<TableCell>> rows;
      for (const Json& row : v["rows"]) {
        const Json& e = row["effect"];
        TableCell effect = numeric(number(e, "mean"), effect_cell_text(e));
        if (row["decides"].get<bool>())
          effect.tip = fmt::format("deciding interval {} to {}", signed_number(number(row, "lo_family")),
                                   signed_number(number(row, "hi_family")));
        rows.push_back({words(text(row, "label")), words(text(row, "reading")), effect,
                        words(text(row, "first") + " " + fixed(number(row, "first_mean"), 1)),
                        words(text(row, "second") + " " + fixed(number(row, "second_mean"), 1)),
                        numeric(number(e, "p"), 4), numeric(number(row, "p_holm"), 4), numeric(number(e, "d_z"), 2),
                        words(fmt::format("{} × {}", count(e, "people"), count(e, "seeds"))), words(text(row, "group")),
                        words(row["decides"].get<bool>() ? "yes" : "")});
      }
      h += dashboard::table({{"comparison", false, ""},
                             {"reading", false, ""},
                             {"difference, points", true, "mean difference and 95 % interval"},
                             {"first", false, "first side and its score"},
                             {"second", false, "second side and its score"},
                             {"p", true, "sign-flip permutation test of no difference"},
                             {"p, Holm", true, "corrected within the group"},
                             {"d_z", true, "mean difference / standard deviation over people"},
                             {"people × seeds", false, ""},
                             {"group", false, ""},
                             {"decides", false, ""}},
                            rows);
    }
    h += "</details></article>\n";
  }
  return h + "</div></section>\n";
}

std::string chart_sections(const Json& r) {
  std::string h;
  for (const Json& c : r["charts"]) {
    h += fmt::format("<section id=\"{}\"><h2>{}</h2><p class=\"soft\">{}</p>", escape(text(c, "id")),
                     escape(text(c, "title")), escape(text(c, "reading")));
    for (const Json& note : c["notes"]) h += "<p class=\"small soft\">" + escape(note.get<std::string>()) + "</p>";
    h += dashboard::panels(c["panels"]) + "</section>\n";
  }
  return h;
}

std::string cost_text(double x, const std::string& kind) {
  return kind == "bytes" ? bytes_text(x) : kind == "seconds" ? seconds_text(x) : compact(x);
}

std::string cost_section(const Json& r) {
  const auto one = [&](const char* name, const std::vector<std::string>& keys) {
    const Json& t = r["tables"][name];
    if (t["rows"].empty()) return std::string();
    std::vector<Column> columns;
    for (const std::string& k : keys) columns.push_back({k, false, ""});
    std::vector<double> most;
    for (const Json& c : t["columns"]) {
      columns.push_back({text(c, "label"), true, text(c, "better") == "low" ? "lower is better" : "higher is better"});
      double largest = 0;
      for (const Json& row : t["rows"]) {
        const double x = number(row, text(c, "key").c_str());
        if (std::isfinite(x)) largest = std::max(largest, x);
      }
      most.push_back(largest);
    }
    columns.push_back({"cells", true, "done cells that the medians are over"});
    std::vector<std::vector<TableCell>> rows;
    for (const Json& row : t["rows"]) {
      std::vector<TableCell> cells;
      for (const std::string& k : keys) cells.push_back(words(text(row, k.c_str())));
      for (size_t i = 0; i < t["columns"].size(); ++i) {
        const double x = number(row, text(t["columns"][i], "key").c_str());
        TableCell cell = numeric(x, cost_text(x, text(t["columns"][i], "kind")));
        if (std::isfinite(x) && most[i] > 0) cell.bar = x / most[i];
        cells.push_back(std::move(cell));
      }
      cells.push_back(numeric(number(row, "cells"), 0));
      rows.push_back(std::move(cells));
    }
    return dashboard::table(columns, rows);
  };
  const std::string models = one("models", {"model", "compression"}),
                    methods = one("methods", {"model", "compression", "method"});
  std::string h =
      "<section id=\"cost\"><h2>What it costs</h2><p class=\"soft\">Medians over done cells, measured on the machine "
      "named above while the "
      "experiment ran; cells that ran side by side slow each other down. Bars compare within a column.</p>";
  if (models.empty()) return h + "<p>No costs were recorded.</p></section>\n";
  h += "<h3>Answering</h3>" + models;
  if (!methods.empty()) h += "<h3 style=\"margin-top:18px\">Learning</h3>" + methods;
  return h + "</section>\n";
}

std::string task_section(const Json& r) {
  std::vector<std::vector<TableCell>> rows;
  for (const Json& t : r["tables"]["tasks"]) {
    const double nearest = number(t, "baseline_nearest");
    const double own = std::isfinite(number(t, "baseline_user_majority")) ? number(t, "baseline_user_majority")
                                                                          : number(t, "baseline_user_mean");
    rows.push_back({words(text(t, "task")), words(text(t, "lamp")), words(text(t, "metric")),
                    numeric(number(t, "people"), 0), numeric(number(t, "seeds"), 0),
                    numeric(number(t, "classes"), compact(number(t, "classes"))),
                    numeric(number(t, "label_entropy_bits"), 2), numeric(number(t, "answer_words"), 1),
                    numeric(number(t, "base_nll"), 2), numeric(number(t, "baseline_majority"), 1), numeric(own, 1),
                    numeric(nearest, 1), numeric(number(t, "possible_query"), 1),
                    numeric(number(t, "possible_history"), 1), numeric(number(t, "possible_latent"), 1)});
  }
  return "<section id=\"tasks\"><h2>How hard the tasks are</h2><p class=\"soft\">Numbers that need no personalized "
         "model. Scores of 100.</p>" +
         dashboard::table({{"task", false, ""},
                           {"LaMP", false, ""},
                           {"metric", false, ""},
                           {"people", true, ""},
                           {"seeds", true, ""},
                           {"answers", true, "distinct gold answers"},
                           {"entropy, bits", true, "of the gold answers; 0 for texts"},
                           {"words", true, "of an answer, mean"},
                           {"surprise, nats", true, "of the gold answer to the base model, without examples"},
                           {"most frequent", true, "score of everyone's most frequent answer"},
                           {"own usual", true, "score of the person's own most frequent answer, or mean rating"},
                           {"nearest item", true, "score of copying the most similar item's answer"},
                           {"possible: question", true, "best score from the question alone"},
                           {"possible: history", true, "best score from this history"},
                           {"possible: person", true, "best score knowing the person"}},
                          rows, "task-table") +
         "</section>\n";
}

std::string cell_section(const Json& r) {
  std::vector<std::vector<TableCell>> rows;
  std::vector<const Json*> order;
  for (const Json& c : r["cells"]) order.push_back(&c);
  std::stable_sort(order.begin(), order.end(), [](const Json* a, const Json* b) {
    const auto key = [](const Json& c) {
      return std::tuple(text(c, "task"), text(c, "model"), text(c, "compression"), text(c, "method"),
                        count(c, "history"), count(c, "seed"));
    };
    return key(*a) < key(*b);
  });
  for (const Json* at : order) {
    const Json& c = *at;
    const Json cost = c.contains("cost") && c["cost"].is_object() ? c["cost"] : Json::object();
    std::vector<std::string> steps, metrics;
    for (const Json& s : c["steps"]) steps.push_back(s.dump());
    if (c.contains("metrics"))
      for (const auto& [name, value] : c["metrics"].items())
        if (value.is_number()) metrics.push_back(fmt::format("{} {:.3f}", name, value.get<double>()));
    TableCell score = numeric(number(c, "score"), 1);
    score.tip = dashboard::join(metrics, "\n");
    const std::string compression = text(c, "compression");
    rows.push_back(
        {words(text(c, "task")), words(text(c, "method")), words(text(c, "model")),
         words(compression == "none" ? "" : compression),
         numeric(count(c, "history") == 0 ? 1e9 : static_cast<double>(count(c, "history")),
                 count(c, "history") == 0 ? "all" : std::to_string(count(c, "history"))),
         words(dashboard::join(steps, " or ")), numeric(number(c, "seed"), 0),
         text(c, "state") == "done" ? score : words(text(c, "state")),
         numeric(number(cost, "train_s"), number(cost, "train_s") > 0 ? seconds_text(number(cost, "train_s")) : "–"),
         numeric(number(cost, "peak_rss_bytes"), bytes_text(number(cost, "peak_rss_bytes"))), words(names(c["grids"])),
         words(text(c, "hash"))});
  }
  return "<section id=\"cells\"><h2>All cells</h2><p class=\"soft\">One row per condition and seed. Click a heading to "
         "sort. More columns are in "
         "<a href=\"cells.csv\">cells.csv</a>.</p>" +
         dashboard::table({{"task", false, ""},
                           {"method", false, ""},
                           {"model", false, ""},
                           {"compression", false, ""},
                           {"history", true, "items that the method may use"},
                           {"steps", false, "optimizer steps"},
                           {"seed", true, ""},
                           {"score", true, "primary metric, of 100"},
                           {"learning", true, "time spent learning"},
                           {"peak memory", true, ""},
                           {"grid", false, ""},
                           {"cell", false, "name of its folder"}},
                          rows, "cell-table", true) +
         "</section>\n";
}

std::string trouble_section(const Json& r) {
  if (r["failed"].empty() && r["missing"].empty() && r["infeasible"].empty()) return "";
  std::string h = "<section id=\"failed\"><h2>What is not here</h2>";
  if (!r["failed"].empty()) {
    std::vector<std::vector<TableCell>> rows;
    for (const Json& c : r["failed"])
      rows.push_back({words(text(c, "label")), numeric(number(c, "seed"), 0), words(text(c, "reason")),
                      words(text(c, "error_code")), words(text(c, "hash"))});
    h += "<h3>" + plural(static_cast<int64_t>(r["failed"].size()), "failed cell") + "</h3>" +
         dashboard::table({{"cell", false, ""},
                           {"seed", true, ""},
                           {"reason", false, ""},
                           {"code", false, ""},
                           {"folder", false, ""}},
                          rows);
  }
  for (auto [key, what] :
       {std::pair{"missing", "cell not run yet"}, std::pair{"infeasible", "cell that the device cannot run"}}) {
    if (r[key].empty()) continue;
    const std::string many = std::string(what).replace(0, 4, "cells");
    h += "<details><summary>" + plural(static_cast<int64_t>(r[key].size()), what, many) + "</summary><ul>";
    for (const Json& c : r[key]) {
      const std::string label = text(c, "label");
      h += "<li class=\"small\">" +
           escape(label.empty() ? text(c, "hash") + ": " + text(c, "reason")
                                : label + fmt::format(", seed {}", count(c, "seed"))) +
           "</li>";
    }
    h += "</ul></details>";
  }
  return h + "</section>\n";
}

std::string notes_section(const Json& r) {
  std::string h =
      "<section id=\"notes\"><h2>How to read this</h2><p>A dot is an average over people; the line through it is its "
      "95 % interval: repeated with other people "
      "and seeds, about 95 of 100 such lines would hold the true average. A wide line means few people, few questions "
      "or people who "
      "differ much: it is a statement about the experiment, not about the method. Two methods whose lines overlap can "
      "still differ "
      "for certain, because they are compared person by person.</p><ul>";
  for (const Json& note : r["method_notes"]) h += "<li>" + escape(note.get<std::string>()) + "</li>";
  return h + "</ul></section>\n";
}

}  // namespace

std::string report_page(const Json& r) {
  return dashboard::page(text(r, "name") + " · thimble lab",
                         header(r) + verdict_board(r) + chart_sections(r) + cost_section(r) + task_section(r) +
                             trouble_section(r) + cell_section(r) + notes_section(r));
}

}  // namespace thimble::lab
