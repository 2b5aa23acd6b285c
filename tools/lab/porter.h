// Porter's suffix stripping (M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980), for ROUGE with stems.
#pragma once

#include <string>

namespace thimble::lab {

// word: lower-case ASCII letters (others count as consonants). Words of one or two letters stay.
std::string porter_stem(std::string word);

}  // namespace thimble::lab
