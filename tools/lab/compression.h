// Compressions as rows: what a base is made of before anyone learns on it.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "models/compress.h"
#include "tools/lab/cell.h"
#include "tools/lab/cell_text.h"

namespace thimble::lab {

struct Compression {
  const char* name;   // in front of the colon
  const char* form;   // how a plan writes it
  const char* title;  // for people
};
const std::vector<Compression>& all_compressions();
// Throws usage, listing the forms, for what no row reads.
CompressOptions find_compression(const std::string& text);

// The texts that a compression looks at: questions with answers of people whom the cell does not examine. Of a world,
// people of another seed; of a LaMP part, those behind the examined ones; where there are none, texts that the
// uncompressed model writes itself.
struct CalibrationText {
  std::string source;  // "other people of the world", "other people of the data", "the model's own text"
  std::vector<std::vector<int32_t>> sequences;
};
// all: every person of the data; the first `examined` are in the cell.
CalibrationText calibration_text(const CellConfig& config, const TaskData& all, size_t examined,
                                 const PromptCodec& codec, Model& model, Context& ctx);

// Compresses in place; what was done, for metrics.json.
nlohmann::ordered_json compress_base(Model& model, Context& ctx, const CompressOptions& options,
                                     const CalibrationText& text);

}  // namespace thimble::lab
