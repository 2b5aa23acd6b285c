// thimble data check: are these LaMP files what they should be, and what is in them?
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <tuple>

#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"
#include "tools/cli/cmd_data.h"
#include "tools/lab/task.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

struct CheckOptions {
  CommonOptions common;
  std::string path, outputs, task;
};

// What is read together. questions empty: outputs alone.
struct FilePair {
  std::string questions, outputs;
};

constexpr std::string_view kQuestions = "questions.json", kOutputs = "outputs.json";

std::string sibling(const std::string& path, std::string_view from, std::string_view to) {
  const std::string other = path.substr(0, path.size() - from.size()) + std::string(to);
  return file_exists(other) ? other : "";
}

std::vector<FilePair> pairs_in(const std::string& dir) {
  std::vector<FilePair> pairs;
  std::error_code failed;
  fs::recursive_directory_iterator at(dir, fs::directory_options::skip_permission_denied, failed), end;
  for (; !failed && at != end; at.increment(failed)) {
    if (at.depth() > 4) at.disable_recursion_pending();
    const std::string path = at->path().string();
    std::error_code ignored;
    if (!at->is_regular_file(ignored)) continue;
    if (path.ends_with(kQuestions)) pairs.push_back({path, sibling(path, kQuestions, kOutputs)});
    else if (path.ends_with(kOutputs) && sibling(path, kOutputs, kQuestions).empty()) pairs.push_back({"", path});
  }
  if (failed) throw Error(ErrorCode::input, dir + ": cannot be listed: " + failed.message(), "check its permissions");
  if (pairs.empty())
    throw Error(ErrorCode::input, dir + ": holds no *questions.json or *outputs.json", "give a LaMP file, or a directory around such files");
  std::sort(pairs.begin(), pairs.end(), [](const FilePair& a, const FilePair& b) {
    return std::tie(a.questions, a.outputs) < std::tie(b.questions, b.outputs);
  });
  return pairs;
}

std::vector<FilePair> pairs_of(const CheckOptions& o) {
  if (is_directory(o.path)) {
    if (!o.outputs.empty()) throw Error(ErrorCode::usage, "--outputs: stands beside one questions file, not a directory", "leave it out");
    return pairs_in(o.path);
  }
  if (!o.outputs.empty()) return {{o.path, o.outputs}};
  if (o.path.ends_with(kOutputs)) return {{sibling(o.path, kOutputs, kQuestions), o.path}};
  if (o.path.ends_with(kQuestions)) return {{o.path, sibling(o.path, kQuestions, kOutputs)}};
  // Another name: outputs begin with a brace, questions with a bracket.
  const std::string text = read_file(o.path);
  const size_t first = text.find_first_not_of(" \t\r\n");
  return {first != std::string::npos && text[first] == '{' ? FilePair{"", o.path} : FilePair{o.path, ""}};
}

// Facts that make a file less useful than it looks, but do not make it wrong.
std::vector<std::string> problems_of(const lab::TaskData& data) {
  const lab::Task& task = *data.task;
  int64_t newcomers = 0, undated = 0, unknown = 0, off_list = 0, repeated = 0;
  std::set<std::string> users, twice;
  for (const lab::Person& person : data.people) {
    if (!users.insert(person.user_id).second) twice.insert(person.user_id);
    newcomers += person.history.empty();
    undated += !person.history.empty() && person.history[0].date.empty();
    std::set<std::string> documents;
    std::vector<std::string> labels;
    if (task.kind != lab::TaskKind::text && !person.queries.empty()) labels = lab::labels_of(task, person.queries[0].input);
    // Histories of citations hold no answers.
    const bool answers = std::string_view(task.name) != "LaMP_1" && !labels.empty() && task.answer_field >= 0;
    for (const lab::Item& item : person.history) {
      documents.insert(item.fields[static_cast<size_t>(task.long_field)]);
      if (answers) off_list += std::find(labels.begin(), labels.end(), item.fields[static_cast<size_t>(task.answer_field)]) == labels.end();
    }
    for (const lab::Query& query : person.queries) {
      unknown += query.output.empty();
      repeated += documents.count(task.query(query.input)) > 0;
    }
  }
  std::vector<std::string> problems;
  const auto add = [&](int64_t n, const char* what) {
    if (n > 0) problems.push_back(fmt::format("{} {}", n, what));
  };
  add(data.people.empty(), "file without any sample");
  add(unknown, "questions without a gold output");
  add(newcomers, "people without history");
  add(undated, "people without dates: the file's order is taken for the order in time");
  add(off_list, "history items whose answer is none of the labels");
  add(repeated, "questions about a text that stands in the history");
  add(static_cast<int64_t>(twice.size()), "user_ids with more than one profile: each profile counts as a person");
  return problems;
}

Json describe(const FilePair& pair, const CheckOptions& o) {
  const lab::Task* task = o.task.empty() ? nullptr : &lab::find_task(o.task);
  if (pair.questions.empty()) {
    const lab::LampOutputs outputs = lab::read_lamp_outputs(pair.outputs);
    return {{"questions", nullptr}, {"outputs", pair.outputs}, {"task", lab::find_task(outputs.task).name}, {"samples", outputs.rows.size()},
            {"problems", Json::array({"no questions beside it: only its shape was checked"})}};
  }
  const lab::TaskData data = lab::read_lamp(pair.questions, pair.outputs, task);
  int64_t samples = 0, items = 0, least = 0, most = 0;
  std::string first, last;
  for (size_t p = 0; p < data.people.size(); ++p) {
    const lab::Person& person = data.people[p];
    const auto n = static_cast<int64_t>(person.history.size());
    samples += static_cast<int64_t>(person.queries.size());
    items += n;
    least = p == 0 ? n : std::min(least, n);
    most = std::max(most, n);
    if (n == 0 || person.history[0].date.empty()) continue;
    if (first.empty() || person.history.front().date < first) first = person.history.front().date;
    last = std::max(last, person.history.back().date);
  }
  Json j = {{"questions", pair.questions},
            {"outputs", pair.outputs.empty() ? Json(nullptr) : Json(pair.outputs)},
            {"task", data.task->name},
            {"title", data.task->title},
            {"samples", samples},
            {"people", data.people.size()},
            {"history", {{"items", items}, {"min", least}, {"mean", data.people.empty() ? 0.0 : double(items) / double(data.people.size())}, {"max", most}}},
            {"dates", first.empty() ? Json(nullptr) : Json{{"first", first}, {"last", last}}},
            {"sha256", data.sha256},
            {"problems", problems_of(data)}};
  return j;
}

std::string words(const Json& f) {
  const std::string name = f["questions"].is_null() ? f["outputs"].get<std::string>() : f["questions"].get<std::string>();
  if (f.contains("error")) return fmt::format("{}: BAD\n  {}\n", name, f["error"].get<std::string>());
  std::string text = fmt::format("{}: {}, {} samples", name, f["task"].get<std::string>(), f["samples"].get<int64_t>());
  if (f.contains("people")) {
    const Json& h = f["history"];
    text += fmt::format(", {} people, history {} to {} items (mean {:.1f}){}\n", f["people"].get<int64_t>(), h["min"].get<int64_t>(), h["max"].get<int64_t>(),
                        h["mean"].get<double>(), f["outputs"].is_null() ? ", no outputs" : "");
    if (!f["dates"].is_null()) text += fmt::format("  dates {} to {}\n", f["dates"]["first"].get<std::string>(), f["dates"]["last"].get<std::string>());
  } else {
    text += "\n";
  }
  for (const auto& problem : f["problems"]) text += "  note: " + problem.get<std::string>() + "\n";
  return text;
}

int run_check(const CheckOptions& o) {
  if (!o.task.empty()) lab::find_task(o.task);
  const std::vector<FilePair> pairs = pairs_of(o);
  Json files = Json::array();
  std::string message, hint;
  int64_t bad = 0;
  for (const FilePair& pair : pairs) {
    try {
      files.push_back(describe(pair, o));
    } catch (const Error& e) {
      if (pairs.size() == 1 || e.code() != ErrorCode::input) throw;
      files.push_back({{"questions", pair.questions.empty() ? Json(nullptr) : Json(pair.questions)},
                       {"outputs", pair.outputs.empty() ? Json(nullptr) : Json(pair.outputs)},
                       {"error", e.what()}});
      if (bad++ == 0) {
        message = e.what();
        hint = e.hint();
      }
    }
  }
  if (o.common.json) {
    print_json({{"schema", "thimble.data_check/1"}, {"path", o.path}, {"bad", bad}, {"files", files}});
  } else {
    std::string text;
    for (const Json& f : files) text += words(f);
    write_stdout(text);
  }
  if (bad > 0) throw Error(ErrorCode::input, fmt::format("{} of {} data sets are bad; the first: {}", bad, pairs.size(), message), hint);
  return 0;
}

}  // namespace

void add_data_check(CLI::App& data, Run* run) {
  CLI::App* command = data.add_subcommand("check", "validate LaMP files and say what is in them");
  command->footer(
      "Examples:\n"
      "  thimble data check LaMP_3/time/dev_questions.json\n"
      "  thimble data check world --json\n"
      "A questions file is read together with the outputs beside it; a directory is searched for both.");
  auto o = std::make_shared<CheckOptions>();
  command->add_option("path", o->path, "a questions or outputs file, or a directory around such files")->required();
  command->add_option("--outputs", o->outputs, "the gold outputs; default: *outputs.json beside *questions.json");
  command->add_option("--task", o->task, "the task that the files must belong to, for example LaMP_3; default: as they say");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_check(*o); }; });
}

}  // namespace thimble::cli
