// The kernel table: one function pointer per slot of kernel_slots.def, with block sizes and the origin of each slot.
// A table is a value built from (cap, pins): tests hold several at once. Reads no environment.
#pragma once

#include "kernels/isa.h"
#include "kernels/kernel_args.h"

namespace thimble {

enum class SlotId : int {
#define SLOT(field, type, name, kind) field,
#include "kernels/kernel_slots.def"
#undef SLOT
  count
};
constexpr int kSlotCount = static_cast<int>(SlotId::count);

struct KernelTable {
#define SLOT(field, type, name, kind) type field;
#include "kernels/kernel_slots.def"
#undef SLOT
  // Blocking of the f32 driver: register tile mr x nr (nr multiple of 16), depth kc (multiple of 128), column block nc.
  int64_t gemm_mr, gemm_nr, gemm_kc, gemm_nc;
  int64_t gemv_tile_rows;  // rows of x up to which reading tiles with gemv, some rows at a time, beats packing them
  int64_t gemv_dense_rows;  // the same for f32, f16 and bf16, whose rows have to be transposed
  Tier tier;                // the cap
  Tier origin[kSlotCount];  // the tier whose kernel fills the slot
};

const char* slot_name(SlotId slot);
const char* slot_kind(SlotId slot);
// False if there is no slot of that name.
bool slot_from_name(const char* name, SlotId* slot);

struct KernelPin {
  SlotId slot;
  Tier tier;
};

// The table of `cap` and its ancestors, with single slots taken from the tables of other supported tiers.
// Requires tier_supported() of every tier named.
KernelTable build_kernel_table(Tier cap, const KernelPin* pins, int n_pins);
inline KernelTable build_kernel_table(Tier cap) { return build_kernel_table(cap, nullptr, 0); }

}  // namespace thimble
