#define TRITUNE_ISA_NAMESPACE scalar
#include "product_scalar.h"
#include "table.h"

namespace tritune {
const Kernels* kernels_scalar() { return &scalar::kTable; }
}  // namespace tritune
