#include "tensor/parallel.h"

#include <omp.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <string>

namespace thimble {
namespace {

// cgroup v2 quota as a thread count, rounded up; a large number when there is none.
int cgroup_threads() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (file >> quota >> period && quota != "max" && period > 0) {
    const double cores = std::strtod(quota.c_str(), nullptr) / period;
    if (cores > 0) return std::max(1, static_cast<int>(cores + 0.999));
  }
  return 1 << 20;
}

// libomp registers each process in shared memory (/dev/shm) under its process id, to find a second copy of itself. It
// trusts a file of that name that it finds: an empty one, left by a process that was killed between making and sizing it,
// ends whoever gets that id next with SIGBUS. So what lies there before the first region is removed, and so is what
// libomp then writes: no way of ending (SIGKILL, _Exit) leaves a file.
class OpenMpStart {
 public:
  OpenMpStart() {
    char name[64];
    std::snprintf(name, sizeof name, "/__KMP_REGISTERED_LIB_%d_%d", static_cast<int>(::getpid()), static_cast<int>(::getuid()));
    ::shm_unlink(name);
    (void)omp_get_max_threads();  // starts the runtime
    ::shm_unlink(name);
  }
};

// Where the threads of a team last ran. Schedulers let two spinning threads share a CPU for tens of milliseconds beside an
// idle one, and every region then takes turns of theirs instead of a microsecond. So a thread that finds itself where one
// before it runs goes to a CPU without any of the team; it stays free to be moved anywhere.
class TeamCpus {
 public:
  TeamCpus() {
    for (std::atomic<int>& cpu : at_) cpu = -1;
  }
  void part(int thread, int team) {
    const int cpu = sched_getcpu();
    // Written when it changes only, so that all keep the line in their caches.
    if (at_[thread].load(std::memory_order_relaxed) != cpu) at_[thread].store(cpu, std::memory_order_relaxed);
    if (stands_at(cpu, thread)) leave(team);
  }
  static constexpr int kMost = 64;

 private:
  bool stands_at(int cpu, int threads) const {
    for (int i = 0; i < threads; ++i)
      if (at_[i].load(std::memory_order_relaxed) == cpu) return true;
    return false;
  }
  void leave(int team) const {
    cpu_set_t mine, free;
    if (sched_getaffinity(0, sizeof mine, &mine) != 0) return;
    free = mine;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(static_cast<size_t>(cpu), &free) && stands_at(cpu, team)) CPU_CLR(static_cast<size_t>(cpu), &free);
    if (CPU_COUNT(&free) == 0) return;
    sched_setaffinity(0, sizeof free, &free);
    sched_setaffinity(0, sizeof mine, &mine);
  }

  std::atomic<int> at_[kMost];
};

// A function of its own: compilers ask for the thread's number, which starts the runtime, on entry.
[[gnu::noinline]] void run_team(int team, int64_t chunks, ParallelBody body, void* context) {
  static thread_local TeamCpus my_team;
  TeamCpus* const cpus = team <= std::min(available_threads(), TeamCpus::kMost) ? &my_team : nullptr;
  std::atomic<int64_t> next{0};
#pragma omp parallel num_threads(team)
  {
    const int thread = omp_get_thread_num();
    if (cpus) cpus->part(thread, team);
    for (int64_t c = next.fetch_add(1, std::memory_order_relaxed); c < chunks;
         c = next.fetch_add(1, std::memory_order_relaxed))
      body(context, c, thread);
  }
}

}  // namespace

int available_threads() {
  static const int count = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    int n = 1;
    if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
    return std::max(1, std::min(n, cgroup_threads()));
  }();
  return count;
}

void parallel_run(int threads, int64_t chunks, ParallelBody body, void* context) {
  const int team = static_cast<int>(std::min<int64_t>(threads, chunks));
  if (team > 1) {
    static const OpenMpStart start;
    if (!omp_in_parallel()) return run_team(team, chunks, body, context);
  }
  for (int64_t c = 0; c < chunks; ++c) body(context, c, 0);
}

const char* openmp_runtime() {
#if defined(__clang__)
  return "libomp";
#else
  return "libgomp";
#endif
}

}  // namespace thimble
