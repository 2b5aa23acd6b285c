// Looks for a tokenizer beside a model.
#include "tools/cli/tokenizer_path.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "models/gguf_model.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble::cli {

std::string default_tokenizer_path(const std::string& model_path) {
  namespace fs = std::filesystem;
  if (const std::string gguf = gguf_path(model_path); !gguf.empty()) return gguf;
  if (is_directory(model_path)) return model_path;
  if (!file_exists(model_path))
    throw Error(ErrorCode::input, model_path + ": no such file or directory", "give a model directory or a llama2.c .bin file");
  const std::string parent = fs::path(model_path).parent_path().string();
  const std::string dir = parent.empty() ? "." : parent;
  std::vector<std::string> found;
  std::error_code failed;
  for (fs::directory_iterator it(dir, failed), end; !failed && it != end; it.increment(failed)) {
    const std::string name = it->path().filename().string();
    if (name.size() > 7 && name.compare(0, 3, "tok") == 0 && name.compare(name.size() - 4, 4, ".bin") == 0 &&
        name != fs::path(model_path).filename().string())
      found.push_back(name);
  }
  std::sort(found.begin(), found.end());
  if (std::find(found.begin(), found.end(), "tokenizer.bin") != found.end()) return join_path(dir, "tokenizer.bin");
  if (found.size() == 1) return join_path(dir, found[0]);
  if (found.size() > 1)
    throw Error(ErrorCode::input, dir + ": holds several tokenizers (" + found[0] + ", " + found[1] + ")",
                "choose one with --tokenizer");
  for (const char* name : {"tokenizer.json", "tokenizer.model"})
    if (file_exists(join_path(dir, name))) return join_path(dir, name);
  throw Error(ErrorCode::input, model_path + ": no tokenizer lies beside it: expected tok*.bin, tokenizer.json or tokenizer.model",
              "name the tokenizer with --tokenizer");
}

}  // namespace thimble::cli
