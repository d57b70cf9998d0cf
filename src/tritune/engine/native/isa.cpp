// Which tables of kernels this processor and its operating system run.

#include <cstdint>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif
#if defined(__wasm_relaxed_simd__)
#include <wasm_simd128.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace tritune {
namespace {

#if defined(__x86_64__) || defined(_M_X64)

constexpr uint32_t bit(int number) { return 1u << number; }

struct Leaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero where the processor does not know the leaf.
Leaf leaf(uint32_t number, uint32_t part) {
  Leaf answer;
  __get_cpuid_count(number, part, &answer.eax, &answer.ebx, &answer.ecx, &answer.edx);
  return answer;
}

// The registers that the operating system saves when it switches threads.
uint32_t saved_registers() {
  if (!(leaf(1, 0).ecx & bit(27))) return 0;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool saves(uint32_t registers) { return (saved_registers() & registers) == registers; }

bool runs_avx2() {
  const uint32_t fma = bit(12), f16c = bit(29);
  return saves(bit(1) | bit(2)) && (leaf(1, 0).ecx & fma) && (leaf(1, 0).ecx & f16c) && (leaf(7, 0).ebx & bit(5));
}

bool runs_avxvnni() { return runs_avx2() && (leaf(7, 1).eax & bit(4)); }

bool runs_avx512vnni() {
  const uint32_t foundation = bit(16), doublewords = bit(17), bytes = bit(30), lengths = bit(31);
  const uint32_t needed = foundation | doublewords | bytes | lengths;
  return runs_avx2() && saves(bit(5) | bit(6) | bit(7)) && (leaf(7, 0).ebx & needed) == needed &&
         (leaf(7, 0).ecx & bit(11));
}

bool runs_amx() {
  const uint32_t tiles = bit(24), int8 = bit(25);
  if (!runs_avx512vnni() || !saves(bit(17) | bit(18)) || (leaf(7, 0).edx & (tiles | int8)) != (tiles | int8)) {
    return false;
  }
#if defined(__linux__)
  // Linux saves the tiles of those processes only that ask; for all threads, and once is enough.
  constexpr long ask = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, ask, tile_data) == 0;
#else
  return false;
#endif
}

bool runs_neon() { return false; }

#else

bool runs_avx2() { return false; }
bool runs_avxvnni() { return false; }
bool runs_avx512vnni() { return false; }
bool runs_amx() { return false; }

bool runs_neon() {
#if defined(__linux__) && defined(__aarch64__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__) && defined(__aarch64__)
  return true;
#else
  return false;
#endif
}

#endif

#if defined(__wasm_relaxed_simd__)

// Four equal products of a signed and a 7-bit number and their sum.
int32_t quad(int8_t code, int8_t field) {
  return wasm_i32x4_extract_lane(wasm_i32x4_relaxed_dot_i8x16_i7x16_add(wasm_i8x16_splat(code), wasm_i8x16_splat(field),
                                                                        wasm_i32x4_splat(field)), 3);
}

// Node 20, where relaxed SIMD is an experiment, computes something else.
bool multiplies_quads() { return quad(-127, 3) == -4 * 127 * 3 + 3 && quad(5, 127) == 4 * 5 * 127 + 127; }

// Whether a quad is two pairs, each in 16 bits, as on x86 processors without VNNI: beyond 7 bits, those overflow. There,
// pairs are less work; elsewhere they are more.
bool multiplies_pairs() { return multiplies_quads() && quad(127, -1) == 2 * INT16_MAX - 1; }

#else

bool multiplies_quads() { return false; }
bool multiplies_pairs() { return false; }

#endif

// What its file has a table of, it was compiled for.
bool runs_always() { return true; }

// Best first.
constexpr struct {
  const char* name;
  const Kernels* (*kernels)();
  bool (*runs)();
} kTables[] = {
    {"amx", kernels_amx, runs_amx},
    {"avx512vnni", kernels_avx512vnni, runs_avx512vnni},
    {"avxvnni", kernels_avxvnni, runs_avxvnni},
    {"avx2", kernels_avx2, runs_avx2},
    {"neon", kernels_neon, runs_neon},
    {"pairs", kernels_wasm_pairs, multiplies_pairs},
    {"quads", kernels_wasm_quads, multiplies_quads},
    {"simd", kernels_wasm_simd, runs_always},
    {"scalar", kernels_scalar, runs_always},
};

}  // namespace

const Kernels* kernels_for(const char* isa_or_null) {
  for (const auto& table : kTables) {
    const bool is_asked = !isa_or_null || std::strcmp(isa_or_null, table.name) == 0;
    if (is_asked && table.kernels() && table.runs()) return table.kernels();
  }
  return nullptr;
}

int available_isas(const char** names, int room) {
  int count = 0;
  for (const auto& table : kTables) {
    if (count < room && table.kernels() && table.runs()) names[count++] = table.name;
  }
  return count;
}

}  // namespace tritune
