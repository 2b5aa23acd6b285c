// Many records as histories: one per machine, one series per benchmark, ordered by time. Changes along a series are
// judged by the rule of compare.h.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/bench/compare.h"
#include "tools/bench/record.h"

namespace thimble::bench_tools {

struct Point {
  size_t record = 0;  // index in History::records
  const Row* row = nullptr;
  Interval seconds;
  bool has_change = false;  // against the point before
  ComparedRow change;
};

struct Series {
  std::string name;
  RowName parts;
  std::vector<Point> points;  // never empty
  ComparedRow since_first;    // newest against oldest: what creeps in below the threshold of single steps
};

struct History {
  std::string fingerprint, cpu;
  std::vector<const Record*> records;  // oldest first
  std::vector<Series> series;          // by family, then name
  Record newest_rows;                  // every benchmark's newest row with the newest measured peaks, for a roofline
};

struct Skipped {
  std::string path, reason;
};

// Every record below dir (files ending in .json, links not followed), oldest first; equal times in order of paths. What
// is no record, or a broken one, lands in skipped. Throws input when dir is no folder or holds no record.
std::vector<Record> read_records(const std::string& dir, std::vector<Skipped>* skipped);

// The records must outlive the result. Machines with more records come first. Throws usage when the filter keeps
// nothing.
std::vector<History> histories(const std::vector<Record>& records, const CompareOptions& options);

// The whole page; root: the folder, whose name is taken off the paths shown. Equal records, equal bytes.
std::string history_page(const std::vector<History>& machines, const std::vector<Skipped>& skipped,
                         const std::string& root, const CompareOptions& options);
// What the page shows, for machines (it is embedded in the page too).
nlohmann::ordered_json history_json(const std::vector<History>& machines, const std::vector<Skipped>& skipped,
                                    const std::string& root);

}  // namespace thimble::bench_tools
