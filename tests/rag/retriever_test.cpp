// Retrievers: what they rank first, ties, prefix limits, and the same answer every time.
#include "rag/retriever.h"

#include <gtest/gtest.h>

#include <set>

#include "tensor/error.h"

namespace thimble {
namespace {

std::vector<Document> documents(const std::vector<std::string>& texts) {
  std::vector<Document> d;
  for (const std::string& t : texts) d.push_back({t, ""});
  return d;
}

std::vector<int64_t> indices(const std::vector<Hit>& hits) {
  std::vector<int64_t> out;
  for (const Hit& h : hits) out.push_back(h.index);
  return out;
}

RetrieverOptions named(const std::string& name) {
  RetrieverOptions o;
  o.name = name;
  return o;
}

// Counts of the letters a, b and c.
std::vector<std::vector<float>> letters(const std::vector<std::string>& texts) {
  std::vector<std::vector<float>> out;
  for (const std::string& t : texts) {
    out.emplace_back(3, 0.0f);
    for (const char c : t)
      if (c >= 'a' && c <= 'c') out.back()[static_cast<size_t>(c - 'a')] += 1;
  }
  return out;
}

TEST(Retriever, EveryNameKeepsTheContract) {
  std::vector<Document> docs;
  for (int i = 0; i < 30; ++i) docs.push_back({"boat " + std::to_string(i % 7) + " cab", "20" + std::to_string(10 + i)});
  for (const std::string& name : retriever_names()) {
    RetrieverOptions o = named(name);
    o.embed = letters;
    const auto index = make_retriever(o, docs);
    EXPECT_EQ(index->size(), 30) << name;
    for (const int64_t limit : {-1, 0, 1, 13, 99}) {
      const int64_t n = limit < 0 ? 30 : std::min<int64_t>(limit, 30);
      const std::vector<Hit> hits = index->search("boat 3", 5, limit);
      ASSERT_EQ(static_cast<int64_t>(hits.size()), std::min<int64_t>(5, n)) << name;
      std::set<int64_t> seen;
      for (size_t i = 0; i < hits.size(); ++i) {
        EXPECT_TRUE(seen.insert(hits[i].index).second) << name;
        EXPECT_LT(hits[i].index, n) << name;
        if (i) { EXPECT_GE(hits[i - 1].score, hits[i].score) << name; }
      }
      EXPECT_EQ(indices(hits), indices(index->search("boat 3", 5, limit))) << name;
    }
    EXPECT_EQ(index->search("x", 99).size(), 30u) << name;
    EXPECT_TRUE(index->search("x", 0).empty()) << name;
    EXPECT_TRUE(make_retriever(o, {})->search("boat", 3).empty()) << name;
  }
  EXPECT_THROW(make_retriever(named("bm42"), {}), Error);
  EXPECT_THROW(make_retriever(named("dense"), {}), Error);
}

TEST(Retriever, TheNameOutweighsSharedPhrasing) {
  std::vector<std::string> texts;
  for (int i = 0; i < 12; ++i) texts.push_back("on the way to the market we saw item" + std::to_string(i));
  texts[4] = "Mira!";
  const std::string query = "on the way to the market we saw mira";
  EXPECT_EQ(make_retriever(named("bm25"), documents(texts))->search(query, 1)[0].index, 4);
  EXPECT_NE(make_retriever(named("bm25_okapi"), documents(texts))->search(query, 1)[0].index, 4);
}

TEST(Retriever, CommonWordsCountInSmallHistoriesOnly) {
  // "boat" is in half of the documents: it counts below ten of them.
  EXPECT_EQ(make_retriever(named("bm25"), documents({"boat", "gull", "boat", "gull"}))->search("boat", 2)[0].index, 2);
  std::vector<std::string> many;
  for (int i = 0; i < 12; ++i) many.push_back(i % 2 ? "boat" : "gull");
  for (const double s : make_retriever(named("bm25"), documents(many))->scores("boat")) EXPECT_EQ(s, 0);
}

TEST(Retriever, TiesGoToTheNewerOrAsOkapiSays) {
  const std::vector<Document> docs = documents({"x y", "boat", "boat", "z"});
  EXPECT_EQ(indices(make_retriever(named("bm25"), docs)->search("boat", 4)), (std::vector<int64_t>{2, 1, 3, 0}));
  EXPECT_EQ(indices(make_retriever(named("bm25"), docs)->search("boat", 4, 2)), (std::vector<int64_t>{1, 0}));
  EXPECT_EQ(indices(make_retriever(named("bm25"), docs)->search("unknown", 2)), (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(indices(make_retriever(named("bm25_okapi"), documents({"x", "y", "z"}))->search("unknown", 3)), (std::vector<int64_t>{0, 1, 2}));
}

TEST(Retriever, RecencyReadsDates) {
  EXPECT_EQ(indices(make_retriever(named("recency"), documents({"a", "b", "c"}))->search("", 2)), (std::vector<int64_t>{2, 1}));
  const std::vector<Document> dated{{"a", "2001-02-03"}, {"b", "2003"}, {"c", "2001-02-03"}, {"d", "1999-12-31"}};
  EXPECT_EQ(indices(make_retriever(named("recency"), dated)->search("", 4)), (std::vector<int64_t>{1, 2, 0, 3}));
}

TEST(Retriever, RandomDependsOnSeedAndQueryOnly) {
  std::vector<Document> docs(200);
  RetrieverOptions o = named("random");
  const auto zero = indices(make_retriever(o, docs)->search("q", 5));
  EXPECT_EQ(zero, indices(make_retriever(o, docs)->search("q", 5)));
  EXPECT_NE(zero, indices(make_retriever(o, docs)->search("r", 5)));
  o.seed = 1;
  EXPECT_NE(zero, indices(make_retriever(o, docs)->search("q", 5)));
  // Every document comes first about equally often.
  std::vector<int> first(4, 0);
  const auto index = make_retriever(o, std::vector<Document>(4));
  for (int i = 0; i < 4000; ++i) ++first[static_cast<size_t>(index->search(std::to_string(i), 1)[0].index)];
  for (const int n : first) EXPECT_NEAR(n, 1000, 150);  // five standard deviations
}

TEST(Retriever, DenseByProductOrCosine) {
  RetrieverOptions o = named("dense");
  o.embed = letters;
  const std::vector<Document> docs = documents({"a", "aabbbb", "ccc"});
  EXPECT_EQ(indices(make_retriever(o, docs)->search("a", 3)), (std::vector<int64_t>{1, 0, 2}));
  o.cosine = true;
  const std::vector<Hit> hits = make_retriever(o, docs)->search("aa", 3);
  EXPECT_EQ(indices(hits), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_NEAR(hits[0].score, 1, 1e-6);
  for (const double s : make_retriever(o, docs)->scores("")) EXPECT_EQ(s, 0);  // a vector of zeros has no direction
}

TEST(Retriever, Words) {
  EXPECT_EQ(lower_case_words("The (red) Boat's 3.14 -- na\xC3\xAFve"),
            (std::vector<std::string>{"the", "red", "boat", "s", "3", "14", "na\xC3\xAFve"}));
  EXPECT_TRUE(lower_case_words(" .,!").empty());
  EXPECT_TRUE(is_function_word("the"));
  EXPECT_FALSE(is_function_word("boat"));
}

}  // namespace
}  // namespace thimble
