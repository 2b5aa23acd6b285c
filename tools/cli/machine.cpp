#include "tools/cli/machine.h"

#include <fmt/format.h>
#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <sstream>

#include "tensor/arena.h"
#include "tensor/parallel.h"
#include "tensor/sha256.h"

namespace thimble {
namespace {

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string trimmed(std::string text) {
  const size_t begin = text.find_first_not_of(' '), end = text.find_last_not_of(' ');
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

// "always [madvise] never" -> "madvise"
std::string huge_page_mode() {
  const std::string line = first_line("/sys/kernel/mm/transparent_hugepage/enabled");
  const size_t open = line.find('['), close = line.find(']');
  return open == std::string::npos || close == std::string::npos ? "unknown" : line.substr(open + 1, close - open - 1);
}

int64_t meminfo(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, key.size() + 1, key + ":") != 0) continue;
    return std::strtoll(line.c_str() + key.size() + 1, nullptr, 10) * 1024;
  }
  return 0;
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds from the first start to the last end of work(i), i < threads, each on a thread of its own.
template <class Work>
double time_together(int threads, const Work& work) {
  std::vector<double> begins(static_cast<size_t>(threads)), ends(static_cast<size_t>(threads));
  std::atomic<int> arrived{0};
  parallel_for(threads, threads, [&](int64_t i, int) {
    // Without a meeting point an early thread would take a second share. Give up on a runtime that grants fewer threads.
    arrived.fetch_add(1);
    const double patience = now() + 0.05;
    while (arrived.load() < threads && now() < patience) sched_yield();
    begins[static_cast<size_t>(i)] = now();
    work(i);
    ends[static_cast<size_t>(i)] = now();
  });
  return *std::max_element(ends.begin(), ends.end()) - *std::min_element(begins.begin(), begins.end());
}

// Whatever else runs on the machine can only take away from a peak, so the best of many short windows is reported: most
// windows of a millisecond see no other process even on a busy machine.
constexpr int kArithmeticWindows = 40, kMemoryWindows = 9;
constexpr double kWindowSeconds = 1e-3;

// Operations per second of an arithmetic probe; the length of a window is found first.
double measure_arithmetic(ProbeFn probe, const void* operands, double ops_per_step, int threads) {
  alignas(64) float sinks[kProbeChains];
  int64_t steps = 256;
  for (;;) {
    const double start = now();
    probe({steps, operands, sinks});
    const double seconds = now() - start;
    if (seconds > kWindowSeconds / 4) {
      steps = std::max<int64_t>(1, static_cast<int64_t>(double(steps) * kWindowSeconds / seconds));
      break;
    }
    steps *= 2;
  }
  double best = 0;
  for (int r = 0; r < kArithmeticWindows; ++r) {
    const double seconds = time_together(threads, [&](int64_t) {
      alignas(64) float sink[kProbeChains];
      probe({steps, operands, sink});
    });
    best = std::max(best, ops_per_step * double(kProbeChains) * double(steps) * threads / seconds);
  }
  return best;
}

// Operands of ordinary size, so that no chain runs into infinity, zero or subnormals.
struct Operands {
  alignas(64) float f32[32 + kProbeChains];
  alignas(64) int8_t int8[128];
  alignas(64) uint16_t bf16[64];
  Operands() {
    for (int i = 0; i < 32 + kProbeChains; ++i) f32[i] = 1e-3f * static_cast<float>(1 + i % 13) * (i % 2 ? 1.0f : -1.0f);
    for (int i = 0; i < 128; ++i) int8[i] = static_cast<int8_t>(1 + i * 7 % 100);
    for (int i = 0; i < 64; ++i) bf16[i] = static_cast<uint16_t>(0x3C00 + i);  // about 0.008
  }
};

}  // namespace

Machine describe_machine() {
  const CpuInfo& cpu = cpu_info();
  Machine m;
  m.cpu = trimmed(cpu.model);
  m.vendor = cpu.vendor;
  m.cores_online = static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  m.threads = available_threads();
  m.l1d_bytes = cpu.l1d_bytes;
  m.l2_bytes = cpu.l2_bytes;
  m.l3_bytes = cpu.l3_bytes;
  m.memory_bytes = meminfo("MemTotal");
  m.memory_available_bytes = meminfo("MemAvailable");
  m.huge_pages = huge_page_mode();
  m.governor = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  if (m.governor.empty()) m.governor = "unknown";
  struct utsname os {};
  if (::uname(&os) == 0) m.os = fmt::format("{} {} {}", os.sysname, os.release, os.machine);
#if defined(__clang__)
  m.compiler = "clang " __clang_version__;
#else
  m.compiler = "g++ " __VERSION__;
#endif
  m.compiler = trimmed(m.compiler);
  m.build_type = THIMBLE_BUILD_TYPE;
  m.commit = THIMBLE_COMMIT;
  for (int i = 0; i < kTierCount; ++i) {
    if (tier_supported(static_cast<Tier>(i))) m.tiers.push_back(static_cast<Tier>(i));
  }
  return m;
}

std::string machine_fingerprint(const Machine& m) {
  std::string text = fmt::format("{}|{}|{}|{}|{}", m.cpu, m.cores_online, m.l1d_bytes, m.l2_bytes, m.l3_bytes);
  for (const Tier t : m.tiers) text += fmt::format("|{}", tier_name(t));
  return sha256_hex(text).substr(0, 12);
}

std::string tier_missing_reason(Tier tier) {
  if (tier_supported(tier)) return "";
  const CpuInfo& c = cpu_info();
  const Tier parent = tier_parent(tier);
  const auto features = [](std::initializer_list<std::pair<bool, const char*>> list) {
    std::string missing;
    for (const auto& [present, name] : list) {
      if (!present) missing += (missing.empty() ? "" : ", ") + std::string(name);
    }
    return missing;
  };
  std::string missing;
  bool os = true;
  if (tier == Tier::avx2) {
    missing = features({{c.avx2, "AVX2"}, {c.fma, "FMA"}, {c.f16c, "F16C"}});
    os = c.os_avx;
  } else if (tier == Tier::avx512) {
    missing = features({{c.avx512f, "AVX-512 F"}, {c.avx512bw, "AVX-512 BW"}, {c.avx512dq, "AVX-512 DQ"}, {c.avx512vl, "AVX-512 VL"}});
    os = c.os_avx512;
  } else {
    missing = features({{tier != Tier::avx2_vnni || c.avx_vnni, "AVX-VNNI"},
                        {tier != Tier::avx512_vnni || c.avx512_vnni, "AVX-512 VNNI"},
                        {tier != Tier::avx512_bf16 || c.avx512_bf16, "AVX-512 BF16"}});
  }
  if (!missing.empty()) return "the CPU has no " + missing;
  if (!os) return "the operating system does not save these registers";
  if (!tier_supported(parent)) return fmt::format("it needs {}", tier_name(parent));
  return "not in this build";
}

std::vector<std::string> loaded_openmp_runtimes() {
  std::vector<std::string> found;
  std::ifstream file("/proc/self/maps");
  std::string line;
  while (std::getline(file, line)) {
    const size_t slash = line.find('/');
    if (slash == std::string::npos) continue;
    const std::string path = line.substr(slash), name = path.substr(path.rfind('/') + 1);
    const bool runtime = name.rfind("libgomp", 0) == 0 || name.rfind("libomp", 0) == 0 || name.rfind("libiomp", 0) == 0;
    if (runtime && std::find(found.begin(), found.end(), path) == found.end()) found.push_back(path);
  }
  return found;
}

Roofline measure_roofline(const KernelTable& kernels, int threads) {
  Roofline r;
  r.threads = threads;
  const Operands operands;
  r.f32_gflops = measure_arithmetic(kernels.probe_fma_f32, operands.f32, 2, threads) / 1e9;
  r.bf16_gflops = measure_arithmetic(kernels.probe_bf16, operands.bf16, 4, threads) / 1e9;
  r.int8_gops = measure_arithmetic(kernels.probe_int8, operands.int8, 8, threads) / 1e9;

  // A quarter GiB, or four times the last-level cache where that is more, but never much of a small machine's memory.
  const int64_t total = meminfo("MemTotal");
  int64_t bytes = std::max<int64_t>(int64_t{256} << 20, 4 * cpu_info().l3_bytes);
  if (total > 0) bytes = std::min(bytes, total / 8);
  const int64_t share = bytes / 4 / threads / 1024 * 1024;  // floats per thread
  const Buffer buffer(static_cast<size_t>(share * threads) * sizeof(float));
  // Written first, by the thread that reads: untouched pages would all be one page of zeros.
  time_together(threads, [&](int64_t t) {
    float* p = buffer.f32() + t * share;
    for (int64_t i = 0; i < share; ++i) p[i] = static_cast<float>(i % 7);
  });
  for (int i = 0; i < kMemoryWindows; ++i) {
    const double read = time_together(threads, [&](int64_t t) {
      float sum;
      kernels.probe_read({share, buffer.f32() + t * share, &sum});
    });
    r.read_gbs = std::max(r.read_gbs, double(share) * 4 * threads / read / 1e9);
    const double copy = time_together(threads, [&](int64_t t) {
      float* p = buffer.f32() + t * share;
      kernels.probe_copy({share / 2, p, p + share / 2});
    });
    r.copy_gbs = std::max(r.copy_gbs, double(share) * 4 * threads / copy / 1e9);
  }
  return r;
}

}  // namespace thimble
