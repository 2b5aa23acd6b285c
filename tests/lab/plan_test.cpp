// Plans: what they expand to, and where every error is said to stand.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tensor/error.h"
#include "tensor/file.h"
#include "tests/scratch_dir.h"
#include "tools/lab/identity.h"
#include "tools/lab/plan.h"
#include "tools/lab/resolve.h"

namespace thimble::lab {
namespace {

const char* const kHead = "name: test\ngrids:\n  - name: g\n    model: zoo:a\n    task: {world: {task: LaMP_3}}\n";

Plan parse(const std::string& text, const PlanOverrides& overrides = {}) { return parse_plan(text, "p.yaml", overrides); }
std::vector<CellConfig> cells(const std::string& text, const PlanOverrides& overrides = {}) {
  std::vector<CellConfig> list;
  for (const PlanGrid& g : parse(text, overrides).grids)
    for (const PlanCell& c : g.cells) list.push_back(c.config);
  return list;
}
std::vector<CellConfig> grid(const std::string& lines) { return cells(kHead + lines); }

void refused(const std::string& text, ErrorCode code, const std::string& place, const std::vector<std::string>& words) {
  try {
    parse(text);
    ADD_FAILURE() << "accepted: " << text;
  } catch (const Error& e) {
    const std::string all = std::string(e.what()) + " | " + e.hint();
    EXPECT_EQ(e.code(), code) << all;
    EXPECT_EQ(all.compare(0, place.size() + 7, "p.yaml:" + place), 0) << "expected " << place << " in: " << all;
    for (const std::string& word : words) EXPECT_NE(all.find(word), std::string::npos) << "missing " << word << " in: " << all;
  }
}
void refused_grid(const std::string& lines, ErrorCode code, const std::string& place, const std::vector<std::string>& words) {
  refused(kHead + lines, code, place, words);
}

TEST(Plan, AGridIsTheProductOfItsLists) {
  const auto list = grid(
      "    compression: [none, \"rtn:int4-g64-asym\"]\n"
      "    method: [none, {name: lora, rank: [1, 4], alpha: [r, 2r], lr: 0.01}, {name: rag, k: [1, 4]}]\n"
      "    history: [8, all]\n"
      "    budget: {steps: [10, 80], curve: [5, 10, 40]}\n"
      "    seeds: 3\n");
  // none and rag ignore the budget, so both of its levels give the same cell for them.
  EXPECT_EQ(list.size(), 2u * 7 * 2 * 2 * 3);
  std::set<std::string> hashes;
  for (const CellConfig& c : list) hashes.insert(c.hash());
  EXPECT_EQ(hashes.size(), 2u * 2 * 3 * (1 + 4 * 2 + 2));
  for (const CellConfig& c : list) {
    EXPECT_EQ(c.task.world.seed, c.seed);
    if (c.method.name == "lora") {
      EXPECT_TRUE(c.method.alpha == double(c.method.rank) || c.method.alpha == 2.0 * double(c.method.rank));
      EXPECT_EQ(c.method.lr, std::vector<double>{0.01});
      EXPECT_EQ(c.curve, c.steps[0] == 10 ? (std::vector<int64_t>{5, 10}) : (std::vector<int64_t>{5, 10, 40}));
    } else {
      EXPECT_TRUE(c.steps.empty() && c.curve.empty());
    }
  }
}

TEST(Plan, CandidatesStayInOneCell) {
  const auto list = grid(
      "    method: {name: rag+lora, k: {choose: [8, 2, 2]}, lr: {choose: [0.003, 0.01]}, rank: [2, 4]}\n"
      "    budget: {steps: {choose: [80, 10]}}\n");
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0].method.k, (std::vector<int64_t>{2, 8}));
  EXPECT_EQ(list[0].method.lr, (std::vector<double>{0.003, 0.01}));
  EXPECT_EQ(list[0].steps, (std::vector<int64_t>{10, 80}));
  EXPECT_EQ(list[1].method.rank, 4);
}

TEST(Plan, DefaultsDialsAndDevice) {
  const std::string text =
      "name: all of it\n"
      "device: {profile: 8GB/1000, threads: 2, over: skip}\n"
      "seeds: [3, 5]\n"
      "people: 6\n"
      "queries: 4\n"
      "precision: bf16\n"
      "metrics: [accuracy, mae]\n"
      "defaults:\n"
      "  model: zoo:a\n"
      "  method: none\n"
      "grids:\n"
      "  - name: world\n"
      "    task: {world: {task: [LaMP_2, LaMP-3], noise: [0, 0.2], seed: 100}}\n"
      "  - name: lamp\n"
      "    precision: f32\n"
      "    task: {lamp: data, k: LaMP_3, split: [user, time], queries: 2}\n";
  const Plan plan = parse(text);
  EXPECT_EQ(plan.device.ram, 8 * (int64_t{1} << 30) / 1000);
  EXPECT_EQ(plan.device.threads, 2);
  EXPECT_TRUE(plan.device.skip_over);
  EXPECT_EQ(plan.metrics, (std::vector<std::string>{"accuracy", "mae"}));
  ASSERT_EQ(plan.grids.size(), 2u);
  ASSERT_EQ(plan.grids[0].cells.size(), 8u);
  const CellConfig& first = plan.grids[0].cells[0].config;
  EXPECT_EQ(first.task.world.people, 6);
  EXPECT_EQ(first.task.world.queries, 4);
  EXPECT_EQ(first.task.world.seed, 103u);
  EXPECT_EQ(first.seed, 3u);
  EXPECT_EQ(first.precision, "bf16");
  EXPECT_EQ(first.ram, plan.device.ram);
  EXPECT_EQ(plan.grids[0].cells[7].config.task.world.task, "LaMP_3");
  ASSERT_EQ(plan.grids[1].cells.size(), 4u);
  const CellConfig& lamp = plan.grids[1].cells[0].config;
  EXPECT_FALSE(lamp.task.is_world);
  EXPECT_EQ(lamp.task.people, 6);
  EXPECT_EQ(lamp.task.queries, 2);
  EXPECT_EQ(lamp.task.split, "user");
  EXPECT_EQ(lamp.precision, "f32");
  std::vector<const CellConfig*> world;
  for (const PlanCell& c : plan.grids[0].cells) world.push_back(&c.config);
  EXPECT_EQ(varying_factors(world), (std::vector<std::string>{"seed", "task.world.task", "task.world.noise"}));

  PlanOverrides o;
  o.ram = 1000;
  o.threads = 7;
  o.precision = "int8_act";
  o.seed = 10;
  const Plan over = parse(text, o);
  EXPECT_EQ(over.device.threads, 7);
  EXPECT_EQ(over.grids[0].cells[0].config.ram, 1000);
  EXPECT_EQ(over.grids[1].cells[0].config.precision, "int8_act");
  EXPECT_EQ(over.grids[0].cells[0].config.seed, 13u);
  EXPECT_EQ(over.grids[0].cells[0].config.task.world.seed, 113u);
}

TEST(Plan, FactorsAreJudgedWhereTheyApply) {
  const auto list = grid("    method: [none, {name: lora, rank: [1, 2], alpha: 4}, {name: rag, k: 4}]\n    budget: {steps: 10}\n");
  std::vector<const CellConfig*> pointers;
  for (const CellConfig& c : list) pointers.push_back(&c);
  EXPECT_EQ(varying_factors(pointers), (std::vector<std::string>{"method.name", "method.rank"}));
}

TEST(Plan, AnEmbedderBelongsToDense) {
  const auto list = grid("    method: {name: rag, retriever: [bm25, dense], embedder: path/minilm, k: [1, 4]}\n");
  ASSERT_EQ(list.size(), 4u);
  for (const CellConfig& c : list) {
    EXPECT_EQ(c.method.embedder, c.method.retriever == "dense" ? "path/minilm" : "");
    EXPECT_EQ(c.to_json()["method"].contains("embedder"), c.method.retriever == "dense");
    EXPECT_EQ(CellConfig::from_json(c.to_json()).to_json(), c.to_json());
  }
  EXPECT_EQ(grid("    method: {name: rag, retriever: dense, embedder: [a, b]}\n").size(), 2u);
  refused_grid("    method: {name: rag, embedder: a}\n", ErrorCode::usage, "6:", {"only the retriever dense"});
  refused_grid("    method: {name: none, embedder: a}\n", ErrorCode::usage, "6:26: ", {"unknown key \"embedder\""});
}

TEST(Plan, ErrorsNameLineColumnAndWhatIsValid) {
  refused_grid("    colour: red\n", ErrorCode::usage, "6:5: ", {"unknown key \"colour\"", "valid keys of a grid", "compression"});
  refused_grid("    method: lorra\n", ErrorCode::usage, "6:13: ", {"lorra", "lora", "rag+lora"});
  refused_grid("    method: {name: none, rank: 3}\n", ErrorCode::usage, "6:26: ", {"unknown key \"rank\"", "method none"});
  refused_grid("    method: {name: rag, retriever: faiss}\n", ErrorCode::usage, "6:", {"faiss", "bm25_okapi"});
  refused_grid("    method: none\n    compression: int4\n", ErrorCode::usage, "7:18: ", {"int4", "gptq:"});
  refused_grid("    method: none\n    history: 0\n", ErrorCode::usage, "7:14: ", {"out of range"});
  refused_grid("    method: none\n    history: many\n", ErrorCode::input, "7:14: ", {"expected an integer", "many"});
  refused_grid("    method: none\n    history: []\n", ErrorCode::input, "7:14: ", {"the list is empty"});
  refused_grid("    method: none\n    history: [1, [2]]\n", ErrorCode::input, "7:18: ", {"expected an integer", "a list"});
  refused_grid("    method: none\n    precision: f64\n", ErrorCode::usage, "7:16: ", {"f64", "int8_act"});
  refused_grid("    method: lora\n", ErrorCode::input, "3:5: ", {"lora", "budget"});
  refused_grid("    method: lora\n    budget: {steps: 0}\n", ErrorCode::usage, "7:21: ", {"out of range"});
  refused_grid("    method: lora\n    budget: {steps: -5}\n", ErrorCode::usage, "7:21: ", {"out of range"});
  refused_grid("    method: lora\n    budget: {steps: 5, seconds: 3}\n", ErrorCode::input, "7:13: ", {"either steps or seconds"});
  refused_grid("    method: lora\n    budget: {stpes: 5}\n", ErrorCode::usage, "7:14: ", {"stpes", "steps, seconds, curve"});
  refused_grid("    method: {name: lora, alpha: 2q}\n    budget: {steps: 5}\n", ErrorCode::input, "6:33: ", {"multiple of the rank"});
  refused_grid("    method: {name: lora, alpha: r/0}\n    budget: {steps: 5}\n", ErrorCode::input, "6:33: ", {"multiple of the rank"});
  refused_grid("    method: {name: lora, lr: {pick: [1]}}\n    budget: {steps: 5}\n", ErrorCode::usage, "6:31: ", {"pick", "choose"});
  refused_grid("    method: {rank: 3}\n", ErrorCode::input, "6:13: ", {"needs a name"});
  refused_grid("    method: none\n    method: rag\n", ErrorCode::input, "7:5: ", {"twice"});
  refused_grid("    method:\n", ErrorCode::input, "6:5: ", {"no value"});
  refused_grid("    method: none\n    seeds: [1, 1]\n", ErrorCode::input, "7:", {"twice"});
  refused_grid("    method: none\n    ram: some\n", ErrorCode::usage, "7:10: ", {"some", "4G"});

  const std::string start = "name: t\ngrids:\n  - name: g\n    model: m\n    method: none\n    task: ";
  refused(start + "{world: {task: LaMP_9}}\n", ErrorCode::usage, "6:26: ", {"LaMP_9", "LaMP_3"});
  refused(start + "{world: {task: LaMP_3, noize: 1}}\n", ErrorCode::usage, "6:34: ", {"noize", "noise", "valid keys of world"});
  refused(start + "{world: {noise: 2}}\n", ErrorCode::usage, "6:27: ", {"out of range"});
  refused(start + "{world: {overlap: none}}\n", ErrorCode::usage, "6:29: ", {"lexical, latent"});
  refused(start + "{lamp: d}\n", ErrorCode::input, "6:11: ", {"\"k\" is missing"});
  refused(start + "{lamp: d, k: LaMP_3, split: random}\n", ErrorCode::usage, "6:39: ", {"user, time"});
  refused(start + "LaMP_3\n", ErrorCode::input, "6:11: ", {"expected a map", "world"});

  refused("name: t\n", ErrorCode::input, "1:1: ", {"needs \"grids\""});
  refused("name: t\ngrids: []\n", ErrorCode::input, "2:8: ", {"empty"});
  refused("name: t\ngrids: 3\n", ErrorCode::input, "2:8: ", {"expected a list"});
  refused("nmae: t\n", ErrorCode::usage, "1:1: ", {"nmae", "name"});
  refused("- 1\n", ErrorCode::input, "1:1: ", {"expected a map"});
  refused("", ErrorCode::input, "1:1: ", {"expected a map", "nothing"});
  refused("name: [t\n", ErrorCode::input, "2:1: ", {"is not YAML"});
  refused("name: t\ndevice: {ram: 4G, profile: 4GB}\ngrids: []\n", ErrorCode::input, "2:28: ", {"both ram and profile"});
  refused("name: t\ndevice: {profile: 7GB}\ngrids: []\n", ErrorCode::usage, "2:19: ", {"7GB", "12GB", "8GB/1000"});
  refused("name: t\ndevice: {over: ignore}\ngrids: []\n", ErrorCode::usage, "2:16: ", {"refuse, skip"});
  refused("name: t\nmetrics: [speed]\ngrids: []\n", ErrorCode::usage, "2:11: ", {"speed", "rougeL"});
  refused(std::string(kHead) + "    method: none\n  - name: g\n    model: m\n", ErrorCode::input, "7:11: ", {"another grid \"g\""});
}

TEST(Plan, HostileTextIsRefusedQuickly) {
  std::string deep = "name: ";
  for (int i = 0; i < 20000; ++i) deep += "[";
  EXPECT_THROW(parse(deep), Error);
  EXPECT_THROW(parse("&a [*a]"), Error);
  EXPECT_THROW(parse("name: &a {b: *a}\ngrids: [*a]\n"), Error);
  EXPECT_THROW(parse(std::string("name: \0\ngrids: [1]", 18)), Error);
  // 10^8 combinations are counted, not made.
  std::string many = "[1";
  for (int i = 2; i <= 100; ++i) many += ", " + std::to_string(i);
  many += "]";
  try {
    grid("    method: {name: lora, rank: " + many + ", alpha: " + many + ", batch: " + many + ", lr: 0.1}\n    budget: {steps: " + many + "}\n");
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::usage);
    EXPECT_NE(std::string(e.what()).find("more than 100000 cells"), std::string::npos) << e.what();
  }
}

TEST(Device, ProfilesAndAmounts) {
  EXPECT_EQ(profile_ram("4GB"), int64_t{4} << 30);
  EXPECT_EQ(profile_ram("16GB/2"), int64_t{8} << 30);
  EXPECT_EQ(device_profiles().size(), 5u);
  for (const char* bad : {"5GB", "", "8GB/", "8GB/0", "8GB/x", "8GB/-2", "8GB/1e99"}) EXPECT_THROW(profile_ram(bad), Error) << bad;
  EXPECT_EQ(parse_memory("123"), 123);
  EXPECT_EQ(parse_memory("1.5K"), 1536);
  EXPECT_EQ(parse_memory("4G"), int64_t{4} << 30);
  EXPECT_EQ(parse_memory("4GB"), int64_t{4} << 30);
  EXPECT_EQ(parse_memory("2MiB"), int64_t{2} << 20);
  for (const char* bad : {"", "x", "-1", "0", "4X", "4GG", "nan", "1e30"}) EXPECT_THROW(parse_memory(bad), Error) << bad;
}

TEST(Identity, DigestsFollowTheBytesThatCount) {
  testing::ScratchDir scratch;
  const std::string dir = scratch / "m";
  make_directories(dir);
  FileHashes hashes;
  write_file(dir + "/config.json", "{}");
  EXPECT_THROW(model_sha256(dir, hashes), Error);
  write_file(dir + "/model.safetensors", "one");
  const std::string first = model_sha256(dir, hashes);
  write_file(dir + "/README.md", "words");
  EXPECT_EQ(model_sha256(dir, hashes), first);
  write_file(dir + "/model.safetensors", "other");
  EXPECT_NE(model_sha256(dir, hashes), first);
  const std::string second = model_sha256(dir, hashes);
  write_file(dir + "/tokenizer.json", "{}");
  EXPECT_NE(model_sha256(dir, hashes), second);
  // The modules of a sentence encoder decide its vectors.
  const std::string third = model_sha256(dir, hashes);
  make_directories(dir + "/1_Pooling");
  write_file(dir + "/1_Pooling/config.json", "{}");
  EXPECT_EQ(model_sha256(dir, hashes), third);
  write_file(dir + "/modules.json", "[]");
  const std::string fourth = model_sha256(dir, hashes);
  EXPECT_NE(fourth, third);
  write_file(dir + "/1_Pooling/config.json", "{\"pooling_mode_cls_token\": true}");
  EXPECT_NE(model_sha256(dir, hashes), fourth);
  // What is remembered gives the same digests; nonsense is forgotten.
  FileHashes again(hashes.to_json());
  EXPECT_EQ(model_sha256(dir, again), model_sha256(dir, hashes));
  EXPECT_EQ(FileHashes(nlohmann::ordered_json{{"x", 3}, {"y", {{"bytes", "a"}}}}).to_json().size(), 0u);
  EXPECT_EQ(resolve_model(dir), dir);
  for (const std::string& missing : {scratch / "none", std::string("zoo:none")}) {
    try {
      resolve_model(missing);
      ADD_FAILURE();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::input);
      EXPECT_NE(e.hint().find("zoo"), std::string::npos) << e.hint();
    }
  }
}

TEST(Identity, TasksHaveTheDigestOfTheirData) {
  testing::ScratchDir scratch;
  FileHashes hashes;
  TaskSpec world;
  world.world.people = 3;
  world.world.queries = 2;
  EXPECT_EQ(task_sha256(world, hashes), make_world(world.world).data.sha256);
  make_directories(scratch / "LaMP_3/time");
  const TaskData data = make_world(world.world).data;
  write_lamp(data, scratch / "LaMP_3/time/dev_questions.json", scratch / "LaMP_3/time/dev_outputs.json");
  TaskSpec lamp;
  lamp.is_world = false;
  lamp.lamp_dir = scratch.path();
  lamp.lamp_task = "LaMP_3";
  EXPECT_EQ(task_sha256(lamp, hashes), read_lamp_split(scratch.path(), "LaMP_3", "time", "dev").sha256);
  lamp.part = "train";
  EXPECT_THROW(task_sha256(lamp, hashes), Error);
}

TEST(Resolve, EqualCellsOfSeveralGridsFallTogether) {
  testing::ScratchDir scratch;
  make_directories(scratch / "m");
  write_file(scratch / "m/model.safetensors", "w");
  const std::string head = "    model: " + (scratch / "m") + "\n    task: {world: {task: LaMP_3, people: 2}}\n";
  const Plan plan = parse("name: t\ngrids:\n  - name: a\n" + head + "    method: [none, lora]\n    budget: {steps: [4, 8]}\n  - name: b\n" + head + "    method: none\n    history: [all, 4]\n");
  MachineFile machine{std::string()};
  const ResolvedPlan r = resolve_plan(plan, machine, {});
  EXPECT_EQ(r.cells.size(), 4u);  // none, lora 4, lora 8; none with history 4
  EXPECT_EQ(r.merged, 2u);
  EXPECT_EQ(r.grids[0].cells, (std::vector<size_t>{0, 1, 2}));
  EXPECT_EQ(r.grids[1].cells, (std::vector<size_t>{0, 3}));
  EXPECT_EQ(r.grids[0].factors, (std::vector<std::string>{"method.name", "steps"}));
  EXPECT_EQ(r.grids[1].factors, std::vector<std::string>{"history"});
  const auto json = r.to_json();
  EXPECT_EQ(json["cells"].size(), 4u);
  EXPECT_EQ(json["grids"][1]["cells"][0], r.cells[0].hash);
  EXPECT_EQ(CellConfig::from_json(json["cells"][r.cells[1].hash]).hash(), r.cells[1].hash);
}

TEST(Resolve, DialsOutOfTheGeneratorsRangeHaveALine) {
  testing::ScratchDir scratch;
  make_directories(scratch / "m");
  write_file(scratch / "m/model.safetensors", "w");
  const Plan plan = parse("name: t\ngrids:\n  - name: a\n    model: " + (scratch / "m") + "\n    method: none\n    task: {world: {task: LaMP_3, keys: 900}}\n");
  MachineFile machine{std::string()};
  try {
    resolve_plan(plan, machine, {});
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::usage);
    EXPECT_EQ(std::string(e.what()).compare(0, 13, "p.yaml:6:11: "), 0) << e.what();
  }
}

}  // namespace
}  // namespace thimble::lab
