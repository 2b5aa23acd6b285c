// Charts as inline SVG, drawn from JSON: the report's data file holds exactly what its pictures show. Colours are CSS
// variables (--c0..--c7 and the page's greys), so a chart follows light and dark mode; every mark carries its text in
// data-t for the page's tooltip.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace thimble::dashboard {

// panel.type:
//   forest   rows [{label, value, lo, hi, series, shape, text, note}], marks [{label, value}], zero, margin (a shaded
//   band of
//            +-margin around zero), stacked (labels above instead of left), min, max
//   line     series [{label, series, shape, dashed, points [{x, y, lo, hi, note}]}], marks (horizontal), log_x,
//   x_label, x_names {"64": "all"} scatter  points [{label, x, y, lo, hi, series, shape, note}], log_x, x_label,
//   x_format "bytes", frontier, zero bars     rows [{label, value, text, series, note}], max heat     columns [..],
//   rows [..], cells [[{value, lo, hi}|null]], x_label, y_label
// series: 0..7, a colour; shape: 0..7, a marker. lo and hi may be null. Numbers are drawn as they are.
// Throws internal for a type that is none of these.
std::string chart_svg(const nlohmann::ordered_json& panel);

}  // namespace thimble::dashboard
