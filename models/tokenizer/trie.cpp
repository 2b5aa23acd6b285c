// Edges of all nodes in one open-addressing table; the root, where most searches end, has an array.
#include "models/tokenizer/trie.h"

namespace thimble {

void ByteTrie::clear() {
  root_.fill(-1);
  slots_.assign(64, {0, -1});
  values_.assign(1, -1);
  used_ = 0;
}

void ByteTrie::grow() {
  std::vector<Slot> old(slots_.size() * 2, {0, -1});
  old.swap(slots_);
  for (const Slot& entry : old) {
    if (entry.node < 0) continue;
    size_t slot = slot_of(entry.key);
    while (slots_[slot].node >= 0) slot = (slot + 1) & (slots_.size() - 1);
    slots_[slot] = entry;
  }
}

void ByteTrie::add(std::string_view key, int32_t value) {
  if (key.empty()) return;
  int32_t node = kRoot;
  for (const char c : key) {
    const auto byte = static_cast<unsigned char>(c);
    int32_t next = step(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(values_.size());
      values_.push_back(-1);
      if (node == kRoot) {
        root_[byte] = next;
      } else {
        if (++used_ * 2 > slots_.size()) grow();
        const uint64_t edge = static_cast<uint64_t>(node) << 8 | byte;
        size_t slot = slot_of(edge);
        while (slots_[slot].node >= 0) slot = (slot + 1) & (slots_.size() - 1);
        slots_[slot] = {edge, next};
      }
    }
    node = next;
  }
  if (values_[static_cast<size_t>(node)] < 0) values_[static_cast<size_t>(node)] = value;
}

}  // namespace thimble
