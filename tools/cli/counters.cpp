#include "tools/cli/counters.h"

#include <dirent.h>
#include <fmt/format.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace thimble::cli {
namespace {

struct HardwareCounter {
  const char* name;
  uint64_t config;
};
constexpr HardwareCounter kHardware[] = {{"cycles", PERF_COUNT_HW_CPU_CYCLES},
                                         {"instructions", PERF_COUNT_HW_INSTRUCTIONS},
                                         {"llc_misses", PERF_COUNT_HW_CACHE_MISSES},
                                         {"branch_misses", PERF_COUNT_HW_BRANCH_MISSES}};
constexpr size_t kHardwareCount = sizeof kHardware / sizeof kHardware[0];

int open_counter(uint64_t config, pid_t thread) {
  struct perf_event_attr attr;
  std::memset(&attr, 0, sizeof attr);
  attr.size = sizeof attr;
  attr.type = PERF_TYPE_HARDWARE;
  attr.config = config;
  attr.disabled = 1;
  attr.inherit = 1;
  attr.exclude_kernel = 1;
  attr.exclude_hv = 1;
  attr.read_format = PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING;
  return static_cast<int>(::syscall(SYS_perf_event_open, &attr, thread, -1, -1, PERF_FLAG_FD_CLOEXEC));
}

std::string why_not(int error) {
  if (error == EACCES || error == EPERM)
    return "the system does not allow them (kernel.perf_event_paranoid, or a container's rules)";
  if (error == ENOENT || error == ENODEV || error == EOPNOTSUPP)
    return "this machine offers none (most virtual machines hide them)";
  return fmt::format("perf_event_open: {}", std::strerror(error));
}

std::vector<pid_t> threads_of_process() {
  std::vector<pid_t> list;
  if (DIR* dir = ::opendir("/proc/self/task")) {
    while (const struct dirent* entry = ::readdir(dir))
      if (entry->d_name[0] != '.') list.push_back(static_cast<pid_t>(std::atoi(entry->d_name)));
    ::closedir(dir);
  }
  return list;
}

double seconds_of(const struct timeval& t) { return double(t.tv_sec) + double(t.tv_usec) * 1e-6; }

std::vector<Counter> software_now() {
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return {{"task_clock_s", seconds_of(usage.ru_utime) + seconds_of(usage.ru_stime)},
          {"page_faults", double(usage.ru_minflt + usage.ru_majflt)},
          {"context_switches", double(usage.ru_nvcsw + usage.ru_nivcsw)}};
}

const Counter* find(const std::vector<Counter>& list, const char* name) {
  for (const Counter& c : list)
    if (c.name == name) return &c;
  return nullptr;
}

}  // namespace

ProcessCounters::~ProcessCounters() { close_all(); }

void ProcessCounters::close_all() {
  for (const Open& o : open_) ::close(o.fd);
  open_.clear();
}

void ProcessCounters::start() {
  close_all();
  missing_.clear();
  for (size_t c = 0; c < kHardwareCount; ++c)
    for (const pid_t thread : threads_of_process()) {
      const int fd = open_counter(kHardware[c].config, thread);
      if (fd >= 0)
        open_.push_back({c, fd});
      else if (errno != ESRCH && missing_.empty())
        missing_ = why_not(errno);
    }
  software_before_ = software_now();
  for (const Open& o : open_) ::ioctl(o.fd, PERF_EVENT_IOC_ENABLE, 0);
}

CounterReading ProcessCounters::stop() {
  for (const Open& o : open_) ::ioctl(o.fd, PERF_EVENT_IOC_DISABLE, 0);
  CounterReading reading;
  reading.software = software_now();
  for (size_t i = 0; i < reading.software.size() && i < software_before_.size(); ++i)
    reading.software[i].value -= software_before_[i].value;
  double sums[kHardwareCount] = {};
  bool counted[kHardwareCount] = {};
  for (const Open& o : open_) {
    uint64_t values[3] = {};  // count, time enabled, time running
    if (::read(o.fd, values, sizeof values) != static_cast<ssize_t>(sizeof values) || values[2] == 0) continue;
    sums[o.counter] += double(values[0]) * double(values[1]) / double(values[2]);
    counted[o.counter] = true;
  }
  close_all();
  for (size_t c = 0; c < kHardwareCount; ++c)
    if (counted[c]) reading.hardware.push_back({kHardware[c].name, sums[c]});
  if (reading.hardware.empty()) reading.missing = missing_.empty() ? "none of them ran" : missing_;
  return reading;
}

std::string hardware_text(const CounterReading& r) {
  if (r.hardware.empty()) return "no hardware counters: " + r.missing;
  const Counter* cycles = find(r.hardware, "cycles");
  const Counter* instructions = find(r.hardware, "instructions");
  std::string text;
  for (const Counter& c : r.hardware) {
    text += fmt::format("{}{} {:.4g}", text.empty() ? "" : ", ", c.name, c.value);
    if (&c == instructions && cycles && cycles->value > 0)
      text += fmt::format(" ({:.2f} per cycle)", c.value / cycles->value);
    if (c.name.find("misses") != std::string::npos && instructions && instructions->value > 0)
      text += fmt::format(" ({:.3g} per 1000 instructions)", 1000 * c.value / instructions->value);
  }
  return text;
}

std::string software_text(const CounterReading& r, double seconds) {
  std::string text;
  for (const Counter& c : r.software) {
    const bool clock = c.name == "task_clock_s";
    text +=
        fmt::format("{}{} {}", text.empty() ? "" : ", ",
                    clock                     ? "task clock"
                    : c.name == "page_faults" ? "page faults"
                                              : "context switches",
                    clock ? fmt::format("{:.3f} s ({:.2f} CPUs busy)", c.value, seconds > 0 ? c.value / seconds : 0.0)
                          : fmt::format("{:.0f}", c.value));
  }
  return text;
}

}  // namespace thimble::cli
