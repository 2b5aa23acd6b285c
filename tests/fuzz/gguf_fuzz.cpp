// GGUF: the container, every key read as every kind of value, tensors whose blocks are decoded, and the model that the
// metadata describes.
#include <algorithm>

#include "models/families.h"
#include "models/gguf_model.h"
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
    accepts([&] {
      const GgufModel model(scratch_file("model.gguf", bytes));
      for (const std::string& name : model.names()) {
        const GgufModel::Entry& entry = *model.find_entry(name);
        if (entry.tensor->elements() > (int64_t{1} << 20) || entry.tensor->bytes == 0) continue;
        const TensorView view = model.find_view(name);
        if (view && (entry.tensor->type == GgmlType::f16 || entry.tensor->type == GgmlType::f32)) {
          std::vector<float> values(static_cast<size_t>(view.info->elements()));
          view.read_f32(values.data());
        }
        model.read_f32(entry);
        const std::string module = name.substr(0, name.size() - std::min<size_t>(name.size(), 7));
        if (model.coded() && name == module + ".weight" && model.coded()->has(module)) model.coded()->read(module);
      }
      const JsonObject config(model.config(), "model.gguf");
      parse_config(config, find_family(config));
    });
  });
}

}  // namespace thimble::fuzz
