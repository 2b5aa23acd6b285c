// What a cell's name depends on besides its settings: which model and which data, by their bytes.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/lab/cell.h"

namespace thimble::lab {

// The folder of the base models that ship with thimble: $THIMBLE_ZOO, else models/zoo of the source tree that thimble
// was built from, else ../share/thimble/zoo beside the executable. Empty when none of them exists.
std::string zoo_directory();
// Names of the models in it, sorted.
std::vector<std::string> zoo_models();
// "zoo:NAME" -> the folder of that model; any other name is a path and stays itself. Errors (input): there is no such
// model; the hint lists those that there are.
std::string resolve_model(const std::string& name);

// SHA-256 of files, remembered by path, size and time of the last change, so that a plan of many cells reads each file
// once, and a resumed one none.
class FileHashes {
 public:
  FileHashes() = default;
  // The "files" object of machine.json; entries that are malformed are forgotten.
  explicit FileHashes(const nlohmann::ordered_json& json);
  nlohmann::ordered_json to_json() const;

  // Errors (input): the file cannot be read.
  const std::string& sha256(const std::string& path);

 private:
  struct Entry {
    int64_t bytes = 0, changed_ns = 0;
    std::string sha256;
  };
  std::map<std::string, Entry> entries_;
};

// Of config, weights and tokenizer: for a directory its files of those kinds (a README does not count), for a single
// file that file and the llama2.c tokenizers beside it. Errors (input): no such model, or no weights in it.
std::string model_sha256(const std::string& path, FileHashes& hashes);

// Of a LaMP part: of the bytes of its files, which are not parsed. Of a world: what make_world says (its dials and the
// version of the generator). Errors (input): a file is missing; (usage): dials out of range.
std::string task_sha256(const TaskSpec& task, FileHashes& hashes);

}  // namespace thimble::lab
