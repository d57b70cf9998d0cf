// The specification of the products: every other instruction set gives the same bits.

#include "kernels.h"

namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

inline int32_t field_of(const Weight& w, int64_t row, int64_t column) {
  const uint8_t* panel = w.fields + row / 16 * w.panel_bytes();
  const int64_t n = row % 16, k = column % 4;
  if (w.bits == 8) return panel[column / 4 * 64 + 4 * n + k];
  const int64_t block = column / 16, j = column % 16 / 4;
  return panel[64 * block + 4 * n + k] >> 2 * j & 3;
}

inline int32_t sum_of(const Codes& x, int64_t m, const Weight& w, int64_t n) {
  int32_t sum = 0;
  for (int64_t k = 0; k < w.columns; ++k) sum += x.values[m * x.stride + k] * (w.first + w.step * field_of(w, n, k));
  return sum;
}

inline void sums(const Codes& x, const Weight& w, int64_t first_panel, int64_t end_panel, int32_t* out,
                 int64_t out_stride) {
  for (int64_t m = 0; m < x.rows; ++m) {
    for (int64_t n = 16 * first_panel; n < 16 * end_panel; ++n) out[m * out_stride + n] = sum_of(x, m, w, n);
  }
}

inline void linear(const Codes& x, const Weight& w, int64_t first_panel, int64_t end_panel, float* out,
                   int64_t out_stride) {
  for (int64_t m = 0; m < x.rows; ++m) {
    for (int64_t n = 16 * first_panel; n < 16 * end_panel; ++n) {
      out[m * out_stride + n] = static_cast<float>(sum_of(x, m, w, n)) * x.scales[m] * w.scales[n] + w.bias[n];
    }
  }
}

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
