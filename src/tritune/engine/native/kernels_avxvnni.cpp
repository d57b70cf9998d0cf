// flags: -mavx2 -mfma -mf16c -mavxvnni

#include "kernels.h"

#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)

#define TRITUNE_ISA_NAMESPACE avxvnni
#include "product_avxvnni.h"
#define TRITUNE_TILE DotTile<Vnni256>
#include "table.h"

namespace tritune {
const Kernels* kernels_avxvnni() { return &avxvnni::kTable; }
}  // namespace tritune

#else

namespace tritune {
const Kernels* kernels_avxvnni() { return nullptr; }
}  // namespace tritune

#endif
