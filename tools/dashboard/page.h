// One HTML file that needs nothing else: style, a little script (tooltips, sorting, filtering) and the given body. It
// reads well without script, in light and dark mode, on paper, and from 360 to 1400 pixels.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace thimble::dashboard {

// title is escaped; body is HTML. style and script: of this page alone, added to the common ones.
std::string page(const std::string& title, const std::string& body, const std::string& style = "", const std::string& script = "");

// A table whose columns sort when their heading is clicked.
struct Column {
  std::string heading;
  bool numeric = false;
  std::string hint;  // of the heading
};
struct TableCell {
  std::string text;  // escaped when written
  std::string sort;  // what sorting compares; empty: the text
  std::string tip;
  double bar = -1;     // 0..1: a bar behind the text
  std::string html{};  // instead of the text where not empty; not escaped
};
// id: of the table; "" for none. filter: a box above that hides rows which lack its words, example: some such words.
std::string table(const std::vector<Column>& columns, const std::vector<std::vector<TableCell>>& rows,
                  const std::string& id = "", bool filter = false, const std::string& example = "rag int4");

// Panels of chart_svg() with their titles, side by side as the width allows.
std::string panels(const nlohmann::ordered_json& list);

}  // namespace thimble::dashboard
