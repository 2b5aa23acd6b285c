// One offline page, one JSON file and one table of an experiment folder: what was measured, what it says about the
// claims, and how sure that is.
#pragma once

#include <string>

namespace thimble::lab {

// Reads DIR (plan.json, machine.json, cells/<hash>/...) and writes DIR/report/{report.html, report.json, cells.csv}
// through temporary names. Any subset of done cells is enough: missing and failed cells are counted and listed.
// Everything but the recorded costs is a pure function of the folder.
// Throws input where DIR, plan.json or a record of a done cell is missing or malformed, or the report cannot be
// written.
void write_report(const std::string& dir);

}  // namespace thimble::lab
