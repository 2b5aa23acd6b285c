// The scan of stored vectors: the hits of a definition in double, ties, the same answer on every tier and for any number of
// threads, and what codes and signs lose.
#include "rag/vector_index.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "tensor/rng.h"

namespace thimble {
namespace {

constexpr Tier kTiers[] = {Tier::ref, Tier::avx2, Tier::avx2_vnni, Tier::avx512, Tier::avx512_vnni, Tier::avx512_bf16};
constexpr VectorPrecision kPrecisions[] = {VectorPrecision::f32, VectorPrecision::int8, VectorPrecision::binary};

double normal(Philox& rng) {
  double sum = -6;
  for (int i = 0; i < 12; ++i) sum += rng.uniform();
  return sum;
}

// Points around `topics` centers that share an offset, as embeddings do.
VectorSet cloud(int64_t n, int64_t width, int64_t topics, uint64_t seed) {
  Philox rng(seed, 1);
  std::vector<std::vector<float>> centers, vectors;
  std::vector<float> offset;
  for (int64_t c = 0; c < width; ++c) offset.push_back(static_cast<float>(2 * normal(rng)));
  for (int64_t t = 0; t < topics; ++t) {
    centers.push_back(offset);
    for (float& x : centers.back()) x += static_cast<float>(normal(rng));
  }
  for (int64_t i = 0; i < n; ++i) {
    vectors.push_back(centers[static_cast<size_t>(rng.below(static_cast<uint64_t>(topics)))]);
    for (float& x : vectors.back()) x += static_cast<float>(0.7 * normal(rng));
  }
  VectorSet set = make_vector_set(vectors);
  normalize(set);
  return set;
}

std::vector<Hit> by_definition(const VectorSet& set, const float* query, int64_t k, int64_t n, bool later_first) {
  std::vector<Hit> hits;
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0;
    for (int64_t c = 0; c < set.width; ++c) sum += double{set.values[static_cast<size_t>(i * set.width + c)]} * double{query[c]};
    hits.push_back({i, sum});
  }
  std::sort(hits.begin(), hits.end(), [&](const Hit& a, const Hit& b) {
    return a.score != b.score ? a.score > b.score : later_first ? a.index > b.index : a.index < b.index;
  });
  hits.resize(static_cast<size_t>(std::min(k, n)));
  return hits;
}

void expect_equal(const std::vector<Hit>& a, const std::vector<Hit>& b, const std::string& where) {
  ASSERT_EQ(a.size(), b.size()) << where;
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].index, b[i].index) << where << ", rank " << i;
    EXPECT_EQ(a[i].score, b[i].score) << where << ", rank " << i;
  }
}

TEST(VectorIndex, FloatsGiveTheHitsOfTheDefinition) {
  const KernelTable kernels = build_kernel_table(best_tier());
  for (const int64_t width : {1, 7, 64, 100}) {
    VectorSet set = cloud(5000, width, 20, 3);
    for (int64_t i = 0; i < 300; ++i)  // equals: one vector three hundred times
      std::copy_n(set.values.begin() + 17 * width, width, set.values.begin() + (i * 13 % 5000) * width);
    const VectorSet queries = cloud(4, width, 4, 9);
    const VectorIndex index(set, kernels, 2);
    for (const bool later_first : {false, true})
      for (const int64_t k : {1, 10, 700})
        for (const int64_t n : {1, 9, 2048, 4999, 5000}) {
          const auto hits = index.search(queries.values.data(), 4, k, n, later_first);
          for (int64_t j = 0; j < 4; ++j)
            expect_equal(hits[static_cast<size_t>(j)], by_definition(set, queries.values.data() + j * width, k, n, later_first),
                         "width " + std::to_string(width) + ", k " + std::to_string(k) + ", n " + std::to_string(n));
        }
  }
}

// Vectors that f32 sums cannot tell apart: large parts that cancel, small ones that decide.
TEST(VectorIndex, NearTiesAreDecidedInDouble) {
  std::vector<std::vector<float>> vectors;
  for (int i = 0; i < 300; ++i) vectors.push_back({1e4f, -1e4f, static_cast<float>((i * 37) % 300) * 1e-5f});
  const VectorSet set = make_vector_set(vectors);
  const float query[] = {1, 1, 1};
  for (const Tier tier : kTiers) {
    if (!tier_supported(tier)) continue;
    expect_equal(VectorIndex(set, build_kernel_table(tier), 1).search(query, 1, 5, 300)[0], by_definition(set, query, 5, 300, false), tier_name(tier));
  }
}

TEST(VectorIndex, TiersAndThreadsAgree) {
  const VectorSet queries = cloud(3, 100, 3, 5), base = cloud(9000, 100, 30, 4);
  for (const VectorPrecision precision : kPrecisions)
    for (const bool keep : {true, false}) {
      std::vector<std::vector<Hit>> expected;
      for (const Tier tier : kTiers) {
        if (!tier_supported(tier)) continue;
        const KernelTable kernels = build_kernel_table(tier);
        VectorSet set = base;
        compress(set, kernels, precision, keep);
        for (const int threads : {1, 2, 3, 7}) {
          const auto hits = VectorIndex(set, kernels, threads).search(queries.values.data(), 3, 25, 8999);
          if (expected.empty()) expected = hits;
          for (size_t j = 0; j < 3; ++j)
            expect_equal(expected[j], hits[j], std::string(vector_precision_name(precision)) + " on " + tier_name(tier) + ", " + std::to_string(threads) + " threads");
        }
      }
    }
}

TEST(VectorIndex, EqualScoresGoByPosition) {
  std::vector<std::vector<float>> same(200, {0.5f, -1, 2});
  const float query[] = {1, 1, 1};
  const KernelTable kernels = build_kernel_table(best_tier());
  for (const VectorPrecision precision : kPrecisions)
    for (const bool keep : {true, false}) {
      VectorSet set = make_vector_set(same);
      compress(set, kernels, precision, keep);
      const VectorIndex index(set, kernels, 2);
      for (int64_t i = 0; i < 5; ++i) {
        EXPECT_EQ(index.search(query, 1, 5, 200)[0][static_cast<size_t>(i)].index, i);
        EXPECT_EQ(index.search(query, 1, 5, 150, true)[0][static_cast<size_t>(i)].index, 149 - i);
      }
    }
}

TEST(VectorIndex, NoNumberComesLast) {
  const KernelTable kernels = build_kernel_table(best_tier());
  const VectorIndex index(make_vector_set({{1, 0}, {2, 1}, {3, 0}}), kernels, 1);
  const float query[] = {1, std::numeric_limits<float>::quiet_NaN()};
  EXPECT_EQ(index.search(query, 1, 3, 3)[0].size(), 3u);
  EXPECT_TRUE(index.search(query, 1, 0, 3)[0].empty());
  EXPECT_TRUE(VectorIndex().search(query, 1, 3, 0)[0].empty());
}

double recall(const VectorSet& exact, VectorPrecision precision, bool keep, int64_t k) {
  const KernelTable kernels = build_kernel_table(best_tier());
  VectorSet set = exact;
  compress(set, kernels, precision, keep);
  const VectorIndex index(set, kernels, 2);
  double found = 0;
  constexpr int64_t kQueries = 60;
  // Queries from among the documents' topics: each is a document, moved.
  Philox rng(8, 8);
  for (int64_t q = 0; q < kQueries; ++q) {
    std::vector<float> query(exact.values.begin() + q * 71 * exact.width, exact.values.begin() + (q * 71 + 1) * exact.width);
    for (float& x : query) x += static_cast<float>(0.3 / std::sqrt(double(exact.width)) * normal(rng));
    std::set<int64_t> want;
    for (const Hit& h : by_definition(exact, query.data(), k, exact.count, false)) want.insert(h.index);
    const auto hits = index.search(query.data(), 1, k, exact.count);
    for (const Hit& h : hits[0]) found += static_cast<double>(want.count(h.index));
  }
  return found / double(k * kQueries);
}

TEST(VectorIndex, WhatCodesAndSignsFind) {
  const VectorSet set = cloud(5000, 384, 50, 6);
  EXPECT_EQ(recall(set, VectorPrecision::f32, true, 10), 1.0);
  EXPECT_GE(recall(set, VectorPrecision::int8, true, 10), 0.99);
  EXPECT_GE(recall(set, VectorPrecision::int8, false, 10), 0.9);
  const double signs = recall(set, VectorPrecision::binary, true, 10), alone = recall(set, VectorPrecision::binary, false, 10);
  RecordProperty("binary_rescored", std::to_string(signs));
  EXPECT_GE(signs, 0.7);
  EXPECT_GT(signs, alone);
  std::printf("recall@10 of 5000 x 384: int8 %.3f without floats, binary %.3f, %.3f without floats\n", recall(set, VectorPrecision::int8, false, 10), signs, alone);
}

}  // namespace
}  // namespace thimble
