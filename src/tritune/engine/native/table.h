// The table of one instruction set; what it needs was included before, and TRITUNE_TILE named the tile of its products.

#ifdef TRITUNE_TILE
namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

inline void sums(const Codes& x, const Weight& w, int64_t first_panel, int64_t end_panel, int32_t* out,
                 int64_t out_stride) {
  product<TRITUNE_TILE>(x, w, first_panel, end_panel, {out, nullptr, out_stride});
}

inline void linear(const Codes& x, const Weight& w, int64_t first_panel, int64_t end_panel, float* out,
                   int64_t out_stride) {
  product<TRITUNE_TILE>(x, w, first_panel, end_panel, {nullptr, out, out_stride});
}

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
#endif

#include "attention.h"

#define TRITUNE_TEXT_OF(name) #name
#define TRITUNE_TEXT(name) TRITUNE_TEXT_OF(name)

namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

constexpr Kernels kTable = kernels_of<linear, sums>(TRITUNE_TEXT(TRITUNE_ISA_NAMESPACE));

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
