// What the processor gives at best: independent multiply-adds from registers, and a walk over memory.
//
// Written in assembly, so that no compiler drops, moves or spills an instruction that is to be timed. Every function
// runs on processors that have its instruction alone.

#pragma once

#include <time.h>

#include <cstdint>

// Of this thread on a processor: what else runs there does not count.
inline double seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// `body` once for each of 12 sums, in the registers 0 to 11, after `before`; returns multiply-adds a second.
#define TRITUNE_PEAK(name, products, before, body, after, ...)                                      \
  inline double name(int64_t rounds) {                                                              \
    __asm__ volatile(before ::: __VA_ARGS__);                                                       \
    const double begin = seconds();                                                                 \
    for (int64_t round = 0; round < rounds; ++round) {                                              \
      __asm__ volatile(".irp r,0,1,2,3,4,5,6,7,8,9,10,11\n" body "\n.endr" ::: __VA_ARGS__);        \
    }                                                                                               \
    const double taken = seconds() - begin;                                                         \
    __asm__ volatile(after);                                                                        \
    return static_cast<double>(rounds * 12 * products) / taken;                                     \
  }

#if defined(__x86_64__)

#define TRITUNE_VECTORS "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define TRITUNE_ZEROS ".irp r,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n vpxor %%xmm\\r,%%xmm\\r,%%xmm\\r\n .endr"
#define TRITUNE_VECTOR_PEAK(name, products, body) \
  TRITUNE_PEAK(name, products, TRITUNE_ZEROS, body, "vzeroupper", TRITUNE_VECTORS)

TRITUNE_PEAK(peak_scalar, 1, "", "mov %%ecx,%%eax\n imul %%ecx,%%eax\n add %%eax,%%edx", "", "eax", "ecx", "edx", "cc")
TRITUNE_VECTOR_PEAK(peak_avx512vnni, 64, "vpdpbusd %%zmm14,%%zmm15,%%zmm\\r")
TRITUNE_VECTOR_PEAK(peak_avxvnni, 32, "%{vex%} vpdpbusd %%ymm14,%%ymm15,%%ymm\\r")
// Fields of 2 bits: two products are added to 16 bits.
TRITUNE_VECTOR_PEAK(peak_avx2, 32, "vpmaddubsw %%ymm14,%%ymm15,%%ymm13\n vpaddw %%ymm13,%%ymm\\r,%%ymm\\r")
// Fields of 8 bits: signs are moved, and four products added to 32 bits.
TRITUNE_VECTOR_PEAK(peak_avx2_bytes, 32,
                    "vpsignb %%ymm14,%%ymm15,%%ymm13\n vpmaddubsw %%ymm13,%%ymm15,%%ymm13\n"
                    "vpmaddwd %%ymm13,%%ymm14,%%ymm13\n vpaddd %%ymm13,%%ymm\\r,%%ymm\\r")

// Four sums, as many as the kernels have.
inline double peak_amx(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, rest[15] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const shapes;
  __asm__ volatile("ldtilecfg %0\n tilezero %%tmm4\n tilezero %%tmm6" ::"m"(shapes));
  const double begin = seconds();
  for (int64_t round = 0; round < rounds; ++round) {
    __asm__ volatile(".irp r,0,1,2,3\n tdpbsud %%tmm6,%%tmm4,%%tmm\\r\n .endr" ::);
  }
  const double taken = seconds() - begin;
  __asm__ volatile("tilerelease");
  return static_cast<double>(rounds * 4 * 16 * 16 * 64) / taken;
}

// Bytes a second; `count` is a multiple of 256.
inline double read_bandwidth(const uint8_t* bytes, int64_t count) {
  const double begin = seconds();
  for (const uint8_t* at = bytes; at < bytes + count; at += 256) {
    __asm__ volatile(
        ".irp r,0,1,2,3,4,5,6,7\n movups 32*\\r(%0),%%xmm\\r\n movups 32*\\r+16(%0),%%xmm\\r\n .endr" ::"r"(at)
        : TRITUNE_VECTORS);
  }
  return static_cast<double>(count) / (seconds() - begin);
}

#elif defined(__aarch64__)

#define TRITUNE_VECTORS "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v14", "v15"

#define TRITUNE_NUMBERS "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11"

TRITUNE_PEAK(peak_scalar, 1, "", "madd w\\r,w13,w14,w\\r", "", TRITUNE_NUMBERS)
TRITUNE_PEAK(peak_neon, 16, "movi v14.16b,#0\n movi v15.16b,#0",
             ".arch armv8.2-a+dotprod\n sdot v\\r\\().4s,v14.16b,v15.16b", "", TRITUNE_VECTORS)

inline double read_bandwidth(const uint8_t* bytes, int64_t count) {
  const double begin = seconds();
  for (const uint8_t* at = bytes; at < bytes + count; at += 64) {
    __asm__ volatile("ldp q0,q1,[%0]\n ldp q2,q3,[%0,#32]" ::"r"(at) : TRITUNE_VECTORS);
  }
  return static_cast<double>(count) / (seconds() - begin);
}

#endif
