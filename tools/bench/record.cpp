// Reads Google Benchmark's JSON as a stranger's file: everything is checked before it is used.
#include "tools/bench/record.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>

#include "kernels/kernel_table.h"
#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/lab/stats.h"

namespace thimble::bench_tools {
namespace {

using Json = nlohmann::json;

constexpr double kMostSeconds = 1e9, kMostWork = 1e21;

// "2026-11-21T00:47:14+01:00" -> seconds since 1970; 0 when the text is anything else.
int64_t parse_time(const std::string& text) {
  int year, month, day, hour, minute, second, used = 0;
  if (std::sscanf(text.c_str(), "%4d-%2d-%2dT%2d:%2d:%2d%n", &year, &month, &day, &hour, &minute, &second, &used) !=
          6 ||
      used < 19)
    return 0;
  if (year < 1970 || month < 1 || month > 12 || day < 1 || day > 31 || hour > 24 || minute > 59 || second > 60)
    return 0;
  // Days from civil date, with the year beginning in March so that the leap day comes last.
  const int64_t y = month <= 2 ? year - 1 : year, era = y / 400, of_era = y - era * 400;
  const int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  const int64_t days = era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
  int64_t offset = 0;
  int oh = 0, om = 0;
  char sign = 0;
  if (std::sscanf(text.c_str() + used, "%c%2d:%2d", &sign, &oh, &om) == 3 && (sign == '+' || sign == '-') && oh < 24 &&
      om < 60)
    offset = (sign == '-' ? -1 : 1) * (int64_t{oh} * 3600 + om * 60);
  return days * 86400 + int64_t{hour} * 3600 + minute * 60 + second - offset;
}

// Context values of thimble_bench are strings, because Google Benchmark knows no other kind.
int64_t whole_number(const JsonObject& context, const std::string& key) {
  if (!context.has(key)) return 0;
  const std::string text = context.require_string(key);
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos)
    context.fail(key, "a whole number in a string");
  return std::stoll(text);
}

// "peaks_TIER": "[{\"threads\": 1, \"f32_gflops\": ...}, ...]"
void read_peaks(const JsonObject& context, const std::string& key, std::vector<Peaks>& peaks) {
  const std::string where = context.file() + ": context." + key;
  const Json list = parse_json(context.require_string(key), where);
  if (!list.is_array() || list.size() > 4096) context.fail(key, "a list of peaks in JSON");
  for (size_t i = 0; i < list.size(); ++i) {
    const JsonObject o(list[i], where, fmt::format("[{}]", i));
    Peaks p;
    p.tier = key.substr(6);
    p.threads = static_cast<int>(o.require_int("threads", 1, 4096));
    p.f32_gflops = o.get_double("f32_gflops", 0, 0, 1e9);
    p.bf16_gflops = o.get_double("bf16_gflops", 0, 0, 1e9);
    p.int8_gops = o.get_double("int8_gops", 0, 0, 1e9);
    p.read_gbs = o.get_double("read_gbs", 0, 0, 1e9);
    p.copy_gbs = o.get_double("copy_gbs", 0, 0, 1e9);
    peaks.push_back(p);
  }
}

int tier_order(const std::string& name) {
  Tier tier;
  return tier_from_name(name.c_str(), &tier) ? static_cast<int>(tier) : -1;
}

void read_context(const JsonObject& context, Record& r) {
  r.date = context.get_string("date", "");
  r.time = parse_time(r.date);
  r.host = context.get_string("host_name", "");
  r.fingerprint = context.get_string("fingerprint", "");
  r.cpu = context.get_string("cpu", "");
  r.tiers = context.get_string("tiers", "");
  r.tier = context.get_string("tier", "");
  r.governor = context.get_string("governor", "");
  r.compiler = context.get_string("compiler", "");
  r.build_type = context.get_string("thimble_build_type", "");
  r.commit = context.get_string("commit", "");
  r.threads = static_cast<int>(std::min<int64_t>(whole_number(context, "threads"), 1 << 20));
  r.cores = static_cast<int>(context.has("cores") ? std::min<int64_t>(whole_number(context, "cores"), 1 << 20)
                                                  : context.get_int("num_cpus", 0, 0, 1 << 20));
  r.l1d_bytes = whole_number(context, "l1d_bytes");
  r.l2_bytes = whole_number(context, "l2_bytes");
  r.l3_bytes = whole_number(context, "l3_bytes");
  for (const auto& [key, value] : context.json().items())
    if (key.rfind("peaks_", 0) == 0) read_peaks(context, key, r.peaks);
  std::stable_sort(r.peaks.begin(), r.peaks.end(), [](const Peaks& a, const Peaks& b) {
    return std::pair(tier_order(a.tier), a.threads) < std::pair(tier_order(b.tier), b.threads);
  });
  if (!r.fingerprint.empty()) return;
  // What another program's file says about its machine. Clock speeds are left out: they drift.
  const Json* caches = context.find("caches");
  r.fingerprint =
      "other-" +
      sha256_hex(fmt::format("{}|{}|{}|{}", r.host, r.cpu, r.cores, caches ? caches->dump() : "")).substr(0, 12);
}

double seconds_per_unit(const JsonObject& row) {
  const std::string unit = row.get_string("time_unit", "ns");
  if (unit == "ns") return 1e-9;
  if (unit == "us") return 1e-6;
  if (unit == "ms") return 1e-3;
  if (unit == "s") return 1;
  row.fail("time_unit", "ns, us, ms or s");
}

bool is_aggregate(const JsonObject& row, const std::string& name) {
  if (row.has("run_type")) {
    const std::string type = row.require_string("run_type");
    if (type != "iteration" && type != "aggregate") row.fail("run_type", "iteration or aggregate");
    return type == "aggregate";
  }
  if (row.has("aggregate_name")) return true;
  for (const char* end : {"_mean", "_median", "_stddev", "_cv", "_BigO", "_RMS"}) {  // files from before run_type
    const std::string suffix = end;
    if (name.size() > suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0)
      return true;
  }
  return false;
}

std::regex compile(const std::string& pattern) {
  try {
    if (pattern.size() <= 1000) return std::regex(pattern);
  } catch (const std::regex_error& e) {
    throw Error(ErrorCode::usage,
                fmt::format("--filter: {} is not a regular expression: {}", quote_for_message(pattern), e.what()),
                "for example --filter 'softmax|rms_norm', or --filter '-probe' for all but the probes");
  }
  throw Error(ErrorCode::usage, "--filter: the expression is longer than 1000 characters");
}

}  // namespace

double Row::median_seconds() const { return lab::median(seconds); }

const Row* Record::find(const std::string& name) const {
  for (const Row& r : rows)
    if (r.name == name) return &r;
  return nullptr;
}

const Peaks* Record::peaks_of(const std::string& wanted, int thread_count) const {
  const Peaks* found = nullptr;
  for (const Peaks& p : peaks)  // ascending tiers: the last one is the highest
    if ((wanted.empty() || p.tier == wanted) && p.threads == thread_count) found = &p;
  return found;
}

bool looks_like_record(std::string_view text) { return text.find("\"benchmarks\"") != std::string_view::npos; }

Record parse_record(std::string_view text, const std::string& path) {
  const Json json = parse_json(text, path);
  const JsonObject root(json, path);
  Record r;
  r.path = path;
  const Json* rows = root.find("benchmarks");
  if (!rows || !rows->is_array()) root.fail("benchmarks", "the list of a Google Benchmark record");
  if (rows->size() > kRecordRowsMax) root.fail("benchmarks", fmt::format("at most {} rows", kRecordRowsMax));
  const Json nothing = Json::object();
  const auto context = root.object("context");
  read_context(context ? *context : JsonObject(nothing, path, "context"), r);

  std::map<std::string, size_t> index;
  std::vector<std::vector<double>> fractions;
  size_t aggregates = 0;
  for (size_t i = 0; i < rows->size(); ++i) {
    const JsonObject row((*rows)[i], path, fmt::format("benchmarks[{}]", i));
    const std::string full_name = row.require_string("name");
    if (is_aggregate(row, full_name)) {
      ++aggregates;
      continue;
    }
    const std::string name = row.get_string("run_name", full_name);
    if (name.empty() || name.size() > 1000) row.fail("run_name", "a name of 1 to 1000 characters");
    if (row.get_bool("error_occurred", false) || row.get_bool("skipped", false)) {
      r.failed.push_back(name);
      continue;
    }
    const double seconds = row.require_double("real_time", 0, 1e30) * seconds_per_unit(row);
    if (!(seconds > 0) || seconds > kMostSeconds) row.fail("real_time", "a positive time");
    const auto [at, is_new] = index.emplace(name, r.rows.size());
    if (is_new) {
      Row fresh;
      fresh.name = name;
      fresh.flops = row.get_double("flops", 0, 0, kMostWork);
      fresh.bytes = row.get_double("bytes", 0, 0, kMostWork);
      fresh.label = row.get_string("label", "");
      r.rows.push_back(fresh);
      fractions.emplace_back();
    }
    r.rows[at->second].seconds.push_back(seconds);
    if (row.has("roof_fraction")) fractions[at->second].push_back(row.require_double("roof_fraction", 0, 1e9));
  }
  for (size_t i = 0; i < r.rows.size(); ++i)
    if (!fractions[i].empty()) r.rows[i].roof_fraction = lab::median(fractions[i]);
  if (r.rows.empty() && aggregates > 0)
    throw Error(ErrorCode::input,
                fmt::format("{}: field \"benchmarks\": {} aggregates and no single run", path, aggregates),
                "record again without --benchmark_report_aggregates_only: medians and intervals are computed here, "
                "from the repetitions");
  if (r.rows.empty() && r.failed.empty())
    throw Error(ErrorCode::input, path + ": field \"benchmarks\": expected at least one run, found none",
                "did --filter match anything?");
  return r;
}

Record read_record(const std::string& path) { return parse_record(read_file(path, kRecordBytesMax), path); }

RowName parse_row_name(const std::string& name) {
  RowName out;
  std::vector<std::string> parts;
  for (size_t at = 0; at <= name.size();) {
    const size_t end = std::min(name.find('/', at), name.size());
    parts.push_back(name.substr(at, end - at));
    at = end + 1;
  }
  out.kernel = parts[0];
  SlotId slot;
  if (slot_from_name(out.kernel.c_str(), &slot))
    out.family = slot_kind(slot);
  else if (out.kernel.rfind("driver_", 0) == 0)
    out.family = "driver";
  else if (out.kernel.rfind("model_", 0) == 0)
    out.family = "model";
  else
    out.family = "other";
  for (size_t i = 1; i < parts.size(); ++i) {
    const std::string& p = parts[i];
    if (i == 1 && tier_order(p) >= 0) {
      out.tier = p;
      continue;
    }
    if (p == "manual_time" || p == "real_time" || p == "process_time" || p.rfind("min_time:", 0) == 0 ||
        p.rfind("repeats:", 0) == 0 || p.rfind("iterations:", 0) == 0 || p.rfind("min_warmup_time:", 0) == 0)
      continue;
    if (p.rfind("threads=", 0) == 0 || p.rfind("threads:", 0) == 0) {
      const std::string digits = p.substr(8);
      if (!digits.empty() && digits.size() < 6 && digits.find_first_not_of("0123456789") == std::string::npos)
        out.threads = std::max(1, std::stoi(digits));
    }
    out.shape += (out.shape.empty() ? "" : "/") + p;
  }
  return out;
}

NameFilter::NameFilter(const std::string& pattern) : pattern_(pattern) {
  if (!pattern_.empty() && pattern_[0] == '-') {
    inverted_ = true;
    pattern_.erase(0, 1);
  }
  if (!pattern_.empty()) expression_ = compile(pattern_);
}

bool NameFilter::keeps(const std::string& name) const {
  return pattern_.empty() || std::regex_search(name, expression_) != inverted_;
}

}  // namespace thimble::bench_tools
