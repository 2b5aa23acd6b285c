// Parity with PEFT's own adapters and with an optimizer trajectory, through the command line.
#include <nlohmann/json.hpp>

#include "kernels/isa.h"
#include "tests/tools/small_model.h"

namespace thimble::tools_test {
namespace {

std::string data(const std::string& name) { return std::string(THIMBLE_SOURCE_DIR) + "/tests/data/" + name; }

TEST(Peft, AdaptersMeetTheirReferenceOnEveryTier) {
  for (const char* name : {"llama_lora", "llama_dora", "llama_ia3", "llama_prompt_tuning", "llama_prefix_tuning", "neox_lora"})
    for (const char* isa : {"ref", "avx2", "avx512"}) {
      Tier tier;
      if (!tier_from_name(isa, &tier) || !tier_supported(tier)) continue;
      const std::string base = data(std::string(name).rfind("neox", 0) == 0 ? "oracle/gpt_neox" : "oracle/llama_gqa_untied");
      std::string digests[2];
      for (int threads : {1, 2}) {
        const RunResult r = thimble({"parity", data(std::string("peft/") + name), "--base", base, "--isa", isa, "--threads",
                                         std::to_string(threads), "--json"});
        ASSERT_EQ(r.status, 0) << name << " " << isa << "\n" << r.out << r.err;
        const auto json = nlohmann::json::parse(r.out);
        EXPECT_EQ(json.at("compared"), json.at("in_file"));
        digests[threads - 1] = json.at("digest");
      }
      EXPECT_EQ(digests[0], digests[1]) << name << " " << isa;
    }
}

TEST(Peft, TrajectoryOfSixAdamwSteps) {
  const RunResult r = thimble({"parity", "--trajectory", data("trajectory/adamw6_clip1_cosine_warmup2.safetensors"),
                                   "--base", data("oracle/llama_gqa_untied"), "--json"});
  ASSERT_EQ(r.status, 0) << r.out << r.err;
  EXPECT_EQ(nlohmann::json::parse(r.out).at("checks").size(), 6u + 7u + 21u);
}

}  // namespace
}  // namespace thimble::tools_test
