// thimble parity: runs a model on stored inputs and compares every stored number with what the engine computes: logits,
// loss, each gradient, greedy continuation through the KV cache and without it, dequantized weights. A stored key that is
// not compared is a failure, so that nothing passes unseen.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "models/generator.h"
#include "models/io/safetensors.h"
#include "models/sampler.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/cli/cli.h"

namespace thimble::cli {
namespace {

struct Options {
  CommonOptions common;
  std::string dir, base, trajectory;
  double atol_logits = 1e-4, atol_loss = 1e-5, rtol_grad = 1e-4, atol_grad = 1e-6;
  bool list = false;
};

struct Check {
  std::string name, metric;
  double value, limit;
  bool pass;
};

class Parity {
 public:
  explicit Parity(const Options& options) : o_(options), session_(options.common), expected_(options.dir + "/expected.safetensors") {}

  int run() {
    read_inputs();
    for (const TensorInfo& t : expected_.tensors())
      if (t.name.rfind("grad.", 0) == 0) wants_grads_ = true;
    LoadOptions load;
    load.trainable = wants_grads_;
    load.budget = &session_.budget();
    model_ = load_model(o_.dir, session_.kernels(), load);
    for (const std::string& w : model_.warnings) warn(w);
    if (wants_grads_) enable_gradients(model_);
    ctx_ = session_.make_context();
    // Greedy continuation goes beyond the stored rows.
    int64_t tokens = length_;
    if (expected_.find("greedy_ids")) tokens = std::max(tokens, kPrompt + expected_.find("greedy_ids")->elements());
    transformer_ = std::make_unique<Transformer>(model_, std::min(tokens, std::max<int64_t>(model_.config.max_positions, length_)));
    if (expected_.find("logits")) compare_logits();
    if (expected_.find("loss") || wants_grads_) compare_loss_and_gradients();
    if (expected_.find("greedy_ids")) compare_greedy();
    compare_dequantized();
    return report();
  }

 private:
  static constexpr int64_t kPrompt = 8;  // greedy continuation starts from this many tokens of the first sequence

  void read_inputs() {
    const TensorInfo* info = expected_.find("input_ids");
    if (!info || info->shape.size() != 2 || info->elements() == 0)
      throw Error(ErrorCode::input, expected_.path() + ": tensor input_ids: expected a non-empty integer matrix [sequences, tokens]",
                  "give a directory with an expected.safetensors file");
    std::vector<int64_t> wide(static_cast<size_t>(info->elements()));
    expected_.read_i64(*info, wide.data());
    n_seqs_ = info->shape[0];
    length_ = info->shape[1];
    for (int64_t id : wide) {
      if (id < 0 || id > kMaxDim)
        throw Error(ErrorCode::input, fmt::format("{}: tensor input_ids holds {}: expected a token id", expected_.path(), id), "");
      ids_.push_back(static_cast<int32_t>(id));
    }
    for (int64_t s = 0; s <= n_seqs_; ++s) cu_seqlens_.push_back(static_cast<int32_t>(s * length_));
    used_.insert("input_ids");
  }

  std::vector<float> stored(const std::string& name, int64_t elements) {
    const TensorInfo* info = expected_.find(name);
    if (info->elements() != elements)
      throw Error(ErrorCode::input, fmt::format("{}: tensor {} has {} elements, the model computes {}", expected_.path(), name,
                                                info->elements(), elements),
                  "the stored numbers belong to another model or input");
    std::vector<float> values(static_cast<size_t>(elements));
    expected_.read_f32(*info, values.data());
    used_.insert(name);
    return values;
  }

  // Everything computed goes into the digest, in the order of names.
  void remember(const std::string& name, const void* data, size_t bytes) {
    computed_[name].assign(static_cast<const char*>(data), bytes);
  }
  void check(const std::string& name, const char* metric, double value, double limit) {
    checks_.push_back({name, metric, value, limit, value <= limit});  // false for NaN
  }

  Batch batch() const { return {ids_.data(), n_seqs_ * length_, cu_seqlens_.data(), n_seqs_, nullptr}; }

  void compare_logits() {
    const ArenaScope scope(ctx_->saved);
    const Batch b = batch();
    const Var logits = transformer_->logits(*ctx_, transformer_->forward(*ctx_, b));
    const std::vector<float> want = stored("logits", logits.t.numel());
    const float* got = logits.t.f32();
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double d = std::fabs(double(got[i]) - double(want[i]));
      if (!(d <= worst)) worst = d;
    }
    remember("logits", got, want.size() * sizeof(float));
    check("logits", "max_abs", worst, o_.atol_logits);
  }

  void compare_loss_and_gradients() {
    std::vector<int32_t> labels(ids_.size(), -1);
    for (int64_t s = 0; s < n_seqs_; ++s)
      for (int64_t t = 0; t + 1 < length_; ++t) labels[size_t(s * length_ + t)] = ids_[size_t(s * length_ + t + 1)];
    for (int32_t id : ids_)
      if (id >= model_.config.vocab_size)
        throw Error(ErrorCode::input, fmt::format("{}: tensor input_ids holds {}: the vocabulary has {} entries", expected_.path(), id,
                                                  model_.config.vocab_size), "");
    const ArenaScope scope(ctx_->saved);
    Tape tape;
    if (wants_grads_) ctx_->tape = &tape;
    const Batch b = batch();
    const Var hidden = transformer_->forward(*ctx_, b);
    const double loss = transformer_->loss(*ctx_, hidden, labels.data(), double(n_seqs_ * (length_ - 1)));
    if (wants_grads_) backward(*ctx_);
    ctx_->tape = nullptr;
    remember("loss", &loss, sizeof loss);
    if (expected_.find("loss")) check("loss", "abs", std::fabs(loss - double(stored("loss", 1)[0])), o_.atol_loss);
    if (!wants_grads_) return;
    export_tensors(model_, session_.kernels(), ExportWhat::gradients, [&](const ExportedTensor& t) {
      const std::string name = file_key("grad.", t.name, "");
      remember("grad." + t.name, t.data.data(), t.data.size() * sizeof(float));
      if (name.empty()) return;
      const std::vector<float> want = stored(name, static_cast<int64_t>(t.data.size()));
      double difference = 0, norm = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        const double d = double(t.data[i]) - double(want[i]);
        difference += d * d;
        norm += double(want[i]) * double(want[i]);
      }
      check(name, "l2", std::sqrt(difference), o_.rtol_grad * std::sqrt(norm) + o_.atol_grad);
    });
  }

  // The key under which the file stores a tensor: base-model files lack the family's prefix. "" when absent.
  std::string file_key(const std::string& before, const std::string& name, const std::string& after) const {
    if (expected_.find(before + name + after)) return before + name + after;
    const std::string prefix = model_.family->optional_prefix;
    if (!prefix.empty() && name.rfind(prefix, 0) == 0 && expected_.find(before + name.substr(prefix.size()) + after))
      return before + name.substr(prefix.size()) + after;
    return {};
  }

  void compare_greedy() {
    const TensorInfo* info = expected_.find("greedy_ids");
    std::vector<int64_t> want(static_cast<size_t>(info->elements()));
    expected_.read_i64(*info, want.data());
    used_.insert("greedy_ids");
    const int64_t prompt = std::min(kPrompt, length_), n = info->elements(), vocab = model_.config.vocab_size;
    std::vector<int64_t> cached, recomputed;
    Generator generator(*transformer_, *ctx_, prompt + n);
    const float* logits = generator.feed(ids_.data(), prompt);
    while (static_cast<int64_t>(cached.size()) < n) {
      const int32_t id = argmax(logits, vocab);
      cached.push_back(id);
      if (static_cast<int64_t>(cached.size()) < n) logits = generator.feed(&id, 1);
    }
    std::vector<int32_t> text(ids_.begin(), ids_.begin() + prompt);
    while (static_cast<int64_t>(recomputed.size()) < n) {
      const ArenaScope scope(ctx_->saved);
      const auto count = static_cast<int32_t>(text.size());
      const int32_t cu[2] = {0, count};
      const Batch b{text.data(), count, cu, 1, nullptr};
      const Var hidden = transformer_->forward(*ctx_, b);
      Var last;
      last.t = Tensor::matrix(hidden.t.f32() + (count - 1) * hidden.t.cols(), 1, hidden.t.cols());
      text.push_back(argmax(transformer_->logits(*ctx_, last).t.f32(), vocab));
      recomputed.push_back(text.back());
    }
    const auto differences = [&](const std::vector<int64_t>& got) {
      double count = 0;
      for (size_t i = 0; i < want.size(); ++i) count += got[i] != want[i];
      return count;
    };
    check("greedy_ids (kv cache)", "differences", differences(cached), 0);
    check("greedy_ids (recomputed)", "differences", differences(recomputed), 0);
    remember("greedy_ids", cached.data(), cached.size() * sizeof(int64_t));
    remember("greedy_ids (recomputed)", recomputed.data(), recomputed.size() * sizeof(int64_t));
  }

  void compare_dequantized() {
    for (const TensorInfo& info : expected_.tensors()) {
      if (info.name.rfind("dequant.", 0) != 0) continue;
      ExportedTensor t = export_tensor(model_, session_.kernels(), info.name.substr(8));
      if (t.data.empty()) t = export_tensor(model_, session_.kernels(), model_.family->optional_prefix + info.name.substr(8));
      if (t.data.empty()) continue;  // stays uncompared, which is reported
      const std::vector<float> want = stored(info.name, static_cast<int64_t>(t.data.size()));
      double worst = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        const float next = std::nextafter(std::fabs(want[i]), INFINITY);
        const double ulps = std::fabs(double(t.data[i]) - double(want[i])) / (double(next) - std::fabs(double(want[i])));
        if (!(ulps <= worst)) worst = ulps;
      }
      remember(info.name, t.data.data(), t.data.size() * sizeof(float));
      check(info.name, "max_ulp", worst, 1);
    }
  }

  int report() {
    Sha256 digest;
    for (const auto& [name, bytes] : computed_) {
      digest.update(name);
      digest.update(bytes);
    }
    std::vector<std::string> uncompared;
    for (const TensorInfo& t : expected_.tensors())
      if (!used_.count(t.name)) uncompared.push_back(t.name);
    bool pass = uncompared.empty();
    for (const Check& c : checks_) pass = pass && c.pass;
    if (o_.common.json) {
      nlohmann::ordered_json rows = nlohmann::ordered_json::array(), slots = nlohmann::ordered_json::object();
      for (const Check& c : checks_)
        rows.push_back({{"name", c.name}, {"metric", c.metric}, {"value", c.value}, {"limit", c.limit}, {"pass", c.pass}});
      for (int s = 0; s < kSlotCount; ++s) slots[slot_name(static_cast<SlotId>(s))] = tier_name(session_.kernels().origin[s]);
      print_json({{"schema", "thimble.parity/1"},
                  {"case", o_.dir},
                  {"pass", pass},
                  {"isa", tier_name(session_.kernels().tier)},
                  {"threads", session_.threads()},
                  {"precision", o_.common.precision},
                  {"checks", rows},
                  {"compared", used_.size()},
                  {"in_file", expected_.tensors().size()},
                  {"uncompared", uncompared},
                  {"slots", slots},
                  {"digest", digest.hex()}});
    } else {
      std::string text;
      for (const Check& c : checks_)
        if (o_.list || !c.pass || c.name.rfind("grad.", 0) != 0)
          text += fmt::format("{:4} {:50} {:12} {:.3g} <= {:.3g}\n", c.pass ? "ok" : "FAIL", c.name, c.metric, c.value, c.limit);
      text += fmt::format("{}: {} of {} keys compared, {} checks, tier {}, {} threads, digest {}\n", pass ? "pass" : "FAIL",
                          used_.size(), expected_.tensors().size(), checks_.size(), tier_name(session_.kernels().tier),
                          session_.threads(), digest.hex());
      write_stdout(text);
    }
    if (!uncompared.empty()) {
      std::string list;
      for (size_t i = 0; i < uncompared.size() && i < 5; ++i) list += (i ? ", " : "") + uncompared[i];
      throw Error(ErrorCode::input, fmt::format("{}: {} stored key{} not compared: {}{}", expected_.path(), uncompared.size(),
                                                uncompared.size() == 1 ? " was" : "s were", list, uncompared.size() > 5 ? ", ..." : ""),
                  "the model computes nothing of that name");
    }
    return pass ? 0 : static_cast<int>(ErrorCode::mismatch);
  }

  const Options& o_;
  Session session_;
  SafetensorsFile expected_;
  Model model_;
  std::unique_ptr<Context> ctx_;
  std::unique_ptr<Transformer> transformer_;
  int64_t n_seqs_ = 0, length_ = 0;
  bool wants_grads_ = false;
  std::vector<int32_t> ids_, cu_seqlens_;
  std::set<std::string> used_;
  std::map<std::string, std::string> computed_;
  std::vector<Check> checks_;
};

int run_parity(const Options& o) {
  if (!o.trajectory.empty())
    throw Error(ErrorCode::unsupported, "--trajectory: optimizer trajectories are not supported yet", "run parity on a model directory");
  if (o.dir.empty()) throw Error(ErrorCode::usage, "parity: DIR is missing", "for example: thimble parity tests/data/llama_gqa_untied");
  if (!is_directory(o.dir)) throw Error(ErrorCode::input, o.dir + ": no such directory", "give a directory with expected.safetensors");
  if (file_exists(o.dir + "/adapter_config.json"))
    throw Error(ErrorCode::unsupported, o.dir + "/adapter_config.json: PEFT adapters are not supported yet", "");
  return Parity(o).run();
}

}  // namespace

void add_parity(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("parity", "compare the engine with stored reference numbers");
  command->footer(
      "DIR is a model directory with expected.safetensors: input_ids, and any of logits, loss, grad.NAME, greedy_ids,\n"
      "dequant.NAME. Exit 7 when a tolerance is exceeded, 3 when a stored key is not compared.\n"
      "Example: thimble parity ../shared/oracle/hf/llama_gqa_untied --isa avx2 --threads 1");
  auto o = std::make_shared<Options>();
  command->add_option("DIR", o->dir, "the case");
  command->add_option("--base", o->base, "base model of an adapter or a trajectory");
  command->add_option("--trajectory", o->trajectory, "optimizer trajectory to follow");
  command->add_option("--atol-logits", o->atol_logits, "largest difference of a logit; default 1e-4");
  command->add_option("--atol-loss", o->atol_loss, "largest difference of the loss; default 1e-5");
  command->add_option("--rtol-grad", o->rtol_grad, "gradients: |d| <= rtol |g| + atol in the 2-norm; default 1e-4");
  command->add_option("--atol-grad", o->atol_grad, "see --rtol-grad; default 1e-6");
  command->add_flag("--list", o->list, "list every check, not only the failed gradients");
  add_common_options(*command, o->common);
  command->callback([o, run] { *run = [o] { return run_parity(*o); }; });
}

}  // namespace thimble::cli
