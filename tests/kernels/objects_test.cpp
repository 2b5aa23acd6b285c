// The object files of the SIMD tiers, looked at with nm and objdump: nothing inline that the linker could merge across
// tiers (that is how illegal instructions reach old machines), and the instructions that a tier exists for.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

namespace thimble {
namespace {

const char* const kTiers[] = {"avx2", "avx2_vnni", "avx512", "avx512_vnni", "avx512_bf16"};

std::string output_of(const std::string& command) {
  std::string text;
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return text;
  std::array<char, 65536> buffer;
  for (size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) text.append(buffer.data(), n);
  pclose(pipe);
  return text;
}

bool has_tool(const std::string& tool) { return !output_of("command -v " + tool + " 2>/dev/null").empty(); }

std::filesystem::path tier_folder(const std::string& tier) {
  return std::filesystem::path(THIMBLE_BINARY_DIR) / "kernels/CMakeFiles" / ("thimble_kernels_" + tier + ".dir") /
         "simd";
}

std::vector<std::filesystem::path> objects(const std::string& tier) {
  std::vector<std::filesystem::path> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(tier_folder(tier), ignored)) {
    if (entry.path().extension() == ".o") found.push_back(entry.path());
  }
  return found;
}

TEST(Objects, OnlyInitIsVisible) {
  if (objects("avx2").empty()) GTEST_SKIP() << "this build has no SIMD tiers";
  if (!has_tool("nm")) GTEST_SKIP() << "nm is not installed";
  for (const std::string tier : kTiers) {
    const auto files = objects(tier);
    ASSERT_FALSE(files.empty()) << tier;
    for (const auto& file : files) {
      const std::string text = output_of("nm --defined-only '" + file.string() + "'");
      EXPECT_NE(text.find(" T "), std::string::npos) << file;
      for (size_t at = 0; at < text.size();) {
        const size_t end = text.find('\n', at);
        const std::string line = text.substr(at, end - at);
        at = end + 1;
        const size_t space = line.find(' ');
        if (space == std::string::npos || line.size() < space + 3) continue;
        const char kind = line[space + 1];
        const std::string name = line.substr(space + 3);
        // Lower case is local, except the weak and unique kinds.
        if (kind >= 'a' && kind <= 'z' && kind != 'w' && kind != 'v' && kind != 'u') continue;
        const std::string prefix = "_ZN7thimble" + std::to_string(tier.size()) + tier;
        EXPECT_EQ(kind, 'T') << tier << ": " << line;
        EXPECT_EQ(name.find(prefix), 0u) << tier << ": " << line;
        EXPECT_NE(name.find("init", prefix.size()), std::string::npos) << tier << ": " << line;
      }
    }
  }
}

void expect_instruction(const std::string& tier, const std::string& file, const std::string& instruction) {
  if (!std::filesystem::exists(tier_folder(tier))) GTEST_SKIP() << "this build has no tier " << tier;
  if (!has_tool("objdump")) GTEST_SKIP() << "objdump is not installed";
  const std::string path = (tier_folder(tier) / (file + ".cpp.o")).string();
  ASSERT_TRUE(std::filesystem::exists(path)) << path;
  EXPECT_NE(output_of("objdump -d '" + path + "'").find(instruction), std::string::npos)
      << tier << "/" << file << " without " << instruction;
}

TEST(Objects, GemmMultipliesAndAddsInOne) {
  expect_instruction("avx2", "gemm_f32", "vfmadd");
  expect_instruction("avx512", "gemm_f32", "vfmadd");
  expect_instruction("avx512", "attention", "vfmadd");
}
TEST(Objects, VnniTiersUseIt) {
  expect_instruction("avx512_vnni", "gemm_i8", "vpdpbusd");
  expect_instruction("avx2_vnni", "gemm_i8", "vpdpbusd");
  expect_instruction("avx512_vnni", "scan_i8", "vpdpbusd");
  expect_instruction("avx2_vnni", "scan_i8", "vpdpbusd");
}
TEST(Objects, Bf16TierConvertsInHardware) {
  expect_instruction("avx512_bf16", "convert", "vcvtneps2bf16");
  expect_instruction("avx512_bf16", "pairs", "vcvtne2ps2bf16");
}
TEST(Objects, Bf16TierMultipliesInHardware) { expect_instruction("avx512_bf16", "gemm_bf16", "vdpbf16ps"); }

TEST(Objects, LowTiersStayHonest) {
  if (objects("avx2").empty()) GTEST_SKIP() << "this build has no SIMD tiers";
  if (!has_tool("objdump")) GTEST_SKIP() << "objdump is not installed";
  for (const auto& file : objects("avx2")) {
    EXPECT_EQ(output_of("objdump -d '" + file.string() + "'").find("%zmm"), std::string::npos) << file;
  }
}

}  // namespace
}  // namespace thimble
