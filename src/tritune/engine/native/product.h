// Products of codes and weights in tiles whose sums stay in registers; what differs between instruction sets is `Tile`.
//
// A tile multiplies a few rows of codes by a vector of neighbouring outputs, a panel or half or a quarter of one, over
// all columns. Packed fields are unpacked in registers, once for all rows of the tile. All rows of codes run through
// one vector's fields before the next are read: so fields come from memory once, in the order in which they lie there,
// which is all that counts for a single row, and from the first cache for every tile of rows after the first.
//
// `Tile` has
//   Ints, Floats      vectors of as many numbers, in the compiler's own notation
//   kRows             the most rows of a tile
//   kOffset           what it subtracts from fields of 8 bits, because it multiplies signed ones
//   multiply<bits, rows>(x, x_stride, fields, blocks, sums)
//                     sums (rows) of fields times codes over `blocks` blocks of 16 columns, where the fields of a
//                     block take `block_bytes<bits>`

#include "kernels.h"

// Before a loop over the sums of a tile: only if it is unrolled early do they stay in registers.
#define TRITUNE_UNROLL _Pragma("GCC unroll 16")

namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

constexpr int64_t kBlockColumns = 16;
constexpr int64_t kChunkRows = 144;   // whose codes stay in the second cache

template <int bits>
constexpr int64_t block_bytes = kBlockColumns * kPanelRows * bits / 8;

constexpr int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Split `count` into parts that differ by one at most and are no larger than `size`: call(begin, length).
template <typename Call>
void in_even_parts(int64_t count, int64_t size, const Call& call) {
  const int64_t several = parts(count, size);
  for (int64_t part = 0; part < several; ++part) {
    const int64_t begin = count * part / several;
    call(begin, count * (part + 1) / several - begin);
  }
}

// Four codes as one number, to be given to all lanes of a vector.
inline int32_t four_codes(const int8_t* x) {
  int32_t four;
  __builtin_memcpy(&four, x, sizeof four);
  return four;
}

// Where results go: sums or, if those are null, floats; at (row * stride + output).
struct Output {
  int32_t* sums;
  float* floats;
  int64_t stride;
};

// The sums of fields times codes, of `rows` rows from `row` on and of the outputs from `n` on, become results.
template <typename Tile>
void write(const Codes& x, int64_t row, int64_t rows, const Weight& w, int64_t n, const Output& out,
           const typename Tile::Ints* sums) {
  using Ints = typename Tile::Ints;
  using Floats = typename Tile::Floats;
  Floats scales = {}, bias = {};
  if (out.floats) {  // a weight of which only sums are wanted has none
    __builtin_memcpy(&scales, w.scales + n, sizeof scales);
    __builtin_memcpy(&bias, w.bias + n, sizeof bias);
  }
  const int32_t zero = w.first + w.step * (w.bits == 8 ? Tile::kOffset : 0);
  for (int64_t m = row; m < row + rows; ++m) {
    const Ints sum = w.step * sums[m - row] + zero * x.sums[m];
    const int64_t at = m * out.stride + n;
    if (out.sums) {
      __builtin_memcpy(out.sums + at, &sum, sizeof sum);
    } else {
      const Floats value = __builtin_convertvector(sum, Floats) * x.scales[m] * scales + bias;
      __builtin_memcpy(out.floats + at, &value, sizeof value);
    }
  }
}

// Of `rows` rows, at most `most` of them.
template <typename Tile, int bits, int most>
void multiply(int64_t rows, const int8_t* x, int64_t x_stride, const uint8_t* fields, int64_t blocks,
              typename Tile::Ints* sums) {
  if constexpr (most > 1) {
    if (rows < most) return multiply<Tile, bits, most - 1>(rows, x, x_stride, fields, blocks, sums);
  }
  Tile::template multiply<bits, most>(x, x_stride, fields, blocks, sums);
}

template <typename Tile, int bits>
void panels(const Codes& x, int64_t row, int64_t rows, const Weight& w, int64_t first, int64_t end, const Output& out) {
  constexpr int64_t kLanes = sizeof(typename Tile::Ints) / sizeof(int32_t);
  const int64_t blocks = parts(w.columns, kBlockColumns);
  const int64_t bytes = parts(w.columns, kColumnGroup) * kColumnGroup / kBlockColumns * block_bytes<bits>;
  for (int64_t n = first * kPanelRows; n < end * kPanelRows; n += kLanes) {
    const uint8_t* fields = w.fields + n / kPanelRows * bytes + n % kPanelRows * 4;
    in_even_parts(rows, Tile::kRows, [&](int64_t begin, int64_t count) {
      typename Tile::Ints sums[Tile::kRows];
      multiply<Tile, bits, Tile::kRows>(count, x.values + (row + begin) * x.stride, x.stride, fields, blocks, sums);
      write<Tile>(x, row + begin, count, w, n, out, sums);
    });
  }
}

template <typename Tile>
void product(const Codes& x, const Weight& w, int64_t first_panel, int64_t end_panel, const Output& out) {
  in_even_parts(x.rows, kChunkRows, [&](int64_t row, int64_t rows) {
    (w.bits == 2 ? panels<Tile, 2> : panels<Tile, 8>)(x, row, rows, w, first_panel, end_panel, out);
  });
}

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
