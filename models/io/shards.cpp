#include "models/io/shards.h"

#include <filesystem>
#include <set>
#include <string_view>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

constexpr size_t kMaxIndex = 100'000'000;
constexpr const char* kHint = "the index comes with the model: restore both, or convert the model again";

void check_name(const std::string& index, const std::string& dir, const std::string& tensor, const std::string& shard,
                std::string_view ending) {
  const auto complain = [&](const std::string& what) {
    throw Error(ErrorCode::input,
                index + ": field \"weight_map\": tensor " + quote_for_message(tensor) + ": the shard " +
                    quote_for_message(shard) + " " + what,
                kHint);
  };
  if (shard.empty() || shard.size() > 255 || shard[0] == '.' || shard.find_first_of("/\\") != std::string::npos ||
      shard.find("..") != std::string::npos || shard.find('\0') != std::string::npos)
    complain("is not a plain file name");
  if (shard.size() < ending.size() || std::string_view(shard).substr(shard.size() - ending.size()) != ending)
    complain("does not end in " + std::string(ending));
  std::error_code error;
  const std::filesystem::path file = std::filesystem::canonical(join_path(dir, shard), error);
  if (error) complain("cannot be found: " + error.message());
  const std::filesystem::path home = std::filesystem::canonical(dir, error);
  if (error || file.parent_path() != home) complain("is a link out of the directory");
}

}  // namespace

std::map<std::string, std::string> read_shard_index(const std::string& index, const std::string& dir,
                                                    const char* ending) {
  const nlohmann::json json = parse_json_file(index, kMaxIndex);
  const JsonObject root(json, index);
  const std::optional<JsonObject> map = root.object("weight_map");
  if (!map || map->json().empty()) root.fail("weight_map", "an object from tensor names to shards");
  std::map<std::string, std::string> where;
  std::set<std::string> checked;
  for (const auto& [tensor, shard] : map->json().items()) {
    if (!shard.is_string()) map->fail(tensor, "the file name of a shard");
    const auto& name = shard.get_ref<const std::string&>();
    if (checked.insert(name).second) check_name(index, dir, tensor, name, ending);
    where.emplace(tensor, name);
  }
  return where;
}

}  // namespace thimble
