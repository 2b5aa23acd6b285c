// What the names under tokenizer.ggml.pre stand for.
#pragma once

#include <string>
#include <vector>

namespace thimble {

struct GgufPreTokenizer {
  std::vector<std::string> regexes;  // cut by the first, the pieces by the second, and so on
  bool ignore_merges = false;
  bool add_bos = false;
  bool add_separator = false;
  bool spells_bytes = true;  // false: SentencePiece's way, with U+2581 for spaces and byte pieces <0xNN>
};

// name: "" counts as "default". Throws unsupported for a name that is not known; `file` is for the message.
GgufPreTokenizer gguf_pre_tokenizer(const std::string& name, const std::string& file);

}  // namespace thimble
