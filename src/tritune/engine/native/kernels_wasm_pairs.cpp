#include "kernels.h"

#if defined(__wasm_relaxed_simd__)

#define TRITUNE_ISA_NAMESPACE pairs
#include "product_wasm.h"
#define TRITUNE_TILE PairTile
#include "table.h"

namespace tritune {
const Kernels* kernels_wasm_pairs() { return &pairs::kTable; }
}  // namespace tritune

#else

namespace tritune {
const Kernels* kernels_wasm_pairs() { return nullptr; }
}  // namespace tritune

#endif
