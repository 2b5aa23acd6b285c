// safetensors: header, ranges, and every tensor read as f32 where its dtype has numbers.
#include "models/io/safetensors.h"
#include "tests/fuzz/target.h"

namespace thimble::fuzz {

bool fuzz_safetensors(std::string_view bytes) {
  const std::string path = scratch_file("model.safetensors", bytes);
  return accepts([&] {
    const SafetensorsFile file(path);
    size_t covered = 0;
    for (const TensorInfo& t : file.tensors()) {
      covered += t.bytes;
      expect(file.find(t.name) == &t, "a listed tensor is found by its name");
      if (t.elements() > (int64_t{1} << 20)) continue;
      std::vector<float> values(static_cast<size_t>(t.elements()));
      accepts([&] { file.view(t.name).read_f32(values.data()); });
    }
    expect(covered <= bytes.size(), "tensors lie inside the file");
  });
}

}  // namespace thimble::fuzz
