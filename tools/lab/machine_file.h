// machine.json of an experiment's folder: on which machine it ran, the digests of its files, and what its cells cost
// there. Costs are measured once: a resumed run converts time budgets with what is stored, so that cells keep their names.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "tools/lab/cell.h"
#include "tools/lab/identity.h"

namespace thimble::lab {

using Estimator = std::function<CellEstimate(const CellConfig&)>;

class MachineFile {
 public:
  // path: of machine.json; empty: nothing is read or written. Errors (input): the file is malformed.
  explicit MachineFile(const std::string& path);

  FileHashes hashes;

  // The cost of cells like this one: the same but for seeds and the number of steps. Measured with
  // the estimator where it is not stored yet; without estimator, or where measuring failed, empty.
  // *error: why measuring failed (kept, so that it is tried once per process).
  std::optional<CellEstimate> estimate(const CellConfig& config, const Estimator& estimator, std::string* error = nullptr);

  void set_isa(const std::string& isa) { isa_ = isa; }
  void set_threads(int threads) { threads_ = threads; }
  // "samples_per_hour": [{model, compression, method, cells, samples_per_hour}], as the report shows it.
  void set_samples_per_hour(nlohmann::ordered_json rows) { samples_per_hour_ = std::move(rows); }

  // Keeps what other processes stored meanwhile. Call it under the folder's lock.
  void save();

 private:
  struct Calibration {
    CellEstimate estimate;
    nlohmann::ordered_json like;  // model, compression, method, task: for people
  };
  void read(const nlohmann::ordered_json& json);
  std::string key(const CellConfig& config) const;

  std::string path_, isa_;
  int threads_ = 0;
  nlohmann::ordered_json machine_, others_ = nlohmann::ordered_json::array(), samples_per_hour_ = nlohmann::ordered_json::array();
  std::map<std::string, Calibration> calibrations_;
  std::map<std::string, std::string> failures_;
};

// Processor, caches, memory, system, build and ISA tiers of this machine.
nlohmann::ordered_json machine_record();

}  // namespace thimble::lab
