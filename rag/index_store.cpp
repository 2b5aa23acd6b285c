#include "rag/index_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "models/io/json.h"
#include "models/io/safetensors.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
constexpr const char* kSchema = "thimble.rag_index";
constexpr const char* kRebuild = "build it again with thimble rag index";

std::string json_line(const StoredDocument& d) {
  nlohmann::ordered_json row = {{"id", d.id}, {"text", d.text}};
  if (!d.date.empty()) row["date"] = d.date;
  try {
    return row.dump() + "\n";
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorCode::input, "document " + quote_for_message(d.id) + " is not UTF-8", "convert the texts to UTF-8");
  }
}

bool is_data_file(const std::string& name) {
  const auto is = [&](std::string_view begin, std::string_view end) {
    return name.size() > begin.size() + end.size() && name.compare(0, begin.size(), begin) == 0 &&
           name.compare(name.size() - end.size(), end.size(), end) == 0;
  };
  return is("documents-", ".jsonl") || is("vectors-", ".safetensors");
}

// The file that index.json names under `field`, checked against the digest beside the name.
std::string checked_file(const std::string& dir, const JsonObject& root, const std::string& field) {
  const std::optional<JsonObject> entry = root.object(field);
  if (!entry) root.fail(field, "an object {file, sha256}");
  const std::string name = entry->require_string("file");
  if (!is_data_file(name) || name.find('/') != std::string::npos) entry->fail("file", "a data file of this directory");
  const std::string path = join_path(dir, name), want = entry->require_string("sha256");
  if (sha256_file(path) != want)
    throw Error(ErrorCode::input, fmt::format("{}: its SHA-256 is not the one that index.json records", path), kRebuild);
  return path;
}

}  // namespace

void write_index(const std::string& dir, const StoredIndex& index) {
  make_directories(dir);
  std::string lines;
  for (const StoredDocument& d : index.documents) lines += json_line(d);
  const std::string digest = sha256_hex(lines);
  const std::string documents = "documents-" + digest.substr(0, 16) + ".jsonl";
  write_file(join_path(dir, documents), lines);
  nlohmann::ordered_json root = {{"schema", fmt::format("{}/{}", kSchema, kIndexVersion)},
                                 {"retriever", index.retriever},
                                 {"seed", index.seed},
                                 {"cosine", index.cosine},
                                 {"n_documents", index.documents.size()},
                                 {"documents", {{"file", documents}, {"sha256", digest}}}};
  std::string vectors;
  if (!index.vectors.empty()) {
    THIMBLE_CHECK(index.vectors.size() == index.documents.size());
    const size_t width = index.vectors[0].size();
    std::vector<float> flat;
    for (const std::vector<float>& v : index.vectors) {
      THIMBLE_CHECK(v.size() == width);
      flat.insert(flat.end(), v.begin(), v.end());
    }
    Sha256 content;
    content.update(flat.data(), flat.size() * sizeof(float));
    vectors = "vectors-" + content.hex().substr(0, 16) + ".safetensors";
    const std::string path = join_path(dir, vectors);
    write_safetensors(path, {{"vectors", SafetensorsDtype::f32, {static_cast<int64_t>(index.vectors.size()), static_cast<int64_t>(width)}, flat.data()}});
    root["model"] = index.model;
    root["model_sha256"] = index.model_sha256;
    root["vectors"] = {{"file", vectors}, {"sha256", sha256_file(path)}};
  }
  write_file(join_path(dir, "index.json"), root.dump(2) + "\n");
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(dir, ignored)) {
    const std::string name = entry.path().filename().string();
    if (is_data_file(name) && name != documents && name != vectors) fs::remove(entry.path(), ignored);
  }
}

StoredIndex read_index(const std::string& dir) {
  const std::string path = join_path(dir, "index.json");
  if (!file_exists(path)) throw Error(ErrorCode::input, dir + ": holds no index.json", "make an index with thimble rag index");
  const nlohmann::json json = parse_json_file(path, size_t{1} << 20);
  const JsonObject root(json, path);
  const std::string schema = root.require_string("schema");
  if (schema != fmt::format("{}/{}", kSchema, kIndexVersion))
    throw Error(ErrorCode::input, fmt::format("{}: field \"schema\": expected {}/{}, found {}", path, kSchema, kIndexVersion, quote_for_message(schema)),
                std::string("it is of another version: ") + kRebuild);
  StoredIndex index;
  index.retriever = root.require_string("retriever");
  const std::vector<std::string>& names = retriever_names();
  if (std::find(names.begin(), names.end(), index.retriever) == names.end()) root.fail("retriever", "the name of a retriever");
  const nlohmann::json* seed = root.find("seed");
  if (!seed || !seed->is_number_unsigned()) root.fail("seed", "an integer from 0");
  index.seed = seed->get<uint64_t>();
  index.cosine = root.get_bool("cosine", false);

  const std::string documents = checked_file(dir, root, "documents"), text = read_file(documents);
  size_t line = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const nlohmann::json row = parse_json(std::string_view(text).substr(at, end - at), fmt::format("{}: line {}", documents, ++line));
    const JsonObject fields(row, fmt::format("{}: line {}", documents, line));
    index.documents.push_back({fields.require_string("id"), fields.require_string("text"), fields.get_string("date", "")});
    at = end + 1;
  }
  const auto n = static_cast<int64_t>(index.documents.size());
  if (root.require_int("n_documents", 0, INT64_MAX) != n) root.fail("n_documents", fmt::format("{}, the lines of {}", n, documents));
  if (index.retriever != "dense" || n == 0) return index;

  index.model = root.require_string("model");
  index.model_sha256 = root.require_string("model_sha256");
  const std::string vectors = checked_file(dir, root, "vectors");
  const SafetensorsFile file(vectors);
  const TensorView view = file.find("vectors") ? file.view("vectors") : TensorView{};
  if (!view || view.info->shape.size() != 2 || view.info->shape[0] != n || view.info->shape[1] < 1)
    throw Error(ErrorCode::input, fmt::format("{}: expected a tensor \"vectors\" [{}, width]", vectors, n), kRebuild);
  std::vector<float> flat(static_cast<size_t>(view.info->elements()));
  view.read_f32(flat.data());
  if (!std::all_of(flat.begin(), flat.end(), [](float x) { return std::isfinite(x); }))
    throw Error(ErrorCode::input, vectors + ": tensor \"vectors\" has entries that are not finite", kRebuild);
  const size_t width = static_cast<size_t>(view.info->shape[1]);
  for (size_t i = 0; i < index.documents.size(); ++i)
    index.vectors.emplace_back(flat.begin() + static_cast<std::ptrdiff_t>(i * width), flat.begin() + static_cast<std::ptrdiff_t>((i + 1) * width));
  return index;
}

std::unique_ptr<Retriever> open_retriever(const StoredIndex& index, EmbedTexts embed) {
  RetrieverOptions options;
  options.name = index.retriever;
  options.seed = index.seed;
  options.cosine = index.cosine;
  options.embed = std::move(embed);
  options.vectors = index.vectors;
  std::vector<Document> documents;
  for (const StoredDocument& d : index.documents) documents.push_back({d.text, d.date});
  return make_retriever(options, documents);
}

}  // namespace thimble
