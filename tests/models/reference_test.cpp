// The independent double-precision model first against numbers of the original implementations, so that it may judge.
#include <filesystem>
#include <fstream>
#include <random>

#include "tests/models/reference_model.h"
#include "tests/models/support.h"

namespace thimble::models_test {
namespace {

namespace fs = std::filesystem;

std::vector<std::vector<int32_t>> sequences_of(const reference::Tensor& ids) {
  std::vector<std::vector<int32_t>> list;
  const auto length = static_cast<size_t>(ids.shape[1]);
  for (size_t i = 0; i < ids.data.size(); i += length) {
    list.emplace_back();
    for (size_t j = 0; j < length; ++j) list.back().push_back(static_cast<int32_t>(ids.data[i + j]));
  }
  return list;
}

struct StoredCase {
  nlohmann::json config;
  reference::Tensors weights, expected;
};

std::vector<std::pair<std::string, StoredCase>> stored_cases() {
  std::vector<std::pair<std::string, StoredCase>> cases;
  for (const std::string& dir : case_dirs(shared("oracle/hf"))) {
    StoredCase c;
    for (const auto& entry : fs::directory_iterator(dir)) {
      const std::string name = entry.path().filename().string();
      if (name.find("model") == 0 && entry.path().extension() == ".safetensors")
        c.weights.merge(reference::read_safetensors(entry.path().string()));
    }
    if (c.weights.empty() || !fs::exists(dir + "/config.json")) continue;
    c.config = read_json(dir + "/config.json");
    c.expected = reference::read_safetensors(dir + "/expected.safetensors");
    cases.emplace_back(base_name(dir), std::move(c));
  }
  return cases;
}

TEST(ReferenceModel, ReproducesEveryStoredCase) {
  const auto cases = stored_cases();
  if (cases.empty()) GTEST_SKIP() << "not here: " << shared("oracle/hf");
  for (const auto& [name, c] : cases) {
    const reference::Model model(c.config);
    std::set<std::string> declared;
    for (const reference::Declared& d : model.declared()) declared.insert(d.name);
    for (const auto& [tensor, value] : c.weights) {
      const bool known = tensor.find("pooler") == 0 || declared.count(tensor) > 0;
      EXPECT_TRUE(known) << name << ": " << tensor << " is not declared";
    }
    const auto ids = sequences_of(c.expected.at("input_ids"));
    double worst = 0;
    if (name.find("bert") == 0) {
      const auto types = sequences_of(c.expected.at("token_type_ids")), mask = sequences_of(c.expected.at("attention_mask"));
      const reference::Tensor& want = c.expected.at("last_hidden_state");
      for (size_t s = 0; s < ids.size(); ++s) {
        const auto length = static_cast<int64_t>(std::count(mask[s].begin(), mask[s].end(), 1));
        const auto got = model.hidden(c.weights, {ids[s].begin(), ids[s].begin() + length}, {types[s].begin(), types[s].begin() + length});
        const size_t row = s * static_cast<size_t>(want.shape[1] * want.shape[2]);
        for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::fabs(got[i] - want.data[row + i]));
      }
    } else {
      const reference::Tensor& want = c.expected.at("logits");
      for (size_t s = 0; s < ids.size(); ++s) {
        const auto got = model.logits(c.weights, ids[s]);
        for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::fabs(got[i] - want.data[s * got.size() + i]));
      }
      EXPECT_NEAR(model.loss(c.weights, ids), c.expected.at("loss").data[0], 1e-5) << name;
    }
    EXPECT_LE(worst, 3e-5) << name;
  }
}

// One joint direction over all tensors: differences of the loss against the stored gradients.
TEST(ReferenceModel, DifferencesAgreeWithStoredGradients) {
  const auto cases = stored_cases();
  if (cases.empty()) GTEST_SKIP() << "not here: " << shared("oracle/hf");
  int compared = 0;
  for (const auto& entry : cases) {
    const std::string& name = entry.first;
    const StoredCase& c = entry.second;
    if (name.find("bert") == 0) continue;
    bool all = true;
    for (const auto& [tensor, value] : c.weights) all = all && c.expected.count("grad." + tensor) > 0;
    if (!all) continue;
    const reference::Model model(c.config);
    const auto ids = sequences_of(c.expected.at("input_ids"));
    std::mt19937_64 engine(7);
    reference::Tensors direction;
    double want = 0, norm = 0;
    for (const auto& [tensor, value] : c.weights) {
      std::vector<double>& d = direction[tensor].data;
      const std::vector<double>& g = c.expected.at("grad." + tensor).data;
      for (double slope : g) {
        d.push_back(engine() & 1 ? 1 : -1);
        want += slope * d.back();
        norm += slope * slope;
      }
    }
    const auto loss_at = [&](double step) {
      reference::Tensors moved = c.weights;
      for (auto& [tensor, value] : moved)
        for (size_t i = 0; i < value.data.size(); ++i) value.data[i] += step * direction[tensor].data[i];
      return model.loss(moved, ids);
    };
    constexpr double kStep = 1e-6;
    EXPECT_NEAR((loss_at(kStep) - loss_at(-kStep)) / (2 * kStep), want, 4e-5 * std::sqrt(norm)) << name;
    ++compared;
  }
  EXPECT_GE(compared, 12);
}

}  // namespace
}  // namespace thimble::models_test
