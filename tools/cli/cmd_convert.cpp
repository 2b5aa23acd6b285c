// thimble convert: any readable model to any writable format, one tensor at a time.
#include <fmt/format.h>

#include <cstring>
#include <map>

#include "models/gguf_export.h"
#include "models/gguf_model.h"
#include "models/io/ggml_encode.h"
#include "models/io/half.h"
#include "models/llama2c_export.h"
#include "models/model_source.h"
#include "models/packed.h"
#include "models/packed_store.h"
#include "models/tokenizer/tokenizer.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"
#include "tools/cli/model_output.h"
#include "tools/cli/tokenizer_path.h"

namespace thimble::cli {
namespace {

using Json = nlohmann::ordered_json;

struct ConvertOptions {
  CommonOptions common;
  std::string model, out, to, dtype = "keep", tokenizer, spec = "int4-g128-asym";
  bool dry_run = false;
};

constexpr const char* kTargets =
    "safetensors, llama2c, gguf-f32, gguf-f16, gguf-bf16, gguf-q8_0, gguf-q4_0, gguf-q4_1, gguf-q4_k, gguf-q6_k, "
    "gptq, awq, compressed-tensors, int-quantized, thimble";

// What stands beside the weights of a Hugging Face model and says nothing about their format.
constexpr const char* kCompanions[] = {"tokenizer.json",
                                       "tokenizer_config.json",
                                       "tokenizer.model",
                                       "vocab.json",
                                       "merges.txt",
                                       "vocab.txt",
                                       "added_tokens.json",
                                       "special_tokens_map.json",
                                       "generation_config.json",
                                       "chat_template.jinja",
                                       "modules.json",
                                       "sentence_bert_config.json",
                                       "1_Pooling/config.json"};

class Convert {
 public:
  explicit Convert(const ConvertOptions& options) : o_(options), source_(options.model) {}

  int run() {
    if (!o_.dry_run && o_.out.empty())
      throw Error(ErrorCode::usage, "convert needs --out PATH", "or --dry-run to see the sizes only");
    if (!o_.out.empty() && same_path(o_.model, o_.out))
      throw Error(ErrorCode::usage, o_.out + ": would overwrite the model itself", "give another --out");
    started_ = seconds_now();
    if (o_.to == "safetensors")
      to_safetensors();
    else if (o_.to == "llama2c")
      to_llama2c();
    else if (o_.to.rfind("gguf-", 0) == 0)
      to_gguf(ggml_type_from_name(o_.to.substr(5)));
    else if (o_.to == "gptq" || o_.to == "awq" || o_.to == "compressed-tensors" || o_.to == "int-quantized")
      to_packed(parse_packed_format(o_.to, "--to"));
    else if (o_.to == "thimble")
      to_store();
    else
      throw Error(ErrorCode::usage, "--to " + quote_for_message(o_.to) + " is not known",
                  std::string("choose one of ") + kTargets);
    return report();
  }

 private:
  void only_keep() const {
    if (o_.dtype != "keep")
      throw Error(ErrorCode::usage, "--dtype goes with --to safetensors only", "the format's name says the type");
  }

  std::unique_ptr<Progress> progress(uint64_t total) {
    return std::make_unique<Progress>(o_.common, "convert", static_cast<int64_t>(total), "bytes");
  }
  void count(const std::string& type, uint64_t bytes, int64_t tensors = 1) {
    types_[type].first += tensors;
    types_[type].second += bytes;
    bytes_ += bytes;
  }

  // The path to load the tokenizer from; "" for none.
  std::string tokenizer() {
    if (o_.tokenizer == "none") return {};
    if (!o_.tokenizer.empty()) return o_.tokenizer;
    if (source_.gguf()) return source_.gguf()->path();
    try {
      return default_tokenizer_path(o_.model);
    } catch (const Error&) {
      warnings_.push_back(o_.model +
                          ": no tokenizer lies beside it; the result has none (--tokenizer PATH gives it one)");
      return {};
    }
  }

  SafetensorsDtype target(const SourceTensor& t) const {
    if (o_.dtype == "f32") return SafetensorsDtype::f32;
    if (o_.dtype == "bf16") return SafetensorsDtype::bf16;
    if (o_.dtype == "f16" || t.coded) return SafetensorsDtype::f16;
    return t.dtype;
  }

  void to_safetensors() {
    std::map<SafetensorsDtype, uint64_t> sizes;
    for (const SourceTensor& t : source_.tensors()) {
      const uint64_t bytes = static_cast<uint64_t>(t.elements() * safetensors_dtype_bits(target(t)) / 8);
      count(safetensors_dtype_name(target(t)), bytes);
      sizes[target(t)] += bytes;
    }
    const std::string tokens = tokenizer();
    if (o_.dry_run) return;
    make_directories(o_.out);
    SafetensorsDtype most = SafetensorsDtype::f32;
    for (const auto& [dtype, bytes] : sizes)
      if (bytes > sizes[most]) most = dtype;
    Json config = source_.json();
    config.erase("dtype");
    config["torch_dtype"] = most == SafetensorsDtype::f16    ? "float16"
                            : most == SafetensorsDtype::bf16 ? "bfloat16"
                                                             : "float32";
    SafetensorsWriter writer(join_path(o_.out, "model.safetensors"));
    writer.set_metadata("format", "pt");
    for (const SourceTensor& t : source_.tensors()) writer.declare(t.name, target(t), t.shape);
    const auto bar = progress(bytes_);
    uint64_t done = 0;
    for (const SourceTensor& t : source_.tensors()) {
      const SafetensorsDtype dtype = target(t);
      if (!t.coded && dtype == t.dtype) {
        const TensorView v = source_.view(t);
        writer.write(t.name, v.data, v.info->bytes);
        done += v.info->bytes;
      } else {
        const std::vector<float> values = source_.read_f32(t);
        if (dtype == SafetensorsDtype::f32) {
          writer.write(t.name, values.data(), values.size() * sizeof(float));
        } else {
          std::vector<uint16_t> half(values.size());
          for (size_t i = 0; i < half.size(); ++i)
            half[i] =
                dtype == SafetensorsDtype::f16 ? io_detail::f32_to_f16(values[i]) : io_detail::f32_to_bf16(values[i]);
          writer.write(t.name, half.data(), half.size() * sizeof(uint16_t));
        }
        done += values.size() * static_cast<size_t>(safetensors_dtype_bits(dtype)) / 8;
      }
      bar->update(static_cast<int64_t>(done));
    }
    writer.finish();
    write_file(join_path(o_.out, "config.json"), config.dump(2) + "\n");
    copy_companions(tokens);
  }

  void copy_companions(const std::string& tokens) {
    if (tokens.empty()) return;
    if (is_directory(tokens)) {
      for (const char* name : kCompanions) {
        const std::string from = join_path(tokens, name);
        if (!file_exists(from)) continue;
        if (std::strchr(name, '/')) make_directories(join_path(o_.out, "1_Pooling"));
        write_file(join_path(o_.out, name), read_file(from));
      }
      return;
    }
    try {
      Tokenizer::load(tokens).save(o_.out);
    } catch (const Error& e) {
      warnings_.push_back(std::string("the tokenizer was not written: ") + e.what());
    }
  }

  void to_gguf(GgmlType type) {
    only_keep();
    const GgufExport out(source_, type);
    for (const GgufExportTensor& t : out.tensors()) count(ggml_type_info(t.type).name, t.bytes());
    const std::string tokens = tokenizer();
    if (o_.dry_run) return;
    const auto bar = progress(bytes_);
    for (std::string& w : out.write(o_.out, tokens, [&](uint64_t done) { bar->update(static_cast<int64_t>(done)); }))
      warnings_.push_back(std::move(w));
  }

  // Through a loaded model, whose plain weights stay mapped.
  void to_packed(PackedFormat format) {
    only_keep();
    Session session(o_.common);
    LoadOptions load;
    load.budget = &session.budget();
    const Model model = load_model(o_.model, session.kernels(), load);
    for (const std::string& w : model.warnings) warnings_.push_back(w);
    const std::string tokens = tokenizer();
    PackedOptions options;
    options.format = format;
    options.spec = parse_weight_spec(o_.spec, "--spec");
    options.threads = session.threads();
    options.dry_run = o_.dry_run;
    int64_t modules = 0;
    for (const SourceTensor& t : source_.tensors()) modules += t.layer >= 0 && t.shape.size() == 2;
    Progress bar(o_.common, "convert", modules, "linears");
    int64_t done = 0;
    options.progress = [&](const std::string&) { bar.update(done++); };
    const PackedReport r = write_quantized(o_.out, model, session.kernels(), base_config(model), options);
    count(o_.to, static_cast<uint64_t>(r.bytes), r.tensors);
    packed_ = {{"kept", r.kept}, {"rounded", r.rounded}, {"requantized", r.requantized.size()}};
    if (!r.requantized.empty())
      warnings_.push_back(fmt::format("{} linears were rounded again, since {} cannot hold their codes: {}",
                                      r.requantized.size(), o_.to, r.requantized[0]));
    if (!o_.dry_run) copy_companions(tokens);
  }

  void to_store() {
    only_keep();
    Session session(o_.common);
    const std::string tokens = tokenizer();
    StoreImport options;
    options.budget = &session.budget();
    options.threads = session.threads();
    options.dry_run = o_.dry_run;
    if (o_.spec != "stored") {
      const WeightSpec spec = parse_weight_spec(o_.spec, "--spec");
      options.linears = {spec.bits, spec.group, spec.symmetric ? GroupKind::symmetric : GroupKind::zero_points};
    }
    std::unique_ptr<Progress> bar;
    options.progress = [&](int64_t done, int64_t total) {
      if (!bar) bar = std::make_unique<Progress>(o_.common, "convert", total, "weights");
      bar->update(done);
    };
    const StoreReport r = import_packed_store(o_.out, source_, session.kernels(), options);
    count(o_.to, static_cast<uint64_t>(r.bytes), r.tensors);
    packed_ = {{"kept", r.kept}, {"rounded", r.rounded}, {"requantized", 0}};
    if (!o_.dry_run) copy_companions(tokens);
  }

  void to_llama2c() {
    only_keep();
    check_llama2c(source_);
    count("f32", llama2c_bytes(source_));
    if (o_.dry_run) return;
    const auto bar = progress(bytes_);
    write_llama2c(source_, o_.out, [&](uint64_t done) { bar->update(static_cast<int64_t>(done)); });
    warnings_.push_back("llama2.c keeps its tokenizer in a file of its own, which is not written");
  }

  int report() {
    Json types = Json::object();
    for (const auto& [name, entry] : types_) types[name] = {{"tensors", entry.first}, {"bytes", entry.second}};
    if (o_.common.json) {
      print_json({{"schema", "thimble.convert/1"},
                  {"model", o_.model},
                  {"out", o_.out.empty() ? Json(nullptr) : Json(o_.out)},
                  {"from", source_.container()},
                  {"quantization", source_.quantization().empty() ? Json(nullptr) : Json(source_.quantization())},
                  {"to", o_.to},
                  {"family", source_.config().family},
                  {"source_bytes", source_.file_bytes()},
                  {"bytes", bytes_},
                  {"types", types},
                  {"linears", packed_},
                  {"dry_run", o_.dry_run},
                  {"seconds", seconds_now() - started_},
                  {"peak_rss_bytes", peak_rss_bytes()},
                  {"warnings", warnings_}});
      return 0;
    }
    for (const std::string& w : warnings_) warn(w);
    std::string text;
    for (const auto& [name, entry] : types_)
      text += fmt::format("{:8} {:6} tensor{} {:10.1f} MB\n", name, entry.first, entry.first == 1 ? " " : "s",
                          double(entry.second) / 1e6);
    text += fmt::format("{}: {} ({:.1f} MB) -> {} ({:.1f} MB){}\n", source_.config().family,
                        source_.quantization().empty() ? source_.container() : source_.quantization(),
                        double(source_.file_bytes()) / 1e6, o_.dry_run || o_.out.empty() ? o_.to : o_.out,
                        double(bytes_) / 1e6, o_.dry_run ? ", nothing written" : "");
    write_stdout(text);
    return 0;
  }

  const ConvertOptions& o_;
  ModelSource source_;
  std::map<std::string, std::pair<int64_t, uint64_t>> types_;
  uint64_t bytes_ = 0;
  std::vector<std::string> warnings_;
  Json packed_ = nullptr;
  double started_ = 0;
};

}  // namespace

void add_convert(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("convert", "write a model in another format");
  command->footer(
      "Examples:\n"
      "  thimble convert --model DIR --out model-q4_k.gguf --to gguf-q4_k     for llama.cpp, tokenizer included\n"
      "  thimble convert --model model.gguf --out DIR --to safetensors        for Hugging Face's programs\n"
      "  thimble convert --model DIR --out STORE --to thimble                 packed as this program uses it: opens at once\n"
      "  thimble convert --model DIR --to awq --spec int4-g64-asym --dry-run  the sizes only\n"
      "Codes of a quantized model are kept where the target can hold them; what is not quantized is rounded to nearest\n"
      "(thimble quantize has better methods).");
  auto options = std::make_shared<ConvertOptions>();
  add_common_options(*command, options->common);
  command->add_option("--model", options->model, "Hugging Face directory, GGUF file or llama2.c .bin file")->required();
  command->add_option("--out", options->out, "directory, or file (gguf, llama2c)");
  command->add_option("--to", options->to, std::string("one of ") + kTargets)->required();
  command
      ->add_option("--dtype", options->dtype,
                   "safetensors: keep (default), f32, f16 or bf16; quantized weights are kept as f16")
      ->check(CLI::IsMember({"keep", "f32", "f16", "bf16"}));
  command->add_option(
      "--spec", options->spec,
      "gptq, awq, thimble and the like: the grid of weights that are not quantized yet (default int4-g128-asym); "
      "thimble: also stored, which leaves them as they are");
  command->add_option("--tokenizer", options->tokenizer,
                      "its tokenizer, where it does not lie beside the model; none: leave it out");
  command->add_flag("--dry-run", options->dry_run, "say the sizes, write nothing");
  command->callback([options, run] { *run = [options] { return Convert(*options).run(); }; });
}

}  // namespace thimble::cli
