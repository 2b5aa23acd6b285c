// What every sub-command shares: common options, the kernel table and context made of them, output and progress.
// Parsing, progress and exit codes live in this folder only.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/kernel_table.h"
#include "tensor/arena.h"
#include "tensor/context.h"

namespace thimble::cli {

struct CommonOptions {
  std::string isa;        // tier cap; empty: the best
  int threads = 0;        // 0: all that the process may use
  std::string precision = "f32";
  uint64_t seed = 0;
  std::string ram;        // "4G"; empty: no limit
  bool json = false, quiet = false;
  int verbose = 0;
};

// Adds --isa --threads --precision --seed --ram --json --quiet -v to a sub-command.
void add_common_options(CLI::App& command, CommonOptions& options);

// The state of one run, made from the common options. Throws usage errors that list the valid values.
class Session {
 public:
  explicit Session(const CommonOptions& options);

  const CommonOptions& options() const { return options_; }
  const KernelTable& kernels() const { return kernels_; }
  int threads() const { return threads_; }
  Precision precision() const { return precision_; }
  MemoryBudget& budget() { return budget_; }
  // A context with this session's kernels, threads, precision and budget.
  std::unique_ptr<Context> make_context();

 private:
  CommonOptions options_;
  KernelTable kernels_;
  int threads_;
  Precision precision_;
  MemoryBudget budget_;
};

// "123", "512M", "4G", "1.5GiB" -> bytes. Throws usage.
int64_t parse_bytes(const std::string& text, const std::string& option);

// Stdout, unbuffered: a write that fails is an Error, so a full disk or a closed pipe never passes unseen.
void write_stdout(std::string_view text);
// Exactly one JSON object and a newline. Numbers that are not finite become null.
void print_json(const nlohmann::ordered_json& value);
// Words for people, on stderr; nothing when quiet.
void say(const CommonOptions& options, const std::string& line);
void warn(const std::string& line);

// A line with share, rate and ETA on a terminal; silent in a pipe and when quiet.
class Progress {
 public:
  Progress(const CommonOptions& options, std::string what, int64_t total, std::string unit);
  ~Progress();
  // note: stands behind the figures.
  void update(int64_t done, const std::string& note = {});

 private:
  bool active_;
  std::string what_, unit_;
  int64_t total_;
  double start_, last_ = 0;
};

double seconds_now();       // monotonic
int64_t peak_rss_bytes();   // of this process so far
// The kernel table that cap and pins ask for ("" = best / none).
KernelTable kernel_table_from(const std::string& isa, const std::string& pins);

// One function per verb: adds the sub-command, whose callback stores the work in *run.
using Run = std::function<int()>;
void add_doctor(CLI::App& app, Run* run);
void add_model(CLI::App& app, Run* run);
void add_model_adapter(CLI::App& model, Run* run);  // a sub-command of model
void add_tokenize(CLI::App& app, Run* run);
void add_generate(CLI::App& app, Run* run);
void add_chat(CLI::App& app, Run* run);
void add_eval(CLI::App& app, Run* run);
void add_tune(CLI::App& app, Run* run);
void add_pretrain(CLI::App& app, Run* run);
void add_quantize(CLI::App& app, Run* run);
void add_prune(CLI::App& app, Run* run);
void add_convert(CLI::App& app, Run* run);
void add_parity(CLI::App& app, Run* run);
void add_data(CLI::App& app, Run* run);
void add_lab(CLI::App& app, Run* run);
void add_embed(CLI::App& app, Run* run);
void add_rag(CLI::App& app, Run* run);
void add_profile(CLI::App& app, Run* run);
void add_bench(CLI::App& app, Run* run);
void add_dashboard(CLI::App& app, Run* run);
void add_completion(CLI::App& app, Run* run);

// Parses and runs; returns the exit status.
int main_entry(int argc, char** argv);

}  // namespace thimble::cli
