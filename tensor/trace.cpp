#include "tensor/trace.h"

#include <algorithm>
#include <chrono>

#include "tensor/error.h"

#if defined(__x86_64__)
#include <x86intrin.h>
#define THIMBLE_HAS_TSC 1
#else
#define THIMBLE_HAS_TSC 0
#endif

namespace thimble {

constinit thread_local Trace* t_trace = nullptr;

namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Zones read the time-stamp counter, in half the time of a system call without a switch: it runs at one rate on every
// x86-64 machine that has AVX2. What a tick is follows from both clocks between start() and stop().
int64_t now_ticks() {
#if THIMBLE_HAS_TSC
  return static_cast<int64_t>(__rdtsc());
#else
  return now_ns();
#endif
}

}  // namespace

const char* zone_name(Zone zone) {
  static const char* const names[kZoneCount] = {
      "embed", "linear",   "linear_bwd", "head",      "lora",          "lora_bwd",   "quantize_activations",
      "norm",  "norm_bwd", "rope",       "attention", "attention_bwd", "activation", "activation_bwd",
      "loss",  "add",      "optimizer",  "sample"};
  return names[static_cast<int>(zone)];
}

std::string zone_row_name(const ZoneKey& key) {
  std::string name = zone_name(key.zone);
  static const char* const products[] = {"", "gemv", "gemm", "dx", "dw"};
  static const char* const arithmetics[] = {"f32", "bf16", "int8_act"};
  const std::string arithmetic = std::string("/") + arithmetics[static_cast<int>(key.arithmetic)];
  if (key.product == Product::none) return key.arithmetic == Arithmetic::f32 ? name : name + arithmetic;
  name += std::string("/") + products[static_cast<int>(key.product)] + "/" + format_name(key.format);
  if (is_tiled(key.format)) name += key.group > 0 ? "_g" + std::to_string(key.group) : "_row";
  return name + arithmetic;
}

Trace::Trace(size_t max_events) : max_events_(max_events) {
  for (int z = 0; z < kZoneCount; ++z) rows_[z].key.zone = static_cast<Zone>(z);
  events_.reserve(max_events);
}

void Trace::start() {
  THIMBLE_CHECK(!t_trace);
  t_trace = this;
  started_ns_ = now_ns();
  started_ticks_ = now_ticks();
}

void Trace::stop() {
  if (t_trace != this) return;
  THIMBLE_CHECK(!open_);
  ticks_ += now_ticks() - started_ticks_;
  nanoseconds_ += now_ns() - started_ns_;
  t_trace = nullptr;
}

std::vector<ZoneRow> Trace::rows() const {
  const double scale = tick_ns();
  std::vector<ZoneRow> list;
  for (int z = 0; z < kZoneCount; ++z)
    for (int r = z; r < row_count_; r = r < kZoneCount ? kZoneCount : r + 1)
      if (rows_[r].calls > 0 && rows_[r].key.zone == static_cast<Zone>(z)) {
        list.push_back(rows_[r]);
        list.back().nanoseconds = static_cast<int64_t>(double(rows_[r].ticks) * scale);
      }
  return list;
}

std::vector<Trace::Event> Trace::events() const {
  std::vector<Event> list = events_;
  // Outer zones end later but come first; with equal starts the longer one is the outer one.
  std::sort(list.begin(), list.end(), [](const Event& a, const Event& b) {
    return a.start_ns != b.start_ns ? a.start_ns < b.start_ns : a.duration_ns > b.duration_ns;
  });
  const double scale = tick_ns();
  for (Event& e : list) {
    e.start_ns = started_ns_ + static_cast<int64_t>(double(e.start_ns - started_ticks_) * scale);
    e.duration_ns = static_cast<int64_t>(double(e.duration_ns) * scale);
  }
  return list;
}

int Trace::product_row(ZoneKey key) {
  if (open_) {
    const ZoneScope* outermost = open_;
    while (outermost->parent_) outermost = outermost->parent_;
    key.zone = rows_[outermost->row_].key.zone;
  } else {
    key.zone = owner_ == Zone::count ? Zone::linear : owner_;
  }
  return row_of(key);
}

int Trace::row_of(const ZoneKey& key) {
  for (int r = kZoneCount; r < row_count_; ++r)
    if (rows_[r].key == key) return r;
  if (row_count_ == kMaxRows) return static_cast<int>(key.zone);  // too many kinds: counted with their zone
  rows_[row_count_].key = key;
  return row_count_++;
}

void ZoneScope::open(int row) {
  trace_ = t_trace;
  parent_ = trace_->open_;
  trace_->open_ = this;
  row_ = row;
  inside_ = 0;
  flops_ = bytes_ = 0;
  start_ = now_ticks();
}

void ZoneScope::close() {
  const int64_t duration = now_ticks() - start_;
  ZoneRow& row = trace_->rows_[row_];
  ++row.calls;
  row.ticks += duration - inside_;
  row.flops += flops_;
  row.bytes += bytes_;
  trace_->open_ = parent_;
  if (parent_) parent_->inside_ += duration;
  if (trace_->max_events_ == 0) return;
  const Trace::Event event{start_, duration, static_cast<float>(flops_), static_cast<float>(bytes_),
                           static_cast<uint8_t>(row_)};
  const size_t slot = static_cast<size_t>(trace_->seen_++) % trace_->max_events_;
  if (slot == trace_->events_.size())
    trace_->events_.push_back(event);
  else
    trace_->events_[slot] = event;
}

void trace_work(double flops, double bytes) {
  if (ZoneScope* zone = t_trace->open_) {
    zone->flops_ += flops;
    zone->bytes_ += bytes;
  }
}

}  // namespace thimble
