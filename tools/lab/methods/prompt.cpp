// Prompt tuning: virtual tokens in front of every question (Lester et al., arXiv 2104.08691).
#include "tools/lab/method.h"

namespace thimble::lab {
namespace {

AdapterOptions prompt_options(const MethodSpec& spec) {
  AdapterOptions o;
  o.kind = AdapterKind::prompt;
  o.n_virtual = spec.n_virtual;
  return o;
}

}  // namespace

extern const Method kPrompt;
const Method kPrompt = {"prompt", "prompt tuning", true, false, 5e-2, prompt_options};

}  // namespace thimble::lab
