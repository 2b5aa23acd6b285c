// The index is built once over strings that no longer move.
#include "models/tokenizer/vocabulary.h"

namespace thimble {

Vocabulary::Vocabulary(std::vector<std::string> pieces) : pieces_(std::move(pieces)) {
  ids_.reserve(pieces_.size());
  for (size_t id = 0; id < pieces_.size(); ++id) {
    if (!pieces_[id].empty()) ids_.emplace(pieces_[id], static_cast<int32_t>(id));
  }
}

}  // namespace thimble
