// Post-processors: the special tokens around the ids of one text. One class per type, one row per class.
#include <climits>

#include "models/tokenizer/component.h"

namespace thimble {
namespace {

constexpr int64_t kMaxId = INT32_MAX;

// ids placed before and after the text; a text may also occur twice or not at all.
class Template : public PostProcessor {
 public:
  struct Part {
    bool text;
    std::vector<int32_t> ids;
  };
  explicit Template(std::vector<Part> parts) : parts_(std::move(parts)) {}
  void process(std::vector<int32_t>& ids) const override {
    std::vector<int32_t> out;
    out.reserve(ids.size() + parts_.size());
    for (const Part& part : parts_) {
      const std::vector<int32_t>& from = part.text ? ids : part.ids;
      out.insert(out.end(), from.begin(), from.end());
    }
    ids = std::move(out);
  }

 private:
  std::vector<Part> parts_;
};

class Nothing : public PostProcessor {
 public:
  void process(std::vector<int32_t>&) const override {}
};

class Sequence : public PostProcessor {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PostProcessor>> parts) : parts_(std::move(parts)) {}
  void process(std::vector<int32_t>& ids) const override {
    for (const auto& part : parts_) part->process(ids);
  }

 private:
  std::vector<std::unique_ptr<PostProcessor>> parts_;
};

std::unique_ptr<PostProcessor> make_template(const ComponentSource& source) {
  std::vector<Template::Part> parts;
  const auto special = source.object.object("special_tokens");
  for (const auto& item : source.list("single")) {
    const std::string where = source.where + ".single[" + std::to_string(parts.size()) + "]";
    const JsonObject part(item, source.file(), where);
    if (const auto sequence = part.object("Sequence")) {
      if (sequence->require_string("id") != "A") sequence->fail("id", "\"A\": a single text has no other sequence");
      parts.push_back({true, {}});
      continue;
    }
    const auto token = part.object("SpecialToken");
    if (!token) part.fail("SpecialToken", "an object SpecialToken or Sequence");
    const std::string name = token->require_string("id");
    const nlohmann::json* entry = special ? special->find(name) : nullptr;
    if (entry == nullptr) token->fail("id", "a name listed in special_tokens");
    const JsonObject description(*entry, source.file(), source.where + ".special_tokens." + quote_for_message(name));
    const nlohmann::json* ids = description.find("ids");
    if (ids == nullptr || !ids->is_array()) description.fail("ids", "a list of ids");
    parts.push_back({false, {}});
    for (const auto& id : *ids) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxId) {
        description.fail("ids", "a list of ids");
      }
      parts.back().ids.push_back(id.get<int32_t>());
    }
  }
  return std::make_unique<Template>(std::move(parts));
}

// [cls] text [sep]; each given as ["name", id].
std::unique_ptr<PostProcessor> make_cls_sep(const ComponentSource& source) {
  const auto read = [&](const char* key) {
    const nlohmann::json* pair = source.object.find(key);
    if (pair == nullptr || !pair->is_array() || pair->size() != 2 || !(*pair)[1].is_number_integer() ||
        (*pair)[1].get<int64_t>() < 0 || (*pair)[1].get<int64_t>() > kMaxId) {
      source.object.fail(key, "a pair of a token and its id");
    }
    return (*pair)[1].get<int32_t>();
  };
  const int32_t cls = read("cls"), sep = read("sep");
  return std::make_unique<Template>(std::vector<Template::Part>{{false, {cls}}, {true, {}}, {false, {sep}}});
}

std::unique_ptr<PostProcessor> make_sequence(const ComponentSource& source) {
  std::vector<std::unique_ptr<PostProcessor>> parts;
  for (const auto& item : source.list("processors")) {
    const std::string where = source.where + ".processors[" + std::to_string(parts.size()) + "]";
    parts.push_back(make_post_processor(item, source.file(), where));
    if (!parts.back()) throw_unknown_component("null", source.file(), where, "an object with a type");
  }
  return std::make_unique<Sequence>(std::move(parts));
}

struct Row {
  const char* type;
  std::unique_ptr<PostProcessor> (*make)(const ComponentSource&);
};

const Row kTable[] = {
    {"Sequence", make_sequence},
    {"TemplateProcessing", make_template},
    {"ByteLevel", [](const ComponentSource&) -> std::unique_ptr<PostProcessor> { return std::make_unique<Nothing>(); }},
    {"RobertaProcessing", make_cls_sep},
    {"BertProcessing", make_cls_sep},
};

}  // namespace

std::unique_ptr<PostProcessor> make_post_processor(const nlohmann::json& section, const std::string& file,
                                                   const std::string& where) {
  return make_component<PostProcessor>(section, file, where, kTable);
}

}  // namespace thimble
