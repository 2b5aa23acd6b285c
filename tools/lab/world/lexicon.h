// The words of the world. Texts are short, lower-case and English-like; every word is one token of the zoo's tokenizer.
#pragma once

#include <array>
#include <string>
#include <vector>

namespace thimble::lab {

constexpr int kTopics = 16, kNouns = 8, kAttributes = 8, kNames = 64, kTags = 16, kOpeners = 8, kClosers = 8, kVerbs = 4,
              kAuthors = 32;

extern const std::array<std::array<const char*, kNouns>, kTopics> kTopicNouns;
// [attribute][pole][synonym]
extern const std::array<std::array<std::array<const char*, 2>, 2>, kAttributes> kAdjectives;
extern const std::array<const char*, kTags> kTagWords;
extern const std::array<const char*, kOpeners> kOpenerWords;  // two words each
extern const std::array<const char*, kClosers> kCloserWords;  // two words each
extern const std::array<const char*, kVerbs> kVerbWords;
extern const std::array<const char*, kAuthors> kAuthorWords;  // people that base models know
std::string name_word(int name);  // "tarvin": 64 of them
std::string town_word(int name);  // the town of that name's bearer: name and town always stand together

// All words that world texts and prompts are made of, each once, in a fixed order.
std::vector<std::string> world_vocabulary();

// tokenizer.json of the zoo: byte-level BPE whose vocabulary holds the world's words whole (with ignore_merges), all
// bytes, and merges of frequent letter groups for other text. BOS "<s>", EOS "</s>".
std::string world_tokenizer_json();

}  // namespace thimble::lab
