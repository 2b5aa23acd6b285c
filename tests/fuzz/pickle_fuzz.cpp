// PyTorch checkpoints: the zip container, the pickle inside, and every tensor read.
#include "models/io/pickle.h"
#include "tests/fuzz/target.h"

namespace thimble::fuzz {

bool fuzz_pickle(std::string_view bytes) {
  return accepts([&] {
    const PickleFile file(std::string(bytes), "pytorch_model.bin");
    for (const auto& [name, tensor] : file.tensors()) {
      expect(tensor.info.bytes <= bytes.size(), "a tensor is no larger than the file");
      const TensorView view = file.find_view(name);
      expect(static_cast<bool>(view), "a listed tensor is found by its name");
      std::vector<float> values(static_cast<size_t>(tensor.info.elements()));
      accepts([&] { view.read_f32(values.data()); });
    }
  });
}

}  // namespace thimble::fuzz
