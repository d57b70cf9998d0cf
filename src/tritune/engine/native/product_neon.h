// Products with sdot on 128 bits: a quarter of a panel at a time, with 16 codes of a row in a register.

#include <arm_neon.h>

#include "product_dot.h"

namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

struct Neon {
  typedef int32_t Ints __attribute__((vector_size(16)));
  typedef float Floats __attribute__((vector_size(16)));
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  typedef uint16_t Shorts __attribute__((vector_size(16)));
  static constexpr bool kIsSigned = true;

  using Codes = int8x16_t;
  static Codes codes_at(const int8_t* x) { return vld1q_s8(x); }
  static Ints dot(Ints sums, Bytes fields, Codes codes, int j) {
    const int32x4_t to = reinterpret_cast<int32x4_t>(sums);
    const int8x16_t four = reinterpret_cast<int8x16_t>(fields);
    // The lane is part of the instruction.
    switch (j) {
      case 0: return reinterpret_cast<Ints>(vdotq_laneq_s32(to, four, codes, 0));
      case 1: return reinterpret_cast<Ints>(vdotq_laneq_s32(to, four, codes, 1));
      case 2: return reinterpret_cast<Ints>(vdotq_laneq_s32(to, four, codes, 2));
      default: return reinterpret_cast<Ints>(vdotq_laneq_s32(to, four, codes, 3));
    }
  }
};

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
