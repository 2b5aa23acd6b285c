// Deterministic parallel loops; the only file that knows OpenMP. The chunks of a loop depend on the shape of the work
// only; which thread takes a chunk is dynamic, so bodies must write disjoint data, and sums across chunks are partials
// that the caller adds in order. No allocation per call.
#pragma once

#include <cstdint>
#include <type_traits>

namespace thimble {

// Threads that this process may use: affinity mask and cgroup quota included.
int available_threads();

using ParallelBody = void (*)(void* context, int64_t chunk, int thread);
void parallel_run(int threads, int64_t chunks, ParallelBody body, void* context);

// body(chunk, thread) for chunk in [0, chunks), thread in [0, threads). Must not throw. Nested calls run serially.
template <class Body>
void parallel_for(int threads, int64_t chunks, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  parallel_run(
      threads, chunks, [](void* context, int64_t chunk, int thread) { (*static_cast<Plain*>(context))(chunk, thread); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Which OpenMP runtime is linked ("libomp", "libgomp"), for doctor.
const char* openmp_runtime();

}  // namespace thimble
