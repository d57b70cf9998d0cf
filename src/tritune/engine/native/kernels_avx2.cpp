// flags: -mavx2 -mfma -mf16c

#include "kernels.h"

#if defined(__AVX2__)

#define TRITUNE_ISA_NAMESPACE avx2
#include "product_avx2.h"
#define TRITUNE_TILE Avx2Tile
#include "table.h"

namespace tritune {
const Kernels* kernels_avx2() { return &avx2::kTable; }
}  // namespace tritune

#else

namespace tritune {
const Kernels* kernels_avx2() { return nullptr; }
}  // namespace tritune

#endif
