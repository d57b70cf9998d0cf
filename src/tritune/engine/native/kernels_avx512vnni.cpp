// flags: -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c -mprefer-vector-width=512

#include "kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

#define TRITUNE_ISA_NAMESPACE avx512vnni
#include "product_avx512vnni.h"
#define TRITUNE_TILE DotTile<Vnni512>
#include "table.h"

namespace tritune {
const Kernels* kernels_avx512vnni() { return &avx512vnni::kTable; }
}  // namespace tritune

#else

namespace tritune {
const Kernels* kernels_avx512vnni() { return nullptr; }
}  // namespace tritune

#endif
