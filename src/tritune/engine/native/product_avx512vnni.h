// Products with vpdpbusd on 512 bits: a whole panel at a time.

#include <immintrin.h>

#include "product_dot.h"

namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

struct Vnni512 {
  typedef int32_t Ints __attribute__((vector_size(64)));
  typedef float Floats __attribute__((vector_size(64)));
  typedef uint8_t Bytes __attribute__((vector_size(64)));
  typedef uint16_t Shorts __attribute__((vector_size(64)));
  static constexpr bool kIsSigned = false;

  using Codes = const int8_t*;
  static Codes codes_at(const int8_t* x) { return x; }
  static Ints dot(Ints sums, Bytes fields, Codes codes, int j) {
    return reinterpret_cast<Ints>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums),
                                                      reinterpret_cast<__m512i>(fields),
                                                      _mm512_set1_epi32(four_codes(codes + 4 * j))));
  }
};

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
