// PEFT adapters against an independent computation: the adapter's files are written here, its effect on the base's tensors
// is computed here in double precision from PEFT's formulas, and the reference transformer runs on the result. Logits,
// folded weights, and every gradient along random directions by differences (DoRA's norms held still, as PEFT does).
#include <functional>
#include <map>
#include <set>

#include "models/adapter.h"
#include "tests/models/reference_model.h"
#include "tests/models/small_families.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

using reference::Tensor;
using reference::Tensors;

struct Scaling {
  int64_t rank;
  double scale;
};

// One way of adapting a base, described twice: as PEFT's configuration, and by what it means.
struct Variant {
  std::string name;
  nlohmann::json config;
  std::function<bool(const std::string& module)> adapted = [](const std::string&) { return true; };
  std::function<Scaling(const std::string& module)> scaling = [](const std::string&) { return Scaling{4, 2.0}; };
  bool dora = false, embedding = false, head = false;
  std::function<bool(const std::string& tensor)> whole = [](const std::string&) { return false; };  // replaced as it is
  bool base_layer = false;  // biases of adapted modules carry the name that PEFT gives them
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
bool ends(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool is_embedding(const std::string& name) {
  for (const char* part : {"embed_tokens", "wte", "wpe", "embed_in", "embed_positions", "word_embeddings.", "lm_head", "embed_out"})
    if (has(name, part)) return true;
  return false;
}

class Base {
 public:
  explicit Base(const std::string& dir) : dir_(dir), config_(read_json(dir + "/config.json")), model_(config_) {
    tensors_ = reference::read_safetensors(dir + "/model.safetensors");
    // The names of the whole model, which files of the bare one lack.
    for (const reference::Declared& d : model_.declared()) {
      if (tensors_.count(d.name)) continue;
      for (auto& [name, tensor] : tensors_)
        if (ends(d.name, "." + name)) {
          tensors_[d.name] = tensor;
          tensors_.erase(name);
          break;
        }
    }
    for (const reference::Declared& d : model_.declared())
      if (d.shape.size() == 2 && ends(d.name, ".weight") && !is_embedding(d.name) && !has(d.name, "norm")) modules_.push_back(d.name.substr(0, d.name.size() - 7));
  }

  const std::string& dir() const { return dir_; }
  const reference::Model& model() const { return model_; }
  const Tensors& tensors() const { return tensors_; }
  const std::vector<std::string>& modules() const { return modules_; }
  bool conv1d() const { return config_.at("model_type") == "gpt2"; }

 private:
  std::string dir_;
  nlohmann::json config_;
  reference::Model model_;
  Tensors tensors_;
  std::vector<std::string> modules_;
};

double& element(Tensor& w, bool conv1d, int64_t out, int64_t in) {
  return w.data[size_t(conv1d ? in * w.shape[1] + out : out * w.shape[1] + in)];
}

Tensor random_tensor(std::vector<int64_t> shape, uint64_t seed, double mean, double deviation) {
  Tensor t{std::move(shape), {}};
  size_t n = 1;
  for (int64_t d : t.shape) n *= size_t(d);
  Philox rng(seed, 31);
  for (size_t i = 0; i < n; ++i) t.data.push_back(double(static_cast<float>(mean + deviation * rng.normal())));
  return t;
}

const std::string kRoot = "base_model.model.";

// The tensors of the adapter file.
Tensors make_adapter(const Base& base, const Variant& v) {
  Tensors file;
  uint64_t seed = 7;
  const bool ia3 = v.config.at("peft_type") == "IA3";
  std::vector<std::string> modules = base.modules();
  if (v.head) modules.push_back("lm_head");
  for (const std::string& module : modules) {
    if (!v.adapted(module)) continue;
    const Tensor& w = base.tensors().at(module + ".weight");
    const int64_t out = w.shape[base.conv1d() ? 1 : 0], in = w.shape[base.conv1d() ? 0 : 1];
    if (ia3) {
      bool input = false;
      for (const auto& end : v.config.at("feedforward_modules")) input = input || ends(module, end.get<std::string>());
      file[kRoot + module + ".ia3_l"] = random_tensor(input ? std::vector<int64_t>{1, in} : std::vector<int64_t>{out, 1}, ++seed, 1, 0.2);
      continue;
    }
    const int64_t rank = v.scaling(module).rank;
    file[kRoot + module + ".lora_A.weight"] = random_tensor({rank, in}, ++seed, 0, 0.1);
    file[kRoot + module + ".lora_B.weight"] = random_tensor({out, rank}, ++seed, 0, 0.1);
    if (v.dora) file[kRoot + module + ".lora_magnitude_vector"] = random_tensor({out}, ++seed, 1.5, 0.2);
  }
  if (v.embedding) {
    for (const auto& [name, tensor] : base.tensors())
      if (ends(name, "embed_tokens.weight")) {
        const std::string key = kRoot + name.substr(0, name.size() - 7);
        file[key + ".lora_embedding_A"] = random_tensor({4, tensor.shape[0]}, ++seed, 0, 0.1);
        file[key + ".lora_embedding_B"] = random_tensor({tensor.shape[1], 4}, ++seed, 0, 0.1);
      }
  }
  for (const auto& [name, tensor] : base.tensors()) {
    if (!v.whole(name)) continue;
    const std::string module = name.substr(0, name.rfind('.'));
    const bool targeted = v.base_layer && file.count(kRoot + module + ".lora_A.weight");
    Tensor& t = file[kRoot + (targeted ? module + ".base_layer" + name.substr(module.size()) : name)] = tensor;
    Philox rng(++seed, 5);
    for (double& x : t.data) x = double(static_cast<float>(x + 0.05 * rng.normal()));
  }
  return file;
}

// |W + s B A| by rows, per module.
using Norms = std::map<std::string, std::vector<double>>;

// The base's tensors as the adapter leaves them. norms: filled when empty, else taken as they are.
Tensors adapted_tensors(const Base& base, const Variant& v, const Tensors& file, Norms* norms) {
  Tensors all = base.tensors();
  const bool conv1d = base.conv1d(), fresh = norms->empty();
  for (const auto& [key, value] : file) {
    std::string name = key.substr(kRoot.size());
    if (const size_t at = name.find(".base_layer"); at != std::string::npos) name.erase(at, std::strlen(".base_layer"));
    if (all.count(name)) {
      all[name] = value;
      continue;
    }
    if (ends(name, ".lora_embedding_A")) {
      const std::string module = name.substr(0, name.size() - std::strlen(".lora_embedding_A"));
      const Tensor& b = file.at(kRoot + module + ".lora_embedding_B");
      Tensor& w = all.at(module + ".weight");
      for (int64_t t = 0; t < w.shape[0]; ++t)
        for (int64_t c = 0; c < w.shape[1]; ++c)
          for (int64_t k = 0; k < 4; ++k)
            w.data[size_t(t * w.shape[1] + c)] += 2.0 * b.data[size_t(c * 4 + k)] * value.data[size_t(k * w.shape[0] + t)];
    } else if (ends(name, ".ia3_l")) {
      const std::string module = name.substr(0, name.size() - 6);
      Tensor& w = all.at(module + ".weight");
      const int64_t out = w.shape[conv1d ? 1 : 0], in = w.shape[conv1d ? 0 : 1];
      const bool input = value.shape[0] == 1;
      for (int64_t o = 0; o < out; ++o)
        for (int64_t i = 0; i < in; ++i) element(w, conv1d, o, i) *= value.data[size_t(input ? i : o)];
      if (!input && all.count(module + ".bias"))
        for (int64_t o = 0; o < out; ++o) all[module + ".bias"].data[size_t(o)] *= value.data[size_t(o)];
    } else if (ends(name, ".lora_A.weight")) {
      const std::string module = name.substr(0, name.size() - std::strlen(".lora_A.weight"));
      const Tensor& b = file.at(kRoot + module + ".lora_B.weight");
      Tensor& w = all.at(module + ".weight");
      const int64_t out = w.shape[conv1d ? 1 : 0], in = w.shape[conv1d ? 0 : 1], rank = value.shape[0];
      const double scale = v.scaling(module).scale;
      for (int64_t o = 0; o < out; ++o)
        for (int64_t i = 0; i < in; ++i) {
          double sum = 0;
          for (int64_t k = 0; k < rank; ++k) sum += b.data[size_t(o * rank + k)] * value.data[size_t(k * in + i)];
          element(w, conv1d, o, i) += scale * sum;
        }
      if (!v.dora) continue;
      const Tensor& m = file.at(kRoot + module + ".lora_magnitude_vector");
      std::vector<double>& norm = (*norms)[module];
      if (fresh)
        for (int64_t o = 0; o < out; ++o) {
          double sum = 0;
          for (int64_t i = 0; i < in; ++i) sum += element(w, conv1d, o, i) * element(w, conv1d, o, i);
          norm.push_back(std::sqrt(sum));
        }
      for (int64_t o = 0; o < out; ++o)
        for (int64_t i = 0; i < in; ++i) element(w, conv1d, o, i) *= m.data[size_t(o)] / norm[size_t(o)];
    }
  }
  return all;
}

void write_adapter(const std::string& dir, const Variant& v, const Tensors& file) {
  write_json(dir + "/adapter_config.json", v.config);
  reference::write_safetensors(dir + "/adapter_model.safetensors", file);
}

nlohmann::json lora_config(const nlohmann::json& targets, const nlohmann::json& more = nlohmann::json::object()) {
  nlohmann::json c = {{"peft_type", "LORA"}, {"task_type", "CAUSAL_LM"}, {"r", 4}, {"lora_alpha", 8}, {"target_modules", targets}};
  c.update(more);
  return c;
}

void check(const std::string& dir, const Variant& v, bool gradients = true) {
  const std::string label = base_name(dir) + " " + v.name;
  const Base base(dir);
  const Tensors file = make_adapter(base, v);
  ASSERT_FALSE(file.empty()) << label;
  const ScratchDir scratch;
  write_adapter(scratch.path(), v, file);
  const std::vector<std::vector<int32_t>> texts = {text(5, 9, base.model().vocab()), text(6, 6, base.model().vocab())};
  Norms norms;
  const Tensors effective = adapted_tensors(base, v, file, &norms);

  Engine e;
  Model model = load_model(dir, e.kernels);
  Adapter adapter(model, e.kernels, scratch.path());
  if (gradients) adapter.enable_gradients();
  Transformer transformer(model, 9);  // the longest text: rotary scalings may follow it
  Rows rows;
  std::vector<int32_t> labels;
  for (const auto& t : texts) {
    rows.add(t);
    labels.insert(labels.end(), t.begin() + 1, t.end());
    labels.push_back(-1);
  }
  Batch batch = rows.batch();
  const AdapterSegment segment{0, batch.n, &adapter};
  batch.segments = &segment;
  batch.n_segments = 1;
  {
    const ArenaScope scope(e.ctx->saved);
    const Var y = transformer.logits(*e.ctx, transformer.forward(*e.ctx, batch));
    std::vector<double> want;
    for (const auto& t : texts) {
      const std::vector<double> one = base.model().logits(effective, t);
      want.insert(want.end(), one.begin(), one.end());
    }
    ASSERT_EQ(size_t(y.t.numel()), want.size()) << label;
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::fabs(double(y.t.f32()[i]) - want[i]));
    EXPECT_LE(worst, 1e-4) << label << ": logits";
  }
  if (!adapter.unties()) {
    std::set<std::string> changed;
    adapter.merged(model, e.kernels, [&](const ExportedTensor& t) {
      changed.insert(t.name);
      ASSERT_TRUE(effective.count(t.name)) << label << ": " << t.name;
      double worst = 0;
      for (size_t i = 0; i < t.data.size(); ++i) worst = std::max(worst, std::fabs(double(t.data[i]) - effective.at(t.name).data[i]));
      EXPECT_LE(worst, 1e-5) << label << ": merged " << t.name;
    });
    for (const auto& [name, tensor] : effective)
      EXPECT_EQ(changed.count(name) == 1, tensor.data != base.tensors().at(name).data) << label << ": " << name;
  }
  if (!gradients) return;
  Tape tape;
  e.ctx->tape = &tape;
  const Var hidden = transformer.forward(*e.ctx, batch);
  const double loss = transformer.loss(*e.ctx, hidden, labels.data(), double(batch.n - batch.n_seqs));
  backward(*e.ctx);
  e.ctx->tape = nullptr;
  EXPECT_NEAR(loss, base.model().loss(effective, texts), 1e-5) << label;
  size_t compared = 0;
  adapter.export_tensors(ExportWhat::gradients, [&](const ExportedTensor& t) {
    ++compared;
    ASSERT_TRUE(file.count(t.name)) << label << ": " << t.name;
    Tensors moved = file;
    Tensor& x = moved.at(t.name);
    Philox rng(compared, 77);
    std::vector<double> direction(x.data.size());
    double got = 0, norm = 0;
    for (size_t i = 0; i < direction.size(); ++i) {
      direction[i] = rng.normal();
      got += double(t.data[i]) * direction[i];
      norm += double(t.data[i]) * double(t.data[i]);
    }
    constexpr double kStep = 1e-6;  // small, so that no relu changes sides
    const auto at = [&](double steps) {
      for (size_t i = 0; i < direction.size(); ++i) x.data[i] = file.at(t.name).data[i] + steps * kStep * direction[i];
      return base.model().loss(adapted_tensors(base, v, moved, &norms), texts);
    };
    const double want = (at(1) - at(-1)) / (2 * kStep);
    EXPECT_NEAR(got, want, 3e-4 * std::sqrt(norm) + 1e-6) << label << ": gradient of " << t.name;
    EXPECT_GT(norm, 0) << label << ": " << t.name;
  });
  EXPECT_EQ(compared, file.size()) << label;
}

// Every linear of a family, fused ones included.
TEST(AdapterReference, EveryLinearOfEveryFamily) {
  for (const char* name : {"llama_gqa_untied", "gpt2", "gpt_neox", "opt_prenorm", "qwen2", "mistral_sw8"}) {
    Variant lora{"lora", lora_config("all-linear")};
    check(oracle(name), lora);
    Variant dora{"dora", lora_config("all-linear", {{"use_dora", true}, {"use_rslora", true}})};
    dora.dora = true;
    dora.scaling = [](const std::string&) { return Scaling{4, 4.0}; };
    check(oracle(name), dora);
    const std::map<std::string, std::string> down = {{"gpt2", "mlp.c_proj"}, {"gpt_neox", "dense_4h_to_h"}, {"opt_prenorm", "fc2"}};
    const std::string end = down.count(name) ? down.at(name) : "down_proj";
    check(oracle(name), {"ia3", {{"peft_type", "IA3"}, {"target_modules", "all-linear"}, {"feedforward_modules", nlohmann::json::array({end})}}});
  }
}

TEST(AdapterReference, EveryLinearOfTheStoredCases) {
  int families = 0;
  for (const std::string& dir : case_dirs(shared("oracle/hf"))) {
    if (!std::filesystem::exists(dir + "/model.safetensors")) continue;
    const nlohmann::json config = read_json(dir + "/config.json");
    if (config.at("model_type") == "bert") continue;
    Variant dora{"dora", lora_config("all-linear", {{"use_dora", true}})};
    dora.dora = true;
    check(dir, dora);
    ++families;
  }
  if (families == 0) GTEST_SKIP() << "not here: " << shared("oracle/hf");
  EXPECT_GE(families, 12);
}

// The configuration of a small family with everything said that has a default, where the two sides may differ; windows in
// single layers are not the reference's.
nlohmann::json spelled_out(const SmallFamily& f) {
  nlohmann::json config = nlohmann::json::parse(f.config);
  for (const char* key : {"rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"})
    if (!config.contains(key)) config[key] = 1e-5;
  if (config.contains("layer_types")) {
    config.erase("layer_types");
    config["use_sliding_window"] = false;
  }
  return config;
}

// A random checkpoint of the family in `dir`.
void write_small(const std::string& dir, const nlohmann::json& config) {
  write_json(dir + "/config.json", config);
  reference::write_safetensors(dir + "/model.safetensors", reference::Model(config).random(11));
}

TEST(AdapterReference, EverySmallFamily) {
  for (const SmallFamily& f : small_families()) {
    const nlohmann::json config = spelled_out(f);
    const ScratchDir dir;
    write_small(dir.path(), config);
    Variant dora{std::string("dora over ") + f.name,
                 lora_config("all-linear", {{"use_dora", true}, {"exclude_modules", nlohmann::json::array({"project_in", "project_out"})}})};
    dora.dora = true;
    dora.adapted = [](const std::string& m) { return !has(m, "project_"); };
    check(dir.path(), dora);
  }
}

// Prompt tuning as words of a larger vocabulary: the reference sees the virtual tokens as rows of its embedding.
TEST(AdapterReference, PromptsOfEverySmallFamily) {
  constexpr int64_t kVirtual = 3;
  for (const SmallFamily& f : small_families()) {
    const nlohmann::json config = spelled_out(f);
    const ScratchDir dir;
    write_small(dir.path(), config);
    Engine e;
    Model model = load_model(dir.path(), e.kernels);
    AdapterOptions o;
    o.kind = AdapterKind::prompt;
    o.n_virtual = kVirtual;
    Adapter adapter(model, e.kernels, o);
    Weight* prompt = adapter.prompt();
    auto* rows_of = static_cast<float*>(const_cast<void*>(prompt->data));
    Philox rng(3, 3);
    for (int64_t i = 0; i < prompt->numel(); ++i) rows_of[i] += static_cast<float>(0.1 * rng.normal());
    const int64_t vocab = model.config.vocab_size;
    nlohmann::json larger = config;
    larger["vocab_size"] = vocab + kVirtual;
    Tensors tensors = reference::read_safetensors(dir / "model.safetensors");
    // Gemma 3's embedding scales its own rows, so virtual tokens are taken as they are.
    const double scale = config.at("model_type") == "gemma3_text" ? std::sqrt(config.at("hidden_size").get<double>()) : 1.0;
    for (auto& [name, t] : tensors) {
      if (t.shape[0] != vocab) continue;
      const bool embedding = is_embedding(name) && !has(name, "lm_head") && !has(name, "embed_out") && t.shape.size() == 2;
      t.shape[0] += kVirtual;
      for (int64_t i = 0; i < kVirtual * (t.shape.size() == 2 ? t.shape[1] : 1); ++i) t.data.push_back(embedding ? double(rows_of[i]) / scale : 0.0);
    }
    const std::vector<int32_t> ids = text(5, 6, vocab);
    std::vector<int32_t> words, rows;
    for (int64_t i = 0; i < kVirtual; ++i) {
      words.push_back(static_cast<int32_t>(vocab + i));
      rows.push_back(kVirtualToken);
    }
    words.insert(words.end(), ids.begin(), ids.end());
    rows.insert(rows.end(), ids.begin(), ids.end());
    const std::vector<double> want = reference::Model(larger).logits(tensors, words);
    Transformer transformer(model, 9);
    const int32_t cu[] = {0, static_cast<int32_t>(rows.size())};
    Batch batch;
    batch.ids = rows.data();
    batch.n = static_cast<int64_t>(rows.size());
    batch.cu_seqlens = cu;
    batch.n_seqs = 1;
    const AdapterSegment segment{0, batch.n, &adapter};
    batch.segments = &segment;
    batch.n_segments = 1;
    const Var y = transformer.logits(*e.ctx, transformer.forward(*e.ctx, batch));
    double worst = 0;
    for (int64_t r = 0; r < batch.n; ++r)
      for (int64_t c = 0; c < vocab; ++c)
        worst = std::max(worst, std::fabs(double(y.t.f32()[r * vocab + c]) - want[size_t(r * (vocab + kVirtual) + c)]));
    EXPECT_LE(worst, 1e-4) << f.name;
  }
}

TEST(AdapterReference, PatternsAndSubsets) {
  const auto layer = [](int n) { return "layers." + std::to_string(n) + "."; };
  Variant ranks{"rank and alpha patterns",
                lora_config(nlohmann::json::array({"q_proj", "v_proj", "down_proj"}), {{"rank_pattern", {{"q_proj", 2}, {"layers.1.mlp.down_proj", 6}}},
                                                               {"alpha_pattern", {{"v_proj", 3.5}, {"^model.*layers.1.mlp.down_proj", 5}, {"layers.1.mlp.down_proj", 9}}}})};
  ranks.adapted = [](const std::string& m) { return has(m, "q_proj") || has(m, "v_proj") || has(m, "down_proj"); };
  ranks.scaling = [&](const std::string& m) {
    if (has(m, "q_proj")) return Scaling{2, 4.0};
    if (has(m, "v_proj")) return Scaling{4, 3.5 / 4};
    // PEFT 0.12 looks for the first pattern of both tables: that of the ranks.
    return has(m, layer(1)) ? Scaling{6, 9.0 / 6} : Scaling{4, 2.0};
  };
  check(oracle("llama_gqa_untied"), ranks);
  // A field that came with 0.14: each table by itself.
  Variant apart = ranks;
  apart.name = "patterns of newer files";
  apart.config["exclude_modules"] = nullptr;
  apart.scaling = [&](const std::string& m) {
    if (has(m, "q_proj")) return Scaling{2, 4.0};
    if (has(m, "v_proj")) return Scaling{4, 3.5 / 4};
    return has(m, layer(1)) ? Scaling{6, 5.0 / 6} : Scaling{4, 2.0};
  };
  check(oracle("llama_gqa_untied"), apart);
  // Alternatives: older versions read ".*\\.q_proj" or "k_proj$", newer ones both behind a dot.
  for (const bool old : {true, false}) {
    Variant either{old ? "alternatives, old" : "alternatives, new", lora_config(nlohmann::json::array({"q_proj", "k_proj"}), {{"rank_pattern", {{"q_proj|k_proj", 2}}}})};
    if (!old) either.config["lora_bias"] = false;
    either.adapted = [](const std::string& m) { return has(m, "q_proj") || has(m, "k_proj"); };
    either.scaling = [old](const std::string& m) { return has(m, "q_proj") || !old ? Scaling{2, 4.0} : Scaling{4, 2.0}; };
    check(oracle("llama_gqa_untied"), either);
  }

  Variant usual{"target_modules null", lora_config(nullptr)};
  usual.adapted = [](const std::string& m) { return has(m, "q_proj") || has(m, "v_proj"); };
  check(oracle("llama_gqa_untied"), usual);
  usual.adapted = [](const std::string& m) { return has(m, "c_attn"); };
  check(oracle("gpt2"), usual);
  Variant one{"layers_to_transform", lora_config(nlohmann::json::array({"q_proj", "k_proj"}), {{"layers_to_transform", 1}})};
  one.adapted = [&](const std::string& m) { return (has(m, "q_proj") || has(m, "k_proj")) && has(m, layer(1)); };
  check(oracle("llama_gqa_untied"), one);
  Variant pattern{"layers_pattern", lora_config(nlohmann::json::array({"c_attn"}), {{"layers_to_transform", nlohmann::json::array({0})}, {"layers_pattern", "h"}})};
  pattern.adapted = [](const std::string& m) { return has(m, "h.0.attn.c_attn"); };
  check(oracle("gpt2"), pattern);
  // The number of a layer or, as PEFT before 0.20 reads it, of an expert.
  for (const SmallFamily& f : small_families()) {
    if (std::string(f.name) != "mixtral") continue;
    const ScratchDir dir;
    write_small(dir.path(), spelled_out(f));
    for (const char* version : {"0.19.1", "0.20.0", "1.0"}) {
      Variant numbered{std::string("layers of experts, ") + version,
                       lora_config(nlohmann::json::array({"w1"}), {{"layers_to_transform", nlohmann::json::array({1})}, {"peft_version", version}})};
      const std::string part = std::string(version) == "0.19.1" ? ".experts.1.w1" : ".layers.1.";
      numbered.adapted = [part](const std::string& m) { return ends(m, "w1") && has(m, part); };
      check(dir.path(), numbered, false);
    }
  }
  Variant regex{"a regular expression", lora_config("model\\.layers\\.[1-9]\\..*(q|up)_proj")};
  regex.adapted = [&](const std::string& m) { return has(m, layer(1)) && (has(m, "q_proj") || has(m, "up_proj")); };
  check(oracle("llama_gqa_untied"), regex);
  Variant less{"exclude_modules", lora_config("all-linear", {{"exclude_modules", nlohmann::json::array({"o_proj", "layers.0.mlp.up_proj"})}, {"use_dora", true}})};
  less.adapted = [&](const std::string& m) { return !has(m, "o_proj") && !has(m, "layers.0.mlp.up_proj"); };
  less.dora = true;
  check(oracle("llama_gqa_untied"), less);
  Variant c_proj{"two modules of one name", lora_config(nlohmann::json::array({"c_proj"}), {{"fan_in_fan_out", true}})};
  c_proj.adapted = [](const std::string& m) { return ends(m, "c_proj"); };
  check(oracle("gpt2"), c_proj);
}

TEST(AdapterReference, WholeModulesAndBiases) {
  Variant saved{"modules_to_save", lora_config(nlohmann::json::array({"q_proj"}), {{"modules_to_save", nlohmann::json::array({"lm_head", "embed_tokens", "input_layernorm"})}})};
  saved.adapted = [](const std::string& m) { return has(m, "q_proj"); };
  saved.whole = [](const std::string& t) { return has(t, "lm_head") || has(t, "embed_tokens") || has(t, "input_layernorm"); };
  check(oracle("llama_gqa_untied"), saved);
  // A module that is stored whole gets no adapter, and what lies in it neither.
  Variant both{"targets among modules_to_save", lora_config("all-linear", {{"modules_to_save", nlohmann::json::array({"layers.1.mlp", "o_proj"})}})};
  both.adapted = [](const std::string& m) { return !has(m, "o_proj") && !has(m, "layers.1.mlp"); };
  both.whole = [](const std::string& t) { return has(t, "o_proj") || has(t, "layers.1.mlp."); };
  check(oracle("llama_gqa_untied"), both);
  Variant block{"a whole block", lora_config(nlohmann::json::array({"c_attn"}), {{"modules_to_save", nlohmann::json::array({"h.1.mlp"})}})};
  block.adapted = [](const std::string& m) { return has(m, "c_attn"); };
  block.whole = [](const std::string& t) { return has(t, "h.1.mlp."); };
  check(oracle("gpt2"), block);
  for (const char* name : {"gpt2", "gpt_neox", "opt_prenorm", "qwen2"})
    for (bool dora : {false, true}) {
      Variant bias{dora ? "dora, bias all" : "bias all", lora_config("all-linear", {{"bias", "all"}, {"use_dora", dora}})};
      bias.whole = [](const std::string& t) { return ends(t, ".bias"); };
      bias.base_layer = true;
      bias.dora = dora;
      check(oracle(name), bias, dora);
    }
  Variant embedding{"an embedding", lora_config(nlohmann::json::array({"embed_tokens", "v_proj"}))};
  embedding.adapted = [](const std::string& m) { return has(m, "v_proj"); };
  embedding.embedding = true;
  check(oracle("llama_gqa_untied"), embedding);
  for (bool dora : {false, true}) {
    Variant head{"the output matrix", lora_config(nlohmann::json::array({"lm_head", "v_proj"}), {{"use_dora", dora}})};
    head.adapted = [](const std::string& m) { return has(m, "v_proj") || m == "lm_head"; };
    head.head = true;
    head.dora = dora;
    check(oracle("llama_gqa_untied"), head, false);
  }
}

}  // namespace
}  // namespace thimble::models_test
