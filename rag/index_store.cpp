#include "rag/index_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <type_traits>

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

// A set as the tensors of its file; the views end with the set.
std::vector<NamedTensor> tensors_of(const VectorSet& set) {
  std::vector<NamedTensor> tensors;
  const int64_t n = set.count, width = set.width;
  if (!set.values.empty()) tensors.push_back({"vectors", SafetensorsDtype::f32, {n, width}, set.values.data()});
  if (set.precision == VectorPrecision::int8) {
    tensors.push_back({"codes", SafetensorsDtype::i8, {n, width}, set.codes.data()});
    tensors.push_back({"scales", SafetensorsDtype::f32, {n}, set.scales.data()});
  }
  if (set.precision == VectorPrecision::binary) {
    tensors.push_back({"bits", SafetensorsDtype::u64, {n, set.words()}, set.bits.data()});
    tensors.push_back({"center", SafetensorsDtype::f32, {width}, set.center.data()});
  }
  return tensors;
}

// One tensor of the vectors' file, of the stated type and shape; floats must be finite.
template <class T>
void read_tensor(const SafetensorsFile& file, const char* name, SafetensorsDtype dtype, const std::vector<int64_t>& shape, std::vector<T>* out) {
  const TensorView view = file.find(name) ? file.view(name) : TensorView{};
  std::string wanted;
  for (const int64_t n : shape) wanted += (wanted.empty() ? "" : ", ") + std::to_string(n);
  if (!view || view.info->shape != shape || view.info->dtype != dtype)
    throw Error(ErrorCode::input, fmt::format("{}: expected a tensor \"{}\" {} [{}]", file.path(), name, safetensors_dtype_name(dtype), wanted), kRebuild);
  out->resize(static_cast<size_t>(view.info->elements()));
  if (!out->empty()) std::memcpy(out->data(), view.data, out->size() * sizeof(T));
  if constexpr (std::is_same_v<T, float>) {
    if (!std::all_of(out->begin(), out->end(), [](float x) { return std::isfinite(x); }))
      throw Error(ErrorCode::input, fmt::format("{}: tensor \"{}\" has entries that are not finite", file.path(), name), kRebuild);
  }
}

VectorSet read_vectors(const SafetensorsFile& file, VectorPrecision precision, int64_t n, int64_t width) {
  VectorSet set;
  set.precision = precision;
  set.count = n;
  set.width = width;
  if (precision == VectorPrecision::f32 || file.find("vectors")) read_tensor(file, "vectors", SafetensorsDtype::f32, {n, width}, &set.values);
  if (precision == VectorPrecision::int8) {
    read_tensor(file, "codes", SafetensorsDtype::i8, {n, width}, &set.codes);
    read_tensor(file, "scales", SafetensorsDtype::f32, {n}, &set.scales);
  }
  if (precision == VectorPrecision::binary) {
    read_tensor(file, "bits", SafetensorsDtype::u64, {n, set.words()}, &set.bits);
    read_tensor(file, "center", SafetensorsDtype::f32, {width}, &set.center);
    const uint64_t beyond = width % 64 ? ~uint64_t{0} << (width % 64) : 0;
    for (size_t i = static_cast<size_t>(set.words()) - 1; i < set.bits.size(); i += static_cast<size_t>(set.words()))
      if (set.bits[i] & beyond)
        throw Error(ErrorCode::input, fmt::format("{}: tensor \"bits\" has bits beyond the {} of a vector", file.path(), width), kRebuild);
  }
  return set;
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
    THIMBLE_CHECK(static_cast<size_t>(index.vectors.count) == index.documents.size());
    const std::vector<NamedTensor> tensors = tensors_of(index.vectors);
    Sha256 content;
    for (const NamedTensor& t : tensors) {
      int64_t elements = 1;
      for (const int64_t n : t.shape) elements *= n;
      content.update(t.data, static_cast<size_t>(elements * safetensors_dtype_bits(t.dtype) / 8));
    }
    vectors = "vectors-" + content.hex().substr(0, 16) + ".safetensors";
    const std::string path = join_path(dir, vectors);
    write_safetensors(path, tensors);
    root["model"] = index.model;
    root["model_sha256"] = index.model_sha256;
    root["precision"] = vector_precision_name(index.vectors.precision);
    root["width"] = index.vectors.width;
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
  const bool first_version = schema == fmt::format("{}/1", kSchema);
  if (!first_version && schema != fmt::format("{}/{}", kSchema, kIndexVersion))
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
  VectorPrecision precision = VectorPrecision::f32;
  int64_t width = 0;
  if (first_version) {
    const TensorInfo* info = file.find("vectors");
    width = info && info->shape.size() == 2 ? std::max<int64_t>(1, info->shape[1]) : 1;
  } else {
    if (!vector_precision_from_name(root.require_string("precision"), &precision)) root.fail("precision", "f32, int8 or binary");
    width = root.require_int("width", 1, 130000);
  }
  index.vectors = read_vectors(file, precision, n, width);
  return index;
}

std::unique_ptr<Retriever> open_retriever(const StoredIndex& index, EmbedTexts embed, const KernelTable* kernels, int threads) {
  RetrieverOptions options;
  options.name = index.retriever;
  options.seed = index.seed;
  options.cosine = index.cosine;
  options.embed = std::move(embed);
  options.vectors = &index.vectors;
  options.kernels = kernels;
  options.threads = threads;
  std::vector<Document> documents;
  for (const StoredDocument& d : index.documents) documents.push_back({d.text, d.date});
  return make_retriever(options, documents);
}

}  // namespace thimble
