// thimble model adapter: what an adapter does to its base, and the same adapter in another format.
#include <fmt/format.h>

#include "models/adapter_gguf.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tools/cli/cli.h"

namespace thimble::cli {
namespace {

struct AdapterCommand {
  CommonOptions common;
  std::string model, adapter, out;
};

bool is_gguf_name(const std::string& path) { return path.size() > 5 && path.compare(path.size() - 5, 5, ".gguf") == 0; }

int run_adapter(const AdapterCommand& o) {
  Session session(o.common);
  if (!o.out.empty() && (file_exists(o.out) || file_exists(join_path(o.out, "adapter_config.json"))))
    throw Error(ErrorCode::usage, "--out " + o.out + ": exists", "choose another name");
  LoadOptions options;
  options.budget = &session.budget();
  const Model model = load_model(o.model, session.kernels(), options);
  Adapter adapter(model, session.kernels(), o.adapter, &session.budget());
  if (!o.common.quiet)
    for (const std::string& w : adapter.warnings()) warn(w);
  const AdapterConfig& c = adapter.config();
  const bool lora = c.kind == AdapterKind::lora;
  nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
  std::string list;
  adapter.export_tensors(ExportWhat::weights, [&](const ExportedTensor& t) {
    tensors.push_back({{"name", t.name}, {"shape", t.shape}});
    list += fmt::format("  {} [{}]\n", t.name, fmt::join(t.shape, ", "));
  });
  const std::string kind = lora && c.dora ? "dora" : adapter_kind_name(c.kind);
  nlohmann::ordered_json j = {{"schema", "thimble.adapter/1"}, {"path", o.adapter}, {"base", o.model}, {"kind", kind}, {"parameters", adapter.parameters()}};
  if (lora) {
    j["rank"] = c.rank;
    j["alpha"] = c.alpha;
    j["rslora"] = c.rslora;
    j["bias"] = adapter_bias_name(c.bias);
  }
  if (adapter.n_virtual() > 0) j["virtual_tokens"] = adapter.n_virtual();
  j["tensors"] = tensors;
  j["out"] = o.out.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(o.out);
  if (is_gguf_name(o.out)) write_gguf_adapter(model, adapter, o.out);
  else if (!o.out.empty()) adapter.save(o.out, o.model);
  if (o.common.json) {
    print_json(j);
    return 0;
  }
  std::string text = fmt::format("{}: {}, {} parameters", o.adapter, kind, adapter.parameters());
  if (lora) text += fmt::format(", rank {}, alpha {}{}", c.rank, c.alpha, c.rslora ? " (rslora)" : "");
  text += "\n" + list;
  if (!o.out.empty()) text += o.out + ": written\n";
  write_stdout(text);
  return 0;
}

}  // namespace

void add_model_adapter(CLI::App& model, Run* run) {
  CLI::App* command = model.add_subcommand("adapter", "look at an adapter, or write it in another format");
  command->footer(
      "Examples:\n"
      "  thimble model adapter ADAPTER --model DIR\n"
      "  thimble model adapter ADAPTER --model DIR --out adapter.gguf   # for llama.cpp's --lora\n"
      "  thimble model adapter adapter.gguf --model DIR --out ADAPTER   # for PEFT");
  auto o = std::make_shared<AdapterCommand>();
  command->add_option("PATH", o->adapter, "PEFT adapter directory, or a LoRA adapter in GGUF")->required();
  command->add_option("--model", o->model, "base model")->required();
  command->add_option("--out", o->out, "a directory: PEFT's format; a name that ends in .gguf: GGUF (LoRA)");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_adapter(*o); }; });
}

}  // namespace thimble::cli
