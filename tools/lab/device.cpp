#include "tools/lab/device.h"

#include <fmt/format.h>

#include <cctype>
#include <cmath>
#include <cstdlib>

#include "tensor/error.h"

namespace thimble::lab {

const std::vector<DeviceProfile>& device_profiles() {
  constexpr int64_t kGb = int64_t{1} << 30;
  static const std::vector<DeviceProfile> rows = {
      {"4GB", 4 * kGb, "entry phones, boards of the Raspberry Pi 4 class"},
      {"6GB", 6 * kGb, "middle phones"},
      {"8GB", 8 * kGb, "upper phones, boards of the Jetson Orin Nano and Raspberry Pi 5 class"},
      {"12GB", 12 * kGb, "top phones"},
      {"16GB", 16 * kGb, "gaming phones, small laptops, boards of the Jetson Orin NX class"},
  };
  return rows;
}

int64_t profile_ram(const std::string& profile) {
  const size_t slash = profile.find('/');
  const std::string name = profile.substr(0, slash);
  double scale = 1;
  if (slash != std::string::npos) {
    const std::string text = profile.substr(slash + 1);
    char* end = nullptr;
    scale = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !(scale >= 1) || !(scale <= 1e6))
      throw Error(ErrorCode::usage, fmt::format("\"{}\" is not a scaled profile: expected a number from 1 to 1000000 behind the slash", profile),
                  "for example 8GB/1000");
  }
  std::string names;
  for (const DeviceProfile& p : device_profiles()) {
    if (name == p.name) return static_cast<int64_t>(static_cast<double>(p.ram) / scale);
    names += (names.empty() ? "" : ", ") + std::string(p.name);
  }
  throw Error(ErrorCode::usage, fmt::format("unknown profile \"{}\"", name),
              "valid profiles: " + names + "; scaled down for small models: 8GB/1000");
}

int64_t parse_memory(const std::string& text) {
  char* end = nullptr;
  const double value = text.empty() ? 0 : std::strtod(text.c_str(), &end);
  std::string unit = end ? end : "";
  for (char& c : unit) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  if (unit.size() > 2 && unit.substr(1) == "IB") unit.resize(1);
  if (unit.size() == 2 && unit[1] == 'B') unit.resize(1);
  if (unit == "B") unit.clear();
  const size_t power = unit.empty() ? 0 : std::string("KMGT").find(unit) + 1;
  const double bytes = value * std::pow(1024.0, static_cast<double>(power));
  if (unit.size() > 1 || (!unit.empty() && power == 0) || !(value > 0) || !(bytes >= 1) || bytes > 9e18)
    throw Error(ErrorCode::usage, fmt::format("\"{}\" is not an amount of memory", text),
                "give bytes, or a number with K, M, G or T: 512M, 4G");
  return static_cast<int64_t>(bytes);
}

std::string memory_text(int64_t bytes) {
  const double b = static_cast<double>(bytes);
  if (b >= 1073741824.0) return fmt::format("{:.1f} GB", b / 1073741824.0);
  if (b >= 1048576.0) return fmt::format("{:.1f} MB", b / 1048576.0);
  return fmt::format("{:.0f} KB", b / 1024.0);
}

}  // namespace thimble::lab
