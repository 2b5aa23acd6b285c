// The list of fuzz targets; apart from the rest so that a program of one target needs no other.
#include "tests/fuzz/target.h"

namespace thimble::fuzz {

const std::vector<Target>& targets() {
  static const std::vector<Target> list = {
      {"safetensors", fuzz_safetensors},
      {"gguf", fuzz_gguf},
      {"pickle", fuzz_pickle},
      {"tokenizer_json", fuzz_tokenizer_json},
      {"sentencepiece", fuzz_sentencepiece},
      {"chat_template", fuzz_chat_template},
      {"adapter_config", fuzz_adapter_config},
      {"lamp_json", fuzz_lamp_json},
      {"plan_yaml", fuzz_plan_yaml},
  };
  return list;
}

}  // namespace thimble::fuzz
