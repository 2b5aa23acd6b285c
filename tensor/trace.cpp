#include "tensor/trace.h"

namespace thimble {

Trace g_trace;

const char* zone_name(Zone zone) {
  static const char* const names[kZoneCount] = {"embed",     "linear",        "linear_bwd", "norm",           "norm_bwd", "rope", "attention",
                                                "attention_bwd", "activation", "activation_bwd", "loss",     "add",  "optimizer", "sample"};
  return names[static_cast<int>(zone)];
}

}  // namespace thimble
