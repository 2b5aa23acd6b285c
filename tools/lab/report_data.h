// Everything that the report says, as data: report.json is this object and report.html is drawn from it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/lab/experiment.h"
#include "tools/lab/verdicts.h"

namespace thimble::lab {

// {"schema": "thimble.lab_report/1", name, summary, machine, in_short, verdicts, charts: [{id, title, reading, notes,
// panels}], tables: {tasks, models, methods: {columns, rows}}, conditions, cells, failed, infeasible, missing,
// method_notes}
nlohmann::ordered_json report_data(const Experiment& experiment);

// Sections of charts, in the order of the page (tools/dashboard/charts.h says what a panel is).
nlohmann::ordered_json report_charts(const Experiment& experiment, const std::vector<Verdict>& verdicts);

// Models by RAM and speed, and methods by what learning costs: medians over done cells.
nlohmann::ordered_json cost_tables(const Experiment& experiment);

// One row per cell of the plan: configuration, metrics and cost, nested names joined by dots.
std::string cells_csv(const Experiment& experiment);

// The page. report: of report_data().
std::string report_page(const nlohmann::ordered_json& report);

// One colour and marker per method.
int method_series(const std::string& name);
int method_shape(const std::string& name);

// Score of a condition (or of variants, cross-fitted) in points.
Effect score_points(const Scores& scores);
// Mean over cells of a number at a path of metrics.json ("difficulty", "majority"); nothing where none has it.
std::optional<double> mean_metric(const std::vector<const Cell*>& cells, const std::vector<std::string>& path);
// The baseline's primary metric in points, and the best possible score ("query", "history", "latent") in points.
std::optional<double> baseline_points(const std::vector<const Cell*>& cells, const std::string& baseline);
std::optional<double> possible_points(const std::vector<const Cell*>& cells, const std::string& from);
std::vector<const Cell*> cells_of(const std::vector<const Condition*>& conditions);

}  // namespace thimble::lab
