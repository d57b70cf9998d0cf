// Products with vpdpbusd on 256 bits: half a panel at a time.

#include <immintrin.h>

#include "product_dot.h"

namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

struct Vnni256 {
  typedef int32_t Ints __attribute__((vector_size(32)));
  typedef float Floats __attribute__((vector_size(32)));
  typedef uint8_t Bytes __attribute__((vector_size(32)));
  typedef uint16_t Shorts __attribute__((vector_size(32)));
  static constexpr bool kIsSigned = false;

  using Codes = const int8_t*;
  static Codes codes_at(const int8_t* x) { return x; }
  static Ints dot(Ints sums, Bytes fields, Codes codes, int j) {
    const __m256i four = _mm256_set1_epi32(four_codes(codes + 4 * j));
#ifdef __AVXVNNI__
    return reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sums),
                                                          reinterpret_cast<__m256i>(fields), four));
#else
    // The same instruction as AVX-512 encodes it: for tests on processors that have that one alone.
    return reinterpret_cast<Ints>(_mm256_dpbusd_epi32(reinterpret_cast<__m256i>(sums),
                                                      reinterpret_cast<__m256i>(fields), four));
#endif
  }
};

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
