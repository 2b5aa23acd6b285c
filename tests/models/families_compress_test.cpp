// Compression and adapters over every family as a small random model: what is packed is written and loads again with the same
// bits, folded scales leave the function as it was, and an adapter folded into the weights computes what it computed beside
// them.
#include "models/adapter.h"
#include "models/compress.h"
#include "models/packed.h"
#include "tensor/error.h"
#include "tests/models/small_families.h"

namespace thimble::models_test {
namespace {

std::vector<std::vector<int32_t>> calibration() {
  std::vector<std::vector<int32_t>> sequences;
  for (uint64_t i = 0; i < 8; ++i) sequences.push_back(text(3 + i, 20, 61));
  return sequences;
}

std::vector<float> logits(Model& model, Context& ctx, Adapter* adapter = nullptr) {
  Transformer transformer(model, 20);
  Rows rows;
  rows.add(text(71, 20, 61));
  rows.add(text(72, 9, 61));
  const ArenaScope scope(ctx.saved);
  Batch batch = rows.batch();
  const AdapterSegment segment{0, batch.n, adapter};
  batch.segments = &segment;
  batch.n_segments = adapter ? 1 : 0;
  const Var y = transformer.logits(ctx, transformer.forward(ctx, batch));
  return std::vector<float>(y.t.f32(), y.t.f32() + y.t.numel());
}

double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double d = 0, n = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    d += (double(a[i]) - double(b[i])) * (double(a[i]) - double(b[i]));
    n += double(a[i]) * double(a[i]);
  }
  return std::sqrt(d / n);
}

TEST(FamiliesCompress, WhatIsPackedLoadsAgainWithTheSameBits) {
  for (const SmallFamily& family : small_families())
    for (const char* name : {"rtn:int4-g32-asym", "gptq:int8-row-sym", "magnitude:0.5"}) {
      SCOPED_TRACE(std::string(family.name) + ", " + name);
      const ScratchDir in, out;
      Engine e;
      Model model = small_model(family, in);
      const std::vector<float> before = logits(model, *e.ctx);
      const CompressReport report = compress_model(model, *e.ctx, parse_compression(name), calibration());
      const std::vector<float> packed = logits(model, *e.ctx);
      EXPECT_GT(relative_distance(before, packed), 0);
      write_compressed(out.path(), model, e.kernels, nlohmann::ordered_json::parse(family.config), report,
                       nlohmann::ordered_json::object());
      Model again = load_model(out.path(), e.kernels);
      EXPECT_TRUE(same_bits(packed, logits(again, *e.ctx)));
    }
}

// With 8-bit codes what is left is their rounding, unless a scale went where it does not cancel.
TEST(FamiliesCompress, AwqFoldsItsScalesExactlyOrSaysWhyNot) {
  for (const SmallFamily& family : small_families()) {
    SCOPED_TRACE(family.name);
    const ScratchDir dir;
    Engine e;
    Model model = small_model(family, dir), plain = small_model(family, dir);
    const std::vector<float> before = logits(model, *e.ctx);
    const CompressReport report = compress_model(model, *e.ctx, parse_compression("awq:int8-g32-asym"), calibration());
    compress_model(plain, *e.ctx, parse_compression("rtn:int8-g32-asym"), {});
    EXPECT_LT(relative_distance(before, logits(model, *e.ctx)), 3 * relative_distance(before, logits(plain, *e.ctx)) + 1e-3);
    const ModelConfig& c = model.config;
    for (const TensorReport& t : report.tensors) {
      EXPECT_TRUE(t.ratio < 0 || t.fallback.empty()) << t.name;
      const bool reads_norm = t.role == Role::q_w || t.role == Role::up_w;
      if (reads_norm && (c.shared_norm || !c.pre_norm || !c.norm_affine || c.post_norm))
        EXPECT_FALSE(t.fallback.empty()) << t.name;
      if (reads_norm && c.norm_offset != 0) EXPECT_TRUE(t.fallback.empty()) << t.name << ": " << t.fallback;
      if (t.role == Role::o_w && c.qkv_clip > 0) EXPECT_FALSE(t.fallback.empty()) << t.name;
    }
  }
}

TEST(FamiliesCompress, AdaptersFoldIntoTheWeights) {
  for (const SmallFamily& family : small_families())
    for (const AdapterKind kind : {AdapterKind::lora, AdapterKind::ia3}) {
      SCOPED_TRACE(std::string(family.name) + ", " + adapter_kind_name(kind));
      const ScratchDir dir, saved;
      Engine e;
      Model model = small_model(family, dir);
      const std::vector<float> base = logits(model, *e.ctx);
      AdapterOptions o;
      o.kind = kind;
      o.rank = 3;
      o.targets = "all-linear";
      Adapter adapter(model, e.kernels, o);
      Philox rng(9, 99);
      adapter.for_each_parameter([&](const std::string&, Weight& w) {
        auto* data = static_cast<float*>(const_cast<void*>(w.data));
        for (int64_t i = 0; i < w.numel(); ++i) data[i] += static_cast<float>(0.1 * rng.normal());
      });
      const std::vector<float> beside = logits(model, *e.ctx, &adapter);
      EXPECT_GT(relative_distance(base, beside), 0.01);
      adapter.save(saved.path(), dir.path());
      Adapter again(model, e.kernels, saved.path());
      EXPECT_TRUE(same_bits(beside, logits(model, *e.ctx, &again)));
      adapter.merged(model, e.kernels, [&](const ExportedTensor& t) { EXPECT_TRUE(import_tensor(model, t)) << t.name; });
      EXPECT_LT(relative_distance(beside, logits(model, *e.ctx)), 1e-4);
    }
}

}  // namespace
}  // namespace thimble::models_test
