// Where the time goes. An op opens a zone; a Trace that runs on the thread counts calls, time, flops and bytes per row: a
// row is a zone, or a product inside one, told apart by kind, weight format and arithmetic ("linear/gemm/q4_g128/int8_act").
// Zones nest: the time of a row is its own, without that of the zones inside it, so the rows and what lies outside of all
// zones add up to the whole. Without a running trace a zone costs one load and a branch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/weight_format.h"

namespace thimble {

enum class Zone : uint8_t { embed, linear, linear_bwd, head, lora, lora_bwd, quantize_activations, norm, norm_bwd, rope,
                            attention, attention_bwd, activation, activation_bwd, loss, add, optimizer, sample, count };
constexpr int kZoneCount = static_cast<int>(Zone::count);
const char* zone_name(Zone zone);

// Products of weights are rows of their own. gemv: at most 4 rows.
enum class Product : uint8_t { none, gemv, gemm, dx, dw };
// What the multiplications of a row run in, and so the peak that judges them.
enum class Arithmetic : uint8_t { f32, bf16, int8 };

struct ZoneKey {
  Zone zone = Zone::count;
  Product product = Product::none;
  Arithmetic arithmetic = Arithmetic::f32;
  WeightFormat format = WeightFormat::f32;  // of a product
  uint16_t group = 0;                       // of tiles; 0: one per row
  bool operator==(const ZoneKey&) const = default;
};
// "norm"; "attention/bf16"; "loss/dw/f32/bf16": zone, product, weight format, arithmetic.
std::string zone_row_name(const ZoneKey& key);

struct ZoneRow {
  ZoneKey key;
  int64_t calls = 0, nanoseconds = 0;  // without the zones inside; like products of one input are one call
  int64_t ticks = 0;                   // the same, in ticks of the clock that zones read
  double flops = 0, bytes = 0;         // bytes: traffic that cannot be avoided, every operand once
};

class ZoneScope;

// Belongs to one thread at a time: the one that called start(). Others that drive ops have traces of their own.
class Trace {
 public:
  struct Event {
    int64_t start_ns, duration_ns;  // of the steady clock, with the zones inside
    float flops, bytes;
    uint8_t row;
  };

  // max_events: single zones that are kept, the newest ones; 0: only the rows.
  explicit Trace(size_t max_events = 0);
  ~Trace() { stop(); }
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  // Zones of the calling thread count from here. No other trace may run on it.
  void start();
  void stop();

  // Rows that were opened, in the order of the list of zones.
  std::vector<ZoneRow> rows() const;
  // Between start() and stop(), all of them together.
  int64_t nanoseconds() const { return nanoseconds_; }
  // Kept events in the order in which they began, and how many older ones were not kept.
  std::vector<Event> events() const;
  int64_t dropped() const { return seen_ - static_cast<int64_t>(events_.size()); }
  std::string event_name(const Event& event) const { return zone_row_name(rows_[event.row].key); }

 private:
  friend class ZoneScope;
  friend class ZoneOwner;
  friend void trace_work(double flops, double bytes);
  int product_row(ZoneKey key);
  int row_of(const ZoneKey& key);
  static constexpr int kMaxRows = 128;
  ZoneRow rows_[kMaxRows];
  int row_count_ = kZoneCount;
  ZoneScope* open_ = nullptr;
  Zone owner_ = Zone::count;  // of products outside of zones; count: linear
  double tick_ns() const { return ticks_ > 0 ? double(nanoseconds_) / double(ticks_) : 1; }
  int64_t started_ns_ = 0, started_ticks_ = 0, nanoseconds_ = 0, ticks_ = 0, seen_ = 0;
  size_t max_events_;
  std::vector<Event> events_;  // in ticks
};

// The trace that runs on this thread; null: none.
extern constinit thread_local Trace* t_trace;
inline bool tracing() { return t_trace != nullptr; }

class ZoneScope {
 public:
  explicit ZoneScope(Zone zone) {
    if (tracing()) open(static_cast<int>(zone));
  }
  // Work whose multiplications may run in another arithmetic: a row of its own for each.
  ZoneScope(Zone zone, Arithmetic arithmetic) {
    if (tracing()) open(arithmetic == Arithmetic::f32 ? static_cast<int>(zone) : t_trace->row_of({zone, Product::none, arithmetic}));
  }
  // A product; its row is named after the outermost open zone, else the owner, whatever key.zone says.
  explicit ZoneScope(const ZoneKey& product) {
    if (tracing()) open(t_trace->product_row(product));
  }
  ~ZoneScope() {
    if (trace_) close();
  }
  ZoneScope(const ZoneScope&) = delete;
  ZoneScope& operator=(const ZoneScope&) = delete;

 private:
  friend class Trace;
  friend void trace_work(double flops, double bytes);
  void open(int row);
  void close();
  Trace* trace_ = nullptr;
  ZoneScope* parent_;
  int64_t start_, inside_;  // ticks; of the zones inside
  double flops_, bytes_;
  int row_;
};

// Names the products that an op makes where it does nothing else worth a zone. The outermost one counts.
class ZoneOwner {
 public:
  explicit ZoneOwner(Zone zone) {
    if (!tracing() || t_trace->owner_ != Zone::count) return;
    trace_ = t_trace;
    trace_->owner_ = zone;
  }
  ~ZoneOwner() {
    if (trace_) trace_->owner_ = Zone::count;
  }
  ZoneOwner(const ZoneOwner&) = delete;
  ZoneOwner& operator=(const ZoneOwner&) = delete;

 private:
  Trace* trace_ = nullptr;
};

// Adds to the innermost open zone. Only while tracing().
void trace_work(double flops, double bytes);

#define THIMBLE_ZONE(name) const ::thimble::ZoneScope zone_scope_##name(::thimble::Zone::name)

}  // namespace thimble
