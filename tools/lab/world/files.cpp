#include "tools/lab/world/files.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tensor/file.h"
#include "tools/lab/metrics.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;

// The people of `data` with their queries [first, first + n) and without the last `unseen` items of history.
TaskData moment(const TaskData& data, size_t first, size_t n, size_t unseen) {
  TaskData out;
  out.task = data.task;
  for (const Person& person : data.people) {
    Person p;
    p.user_id = person.user_id;
    p.history.assign(person.history.begin(), person.history.end() - static_cast<std::ptrdiff_t>(std::min(unseen, person.history.size() - 1)));
    p.queries.assign(person.queries.begin() + static_cast<std::ptrdiff_t>(first), person.queries.begin() + static_cast<std::ptrdiff_t>(first + n));
    out.people.push_back(std::move(p));
  }
  return out;
}

TaskData group(const TaskData& data, size_t first, size_t last) {
  TaskData out;
  out.task = data.task;
  out.people.assign(data.people.begin() + static_cast<std::ptrdiff_t>(first), data.people.begin() + static_cast<std::ptrdiff_t>(last));
  return out;
}

}  // namespace

WorldFiles write_world(const std::string& dir, const WorldDials& dials, const std::vector<std::string>& tasks) {
  WorldFiles result;
  result.people = dials.people;
  Json per_task = Json::object();
  for (const std::string& name : tasks) {
    WorldDials w = dials;
    w.task = find_task(name).name;
    // Questions come from a stream: the first so many are the same for any number of them.
    const WorldTask world = make_world(w);
    WorldDials three = w;
    three.queries = 3 * w.queries;
    const TaskData all = make_people(three);
    const auto q = static_cast<size_t>(w.queries), h = static_cast<size_t>(w.history), n = all.people.size();
    const TaskData now = moment(all, 0, q, 0);
    const size_t train_end = std::max<size_t>(1, n * 3 / 5), dev_end = std::max(train_end, n * 4 / 5);
    struct Part {
      const char *split, *part;
      TaskData data;
    };
    const Part parts[] = {{"time", "train", moment(all, 2 * q, q, h / 4)}, {"time", "dev", moment(all, q, q, h / 8)}, {"time", "test", now},
                          {"user", "train", group(now, 0, train_end)},     {"user", "dev", group(now, train_end, dev_end)},
                          {"user", "test", group(now, dev_end, n)}};
    for (const Part& p : parts) {
      const std::string folder = join_path(join_path(dir, w.task), p.split);
      make_directories(folder);
      const std::string base = join_path(folder, p.part);
      write_lamp(p.data, base + "_questions.json", base + "_outputs.json");
      result.files.push_back(base + "_questions.json");
      result.files.push_back(base + "_outputs.json");
    }
    Json possible = Json::array();
    for (const Possible& p : world.possible)
      possible.push_back({{"metric", p.metric}, {"lower_is_better", lower_is_better(p.metric)}, {"query", p.query}, {"history", p.history}, {"latent", p.latent}});
    const Difficulty hard = difficulty(world.data, 0);
    per_task[w.task] = {{"title", world.data.task->title},
                        {"primary", world.data.task->primary},
                        {"possible", possible},
                        {"difficulty",
                         {{"label_entropy_bits", hard.label_entropy_bits},
                          {"classes", hard.classes},
                          {"majority", hard.majority},
                          {"neighbour", hard.neighbour},
                          {"answer_words", hard.answer_words}}}};
  }
  Json shown = dials_json(dials);
  shown.erase("task");  // every task is written with them
  const Json root = {{"schema", "thimble.world/1"},
                     {"dials", shown},
                     {"protocol",
                      "possible: best scores on the questions of time/test (and of all people of the user split): from the query alone, from the "
                      "whole history too, and knowing the person. Ratings by enumerating all preferences; tags and citations by the rules that "
                      "histories show; texts: query is the best of eight impersonal styles, latent two draws of the same author, 1000 samples."},
                     {"tasks", per_task}};
  const std::string path = join_path(dir, "world.json");
  write_file(path, root.dump(2) + "\n");
  result.files.push_back(path);
  return result;
}

}  // namespace thimble::lab
