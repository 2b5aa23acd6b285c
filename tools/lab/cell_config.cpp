// A cell's configuration as JSON and as a name.
#include <fmt/format.h>

#include "tensor/error.h"
#include "tensor/sha256.h"
#include "tools/lab/cell.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;

// Reads a field into a variable of its type; names it when it is missing or of another type.
class Fields {
 public:
  Fields(const Json& json, std::string where) : json_(json), where_(std::move(where)) {
    if (!json.is_object()) throw Error(ErrorCode::input, where_ + ": is not an object", "delete the cell's folder and run again");
  }
  template <class T>
  void get(const char* key, T& value) const {
    try {
      value = json_.at(key).get<T>();
    } catch (const nlohmann::json::exception&) {
      throw Error(ErrorCode::input, fmt::format("{}: field \"{}\" is missing or of the wrong type", where_, key),
                  "the cell was written by another version: delete its folder and run again");
    }
  }
  const Json& child(const char* key) const {
    if (!json_.contains(key)) throw Error(ErrorCode::input, fmt::format("{}: field \"{}\" is missing", where_, key), "delete the cell's folder and run again");
    return json_.at(key);
  }

 private:
  const Json& json_;
  std::string where_;
};

}  // namespace

Json CellConfig::to_json() const {
  Json t;
  if (task.is_world)
    t["world"] = dials_json(task.world);
  else
    t = {{"lamp", task.lamp_dir}, {"k", task.lamp_task}, {"split", task.split}, {"part", task.part},
         {"people", task.people}, {"queries", task.queries}};
  Json m = {{"name", method.name},
            {"rank", method.rank},
            {"alpha", method.alpha},
            {"dropout", method.dropout},
            {"targets", method.targets},
            {"n_virtual", method.n_virtual},
            {"lr", method.lr},
            {"batch", method.batch},
            {"retriever", method.retriever},
            {"k", method.k},
            {"prompt_tokens", method.prompt_tokens}};
  // Cells of plans without one keep their names.
  if (!method.embedder.empty()) {
    m["embedder"] = method.embedder;
    m["embedder_sha256"] = method.embedder_sha256;
  }
  return {{"schema", "thimble.cell/1"},
          {"model", model},
          {"model_sha256", model_sha256},
          {"compression", compression},
          {"method", m},
          {"history", history},
          {"steps", steps},
          {"curve", curve},
          {"task", t},
          {"task_sha256", task_sha256},
          {"seed", seed},
          {"precision", precision},
          {"ram", ram}};
}

CellConfig CellConfig::from_json(const Json& json) {
  CellConfig c;
  const Fields f(json, "cell");
  f.get("model", c.model);
  f.get("model_sha256", c.model_sha256);
  f.get("compression", c.compression);
  f.get("history", c.history);
  f.get("steps", c.steps);
  f.get("curve", c.curve);
  f.get("task_sha256", c.task_sha256);
  f.get("seed", c.seed);
  f.get("precision", c.precision);
  f.get("ram", c.ram);
  const Fields m(f.child("method"), "cell: method");
  m.get("name", c.method.name);
  m.get("rank", c.method.rank);
  m.get("alpha", c.method.alpha);
  m.get("dropout", c.method.dropout);
  m.get("targets", c.method.targets);
  m.get("n_virtual", c.method.n_virtual);
  m.get("lr", c.method.lr);
  m.get("batch", c.method.batch);
  m.get("retriever", c.method.retriever);
  if (json.at("method").contains("embedder")) {
    m.get("embedder", c.method.embedder);
    m.get("embedder_sha256", c.method.embedder_sha256);
  }
  m.get("k", c.method.k);
  m.get("prompt_tokens", c.method.prompt_tokens);
  const Fields t(f.child("task"), "cell: task");
  c.task.is_world = json.at("task").contains("world");
  if (c.task.is_world) {
    const Fields w(t.child("world"), "cell: task.world");
    WorldDials& d = c.task.world;
    w.get("task", d.task);
    w.get("people", d.people);
    w.get("queries", d.queries);
    w.get("history", d.history);
    w.get("keys", d.keys);
    w.get("key", d.key);
    w.get("classes", d.classes);
    w.get("noise", d.noise);
    w.get("person", d.person);
    w.get("overlap", d.overlap);
    w.get("drift", d.drift);
    w.get("seed", d.seed);
  } else {
    t.get("lamp", c.task.lamp_dir);
    t.get("k", c.task.lamp_task);
    t.get("split", c.task.split);
    t.get("part", c.task.part);
    t.get("people", c.task.people);
    t.get("queries", c.task.queries);
  }
  return c;
}

std::string CellConfig::hash() const { return sha256_hex(to_json().dump()).substr(0, 16); }

}  // namespace thimble::lab
