// Okapi BM25 against the reference scores, and its corner cases.
#include "rag/bm25.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

namespace thimble {
namespace {

TEST(Bm25Okapi, MeetsTheReferenceScores) {
  const nlohmann::json oracle =
      nlohmann::json::parse(std::ifstream(std::string(THIMBLE_SOURCE_DIR) + "/tests/data/rag/bm25_okapi.json"));
  std::vector<std::vector<std::string>> documents;
  for (const auto& d : oracle.at("docs")) documents.push_back(split_whitespace(d.get<std::string>()));
  const Bm25Okapi index(documents);
  int compared = 0;
  for (const auto& c : oracle.at("cases")) {
    const std::vector<double> got = index.scores(split_whitespace(c.at("query").get<std::string>()));
    const auto want = c.at("scores").get<std::vector<double>>();
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i, ++compared) EXPECT_NEAR(got[i], want[i], 1e-9);
  }
  EXPECT_GT(compared, 100);
}

TEST(Bm25Okapi, EmptyAndUnknown) {
  EXPECT_TRUE(Bm25Okapi({}).scores({"a"}).empty());
  const Bm25Okapi index({{"a", "b"}, {}, {"b"}});
  for (double s : index.scores({"zebra"})) EXPECT_EQ(s, 0);
  EXPECT_EQ(index.scores({"a"})[1], 0);
  EXPECT_EQ(index.idf("zebra"), 0);
}

TEST(Bm25Okapi, RepeatedQueryTermsCountAsOftenAsTheyOccur) {
  const Bm25Okapi index({{"a", "b", "c"}, {"c", "d"}, {"e"}, {"f"}});
  const double once = index.scores({"a"})[0], twice = index.scores({"a", "a"})[0];
  EXPECT_GT(once, 0);
  EXPECT_DOUBLE_EQ(twice, 2 * once);
}

}  // namespace
}  // namespace thimble
