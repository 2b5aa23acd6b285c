// The base models that ship: their files are those that their records name, their gates were passed and still are, and
// their recipe begins as it did when they were made.
#include "tools/lab/zoo.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/kernel_table.h"
#include "models/init.h"
#include "tensor/error.h"
#include "tensor/file.h"
#include "tensor/sha256.h"
#include "tests/scratch_dir.h"
#include "tools/lab/identity.h"

namespace thimble::lab {
namespace {

const std::string kZoo = THIMBLE_SOURCE_DIR "/models/zoo";
const std::vector<std::string> kModels = {"llama-0.4m", "llama-2m", "llama-8m", "neox-2m", "opt-2m"};

nlohmann::json record(const std::string& name) { return nlohmann::json::parse(read_file(kZoo + "/" + name + "/training.json")); }

TEST(Zoo, FilesAreThoseOfTheirRecords) {
  for (const std::string& name : kModels) {
    const nlohmann::json r = record(name);
    for (const auto& item : r["sha256"].items())
      EXPECT_EQ(sha256_file(kZoo + "/" + name + "/" + item.key()), item.value().get<std::string>()) << name << "/" << item.key();
    EXPECT_EQ(sha256_file(kZoo + "/" + name + "/recipe.json"), r["recipe_sha256"].get<std::string>()) << name;
    EXPECT_TRUE(r["gate_passed"].get<bool>()) << name;
    EXPECT_EQ(resolve_model("zoo:" + name), zoo_directory() + "/" + name);
  }
}

// The gate again, with the engine as it is now: fewer questions, so four standard errors are allowed below the mark.
TEST(Zoo, TheSmallestBaseStillPassesItsGate) {
  const std::string dir = kZoo + "/llama-0.4m";
  const ZooRecipe recipe = load_recipe(dir + "/recipe.json");
  const KernelTable kernels = build_kernel_table(best_tier());
  Model model = load_model(dir, kernels);
  MemoryBudget budget;
  Context ctx(kernels, 2, &budget);
  Transformer transformer(model, recipe.mix.ctx);
  const PretrainMix mix(Tokenizer::load(dir), recipe.mix, recipe.seed);
  const GateScores scores = measure_gate(transformer, ctx, mix, 64);
  EXPECT_GE(scores.known_rating_1, 0.85);
  EXPECT_GE(scores.known_rating_3, 0.85);
  EXPECT_GE(scores.known_tag, 0.8);
  EXPECT_GE(scores.fact, scores.neighbour - 0.1);
}

// The first steps of the recipe. The same build makes the same bits; another compiler or instruction set may round
// otherwise, so the losses are compared within half a percent.
TEST(Zoo, TheRecipeBeginsAsItDid) {
  const std::string dir = kZoo + "/llama-0.4m";
  const ZooRecipe recipe = load_recipe(dir + "/recipe.json");
  const KernelTable kernels = build_kernel_table(best_tier());
  const Tokenizer tokenizer = Tokenizer::load(dir);
  const PretrainMix mix(tokenizer, recipe.mix, recipe.seed);
  const testing::ScratchDir scratch;
  auto config = recipe.config;
  config["vocab_size"] = tokenizer.vocab_size();
  write_file(scratch / "config.json", config.dump());
  MemoryBudget budget;
  Model model = init_model(scratch / "config.json", recipe.seed, tokenizer.vocab_size(), &budget);
  enable_gradients(model);
  Context ctx(kernels, 2, &budget);
  ctx.precision = recipe.precision == "bf16" ? Precision::bf16 : Precision::f32;
  Transformer transformer(model, recipe.mix.ctx);
  const Dataset data = Dataset::from_generator([&](int64_t k, WeightedSequence& s) { mix.make(k, s); }, recipe.mix.ctx);
  Trainer trainer(ctx, transformer, nullptr, data, nullptr, recipe.train);

  std::istringstream log(read_file(dir + "/log.jsonl"));
  std::string line;
  ASSERT_TRUE(std::getline(log, line));
  const nlohmann::json first = nlohmann::json::parse(line);
  ASSERT_EQ(first["step"], 50);
  StepReport report;
  while (report.step < 50) report = trainer.step();
  EXPECT_EQ(report.tokens, first["tokens"].get<int64_t>());
  EXPECT_NEAR(report.loss, first["loss"].get<double>(), 0.005 * first["loss"].get<double>());
}

TEST(Zoo, RecipesAreReadStrictly) {
  const testing::ScratchDir scratch;
  const std::string path = scratch / "recipe.json", good = read_file(kZoo + "/llama-2m/recipe.json");
  const auto refuses = [&](const std::string& text, const std::string& word) {
    write_file(path, text);
    try {
      load_recipe(path);
      ADD_FAILURE() << word;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::input);
      EXPECT_NE(std::string(e.what()).find(word), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find(path), std::string::npos) << e.what();
    }
  };
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  refuses(changed("\"batch\"", "\"bach\""), "bach");
  refuses(changed("\"lr\": 0.002", "\"lr\": \"fast\""), "lr");
  refuses(changed("thimble.zoo_recipe/1", "thimble.zoo_recipe/9"), "schema");
  refuses(changed("\"mix\"", "\"mixture\""), "mixture");
  refuses(good.substr(0, 100), path);
}

}  // namespace
}  // namespace thimble::lab
