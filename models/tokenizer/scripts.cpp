// utf8proc knows no scripts, PCRE2 does: one pass per script over all assigned characters fills a table at first use.
#include "models/tokenizer/scripts.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "models/tokenizer/regex.h"
#include "models/tokenizer/unicode.h"

namespace thimble {
namespace {

// Unicode 14, the frequent ones first so that the rest is looked for in little text.
constexpr const char* kScripts[] = {
    "Han", "Hangul", "Common", "Inherited", "Latin", "Cyrillic", "Greek", "Hiragana", "Katakana", "Adlam", "Ahom",
    "Anatolian_Hieroglyphs", "Arabic", "Armenian", "Avestan", "Balinese", "Bamum", "Bassa_Vah", "Batak", "Bengali",
    "Bhaiksuki", "Bopomofo", "Brahmi", "Braille", "Buginese", "Buhid", "Canadian_Aboriginal", "Carian",
    "Caucasian_Albanian", "Chakma", "Cham", "Cherokee", "Chorasmian", "Coptic", "Cuneiform", "Cypriot", "Cypro_Minoan",
    "Deseret", "Devanagari", "Dives_Akuru", "Dogra", "Duployan", "Egyptian_Hieroglyphs", "Elbasan", "Elymaic",
    "Ethiopic", "Georgian", "Glagolitic", "Gothic", "Grantha", "Gujarati", "Gunjala_Gondi", "Gurmukhi",
    "Hanifi_Rohingya", "Hanunoo", "Hatran", "Hebrew", "Imperial_Aramaic", "Inscriptional_Pahlavi",
    "Inscriptional_Parthian", "Javanese", "Kaithi", "Kannada", "Kayah_Li", "Kharoshthi", "Khitan_Small_Script", "Khmer",
    "Khojki", "Khudawadi", "Lao", "Lepcha", "Limbu", "Linear_A", "Linear_B", "Lisu", "Lycian", "Lydian", "Mahajani",
    "Makasar", "Malayalam", "Mandaic", "Manichaean", "Marchen", "Masaram_Gondi", "Medefaidrin", "Meetei_Mayek",
    "Mende_Kikakui", "Meroitic_Cursive", "Meroitic_Hieroglyphs", "Miao", "Modi", "Mongolian", "Mro", "Multani",
    "Myanmar", "Nabataean", "Nandinagari", "New_Tai_Lue", "Newa", "Nko", "Nushu", "Nyiakeng_Puachue_Hmong", "Ogham",
    "Ol_Chiki", "Old_Hungarian", "Old_Italic", "Old_North_Arabian", "Old_Permic", "Old_Persian", "Old_Sogdian",
    "Old_South_Arabian", "Old_Turkic", "Old_Uyghur", "Oriya", "Osage", "Osmanya", "Pahawh_Hmong", "Palmyrene",
    "Pau_Cin_Hau", "Phags_Pa", "Phoenician", "Psalter_Pahlavi", "Rejang", "Runic", "Samaritan", "Saurashtra", "Sharada",
    "Shavian", "Siddham", "SignWriting", "Sinhala", "Sogdian", "Sora_Sompeng", "Soyombo", "Sundanese", "Syloti_Nagri",
    "Syriac", "Tagalog", "Tagbanwa", "Tai_Le", "Tai_Tham", "Tai_Viet", "Takri", "Tamil", "Tangsa", "Tangut", "Telugu",
    "Thaana", "Thai", "Tibetan", "Tifinagh", "Tirhuta", "Toto", "Ugaritic", "Vai", "Vithkuqi", "Wancho", "Warang_Citi",
    "Yezidi", "Yi", "Zanabazar_Square"};

constexpr char32_t kEnd = 0x32400, kTags = 0xE0000, kTagsEnd = 0xE0200;

class Scripts {
 public:
  Scripts() : script_(kEnd + (kTagsEnd - kTags), 0) {
    std::string rest;
    for (char32_t c = 0; c < kTagsEnd; ++c) {
      if (c == 0xD800) c = 0xE000;  // surrogates
      if (c == kEnd) c = kTags;
      if (c < 0xE000 || c >= 0xF900) append_utf8(rest, c);
    }
    int number = 0;
    for (const char* name : kScripts) {
      ++number;
      // sc, not the default of PCRE2 since 10.40, which is the extensions
      const Regex regex("\\p{sc:" + std::string(name) + "}+", "UnicodeScripts");
      std::string next;
      size_t from = 0;
      for (const auto& [begin, end] : regex.find_all(rest)) {
        next.append(rest, from, begin - from);
        for (size_t pos = begin; pos < end;) script_[index(next_code_point(rest, pos))] = static_cast<uint8_t>(number);
        from = end;
      }
      next.append(rest, from);
      rest = std::move(next);
    }
  }
  int of(char32_t c) const { return c < kEnd || (c >= kTags && c < kTagsEnd) ? script_[index(c)] : 0; }

 private:
  static size_t index(char32_t c) { return c < kEnd ? c : kEnd + (c - kTags); }
  std::vector<uint8_t> script_;
};

}  // namespace

bool is_script_name(std::string_view name) {
  return std::find(std::begin(kScripts), std::end(kScripts), name) != std::end(kScripts);
}

int split_script(char32_t c) {
  static const Scripts scripts;
  constexpr int kHan = 1, kHiragana = 8, kKatakana = 9;
  if (c == ' ') return 0;
  if (c == 0x30FC) return kHan;
  const int script = scripts.of(c);
  return script == kHiragana || script == kKatakana ? kHan : script;
}

}  // namespace thimble
