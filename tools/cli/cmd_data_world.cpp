// thimble data world: a synthetic population as LaMP files.
#include <fmt/format.h>

#include <sstream>

#include "tensor/error.h"
#include "tools/cli/cli.h"
#include "tools/cli/cmd_data.h"
#include "tools/lab/world/files.h"

namespace thimble::cli {
namespace {

struct WorldOptions {
  CommonOptions common;
  lab::WorldDials dials;
  std::string out, tasks = "all";
};

std::vector<std::string> task_list(const std::string& text) {
  if (text == "all") return {"LaMP_1", "LaMP_2", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_6", "LaMP_7"};
  std::vector<std::string> names;
  std::istringstream in(text);
  for (std::string name; std::getline(in, name, ',');)
    if (!name.empty()) names.push_back(lab::find_task(name).name);
  if (names.empty()) throw Error(ErrorCode::usage, "--tasks: names no task", "for example --tasks LaMP_2,LaMP_3");
  return names;
}

int run_world(const WorldOptions& o) {
  lab::WorldDials dials = o.dials;
  dials.seed = o.common.seed;
  const std::vector<std::string> tasks = task_list(o.tasks);
  const lab::WorldFiles files = lab::write_world(o.out, dials, tasks);
  if (o.common.json)
    print_json({{"schema", "thimble.data_world/1"}, {"out", o.out}, {"tasks", tasks}, {"people", files.people}, {"files", files.files}});
  else
    write_stdout(fmt::format("{}: {} people, {} tasks, {} files; what can be reached stands in world.json\n", o.out, files.people, tasks.size(),
                             files.files.size()));
  return 0;
}

}  // namespace

void add_data_world(CLI::App& data, Run* run) {
  CLI::App* command = data.add_subcommand("world", "write a synthetic population with known best scores");
  command->footer(
      "Example: thimble data world --out world --tasks LaMP_2,LaMP_3 --people 30 --history 64 --noise 0.1 --seed 3\n"
      "Writes OUT/LaMP_k/{user,time}/{train,dev,test}_{questions,outputs}.json and OUT/world.json. The same options and seed give the same "
      "bytes.");
  auto o = std::make_shared<WorldOptions>();
  lab::WorldDials& d = o->dials;
  d.history = 64;
  command->add_option("--out", o->out, "directory to write")->required();
  command->add_option("--tasks", o->tasks, "LaMP_1 to LaMP_7, separated by commas (default: all)");
  command->add_option("--people", d.people, "people (default 24)");
  command->add_option("--history", d.history, "items in each person's history (default 64)");
  command->add_option("--queries", d.queries, "questions to each person (default 16)");
  command->add_option("--keys", d.keys, "how many things an answer depends on: LaMP_2 topics or names in use, LaMP_3 attributes per review, texts 1 or 2 "
                                        "styles; 0: the task's default");
  command->add_option("--key", d.key, "LaMP_2: tags depend on the topic (a rule) or the name (a fact)");
  command->add_option("--classes", d.classes, "LaMP_2: tags in the list (2 to 16, default 16)");
  command->add_option("--noise", d.noise, "probability of a wrong answer (default 0)");
  command->add_option("--person", d.person, "how far answers depend on the person rather than the text, 0 to 1 (default 0.7)");
  command->add_option("--overlap", d.overlap, "lexical, or latent: history and questions share no topic words");
  command->add_option("--drift", d.drift, "share of a person's rules that change half-way (default 0)");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_world(*o); }; });
}

}  // namespace thimble::cli
