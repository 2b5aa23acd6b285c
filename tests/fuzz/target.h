// What a fuzz target is: one entry function that takes bytes, and that the libFuzzer program of the same name and the
// replaying test both call. README.md says how to run and how to add one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/error.h"

namespace thimble::fuzz {

// Gives the bytes to a parser and uses what it made of them. True when the parser accepted them, false when it refused
// them with a proper Error. Everything else escapes: an Error that calls itself internal, any other exception.
using Entry = bool (*)(std::string_view bytes);

struct Target {
  const char* name;  // of the program (fuzz_<name>), of corpus/<name> and regressions/<name>
  Entry entry;
};
const std::vector<Target>& targets();

bool fuzz_safetensors(std::string_view bytes);
bool fuzz_gguf(std::string_view bytes);
bool fuzz_pickle(std::string_view bytes);
bool fuzz_tokenizer_json(std::string_view bytes);
bool fuzz_sentencepiece(std::string_view bytes);
bool fuzz_chat_template(std::string_view bytes);
bool fuzz_adapter_config(std::string_view bytes);
bool fuzz_lamp_json(std::string_view bytes);
bool fuzz_plan_yaml(std::string_view bytes);

// Puts bytes under this name into a folder of this process (in memory where the system has such a place) and returns
// the path. The same name is overwritten the next time; everything is removed when the process ends.
std::string scratch_file(const std::string& name, std::string_view bytes);
std::string scratch_folder();

// Runs parse; false when it threw an Error about its input.
template <typename F>
bool accepts(F parse) {
  try {
    parse();
    return true;
  } catch (const Error& e) {
    if (e.code() == ErrorCode::internal) throw;
    return false;
  }
}

// Throws std::logic_error: a property of accepted input does not hold.
void expect(bool holds, const char* property);

// The part before the first NUL byte, and the part behind it (empty when there is none): two inputs in one.
struct Halves {
  std::string_view first, second;
};
Halves split_at_nul(std::string_view bytes);

}  // namespace thimble::fuzz
