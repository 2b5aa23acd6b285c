// Counters around a piece of work: what the CPU counts, where the machine lets one ask, and what the kernel counts
// always. An interface, so that what is made of the readings is tested on recorded ones.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace thimble::cli {

struct Counter {
  std::string name;
  double value = 0;
};

struct CounterReading {
  std::vector<Counter> hardware;  // cycles, instructions, llc_misses, branch_misses: those that are there
  std::string missing;            // why there are none; empty when there are
  std::vector<Counter> software;  // task_clock_s, page_faults, context_switches
};

class CounterSource {
 public:
  virtual ~CounterSource() = default;
  virtual void start() = 0;
  // What happened since start().
  virtual CounterReading stop() = 0;
};

// Of all threads that this process has at start(), and the ones that they start: perf_event_open for the CPU's
// counters, in user mode (scaled up when the CPU had to take turns), getrusage for the others. Never throws: what
// cannot be opened is said in `missing`.
class ProcessCounters : public CounterSource {
 public:
  ProcessCounters() = default;
  ~ProcessCounters() override;
  ProcessCounters(const ProcessCounters&) = delete;
  ProcessCounters& operator=(const ProcessCounters&) = delete;
  void start() override;
  CounterReading stop() override;

 private:
  struct Open {
    size_t counter;  // index into the list of counters
    int fd;
  };
  void close_all();
  std::vector<Open> open_;
  std::string missing_;
  std::vector<Counter> software_before_;
};

// The same reading every time.
class RecordedCounters : public CounterSource {
 public:
  explicit RecordedCounters(CounterReading reading) : reading_(std::move(reading)) {}
  void start() override {}
  CounterReading stop() override { return reading_; }

 private:
  CounterReading reading_;
};

// One line each for people: "cycles 1.2e9, instructions 3.4e9 (2.83 per cycle), ..." or why there are none.
std::string hardware_text(const CounterReading& reading);
std::string software_text(const CounterReading& reading, double seconds);

}  // namespace thimble::cli
