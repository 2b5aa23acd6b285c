// thimble tokenize: text to ids, ids to text, and comparison with the recorded cases of another implementation.
#include <fmt/format.h>

#include <charconv>

#include "models/tokenizer/check.h"
#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"
#include "tools/cli/read_input.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct TokenizeOptions {
  CommonOptions common;
  std::string tokenizer, text, file, ids, check;
  bool no_special = false, parse_special = false, skip_special = false;
  const CLI::Option *text_given = nullptr, *file_given = nullptr, *ids_given = nullptr, *check_given = nullptr;
};

// "1,2 3" or "[1, 2, 3]".
std::vector<int32_t> parse_ids(const std::string& list) {
  std::vector<int32_t> ids;
  const char *at = list.data(), *end = at + list.size();
  const auto separator = [](char c) { return c == ',' || c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '[' || c == ']'; };
  while (at < end) {
    if (separator(*at)) {
      ++at;
      continue;
    }
    int32_t id = -1;
    const auto [rest, failed] = std::from_chars(at, end, id);
    if (failed != std::errc() || id < 0 || (rest < end && !separator(*rest)))
      throw Error(ErrorCode::usage, fmt::format("--ids: \"{}\" is not a list of ids", list), "for example --ids \"1, 15, 27\"");
    ids.push_back(id);
    at = rest;
  }
  return ids;
}

std::string join(const std::vector<int32_t>& ids) { return fmt::format("{}\n", fmt::join(ids, " ")); }

int run_check(const TokenizeOptions& o, const Tokenizer& tokenizer) {
  const CheckReport report = check_cases(tokenizer, o.check);
  if (report.lines == 0) throw Error(ErrorCode::input, o.check + ": holds no cases", "expected one JSON object per line");
  if (o.common.json) {
    Json first = Json::array();
    for (const CheckMismatch& m : report.first) first.push_back({{"line", m.line}, {"field", m.field}, {"want", m.want}, {"got", m.got}});
    print_json({{"schema", "thimble.tokenize/1"},
                {"tokenizer", o.tokenizer},
                {"kind", tokenizer.kind()},
                {"cases", o.check},
                {"lines", report.lines},
                {"failed", report.failed},
                {"first", first}});
  } else {
    std::string text = fmt::format("{}: {} of {} lines agree\n", o.check, report.lines - report.failed, report.lines);
    for (const CheckMismatch& m : report.first)
      text += fmt::format("  line {}: {}\n    want {}\n    got  {}\n", m.line, m.field, m.want, m.got);
    write_stdout(text);
  }
  return report.failed == 0 ? 0 : static_cast<int>(ErrorCode::mismatch);
}

int run_tokenize(const TokenizeOptions& o) {
  const int modes = int(o.text_given->count() > 0) + int(o.file_given->count() > 0) + int(o.ids_given->count() > 0) +
                    int(o.check_given->count() > 0);
  if (modes != 1)
    throw Error(ErrorCode::usage, fmt::format("tokenize: {} of --text, --file, --ids and --check given: expected exactly one", modes),
                "for example --text 'Hello'");
  const std::vector<int32_t> given = o.ids_given->count() > 0 ? parse_ids(o.ids) : std::vector<int32_t>{};
  const Tokenizer tokenizer = Tokenizer::load(o.tokenizer);
  if (o.check_given->count() > 0) return run_check(o, tokenizer);

  if (o.ids_given->count() > 0) {
    const std::string text = tokenizer.decode(given, {o.skip_special});
    if (!o.common.json) {
      write_stdout(text + "\n");
      return 0;
    }
    print_json({{"schema", "thimble.tokenize/1"}, {"tokenizer", o.tokenizer}, {"kind", tokenizer.kind()}, {"ids", given}, {"text", text}});
    return 0;
  }

  const bool from_file = o.file_given->count() > 0;
  const std::string text = from_file ? read_input(o.file) : o.text;
  std::vector<int32_t> ids;
  try {
    ids = tokenizer.encode(text, {!o.no_special, o.parse_special});
  } catch (const Error& e) {
    throw Error(e.code(), (from_file ? o.file : "--text") + std::string(": ") + e.what(), e.hint());
  }
  if (!o.common.json) {
    write_stdout(join(ids));
    return 0;
  }
  Json tokens = Json::array();
  for (int32_t id : ids) tokens.push_back(tokenizer.token(id));
  print_json({{"schema", "thimble.tokenize/1"},
              {"tokenizer", o.tokenizer},
              {"kind", tokenizer.kind()},
              {"count", ids.size()},
              {"bytes", text.size()},
              {"ids", ids},
              {"tokens", tokens}});
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("tokenize", "text to token ids, ids to text, or a check against recorded cases");
  command->footer(
      "Examples:\n"
      "  thimble tokenize --tokenizer DIR --text 'Hello world'\n"
      "  thimble tokenize --tokenizer DIR --ids '15496 995'\n"
      "  thimble tokenize --tokenizer DIR --check cases.jsonl --json\n"
      "Exactly one of --text, --file, --ids and --check. Prints the ids on one line, or the decoded text. --check reads lines\n"
      "{\"text\", \"ids\", \"ids_nospecial\", \"decoded\", \"decoded_skip_special\"} and ends with status 7 when one differs.");
  auto o = std::make_shared<TokenizeOptions>();
  command->add_option("--tokenizer", o->tokenizer, "tokenizer.json, vocab.json, *.model, *.tiktoken, vocab.txt, *.gguf, tok*.bin, or a directory with one")->required();
  o->text_given = command->add_option("--text", o->text, "the text to encode");
  o->file_given = command->add_option("--file", o->file, "a file with the text to encode; - is standard input");
  o->ids_given = command->add_option("--ids", o->ids, "ids to decode, separated by commas or spaces");
  o->check_given = command->add_option("--check", o->check, "recorded cases to compare with, one JSON object per line");
  command->add_flag("--no-special", o->no_special, "do not add BOS and the like");
  command->add_flag("--parse-special", o->parse_special, "special strings in the text become their token");
  command->add_flag("--skip-special", o->skip_special, "leave special tokens out when decoding");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_tokenize(*o); }; });
}

}  // namespace thimble::cli
