// The report of invented experiments: complete, unfinished, broken, hostile.
#include "tools/lab/report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "models/io/json.h"
#include "tensor/error.h"
#include "tests/lab/fake_experiment.h"
#include "tests/scratch_dir.h"
#include "tools/dashboard/charts.h"
#include "tools/dashboard/text.h"

namespace thimble::lab {
namespace {

using thimble::testing::ScratchDir;

size_t count_of(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + what.size())) ++n;
  return n;
}

TEST(Report, ACompleteExperiment) {
  ScratchDir dir;
  const size_t cells = testing::write_fake_experiment(dir.path(), testing::fake_plan({1, 2}));
  write_report(dir.path());
  const std::string page = read_file(dir / "report/report.html");
  EXPECT_LT(page.size(), size_t{2000000});
  // nothing is loaded: no addresses but the two exports
  EXPECT_EQ(count_of(page, "http:") + count_of(page, "https:") + count_of(page, "src=") + count_of(page, "@import") +
                count_of(page, "<link"),
            0u);
  EXPECT_NE(page.find("href=\"report.json\""), std::string::npos);
  EXPECT_NE(page.find("href=\"cells.csv\""), std::string::npos);
  EXPECT_EQ(count_of(page, "<article"), 6u);
  EXPECT_EQ(count_of(page, "<svg"), count_of(page, "</svg>"));
  EXPECT_EQ(page.find("nan"), std::string::npos);
  const auto report = parse_json_file(dir / "report/report.json");
  EXPECT_EQ(report["schema"], "thimble.lab_report/1");
  EXPECT_EQ(report["summary"]["done"], cells);
  EXPECT_EQ(report["cells"].size(), cells);
  ASSERT_EQ(report["verdicts"].size(), 6u);
  for (const auto& v : report["verdicts"]) {
    EXPECT_NE(v["verdict"], "no data") << v["id"];
    EXPECT_FALSE(v["rows"].empty());
  }
  std::vector<std::string> sections;
  for (const auto& c : report["charts"]) sections.push_back(c["id"]);
  EXPECT_EQ(sections, (std::vector<std::string>{"methods", "difficulty", "time", "history", "rank", "retrieval",
                                                "memory", "variance"}));
  const std::string csv = read_file(dir / "report/cells.csv");
  EXPECT_EQ(count_of(csv, "\n"), cells + 1);
  for (const char* column :
       {"config.method.name", "config.task.world.noise", "metrics.accuracy", "difficulty.base_nll", "cost.model_bytes"})
    EXPECT_NE(csv.substr(0, csv.find('\n')).find(column), std::string::npos) << column;
}

TEST(Report, IsAPureFunctionOfTheFolder) {
  ScratchDir dir;
  testing::write_fake_experiment(dir.path(), testing::fake_plan({1}));
  write_report(dir.path());
  const std::string page = read_file(dir / "report/report.html"), json = read_file(dir / "report/report.json"),
                    csv = read_file(dir / "report/cells.csv");
  write_report(dir.path());
  EXPECT_EQ(page, read_file(dir / "report/report.html"));
  EXPECT_EQ(json, read_file(dir / "report/report.json"));
  EXPECT_EQ(csv, read_file(dir / "report/cells.csv"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir / "report"), std::filesystem::directory_iterator()),
            3);
}

TEST(Report, AnUnfinishedExperimentSaysSo) {
  ScratchDir dir;
  testing::FakeOptions options;
  options.missing = [](const CellConfig&, size_t i) { return i % 3 == 0; };
  options.failed = [](const CellConfig&, size_t i) { return i % 20 == 1; };
  testing::write_fake_experiment(dir.path(), testing::fake_plan({1, 2}), options);
  write_report(dir.path());
  const auto report = parse_json_file(dir / "report/report.json");
  const int missing = report["summary"]["missing"], failed = report["summary"]["failed"],
            done = report["summary"]["done"];
  EXPECT_GT(missing, 0);
  EXPECT_GT(failed, 0);
  EXPECT_EQ(missing + failed + done, static_cast<int>(report["cells"].size()));
  EXPECT_EQ(report["failed"].size(), static_cast<size_t>(failed));
  EXPECT_EQ(report["failed"][0]["reason"], "predicted to need 212 MB, more than the device's 64 MB");
  const std::string page = read_file(dir / "report/report.html");
  EXPECT_NE(page.find(std::to_string(missing) + " missing, " + std::to_string(failed) + " failed"), std::string::npos);
  EXPECT_NE(page.find("more than the device's 64 MB"), std::string::npos) << "reasons stand on the page";
}

TEST(Report, AnyNumberOfDoneCellsIsEnough) {
  for (size_t done : {0, 1, 2, 7}) {
    ScratchDir dir;
    testing::FakeOptions options;
    options.missing = [&](const CellConfig&, size_t i) { return i >= done; };
    testing::write_fake_experiment(dir.path(), testing::fake_plan({1}), options);
    write_report(dir.path());
    EXPECT_EQ(parse_json_file(dir / "report/report.json")["summary"]["done"], done);
  }
}

TEST(Report, NamesFromOutsideStayText) {
  ScratchDir dir;
  testing::FakePlan plan;
  plan.name = "<script>alert(1)</script>\"&";
  plan.grids.push_back({"<b>grid", {}});
  CellConfig c = testing::fake_cell(testing::fake_task("LaMP_3", 1, 8), "lora", "<i>model\",=1");
  plan.add(c, {1, 2});
  plan.add(testing::fake_cell(testing::fake_task("LaMP_3", 1, 8), "rag", "<i>model\",=1"), {1, 2});
  testing::write_fake_experiment(dir.path(), plan);
  write_report(dir.path());
  const std::string page = read_file(dir / "report/report.html");
  EXPECT_EQ(page.find("<script>alert"), std::string::npos);
  EXPECT_EQ(page.find("<b>grid"), std::string::npos);
  EXPECT_EQ(page.find("<i>model"), std::string::npos);
  EXPECT_NE(read_file(dir / "report/cells.csv").find("\"<i>model\"\",=1\""), std::string::npos);
}

class BrokenReport : public ::testing::Test {
 protected:
  BrokenReport() {
    testing::FakePlan plan;
    plan.grids.push_back({"g", {}});
    plan.add(testing::fake_cell(testing::fake_task("LaMP_3", 1, 8), "lora"), {1});
    testing::write_fake_experiment(dir_.path(), plan);
    cell_ = dir_ / ("cells/" + plan.grids[0].second[0].hash());
  }
  // The message of the input error that the report must end with.
  std::string message() {
    try {
      write_report(dir_.path());
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::input);
      return e.what();
    }
    ADD_FAILURE() << "no error";
    return "";
  }
  ScratchDir dir_;
  std::string cell_;
};

TEST_F(BrokenReport, NamesTheFileAndTheField) {
  write_file(cell_ + "/metrics.json",
             R"({"primary": "accuracy", "metrics": {}, "per_person": [{"user_id": "u", "score": "high"}]})");
  EXPECT_NE(message().find("metrics.json: field \"score\""), std::string::npos);
  write_file(
      cell_ + "/metrics.json",
      R"({"primary": "accuracy", "metrics": {}, "per_person": [{"user_id": "u", "score": 1}, {"user_id": "u", "score": 1}]})");
  EXPECT_NE(message().find("twice"), std::string::npos);
  write_file(cell_ + "/metrics.json", R"({"primary": "accuracy", "metrics": {}, "per_person": []})");
  EXPECT_NE(message().find("per_person"), std::string::npos);
  write_file(cell_ + "/metrics.json", "[]");
  EXPECT_NE(message().find("metrics.json"), std::string::npos);
}

TEST_F(BrokenReport, CurvesMustFitTheirPeople) {
  write_file(cell_ + "/curve.jsonl", "{\"step\": 5, \"score\": 0.5, \"per_person\": [0.5], \"heldout\": false}\n");
  EXPECT_NE(message().find("curve.jsonl:1"), std::string::npos);
  write_file(cell_ + "/curve.jsonl", "\n{\"step\": 5,");
  EXPECT_NE(message().find("curve.jsonl:2"), std::string::npos);
  // scores on held-out history are choices, not results
  write_file(cell_ + "/curve.jsonl", "{\"step\": 5, \"score\": 0.5, \"per_person\": [0.5], \"heldout\": true}\n");
  EXPECT_NO_THROW(write_report(dir_.path()));
}

TEST_F(BrokenReport, PlansThatNameUnknownCellsOrPaths) {
  write_file(dir_ / "plan.json",
             R"({"name": "x", "grids": [{"name": "g", "cells": ["0123456789abcdef"]}], "cells": {}})");
  EXPECT_NE(message().find("lacks"), std::string::npos);
  write_file(dir_ / "plan.json", R"({"name": "x", "grids": [], "cells": {"../../etc": {}}})");
  EXPECT_NE(message().find("is not the hash"), std::string::npos);
  std::filesystem::remove(dir_ / "plan.json");
  EXPECT_NE(message().find("plan.json"), std::string::npos);
}

TEST(Dashboard, TextIsShortAndSafe) {
  using namespace dashboard;
  EXPECT_EQ(escape("a<b>&\"\n\x01\xff"), "a&lt;b&gt;&amp;&quot;\n ?");
  EXPECT_EQ(escape("\xed\xa0\x80é"), "???é");
  EXPECT_EQ(compact(1234567), "1,234,567");
  EXPECT_EQ(compact(-1000), "−1,000");
  EXPECT_EQ(compact(0.0123), "0.0123");
  EXPECT_EQ(fixed(-0.04, 1), "0.0");
  EXPECT_EQ(fixed(-1.25, 1), "−1.2");
  EXPECT_EQ(bytes_text(1234567), "1.23 MB");
  EXPECT_EQ(seconds_text(0.0032), "3.2 ms");
  EXPECT_EQ(shorten("αβγδ", 3), "αβ…");
  EXPECT_EQ(plural(1, "cell"), "1 cell");
  EXPECT_EQ(plural(2, "person", "people"), "2 people");
}

TEST(Dashboard, ChartsOfNothingAndOfOddNumbersAreStillCharts) {
  using Json = nlohmann::ordered_json;
  for (const char* type : {"forest", "line", "scatter", "bars", "heat"}) {
    const std::string empty = dashboard::chart_svg({{"type", type}});
    EXPECT_EQ(empty.substr(0, 4), "<svg") << type;
    EXPECT_EQ(empty.find("nan"), std::string::npos) << type;
  }
  const Json odd = {
      {"type", "line"},
      {"log_x", true},
      {"series", Json::array({{{"label", "a"},
                               {"points", Json::array({{{"x", 0}, {"y", 1e9}, {"lo", nullptr}, {"hi", nullptr}},
                                                       {{"x", 5}, {"y", -1e9}}})}}})}};
  const std::string svg = dashboard::chart_svg(odd);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_THROW(dashboard::chart_svg({{"type", "pie"}}), Error);
}

}  // namespace
}  // namespace thimble::lab
