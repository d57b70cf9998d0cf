// flags: -march=armv8.2-a+dotprod

#include "kernels.h"

#if defined(__ARM_FEATURE_DOTPROD)

#define TRITUNE_ISA_NAMESPACE neon
#include "product_neon.h"
#define TRITUNE_TILE DotTile<Neon>
#include "table.h"

namespace tritune {
const Kernels* kernels_neon() { return &neon::kTable; }
}  // namespace tritune

#else

namespace tritune {
const Kernels* kernels_neon() { return nullptr; }
}  // namespace tritune

#endif
