// LaMP questions, and behind a NUL byte the gold outputs.
#include "tests/fuzz/target.h"
#include "tools/lab/lamp.h"

namespace thimble::fuzz {

bool fuzz_lamp_json(std::string_view bytes) {
  const Halves halves = split_at_nul(bytes);
  const std::string questions = scratch_file("questions.json", halves.first);
  const std::string outputs = halves.second.empty() ? "" : scratch_file("outputs.json", halves.second);
  if (!outputs.empty()) accepts([&] { lab::read_lamp_outputs(outputs); });
  return accepts([&] {
    const lab::TaskData data = lab::read_lamp(questions, outputs);
    expect(data.task != nullptr, "accepted data has a task");
  });
}

}  // namespace thimble::fuzz
