// Products with vpmaddubsw, half a panel at a time: two products of a field and a code are added to 16 bits.

#include <immintrin.h>

#include "product.h"

namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

// Sums are added to one after the other: in another order the compiler runs out of registers.
inline void keep(__m256i& sum) { __asm__("" : "+x"(sum)); }

struct Avx2Tile {
  typedef int32_t Ints __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
  static constexpr int kRows = 8;
  static constexpr int32_t kOffset = 128;

  // Fields of 2 bits: as many words as no sum of 16 bits overflows with, 2 products of 3 * 127 for each.
  static constexpr int64_t kSafeBlocks = 32767 / (2 * 3 * 127) / 4;

  template <int bits, int rows>
  static void multiply(const int8_t* x, int64_t x_stride, const uint8_t* fields, int64_t blocks, Ints* sums) {
    if constexpr (bits == 8) return multiply_bytes<rows>(x, x_stride, fields, blocks, sums);
    for (int m = 0; m < rows; ++m) sums[m] = Ints{};
    while (blocks > 0) {
      const int64_t several = blocks < kSafeBlocks ? blocks : kSafeBlocks;
      add<rows>(x, x_stride, fields, several, sums);
      x += several * kBlockColumns;
      fields += several * block_bytes<2>;
      blocks -= several;
    }
  }

  template <int rows>
  static void add(const int8_t* x, int64_t x_stride, const uint8_t* fields, int64_t blocks, Ints* sums) {
    constexpr int kSums = rows <= 2 ? 2 : 1;
    const __m256i mask = _mm256_set1_epi8(3);
    __m256i tile[rows][kSums];
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
      TRITUNE_UNROLL for (int j = 0; j < kSums; ++j) tile[m][j] = _mm256_setzero_si256();
    }
    for (; blocks > 0; --blocks, x += kBlockColumns, fields += block_bytes<2>) {
      TRITUNE_UNROLL for (int j = 0; j < 4; ++j) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(fields));
        const __m256i four = _mm256_and_si256(_mm256_srli_epi16(bytes, 2 * j), mask);
        TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
          const __m256i codes = _mm256_set1_epi32(four_codes(x + m * x_stride + 4 * j));
          tile[m][j % kSums] = _mm256_add_epi16(tile[m][j % kSums], _mm256_maddubs_epi16(four, codes));
          keep(tile[m][j % kSums]);
        }
      }
    }
    const __m256i ones = _mm256_set1_epi16(1);
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
      __m256i sum = tile[m][0];
      TRITUNE_UNROLL for (int j = 1; j < kSums; ++j) sum = _mm256_add_epi16(sum, tile[m][j]);
      sums[m] += reinterpret_cast<Ints>(_mm256_madd_epi16(sum, ones));
    }
  }

  // Fields of 8 bits less 128: a pair of products fits 16 bits if the magnitude is the unsigned operand and its sign
  // goes to the codes.
  template <int rows>
  static void multiply_bytes(const int8_t* x, int64_t x_stride, const uint8_t* fields, int64_t blocks, Ints* sums) {
    const __m256i ones = _mm256_set1_epi16(1), middle = _mm256_set1_epi8(-128);
    __m256i tile[rows];
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) tile[m] = _mm256_setzero_si256();
    for (int64_t word = 0; word < 4 * blocks; ++word, x += 4, fields += 64) {
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(fields));
      const __m256i four = _mm256_xor_si256(bytes, middle), magnitudes = _mm256_abs_epi8(four);
      TRITUNE_UNROLL for (int m = 0; m < rows; ++m) {
        const __m256i codes = _mm256_set1_epi32(four_codes(x + m * x_stride));
        const __m256i pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(codes, four));
        tile[m] = _mm256_add_epi32(tile[m], _mm256_madd_epi16(pairs, ones));
        keep(tile[m]);
      }
    }
    TRITUNE_UNROLL for (int m = 0; m < rows; ++m) _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + m), tile[m]);
  }
};

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
