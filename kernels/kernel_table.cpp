// Builds tables: the reference fills every slot, then each tier from the root down to the cap overwrites what it
// improves. A slot's origin is the last tier that changed its pointer.
#include "kernels/kernel_table.h"

#include <cstring>

namespace thimble {

namespace ref {
void init(KernelTable& t);
}
#if defined(THIMBLE_SIMD_TIERS)
namespace avx2 {
void init(KernelTable& t);
}
namespace avx2_vnni {
void init(KernelTable& t);
}
namespace avx512 {
void init(KernelTable& t);
}
namespace avx512_vnni {
void init(KernelTable& t);
}
namespace avx512_bf16 {
void init(KernelTable& t);
}
#endif

namespace {

struct SlotText {
  const char* name;
  const char* kind;
};
constexpr SlotText kSlots[kSlotCount] = {
#define SLOT(field, type, name, kind) {name, #kind},
#include "kernels/kernel_slots.def"
#undef SLOT
};

void init_tier(Tier tier, KernelTable& t) {
  switch (tier) {
    case Tier::ref:
      ref::init(t);
      break;
#if defined(THIMBLE_SIMD_TIERS)
    case Tier::avx2:
      avx2::init(t);
      break;
    case Tier::avx2_vnni:
      avx2_vnni::init(t);
      break;
    case Tier::avx512:
      avx512::init(t);
      break;
    case Tier::avx512_vnni:
      avx512_vnni::init(t);
      break;
    case Tier::avx512_bf16:
      avx512_bf16::init(t);
      break;
#else
    default:
      break;
#endif
  }
}

void add_tier(Tier tier, KernelTable& t) {
  if (tier != Tier::ref) add_tier(tier_parent(tier), t);
  const KernelTable before = t;
  init_tier(tier, t);
#define SLOT(field, type, name, kind) \
  if (t.field != before.field) t.origin[static_cast<int>(SlotId::field)] = tier;
#include "kernels/kernel_slots.def"
#undef SLOT
}

}  // namespace

const char* slot_name(SlotId slot) { return kSlots[static_cast<int>(slot)].name; }
const char* slot_kind(SlotId slot) { return kSlots[static_cast<int>(slot)].kind; }

bool slot_from_name(const char* name, SlotId* slot) {
  for (int i = 0; i < kSlotCount; ++i) {
    if (std::strcmp(name, kSlots[i].name) != 0) continue;
    *slot = static_cast<SlotId>(i);
    return true;
  }
  return false;
}

KernelTable build_kernel_table(Tier cap, const KernelPin* pins, int n_pins) {
  KernelTable t{};
  add_tier(cap, t);
  t.tier = cap;
  for (int i = 0; i < n_pins; ++i) {
    KernelTable other{};
    add_tier(pins[i].tier, other);
    switch (pins[i].slot) {
#define SLOT(field, type, name, kind)                                                          \
  case SlotId::field:                                                                          \
    t.field = other.field;                                                                     \
    t.origin[static_cast<int>(SlotId::field)] = other.origin[static_cast<int>(SlotId::field)]; \
    break;
#include "kernels/kernel_slots.def"
#undef SLOT
      case SlotId::count:
        break;
    }
  }
  return t;
}

}  // namespace thimble
