// Reads the cases line by line and compares field by field.
#include "models/tokenizer/check.h"

#include <algorithm>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

constexpr size_t kMaxReported = 20;

std::vector<int32_t> read_ids(const JsonObject& line, const std::string& key) {
  const nlohmann::json* list = line.find(key);
  if (list == nullptr || !list->is_array()) line.fail(key, "a list of ids");
  std::vector<int32_t> ids;
  for (const auto& id : *list) {
    if (!id.is_number_integer() || (id.is_number_unsigned() && id.get<uint64_t>() > INT32_MAX) ||
        id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      line.fail(key, "a list of ids");
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

std::string show(const std::vector<int32_t>& ids) { return nlohmann::json(ids).dump(); }

}  // namespace

CheckReport check_cases(const Tokenizer& tokenizer, const std::string& path) {
  const std::string content = read_file(path);
  CheckReport report;
  int64_t number = 0;
  for (size_t begin = 0; begin < content.size();) {
    const size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view text = std::string_view(content).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (text.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string name = path + ":" + std::to_string(number);
    const nlohmann::json value = parse_json(text, name);
    const JsonObject line(value, name);
    const std::string input = line.require_string("text");
    bool bad = false;
    const auto compare = [&](const char* field, const std::string& want, const std::string& got) {
      if (want == got) return;
      bad = true;
      if (report.first.size() < kMaxReported) report.first.push_back({number, field, want, got});
    };
    const std::vector<int32_t> with_special = tokenizer.encode(input, {true, true});
    const std::vector<int32_t> plain = tokenizer.encode(input, {false, true});
    std::vector<int32_t> want_with = with_special, want_plain = plain;
    if (line.has("ids")) {
      want_with = read_ids(line, "ids");
      compare("ids", show(want_with), show(with_special));
    }
    if (line.has("ids_nospecial")) {
      want_plain = read_ids(line, "ids_nospecial");
      compare("ids_nospecial", show(want_plain), show(plain));
    }
    // A wrong id list is reported once: decoding starts from the expected ids, where our vocabulary has them.
    const auto decoded = [&](const std::vector<int32_t>& ids, bool skip_special) {
      for (const int32_t id : ids) {
        if (id >= tokenizer.vocab_size()) return "(no token has id " + std::to_string(id) + ")";
      }
      return tokenizer.decode(ids, {skip_special});
    };
    if (line.has("decoded")) compare("decoded", line.require_string("decoded"), decoded(want_plain, false));
    if (line.has("decoded_skip_special")) {
      compare("decoded_skip_special", line.require_string("decoded_skip_special"), decoded(want_with, true));
    }
    ++report.lines;
    report.failed += bad ? 1 : 0;
  }
  return report;
}

}  // namespace thimble
