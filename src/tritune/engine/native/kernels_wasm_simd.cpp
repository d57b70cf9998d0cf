#include "kernels.h"

#if defined(__wasm_simd128__)

#define TRITUNE_ISA_NAMESPACE simd
#include "product_wasm.h"
#define TRITUNE_TILE SimdTile
#include "table.h"

namespace tritune {
const Kernels* kernels_wasm_simd() { return &simd::kTable; }
}  // namespace tritune

#else

namespace tritune {
const Kernels* kernels_wasm_simd() { return nullptr; }
}  // namespace tritune

#endif
