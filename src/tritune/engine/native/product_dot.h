// The tile of instruction sets that multiply four bytes by four bytes and add them to an int32.
//
// `Isa` has
//   Ints, Floats, Bytes, Shorts   vectors of the same size
//   kIsSigned                     whether the fields are signed bytes to it
//   Codes, codes_at(x)            16 codes of a row, in the form that `dot` takes
//   dot(sums, fields, codes, j)   sums + fields times the codes 4 j to 4 j + 3

#include "product.h"

namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

template <typename Isa>
struct DotTile {
  using Ints = typename Isa::Ints;
  using Floats = typename Isa::Floats;
  using Bytes = typename Isa::Bytes;
  static constexpr int kRows = 12;
  static constexpr int32_t kOffset = Isa::kIsSigned ? 128 : 0;

  template <int bits, int rows>
  static void multiply(const int8_t* x, int64_t x_stride, const uint8_t* fields, int64_t blocks, Ints* sums) {
    // An addition waits for the one before it: where there are few rows, each has several sums.
    constexpr int kSums = rows <= 2 ? 4 : rows <= 5 ? 2 : 1;
    // A sum of one j alone may be shifted at the end in place of its fields.
    constexpr bool kShiftsSums = bits == 2 && kSums == 4 && !Isa::kIsSigned;
    Ints tile[rows][kSums] = {};
    for (; blocks > 0; --blocks, x += kBlockColumns, fields += block_bytes<bits>) {
      typename Isa::Codes codes[rows];
      TRITUNE_UNROLL for (int m = 0; m < rows; ++m) codes[m] = Isa::codes_at(x + m * x_stride);
      TRITUNE_UNROLL for (int j = 0; j < 4; ++j) {
        const Bytes four = fields_of<bits, !kShiftsSums>(fields, j);
        TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
          tile[m][j % kSums] = Isa::dot(tile[m][j % kSums], four, codes[m], j);
        }
      }
    }
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
      Ints sum = tile[m][0];
      TRITUNE_UNROLL for (int j = 1; j < kSums; ++j) sum += tile[m][j] >> (kShiftsSums ? 2 * j : 0);
      __builtin_memcpy(sums + m, &sum, sizeof sum);
    }
  }

  // Of the columns 4 j to 4 j + 3 of a block; packed ones times 4^j if they are not shifted.
  template <int bits, bool shifts>
  static Bytes fields_of(const uint8_t* block, int j) {
    Bytes bytes;
    __builtin_memcpy(&bytes, block + (bits == 8 ? 64 * j : 0), sizeof bytes);
    if (bits == 8) return Isa::kIsSigned ? bytes ^ 0x80 : bytes;
    const auto mask = static_cast<uint8_t>(3 << 2 * j);  // on its own: under a sanitizer it is no constant
    if (!shifts) return bytes & mask;
    return reinterpret_cast<Bytes>(reinterpret_cast<typename Isa::Shorts>(bytes) >> 2 * j) & 3;
  }
};

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
