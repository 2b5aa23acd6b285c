#include "tools/lab/compression.h"

#include <algorithm>

#include "tensor/error.h"

namespace thimble::lab {
namespace {

constexpr size_t kSequences = 128;  // of other people
constexpr int64_t kOwnSequences = 32, kOwnLength = 256;
constexpr uint64_t kOtherPeople = 0x63616c6962726174;  // added to the world's seed

// Round robin over people, so that few sequences still come from many of them.
void add_people(const std::vector<Person>& people, size_t first, const PromptCodec& codec,
                std::vector<std::vector<int32_t>>& out) {
  for (size_t q = 0; out.size() < kSequences; ++q) {
    bool any = false;
    for (size_t p = first; p < people.size() && out.size() < kSequences; ++p) {
      if (q >= people[p].queries.size()) continue;
      const Query& query = people[p].queries[q];
      any = true;
      out.push_back(codec.pair(query.input, query.output).ids);
    }
    if (!any) return;
  }
}

}  // namespace

const std::vector<Compression>& all_compressions() {
  static const std::vector<Compression> rows = {
      {"none", "none", "uncompressed"},
      {"rtn", "rtn:int4-g64-asym", "round to nearest"},
      {"rtn-clip", "rtn-clip:int4-g64-asym", "round to nearest, ranges searched"},
      {"gptq", "gptq:int4-g64-asym", "GPTQ (arXiv 2210.17323)"},
      {"awq", "awq:int4-g64-asym", "AWQ (arXiv 2306.00978)"},
      {"magnitude", "magnitude:0.5", "magnitude pruning"},
      {"wanda", "wanda:0.5", "Wanda (arXiv 2306.11695)"},
      {"sparsegpt", "sparsegpt:0.5", "SparseGPT (arXiv 2301.00774)"},
  };
  return rows;
}

CompressOptions find_compression(const std::string& text) {
  const std::string name = text.substr(0, text.find(':'));
  std::string forms;
  for (const Compression& row : all_compressions()) {
    if (name == row.name) return parse_compression(text);
    forms += (forms.empty() ? "" : ", ") + std::string(row.form);
  }
  throw Error(ErrorCode::usage, "compression: there is no \"" + text + "\"", "forms: " + forms);
}

CalibrationText calibration_text(const CellConfig& config, const TaskData& all, size_t examined,
                                 const PromptCodec& codec, Model& model, Context& ctx) {
  CalibrationText text;
  if (config.task.is_world) {
    WorldDials dials = config.task.world;
    dials.seed += kOtherPeople;
    const TaskData other = make_people(dials);
    text.source = "other people of the world";
    add_people(other.people, 0, codec, text.sequences);
  } else if (all.people.size() > examined) {
    text.source = "other people of the data";
    add_people(all.people, examined, codec, text.sequences);
  }
  if (text.sequences.empty()) {
    text.source = "the model's own text";
    text.sequences = sample_calibration(model, ctx, kOwnSequences, std::min(kOwnLength, codec.context()), config.seed);
  }
  return text;
}

nlohmann::ordered_json compress_base(Model& model, Context& ctx, const CompressOptions& options,
                                     const CalibrationText& text) {
  const CompressReport r = compress_model(model, ctx, options, text.sequences);
  int64_t fallbacks = 0;
  double error = 0;
  for (const TensorReport& t : r.tensors) {
    fallbacks += t.fallback.empty() ? 0 : 1;
    error += t.rel_err;
  }
  return {{"name", r.compression},
          {"bits_per_weight", r.bits_per_weight},
          {"linear_bits_per_weight", r.linear_bits_per_weight},
          {"bytes_before", r.bytes_before},
          {"bytes_after", r.bytes_after},
          {"calibration", text.sequences.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(text.source)},
          {"calibration_sequences", r.calibration_sequences},
          {"calibration_tokens", r.calibration_tokens},
          {"calibration_sha256", r.calibration_sha256},
          {"tensors", r.tensors.size()},
          {"fallbacks", fallbacks},
          {"mean_rel_err", r.tensors.empty() ? 0.0 : error / double(r.tensors.size())}};
}

}  // namespace thimble::lab
