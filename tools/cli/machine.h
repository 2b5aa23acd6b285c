// What this machine is and what it can do: the description that doctor prints and every bench record carries, and the
// peaks measured on the spot, against which kernels are judged.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"

namespace thimble {

struct Machine {
  std::string cpu, vendor;
  int cores_online = 0;    // of the machine
  int threads = 0;         // that this process may use (affinity and cgroup)
  int64_t l1d_bytes = 0, l2_bytes = 0, l3_bytes = 0;  // per core, per core, shared; 0 unknown
  int64_t memory_bytes = 0, memory_available_bytes = 0;
  std::string huge_pages;  // transparent huge pages: always, madvise, never, unknown
  std::string governor;    // of the first core; unknown in most virtual machines
  std::string os, compiler, build_type, commit;  // commit: when cmake last ran; unknown outside git
  std::vector<Tier> tiers;                       // supported
};
Machine describe_machine();

// 12 hex digits of CPU model, cores, caches and tiers: equal for records that may be compared, and independent of load,
// memory, system and build.
std::string machine_fingerprint(const Machine& machine);

// Why a tier cannot be used here ("the CPU has no AVX-512 BF16"); empty when it can.
std::string tier_missing_reason(Tier tier);

// Files of the OpenMP runtimes that are loaded into this process. More than one means two thread pools that compete.
std::vector<std::string> loaded_openmp_runtimes();

struct Roofline {
  double f32_gflops = 0, bf16_gflops = 0, int8_gops = 0;  // 1e9 operations per second; a multiply-add is two
  double read_gbs = 0, copy_gbs = 0;                      // 1e9 bytes per second, far beyond the last-level cache
  int threads = 0;
};
// Runs the probe slots of the table on that many threads at once; the best of repeated short windows, because other
// processes only ever take away. Takes about half a second.
Roofline measure_roofline(const KernelTable& kernels, int threads);

}  // namespace thimble
