// Plans of the lab.
#include "tests/fuzz/target.h"
#include "tools/lab/plan.h"

namespace thimble::fuzz {

bool fuzz_plan_yaml(std::string_view bytes) {
  return accepts([&] {
    const lab::Plan plan = lab::parse_plan(std::string(bytes), "plan.yaml");
    size_t cells = 0;
    for (const lab::PlanGrid& grid : plan.grids) cells += grid.cells.size();
    expect(cells <= lab::kMaxPlanCells, "the limit on cells");
  });
}

}  // namespace thimble::fuzz
