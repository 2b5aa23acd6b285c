// tokenizer.json: load, then encode and decode. Behind a NUL byte stands the text to encode; without one a fixed text.
#include "models/tokenizer/tokenizer.h"
#include "tests/fuzz/tokenizer_use.h"

namespace thimble::fuzz {

bool fuzz_tokenizer_json(std::string_view bytes) {
  const Halves halves = split_at_nul(bytes);
  const std::string path = scratch_file("tokenizer.json", halves.first);
  return accepts([&] { use_tokenizer(Tokenizer::load(path), halves.second); });
}

}  // namespace thimble::fuzz
