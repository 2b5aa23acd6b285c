// thimble bench: run the benches (a program of its own beside this one), compare two records, draw a record's roofline.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/bench/compare.h"
#include "tools/bench/record.h"
#include "tools/bench/roofline.h"
#include "tools/bench/trend.h"
#include "tools/cli/cli.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;
using bench_tools::ComparedRow;
using bench_tools::Comparison;
using bench_tools::Record;
using bench_tools::Verdict;

struct BenchOptions {
  std::string filter, isa, shape, json, variant;
  int threads = 0;
  CLI::App* command = nullptr;
};

std::string beside_this_program(const std::string& name) {
  char path[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof path);
  if (n <= 0 || n == sizeof path) return name;
  const std::string self(path, static_cast<size_t>(n));
  return self.substr(0, self.rfind('/') + 1) + name;
}

// Google Benchmark stays out of this program: its benches are another one, which takes this process over.
int run_benches(const BenchOptions& o) {
  const std::string program = beside_this_program("thimble_bench");
  std::vector<std::string> arguments = {program};
  for (const auto& [name, value] : {std::pair<std::string, std::string>{"--filter", o.filter},
                                    {"--isa", o.isa},
                                    {"--shape", o.shape},
                                    {"--variant", o.variant},
                                    {"--threads", o.threads > 0 ? std::to_string(o.threads) : ""},
                                    {"--json", o.json}})
    if (!value.empty()) arguments.push_back(name + "=" + value);
  for (const std::string& extra : o.command->remaining()) {
    if (extra.rfind("--benchmark_", 0) != 0)
      throw Error(ErrorCode::usage, fmt::format("bench: unknown argument \"{}\"", extra),
                  "valid: --filter --isa --shape --threads --variant --json, every --benchmark_NAME=VALUE of Google Benchmark, "
                  "or one of compare, roofline");
    arguments.push_back(extra);
  }
  if (!file_exists(program))
    throw Error(ErrorCode::unsupported,
                program + ": not there; the benches are a program of their own, which was not built or not installed",
                "cmake --build build/release --target thimble_bench (needs Google Benchmark, libbenchmark-dev, and "
                "THIMBLE_BENCH=ON)");
  std::vector<char*> argv;
  for (std::string& a : arguments) argv.push_back(a.data());
  argv.push_back(nullptr);
  ::signal(SIGPIPE, SIG_DFL);  // ignored signals would stay ignored in the other program
  ::signal(SIGXFSZ, SIG_DFL);
  ::execv(program.c_str(), argv.data());
  throw Error(ErrorCode::unsupported, fmt::format("{}: cannot be run: {}", program, std::strerror(errno)));
}

struct CompareCommand {
  std::string a, b;
  bench_tools::CompareOptions options;
  bool unpaired = false;
  CommonOptions common;  // json and quiet
};

Json record_json(const Record& r) {
  return {{"path", r.path},     {"date", r.date},
          {"commit", r.commit}, {"fingerprint", r.fingerprint},
          {"cpu", r.cpu},       {"build_type", r.build_type}};
}

Json comparison_json(const Record& a, const Record& b, const CompareCommand& o, const Comparison& c) {
  Json json = {{"schema", "thimble.bench_compare/1"},
               {"a", record_json(a)},
               {"b", record_json(b)},
               {"same_machine", a.fingerprint == b.fingerprint}};
  json["alpha"] = o.options.alpha;
  json["floor"] = o.options.floor;
  json["holm"] = o.options.holm;
  const auto known = [](double x) { return x > 0 ? Json(x) : Json(nullptr); };
  json["drift"] = {{"median_ratio", c.drift.median_ratio},
                   {"tier", c.drift.tier},
                   {"peak_f32", known(c.drift.f32)},
                   {"read", known(c.drift.read)}};
  json["warnings"] = c.warnings;
  for (const Verdict v : {Verdict::slower, Verdict::faster, Verdict::same, Verdict::too_few_runs}) {
    std::string key = bench_tools::verdict_name(v);
    std::replace(key.begin(), key.end(), ' ', '_');
    json[key] = c.count(v);
  }
  json["rows"] = Json::array();
  for (const ComparedRow& r : c.rows)
    json["rows"].push_back({{"name", r.name},
                            {"ratio", r.ratio},
                            {"lo", r.lo},
                            {"hi", r.hi},
                            {"p", r.p},
                            {"p_holm", r.p_holm},
                            {"threshold", r.threshold},
                            {"verdict", verdict_name(r.verdict)},
                            {"paired", r.paired},
                            {"runs_a", r.runs_a},
                            {"runs_b", r.runs_b},
                            {"seconds_a", r.seconds_a},
                            {"seconds_b", r.seconds_b},
                            {"noise_a", r.noise_a},
                            {"noise_b", r.noise_b}});
  json["only_a"] = c.only_a;
  json["only_b"] = c.only_b;
  return json;
}

std::string comparison_text(const Record& a, const Record& b, const CompareCommand& o, const Comparison& c) {
  std::string out;
  const auto record = [&out](const char* label, const Record& r) {
    out += fmt::format("{}  {}{}{}\n", label, r.path, r.commit.empty() ? "" : "  commit " + r.commit,
                       r.date.empty() ? "" : "  " + r.date);
  };
  record("A", a);
  record("B", b);
  size_t width = 9;
  for (const ComparedRow& r : c.rows) width = std::max(width, bench_tools::short_name(r.name).size());
  out += fmt::format("\n{:<{}}  {:>10}  {:>10}  {:>7}  {:>15}  {:>8}  {:>8}  {:>9}  {}\n", "benchmark", width, "A", "B",
                     "B / A", fmt::format("{:g} % interval", 100 * (1 - o.options.alpha)), "p", "p (Holm)", "threshold",
                     "verdict");
  for (const ComparedRow& r : c.rows) {
    const std::string interval = r.runs_a > 1 && r.runs_b > 1 ? fmt::format("{:.3f} - {:.3f}", r.lo, r.hi) : "-";
    out += fmt::format("{:<{}}  {:>10}  {:>10}  {:>7.3f}  {:>15}  {:>8.2g}  {:>8.2g}  {:>9}  {}\n",
                       bench_tools::short_name(r.name), width, bench_tools::short_time(r.seconds_a),
                       bench_tools::short_time(r.seconds_b), r.ratio, interval, r.p, r.p_holm,
                       fmt::format("{:.1f} %", 100 * r.threshold), verdict_name(r.verdict));
  }
  out += fmt::format("\n{} slower, {} faster, {} same, {} with too few runs; the median row takes {:+.1f} %\n",
                     c.count(Verdict::slower), c.count(Verdict::faster), c.count(Verdict::same),
                     c.count(Verdict::too_few_runs), 100 * (c.drift.median_ratio - 1));
  if (!c.only_a.empty() || !c.only_b.empty())
    out += fmt::format("{} only in A, {} only in B\n", c.only_a.size(), c.only_b.size());
  if (c.count(Verdict::too_few_runs) > 0)
    out += "too few runs: record nine repetitions or more (--benchmark_repetitions=9), on a quieter machine\n";
  return out;
}

int run_compare(CompareCommand o) {
  o.options.paired = !o.unpaired;
  const Record a = bench_tools::read_record(o.a), b = bench_tools::read_record(o.b);
  const Comparison c = bench_tools::compare(a, b, o.options);
  for (const std::string& w : c.warnings)
    if (!o.common.quiet) warn(w);
  for (const Record* r : {&a, &b})
    if (!r->failed.empty() && !o.common.quiet)
      warn(fmt::format("{}: {} runs ended with an error, for example {}", r->path, r->failed.size(), r->failed[0]));
  if (o.common.json)
    print_json(comparison_json(a, b, o, c));
  else
    write_stdout(comparison_text(a, b, o, c));
  return c.count(Verdict::slower) > 0 ? static_cast<int>(ErrorCode::mismatch) : 0;
}

struct RooflineCommand {
  std::string record, out, filter, tier;
  CommonOptions common;
};

int run_roofline(const RooflineCommand& o) {
  const Record r = bench_tools::read_record(o.record);
  bench_tools::RooflineOptions options;
  options.filter = o.filter;
  options.tier = o.tier;
  const bench_tools::RooflineData data = bench_tools::roofline_data(r, options);
  if (data.roofs.empty() && !o.common.quiet)
    warn(o.record + ": no measured peaks in its context; the kernels are drawn without roofs");
  const std::string svg = bench_tools::roofline_svg(data, true);
  if (!o.out.empty()) write_file(o.out, svg);
  if (o.common.json) {
    print_json(bench_tools::roofline_json(data, o.out));
  } else if (o.out.empty()) {
    write_stdout(svg);
  } else {
    say(o.common, fmt::format("{} kernels on {} roofs: {}", data.points.size(), data.roofs.size(), o.out));
  }
  return 0;
}

}  // namespace

void add_bench(CLI::App& app, Run* run) {
  CLI::App* bench = app.add_subcommand("bench", "measure kernels, drivers and models; compare records; draw rooflines");
  bench->footer(
      "Examples:\n"
      "  thimble bench --filter '^(softmax|rms_norm)/'                   # a table on stdout\n"
      "  thimble bench --filter '^softmax/' --isa avx2                   # at most this tier\n"
      "  thimble bench --filter '^driver_' --json before.json --benchmark_repetitions=9\n"
      "      ... change the code, rebuild ...\n"
      "  thimble bench --filter '^driver_' --json after.json --benchmark_repetitions=9\n"
      "  thimble bench compare before.json after.json                    # exit status 7: something is slower\n"
      "  thimble bench roofline after.json --out roofline.svg\n"
      "  thimble dashboard bench records/                                # a page with the trends of many records\n"
      "Names are KERNEL/TIER/SHAPE (one thread), driver_.../threads=N and model_...; --benchmark_list_tests prints "
      "them all.\n"
      "Every --benchmark_NAME=VALUE of Google Benchmark is passed on; the useful ones: --benchmark_repetitions=9,\n"
      "--benchmark_min_time=0.1, --benchmark_enable_random_interleaving=true, --benchmark_list_tests.\n"
      "A record is Google Benchmark's JSON with the counters flops, bytes and roof_fraction, and this machine, its "
      "measured\n"
      "peaks and the commit as context. What is measured, and how noise is kept out: bench/README.md.");
  bench->allow_extras();
  auto o = std::make_shared<BenchOptions>();
  o->command = bench;
  bench->add_option("--filter", o->filter,
                    "benches whose name contains this regular expression; with a leading '-': all others");
  bench->add_option("--isa", o->isa, "highest instruction-set tier to measure (see thimble doctor)");
  bench->add_option("--shape", o->shape, "benches whose shape contains this text");
  bench->add_option("--threads", o->threads, "threads of driver and model benches; kernels run on one; default: all")
      ->check(CLI::Range(1, 4096));
  bench->add_option("--variant", o->variant, "driver and model benches run with this candidate of bench/variants, for example 01");
  bench->add_option("--json", o->json, "write the record to this file when all is measured");
  bench->callback([o, run, bench] {
    if (bench->get_subcommands().empty()) *run = [o] { return run_benches(*o); };
  });

  {
    CLI::App* command =
        bench->add_subcommand("compare", "is B slower than A? Status 7 when something is, beyond the noise");
    command->footer(
        "Examples:\n"
        "  thimble bench compare before.json after.json\n"
        "  thimble bench compare before.json after.json --filter '^gemm' --json > comparison.json\n"
        "B / A is the ratio of times, so 1.10 is 10 % slower. A row is slower when its whole interval lies above\n"
        "1 + threshold and the rank test's p is at most alpha. The threshold is the noise of both records (from the "
        "median\n"
        "absolute deviation of their repetitions), at least --floor. Repetitions are pairs where both files have as "
        "many\n"
        "(Wilcoxon's signed-rank test), else independent (Mann-Whitney). Wants 9 repetitions, needs 6 (unpaired: 4), "
        "and more where the noise is large.\n"
        "Holm's correction is for many rows: pairs of 9 repetitions can pass it up to 12 rows, --unpaired up to 1200.\n"
        "Machines that differ, and drift that all rows share, are warned about on stderr.");
    auto c = std::make_shared<CompareCommand>();
    command->add_option("A", c->a, "record to compare with")->required();
    command->add_option("B", c->b, "new record")->required();
    command->add_option("--filter", c->options.filter,
                        "rows whose name contains this regular expression; with a leading '-': all others");
    command->add_option("--alpha", c->options.alpha, "of the rank test, and 1 - level of the intervals; default 0.05")
        ->check(CLI::Range(1e-6, 0.5));
    command->add_option("--floor", c->options.floor, "least threshold; default 0.05, what two records differ by anyway")
        ->check(CLI::Range(0.0, 10.0));
    command->add_flag("--unpaired", c->unpaired, "repetitions are independent, whatever their number");
    command->add_flag("--holm", c->options.holm, "verdicts use p corrected for the number of rows");
    command->add_flag("--json", c->common.json, "one JSON object on stdout instead of a table");
    command->add_flag("--quiet", c->common.quiet, "no words on stderr");
    command->callback([c, run] { *run = [c] { return run_compare(*c); }; });
  }
  {
    CLI::App* command =
        bench->add_subcommand("roofline", "draw all kernels of a record under the machine's measured roofs");
    command->footer(
        "Example: thimble bench roofline record.json --out roofline.svg\n"
        "Both axes are logarithmic: operations per byte, and operations per second. Roofs are the record's own "
        "measured peaks of\n"
        "f32, bf16 and int8 arithmetic and of reading memory. Kernels that record bytes or operations only stand in "
        "the\n"
        "margins, at their distance from the roof. Without --out the drawing goes to stdout.");
    auto c = std::make_shared<RooflineCommand>();
    command->add_option("RECORD", c->record, "bench record")->required();
    command->add_option("--out", c->out, "SVG file to write");
    command->add_option("--filter", c->filter,
                        "rows whose name contains this regular expression; with a leading '-': all others");
    command->add_option("--isa", c->tier, "tier whose roofs are drawn; default: the highest measured");
    command->add_flag("--json", c->common.json, "points and roofs as one JSON object on stdout");
    command->add_flag("--quiet", c->common.quiet, "no words on stderr");
    command->callback([c, run] { *run = [c] { return run_roofline(*c); }; });
  }
}

}  // namespace thimble::cli
