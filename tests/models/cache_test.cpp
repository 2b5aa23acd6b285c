// One forward: what a token's logits are does not depend on the key/value cache, on chunks, on the batch around it, or on
// tokens that were tried and rewound. Bit for bit.
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

const char* const kCases[] = {"llama_gqa_untied", "mistral_sw8", "qwen2", "gpt_neox", "gpt2", "opt_prenorm", "gptq4_g32_asym"};

struct Loaded {
  explicit Loaded(const std::string& name, Precision precision = Precision::f32, int threads = 2)
      : engine(best_tier(), threads), model(load_model(oracle(name), engine.kernels)),
        transformer(model, std::min<int64_t>(model.config.max_positions, 256)) {
    engine.ctx->precision = precision;
  }
  int64_t vocab() const { return model.config.vocab_size; }
  std::vector<float> recompute(const std::vector<int32_t>& ids) {
    Rows rows;
    rows.add(ids);
    return logits_of(transformer, *engine.ctx, rows);
  }
  Engine engine;
  Model model;
  Transformer transformer;
};

std::vector<float> row(const std::vector<float>& logits, int64_t vocab, size_t r) {
  return {logits.begin() + static_cast<int64_t>(r) * vocab, logits.begin() + static_cast<int64_t>(r + 1) * vocab};
}

class Cache : public ::testing::TestWithParam<const char*> {};

TEST_P(Cache, DecodeEqualsRecomputation) {
  for (Precision precision : {Precision::f32, Precision::int8_act}) {
    Loaded m(GetParam(), precision);
    const std::vector<int32_t> ids = text(1, 40, m.vocab());
    const std::vector<float> whole = m.recompute(ids);
    // Token by token.
    Generator generator(m.transformer, *m.engine.ctx, 40);
    for (size_t t = 0; t < ids.size(); ++t) {
      const float* logits = generator.feed(&ids[t], 1);
      ASSERT_TRUE(same_bits(std::vector<float>(logits, logits + m.vocab()), row(whole, m.vocab(), t))) << "token " << t;
    }
    // Every prefix as one prefill, then one token; and recomputed with nothing behind it.
    for (size_t n = 1; n < ids.size(); n += 3) {
      Generator fresh(m.transformer, *m.engine.ctx, 40);
      const float* prefilled = fresh.feed(ids.data(), static_cast<int64_t>(n));
      ASSERT_TRUE(same_bits(std::vector<float>(prefilled, prefilled + m.vocab()), row(whole, m.vocab(), n - 1))) << "prefix " << n;
      const float* next = fresh.feed(&ids[n], 1);
      ASSERT_TRUE(same_bits(std::vector<float>(next, next + m.vocab()), row(whole, m.vocab(), n))) << "prefix " << n;
      const std::vector<float> alone = m.recompute({ids.begin(), ids.begin() + static_cast<int64_t>(n)});
      ASSERT_TRUE(same_bits(row(alone, m.vocab(), n - 1), row(whole, m.vocab(), n - 1))) << "recomputed prefix " << n;
    }
  }
}

TEST_P(Cache, ChunksAndSeveralSequences) {
  for (Precision precision : {Precision::f32, Precision::int8_act}) {
    Loaded m(GetParam(), precision);
    const std::vector<std::vector<int32_t>> sequences = {text(1, 33, m.vocab()), text(2, 50, m.vocab()), text(3, 12, m.vocab())};
    std::vector<std::vector<float>> whole;
    for (const auto& s : sequences) whole.push_back(m.recompute(s));
    // Each round appends a chunk of another odd size to each sequence; some rounds leave a sequence out.
    KvCache cache(m.model.config, 3, 50);
    std::vector<size_t> done(3);
    for (size_t round = 0; done != std::vector<size_t>{33, 50, 12}; ++round) {
      ASSERT_LT(round, 100u);
      Rows rows;
      std::vector<size_t> count(3);
      for (size_t s = 0; s < 3; ++s) {
        const size_t wanted = (round + s) % 3 == 2 ? 0 : 1 + (round * 5 + s * 3) % 9;
        count[s] = std::min(wanted, sequences[s].size() - done[s]);
        rows.add({sequences[s].begin() + static_cast<int64_t>(done[s]), sequences[s].begin() + static_cast<int64_t>(done[s] + count[s])});
      }
      if (rows.ids.empty()) continue;
      const std::vector<float> logits = logits_of(m.transformer, *m.engine.ctx, rows, &cache);
      size_t r = 0;
      for (size_t s = 0; s < 3; ++s)
        for (size_t i = 0; i < count[s]; ++i, ++r)
          ASSERT_TRUE(same_bits(row(logits, m.vocab(), r), row(whole[s], m.vocab(), done[s] + i)))
              << "sequence " << s << ", token " << done[s] + i << ", round " << round;
      for (size_t s = 0; s < 3; ++s) {
        done[s] += count[s];
        EXPECT_EQ(cache.length(static_cast<int64_t>(s)), static_cast<int64_t>(done[s]));
      }
    }
  }
}

// A cache in f16 or int8 rounds keys and values, so it has logits of its own, near the exact ones. What they are does not
// depend on how the rows come: token by token, in chunks, on how many threads.
TEST_P(Cache, RoundedCachesDoNotDependOnChunks) {
  const int64_t length = 60;
  std::vector<double> errors;
  for (KvType kv : {KvType::f16, KvType::int8}) {
    std::vector<float> whole;
    for (int threads : {1, 3}) {
      Loaded m(GetParam(), Precision::f32, threads);
      const std::vector<int32_t> ids = text(1, length, m.vocab());
      for (int64_t chunk : {length, int64_t{1}, int64_t{7}}) {
        Generator generator(m.transformer, *m.engine.ctx, length, nullptr, kv);
        std::vector<float> last;
        for (int64_t at = 0; at < length; at += chunk) {
          const float* logits = generator.feed(&ids[static_cast<size_t>(at)], std::min(chunk, length - at));
          last.assign(logits, logits + m.vocab());
        }
        if (whole.empty()) whole = last;
        EXPECT_TRUE(same_bits(whole, last)) << kv_type_name(kv) << ", chunks of " << chunk << ", " << threads << " threads";
      }
      if (threads > 1) continue;
      const std::vector<float> exact = row(m.recompute(ids), m.vocab(), static_cast<size_t>(length - 1));
      double difference = 0, size = 0;
      for (size_t i = 0; i < exact.size(); ++i) {
        difference += (double(whole[i]) - double(exact[i])) * (double(whole[i]) - double(exact[i]));
        size += double(exact[i]) * double(exact[i]);
      }
      errors.push_back(std::sqrt(difference / size));
    }
  }
  // Roundings of 2^-11 and of 1/254 of a row's largest entry, through a few layers.
  EXPECT_GT(errors[0], 0);
  EXPECT_LT(errors[0], 0.01);
  EXPECT_GT(errors[1], errors[0]);
  EXPECT_LT(errors[1], 0.1);
}

TEST_P(Cache, RewindForgets) {
  Loaded m(GetParam());
  const std::vector<int32_t> prompt = text(1, 21, m.vocab()), wrong = text(2, 9, m.vocab()), right = text(3, 7, m.vocab());
  Generator straight(m.transformer, *m.engine.ctx, 40), wandering(m.transformer, *m.engine.ctx, 40);
  straight.feed(prompt.data(), 21);
  wandering.feed(prompt.data(), 21);
  const int64_t mark = wandering.cache().mark(0);
  for (int64_t n : {9, 1, 4}) {
    wandering.feed(wrong.data(), n);
    wandering.cache().rewind(0, mark);
  }
  EXPECT_EQ(wandering.length(), 21);
  for (int32_t id : right) {
    const float* a = straight.feed(&id, 1);
    const std::vector<float> want(a, a + m.vocab());
    const float* b = wandering.feed(&id, 1);
    ASSERT_TRUE(same_bits(want, std::vector<float>(b, b + m.vocab())));
  }
}

TEST_P(Cache, RowsDoNotDependOnTheirBatch) {
  for (Precision precision : {Precision::f32, Precision::int8_act}) {
    std::vector<float> first;
    for (int threads : {1, 3}) {
      Loaded m(GetParam(), precision, threads);
      Rows mixed;
      std::vector<std::vector<float>> alone;
      for (uint64_t s = 0; s < 7; ++s) {
        const std::vector<int32_t> ids = text(s, static_cast<int64_t>(1 + s * 11 % 40), m.vocab());
        alone.push_back(m.recompute(ids));
        mixed.add(ids);
      }
      const std::vector<float> together = logits_of(m.transformer, *m.engine.ctx, mixed);
      for (size_t s = 0; s < alone.size(); ++s) {
        const auto begin = together.begin() + mixed.cu[s] * m.vocab(), end = together.begin() + mixed.cu[s + 1] * m.vocab();
        EXPECT_TRUE(same_bits(alone[s], std::vector<float>(begin, end))) << "sequence " << s;
      }
      if (first.empty()) first = together;
      EXPECT_TRUE(same_bits(first, together)) << threads << " threads";
    }
  }
}

// More keys than a block of the attention kernels, more queries than one task.
TEST_P(Cache, LongSequences) {
  Loaded m(GetParam());
  const int64_t length = std::min<int64_t>(m.transformer.max_tokens(), 200);
  const std::vector<int32_t> ids = text(4, length, m.vocab());
  const std::vector<float> whole = m.recompute(ids);
  for (int64_t chunk : {1, 37, 131}) {
    Generator generator(m.transformer, *m.engine.ctx, length);
    for (int64_t begin = 0; begin < length; begin += chunk) {
      const int64_t n = std::min(chunk, length - begin);
      const float* logits = generator.feed(&ids[size_t(begin)], n);
      ASSERT_TRUE(same_bits(std::vector<float>(logits, logits + m.vocab()), row(whole, m.vocab(), size_t(begin + n - 1))))
          << "chunks of " << chunk << ", token " << begin + n - 1;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, Cache, ::testing::ValuesIn(kCases), [](const auto& name) { return std::string(name.param); });

TEST(CacheErrors, LimitsAreNamed) {
  Loaded m("llama_gqa_untied");
  const std::vector<int32_t> ids = text(1, 20, m.vocab());
  Generator generator(m.transformer, *m.engine.ctx, 10);
  const auto code_of = [](auto&& call) {
    try {
      call();
    } catch (const Error& e) {
      return e.code();
    }
    return ErrorCode::internal;
  };
  EXPECT_EQ(code_of([&] { generator.feed(ids.data(), 11); }), ErrorCode::input);
  generator.feed(ids.data(), 10);
  EXPECT_EQ(code_of([&] { generator.feed(ids.data(), 1); }), ErrorCode::input);
  const int32_t bad[] = {3, static_cast<int32_t>(m.vocab()), -5};
  Generator other(m.transformer, *m.engine.ctx, 10);
  EXPECT_EQ(code_of([&] { other.feed(bad, 2); }), ErrorCode::input);
  EXPECT_EQ(code_of([&] { other.feed(bad + 2, 1); }), ErrorCode::input);
  EXPECT_EQ(other.length(), 0);
  other.feed(ids.data(), 3);  // still usable
  MemoryBudget small(1000);
  EXPECT_EQ(code_of([&] { KvCache cache(m.model.config, 1, 100, &small); }), ErrorCode::budget);
  // 1000 tokens: f16 takes half of f32, int8 about a quarter and its scales.
  const auto bytes = [&](KvType kv) { return double(KvCache(m.model.config, 1, 1000, nullptr, kv).bytes()); };
  const double wide = bytes(KvType::f32);
  EXPECT_NEAR(bytes(KvType::f16), wide / 2, 0.01 * wide);
  EXPECT_NEAR(bytes(KvType::int8), wide / 4 + wide / double(m.model.config.head_dim), 0.02 * wide);
  Model gpt2 = load_model(oracle("gpt2"), m.engine.kernels);
  EXPECT_EQ(code_of([&] { Transformer t(gpt2, gpt2.config.max_positions + 1); }), ErrorCode::input);
}

}  // namespace
}  // namespace thimble::models_test
