#include "tools/lab/machine_file.h"

#include <fmt/format.h>

#include <algorithm>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/cli/machine.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;

// The largest step count of a cell: what its training takes is proportional to it.
double last_step(const CellConfig& config) {
  return config.steps.empty() ? 0 : static_cast<double>(*std::max_element(config.steps.begin(), config.steps.end()));
}

}  // namespace

Json machine_record() {
  const Machine m = describe_machine();
  Json json = {{"cpu", m.cpu},
               {"vendor", m.vendor},
               {"cores", m.cores_online},
               {"threads_available", m.threads},
               {"l1d_bytes", m.l1d_bytes},
               {"l2_bytes", m.l2_bytes},
               {"l3_bytes", m.l3_bytes},
               {"memory_bytes", m.memory_bytes},
               {"os", m.os},
               {"compiler", m.compiler},
               {"build_type", m.build_type},
               {"commit", m.commit}};
  json["tiers"] = Json::array();
  for (const Tier tier : m.tiers) json["tiers"].push_back(tier_name(tier));
  return json;
}

MachineFile::MachineFile(const std::string& path) : path_(path), machine_(machine_record()) {
  if (path_.empty() || !file_exists(path_)) return;
  parse_json_file(path_);  // strict: refuses what the ordered parse below would pass
  const Json json = Json::parse(read_file(path_));
  try {
    read(json);
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorCode::input, path_ + ": a field is missing or of the wrong type: " + json_syntax_message(e.what()),
                "move the file away; costs are then measured again");
  }
}

void MachineFile::read(const Json& json) {
  hashes = FileHashes(json.at("files"));
  isa_ = json.at("isa").get<std::string>();
  threads_ = json.at("threads").get<int>();
  others_ = json.at("others");
  samples_per_hour_ = json.at("samples_per_hour");
  const Json& stored = json.at("machine");
  // The first machine stays the folder's; a later one is noted beside it.
  if (stored.at("cpu") != machine_.at("cpu") || stored.at("cores") != machine_.at("cores")) {
    const bool known = std::any_of(others_.begin(), others_.end(), [&](const Json& other) { return other == machine_; });
    if (!known) others_.push_back(machine_);
  }
  machine_ = stored;
  for (const auto& item : json.at("calibration").items()) {
    const Json& v = item.value();
    Calibration c;
    c.estimate.peak_bytes = v.at("peak_bytes").get<int64_t>();
    c.estimate.budget_bytes = v.at("budget_bytes").get<int64_t>();
    c.estimate.load_s = v.at("load_s").get<double>();
    c.estimate.step_s = v.at("step_s").get<double>();
    c.estimate.answer_s = v.at("answer_s").get<double>();
    c.estimate.steps = v.at("steps").get<int64_t>();
    c.estimate.queries = v.at("queries").get<int64_t>();
    c.like = v.at("like");
    calibrations_.emplace(item.key(), c);
  }
}

std::string MachineFile::key(const CellConfig& config) const {
  CellConfig c = config;
  c.seed = 0;
  c.task.world.seed = 0;
  // The time of a step does not depend on how many there are; how many are taken does on whether the cell chooses.
  c.steps.resize(std::min<size_t>(2, c.steps.size()));
  std::fill(c.steps.begin(), c.steps.end(), 1);
  c.curve.clear();
  if (c.task.is_world) c.task_sha256.clear();  // depends on the seed
  return sha256_hex(fmt::format("{} {} {}", c.to_json().dump(), isa_, threads_)).substr(0, 16);
}

std::optional<CellEstimate> MachineFile::estimate(const CellConfig& config, const Estimator& estimator, std::string* error) {
  const std::string name = key(config);
  const auto scaled = [&](CellEstimate e) {
    // Stored per step of the largest count, candidates for rates included.
    e.steps = static_cast<int64_t>(static_cast<double>(e.steps) * last_step(config));
    return e;
  };
  if (const auto stored = calibrations_.find(name); stored != calibrations_.end()) return scaled(stored->second.estimate);
  const auto failed = failures_.find(name);
  if (failed == failures_.end() && estimator) {
    try {
      CellConfig sample = config;
      if (!sample.steps.empty()) sample.steps = {static_cast<int64_t>(last_step(config))};
      Calibration c;
      c.estimate = estimator(sample);
      const double last = last_step(sample);
      // How many steps are taken in all for each step that is asked for: more than one where rates are chosen.
      c.estimate.steps = last > 0 ? std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(c.estimate.steps) / last)) : 0;
      const Json json = config.to_json();
      c.like = {{"model", json["model"]}, {"compression", json["compression"]}, {"method", json["method"]["name"]}, {"task", json["task"]}};
      calibrations_.emplace(name, c);
      return scaled(c.estimate);
    } catch (const Error& e) {
      if (e.code() == ErrorCode::interrupted) throw;
      failures_.emplace(name, e.what());
    }
  }
  if (error && failures_.count(name)) *error = failures_.at(name);
  return std::nullopt;
}

void MachineFile::save() {
  if (path_.empty()) return;
  if (file_exists(path_)) {
    const MachineFile stored(path_);
    for (const auto& [name, c] : stored.calibrations_) calibrations_.insert_or_assign(name, c);  // the first measurement counts
    machine_ = stored.machine_;
    others_ = stored.others_;
    if (samples_per_hour_.empty()) samples_per_hour_ = stored.samples_per_hour_;
  }
  Json json = {{"schema", "thimble.lab_machine/1"}, {"machine", machine_}, {"others", others_},
               {"isa", isa_},                       {"threads", threads_}, {"calibration", Json::object()}};
  for (const auto& [name, c] : calibrations_)
    json["calibration"][name] = {{"like", c.like},
                                 {"load_s", c.estimate.load_s},
                                 {"step_s", c.estimate.step_s},
                                 {"answer_s", c.estimate.answer_s},
                                 {"steps", c.estimate.steps},
                                 {"queries", c.estimate.queries},
                                 {"peak_bytes", c.estimate.peak_bytes},
                                 {"budget_bytes", c.estimate.budget_bytes}};
  json["samples_per_hour"] = samples_per_hour_;
  json["files"] = hashes.to_json();
  write_file(path_, json.dump(1) + "\n");
}

}  // namespace thimble::lab
