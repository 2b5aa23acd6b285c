// One benchmark over its records: points with intervals, changes marked by the verdict of compare.h.
#pragma once

#include <string>

#include "tools/bench/history.h"

namespace thimble::bench_tools {

// For a page of tools/dashboard. Records stand at equal distances, in the order of time, from the machine's first to
// its last; time is on a linear axis. slower: a filled triangle upwards; faster: one downwards; else a dot.
std::string trend_svg(const History& history, const Series& series);
// The same in a line of text, without words.
std::string sparkline_svg(const History& history, const Series& series);

// "12.3 µs": four digits at most.
std::string short_time(double seconds);
// The name without what Google Benchmark appends.
std::string short_name(const std::string& name);
// Commit as people write it: at most 9 characters, "+" where the tree was dirty; "?" when unknown.
std::string short_commit(const Record& record);

}  // namespace thimble::bench_tools
