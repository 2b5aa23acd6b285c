// The roofline of a record: what every kernel reaches, against what the machine could do at most with as many
// operations per byte (Williams, Waterman, Patterson, CACM 2009). Roofs are measured, never taken from data sheets.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/bench/record.h"

namespace thimble::bench_tools {

struct RooflineOptions {
  std::string filter;  // see NameFilter
  std::string tier;    // whose roofs; "": the highest measured
};

struct RooflinePoint {
  std::string name;  // of the row
  RowName parts;
  double seconds = 0, flops = 0, bytes = 0;  // flops or bytes 0: not recorded
  double roof_fraction = 0;                  // as the bench counted it, 0: not recorded
  size_t runs = 0;
  bool best = true;  // no other tier of the same kernel and shape is faster
};

struct RooflineData {
  std::string title, subtitle;
  std::vector<Peaks> roofs;  // of one tier: one thread, and all threads where a point needs them
  std::vector<RooflinePoint> points;
  std::vector<std::string> without;  // rows that record neither flops nor bytes: they cannot be drawn
};

// Throws usage for a tier without measured peaks, naming those that have some, and for a filter that keeps no row.
RooflineData roofline_data(const Record& record, const RooflineOptions& options);

// standalone: a file of its own with style, background and hover texts; else a fragment for a page of tools/dashboard.
// Pure function of the data. Every point carries its full name.
std::string roofline_svg(const RooflineData& data, bool standalone);

nlohmann::ordered_json roofline_json(const RooflineData& data, const std::string& file);

}  // namespace thimble::bench_tools
