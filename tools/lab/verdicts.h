// What an experiment says about the six claims of "Empirical Guidelines for Deploying LLMs onto Resource-constrained
// Edge Devices" (arXiv 2406.03777). The rules are in tools/lab/README.md, section Verdicts.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tools/lab/experiment.h"

namespace thimble::lab {

// A verdict asks for an interval that lies wholly on one side of this many points (of 100).
inline constexpr double kMargin = 1.0;

// One comparison: first - second, in points.
struct Comparison {
  std::string group;                       // "by task", "pooled", ...
  std::string label;                       // what differs from the other rows of the group: a task, a compression
  std::string first, second;               // the two sides in words
  double first_mean = 0, second_mean = 0;  // points
  Effect effect;                           // points, 95 %
  double lo_family = 0, hi_family = 0;     // at 1 - 0.05 / m where any of m rows can decide; else equal to lo, hi
  double p_holm = 1;                       // within the group
  bool decides = false;                    // the verdict rests on it
  std::string reading;                     // "RAG better", "no gain", ...
  std::vector<std::string> cells;          // hashes of both sides
};

struct Verdict {
  enum class State : uint8_t { supported, refuted, inconclusive, no_data };
  std::string id, claim, contrast, rule;  // contrast: what a positive effect means
  State state = State::no_data;
  std::string headline;  // the effect with its interval, or counts
  std::string sentence;  // why, in plain words
  std::vector<Comparison> rows;
  std::vector<std::string> notes;
  nlohmann::ordered_json extra = nlohmann::ordered_json::object();
};

const char* verdict_name(Verdict::State state);  // "supported", "refuted", "inconclusive", "no data"

// C1 to C6, in order.
std::vector<Verdict> judge(const Experiment& experiment);

// "LoRA r 8", "RAG k 4, bm25": a method with the settings that matter to it.
std::string method_label(const MethodSpec& method);
std::string method_title(const std::string& name);
// "llama-2m" of "zoo:llama-2m" or a path.
std::string model_label(const std::string& model);
// "bm25", or "dense minilm" where the vectors come from another model than the base.
std::string retriever_label(const MethodSpec& method);
// "+1.2", "−0.3".
std::string signed_number(double points);
// "+1.2 points (−0.3 to +2.7)".
std::string effect_text(const Effect& effect);

}  // namespace thimble::lab
