// Products in WebAssembly, a quarter of a panel at a time.
//
// Relaxed SIMD multiplies signed bytes by bytes of 7 bits, which fields of 2 bits are: in pairs, added to 16 bits,
// which is one instruction of x86 processors, or four at once, added to 32 bits, which is one of ARM's. Without it there
// are products of 16 bits only.

#include <wasm_simd128.h>

#include "product.h"

namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

// The bytes of four outputs: 4 columns of each.
inline v128_t bytes_at(const uint8_t* fields) { return wasm_v128_load(fields); }

// The same four codes for every output.
inline v128_t codes_at(const int8_t* x) { return wasm_v128_load32_splat(x); }

template <int j>
inline v128_t fields_of(v128_t block) {
  return wasm_v128_and(j ? wasm_u16x8_shr(block, 2 * j) : block, wasm_i8x16_const_splat(3));
}

struct WasmTile {
  typedef int32_t Ints __attribute__((vector_size(16)));
  typedef float Floats __attribute__((vector_size(16)));

  // Every two neighbouring lanes added up: those of `low`, then those of `high`.
  static Ints paired(v128_t low, v128_t high) {
    return (Ints)wasm_i32x4_add(wasm_i32x4_shuffle(low, high, 0, 2, 4, 6), wasm_i32x4_shuffle(low, high, 1, 3, 5, 7));
  }

  // By products of 16 bits; of an output, each sum has two halves.
  template <int bits, int rows>
  static void multiply_words(const int8_t* x, int64_t x_stride, const uint8_t* fields, int64_t blocks, Ints* sums) {
    v128_t low[rows], high[rows];
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) low[m] = high[m] = wasm_i32x4_const_splat(0);
    for (; blocks > 0; --blocks, x += kBlockColumns, fields += block_bytes<bits>) {
      add_words<bits, rows, 0>(x, x_stride, fields, low, high);
      add_words<bits, rows, 1>(x, x_stride, fields, low, high);
      add_words<bits, rows, 2>(x, x_stride, fields, low, high);
      add_words<bits, rows, 3>(x, x_stride, fields, low, high);
    }
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) sums[m] = paired(low[m], high[m]);
  }

  template <int bits, int rows, int j>
  static void add_words(const int8_t* x, int64_t x_stride, const uint8_t* fields, v128_t* low, v128_t* high) {
    const v128_t bytes = bits == 8 ? wasm_v128_xor(bytes_at(fields + 64 * j), wasm_i8x16_const_splat(-128))
                                   : fields_of<j>(bytes_at(fields));
    const v128_t lower = wasm_i16x8_extend_low_i8x16(bytes), upper = wasm_i16x8_extend_high_i8x16(bytes);
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
      const v128_t codes = wasm_i16x8_extend_low_i8x16(codes_at(x + m * x_stride + 4 * j));
      low[m] = wasm_i32x4_add(low[m], wasm_i32x4_dot_i16x8(lower, codes));
      high[m] = wasm_i32x4_add(high[m], wasm_i32x4_dot_i16x8(upper, codes));
    }
  }
};

struct SimdTile : WasmTile {
  static constexpr int kRows = 4;
  static constexpr int32_t kOffset = 128;

  template <int bits, int rows>
  static void multiply(const int8_t* x, int64_t x_stride, const uint8_t* fields, int64_t blocks, Ints* sums) {
    multiply_words<bits, rows>(x, x_stride, fields, blocks, sums);
  }
};

#if defined(__wasm_relaxed_simd__)

// Pairs of products in 16 bits, half a panel at a time.
struct PairTile {
  typedef int32_t Ints __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
  static constexpr int kRows = 4;
  static constexpr int32_t kOffset = 128;
  // Fields of 2 bits: as many blocks as no sum of 16 bits overflows with, 4 pairs of products of 3 * 127 in each.
  static constexpr int64_t kSafeBlocks = 32767 / (2 * 3 * 127) / 4;

  template <int bits, int rows>
  static void multiply(const int8_t* x, int64_t x_stride, const uint8_t* fields, int64_t blocks, Ints* sums) {
    if constexpr (bits == 8) {
      WasmTile::Ints low[rows], high[rows];
      WasmTile::multiply_words<8, rows>(x, x_stride, fields, blocks, low);
      WasmTile::multiply_words<8, rows>(x, x_stride, fields + 16, blocks, high);
      for (int m = 0; m < rows; ++m) sums[m] = joined(low[m], high[m]);
    } else {
      v128_t low[rows], high[rows];
      TRITUNE_UNROLL for (int m = 0; m < rows; ++m) low[m] = high[m] = wasm_i32x4_const_splat(0);
      const int8_t* row[rows];
      TRITUNE_UNROLL for (int m = 0; m < rows; ++m) row[m] = x + m * x_stride;
      while (blocks > 0) {
        const int32_t several = blocks < kSafeBlocks ? blocks : kSafeBlocks;
        v128_t tile[rows], other[rows];
        TRITUNE_UNROLL for (int m = 0; m < rows; ++m) tile[m] = other[m] = wasm_i16x8_const_splat(0);
        for (int32_t block = 0; block < several; ++block, fields += block_bytes<bits>) {
          const v128_t bytes = bytes_at(fields), more = bytes_at(fields + 16);
          add_pairs<rows, 0>(row, bytes, more, tile, other);
          add_pairs<rows, 1>(row, bytes, more, tile, other);
          add_pairs<rows, 2>(row, bytes, more, tile, other);
          add_pairs<rows, 3>(row, bytes, more, tile, other);
          TRITUNE_UNROLL for (int m = 0; m < rows; ++m) row[m] += kBlockColumns;
        }
        TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
          low[m] = wasm_i32x4_add(low[m], wasm_i32x4_extadd_pairwise_i16x8(tile[m]));
          high[m] = wasm_i32x4_add(high[m], wasm_i32x4_extadd_pairwise_i16x8(other[m]));
        }
        blocks -= several;
      }
      for (int m = 0; m < rows; ++m) sums[m] = joined((WasmTile::Ints)low[m], (WasmTile::Ints)high[m]);
    }
  }

  static Ints joined(WasmTile::Ints low, WasmTile::Ints high) {
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
  }

  template <int rows, int j>
  static void add_pairs(const int8_t* const* row, v128_t bytes, v128_t more, v128_t* tile, v128_t* other) {
    const v128_t four = fields_of<j>(bytes), next = fields_of<j>(more);
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
      const v128_t codes = codes_at(row[m] + 4 * j);
      tile[m] = wasm_i16x8_add(tile[m], wasm_i16x8_relaxed_dot_i8x16_i7x16(codes, four));
      other[m] = wasm_i16x8_add(other[m], wasm_i16x8_relaxed_dot_i8x16_i7x16(codes, next));
    }
  }
};

// Four products at once. Fields of 8 bits are the lower 7 bits and the highest.
struct QuadTile : WasmTile {
  static constexpr int kRows = 6;
  static constexpr int32_t kOffset = 0;

  template <int bits, int rows>
  static void multiply(const int8_t* x, int64_t x_stride, const uint8_t* fields, int64_t blocks, Ints* sums) {
    v128_t tile[rows], highest[rows];
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) tile[m] = highest[m] = wasm_i32x4_const_splat(0);
    for (; blocks > 0; --blocks, x += kBlockColumns, fields += block_bytes<bits>) {
      add_quads<bits, rows, 0>(x, x_stride, fields, tile, highest);
      add_quads<bits, rows, 1>(x, x_stride, fields, tile, highest);
      add_quads<bits, rows, 2>(x, x_stride, fields, tile, highest);
      add_quads<bits, rows, 3>(x, x_stride, fields, tile, highest);
    }
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
      sums[m] = (Ints)(bits == 8 ? wasm_i32x4_add(tile[m], wasm_i32x4_shl(highest[m], 7)) : tile[m]);
    }
  }

  template <int bits, int rows, int j>
  static void add_quads(const int8_t* x, int64_t x_stride, const uint8_t* fields, v128_t* tile, v128_t* highest) {
    const v128_t bytes = bytes_at(fields + (bits == 8 ? 64 * j : 0));
    const v128_t four = bits == 8 ? wasm_v128_and(bytes, wasm_i8x16_const_splat(127)) : fields_of<j>(bytes);
    const v128_t top = wasm_u8x16_shr(bytes, 7);
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
      const v128_t codes = codes_at(x + m * x_stride + 4 * j);
      tile[m] = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(codes, four, tile[m]);
      if (bits == 8) highest[m] = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(codes, top, highest[m]);
    }
  }
};

#endif

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
