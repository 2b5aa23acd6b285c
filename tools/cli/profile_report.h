// What is made of a trace: the table of zones against the machine's peaks, and a file for a timeline viewer.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "tensor/trace.h"
#include "tools/cli/machine.h"

namespace thimble::cli {

struct ProfileRow {
  std::string name;  // "other": outside all zones
  int64_t calls = 0;
  double seconds = 0;  // without the zones inside
  double share = 0;    // of the whole; the shares add up to 1
  double gflops = 0, gbs = 0;
  double roof_fraction =
      -1;  // max(flops / peak of its arithmetic, bytes / read bandwidth) / seconds; < 0: no work is counted
};

// Most expensive first. Above a roof_fraction of 1 its data were in a cache.
std::vector<ProfileRow> profile_rows(const Trace& trace, const Roofline& peaks);
// Flops of all rows; bytes likewise.
std::pair<double, double> total_work(const Trace& trace);

nlohmann::ordered_json profile_json(const std::vector<ProfileRow>& rows);
std::string profile_text(const std::vector<ProfileRow>& rows);

// As many events as a file below 100 MB holds.
constexpr size_t kMaxTraceEvents = 400'000;

// Chrome's trace format, which Perfetto reads: one complete event per zone, one track per trace, in the order of their
// starts; written under another name and renamed. Returns the bytes written.
int64_t write_trace_file(const std::string& path, const std::vector<std::pair<std::string, const Trace*>>& tracks);

}  // namespace thimble::cli
