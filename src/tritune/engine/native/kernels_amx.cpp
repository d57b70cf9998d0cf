// flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512 -mamx-tile -mamx-int8

#include "kernels.h"

// Older versions of clang spell its macro without the underline.
#if defined(__AMX_INT8__) || defined(__AMXINT8__) || defined(TRITUNE_EMULATED_AMX)

#define TRITUNE_ISA_NAMESPACE amx
#include "product_amx.h"
#define TRITUNE_TILE Amx
#include "table.h"

namespace tritune {
const Kernels* kernels_amx() { return &amx::kTable; }
}  // namespace tritune

#else

namespace tritune {
const Kernels* kernels_amx() { return nullptr; }
}  // namespace tritune

#endif
