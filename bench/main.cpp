// thimble_bench: Google Benchmark with this machine's record and measured peaks as context.
//   --filter RE  --isa TIER  --shape NAME  --threads N  --variant NAME  --json OUT   and every --benchmark_* option.
#include <benchmark/benchmark.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "bench/bench.h"
#include "models/shapes.h"
#include "tensor/blas.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/parallel.h"
#include "tools/cli/machine.h"

namespace thimble::bench {
namespace {

constexpr const char* kPreparedFlag = "--prepared";

struct Options {
  std::string isa, filter, shape, json, variant;
  int threads = 0;
  bool prepared = false;
  std::vector<std::string> rest;  // for Google Benchmark
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const size_t equals = arg.find('=');
    const std::string name = arg.substr(0, equals);
    const bool known = name == "--isa" || name == "--filter" || name == "--shape" || name == "--json" || name == "--threads" ||
                       name == "--variant";
    if (!known) {
      if (arg == kPreparedFlag) o.prepared = true;
      else o.rest.push_back(arg);
      continue;
    }
    std::string value;
    if (equals != std::string::npos) value = arg.substr(equals + 1);
    else if (i + 1 < argc) value = argv[++i];
    if (value.empty()) throw Error(ErrorCode::usage, name + " needs a value");
    if (name == "--isa") o.isa = value;
    if (name == "--filter") o.filter = value;
    if (name == "--shape") o.shape = value;
    if (name == "--json") o.json = value;
    if (name == "--variant") o.variant = value;
    if (name == "--threads") o.threads = std::atoi(value.c_str());
    if (name == "--threads" && (o.threads < 1 || o.threads > 4096)) throw Error(ErrorCode::usage, "--threads must lie in 1..4096, got " + value);
  }
  return o;
}

Tier cap_of(const std::string& isa) {
  Tier tier = best_tier();
  if (isa.empty()) return tier;
  if (tier_from_name(isa.c_str(), &tier) && tier_supported(tier)) return tier;
  std::string valid;
  for (const Tier t : describe_machine().tiers) valid += (valid.empty() ? "" : ", ") + std::string(tier_name(t));
  throw Error(ErrorCode::usage, "--isa: this machine has no tier \"" + isa + "\"", "valid tiers: " + valid);
}

// OpenBLAS chooses its kernels while it is loaded, and may choose older ones than the CPU has; both thread pools spin
// long after their work, which on few cores slows whoever is measured next. The environment says otherwise, and must do
// so before the libraries load: so this process starts itself once more.
void prepare_environment(Tier cap, char** argv, int argc) {
  const bool avx512 = tier_includes(cap, Tier::avx512), avx2 = tier_includes(cap, Tier::avx2);
  if (avx512 || avx2) ::setenv("OPENBLAS_CORETYPE", avx512 ? "SKYLAKEX" : "HASWELL", 1);
  ::setenv("OPENBLAS_THREAD_TIMEOUT", "18", 1);  // 2^18 cycles instead of 2^26
  ::setenv("KMP_BLOCKTIME", "1", 1);             // 1 ms instead of 200
  // Problems lie on large pages like the buffers of the ops, which ask for them.
  ::setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", 0);
  std::vector<char*> arguments(argv, argv + argc);
  std::string prepared = kPreparedFlag;
  arguments.push_back(prepared.data());
  arguments.push_back(nullptr);
  ::execv("/proc/self/exe", arguments.data());  // returns only when it fails: then compare as we are, and say so
  fmt::print(stderr, "warning: cannot restart with OPENBLAS_CORETYPE set; OpenBLAS runs its {} kernels\n", blas_info().core);
}

// Thread counts whose peaks are measured: every one up to eight, then doublings, and all.
std::vector<int> thread_counts(int all) {
  std::vector<int> counts;
  for (int t = 1; t < all; t = t < 8 ? t + 1 : 2 * t) counts.push_back(t);
  counts.push_back(all);
  return counts;
}

// What bench/README.md promises readers of records. Google Benchmark's context knows strings only.
void add_context(const Machine& m, const Run& run, const std::string& arguments) {
  const auto add = [](const char* key, const std::string& value) { benchmark::AddCustomContext(key, value); };
  std::string tiers;
  for (const Tier t : run.tiers) tiers += (tiers.empty() ? "" : " ") + std::string(tier_name(t));
  add("thimble_record", "1");
  add("fingerprint", machine_fingerprint(m));
  add("cpu", m.cpu);
  add("tiers", tiers);
  add("tier", tier_name(run.cap));
  add("cores", std::to_string(m.cores_online));
  add("threads", std::to_string(run.threads));
  add("l1d_bytes", std::to_string(m.l1d_bytes));
  add("l2_bytes", std::to_string(m.l2_bytes));
  add("l3_bytes", std::to_string(m.l3_bytes));
  add("memory_bytes", std::to_string(m.memory_bytes));
  add("governor", m.governor);
  add("os", m.os);
  add("compiler", m.compiler);
  add("thimble_build_type", m.build_type);
  add("commit", m.commit);
  add("openblas", blas_info().core + ", " + blas_info().flavour);
  add("arguments", arguments);
}

// Measured on every tier with one thread, on the highest one with every thread count.
void measure_peaks(Run& run) {
  for (const Tier t : run.tiers) {
    const KernelTable table = build_kernel_table(t);
    std::string list;
    for (const int threads : t == run.cap ? thread_counts(run.threads) : std::vector<int>{1}) {
      const Roofline r = measure_roofline(table, threads);
      list += fmt::format("{}{{\"threads\": {}, \"f32_gflops\": {:.2f}, \"bf16_gflops\": {:.2f}, \"int8_gops\": {:.2f}, \"read_gbs\": {:.2f}, \"copy_gbs\": {:.2f}}}",
                          list.empty() ? "" : ", ", threads, r.f32_gflops, r.bf16_gflops, r.int8_gops, r.read_gbs, r.copy_gbs);
      if (threads > 1) continue;
      const auto i = static_cast<size_t>(t);
      run.peak_gflops[kPeakF32][i] = r.f32_gflops;
      run.peak_gflops[kPeakBf16][i] = r.bf16_gflops;
      run.peak_gflops[kPeakInt8][i] = r.int8_gops;
      run.read_gbs[i] = r.read_gbs;
    }
    benchmark::AddCustomContext(fmt::format("peaks_{}", tier_name(t)), "[" + list + "]");
  }
}

int run_benches(int argc, char** argv) {
  const Options options = parse(argc, argv);
  Run run;
  run.cap = cap_of(options.isa);
  if (!options.prepared) prepare_environment(run.cap, argv, argc);
  const Machine machine = describe_machine();
  for (const Tier t : machine.tiers) {
    if (tier_includes(run.cap, t) || options.isa.empty()) run.tiers.push_back(t);
  }
  if (!options.variant.empty()) {
    const Variant v = find_variant(options.variant);
    if (!tier_includes(run.cap, v.tier))
      throw Error(ErrorCode::usage, fmt::format("--variant: {} is compiled for {}, and the tier here is {}", v.name, tier_name(v.tier), tier_name(run.cap)));
    run.variant = v.init;
    benchmark::AddCustomContext("variant", v.name);
  }
  run.threads = options.threads > 0 ? options.threads : machine.threads;
  run.l2_bytes = machine.l2_bytes > 0 ? machine.l2_bytes : int64_t{1} << 20;
  run.cache_bytes = machine.l3_bytes > 0 ? machine.l3_bytes : int64_t{32} << 20;

  std::vector<std::string> arguments = options.rest;
  std::string filter = options.filter;
  run.shape = options.shape;
  // All model benches are then of this shape.
  if (is_model_shape(options.shape)) filter = filter.empty() ? "^model_" : filter;
  else if (!options.shape.empty()) filter = filter.empty() ? options.shape : filter + ".*" + options.shape;
  if (!filter.empty()) arguments.push_back("--benchmark_filter=" + filter);
  // The record appears under its name when it is complete.
  std::string unfinished = options.json;
  const bool in_place = std::filesystem::exists(options.json) && !std::filesystem::is_regular_file(options.json);  // /dev/null
  if (!unfinished.empty() && !in_place) {
    const std::string folder = std::filesystem::path(options.json).parent_path().string();
    if (!folder.empty()) make_directories(folder);
    unfinished += fmt::format(".tmp.{}", ::getpid());
    write_file(unfinished, "");  // a folder that cannot be written to is noticed before the hour of measuring
  }
  if (!unfinished.empty()) {
    arguments.push_back("--benchmark_out=" + unfinished);
    arguments.push_back("--benchmark_out_format=json");
  }
  bool measures = true;
  std::vector<char*> pointers = {argv[0]};
  for (std::string& a : arguments) {
    if (a.rfind("--benchmark_list_tests", 0) == 0) measures = false;
    pointers.push_back(a.data());
  }
  int count = static_cast<int>(pointers.size());
  pointers.push_back(nullptr);
  benchmark::Initialize(&count, pointers.data());
  if (benchmark::ReportUnrecognizedArguments(count, pointers.data())) return static_cast<int>(ErrorCode::usage);

  std::string words;
  for (int i = 1; i < argc; ++i)
    if (std::string(argv[i]) != kPreparedFlag) words += (words.empty() ? "" : " ") + std::string(argv[i]);
  add_context(machine, run, words);
  if (measures) measure_peaks(run);
  register_slots(run);
  register_gemm(run);
  register_attention(run);
  register_model(run);
  register_trace(run);
  register_scan(run);
  register_ops(run);
  register_tokenize();
  const size_t matched = benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  if ((matched == 0 || !measures) && !unfinished.empty() && !in_place) std::remove(unfinished.c_str());
  if (matched == 0)
    throw Error(ErrorCode::usage, fmt::format("no bench matches \"{}\"", filter), "--benchmark_list_tests lists all names");
  if (measures && !unfinished.empty() && !in_place && std::rename(unfinished.c_str(), options.json.c_str()) != 0)
    throw Error(ErrorCode::input, options.json + ": cannot be written", "the record is in " + unfinished);
  return 0;
}

}  // namespace
}  // namespace thimble::bench

int main(int argc, char** argv) {
  try {
    return thimble::bench::run_benches(argc, argv);
  } catch (const thimble::Error& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    if (!e.hint().empty()) fmt::print(stderr, "hint: {}\n", e.hint());
    return static_cast<int>(e.code());
  } catch (const std::exception& e) {
    fmt::print(stderr, "error: internal error: {}\n", e.what());
    return static_cast<int>(thimble::ErrorCode::internal);
  }
}
