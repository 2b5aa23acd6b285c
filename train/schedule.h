// Learning rate over a run: linear warm-up from 0, then constant, linear or cosine decay to min_ratio of the peak, or wsd
// (warm-up, stable, decay): constant until decay_from, then linear decay.
#pragma once

#include <cstdint>
#include <string>

namespace thimble {

enum class ScheduleKind : uint8_t { constant, linear, cosine, wsd };
// Throws usage, listing the names.
ScheduleKind schedule_from_name(const std::string& name);
const char* schedule_name(ScheduleKind kind);

struct Schedule {
  ScheduleKind kind = ScheduleKind::cosine;
  int64_t warmup = 0, total = 0;
  double min_ratio = 0;
  int64_t decay_from = -1;  // wsd; -1: the last 40 % of the run decay
  // Share of the peak rate at step (from 0); progress, when not negative, replaces step / total (wall-clock budgets).
  double factor(int64_t step, double progress = -1) const;
};

}  // namespace thimble
