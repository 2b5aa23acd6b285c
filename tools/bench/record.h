// A bench record: a file in Google Benchmark's JSON schema, read as what a comparison needs. Files of thimble_bench
// also carry the machine's record in their context (see bench/README.md); other programs' files are accepted without
// it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

namespace thimble::bench_tools {

// Measured before the benches, 1e9 per second; a multiply-add is two operations. 0: not recorded.
struct Peaks {
  std::string tier;
  int threads = 1;
  double f32_gflops = 0, bf16_gflops = 0, int8_gops = 0, read_gbs = 0, copy_gbs = 0;
};

struct Row {
  std::string name;             // without repetition: Google Benchmark's run_name
  std::vector<double> seconds;  // of one iteration, wall clock, per repetition in the order of the file; never empty
  double flops = 0, bytes = 0;  // of one iteration; 0: not recorded
  double roof_fraction = 0;     // median over repetitions; 0: not recorded
  std::string label;

  double median_seconds() const;
};

struct Record {
  std::string path;
  std::string date;  // as written
  int64_t time = 0;  // seconds since 1970, UTC; 0 where the date is in another form
  // Of the context; empty or 0 where not recorded. A record without a fingerprint gets one of what it does say.
  std::string fingerprint, cpu, tiers, tier, governor, compiler, build_type, commit, host;
  int cores = 0, threads = 0;
  int64_t l1d_bytes = 0, l2_bytes = 0, l3_bytes = 0;
  std::vector<Peaks> peaks;
  std::vector<Row> rows;            // in the order of the file
  std::vector<std::string> failed;  // names of rows that ended with an error

  const Row* find(const std::string& name) const;
  // The measured peaks of a tier ("": the highest that was measured) and thread count; nullptr when there are none.
  const Peaks* peaks_of(const std::string& tier, int threads) const;
};

inline constexpr size_t kRecordBytesMax = size_t{64} << 20;
inline constexpr size_t kRecordRowsMax = 200000;

// Throw input naming file and field. Aggregate rows are skipped; a record of aggregates only is an error with advice.
Record parse_record(std::string_view text, const std::string& path);
Record read_record(const std::string& path);
// Whether a file of JSON could be a bench record at all (it says "benchmarks" somewhere): for searches in folders.
bool looks_like_record(std::string_view text);

// "slot/tier/shape/manual_time" and "driver_…/threads=2/manual_time" in parts.
struct RowName {
  std::string kernel;  // first part
  std::string family;  // kind of the slot in the manifest; driver, model; other
  std::string tier;    // "" where the name has none
  std::string shape;   // the rest, without suffixes of Google Benchmark
  int threads = 1;
};
RowName parse_row_name(const std::string& name);

// For --filter: an expression of std::regex found anywhere in the name; a leading "-" keeps what does not match, as in
// Google Benchmark. "" keeps all. Throws usage.
class NameFilter {
 public:
  explicit NameFilter(const std::string& pattern);
  bool keeps(const std::string& name) const;

 private:
  std::string pattern_;
  std::regex expression_;
  bool inverted_ = false;
};

}  // namespace thimble::bench_tools
