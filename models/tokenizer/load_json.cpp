// Loading tokenizer.json, and vocab.json with merges.txt, which becomes the pipeline that GPT-2's files imply.
#include "models/tokenizer/tokenizer_state.h"
#include "tensor/error.h"
#include "tensor/file.h"

namespace thimble {
namespace {

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

}  // namespace

nlohmann::json read_config_beside(const std::string& path) {
  const std::string config = join_path(directory_of(path), "tokenizer_config.json");
  if (!file_exists(config)) return {};
  nlohmann::json value = parse_json_file(config);
  JsonObject check(value, config);
  return value;
}

Tokenizer load_tokenizer_json(const std::string& path) {
  TokenizerParts parts;
  parts.file = path;
  parts.format = "tokenizer.json";
  nlohmann::json root = parse_json_file(path);
  const JsonObject object(root, path);
  const nlohmann::json* model = object.find("model");
  if (model == nullptr) object.fail("model", "an object with the tokenizer's model");
  parts.model = make_token_model(*model, path, "model");
  root.erase("model");
  parts.sections = std::move(root);
  parts.config = read_config_beside(path);
  return assemble_tokenizer(std::move(parts));
}

Tokenizer load_vocab_merges(const std::string& vocab_path) {
  const std::string merges_path = join_path(directory_of(vocab_path), "merges.txt");
  nlohmann::json model = {{"type", "BPE"}, {"vocab", parse_json_file(vocab_path)}, {"merges", nlohmann::json::array()}};
  JsonObject(model["vocab"], vocab_path);
  const std::string text = read_file(merges_path);
  size_t line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || (line_number == 1 && line.compare(0, 8, "#version") == 0)) continue;
    const size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) {
      throw Error(ErrorCode::input, merges_path + ":" + std::to_string(line_number) + ": expected two pieces and one space",
                  "the file is damaged");
    }
    if (line.size() > 4 && line.compare(line.size() - 4, 4, "</w>") == 0) {
      throw Error(ErrorCode::unsupported, merges_path + ": word-end marks (</w>) without a tokenizer.json are not offered",
                  "convert the tokenizer to tokenizer.json");
    }
    model["merges"].push_back({line.substr(0, space), line.substr(space + 1)});
  }
  TokenizerParts parts;
  parts.file = vocab_path;
  parts.format = "vocab.json";
  parts.config = read_config_beside(vocab_path);
  const auto flag = parts.config.find("add_prefix_space");
  const bool prefix = parts.config.is_object() && flag != parts.config.end() && flag->is_boolean() && flag->get<bool>();
  parts.model = make_token_model(model, vocab_path, "");
  nlohmann::json added = nlohmann::json::array();
  for (const char* name : {"<|endoftext|>", "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<|im_start|>", "<|im_end|>"}) {
    const int32_t id = parts.model->find(name);
    if (id >= 0) added.push_back({{"id", id}, {"content", name}, {"special", true}, {"normalized", false}});
  }
  for (auto& token : added) {
    for (const char* key : {"single_word", "lstrip", "rstrip"}) token[key] = false;
  }
  append_configured_tokens(added, parts.config, vocab_path, *parts.model);
  parts.sections = {{"version", "1.0"},
                    {"added_tokens", added},
                    {"pre_tokenizer", byte_level_section(prefix, true)},
                    {"post_processor", byte_level_section(true, true)},
                    {"decoder", byte_level_section(true, true)}};
  // RoBERTa's files look like GPT-2's, but its texts stand between <s> and </s>.
  const std::string kind = parts.config.is_object() && parts.config.contains("tokenizer_class") &&
                                   parts.config["tokenizer_class"].is_string()
                               ? parts.config["tokenizer_class"].get<std::string>()
                               : "";
  const int32_t start = parts.model->find("<s>"), end = parts.model->find("</s>");
  if ((kind == "RobertaTokenizer" || kind == "RobertaTokenizerFast") && start >= 0 && end >= 0) {
    parts.sections["post_processor"] = around_template({{"<s>", start}}, {{"</s>", end}});
  }
  return assemble_tokenizer(std::move(parts));
}

}  // namespace thimble
