#include "tensor/context.h"

#include "tensor/error.h"

namespace thimble {

const char* precision_name(Precision precision) {
  return precision == Precision::int8_act ? "int8_act" : precision == Precision::bf16 ? "bf16" : "f32";
}

Precision precision_of(const std::string& name) {
  for (const Precision p : {Precision::f32, Precision::bf16, Precision::int8_act})
    if (name == precision_name(p)) return p;
  throw Error(ErrorCode::usage, "precision: there is no \"" + name + "\"", "valid: f32, bf16, int8_act");
}

}  // namespace thimble
