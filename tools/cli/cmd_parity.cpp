// thimble parity: runs a model on stored inputs and compares every stored number with what the engine computes: logits,
// loss, each gradient, greedy continuation through the KV cache and without it, dequantized weights. A stored key that is
// not compared is a failure, so that nothing passes unseen.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <set>

#include "models/adapter.h"
#include "models/generator.h"
#include "models/gguf_model.h"
#include "models/io/safetensors.h"
#include "models/sampler.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tools/cli/cli.h"
#include "tools/cli/parity_encoder.h"
#include "train/optimizer.h"

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
    const bool peft = file_exists(o_.dir + "/adapter_config.json");
    LoadOptions load;
    load.trainable = (wants_grads_ && !peft) || merges();
    load.budget = &session_.budget();
    model_ = load_model(peft ? base_of_adapter() : o_.dir, session_.kernels(), load);
    for (const std::string& w : model_.warnings) warn(w);
    if (peft) adapter_ = std::make_unique<Adapter>(model_, session_.kernels(), o_.dir, &session_.budget());
    if (adapter_)
      for (const std::string& w : adapter_->warnings()) warn(w);
    if (wants_grads_) {
      if (adapter_)
        adapter_->enable_gradients();
      else
        enable_gradients(model_);
    }
    make_rows();
    ctx_ = session_.make_context();
    // Greedy continuation goes beyond the stored rows.
    int64_t tokens = length_;
    if (expected_.find("greedy_ids")) tokens = std::max(tokens, kPrompt + expected_.find("greedy_ids")->elements());
    if (adapter_) tokens += adapter_->n_virtual();
    max_tokens_ = std::min(tokens, std::max<int64_t>(model_.config.max_positions, length_));
    follow_length(length_ + (adapter_ ? adapter_->n_virtual() : 0));
    if (is_encoder_case(expected_)) {
      run_encoder();
      compare_dequantized();
      return report();
    }
    if (expected_.find("logits")) compare_logits("logits");
    if (expected_.find("loss") || wants_grads_) compare_loss_and_gradients();
    if (expected_.find("greedy_ids")) compare_greedy();
    compare_dequantized();
    if (merges()) compare_merged();
    return report();
  }

 private:
  static constexpr double kAtolMerged = 1e-5;  // weights have a standard deviation of 0.2
  static constexpr int64_t kPrompt = 8;  // greedy continuation starts from this many tokens of the first sequence

  // The reference sets rotary scalings that follow the length anew for every text that it computes as a whole.
  void follow_length(int64_t tokens) {
    if (transformer_ && !rope_changes(model_.config, tokens, rope_tokens_)) return;
    transformer_ = std::make_unique<Transformer>(model_, max_tokens_, tokens);
    rope_tokens_ = tokens;
  }

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
    used_.insert("input_ids");
  }

  bool merges() const {
    for (const TensorInfo& t : expected_.tensors())
      if (t.name.rfind("merged", 0) == 0) return true;
    return false;
  }

  // --base, or base_model_name_or_path relative to the case.
  std::string base_of_adapter() const {
    if (!o_.base.empty()) return o_.base;
    const std::string path = o_.dir + "/adapter_config.json";
    const nlohmann::json json = parse_json_file(path);
    return join_path(o_.dir, JsonObject(json, path).require_string("base_model_name_or_path"));
  }

  // The rows of the batch: the stored ids, behind the virtual tokens of a prompt adapter. A row's label is the next
  // stored id of its sequence.
  void make_rows() {
    const int64_t virtuals = adapter_ && adapter_->kind() == AdapterKind::prompt ? adapter_->n_virtual() : 0;
    cu_seqlens_.push_back(0);
    for (int64_t s = 0; s < n_seqs_; ++s) {
      for (int64_t t = 0; t < virtuals; ++t) {
        rows_.push_back(kVirtualToken);
        labels_.push_back(t + 1 == virtuals ? ids_[size_t(s * length_)] : -1);
      }
      for (int64_t t = 0; t < length_; ++t) {
        rows_.push_back(ids_[size_t(s * length_ + t)]);
        labels_.push_back(t + 1 < length_ ? ids_[size_t(s * length_ + t + 1)] : -1);
      }
      cu_seqlens_.push_back(static_cast<int32_t>(rows_.size()));
    }
    segment_ = {0, static_cast<int64_t>(rows_.size()), adapter_.get()};
    for (int32_t id : ids_)
      if (id >= model_.config.vocab_size)
        throw Error(ErrorCode::input, fmt::format("{}: tensor input_ids holds {}: the vocabulary has {} entries", expected_.path(), id,
                                                  model_.config.vocab_size),
                    "the stored numbers belong to another model");
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

  Batch batch() const { return {rows_.data(), static_cast<int64_t>(rows_.size()), cu_seqlens_.data(), n_seqs_, nullptr, &segment_, adapter_ ? 1 : 0}; }

  void compare_logits(const std::string& key) {
    const ArenaScope scope(ctx_->saved);
    const Batch b = batch();
    const Var logits = transformer_->logits(*ctx_, transformer_->forward(*ctx_, b));
    const std::vector<float> want = stored(key, logits.t.numel());
    const float* got = logits.t.f32();
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double d = std::fabs(double(got[i]) - double(want[i]));
      if (!(d <= worst)) worst = d;
    }
    remember(key, got, want.size() * sizeof(float));
    check(key, "max_abs", worst, o_.atol_logits);
  }

  void run_encoder() {
    EncoderChecks to;
    to.stored = [this](const std::string& key, int64_t elements) { return stored(key, elements); };
    to.check = [this](const std::string& name, const char* metric, double value, double limit) { check(name, metric, value, limit); };
    to.remember = [this](const std::string& name, const void* data, size_t bytes) { remember(name, data, bytes); };
    to.used = [this](const std::string& key) { used_.insert(key); };
    to.gradients = [this] { compare_exported_gradients(); };
    to.atol_hidden = o_.atol_logits;
    to.atol_loss = o_.atol_loss;
    compare_encoder(*transformer_, *ctx_, o_.dir, expected_, ids_, n_seqs_, length_, wants_grads_, to);
  }

  void compare_loss_and_gradients() {
    double count = 0;
    for (int32_t label : labels_) count += label >= 0;
    const ArenaScope scope(ctx_->saved);
    Tape tape;
    if (wants_grads_) ctx_->tape = &tape;
    const Batch b = batch();
    const Var hidden = transformer_->forward(*ctx_, b);
    const double loss = transformer_->loss(*ctx_, hidden, labels_.data(), std::max(1.0, count));
    if (wants_grads_) backward(*ctx_);
    ctx_->tape = nullptr;
    remember("loss", &loss, sizeof loss);
    if (expected_.find("loss")) check("loss", "abs", std::fabs(loss - double(stored("loss", 1)[0])), o_.atol_loss);
    if (!wants_grads_) return;
    compare_exported_gradients();
  }

  void compare_exported_gradients() {
    const auto compare = [&](const ExportedTensor& t) {
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
    };
    if (adapter_)
      adapter_->export_tensors(ExportWhat::gradients, compare);
    else
      export_tensors(model_, session_.kernels(), ExportWhat::gradients, compare);
  }

  // Folds the adapter into the base, compares the folded weights, then the logits of the folded model.
  void compare_merged() {
    if (adapter_->unties()) untie(model_, session_.kernels());
    adapter_->merged(model_, session_.kernels(), [&](const ExportedTensor& t) {
      remember("merged." + t.name, t.data.data(), t.data.size() * sizeof(float));
      THIMBLE_CHECK(import_tensor(model_, t));
      const std::string name = file_key("merged.", t.name, "");
      if (name.empty()) return;
      const std::vector<float> want = stored(name, static_cast<int64_t>(t.data.size()));
      double worst = 0;
      for (size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::fabs(double(t.data[i]) - double(want[i])));
      check(name, "max_abs", worst, kAtolMerged);
    });
    adapter_.reset();
    if (expected_.find("merged_logits")) compare_logits("merged_logits");
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
    std::optional<Generator> generator;
    std::vector<int32_t> fed(ids_.begin(), ids_.begin() + prompt);
    const int64_t virtuals = adapter_ ? adapter_->n_virtual() : 0;
    while (static_cast<int64_t>(cached.size()) < n) {
      const int64_t tokens = virtuals + static_cast<int64_t>(fed.size());
      const bool anew = !generator || rope_changes(model_.config, tokens, rope_tokens_);  // the cache holds other angles
      if (anew) {
        follow_length(tokens);
        generator.emplace(*transformer_, *ctx_, prompt + n, adapter_.get());
      }
      const float* logits = anew ? generator->feed(fed.data(), static_cast<int64_t>(fed.size())) : generator->feed(&fed.back(), 1);
      fed.push_back(argmax(logits, vocab));
      cached.push_back(fed.back());
    }
    std::vector<int32_t> text(static_cast<size_t>(cu_seqlens_[1] - length_), kVirtualToken);
    text.insert(text.end(), ids_.begin(), ids_.begin() + prompt);
    while (static_cast<int64_t>(recomputed.size()) < n) {
      const ArenaScope scope(ctx_->saved);
      const auto count = static_cast<int32_t>(text.size());
      follow_length(count + (adapter_ && adapter_->kind() == AdapterKind::prefix ? adapter_->n_virtual() : 0));
      const int32_t cu[2] = {0, count};
      const AdapterSegment segment{0, count, adapter_.get()};
      const Batch b{text.data(), count, cu, 1, nullptr, &segment, adapter_ ? 1 : 0};
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

  // Cases of GGUF name tensors as their file does, and store the first rows in its order.
  ExportedTensor first_rows_in_gguf(const std::string& name, int64_t rows) {
    const GgufModel file(gguf_path(o_.dir));
    const GgufModel::Entry* entry = file.entry_of(name);
    if (!entry) return {};
    ExportedTensor t = export_tensor(model_, session_.kernels(), entry->name);
    const std::vector<int32_t> map = file.row_map(*entry);
    if (t.data.empty() || t.shape.size() != 2 || rows > t.shape[0]) return {};
    const auto cols = static_cast<size_t>(t.shape[1]);
    const std::vector<float> from = t.data;
    for (size_t r = 0; r < map.size(); ++r) std::copy_n(&from[r * cols], cols, &t.data[static_cast<size_t>(map[r]) * cols]);
    t.data.resize(static_cast<size_t>(rows) * cols);
    return t;
  }

  void compare_dequantized() {
    for (const TensorInfo& info : expected_.tensors()) {
      if (info.name.rfind("dequant.", 0) != 0) continue;
      ExportedTensor t = gguf_path(o_.dir).empty() ? export_tensor(model_, session_.kernels(), info.name.substr(8))
                                                   : first_rows_in_gguf(info.name.substr(8), info.shape[0]);
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
  int64_t n_seqs_ = 0, length_ = 0, max_tokens_ = 0, rope_tokens_ = 0;
  bool wants_grads_ = false;
  std::unique_ptr<Adapter> adapter_;
  AdapterSegment segment_;
  std::vector<int32_t> ids_, rows_, labels_, cu_seqlens_;
  std::set<std::string> used_;
  std::map<std::string, std::string> computed_;
  std::vector<Check> checks_;
};

// Optimizer trajectories: the stored run is repeated from the base's weights on the same batch, and parameters, losses and
// gradient norms are compared after the last step.
class Trajectory {
 public:
  explicit Trajectory(const Options& options) : o_(options), session_(options.common), file_(options.trajectory) {}

  int run() {
    if (o_.base.empty()) throw Error(ErrorCode::usage, "parity --trajectory needs --base DIR", "give the model that the trajectory starts from");
    LoadOptions load;
    load.trainable = true;
    Model model = load_model(o_.base, session_.kernels(), load);
    enable_gradients(model);
    const std::vector<double> lrs = values("lrs"), losses = values("losses"), norms = values("grad_norms");
    if (losses.size() != lrs.size() + 1 || norms.size() != lrs.size())
      throw Error(ErrorCode::input, file_.path() + ": tensors losses, grad_norms and lrs do not fit together", "expected n + 1, n and n entries");
    read_ids(model.config.vocab_size);
    auto ctx = session_.make_context();
    Transformer transformer(model, length_);
    const std::string name = o_.trajectory.substr(o_.trajectory.rfind('/') + 1);
    AdamwOptions adamw;
    adamw.weight_decay = 0.1;
    adamw.clip_norm = name.find("noclip") == std::string::npos ? 1.0 : 0.0;
    adamw.decay_vectors = name.find("nodecay_norms") == std::string::npos;
    std::vector<Parameter> parameters = model_parameters(model);
    Adamw optimizer(parameters, &session_.budget());
    std::vector<double> got_losses, got_norms;
    bounds_.assign(static_cast<size_t>(optimizer.count()), kAtolParameter);
    for (size_t step = 0; step <= lrs.size(); ++step) {
      const ArenaScope scope(ctx->saved);
      Tape tape;
      ctx->tape = &tape;
      const Batch batch{ids_.data(), static_cast<int64_t>(ids_.size()), cu_seqlens_.data(), n_seqs_};
      const Var hidden = transformer.forward(*ctx, batch);
      got_losses.push_back(transformer.loss(*ctx, hidden, labels_.data(), double(n_seqs_ * (length_ - 1))));
      if (step < lrs.size()) {
        backward(*ctx);
        got_norms.push_back(optimizer.gradient_norm(*ctx));
        optimizer.step(*ctx, adamw, lrs[step], got_norms.back());
        add_bounds(optimizer, adamw, lrs[step], got_norms.back());
      }
      ctx->tape = nullptr;
    }
    for (size_t i = 0; i < losses.size(); ++i) check(fmt::format("losses[{}]", i), "abs", std::fabs(got_losses[i] - losses[i]), 1e-4);
    for (size_t i = 0; i < norms.size(); ++i)
      check(fmt::format("grad_norms[{}]", i), "relative", std::fabs(got_norms[i] - norms[i]) / std::max(1e-12, norms[i]), o_.rtol_grad);
    // The bounds travel as gradients, so that they arrive in the layout of the file's tensors.
    std::map<std::string, std::vector<float>> bounds;
    int64_t offset = 0;
    for (const Parameter& p : parameters) {
      for (int64_t i = 0; i < p.weight->numel(); ++i) p.weight->grad[i] = static_cast<float>(bounds_[size_t(offset + i)]);
      p.weight->grad_written = true;
      offset += p.weight->numel();
    }
    export_tensors(model, session_.kernels(), ExportWhat::gradients, [&](const ExportedTensor& t) { bounds[t.name] = t.data; });
    Sha256 digest;
    export_tensors(model, session_.kernels(), ExportWhat::weights, [&](const ExportedTensor& t) {
      digest.update(t.name);
      digest.update(t.data.data(), t.data.size() * sizeof(float));
      if (!file_.find("param." + t.name)) return;
      const std::vector<double> want = values("param." + t.name);
      if (want.size() != t.data.size()) throw Error(ErrorCode::input, fmt::format("{}: tensor param.{} has the wrong size", file_.path(), t.name), "");
      // In units of the bound, which is kAtolParameter for all but the entries whose gradient is next to zero.
      double worst = 0;
      for (size_t i = 0; i < want.size(); ++i) {
        const double d = std::fabs(double(t.data[i]) - want[i]) / double(bounds[t.name][i]);
        if (!(d <= worst)) worst = d;
      }
      check("param." + t.name, "max_abs", worst * kAtolParameter, kAtolParameter);
    });
    return report(digest.hex());
  }

 private:
  static constexpr double kAtolParameter = 2e-6;
  // Two f32 implementations agree on a gradient tensor to this relative 2-norm (measured between f32 and f64).
  static constexpr double kGradientNoise = 4e-6;

  // Adam divides by the gradient's own size, so noise d in an entry moves its parameter by up to lr d / sqrt(v): nothing
  // for ordinary entries, visible for those whose gradient is next to zero. The bound of an entry grows by exactly that.
  void add_bounds(const Adamw& optimizer, const AdamwOptions& o, double lr, double norm) {
    const double clip = o.clip_norm > 0 ? std::min(1.0, o.clip_norm / (norm + 1e-6)) : 1.0;
    const double correction = 1 - std::pow(o.beta2, double(optimizer.steps()));
    int64_t offset = 0;
    for (const Parameter& p : optimizer.parameters()) {
      const int64_t n = p.weight->numel();
      double squares = 0;
      for (int64_t i = 0; i < n; ++i) squares += double(p.weight->grad[i]) * double(p.weight->grad[i]);
      const double noise = kGradientNoise * clip * std::sqrt(squares / double(n));
      for (int64_t i = 0; i < n; ++i)
        bounds_[size_t(offset + i)] += lr * std::min(2.0, noise / (std::sqrt(double(optimizer.v()[offset + i]) / correction) + o.eps));
      offset += n;
    }
  }

  std::vector<double> values(const std::string& name) {
    const TensorInfo* info = file_.find(name);
    if (!info) throw Error(ErrorCode::input, file_.path() + ": tensor " + name + " is missing", "give an optimizer trajectory");
    used_.insert(name);
    std::vector<double> out(static_cast<size_t>(info->elements()));
    file_.read_f64(*info, out.data());
    return out;
  }

  void read_ids(int64_t vocab) {
    const TensorInfo* info = file_.find("input_ids");
    if (!info || info->shape.size() != 2 || info->shape[1] < 2)
      throw Error(ErrorCode::input, file_.path() + ": tensor input_ids: expected an integer matrix [sequences, tokens]", "");
    std::vector<int64_t> wide(static_cast<size_t>(info->elements()));
    file_.read_i64(*info, wide.data());
    used_.insert("input_ids");
    n_seqs_ = info->shape[0];
    length_ = info->shape[1];
    for (size_t i = 0; i < wide.size(); ++i) {
      if (wide[i] < 0 || wide[i] >= vocab)
        throw Error(ErrorCode::input, fmt::format("{}: tensor input_ids holds {}: the vocabulary has {} entries", file_.path(), wide[i], vocab), "");
      ids_.push_back(static_cast<int32_t>(wide[i]));
      labels_.push_back((static_cast<int64_t>(i) + 1) % length_ != 0 ? static_cast<int32_t>(wide[i + 1]) : -1);
    }
    for (int64_t s = 0; s <= n_seqs_; ++s) cu_seqlens_.push_back(static_cast<int32_t>(s * length_));
  }

  void check(const std::string& name, const char* metric, double value, double limit) {
    checks_.push_back({name, metric, value, limit, value <= limit});
  }

  int report(const std::string& digest) {
    bool pass = true;
    std::string uncompared;
    nlohmann::ordered_json rows = nlohmann::ordered_json::array();
    for (const TensorInfo& t : file_.tensors())
      if (!used_.count(t.name)) uncompared += (uncompared.empty() ? "" : ", ") + t.name;
    for (const Check& c : checks_) {
      pass = pass && c.pass;
      rows.push_back({{"name", c.name}, {"metric", c.metric}, {"value", c.value}, {"limit", c.limit}, {"pass", c.pass}});
      if (!o_.common.json) write_stdout(fmt::format("{:4} {:60} {:10} {:.3g} <= {:.3g}\n", c.pass ? "ok" : "FAIL", c.name, c.metric, c.value, c.limit));
    }
    pass = pass && uncompared.empty();
    if (o_.common.json)
      print_json({{"schema", "thimble.parity/1"}, {"case", o_.trajectory}, {"pass", pass}, {"isa", tier_name(session_.kernels().tier)},
                  {"threads", session_.threads()}, {"precision", o_.common.precision}, {"checks", rows}, {"compared", used_.size()},
                  {"in_file", file_.tensors().size()}, {"digest", digest}});
    else
      write_stdout(fmt::format("{}: {} of {} keys compared, digest {}\n", pass ? "pass" : "FAIL", used_.size(), file_.tensors().size(), digest));
    if (!uncompared.empty()) throw Error(ErrorCode::input, file_.path() + ": stored keys were not compared: " + uncompared, "");
    return pass ? 0 : static_cast<int>(ErrorCode::mismatch);
  }

  const Options& o_;
  Session session_;
  SafetensorsFile file_;
  int64_t n_seqs_ = 0, length_ = 0;
  std::vector<int32_t> ids_, labels_, cu_seqlens_;
  std::vector<double> bounds_;
  std::set<std::string> used_;
  std::vector<Check> checks_;
};

int run_parity(const Options& o) {
  if (!o.trajectory.empty()) return Trajectory(o).run();
  if (o.dir.empty()) throw Error(ErrorCode::usage, "parity: DIR is missing", "for example: thimble parity tests/data/oracle/llama_gqa_untied");
  if (!is_directory(o.dir)) throw Error(ErrorCode::input, o.dir + ": no such directory", "give a directory with expected.safetensors");
  return Parity(o).run();
}

}  // namespace

void add_parity(CLI::App& app, Run* run) {
  CLI::App* command = app.add_subcommand("parity", "compare the engine with stored reference numbers");
  command->footer(
      "DIR is a model directory with expected.safetensors: input_ids, and any of logits, loss, grad.NAME, greedy_ids,\n"
      "dequant.NAME; for an encoder attention_mask, token_type_ids, last_hidden_state, mean_pooled, embeddings, pooler_output,\n"
      "probe; or a PEFT adapter directory with merged.NAME and merged_logits besides. Exit 7 when a tolerance is exceeded, 3 when a stored key is not compared.\n"
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
