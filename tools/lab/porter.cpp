#include "tools/lab/porter.h"

#include <string_view>
#include <utility>
#include <vector>

namespace thimble::lab {
namespace {

class Stemmer {
 public:
  explicit Stemmer(std::string word) : w_(std::move(word)) {}

  std::string run() {
    plural();
    past();
    if (ends("y") && has_vowel(w_.size() - 1)) w_.back() = 'i';
    replace_first({{"ational", "ate"}, {"tional", "tion"}, {"enci", "ence"}, {"anci", "ance"}, {"izer", "ize"},
                   {"abli", "able"}, {"alli", "al"}, {"entli", "ent"}, {"eli", "e"}, {"ousli", "ous"}, {"ization", "ize"},
                   {"ation", "ate"}, {"ator", "ate"}, {"alism", "al"}, {"iveness", "ive"}, {"fulness", "ful"},
                   {"ousness", "ous"}, {"aliti", "al"}, {"iviti", "ive"}, {"biliti", "ble"}}, 0);
    replace_first({{"icate", "ic"}, {"ative", ""}, {"alize", "al"}, {"iciti", "ic"}, {"ical", "ic"}, {"ful", ""}, {"ness", ""}}, 0);
    replace_first({{"al", ""}, {"ance", ""}, {"ence", ""}, {"er", ""}, {"ic", ""}, {"able", ""}, {"ible", ""}, {"ant", ""},
                   {"ement", ""}, {"ment", ""}, {"ent", ""}, {"ion", ""}, {"ou", ""}, {"ism", ""}, {"ate", ""}, {"iti", ""},
                   {"ous", ""}, {"ive", ""}, {"ize", ""}}, 1);
    if (ends("e")) {
      const size_t stem = w_.size() - 1;
      const int m = measure(stem);
      if (m > 1 || (m == 1 && !short_end(stem))) w_.pop_back();
    }
    if (ends("ll") && measure(w_.size()) > 1) w_.pop_back();
    return w_;
  }

 private:
  bool consonant(size_t i) const {
    switch (w_[i]) {
      case 'a': case 'e': case 'i': case 'o': case 'u':
        return false;
      case 'y':
        return i == 0 || !consonant(i - 1);
      default:
        return true;
    }
  }
  // Changes from vowels to consonants in the first n letters: the m of [C](VC)^m[V].
  int measure(size_t n) const {
    int m = 0;
    for (size_t i = 1; i < n; ++i) m += consonant(i) && !consonant(i - 1);
    return m;
  }
  bool has_vowel(size_t n) const {
    for (size_t i = 0; i < n; ++i)
      if (!consonant(i)) return true;
    return false;
  }
  bool ends(std::string_view s) const { return w_.size() >= s.size() && w_.compare(w_.size() - s.size(), s.size(), s) == 0; }
  bool double_consonant() const {
    const size_t n = w_.size();
    return n >= 2 && w_[n - 1] == w_[n - 2] && consonant(n - 1);
  }
  // The first n letters end in consonant, vowel, consonant, the last of them not w, x or y.
  bool short_end(size_t n) const {
    return n >= 3 && consonant(n - 3) && !consonant(n - 2) && consonant(n - 1) && w_[n - 1] != 'w' && w_[n - 1] != 'x' && w_[n - 1] != 'y';
  }

  void plural() {
    if (ends("sses") || ends("ies")) w_.resize(w_.size() - 2);
    else if (ends("s") && !ends("ss")) w_.pop_back();
  }

  void past() {
    if (ends("eed")) {
      if (measure(w_.size() - 3) > 0) w_.pop_back();
      return;
    }
    const size_t cut = ends("ed") ? 2 : ends("ing") ? 3 : 0;
    if (cut == 0 || !has_vowel(w_.size() - cut)) return;
    w_.resize(w_.size() - cut);
    if (ends("at") || ends("bl") || ends("iz")) w_ += 'e';
    else if (double_consonant() && !ends("l") && !ends("s") && !ends("z")) w_.pop_back();
    else if (measure(w_.size()) == 1 && short_end(w_.size())) w_ += 'e';
  }

  // The longest suffix of the list that the word has decides, and is replaced where its stem's measure is greater than m.
  void replace_first(const std::vector<std::pair<std::string_view, std::string_view>>& rules, int m) {
    const std::pair<std::string_view, std::string_view>* rule = nullptr;
    for (const auto& r : rules)
      if (ends(r.first) && (!rule || r.first.size() > rule->first.size())) rule = &r;
    if (!rule) return;
    const size_t stem = w_.size() - rule->first.size();
    if (measure(stem) <= m) return;
    if (rule->first == "ion" && (stem == 0 || (w_[stem - 1] != 's' && w_[stem - 1] != 't'))) return;
    w_.resize(stem);
    w_ += rule->second;
  }

  std::string w_;
};

}  // namespace

std::string porter_stem(std::string word) { return word.size() <= 2 ? word : Stemmer(std::move(word)).run(); }

}  // namespace thimble::lab
