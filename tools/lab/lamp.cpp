// LaMP's two files, read as files from strangers, and written.
#include "tools/lab/lamp.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/lab/task.h"
#include "tools/lab/tasks/task_text.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::json;
constexpr size_t kMaxBytes = size_t{1} << 30;

std::string field_name(const std::string& sample, const std::string& field) {
  return sample.empty() ? "field " + quote_for_message(field) : "sample " + quote_for_message(sample) + ": field " + quote_for_message(field);
}

[[noreturn]] void fail(const std::string& file, const std::string& where, const std::string& what, const std::string& hint) {
  throw Error(ErrorCode::input, file + ": " + where + ": " + what, hint);
}

std::string kind_of(const Json* value) {
  if (!value) return "nothing";
  if (value->is_string()) return "an empty string";
  return std::string("a value of type ") + value->type_name();
}

// A string that is not empty; numbers count where the format's authors are known to write them (ids, ratings).
std::string text_field(const Json& object, const char* key, const std::string& file, const std::string& where, bool number_ok = false) {
  const auto it = object.find(key);
  const Json* value = it == object.end() ? nullptr : &*it;
  if (value && value->is_string() && !strip(value->get_ref<const std::string&>()).empty()) return value->get<std::string>();
  if (value && number_ok && value->is_number()) {
    const double number = value->get<double>();
    return value->is_number_float() && number == std::floor(number) && std::abs(number) < 1e15 ? fmt::format("{:.0f}", number) : value->dump();
  }
  fail(file, where, fmt::format("expected text that is not empty, found {}", kind_of(value)),
       "every sample needs id, input and profile; every profile item id and the fields of its task");
}

// "yyyy", "yyyy-mm" or "yyyy-mm-dd".
bool is_date(const std::string& text) {
  std::vector<int> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find('-', at), text.size());
    if (end - at != (parts.empty() ? 4 : 2)) return false;
    int value = 0;
    for (size_t i = at; i < end; ++i) {
      if (text[i] < '0' || text[i] > '9') return false;
      value = value * 10 + (text[i] - '0');
    }
    parts.push_back(value);
    at = end + 1;
  }
  if (parts.size() > 3) return false;
  if (parts.size() > 1 && (parts[1] < 1 || parts[1] > 12)) return false;
  if (parts.size() > 2) {
    static constexpr int kDays[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    const bool leap = (parts[0] % 4 == 0 && parts[0] % 100 != 0) || parts[0] % 400 == 0;
    const int days = kDays[parts[1] - 1] + (parts[1] == 2 && leap ? 1 : 0);
    if (parts[2] < 1 || parts[2] > days) return false;
  }
  return true;
}

std::string known_fields() {
  std::string list;
  for (const Task* task : all_tasks()) {
    list += std::string(list.empty() ? "" : "; ") + task->name + ": ";
    for (size_t i = 0; i < task->fields.size(); ++i) list += (i ? ", " : "") + std::string(task->fields[i]);
  }
  return list;
}

// Tasks with the same fields are told apart by their prompts.
const Task& recognise(const Json& questions, const std::string& file) {
  for (const Json& sample : questions) {
    const auto profile = sample.is_object() ? sample.find("profile") : sample.end();
    if (!sample.is_object() || profile == sample.end() || !profile->is_array() || profile->empty() || !(*profile)[0].is_object()) continue;
    const Json& item = (*profile)[0];
    const auto fields = [&](const std::vector<const char*>& names) {
      return std::all_of(names.begin(), names.end(), [&](const char* name) { return item.contains(name); });
    };
    const auto input = sample.find("input");
    const std::string prompt = input != sample.end() && input->is_string() ? input->get<std::string>() : "";
    const auto has = [&](const char* marker) { return prompt.find(marker) != std::string::npos; };
    if (fields({"title", "abstract"})) return has("[1]:") && has("[2]:") ? kLamp1 : kLamp5;
    if (fields({"description", "tag"})) return kLamp2;
    if (fields({"title", "text", "category"})) return kLamp2News;
    if (fields({"text", "score"})) return kLamp3;
    if (fields({"title", "text"})) return has("article:") ? kLamp4 : kLamp6;
    if (fields({"text"})) return kLamp7;
    break;
  }
  throw Error(ErrorCode::input, file + ": the profile's fields belong to no task", known_fields());
}

LampOutputs parse_outputs(const std::string& text, const std::string& file) {
  const Json json = parse_json(text, file);
  const JsonObject root(json, file);
  LampOutputs outputs;
  outputs.task = root.require_string("task");
  const Json* list = root.find("golds");
  if (!list || !list->is_array()) root.fail("golds", "an array of {id, output}");
  std::unordered_set<std::string> ids;
  for (size_t i = 0; i < list->size(); ++i) {
    const Json& row = (*list)[i];
    const std::string where = fmt::format("golds[{}]", i);
    if (!row.is_object()) fail(file, "field \"" + where + "\"", "expected an object {id, output}", "is this an outputs file?");
    const std::string id = text_field(row, "id", file, "field \"" + where + ".id\"", true);
    if (!ids.insert(id).second) fail(file, field_name(id, "id"), "stands twice", "every question has one output");
    outputs.rows.emplace_back(id, text_field(row, "output", file, field_name(id, "output"), true));
  }
  return outputs;
}

// The row that an outputs file names.
const Task& task_named(const std::string& name, const std::string& file) {
  try {
    return find_task(name);
  } catch (const Error& e) {
    throw Error(ErrorCode::input, file + ": field \"task\": " + e.what(), e.hint());
  }
}

std::vector<Item> read_profile(const Json& sample, const Task& task, const std::string& file, const std::string& id) {
  const auto found = sample.find("profile");
  if (found == sample.end() || !found->is_array()) fail(file, field_name(id, "profile"), "expected an array of items", "is this a questions file?");
  std::vector<Item> items;
  std::unordered_set<std::string> ids;
  size_t dated = 0;
  for (size_t i = 0; i < found->size(); ++i) {
    const Json& entry = (*found)[i];
    const std::string path = fmt::format("profile[{}]", i);
    if (!entry.is_object()) fail(file, field_name(id, path), "expected an object", "every profile item is an object with id and fields");
    Item item;
    item.id = text_field(entry, "id", file, field_name(id, path + ".id"), true);
    if (!ids.insert(item.id).second)
      fail(file, field_name(id, path + ".id"), "the id " + quote_for_message(item.id) + " stands twice in this profile", "ids name one item each");
    for (const char* field : task.fields)
      item.fields.push_back(text_field(entry, field, file, field_name(id, path + "." + field), task.kind == TaskKind::ordinal));
    if (const auto date = entry.find("date"); date != entry.end() && !date->is_null()) {
      item.date = date->is_string() ? date->get<std::string>() : date->dump();
      if (!is_date(item.date))
        fail(file, field_name(id, path + ".date"), quote_for_message(item.date) + " is no date", "expected yyyy, yyyy-mm or yyyy-mm-dd");
      ++dated;
    }
    items.push_back(std::move(item));
  }
  if (dated != 0 && dated != items.size())
    fail(file, field_name(id, "profile"), fmt::format("{} of {} items have a date", dated, items.size()),
         "give every item a date, or none: otherwise their order in time is unknown");
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.date < b.date; });
  return items;
}

// One string for a profile, equal for equal profiles only.
std::string fingerprint(const std::vector<Item>& items) {
  Sha256 digest;
  const auto add = [&](const std::string& s) { digest.update(fmt::format("{}:", s.size()) + s); };
  for (const Item& item : items) {
    add(item.id);
    add(item.date);
    for (const std::string& field : item.fields) add(field);
  }
  return digest.hex();
}

void check_question(const Task& task, const Query& query, const std::string& file, const std::string& outputs) {
  std::vector<std::string> labels;
  try {
    task.query(query.input);
    labels = labels_of(task, query.input);
  } catch (const Error& e) {
    fail(file, field_name(query.id, "input"), e.what(), e.hint());
  }
  const std::string gold = strip(query.output);
  if (!gold.empty() && !labels.empty() && std::find(labels.begin(), labels.end(), gold) == labels.end()) {
    std::string list;
    for (const std::string& label : labels) list += (list.empty() ? "" : ", ") + label;
    fail(outputs.empty() ? file : outputs, field_name(query.id, "output"), quote_for_message(gold) + " is none of the answers", "answers: " + list);
  }
}

TaskData read_files(const std::string& questions, const std::string& outputs, const Task* task) {
  const std::string question_text = read_file(questions, kMaxBytes);
  const Json json = parse_json(question_text, questions);
  if (!json.is_array()) throw Error(ErrorCode::input, questions + ": expected an array of samples", "is this a questions file?");
  Sha256 digest;
  digest.update(sha256_hex(question_text));
  LampOutputs golds;
  if (!outputs.empty()) {
    const std::string text = read_file(outputs, kMaxBytes);
    digest.update(sha256_hex(text));
    golds = parse_outputs(text, outputs);
    const Task* named = &task_named(golds.task, outputs);
    // LaMP_2 was news in the benchmark's first version, under the same name.
    if (!task && named == &kLamp2 && !json.empty() && &recognise(json, questions) == &kLamp2News) named = &kLamp2News;
    if (task && named != task && !(task == &kLamp2News && named == &kLamp2))
      throw Error(ErrorCode::input, fmt::format("{}: field \"task\": found {}, expected {}", outputs, golds.task, task->name),
                  "is this the file of another task?");
    if (!task) task = named;
  }
  if (!task) task = &recognise(json, questions);

  TaskData data;
  data.task = task;
  data.sha256 = digest.hex();
  std::unordered_map<std::string, std::string> output_of;
  for (const auto& [id, output] : golds.rows) output_of.emplace(id, output);

  std::unordered_set<std::string> ids;
  std::unordered_map<std::string, size_t> person_of;  // user_id and profile
  for (size_t i = 0; i < json.size(); ++i) {
    const Json& sample = json[i];
    if (!sample.is_object()) fail(questions, fmt::format("sample number {}", i), "expected an object", "is this a questions file?");
    Query query;
    query.id = text_field(sample, "id", questions, fmt::format("sample number {}: field \"id\"", i), true);
    if (!ids.insert(query.id).second) fail(questions, field_name(query.id, "id"), "stands twice", "ids name one sample each");
    query.input = text_field(sample, "input", questions, field_name(query.id, "input"));
    if (!outputs.empty()) {
      const auto found = output_of.find(query.id);
      if (found == output_of.end()) fail(outputs, field_name(query.id, "output"), "the question has no output", "do the two files belong together?");
      query.output = found->second;
    } else if (sample.contains("output")) {  // LaMP's merged files
      query.output = text_field(sample, "output", questions, field_name(query.id, "output"), true);
    }
    check_question(*task, query, questions, outputs);
    std::vector<Item> history = read_profile(sample, *task, questions, query.id);
    const bool has_user = sample.contains("user_id");
    const std::string user = has_user ? text_field(sample, "user_id", questions, field_name(query.id, "user_id"), true) : query.id;
    const std::string key = fmt::format("{}:{}{}{}", user.size(), user, has_user ? "u" : "q", fingerprint(history));
    const auto [place, fresh] = person_of.emplace(key, data.people.size());
    if (fresh) data.people.push_back({user, std::move(history), {}});
    data.people[place->second].queries.push_back(std::move(query));
  }
  for (const auto& [id, output] : golds.rows)
    if (!ids.count(id)) fail(outputs, field_name(id, "id"), "there is no such question", "do the two files belong together?");
  return data;
}

std::string dumped(const std::string& text) { return Json(text).dump(); }

}  // namespace

TaskData read_lamp(const std::string& questions, const std::string& outputs, const Task* task) {
  return read_files(questions, outputs, task);
}

LampOutputs read_lamp_outputs(const std::string& path) {
  LampOutputs outputs = parse_outputs(read_file(path, kMaxBytes), path);
  task_named(outputs.task, path);
  return outputs;
}

TaskData read_lamp_split(const std::string& dir, const std::string& task, const std::string& split, const std::string& part) {
  const Task& row = find_task(task);
  if (part != "train" && part != "dev" && part != "test")
    throw Error(ErrorCode::usage, "unknown part " + quote_for_message(part), "valid parts: train, dev, test");
  std::string base = join_path(join_path(join_path(dir, row.name), split), part);
  if (!file_exists(base + "_questions.json")) {
    const std::string plain = join_path(dir, part);
    if (!file_exists(plain + "_questions.json"))
      throw Error(ErrorCode::input, fmt::format("{}: neither {}_questions.json nor {}_questions.json is there", dir, base, plain),
                  "expected DIR/LaMP_k/SPLIT/PART_questions.json, with the outputs beside it");
    base = plain;
  }
  // Outputs of the test part are not published.
  const std::string outputs = base + "_outputs.json";
  return read_lamp(base + "_questions.json", part == "test" && !file_exists(outputs) ? "" : outputs, &row);
}

void write_lamp(const TaskData& data, const std::string& questions, const std::string& outputs) {
  THIMBLE_CHECK(data.task);
  for (const Person& person : data.people)
    for (const Query& query : person.queries)
      if (!outputs.empty() && query.output.empty())
        fail(outputs, field_name(query.id, "output"), "is not known", "write the questions alone");
  AtomicFile file(questions);
  file.write("[");
  bool first = true;
  for (const Person& person : data.people) {
    std::string profile = "[";
    for (size_t i = 0; i < person.history.size(); ++i) {
      const Item& item = person.history[i];
      THIMBLE_CHECK(item.fields.size() == data.task->fields.size());
      profile += (i ? ", {\"id\": " : "{\"id\": ") + dumped(item.id);
      for (size_t f = 0; f < item.fields.size(); ++f) profile += fmt::format(", \"{}\": {}", data.task->fields[f], dumped(item.fields[f]));
      if (!item.date.empty()) profile += ", \"date\": " + dumped(item.date);
      profile += "}";
    }
    profile += "]";
    for (const Query& query : person.queries) {
      file.write(fmt::format("{}\n{{\"id\": {}, \"user_id\": {}, \"input\": {}, \"profile\": {}}}", first ? "" : ",", dumped(query.id),
                             dumped(person.user_id), dumped(query.input), profile));
      first = false;
    }
  }
  file.write("\n]\n");
  if (outputs.empty()) {
    file.commit();
    return;
  }
  AtomicFile golds(outputs);
  golds.write(fmt::format("{{\"task\": \"{}\", \"golds\": [", data.task->name));
  first = true;
  for (const Person& person : data.people)
    for (const Query& query : person.queries) {
      golds.write(fmt::format("{}\n{{\"id\": {}, \"output\": {}}}", first ? "" : ",", dumped(query.id), dumped(query.output)));
      first = false;
    }
  golds.write("\n]}\n");
  file.commit();
  golds.commit();
}

}  // namespace thimble::lab
