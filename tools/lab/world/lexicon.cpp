#include "tools/lab/world/lexicon.h"

#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "tools/lab/world/templates.h"

namespace thimble::lab {

const std::array<std::array<const char*, kNouns>, kTopics> kTopicNouns = {{
    {"boat", "harbor", "sail", "anchor", "wave", "pier", "reef", "tide"},
    {"bread", "soup", "oven", "kettle", "spoon", "flour", "butter", "pepper"},
    {"rose", "seed", "hedge", "spade", "lawn", "tulip", "soil", "orchard"},
    {"drum", "violin", "choir", "song", "flute", "piano", "melody", "chord"},
    {"ball", "race", "goal", "team", "match", "coach", "stadium", "medal"},
    {"lesson", "teacher", "pencil", "exam", "class", "library", "chalk", "pupil"},
    {"rail", "engine", "station", "ticket", "tunnel", "wagon", "signal", "platform"},
    {"oak", "fern", "trail", "moss", "wolf", "owl", "cabin", "stream"},
    {"star", "comet", "rocket", "moon", "orbit", "planet", "crater", "telescope"},
    {"stall", "coin", "basket", "trader", "price", "bargain", "vendor", "purse"},
    {"camera", "actor", "scene", "script", "director", "studio", "poster", "premiere"},
    {"doctor", "clinic", "pulse", "nurse", "bandage", "fever", "pill", "surgeon"},
    {"rain", "storm", "cloud", "thunder", "frost", "breeze", "drought", "fog"},
    {"law", "judge", "court", "trial", "verdict", "lawyer", "jury", "witness"},
    {"barn", "cow", "plow", "wheat", "tractor", "goat", "hay", "shepherd"},
    {"canvas", "brush", "sculptor", "gallery", "sketch", "marble", "fresco", "portrait"},
}};

const std::array<std::array<std::array<const char*, 2>, 2>, kAttributes> kAdjectives = {{
    {{{"quick", "rapid"}, {"slow", "sluggish"}}},
    {{{"merry", "bright"}, {"gloomy", "dark"}}},
    {{{"brief", "compact"}, {"long", "endless"}}},
    {{{"modern", "fresh"}, {"old", "ancient"}}},
    {{{"quiet", "silent"}, {"loud", "noisy"}}},
    {{{"cheap", "thrifty"}, {"costly", "lavish"}}},
    {{{"huge", "vast"}, {"small", "tiny"}}},
    {{{"neat", "tidy"}, {"messy", "wild"}}},
}};

const std::array<const char*, kTags> kTagWords = {"drama",  "comedy",  "thriller", "romance", "mystery", "fantasy",
                                                  "western", "musical", "satire",   "tragedy", "horror",  "action",
                                                  "noir",   "epic",    "fable",    "biography"};

const std::array<const char*, kOpeners> kOpenerWords = {"latest news", "friendly note", "inside story", "plain facts",
                                                        "open letter", "pocket guide",  "first look",   "big question"};

const std::array<const char*, kClosers> kCloserWords = {"right now", "this week", "into detail", "for everyone",
                                                        "once more", "at last",   "made simple", "under review"};

const std::array<const char*, kVerbs> kVerbWords = {"saw", "met", "found", "watched"};

const std::array<const char*, kAuthors> kAuthorWords = {
    "alder", "birch", "cedar", "dahlia", "elder", "fig",    "ginger", "hazel", "iris",  "jasmine", "kale",
    "laurel", "maple", "nettle", "olive", "poppy", "quince", "rowan", "sage",  "thyme", "umber",   "violet",
    "willow", "yarrow", "zinnia", "aspen", "basil", "clover", "daisy", "elm",   "fennel", "grape"};

namespace {

const std::array<const char*, 8> kNameHeads = {"tar", "mel", "bor", "ket", "lin", "dov", "sar", "vig"};
const std::array<const char*, 8> kNameTails = {"vin", "ora", "eck", "ulf", "ida", "ane", "osk", "imo"};
const std::array<const char*, 8> kTownHeads = {"brent", "holm", "kirk", "wex", "dun", "ash", "far", "graf"};
const std::array<const char*, 8> kTownTails = {"ton", "by", "ford", "stad", "mere", "dale", "wick", "haven"};

// Letter groups that are frequent in English: text from outside the world needs fewer tokens with them.
const char* const kMerges =
    "th he in er an re on at en nd st es ng or te of ed is it al ar ou to nt le ve me ly de se ha ea co ra ri ro li io "
    "la el ti ic ur ma ch si om us as ce ho be fo di no pe lo tr un ss wh";

std::string byte_symbol(int byte) {
  // GPT-2's mapping of bytes to printable characters.
  int code = byte;
  if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255))) {
    code = 256;
    for (int b = 0; b < byte; ++b)
      if (!((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255))) ++code;
  }
  std::string out;
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else {
    out += static_cast<char>(0xC0 | code >> 6);
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
  return out;
}

void add_words(const std::string& text, std::vector<std::string>& words, std::set<std::string>& seen) {
  std::string word;
  const auto flush = [&] {
    if (!word.empty() && seen.insert(word).second) words.push_back(word);
    word.clear();
  };
  for (char c : text) {
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
      word += c;
    else
      flush();
  }
  flush();
}

}  // namespace

std::string name_word(int name) { return std::string(kNameHeads[size_t(name / 8)]) + kNameTails[size_t(name % 8)]; }
std::string town_word(int name) { return std::string(kTownHeads[size_t(name % 8)]) + kTownTails[size_t(name / 8)]; }

std::vector<std::string> world_vocabulary() {
  std::vector<std::string> words;
  std::set<std::string> seen;
  for (const std::string& text : template_texts()) add_words(text, words, seen);
  for (const char* tag : kTagWords) add_words(tag, words, seen);
  for (const char* opener : kOpenerWords) add_words(opener, words, seen);
  for (const char* closer : kCloserWords) add_words(closer, words, seen);
  for (const char* verb : kVerbWords) add_words(verb, words, seen);
  for (const char* author : kAuthorWords) add_words(author, words, seen);
  for (const auto& attribute : kAdjectives)
    for (const auto& pole : attribute)
      for (const char* synonym : pole) add_words(synonym, words, seen);
  for (const auto& topic : kTopicNouns)
    for (const char* noun : topic) add_words(noun, words, seen);
  for (int i = 0; i < kNames; ++i) {
    add_words(name_word(i), words, seen);
    add_words(town_word(i), words, seen);
  }
  return words;
}

std::string world_tokenizer_json() {
  using Json = nlohmann::ordered_json;
  Json vocab = Json::object();
  int id = 0;
  const auto add = [&](const std::string& piece) {
    if (!vocab.contains(piece)) vocab[piece] = id++;
  };
  add("<unk>");
  add("<s>");
  add("</s>");
  for (int b = 0; b < 256; ++b) add(byte_symbol(b));
  const std::string space = byte_symbol(' ');
  Json merges = Json::array();
  const auto merge = [&](const std::string& a, const std::string& b) {
    if (vocab.contains(a + b)) return;
    add(a + b);
    merges.push_back(a + " " + b);
  };
  for (const char* mark : {"\"", ",", ".", "["}) merge(space, mark);
  for (const char* letter : {"t", "a", "o", "s", "w", "i", "h", "b", "m", "f", "c", "p", "d", "l", "r"}) merge(space, letter);
  std::istringstream groups(kMerges);
  for (std::string group; groups >> group;) merge(group.substr(0, 1), group.substr(1));
  for (const char* tail : {"in", "an", "er"}) merge(tail, tail[0] == 'i' ? "g" : tail[0] == 'a' ? "d" : "s");
  // Words inside a text follow a space; words at its start, behind a quote or a new line do not.
  for (const std::string& word : world_vocabulary()) add(space + word);
  std::vector<std::string> first;
  std::set<std::string> seen;
  for (const std::string& text : template_texts()) add_words(text, first, seen);
  for (const char* tag : kTagWords) add_words(tag, first, seen);
  for (const char* opener : kOpenerWords) add_words(opener, first, seen);
  for (const char* verb : kVerbWords) add_words(verb, first, seen);
  for (const char* author : kAuthorWords) add_words(author, first, seen);
  for (int i = 0; i < kNames; ++i) add_words(name_word(i), first, seen);
  for (const std::string& word : first) add(word);

  Json special = Json::array();
  for (const char* text : {"<unk>", "<s>", "</s>"})
    special.push_back({{"id", vocab[text]}, {"content", text}, {"single_word", false}, {"lstrip", false}, {"rstrip", false},
                       {"normalized", false}, {"special", true}});
  const Json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  Json root = {{"version", "1.0"},
               {"truncation", nullptr},
               {"padding", nullptr},
               {"added_tokens", special},
               {"normalizer", nullptr},
               {"pre_tokenizer", byte_level},
               {"post_processor",
                {{"type", "TemplateProcessing"},
                 {"single", Json::array({{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}})},
                 {"pair", Json::array({{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
                                       {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}})},
                 {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}}},
               {"decoder", byte_level},
               {"model",
                {{"type", "BPE"},
                 {"dropout", nullptr},
                 {"unk_token", nullptr},
                 {"continuing_subword_prefix", nullptr},
                 {"end_of_word_suffix", nullptr},
                 {"fuse_unk", false},
                 {"byte_fallback", false},
                 {"ignore_merges", true},
                 {"vocab", vocab},
                 {"merges", merges}}}};
  return root.dump(1) + "\n";
}

}  // namespace thimble::lab
