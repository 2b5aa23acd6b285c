#include "tools/cli/profile_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tensor/file.h"

namespace thimble::cli {

std::vector<ProfileRow> profile_rows(const Trace& trace, const Roofline& peaks) {
  const double total = std::max(1e-12, double(trace.nanoseconds()) * 1e-9);
  std::vector<ProfileRow> rows;
  double outside = total;
  for (const ZoneRow& z : trace.rows()) {
    ProfileRow r;
    r.name = zone_row_name(z.key);
    r.calls = z.calls;
    r.seconds = double(z.nanoseconds) * 1e-9;
    r.share = r.seconds / total;
    outside -= r.seconds;
    const double seconds = std::max(r.seconds, 1e-12);
    r.gflops = z.flops / seconds / 1e9;
    r.gbs = z.bytes / seconds / 1e9;
    const double peak = z.key.arithmetic == Arithmetic::int8   ? peaks.int8_gops
                        : z.key.arithmetic == Arithmetic::bf16 ? peaks.bf16_gflops
                                                               : peaks.f32_gflops;
    if (z.flops + z.bytes > 0 && peak > 0 && peaks.read_gbs > 0)
      r.roof_fraction = std::max(r.gflops / peak, r.gbs / peaks.read_gbs);
    rows.push_back(r);
  }
  ProfileRow other;
  other.name = "other";
  other.seconds = std::max(0.0, outside);
  other.share = other.seconds / total;
  rows.push_back(other);
  std::stable_sort(rows.begin(), rows.end(),
                   [](const ProfileRow& a, const ProfileRow& b) { return a.seconds > b.seconds; });
  return rows;
}

std::pair<double, double> total_work(const Trace& trace) {
  double flops = 0, bytes = 0;
  for (const ZoneRow& z : trace.rows()) {
    flops += z.flops;
    bytes += z.bytes;
  }
  return {flops, bytes};
}

nlohmann::ordered_json profile_json(const std::vector<ProfileRow>& rows) {
  auto list = nlohmann::ordered_json::array();
  for (const ProfileRow& r : rows) {
    nlohmann::ordered_json row = {{"name", r.name},   {"calls", r.calls},   {"seconds", r.seconds},
                                  {"share", r.share}, {"gflops", r.gflops}, {"gbs", r.gbs}};
    row["roof_fraction"] =
        r.roof_fraction < 0 ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(r.roof_fraction);
    list.push_back(row);
  }
  return list;
}

std::string profile_text(const std::vector<ProfileRow>& rows) {
  constexpr int kBar = 24;
  size_t width = 4;
  for (const ProfileRow& r : rows) width = std::max(width, r.name.size());
  std::string text = fmt::format("  {:<{}} {:>7}  {:<{}} {:>8} {:>10} {:>9} {:>7} {:>8}\n", "zone", width, "share", "",
                                 kBar, "calls", "ms", "GFLOP/s", "GB/s", "of roof");
  for (const ProfileRow& r : rows) {
    const auto filled = static_cast<size_t>(std::lround(std::clamp(r.share, 0.0, 1.0) * kBar));
    text += fmt::format("  {:<{}} {:>5.1f} %  {:<{}} {:>8} {:>10.3f} {:>9} {:>7} {:>8}\n", r.name, width, 100 * r.share,
                        std::string(filled, '#'), kBar, r.name == "other" ? "" : std::to_string(r.calls),
                        1e3 * r.seconds, r.roof_fraction < 0 ? "" : fmt::format("{:.1f}", r.gflops),
                        r.roof_fraction < 0 ? "" : fmt::format("{:.1f}", r.gbs),
                        r.roof_fraction < 0 ? "" : fmt::format("{:.0f} %", 100 * r.roof_fraction));
  }
  return text;
}

int64_t write_trace_file(const std::string& path, const std::vector<std::pair<std::string, const Trace*>>& tracks) {
  AtomicFile file(path);
  int64_t bytes = 0;
  const auto put = [&](const std::string& text) {
    file.write(text);
    bytes += static_cast<int64_t>(text.size());
  };
  int64_t dropped = 0, origin = std::numeric_limits<int64_t>::max();
  std::vector<std::vector<Trace::Event>> events;
  for (const auto& track : tracks) {
    events.push_back(track.second->events());
    dropped += track.second->dropped();
    if (!events.back().empty()) origin = std::min(origin, events.back().front().start_ns);
  }
  put(
      fmt::format("{{\"displayTimeUnit\":\"ns\",\"otherData\":{{\"program\":\"thimble "
                  "profile\",\"dropped_events\":{}}},\"traceEvents\":[\n"
                  "{{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"tid\":0,\"args\":{{\"name\":\"thimble\"}}}}",
                  dropped));
  for (size_t t = 0; t < tracks.size(); ++t) {
    put(fmt::format(",\n{{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":{},\"args\":{{\"name\":{}}}}}", t + 1,
                    nlohmann::json(tracks[t].first).dump()));
    for (const Trace::Event& e : events[t]) {
      put(fmt::format(",\n{{\"name\":\"{}\",\"ph\":\"X\",\"pid\":1,\"tid\":{},\"ts\":{:.3f},\"dur\":{:.3f}",
                      tracks[t].second->event_name(e), t + 1, double(e.start_ns - origin) / 1e3,
                      double(e.duration_ns) / 1e3));
      if (e.flops + e.bytes > 0) put(fmt::format(",\"args\":{{\"flops\":{:.6g},\"bytes\":{:.6g}}}", e.flops, e.bytes));
      put("}");
    }
  }
  put("\n]}\n");
  file.commit();
  return bytes;
}

}  // namespace thimble::cli
