// Digests of tasks: the same that reading the data gives, without reading it into people.
#include <fmt/format.h>

#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/lab/identity.h"
#include "tools/lab/world.h"

namespace thimble::lab {

std::string task_sha256(const TaskSpec& task, FileHashes& hashes) {
  if (task.is_world) return world_sha256(task.world);
  std::string base = fmt::format("{}/{}/{}/{}", task.lamp_dir, task.lamp_task, task.split, task.part);
  if (!file_exists(base + "_questions.json")) {
    const std::string plain = join_path(task.lamp_dir, task.part);
    if (!file_exists(plain + "_questions.json"))
      throw Error(ErrorCode::input, fmt::format("{}: neither {}_questions.json nor {}_questions.json is there", task.lamp_dir, base, plain),
                  "expected DIR/LaMP_k/SPLIT/PART_questions.json, with the outputs beside it");
    base = plain;
  }
  Sha256 digest;
  digest.update(hashes.sha256(base + "_questions.json"));
  digest.update(hashes.sha256(base + "_outputs.json"));
  return digest.hex();
}

}  // namespace thimble::lab
