// SentencePiece models (protobuf): load, then encode and decode.
#include "models/tokenizer/tokenizer.h"
#include "tests/fuzz/tokenizer_use.h"

namespace thimble::fuzz {

bool fuzz_sentencepiece(std::string_view bytes) {
  const std::string path = scratch_file("tokenizer.model", bytes);
  return accepts([&] { use_tokenizer(Tokenizer::load(path), {}); });
}

}  // namespace thimble::fuzz
