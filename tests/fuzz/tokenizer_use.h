// What a tokenizer that was loaded from hostile bytes must still do.
#pragma once

#include "models/tokenizer/tokenizer.h"
#include "tests/fuzz/target.h"

namespace thimble::fuzz {

// Encodes text (a fixed one when empty) in both readings of special strings, and decodes: ids are in range, and the
// stream gives what decode gives.
inline void use_tokenizer(const Tokenizer& tokenizer, std::string_view text) {
  static constexpr std::string_view kText = "A small boat, it's 1234.\n\n  caf\xC3\xA9 <s> \xE4\xB8\xAD\xE6\x96\x87 </s>\t!?";
  if (text.empty()) text = kText;
  if (text.size() > 4096) text = text.substr(0, 4096);
  for (const bool special : {false, true}) {
    EncodeOptions options;
    options.add_special = options.parse_special = special;
    std::vector<int32_t> ids;
    if (!accepts([&] { ids = tokenizer.encode(text, options); })) continue;
    for (const int32_t id : ids) {
      expect(id >= 0 && id < tokenizer.vocab_size(), "ids lie inside the vocabulary");
      tokenizer.token(id);
    }
    for (const bool skip : {false, true}) {
      DecodeOptions decode;
      decode.skip_special = skip;
      std::string whole;
      if (!accepts([&] { whole = tokenizer.decode(ids, decode); })) continue;
      DecodeStream stream(tokenizer, decode);
      std::string pieces;
      for (const int32_t id : ids) pieces += stream.push(id);
      pieces += stream.finish();
      expect(pieces == whole, "streamed text equals decoded text");
    }
  }
}

}  // namespace thimble::fuzz
