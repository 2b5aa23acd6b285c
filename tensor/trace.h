// Where the time goes: a closed list of zones, each a counter of calls and nanoseconds. Off by default; an inactive zone
// costs one load and a branch.
#pragma once

#include <chrono>
#include <cstdint>

namespace thimble {

enum class Zone : int { embed, linear, linear_bwd, norm, norm_bwd, rope, attention, attention_bwd, activation, activation_bwd,
                        loss, add, optimizer, sample, count };
constexpr int kZoneCount = static_cast<int>(Zone::count);
const char* zone_name(Zone zone);

struct ZoneStats {
  int64_t calls = 0, nanoseconds = 0;
};

struct Trace {
  bool enabled = false;
  ZoneStats zones[kZoneCount];
};
// Zones open on the thread that drives the context only, so plain counters are enough.
extern Trace g_trace;

class ZoneScope {
 public:
  explicit ZoneScope(Zone zone) : zone_(zone) {
    if (g_trace.enabled) start_ = now();
  }
  ~ZoneScope() {
    if (start_) {
      ZoneStats& s = g_trace.zones[static_cast<int>(zone_)];
      ++s.calls;
      s.nanoseconds += now() - start_;
    }
  }
  ZoneScope(const ZoneScope&) = delete;
  ZoneScope& operator=(const ZoneScope&) = delete;

 private:
  static int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  Zone zone_;
  int64_t start_ = 0;
};

#define THIMBLE_ZONE(name) const ::thimble::ZoneScope zone_scope_##name(::thimble::Zone::name)

}  // namespace thimble
