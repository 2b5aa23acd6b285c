#include "train/schedule.h"

#include <algorithm>
#include <cmath>

#include "tensor/error.h"

namespace thimble {

ScheduleKind schedule_from_name(const std::string& name) {
  if (name == "constant") return ScheduleKind::constant;
  if (name == "linear") return ScheduleKind::linear;
  if (name == "cosine") return ScheduleKind::cosine;
  if (name == "wsd") return ScheduleKind::wsd;
  throw Error(ErrorCode::usage, "--schedule: unknown schedule \"" + name + "\"", "valid: constant, linear, cosine, wsd");
}

const char* schedule_name(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::constant: return "constant";
    case ScheduleKind::linear: return "linear";
    case ScheduleKind::cosine: return "cosine";
    case ScheduleKind::wsd: return "wsd";
  }
  return "?";
}

double Schedule::factor(int64_t step, double progress) const {
  if (step < warmup) return double(step) / double(std::max<int64_t>(1, warmup));
  if (kind == ScheduleKind::constant) return 1;
  if (kind == ScheduleKind::wsd) {
    const int64_t from = decay_from >= 0 ? decay_from : total - total * 2 / 5;
    const double at = progress >= 0 ? (progress - 0.6) / 0.4 : double(step - from) / double(std::max<int64_t>(1, total - from));
    return 1 - (1 - min_ratio) * std::clamp(at, 0.0, 1.0);
  }
  double done = progress;
  if (done < 0) done = double(step - warmup) / double(std::max<int64_t>(1, total - warmup));
  done = std::clamp(done, 0.0, 1.0);
  const double shape = kind == ScheduleKind::linear ? 1 - done : 0.5 * (1 + std::cos(M_PI * done));
  return min_ratio + (1 - min_ratio) * shape;
}

}  // namespace thimble
