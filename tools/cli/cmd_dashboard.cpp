// thimble dashboard: pages made of many results.
#include <fmt/format.h>

#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/bench/history.h"
#include "tools/cli/cli.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct BenchPage {
  std::string dir, out;
  bench_tools::CompareOptions compare;
  bool unpaired = false;
  CommonOptions common;  // json and quiet
};

int run_bench_page(BenchPage o) {
  o.compare.paired = !o.unpaired;
  std::vector<bench_tools::Skipped> skipped;
  const std::vector<bench_tools::Record> records = bench_tools::read_records(o.dir, &skipped);
  const std::vector<bench_tools::History> machines = bench_tools::histories(records, o.compare);
  if (!o.common.quiet)
    for (const bench_tools::Skipped& s : skipped) warn("passed over " + s.path + ": " + s.reason);
  const std::string out = o.out.empty() ? join_path(o.dir, "bench.html") : o.out;
  write_file(out, bench_tools::history_page(machines, skipped, o.dir, o.compare));
  if (o.common.json) {
    Json json = bench_tools::history_json(machines, skipped, o.dir);
    json["page"] = out;
    print_json(json);
  } else {
    write_stdout("page: " + out + "\n");
  }
  return 0;
}

}  // namespace

void add_dashboard(CLI::App& app, Run* run) {
  CLI::App* dashboard = app.add_subcommand("dashboard", "one offline page from many results");
  dashboard->require_subcommand(1);
  dashboard->footer("Example: thimble dashboard bench records --out bench.html");
  CLI::App* command =
      dashboard->add_subcommand("bench", "trends, regressions and rooflines of a folder of bench records");
  command->footer(
      "Examples:\n"
      "  thimble bench --json records/$(git describe --always).json --benchmark_repetitions=9   # once per commit\n"
      "  thimble dashboard bench records --out bench.html\n"
      "Reads every record below DIR, tells machines apart by their fingerprint, orders records by date, and judges "
      "every step\n"
      "by the rule of `thimble bench compare`. The page needs no network and holds its data.");
  auto o = std::make_shared<BenchPage>();
  command->add_option("DIR", o->dir, "folder of bench records, searched with all folders in it")->required();
  command->add_option("--out", o->out, "page to write; default DIR/bench.html");
  command->add_option("--filter", o->compare.filter,
                      "benchmarks whose name contains this regular expression; with a leading '-': all others");
  command->add_option("--alpha", o->compare.alpha, "of the rank test, and 1 - level of the intervals; default 0.05")
      ->check(CLI::Range(1e-6, 0.5));
  command->add_option("--floor", o->compare.floor, "least threshold; default 0.05")->check(CLI::Range(0.0, 10.0));
  command->add_flag("--unpaired", o->unpaired, "repetitions are independent, whatever their number");
  command->add_flag("--json", o->common.json, "what the page shows as one JSON object on stdout");
  command->add_flag("--quiet", o->common.quiet, "no words on stderr");
  command->callback([o, run] { *run = [o] { return run_bench_page(*o); }; });
}

}  // namespace thimble::cli
