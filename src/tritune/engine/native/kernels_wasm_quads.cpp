#include "kernels.h"

#if defined(__wasm_relaxed_simd__)

#define TRITUNE_ISA_NAMESPACE quads
#include "product_wasm.h"
#define TRITUNE_TILE QuadTile
#include "table.h"

namespace tritune {
const Kernels* kernels_wasm_quads() { return &quads::kTable; }
}  // namespace tritune

#else

namespace tritune {
const Kernels* kernels_wasm_quads() { return nullptr; }
}  // namespace tritune

#endif
