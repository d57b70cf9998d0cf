// As many floats at once as the registers hold that the flags of the including file allow.
//
// All is internal to the including file, and nothing here is a template or an inline function of the standard library:
// the linker keeps one copy of those for all files, and it could be one that the oldest processor cannot run.

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace tritune {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef int8_t Bytes __attribute__((vector_size(kLanes)));

inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline Ints load(const int32_t* from) {
  Ints values;
  std::memcpy(&values, from, sizeof values);
  return values;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

// The first `count` lanes, the others as `rest`.
inline Floats load_some(const float* from, int64_t count, float rest) {
  Floats values = Floats{} + rest;
  std::memcpy(&values, from, count * sizeof(float));
  return values;
}

inline void store_some(float* to, Floats values, int64_t count) { std::memcpy(to, &values, count * sizeof(float)); }

inline Floats all(float value) { return Floats{} + value; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }

inline Floats magnitude(Floats values) {
  Ints bits;
  std::memcpy(&bits, &values, sizeof bits);
  bits &= 0x7fffffff;
  std::memcpy(&values, &bits, sizeof bits);
  return values;
}

// a * b + c, rounded once where the processor can.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// All lanes as one: halves with each other, then their halves, so always in the same order.
template <typename Function>
inline float folded(Floats values, Function function) {
  typedef float Four __attribute__((vector_size(16)));
  Four quarters[kLanes / 4];
  std::memcpy(quarters, &values, sizeof values);
  for (int64_t half = kLanes / 8; half; half /= 2) {
    for (int64_t i = 0; i < half; ++i) quarters[i] = function(quarters[i], quarters[i + half]);
  }
  const Four four = quarters[0];
  const float first = function(four[0], four[2]), second = function(four[1], four[3]);
  return function(first, second);
}

inline float largest_of(Floats values) {
  return folded(values, [](auto a, auto b) { return a > b ? a : b; });
}

inline float sum_of(Floats values) {
  return folded(values, [](auto a, auto b) { return a + b; });
}

// To the nearest whole number, ties to even; |values| below 2^22.
inline Floats rounded(Floats values) {
  const Floats shift = all(12582912.0f);  // 1.5 * 2^23: what is added to it has no bits left for a fraction
  return values + shift - shift;
}

inline Ints to_ints(Floats whole) { return __builtin_convertvector(whole, Ints); }
inline Floats to_floats(Ints values) { return __builtin_convertvector(values, Floats); }
inline Bytes to_bytes(Ints values) {
#if defined(__AVX512F__)
  return (Bytes)_mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)values);
#elif defined(__AVX2__)
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)values),
                                        _mm256_extracti128_si256((__m256i)values, 1));
  const __m128i packed = _mm_packs_epi16(words, words);
  Bytes bytes;
  std::memcpy(&bytes, &packed, sizeof bytes);
  return bytes;
#else
  return __builtin_convertvector(values, Bytes);
#endif
}

// 2^x to 2 units of the last place, for x below 128; what is below 2^-126 becomes that.
inline Floats power_of_two(Floats x) {
  x = larger(x, all(-126.0f));
  const Floats whole = rounded(x);
  const Floats rest = x - whole;  // exact, and at most 1/2
  // Taylor's series: the powers of ln 2 over the factorials.
  Floats series = all(1.54035304e-4f);
  series = multiply_add(series, rest, all(1.33335581e-3f));
  series = multiply_add(series, rest, all(9.61812911e-3f));
  series = multiply_add(series, rest, all(5.55041087e-2f));
  series = multiply_add(series, rest, all(0.240226507f));
  series = multiply_add(series, rest, all(0.693147181f));
  series = multiply_add(series, rest, all(1.0f));
  Ints bits;
  std::memcpy(&bits, &series, sizeof bits);
  bits += to_ints(whole) << 23;
  std::memcpy(&series, &bits, sizeof bits);
  return series;
}

constexpr float kLog2E = 1.44269504f;

// e^x; its relative error grows with |x|, to 1e-6 at 10.
inline Floats exponential(Floats x) { return power_of_two(x * kLog2E); }

}  // namespace
}  // namespace tritune
