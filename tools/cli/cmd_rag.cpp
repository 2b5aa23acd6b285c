// thimble rag: index texts once, ask for the most relevant ones often.
#include <fmt/format.h>

#include <algorithm>

#include "models/embedder.h"
#include "models/io/json.h"
#include "rag/index_store.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"
#include "tools/cli/read_input.h"
#include "tools/lab/identity.h"
#include "tools/lab/task.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

// A model that turns texts into vectors. Texts get the prompts that the model's files name for documents and questions.
class TextModel {
 public:
  TextModel(Session& session, const std::string& path, const std::string& tokenizer)
      : ctx_(session.make_context()), embedder_(Embedder::open(path, *ctx_, options(session, tokenizer))) {
    if (embedder_.model())
      for (const std::string& w : embedder_.model()->warnings) warn(w);
  }
  EmbedTexts documents() {
    return [this](const std::vector<std::string>& texts) { return embedder_.embed(texts, embedder_.document_prompt()); };
  }
  EmbedTexts queries() {
    return [this](const std::vector<std::string>& texts) { return embedder_.embed(texts, embedder_.query_prompt()); };
  }

 private:
  static EmbedderOptions options(Session& session, const std::string& tokenizer) {
    EmbedderOptions options;
    options.budget = &session.budget();
    options.tokenizer = tokenizer;
    return options;
  }
  std::unique_ptr<Context> ctx_;
  Embedder embedder_;
};

std::string hash_of_model(const std::string& path) {
  lab::FileHashes hashes;
  return lab::model_sha256(path, hashes);
}

// Every line that is not blank is a document; its id is the line's number.
std::vector<StoredDocument> read_lines(const std::string& text) {
  std::vector<StoredDocument> documents;
  int64_t line = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string row = text.substr(at, end - at);
    if (!row.empty() && row.back() == '\r') row.pop_back();
    ++line;
    if (row.find_first_not_of(" \t") != std::string::npos) documents.push_back({std::to_string(line), std::move(row), ""});
    at = end + 1;
  }
  return documents;
}

// Rows {"text", "id" (default: the line's number), "date"}.
std::vector<StoredDocument> read_rows(const std::string& text, const std::string& path) {
  std::vector<StoredDocument> documents;
  for (const StoredDocument& row : read_lines(text)) {
    const std::string where = fmt::format("{}: line {}", path, row.id);
    const nlohmann::json json = parse_json(row.text, where);
    const JsonObject fields(json, where);
    const nlohmann::json* id = fields.find("id");
    documents.push_back({id && id->is_number_integer() ? id->dump() : fields.get_string("id", row.id), fields.require_string("text"),
                         fields.get_string("date", "")});
  }
  return documents;
}

// The profile of one person of a LaMP questions file.
std::vector<StoredDocument> read_profile(const std::string& path, const std::string& user) {
  const lab::TaskData data = lab::read_lamp(path, "");
  const lab::Person* chosen = nullptr;
  std::string users;
  for (size_t i = 0; i < data.people.size(); ++i) {
    const lab::Person& person = data.people[i];
    if (person.user_id == user && !chosen) chosen = &person;
    if (i < 10) users += (users.empty() ? "" : ", ") + person.user_id;
  }
  if (data.people.size() > 10) users += ", ...";
  if (user.empty() && data.people.size() == 1) chosen = &data.people[0];
  if (!chosen)
    throw Error(ErrorCode::usage, user.empty() ? fmt::format("--user: {} holds {} people", path, data.people.size())
                                               : fmt::format("--user: {} holds no one with user_id {}", path, quote_for_message(user)),
                "people: " + users);
  std::vector<StoredDocument> documents;
  for (const lab::Item& item : chosen->history) documents.push_back({item.id, data.task->document(item), item.date});
  return documents;
}

struct IndexOptions {
  CommonOptions common;
  std::string input, format = "auto", out, user, model, tokenizer, precision = "f32";
  bool drop_f32 = false;
  StoredIndex index;
};

int run_index(IndexOptions& o) {
  StoredIndex& index = o.index;
  const std::vector<std::string>& names = retriever_names();
  if (std::find(names.begin(), names.end(), index.retriever) == names.end()) {
    RetrieverOptions unknown;
    unknown.name = index.retriever;
    make_retriever(unknown, {});  // throws, and lists the names
  }
  if ((index.retriever == "dense") == o.model.empty())
    throw Error(ErrorCode::usage, o.model.empty() ? "--model: dense needs a model that turns texts into vectors" : "--model: only dense uses a model",
                "give --model together with --retriever dense");
  VectorPrecision precision = VectorPrecision::f32;
  vector_precision_from_name(o.precision, &precision);
  if (o.drop_f32 && precision == VectorPrecision::f32)
    throw Error(ErrorCode::usage, "--drop-f32: an f32 index has nothing else", "give --index-precision int8 or binary with it");
  index.seed = o.common.seed;
  if (!o.model.empty()) o.model = lab::resolve_model(o.model);
  const bool standard_input = o.input == "-";
  std::string format = o.format;
  const std::string text = format == "lamp" ? "" : read_input(o.input);
  if (format == "auto") {
    const size_t first = text.find_first_not_of(" \t\r\n");
    const char c = first == std::string::npos ? ' ' : text[first];
    format = c == '{' ? "jsonl" : c == '[' && !standard_input ? "lamp" : "text";
  }
  if (format == "lamp" && standard_input) throw Error(ErrorCode::usage, "--format lamp: reads a file, not standard input", "give its path");
  if (format != "lamp" && !o.user.empty()) throw Error(ErrorCode::usage, "--user: only a LaMP file has people", "leave it out");
  index.documents = format == "lamp" ? read_profile(o.input, o.user) : format == "jsonl" ? read_rows(text, o.input) : read_lines(text);
  if (index.documents.empty()) throw Error(ErrorCode::input, o.input + ": holds no documents", "give at least one text");

  Session session(o.common);
  if (index.retriever == "dense") {
    TextModel model(session, o.model, o.tokenizer);
    Progress progress(o.common, "embedding", static_cast<int64_t>(index.documents.size()), "texts");
    constexpr size_t kPiece = 64;
    std::vector<std::vector<float>> vectors;
    for (size_t at = 0; at < index.documents.size(); at += kPiece) {
      std::vector<std::string> texts;
      for (size_t i = at; i < std::min(index.documents.size(), at + kPiece); ++i) texts.push_back(index.documents[i].text);
      for (std::vector<float>& v : model.documents()(texts)) vectors.push_back(std::move(v));
      progress.update(static_cast<int64_t>(vectors.size()));
    }
    index.vectors = make_vector_set(vectors);
    if (index.cosine && precision != VectorPrecision::f32) normalize(index.vectors);
    compress(index.vectors, session.kernels(), precision, !o.drop_f32);
    index.model = o.model;
    index.model_sha256 = hash_of_model(o.model);
  }
  write_index(o.out, index);
  if (o.common.json)
    print_json({{"schema", "thimble.rag_index/1"}, {"out", o.out}, {"retriever", index.retriever}, {"format", format}, {"documents", index.documents.size()},
                {"width", index.vectors.width}, {"precision", o.precision}, {"scanned_bytes", index.vectors.scanned_bytes()}});
  else
    write_stdout(fmt::format("{}: {} documents, {}\n", o.out, index.documents.size(), index.retriever));
  return 0;
}

struct QueryOptions {
  CommonOptions common;
  std::string index, query, query_file, model, tokenizer;
  int64_t k = 4, limit = -1;
};

int run_query(const QueryOptions& o) {
  const std::string query = o.query_file.empty() ? o.query : read_input(o.query_file);
  const StoredIndex index = read_index(o.index);
  Session session(o.common);
  std::unique_ptr<TextModel> model;
  EmbedTexts embed;
  if (index.retriever == "dense" && !index.documents.empty()) {
    const std::string path = o.model.empty() ? index.model : lab::resolve_model(o.model);
    if (hash_of_model(path) != index.model_sha256)
      throw Error(ErrorCode::input, fmt::format("{}: the index was made with another model than {}", o.index, path),
                  "give the model of the index with --model, or build the index again");
    model = std::make_unique<TextModel>(session, path, o.tokenizer);
    embed = model->queries();
  }
  const std::unique_ptr<Retriever> retriever = open_retriever(index, std::move(embed), &session.kernels(), session.threads());
  const std::vector<Hit> hits = retriever->search(query, o.k, o.limit);
  Json rows = Json::array();
  std::string text;
  for (size_t i = 0; i < hits.size(); ++i) {
    const StoredDocument& d = index.documents[static_cast<size_t>(hits[i].index)];
    rows.push_back({{"rank", i + 1}, {"id", d.id}, {"index", hits[i].index}, {"score", hits[i].score}, {"text", d.text}, {"date", d.date.empty() ? Json(nullptr) : Json(d.date)}});
    text += fmt::format("{:.4f}\t{}\t{}\n", hits[i].score, d.id, d.text);
  }
  if (o.common.json)
    print_json({{"schema", "thimble.rag_query/1"}, {"index", o.index}, {"retriever", index.retriever}, {"documents", index.documents.size()}, {"query", query}, {"hits", rows}});
  else
    write_stdout(text);
  return 0;
}

}  // namespace

void add_rag(CLI::App& app, Run* run) {
  CLI::App* rag = app.add_subcommand("rag", "retrieve the most relevant of many texts");
  rag->require_subcommand(1);

  CLI::App* index = rag->add_subcommand("index", "make an index of texts");
  index->footer(
      "Examples:\n"
      "  thimble rag index --input notes.txt --out notes.index\n"
      "  thimble rag index --input dev_questions.json --user 288 --out 288.index --retriever bm25_okapi\n"
      "  thimble rag index --input rows.jsonl --retriever dense --embedder DIR --cosine --index-precision int8 --out rows.index");
  auto i = std::make_shared<IndexOptions>();
  index->add_option("--input", i->input, "texts, oldest first: a line each, rows {text, id, date}, or a LaMP questions file; - is standard input")->required();
  index->add_option("--format", i->format, "auto (default), text, jsonl or lamp")->check(CLI::IsMember({"auto", "text", "jsonl", "lamp"}));
  index->add_option("--out", i->out, "directory to write; an index that is there is replaced")->required();
  index->add_option("--retriever", i->index.retriever, "bm25 (default), bm25_okapi, dense, recency or random");
  index->add_option("--user", i->user, "LaMP: whose profile; needed when the file holds several people");
  index->add_option("--model,--embedder", i->model, "dense: what turns texts into vectors: an encoder, a static embedder, or any model (thimble embed)");
  index->add_option("--tokenizer", i->tokenizer, "dense: tokenizer file or directory; default: beside the model");
  index->add_option("--index-precision", i->precision,
                    "dense: how a query reads the vectors: f32 (default), int8 or binary (signs); the best candidates are scored again with "
                    "the floats")
      ->check(CLI::IsMember({"f32", "int8", "binary"}));
  index->add_flag("--drop-f32", i->drop_f32, "dense, int8 or binary: keep no floats; a quarter or a 32nd of the size, without the second scoring");
  index->add_flag("--cosine", i->index.cosine, "dense: compare directions; default: the raw inner product");
  add_common_options(*index, i->common);
  index->callback([i, run] { *run = [i] { return run_index(*i); }; });

  CLI::App* query = rag->add_subcommand("query", "the best texts of an index");
  query->footer("Example: thimble rag query --index notes.index --query 'the red boat' --k 3 --json");
  auto q = std::make_shared<QueryOptions>();
  query->add_option("--index", q->index, "directory of the index")->required();
  auto* words = query->add_option("--query", q->query, "what to look for");
  query->add_option("--query-file", q->query_file, "a file with what to look for; - is standard input")->excludes(words);
  query->add_option("--k", q->k, "texts at most (default 4)")->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  query->add_option("--limit", q->limit, "only the first so many texts of the index")->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  query->add_option("--model,--embedder", q->model, "dense: where the index's model lies now; default: where it lay");
  query->add_option("--tokenizer", q->tokenizer, "dense: tokenizer file or directory; default: beside the model");
  add_common_options(*query, q->common);
  query->callback([q, run] { *run = [q] { return run_query(*q); }; });
}

}  // namespace thimble::cli
