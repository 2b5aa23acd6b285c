// thimble parity must notice: a gradient that is off by a thousandth ends with 7, a key that nobody compares with 3; and the
// digest does not depend on threads.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/io/safetensors.h"
#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

std::string oracle(const std::string& name) { return std::string(THIMBLE_SOURCE_DIR) + "/tests/data/oracle/" + name; }

struct Item {
  std::string name;
  SafetensorsDtype dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// A copy of a case whose expected.safetensors has been changed.
class ChangedCase {
 public:
  explicit ChangedCase(const std::string& name) {
    for (const auto& entry : std::filesystem::directory_iterator(oracle(name)))
      if (entry.path().filename() != "expected.safetensors")
        std::filesystem::copy_file(entry.path(), dir_ / entry.path().filename().string());
    const SafetensorsFile file(oracle(name) + "/expected.safetensors");
    for (const TensorInfo& t : file.tensors())
      items_.push_back({t.name, t.dtype, t.shape, std::string(reinterpret_cast<const char*>(file.data(t.name)), t.bytes)});
  }
  Item& item(const std::string& name) {
    for (Item& i : items_)
      if (i.name == name) return i;
    throw std::runtime_error("no tensor " + name);
  }
  void add(Item item) { items_.push_back(std::move(item)); }
  void erase(const std::string& name) {
    for (size_t i = 0; i < items_.size(); ++i)
      if (items_[i].name == name) items_.erase(items_.begin() + static_cast<int64_t>(i));
  }
  RunResult run(std::vector<std::string> options = {"--json"}) {
    std::vector<NamedTensor> tensors;
    for (const Item& i : items_) tensors.push_back({i.name, i.dtype, i.shape, i.bytes.data()});
    write_safetensors(dir_ / "expected.safetensors", tensors);
    options.insert(options.begin(), {"parity", dir_.path()});
    return thimble(options);
  }

 private:
  ScratchDir dir_;
  std::vector<Item> items_;
};

void scale_floats(Item& item, double factor) {
  for (size_t i = 0; i + 4 <= item.bytes.size(); i += 4) {
    float value = 0;
    std::memcpy(&value, &item.bytes[i], 4);
    value = static_cast<float>(double(value) * factor);
    std::memcpy(&item.bytes[i], &value, 4);
  }
}

std::vector<std::string> failed_checks(const RunResult& r) {
  std::vector<std::string> names;
  const nlohmann::json j = nlohmann::json::parse(r.out, nullptr, false);
  if (!j.is_object()) return {"no JSON: " + r.out + r.err};
  for (const auto& check : j.at("checks"))
    if (!check.at("pass").get<bool>()) names.push_back(check.at("name"));
  return names;
}

TEST(ParityCommand, StoredCasesPassWithOneDigestForAnyThreads) {
  for (const auto& entry : std::filesystem::directory_iterator(oracle(""))) {
    if (!entry.is_directory()) continue;
    std::string digest;
    for (const char* threads : {"1", "2", "3"}) {
      const nlohmann::json j = expect_json(thimble({"parity", entry.path().string(), "--json", "--threads", threads}), "thimble.parity/1");
      EXPECT_EQ(j.value("pass", false), true) << entry.path();
      EXPECT_EQ(j.value("compared", 0), j.value("in_file", -1)) << entry.path();
      if (digest.empty()) digest = j.value("digest", "");
      EXPECT_EQ(j.value("digest", ""), digest) << entry.path() << ", threads " << threads;
      EXPECT_EQ(digest.size(), 64u);
    }
  }
}

TEST(ParityCommand, AGradientOffByAThousandthIsAMismatch) {
  for (const char* tensor : {"model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"}) {
    ChangedCase c("llama_gqa_untied");
    scale_floats(c.item(std::string("grad.") + tensor), 1.001);
    const RunResult r = c.run();
    EXPECT_EQ(r.status, 7) << tensor << r.err;
    EXPECT_EQ(failed_checks(r), std::vector<std::string>{std::string("grad.") + tensor});
  }
  // A hundredth of that passes: the tolerance is 1e-4 of the norm.
  ChangedCase c("llama_gqa_untied");
  scale_floats(c.item("grad.model.norm.weight"), 1.00001);
  EXPECT_EQ(c.run().status, 0);
}

TEST(ParityCommand, OtherMismatches) {
  const auto expect_mismatch = [](const char* key, const char* check, auto&& change) {
    ChangedCase c("llama_gqa_untied");
    change(c.item(key));
    const RunResult r = c.run();
    EXPECT_EQ(r.status, 7) << key << r.err;
    const std::vector<std::string> failed = failed_checks(r);
    ASSERT_FALSE(failed.empty()) << key;
    EXPECT_EQ(failed.front().rfind(check, 0), 0u) << failed.front();
  };
  const auto add_to_last = [](float amount) {
    return [amount](Item& item) {
      float value = 0;
      std::memcpy(&value, &item.bytes[item.bytes.size() - 4], 4);
      value += amount;
      std::memcpy(&item.bytes[item.bytes.size() - 4], &value, 4);
    };
  };
  expect_mismatch("logits", "logits", add_to_last(2e-4f));
  expect_mismatch("logits", "logits", add_to_last(NAN));
  expect_mismatch("loss", "loss", add_to_last(3e-5f));
  expect_mismatch("grad.lm_head.weight", "grad.lm_head.weight", add_to_last(NAN));
  expect_mismatch("greedy_ids", "greedy_ids", [](Item& item) { item.bytes[0] = static_cast<char>(item.bytes[0] ^ 1); });
}

TEST(ParityCommand, QuantizedWeightsAreComparedExactly) {
  ChangedCase c("gptq4_g32_asym");
  std::string key;
  {
    const SafetensorsFile file(oracle("gptq4_g32_asym") + "/expected.safetensors");
    for (const TensorInfo& t : file.tensors())
      if (t.name.rfind("dequant.", 0) == 0) key = t.name;
  }
  ASSERT_FALSE(key.empty());
  scale_floats(c.item(key), 1.000001);
  const RunResult r = c.run();
  EXPECT_EQ(r.status, 7) << r.err;
  EXPECT_EQ(failed_checks(r), std::vector<std::string>{key});
}

TEST(ParityCommand, AKeyThatIsNotComparedIsBadInput) {
  for (const char* key : {"pooler_output", "grad.model.layers.9.mlp.up_proj.weight", "dequant.nothing.weight", "Logits"}) {
    ChangedCase c("llama_gqa_untied");
    c.add({key, SafetensorsDtype::f32, {1}, std::string(4, '\0')});
    expect_failure(c.run({}), 3, {key, "not compared"});
  }
}

TEST(ParityCommand, BadInput) {
  ChangedCase no_ids("llama_gqa_untied");
  no_ids.erase("input_ids");
  expect_failure(no_ids.run({}), 3, {"input_ids"});
  ChangedCase foreign("llama_gqa_untied");
  std::memset(foreign.item("input_ids").bytes.data(), 0x7f, 2);  // 32639: beyond the vocabulary
  expect_failure(foreign.run({}), 3, {"32639"});
  ChangedCase shape("llama_gqa_untied");
  Item& logits = shape.item("logits");
  logits.shape = {static_cast<int64_t>(logits.bytes.size() / 4) - 1};
  logits.bytes.resize(logits.bytes.size() - 4);
  expect_failure(shape.run({}), 3, {"logits"});
  expect_failure(thimble({"parity", oracle("no_such_case")}), 3, {"no_such_case"});
}

}  // namespace
}  // namespace thimble::tools_test
