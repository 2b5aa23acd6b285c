// The machine that an experiment plays: how much memory a cell may hold and how many threads compute.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thimble::lab {

// A class of devices people carry, by its RAM. All of it counts as available: what the system and other programs take is
// not subtracted.
struct DeviceProfile {
  const char* name;      // "8GB"
  int64_t ram;           // bytes; 1 GB is 2^30
  const char* examples;  // devices of that class
};
const std::vector<DeviceProfile>& device_profiles();

struct Device {
  int64_t ram = 0;      // bytes; 0: no limit
  int threads = 0;      // of the whole run, shared by its jobs; 0: all that the process may use
  std::string profile;  // as written; empty when ram was given in bytes
  bool skip_over = false;  // cells that do not fit are left out instead of refusing the plan
};

// RAM of "8GB", or of "8GB/1000", a device scaled down for small models. The rule of the scale: a study on 8 GB runs
// models of some 10^9 weights; the zoo's have some 10^6. Dividing the RAM by about the ratio of the two keeps the share
// of memory that the weights take, and with it which compression is needed to fit. Throws usage, listing the profiles.
int64_t profile_ram(const std::string& profile);
// "123", "512M", "4G", "1.5GiB" -> bytes; K, M, G, T are powers of 1024. Throws usage.
int64_t parse_memory(const std::string& text);
// 8388608 -> "8.0 MB".
std::string memory_text(int64_t bytes);

}  // namespace thimble::lab
