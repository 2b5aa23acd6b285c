// Finds records and lines them up.
#include "tools/bench/history.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>
#include <tuple>

#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble::bench_tools {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string below(const std::string& path, const std::string& root) {
  const std::string start = root.empty() || root.back() == '/' ? root : root + "/";
  return path.compare(0, start.size(), start) == 0 ? path.substr(start.size()) : path;
}

Json change_json(const ComparedRow& c) {
  return {{"ratio", c.ratio},
          {"lo", c.lo},
          {"hi", c.hi},
          {"p", c.p},
          {"threshold", c.threshold},
          {"verdict", verdict_name(c.verdict)}};
}

}  // namespace

std::vector<Record> read_records(const std::string& dir, std::vector<Skipped>* skipped) {
  if (!is_directory(dir))
    throw Error(ErrorCode::input, dir + ": not a folder", "give a folder of bench records (thimble bench --json FILE)");
  std::vector<std::string> paths;
  std::error_code failed;
  for (auto it = fs::recursive_directory_iterator(dir, fs::directory_options::skip_permission_denied, failed);
       !failed && it != fs::recursive_directory_iterator(); it.increment(failed)) {
    std::error_code unknown;
    if (it->path().extension() == ".json" && fs::is_regular_file(it->symlink_status(unknown)))
      paths.push_back(it->path().string());
  }
  if (failed) throw Error(ErrorCode::input, dir + ": cannot be listed: " + failed.message());
  std::sort(paths.begin(), paths.end());
  std::vector<Record> records;
  for (const std::string& path : paths) {
    try {
      const std::string text = read_file(path, kRecordBytesMax);
      if (!looks_like_record(text))
        skipped->push_back({path, "no bench record: it has no list \"benchmarks\""});
      else
        records.push_back(parse_record(text, path));
    } catch (const Error& e) {
      skipped->push_back({path, e.what()});
    }
  }
  if (records.empty())
    throw Error(ErrorCode::input,
                dir + ": holds no bench record" +
                    (skipped->empty() ? "" : "; " + skipped->front().path + ": " + skipped->front().reason),
                "record some: thimble bench --json DIR/NAME.json --benchmark_repetitions=9");
  std::stable_sort(records.begin(), records.end(), [](const Record& a, const Record& b) {
    return std::tie(a.time, a.path) < std::tie(b.time, b.path);
  });
  return records;
}

std::vector<History> histories(const std::vector<Record>& records, const CompareOptions& options) {
  const NameFilter filter(options.filter);
  std::vector<History> machines;
  std::map<std::string, size_t> index;
  for (const Record& r : records) {
    const auto [at, is_new] = index.emplace(r.fingerprint, machines.size());
    if (is_new) machines.emplace_back();
    History& h = machines[at->second];
    h.fingerprint = r.fingerprint;
    if (h.cpu.empty()) h.cpu = r.cpu.empty() ? r.host : r.cpu;
    h.records.push_back(&r);
  }
  for (History& h : machines) {
    std::map<std::string, Series> by_name;
    for (size_t i = 0; i < h.records.size(); ++i) {
      for (const Row& row : h.records[i]->rows) {
        if (!filter.keeps(row.name)) continue;
        Series& s = by_name[row.name];
        Point p;
        p.record = i;
        p.row = &row;
        p.seconds = median_interval(row, options.alpha);
        if (s.points.empty()) {
          s.name = row.name;
          s.parts = parse_row_name(row.name);
        } else {
          p.has_change = true;
          p.change = compare_rows(*s.points.back().row, row, options);
        }
        s.points.push_back(std::move(p));
      }
      const Record& r = *h.records[i];
      if (r.peaks_of("", 1)) {
        h.newest_rows.peaks = r.peaks;
        h.newest_rows.tier = r.tier;
      }
    }
    for (auto& [name, s] : by_name) {
      if (s.points.size() > 1) s.since_first = compare_rows(*s.points.front().row, *s.points.back().row, options);
      h.newest_rows.rows.push_back(*s.points.back().row);
      h.series.push_back(std::move(s));
    }
    const Record& last = *h.records.back();
    h.newest_rows.path = last.path;
    h.newest_rows.cpu = h.cpu;
    h.newest_rows.date = last.date;
    h.newest_rows.commit = last.commit;
    h.newest_rows.compiler = last.compiler;
    std::stable_sort(h.series.begin(), h.series.end(),
                     [](const Series& a, const Series& b) { return a.parts.family < b.parts.family; });
  }
  machines.erase(std::remove_if(machines.begin(), machines.end(), [](const History& h) { return h.series.empty(); }),
                 machines.end());
  if (machines.empty()) throw Error(ErrorCode::usage, "--filter: no benchmark of any record matches");
  std::stable_sort(machines.begin(), machines.end(),
                   [](const History& a, const History& b) { return a.records.size() > b.records.size(); });
  return machines;
}

Json history_json(const std::vector<History>& machines, const std::vector<Skipped>& skipped, const std::string& root) {
  Json json = {{"schema", "thimble.dashboard_bench/1"}, {"machines", Json::array()}, {"skipped", Json::array()}};
  for (const History& h : machines) {
    Json m = {{"fingerprint", h.fingerprint}, {"cpu", h.cpu}, {"records", Json::array()}, {"series", Json::array()}};
    for (const Record* r : h.records)
      m["records"].push_back({{"path", below(r->path, root)},
                              {"date", r->date},
                              {"commit", r->commit},
                              {"compiler", r->compiler},
                              {"build_type", r->build_type}});
    for (const Series& s : h.series) {
      Json points = Json::array();
      for (const Point& p : s.points) {
        Json point = {{"record", p.record},
                      {"seconds", p.seconds.median},
                      {"lo", p.seconds.lo},
                      {"hi", p.seconds.hi},
                      {"runs", p.row->seconds.size()}};
        if (p.has_change) point["change"] = change_json(p.change);
        points.push_back(std::move(point));
      }
      Json series = {{"name", s.name}, {"family", s.parts.family}, {"points", std::move(points)}};
      if (s.points.size() > 1) series["since_first"] = change_json(s.since_first);
      m["series"].push_back(std::move(series));
    }
    json["machines"].push_back(std::move(m));
  }
  for (const Skipped& s : skipped) json["skipped"].push_back({{"path", below(s.path, root)}, {"reason", s.reason}});
  return json;
}

}  // namespace thimble::bench_tools
