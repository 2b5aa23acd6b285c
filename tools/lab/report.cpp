// Writes the report of an experiment folder.
#include "tools/lab/report.h"

#include <map>
#include <string>
#include <vector>

#include "tensor/file.h"
#include "tools/lab/report_data.h"

namespace thimble::lab {
namespace {

using Json = nlohmann::ordered_json;

// Nested names joined by dots; lists as JSON.
void flatten(const Json& json, const std::string& prefix, std::vector<std::pair<std::string, std::string>>& out) {
  for (const auto& [key, value] : json.items()) {
    if (key == "per_person" || key == "schema") continue;
    const std::string name = prefix + key;
    if (value.is_object())
      flatten(value, name + ".", out);
    else
      out.push_back({name, value.is_null() ? "" : value.is_string() ? value.get<std::string>() : value.dump()});
  }
}

// RFC 4180. A leading formula sign is kept from spreadsheets by an apostrophe, except in numbers.
std::string csv_field(std::string text) {
  if (!text.empty() && (text[0] == '=' || text[0] == '+' || text[0] == '@' ||
                        (text[0] == '-' && (text.size() == 1 || !(text[1] >= '0' && text[1] <= '9')))))
    text.insert(text.begin(), '\'');
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string out = "\"";
  for (char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

}  // namespace

std::string cells_csv(const Experiment& e) {
  std::vector<std::string> columns;
  std::map<std::string, size_t> index;
  std::vector<std::map<size_t, std::string>> rows;
  for (const Cell& c : e.cells) {
    std::vector<std::pair<std::string, std::string>> fields = {{"hash", c.hash},
                                                               {"state", c.state == Cell::State::done     ? "done"
                                                                         : c.state == Cell::State::failed ? "failed"
                                                                                                          : "missing"}};
    std::string grids;
    for (const std::string& g : c.grids) grids += (grids.empty() ? "" : ";") + g;
    fields.push_back({"grids", grids});
    fields.push_back({"reason", c.reason});
    flatten(c.config.to_json(), "config.", fields);
    if (c.state == Cell::State::done) {
      flatten(c.metrics, "", fields);
      if (c.cost.is_object()) flatten(c.cost, "cost.", fields);
    }
    auto& row = rows.emplace_back();
    for (auto& [name, value] : fields) {
      const auto [at, is_new] = index.emplace(name, columns.size());
      if (is_new) columns.push_back(name);
      row[at->second] = value;
    }
  }
  std::string out;
  for (size_t i = 0; i < columns.size(); ++i) out += (i ? "," : "") + csv_field(columns[i]);
  out += "\n";
  for (const auto& row : rows) {
    for (size_t i = 0; i < columns.size(); ++i) {
      const auto at = row.find(i);
      out += (i ? "," : "") + (at == row.end() ? std::string() : csv_field(at->second));
    }
    out += "\n";
  }
  return out;
}

void write_report(const std::string& dir) {
  const Experiment experiment = read_experiment(dir);
  const Json report = report_data(experiment);
  const std::string folder = join_path(dir, "report");
  make_directories(folder);
  write_file(join_path(folder, "cells.csv"), cells_csv(experiment));
  write_file(join_path(folder, "report.json"), report.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  write_file(join_path(folder, "report.html"), report_page(report));
}

}  // namespace thimble::lab
