#include "models/adapter_files.h"

#include "models/io/pickle.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

class PickledAdapter final : public TensorSource {
 public:
  explicit PickledAdapter(const std::string& path) : file_(path) {
    for (const auto& [name, tensor] : file_.tensors()) names_.push_back(name);
  }
  const std::string& path() const override { return file_.path(); }
  const std::vector<std::string>& names() const override { return names_; }
  uint64_t file_bytes() const override { return file_.file_bytes(); }
  TensorView find_view(const std::string& name) const override { return file_.find_view(name); }

 private:
  PickleFile file_;
  std::vector<std::string> names_;
};

}  // namespace

std::unique_ptr<TensorSource> open_adapter_tensors(const std::string& dir) {
  const std::string safe = join_path(dir, "adapter_model.safetensors"), pickled = join_path(dir, "adapter_model.bin");
  if (file_exists(safe)) return std::make_unique<SafetensorsSet>(safe);
  if (file_exists(pickled)) return std::make_unique<PickledAdapter>(pickled);
  throw Error(ErrorCode::input, dir + ": has neither adapter_model.safetensors nor adapter_model.bin", "download the adapter again");
}

}  // namespace thimble
