// Folding an adapter into the weights of its base.
#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "kernels/kernel_table.h"
#include "models/adapter.h"
#include "models/adapter_names.h"
#include "tensor/error.h"

namespace thimble {
namespace {

// The matrix whose bias this role is; count: it is no bias of a linear.
Role matrix_of_bias(Role role) {
  switch (role) {
    case Role::q_b: return Role::q_w;
    case Role::k_b: return Role::k_w;
    case Role::v_b: return Role::v_w;
    case Role::o_b: return Role::o_w;
    case Role::gate_b: return Role::gate_w;
    case Role::up_b: return Role::up_w;
    case Role::down_b: return Role::down_w;
    default: return Role::count;
  }
}

}  // namespace

void AdapterModule::fold(int64_t r, int64_t inputs, double* row) const {
  if (lora_a) {
    const int64_t rank = lora_a->rows;
    for (int64_t k = 0; k < rank; ++k) {
      const double factor = double(scale) * double(lora_b->f32()[r * rank + k]);
      const float* a = lora_a->f32() + k * inputs;
      for (int64_t i = 0; i < inputs; ++i) row[i] += factor * double(a[i]);
    }
  }
  if (magnitude) {
    double sum = 0;
    for (int64_t i = 0; i < inputs; ++i) sum += row[i] * row[i];
    const double factor = double(magnitude->f32()[r]) / std::sqrt(sum);
    for (int64_t i = 0; i < inputs; ++i) row[i] *= factor;
  }
  if (ia3)
    for (int64_t i = 0; i < inputs; ++i) row[i] *= double(ia3->f32()[ia3_input ? i : r]);
}

bool Adapter::unties() const {
  return model_.tied && (embedding_.lora_a || replaced_.count({Role::token_embed, 0}) || replaced_.count({Role::lm_head, 0}));
}

void Adapter::merged(const Model& model, const KernelTable& kernels, const std::function<void(const ExportedTensor&)>& fn) const {
  if (kind() == AdapterKind::prompt || kind() == AdapterKind::prefix)
    throw Error(ErrorCode::unsupported, fmt::format("a {} adapter cannot be merged: it adds tokens, not weights", adapter_kind_name(kind())),
                "use it with --adapter");
  if (unties() && !model.weights.lm_head)
    throw Error(ErrorCode::unsupported, "the adapter changes the embedding or the output matrix of a model that shares them",
                "use it with --adapter, or give the model an output matrix of its own first");
  std::vector<double> row;
  for (const TensorRule& rule : model.family->tensors) {
    if (!role_is_layer(rule.roles[0])) continue;
    for_each_place(model_, rule.roles[0], [&](int64_t layer) {
      // A bias shares the output scale of its matrix.
      const auto module_of_part = [&](Role role) -> const AdapterModule* {
        if (replaced_.count({role, layer})) return nullptr;
        const Role bias_of = matrix_of_bias(role);
        if (bias_of != Role::count) {
          const AdapterModule& m = module(layer, bias_of);
          return m.ia3 && !m.ia3_input ? &m : nullptr;
        }
        if (!is_linear(role)) return nullptr;
        const AdapterModule& m = module(layer, role);
        return m.lora_a || m.ia3 ? &m : nullptr;
      };
      bool changed = false;
      for (Role role : rule.roles) changed = changed || module_of_part(role);
      if (!changed) return;
      ExportedTensor t = export_tensor(model, kernels, rule_name(rule, layer));
      if (t.data.empty()) return;
      const bool vector = t.shape.size() == 1, transposed = layout_is_transposed(rule.layout) && !vector;
      for (size_t part = 0; part < rule.roles.size(); ++part) {
        const AdapterModule* m = module_of_part(rule.roles[part]);
        if (!m) continue;
        const RoleShape s = role_shape(model_, rule.roles[part]);
        const int64_t features = vector ? s.cols : s.rows, inputs = vector ? 1 : s.cols;
        row.resize(static_cast<size_t>(inputs));
        for (int64_t r = 0; r < features; ++r) {
          const int64_t at = source_row(model_, rule.layout, static_cast<int>(part), r);
          if (vector) {
            t.data[static_cast<size_t>(at)] *= m->ia3->f32()[r];
            continue;
          }
          const auto place = [&](int64_t i) -> float& { return t.data[static_cast<size_t>(transposed ? i * t.shape[1] + at : at * inputs + i)]; };
          for (int64_t i = 0; i < inputs; ++i) row[static_cast<size_t>(i)] = double(place(i));
          m->fold(r, inputs, row.data());
          for (int64_t i = 0; i < inputs; ++i) place(i) = static_cast<float>(row[static_cast<size_t>(i)]);
        }
      }
      fn(t);
    });
  }
  if (embedding_.lora_a)
    for (const Entry& e : entries_) {
      if (e.part != Part::lora_a || e.rule->roles[0] != Role::token_embed) continue;
      ExportedTensor t = export_tensor(model, kernels, rule_name(*e.rule, 0));
      if (replaced_.count({Role::token_embed, 0})) std::memcpy(t.data.data(), own_->token_embed.data, t.data.size() * sizeof(float));
      const int64_t rank = embedding_.lora_a->cols, cols = model_.embed_dim;
      for (int64_t v = 0; v < model_.vocab_size; ++v)
        for (int64_t c = 0; c < cols; ++c) {
          double sum = 0;
          for (int64_t k = 0; k < rank; ++k) sum += double(embedding_.lora_a->f32()[v * rank + k]) * double(embedding_.lora_b->f32()[c * rank + k]);
          float& w = t.data[static_cast<size_t>(v * cols + c)];
          w = static_cast<float>(double(w) + double(embedding_.scale) * sum);
        }
      fn(t);
    }
  if (head_.lora_a)
    for (const TensorRule& rule : model.family->tensors)
      if (rule.roles[0] == Role::lm_head) {
        const Weight& w = own_->lm_head;
        fn({rule_name(rule, 0), {w.rows, w.cols}, std::vector<float>(w.f32(), w.f32() + w.numel())});
      }
  for (const Entry& e : entries_) {
    if (e.part != Part::whole || (e.rule->roles[0] == Role::lm_head && head_.lora_a)) continue;
    // The embedding stored beside an adapter of it is what the adapter was added to.
    if (e.rule->roles[0] == Role::token_embed && embedding_.lora_a) continue;
    ExportedTensor t{rule_name(*e.rule, e.layer), e.shape, {}};
    int64_t numel = 1;
    for (int64_t d : e.shape) numel *= d;
    t.data.resize(static_cast<size_t>(numel));
    for (size_t part = 0; part < e.parts.size(); ++part)
      copy(e, part, t.data.data(), static_cast<float*>(const_cast<void*>(e.parts[part]->data)), true);
    fn(t);
  }
}

void untie(Model& model, const KernelTable& kernels) {
  if (!model.config.tied) return;
  bool has_head = false;
  for (const TensorRule& rule : model.family->tensors) has_head = has_head || rule.roles[0] == Role::lm_head;
  if (!has_head)
    throw Error(ErrorCode::unsupported, fmt::format("{}: the {} family has no output matrix beside the embedding", model.path, model.config.family),
                "use the adapter with --adapter");
  const Weight& embed = model.weights.token_embed;
  Weight head;
  head.rows = embed.rows;
  head.cols = embed.cols;
  head.data = model.store.allocate(size_t(embed.numel()) * sizeof(float));
  dequantize(kernels, embed, static_cast<float*>(const_cast<void*>(head.data)));
  model.weights.lm_head = head;
  model.config.tied = false;
}

}  // namespace thimble
