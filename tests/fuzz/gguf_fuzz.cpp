// GGUF: the container, every key read as every kind of value, and tensors whose blocks are decoded.
#include "models/io/ggml_blocks.h"
#include "models/io/gguf.h"
#include "tests/fuzz/target.h"

namespace thimble::fuzz {

bool fuzz_gguf(std::string_view bytes) {
  return accepts([&] {
    const GgufFile file = GgufFile::from_memory(std::string(bytes), "model.gguf");
    for (const std::string& key : file.keys()) {
      expect(file.has(key), "a listed key is found");
      accepts([&] { file.get_string(key); });
      accepts([&] { file.get_int(key); });
      accepts([&] { file.get_float(key); });
      accepts([&] { file.get_bool(key); });
      accepts([&] { file.get_ints(key); });
      accepts([&] { file.get_floats(key); });
      accepts([&] {
        size_t all = 0;
        for (const std::string_view s : file.get_strings(key)) all += s.size();
        expect(all <= bytes.size(), "strings lie inside the file");
      });
    }
    for (const GgufTensor& t : file.tensors()) {
      expect(file.find_tensor(t.name) == &t, "a listed tensor is found by its name");
      expect(t.bytes <= bytes.size(), "tensors lie inside the file");
      if (t.elements() > (int64_t{1} << 20) || t.bytes == 0) continue;
      if (ggml_is_coded(t.type) || t.type == GgmlType::f16 || t.type == GgmlType::f32)
        accepts([&] {
          std::vector<float> values(static_cast<size_t>(t.elements()));
          decode_ggml(t.type, file.data(t), t.elements(), values.data());
        });
      if (ggml_is_coded(t.type) && !t.dims.empty())
        accepts([&] { read_ggml_coded(t.type, file.data(t), t.elements() / t.dims[0], t.dims[0]); });
    }
  });
}

}  // namespace thimble::fuzz
