// Chat templates: behind a NUL byte stands the context as JSON; without one a fixed conversation.
#include "models/io/json.h"
#include "models/jinja/template.h"
#include "models/jinja/text.h"
#include "tests/fuzz/target.h"

namespace thimble::fuzz {

bool fuzz_chat_template(std::string_view bytes) {
  static constexpr std::string_view kContext =
      R"({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}],
          "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "tools": [{"name": "f", "x": [1, 2.5]}]})";
  const Halves halves = split_at_nul(bytes);
  const std::string_view context = halves.second.empty() ? kContext : halves.second;
  // Small, so that inputs that run into a limit do not slow the search down.
  jinja::Limits limits;
  limits.steps = 200'000;
  limits.bytes = int64_t{8} << 20;
  limits.output_bytes = size_t{1} << 20;
  return accepts([&] {
    const jinja::Template parsed(std::string(halves.first), "chat_template.jinja", limits);
    parse_json(context, "context");  // the strict reader decides; the other one keeps the order
    const auto json = nlohmann::ordered_json::parse(context);
    if (!json.is_object()) throw Error(ErrorCode::input, "context: not an object");
    jinja::RenderOptions options;
    options.now = 0;
    const jinja::Rendered rendered = parsed.render(json, options);
    expect(rendered.text.size() <= limits.output_bytes, "the limit on output");
    expect(jinja::bad_utf8(rendered.text) == std::string_view::npos, "the output is UTF-8");
    for (const auto& [begin, end] : rendered.generated) expect(begin <= end && end <= rendered.text.size(), "ranges of the output");
  });
}

}  // namespace thimble::fuzz
