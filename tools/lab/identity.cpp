#include "tools/lab/identity.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "tensor/env.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"

namespace thimble::lab {
namespace {

namespace fs = std::filesystem;

bool is_weights(const std::string& name) {
  for (const char* end : {".safetensors", ".bin", ".gguf", ".thimble"})
    if (name.ends_with(end)) return true;
  return false;
}
bool is_part_of_model(const std::string& name) {
  if (is_weights(name) || name.ends_with(".safetensors.index.json")) return true;
  for (const char* start : {"tokenizer", "vocab", "merges", "added_tokens", "special_tokens_map"})
    if (name.starts_with(start)) return true;
  // How an encoder's hidden states become a vector.
  if (name == "modules.json" || name == "config_sentence_transformers.json" || name.starts_with("sentence_")) return true;
  return name == "config.json" || name == "quantize_config.json" || name == "quantization_config.json";
}

std::vector<std::string> files_of(const std::string& dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error))
    if (it->is_regular_file(error)) names.push_back(it->path().filename().string());
  if (error) throw Error(ErrorCode::input, dir + ": cannot be read: " + error.message(), "check the permissions");
  std::sort(names.begin(), names.end());
  return names;
}

// "1_Pooling", "2_Dense", ...: a digit, an underscore and a name; only beside a list of modules.
std::vector<std::string> module_folders(const std::string& dir) {
  std::vector<std::string> names;
  if (!file_exists(join_path(dir, "modules.json"))) return names;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (it->is_directory(error) && name.size() > 2 && name[0] >= '0' && name[0] <= '9' && name.find('_') != std::string::npos) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::string zoo_directory() {
  if (const auto dir = env_get("ZOO"); dir && !dir->empty()) return *dir;
  const std::string source = std::string(THIMBLE_SOURCE_DIR) + "/models/zoo";
  if (is_directory(source)) return source;
  std::error_code error;
  const fs::path executable = fs::read_symlink("/proc/self/exe", error);
  if (error) return {};
  const std::string shared = (executable.parent_path().parent_path() / "share/thimble/zoo").string();
  return is_directory(shared) ? shared : std::string();
}

std::vector<std::string> zoo_models() {
  std::vector<std::string> names;
  const std::string dir = zoo_directory();
  std::error_code error;
  if (dir.empty()) return names;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error))
    if (file_exists(it->path().string() + "/config.json")) names.push_back(it->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string resolve_model(const std::string& name) {
  const std::vector<std::string> zoo = zoo_models();
  const std::string hint = zoo.empty() ? "the zoo is empty or missing: set THIMBLE_ZOO to its folder, or give a path"
                                       : "models of the zoo: " + joined(zoo);
  if (name.starts_with("zoo:")) {
    const std::string wanted = name.substr(4);
    if (std::find(zoo.begin(), zoo.end(), wanted) == zoo.end())
      throw Error(ErrorCode::input, fmt::format("{}: the zoo has no such model", name), hint);
    return zoo_directory() + "/" + wanted;
  }
  if (!file_exists(name)) throw Error(ErrorCode::input, fmt::format("{}: no such model", name), hint + " (as zoo:NAME)");
  return name;
}

FileHashes::FileHashes(const nlohmann::ordered_json& json) {
  if (!json.is_object()) return;
  for (const auto& item : json.items()) {
    const auto& v = item.value();
    if (!v.is_object() || !v.contains("bytes") || !v.contains("changed_ns") || !v.contains("sha256")) continue;
    if (!v["bytes"].is_number_integer() || !v["changed_ns"].is_number_integer() || !v["sha256"].is_string()) continue;
    entries_[item.key()] = {v["bytes"].get<int64_t>(), v["changed_ns"].get<int64_t>(), v["sha256"].get<std::string>()};
  }
}

nlohmann::ordered_json FileHashes::to_json() const {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& [path, entry] : entries_)
    json[path] = {{"bytes", entry.bytes}, {"changed_ns", entry.changed_ns}, {"sha256", entry.sha256}};
  return json;
}

const std::string& FileHashes::sha256(const std::string& path) {
  struct stat info {};
  std::error_code error;
  const std::string key = fs::absolute(path, error).lexically_normal().string();
  if (::stat(path.c_str(), &info) != 0)
    throw Error(ErrorCode::input, path + ": no such file", "check the spelling of the path");
  const int64_t changed = int64_t{info.st_mtim.tv_sec} * 1000000000 + info.st_mtim.tv_nsec;
  Entry& entry = entries_[key];
  if (entry.sha256.empty() || entry.bytes != info.st_size || entry.changed_ns != changed)
    entry = {info.st_size, changed, sha256_file(path)};
  return entry.sha256;
}

std::string model_sha256(const std::string& path, FileHashes& hashes) {
  Sha256 sum;
  const auto add = [&](const std::string& dir, const std::string& name) {
    sum.update(name + " " + hashes.sha256(join_path(dir, name)) + "\n");
  };
  if (!is_directory(path)) {
    const fs::path file(path);
    const std::string dir = file.has_parent_path() ? file.parent_path().string() : ".";
    add(dir, file.filename().string());
    for (const std::string& name : files_of(dir))
      if (name.starts_with("tok") && name.ends_with(".bin") && name != file.filename()) add(dir, name);
    return sum.hex();
  }
  bool weights = false;
  for (const std::string& name : files_of(path)) {
    if (!is_part_of_model(name)) continue;
    weights = weights || is_weights(name);
    add(path, name);
  }
  // Modules of sentence encoders: 1_Pooling, 2_Dense, ...
  for (const std::string& folder : module_folders(path))
    for (const std::string& name : files_of(join_path(path, folder)))
      if (is_part_of_model(name)) {
        weights = weights || is_weights(name);
        add(path, folder + "/" + name);
      }
  if (!weights)
    throw Error(ErrorCode::input, path + ": there are no weights in this folder",
                "expected config.json and *.safetensors");
  return sum.hex();
}

}  // namespace thimble::lab
