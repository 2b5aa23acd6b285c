// Bench records for tests, as Google Benchmark writes them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace thimble::tools_test {

using Json = nlohmann::ordered_json;

struct FakeRow {
  std::string name;
  std::vector<double> microseconds;  // of the repetitions
  double flops = 0, bytes = 0;       // 0: not written
};

struct FakeRecord {
  std::string date = "2026-01-02T03:04:05+00:00", commit = "0123456789ab", fingerprint = "feedfeedfeed",
              cpu = "Test CPU <1>";
  bool peaks = true;
  std::vector<FakeRow> rows;

  Json json() const {
    Json context = {{"date", date},
                    {"host_name", "host"},
                    {"num_cpus", 2},
                    {"caches", Json::array()},
                    {"cpu", cpu},
                    {"commit", commit},
                    {"fingerprint", fingerprint},
                    {"tier", "avx512"},
                    {"threads", "2"},
                    {"cores", "2"},
                    {"l1d_bytes", "49152"},
                    {"compiler", "clang 14"},
                    {"thimble_build_type", "Release"},
                    {"governor", "unknown"}};
    if (peaks) {
      context["peaks_ref"] =
          R"([{"threads": 1, "f32_gflops": 6, "bf16_gflops": 4, "int8_gops": 8, "read_gbs": 7, "copy_gbs": 6}])";
      context["peaks_avx512"] =
          R"([{"threads": 1, "f32_gflops": 260, "bf16_gflops": 520, "int8_gops": 1040, "read_gbs": 30, "copy_gbs": 20},)"
          R"( {"threads": 2, "f32_gflops": 520, "bf16_gflops": 1040, "int8_gops": 2080, "read_gbs": 40, "copy_gbs": 25}])";
    }
    Json list = Json::array();
    for (const FakeRow& row : rows) {
      for (size_t i = 0; i < row.microseconds.size(); ++i) {
        Json r = {{"name", row.name},        {"run_name", row.name},
                  {"run_type", "iteration"}, {"repetitions", row.microseconds.size()},
                  {"repetition_index", i},   {"threads", 1},
                  {"iterations", 10},        {"real_time", row.microseconds[i]},
                  {"cpu_time", 1.0},         {"time_unit", "us"}};
        if (row.flops > 0) r["flops"] = row.flops;
        if (row.bytes > 0) r["bytes"] = row.bytes;
        if (row.flops > 0) r["roof_fraction"] = 0.5;
        list.push_back(r);
      }
      if (row.microseconds.size() < 2) continue;
      for (const char* what : {"mean", "cv"})  // must be passed over
        list.push_back({{"name", row.name + "_" + what},
                        {"run_name", row.name},
                        {"run_type", "aggregate"},
                        {"aggregate_name", what},
                        {"real_time", 7.0},
                        {"time_unit", "us"}});
    }
    return {{"context", context}, {"benchmarks", list}};
  }
  std::string text() const { return json().dump(1); }
};

inline std::vector<double> times(std::vector<double> values, double factor) {
  for (double& v : values) v *= factor;
  return values;
}

// Median 100, median absolute deviation 1.
inline const std::vector<double> kNine = {100, 101, 99, 100, 102, 98, 100, 101, 99};

}  // namespace thimble::tools_test
