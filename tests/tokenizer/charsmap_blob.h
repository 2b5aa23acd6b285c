// Writes SentencePiece's table of character replacements for a few keys, from the description of the double array.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace thimble {

inline std::string charsmap_blob(const std::map<std::string, std::string>& entries) {
  std::string replacements;
  std::map<std::string, uint32_t> value;
  for (const auto& [key, to] : entries) {
    value[key] = static_cast<uint32_t>(replacements.size());
    replacements += to + '\0';
  }
  // Nodes by prefix; the children of a node at `at` lie at (at ^ offset) ^ byte, its value at (at ^ offset).
  std::vector<uint32_t> units(8192, 0);
  std::vector<bool> used(units.size(), false);
  used[0] = true;
  const auto place = [&](const auto& self, const std::string& prefix, uint32_t at) -> void {
    std::vector<unsigned char> bytes;
    for (int b = 1; b < 256; ++b) {
      const std::string child = prefix + static_cast<char>(b);
      const auto found = entries.lower_bound(child);
      if (found != entries.end() && found->first.compare(0, child.size(), child) == 0) {
        bytes.push_back(static_cast<unsigned char>(b));
      }
    }
    const bool leaf = value.count(prefix) > 0;
    uint32_t base = 1;
    for (;; ++base) {
      bool free = !used[base];
      for (const unsigned char b : bytes) free = free && !used[base ^ b];
      if (free) break;
    }
    used[base] = true;  // also where no value hangs, so that bases differ
    for (const unsigned char b : bytes) used[base ^ b] = true;
    units[at] |= (at ^ base) << 10 | (leaf ? 1U << 8 : 0);
    if (leaf) units[base] = value.at(prefix) | 1U << 31;
    for (const unsigned char b : bytes) {
      units[base ^ b] |= b;
      self(self, prefix + static_cast<char>(b), base ^ b);
    }
  };
  place(place, "", 0);
  std::string blob(4, '\0');
  const auto bytes = static_cast<uint32_t>(units.size() * 4);
  std::memcpy(blob.data(), &bytes, 4);
  blob.append(reinterpret_cast<const char*>(units.data()), bytes);
  return blob + replacements;
}

}  // namespace thimble
