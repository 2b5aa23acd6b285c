// thimble embed: texts to vectors, by an encoder, a static embedder or a decoder.
#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>

#include "models/embedder.h"
#include "models/io/json.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"
#include "tools/cli/read_input.h"
#include "tools/lab/identity.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct EmbedOptions {
  CommonOptions common;
  std::string model, file, field = "text", prompt, prompt_name, out;
  std::vector<std::string> texts;
  bool normalize = false, no_normalize = false;
  EmbedderOptions embedder;
  const CLI::Option *prompt_given = nullptr, *file_given = nullptr;
};

// Every line is a text, so that rows of the result and lines of the file agree; of a .jsonl file the field of each row.
std::vector<std::string> read_texts(const std::string& path, const std::string& field) {
  const std::string content = read_input(path);
  const bool rows = path.ends_with(".jsonl") || path.ends_with(".ndjson");
  std::vector<std::string> texts;
  int64_t line = 0;
  for (size_t at = 0; at < content.size();) {
    const size_t end = std::min(content.find('\n', at), content.size());
    std::string text = content.substr(at, end - at);
    if (!text.empty() && text.back() == '\r') text.pop_back();
    ++line;
    at = end + 1;
    if (rows) {
      if (text.find_first_not_of(" \t") == std::string::npos) continue;
      const std::string where = fmt::format("{}: line {}", path, line);
      const nlohmann::json json = parse_json(text, where);
      text = JsonObject(json, where).require_string(field);
    }
    texts.push_back(std::move(text));
  }
  return texts;
}

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += double{a[i]} * double{b[i]};
    aa += double{a[i]} * double{a[i]};
    bb += double{b[i]} * double{b[i]};
  }
  return aa > 0 && bb > 0 ? ab / std::sqrt(aa * bb) : 0.0;
}

// The shortest decimal number that reads back as this float.
std::string shortest(float x) { return std::isfinite(x) ? fmt::format("{}", x) : "null"; }
Json number(float x) { return std::isfinite(x) ? Json(std::strtod(shortest(x).c_str(), nullptr)) : Json(nullptr); }

std::string row_text(const std::vector<float>& v) {
  std::string text = "[";
  for (size_t i = 0; i < v.size(); ++i) text += (i ? ", " : "") + shortest(v[i]);
  return text + "]";
}

// NumPy's .npy, version 1.0: little-endian f32 [n, dimensions].
void write_npy(const std::string& path, const Embedder::Vectors& vectors, int64_t dimensions) {
  std::string header = fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}", vectors.size(), dimensions);
  constexpr size_t kPrefix = 10, kAlign = 64;
  header.append((kAlign - (kPrefix + header.size() + 1) % kAlign) % kAlign, ' ');
  header += '\n';
  AtomicFile file(path);
  file.write(std::string_view("\x93NUMPY\x01\x00", 8));
  const char length[2] = {static_cast<char>(header.size() & 0xFF), static_cast<char>(header.size() >> 8)};
  file.write(length, 2);
  file.write(header);
  for (const std::vector<float>& v : vectors) file.write(v.data(), v.size() * sizeof(float));
  file.commit();
}

void write_jsonl(const std::string& path, const std::vector<std::string>& texts, const Embedder::Vectors& vectors) {
  AtomicFile file(path);
  for (size_t i = 0; i < texts.size(); ++i)
    file.write(fmt::format("{{\"text\": {}, \"embedding\": {}}}\n", Json(texts[i]).dump(), row_text(vectors[i])));
  file.commit();
}

void write_tensor(const std::string& path, const Embedder& embedder, const Embedder::Vectors& vectors) {
  SafetensorsWriter writer(path);
  writer.set_metadata("format", "pt");
  writer.set_metadata("model", embedder.recipe().model_path);
  writer.set_metadata("pooling", describe(embedder.recipe()));
  writer.declare("embeddings", SafetensorsDtype::f32, {static_cast<int64_t>(vectors.size()), embedder.dimensions()});
  for (const std::vector<float>& v : vectors) writer.write("embeddings", v.data(), v.size() * sizeof(float));
  writer.finish();
}

void check_out(const std::string& path) {
  for (const char* end : {".npy", ".jsonl", ".safetensors"})
    if (path.ends_with(end)) return;
  throw Error(ErrorCode::usage, fmt::format("--out {}: unknown kind of file", path), "valid endings: .npy, .jsonl, .safetensors");
}

// A table for people; the vectors themselves go to stdout.
void say_similarities(const CommonOptions& common, const std::vector<std::string>& texts, const Embedder::Vectors& vectors) {
  say(common, "cosine similarity");
  for (size_t i = 0; i < texts.size(); ++i) {
    std::string row;
    for (size_t j = 0; j < texts.size(); ++j) row += fmt::format("{:7.3f}", cosine(vectors[i], vectors[j]));
    const bool whole = texts[i].size() <= 60;
    say(common, fmt::format("{}  {}", row, quote_for_message(whole ? texts[i] : texts[i].substr(0, texts[i].find_last_of(' ', 57)) + " ...")));
  }
}

int run_embed(EmbedOptions& o) {
  if (o.texts.empty() == (o.file_given->count() == 0))
    throw Error(ErrorCode::usage, "embed: expected either --text or --file", "for example --text 'a red boat' --text 'a ship'");
  if (!o.out.empty()) check_out(o.out);
  if (o.normalize || o.no_normalize) o.embedder.normalize = o.normalize;
  Session session(o.common);
  const auto ctx = session.make_context();
  const std::string path = lab::resolve_model(o.model);
  o.embedder.budget = &session.budget();
  const Embedder embedder = Embedder::open(path, *ctx, o.embedder);
  if (embedder.model() && !o.common.quiet)
    for (const std::string& w : embedder.model()->warnings) warn(w);
  const std::vector<std::string> texts = o.file_given->count() > 0 ? read_texts(o.file, o.field) : o.texts;
  if (texts.empty()) throw Error(ErrorCode::input, o.file + ": holds no texts", "give at least one line");
  const std::string name = o.prompt_name.empty() ? embedder.recipe().default_prompt : o.prompt_name;
  const std::string prompt = o.prompt_given->count() > 0 ? o.prompt : name.empty() ? "" : embedder.prompt_text(name);
  Embedder::Vectors vectors;
  const double started = seconds_now();
  {
    Progress progress(o.common, "embedding", static_cast<int64_t>(texts.size()), "texts");
    vectors = embedder.embed(texts, prompt, [&](int64_t done, int64_t) { progress.update(done); });
  }
  const double seconds = seconds_now() - started;
  if (o.out.ends_with(".npy")) write_npy(o.out, vectors, embedder.dimensions());
  if (o.out.ends_with(".jsonl")) write_jsonl(o.out, texts, vectors);
  if (o.out.ends_with(".safetensors")) write_tensor(o.out, embedder, vectors);

  if (o.texts.size() > 1 && isatty(STDERR_FILENO)) say_similarities(o.common, texts, vectors);
  if (o.common.json) {
    const Model* model = embedder.model();
    Json j = {{"schema", "thimble.embed/1"},
              {"model", o.model},
              {"kind", !model ? "static" : model->config.bidirectional ? "encoder" : "decoder"},
              {"dimensions", embedder.dimensions()},
              {"pooling", describe(embedder.recipe())},
              {"normalized", embedder.recipe().normalizes()},
              {"max_tokens", embedder.max_tokens() > 0 ? Json(embedder.max_tokens()) : Json(nullptr)},
              {"prompt", prompt},
              {"texts", texts.size()},
              {"seconds", seconds}};
    if (o.out.empty()) {
      Json rows = Json::array();
      for (const std::vector<float>& v : vectors) {
        Json row = Json::array();
        for (const float x : v) row.push_back(number(x));
        rows.push_back(std::move(row));
      }
      j["embeddings"] = std::move(rows);
    } else {
      j["out"] = o.out;
    }
    if (o.texts.size() > 1) {
      Json rows = Json::array();
      for (const std::vector<float>& a : vectors) {
        Json row = Json::array();
        for (const std::vector<float>& b : vectors) row.push_back(cosine(a, b));
        rows.push_back(std::move(row));
      }
      j["similarity"] = std::move(rows);
    }
    print_json(j);
  } else if (o.out.empty()) {
    std::string text;
    for (const std::vector<float>& v : vectors) text += row_text(v) + "\n";
    write_stdout(text);
  } else {
    write_stdout(fmt::format("{}: {} x {}, {}\n", o.out, vectors.size(), embedder.dimensions(), describe(embedder.recipe())));
  }
  return 0;
}

}  // namespace

void add_embed(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("embed", "texts to vectors");
  command->footer(
      "Examples:\n"
      "  thimble embed --model MiniLM --text 'a red boat' --text 'a crimson ship' --json\n"
      "  thimble embed --model MiniLM --file notes.txt --out notes.npy\n"
      "  thimble embed --model E5 --file rows.jsonl --field title --prompt-name query --out rows.safetensors\n"
      "P is a sentence-transformers or BERT directory, a static embedder (model2vec), or any model. Pooling, length, prompts and\n"
      "normalization are what its files say (modules.json, 1_Pooling, config_sentence_transformers.json); without such files the\n"
      "vector is the mean of the last hidden states. Without --out each vector is printed as a line of numbers.");
  auto o = std::make_shared<EmbedOptions>();
  command->add_option("--model", o->model, "directory of the model, or zoo:NAME")->required();
  command->add_option("--tokenizer", o->embedder.tokenizer, "tokenizer file or directory; default: beside the model");
  command->add_option("--text", o->texts, "a text; may be given several times")->allow_extra_args(false);
  o->file_given = command->add_option("--file", o->file, "a text per line, or rows of a .jsonl file; - is standard input");
  command->add_option("--field", o->field, "of .jsonl rows: where the text stands; default text");
  o->prompt_given = command->add_option("--prompt", o->prompt, "stands in front of every text");
  command->add_option("--prompt-name", o->prompt_name, "a prompt that the model's files name, such as query or document")->excludes("--prompt");
  command->add_flag("--normalize", o->normalize, "divide every vector by its length; default: what the files say");
  command->add_flag("--no-normalize", o->no_normalize, "do not")->excludes("--normalize");
  command->add_option("--pooling", o->embedder.pooling, "cls, max, mean, mean_sqrt_len, weightedmean, lasttoken, or several joined by +; default: what the files say");
  command->add_option("--max-tokens", o->embedder.max_tokens, "of a text, its end is cut; default: what the files say")->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  command->add_option("--batch-rows", o->embedder.batch_rows, "tokens of one pass; changes no result; default 2048")->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--out", o->out, "write .npy, .jsonl ({text, embedding}) or .safetensors (embeddings)");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_embed(*o); }; });
}

}  // namespace thimble::cli
