// After warm-up a decode step and a training step allocate nothing on the heap.
#include "tests/models/heap_count.h"
#include "tests/models/small_families.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

#ifdef THIMBLE_TEST_COUNTS
class Heap : public ::testing::TestWithParam<const char*> {};
class HeapTraining : public Heap {};

using testing::allocations;

// A stored case, or a small random model of a family.
Model model_of(const std::string& name, const ScratchDir& dir, const KernelTable& kernels, const LoadOptions& options = {}) {
  for (const SmallFamily& family : small_families())
    if (name == family.name) return small_model(family, dir);
  return load_model(oracle(name), kernels, options);
}

// What escapes through this cannot be optimised away.
void* volatile g_escape;

TEST(HeapCounter, Counts) {
  EXPECT_EQ(allocations([] {}), 0);
  EXPECT_EQ(allocations([] {
              auto* v = new std::vector<int>(100);
              g_escape = v->data();
              g_escape = v;
              delete v;
            }),
            2);
  EXPECT_EQ(allocations([] {
              void* p = ::malloc(10);
              g_escape = p;
              p = ::realloc(p, 1000);
              g_escape = p;
              ::free(p);
            }),
            2);
}

TEST_P(Heap, DecodeStep) {
  for (Precision precision : {Precision::f32, Precision::int8_act})
    for (int threads : {1, 2}) {
      Engine engine(best_tier(), threads);
      engine.ctx->precision = precision;
      const ScratchDir dir;
      Model model = model_of(GetParam(), dir, engine.kernels);
      const int64_t vocab = model.config.vocab_size;
      Transformer transformer(model, 48);
      Generator generator(transformer, *engine.ctx, 48);
      SamplerOptions options;
      options.temperature = 0.8;
      options.top_k = 40;
      options.top_p = 0.95;
      options.min_p = 0.01;
      Sampler sampler(options, vocab), greedy({}, vocab);
      const std::vector<int32_t> prompt = text(1, 8, vocab);
      const float* logits = generator.feed(prompt.data(), 8);
      const auto step = [&] {
        const int32_t id = sampler.next(engine.kernels, logits);
        logits = generator.feed(&id, 1);
        greedy.next(engine.kernels, logits);
      };
      step();
      EXPECT_EQ(allocations([&] {
                  for (int i = 0; i < 20; ++i) step();
                }),
                0)
          << GetParam() << ", " << threads << " threads";
    }
}

TEST_P(HeapTraining, Step) {
  for (Recompute recompute : {Recompute::none, Recompute::cheap, Recompute::block})
    for (int threads : {1, 2}) {
      Engine engine(best_tier(), threads);
      LoadOptions trainable;
      trainable.trainable = true;
      const ScratchDir dir;
      Model model = model_of(GetParam(), dir, engine.kernels, trainable);
      enable_gradients(model);
      Transformer transformer(model, 32);
      Rows rows;
      rows.add(text(1, 32, model.config.vocab_size));
      rows.add(text(2, 13, model.config.vocab_size));
      const std::vector<int32_t> labels = text(3, 45, model.config.vocab_size);
      Tape tape;
      Context& ctx = *engine.ctx;
      ctx.tape = &tape;
      double loss = 0;
      const auto step = [&] {
        for_each_weight(model.weights, [](Role, int64_t, Weight& w) { w.grad_written = false; });
        const ArenaScope scope(ctx.saved);
        const Batch batch = rows.batch();
        loss = transformer.loss(ctx, transformer.forward(ctx, batch, recompute), labels.data(), 45);
        backward(ctx);
      };
      step();
      const double first = loss;
      EXPECT_EQ(allocations([&] {
                  for (int i = 0; i < 5; ++i) step();
                }),
                0)
          << GetParam() << ", " << threads << " threads";
      EXPECT_EQ(loss, first);
      ctx.tape = nullptr;
    }
}

INSTANTIATE_TEST_SUITE_P(Cases, Heap, ::testing::Values("llama_gqa_untied", "gpt_neox", "gpt2", "opt_prenorm", "gptq4_g32_asym", "mixtral"),
                         [](const auto& name) { return std::string(name.param); });
INSTANTIATE_TEST_SUITE_P(Cases, HeapTraining, ::testing::Values("llama_gqa_untied", "gpt_neox", "gpt2", "opt_prenorm", "mixtral"),
                         [](const auto& name) { return std::string(name.param); });
#else
TEST(Heap, Counted) { GTEST_SKIP() << "allocations can be counted with glibc and without a sanitizer only"; }
#endif

}  // namespace
}  // namespace thimble::models_test
