// Retrieval: items of the history that resemble the question stand in the prompt (Salemi et al., LaMP, arXiv
// 2304.11406).
#include "tools/lab/method.h"

namespace thimble::lab {

extern const Method kRag;
const Method kRag = {"rag", "retrieval", false, true, 0, nullptr};

}  // namespace thimble::lab
