// What stands between products: codes of activations, LayerNorm, activation functions. Internal to the including file.

#pragma once

#include "kernels.h"
#include "vectors.h"

namespace tritune {
namespace {

constexpr float kSmallestMagnitude = 1e-30f;  // as SMALLEST_MAGNITUDE of quant/uniform.py
constexpr float kSmallestScale = 1e-15f;      // as _SMALLEST_SCALE of quant/quantizer.py

struct Unit {
  float codes_per_unit, scale;
};

// As torch divides a number by a tensor: by its reciprocal. Only so are scales those of quant/uniform.py to the last bit.
// What is not finite and not clipped makes the scale NaN.
inline Unit unit_of(float peak, Levels levels) {
  peak = levels.clip < peak ? levels.clip : peak;
  peak = peak < kSmallestMagnitude ? kSmallestMagnitude : peak;
  const float codes_per_unit = 1 / peak * levels.largest;
  const float scale = codes_per_unit > 0 ? 1 / codes_per_unit : __builtin_nanf("");
  return {codes_per_unit, scale < kSmallestScale ? kSmallestScale : scale};
}

// The largest magnitude; NaN if there is one. As whole numbers, the bits of magnitudes are in the order of what they
// stand for, with NaN beyond infinity.
inline float peak_of(const float* values, int64_t count, float so_far) {
  const auto bits_of = [](Floats some) {
    Ints bits;
    std::memcpy(&bits, &some, sizeof bits);
    return bits & 0x7fffffff;
  };
  const auto larger_of = [](Ints a, Ints b) { return a > b ? a : b; };
  // Several at a time, because each maximum waits for the one before it.
  const Ints first = bits_of(all(so_far));
  Ints peaks[4] = {first, first, first, first};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int part = 0; part < 4; ++part) {
      peaks[part] = larger_of(bits_of(load(values + i + part * kLanes)), peaks[part]);
    }
  }
  for (; i + kLanes <= count; i += kLanes) peaks[0] = larger_of(bits_of(load(values + i)), peaks[0]);
  if (i < count) peaks[1] = larger_of(bits_of(load_some(values + i, count - i, 0)), peaks[1]);
  const Ints all_peaks = larger_of(larger_of(peaks[0], peaks[1]), larger_of(peaks[2], peaks[3]));
  int32_t largest = 0;
  for (int lane = 0; lane < kLanes; ++lane) largest = all_peaks[lane] > largest ? all_peaks[lane] : largest;
  float peak;
  std::memcpy(&peak, &largest, sizeof peak);
  return peak;
}

// Codes of a vector of values, written to `codes` and added to `sum`; `largest` 0 is for values that are within their levels.
inline void write_codes(Floats values, Unit unit, float largest, int8_t* codes, Ints& sum) {
  Floats code = values * unit.codes_per_unit;
  if (largest) code = smaller(larger(code, all(-largest)), all(largest));
  const Ints whole = to_ints(rounded(code));
  sum += whole;
  const Bytes bytes = to_bytes(whole);
  std::memcpy(codes, &bytes, sizeof bytes);
}

// Codes of one row; returns their sum. `codes` is filled up with zeros to `stride`, a multiple of 16.
inline int32_t codes_of(const float* values, int64_t count, Unit unit, float largest, int8_t* codes, int64_t stride) {
  Ints sum = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) write_codes(load(values + i), unit, largest, codes + i, sum);
  if (i < count) {
    write_codes(load_some(values + i, count - i, 0), unit, largest, codes + i, sum);
    i += kLanes;
  }
  if (i < stride) std::memset(codes + i, 0, stride - i);
  int32_t total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

void quantize(const float* x, int64_t x_stride, int64_t rows, int64_t columns, Levels levels, int8_t* codes,
              int64_t codes_stride, float* scales, int32_t* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* values = x + row * x_stride;
    const Unit unit = unit_of(peak_of(values, columns, 0), levels);
    scales[row] = unit.scale;
    sums[row] = codes_of(values, columns, unit, levels.largest, codes + row * codes_stride, codes_stride);
  }
}

// A few rows and a vector of outputs, whose sums stay in registers.
template <int rows>
inline void float_tile(const float* x, int64_t x_stride, int64_t columns, const float* w, const float* bias,
                       int64_t stride, float* out, int64_t out_stride) {
  Floats sums[rows];
  for (int m = 0; m < rows; ++m) sums[m] = load(bias);
  for (int64_t k = 0; k < columns; ++k) {
    const Floats weights = load(w + k * stride);
    for (int m = 0; m < rows; ++m) sums[m] = multiply_add(all(x[m * x_stride + k]), weights, sums[m]);
  }
  for (int m = 0; m < rows; ++m) store(out + m * out_stride, sums[m]);
}

void float_linear(const float* x, int64_t x_stride, int64_t rows, int64_t columns, const float* w, const float* bias,
                  int64_t outputs, float* out, int64_t out_stride) {
  constexpr int kTileRows = 8;
  for (int64_t n = 0; n < outputs; n += kLanes) {
    int64_t row = 0;
    for (; row + kTileRows <= rows; row += kTileRows) {
      float_tile<kTileRows>(x + row * x_stride, x_stride, columns, w + n, bias + n, outputs, out + row * out_stride + n,
                            out_stride);
    }
    for (; row < rows; ++row) {
      float_tile<1>(x + row * x_stride, x_stride, columns, w + n, bias + n, outputs, out + row * out_stride + n,
                    out_stride);
    }
  }
}

// One row: x = (x + residual - mean) / deviation * weight + bias; two passes, so that large means cancel first.
inline void normalize(float* x, const float* residual, int64_t columns, const float* weight, const float* bias,
                      float epsilon) {
  const auto some = [columns](const float* from, int64_t at) {
    return at + kLanes <= columns ? load(from + at) : load_some(from + at, columns - at, 0);
  };
  const auto put = [columns](float* to, int64_t at, Floats values) {
    if (at + kLanes <= columns) return store(to + at, values);
    store_some(to + at, values, columns - at);
  };
  Floats sum = {};
  for (int64_t i = 0; i < columns; i += kLanes) {
    Floats values = some(x, i);
    if (residual) put(x, i, values = values + some(residual, i));
    sum += values;
  }
  const float mean = sum_of(sum) / columns;
  Floats squares = {};
  for (int64_t i = 0; i < columns; i += kLanes) {
    const Floats values = (i + kLanes <= columns ? load(x + i) : load_some(x + i, columns - i, mean)) - mean;
    squares = multiply_add(values, values, squares);
  }
  const float factor = 1 / __builtin_sqrtf(sum_of(squares) / columns + epsilon);
  for (int64_t i = 0; i < columns; i += kLanes) {
    put(x, i, multiply_add((some(x, i) - mean) * factor, some(weight, i), some(bias, i)));
  }
}

void layer_norm(float* x, int64_t x_stride, const float* residual, int64_t residual_stride, int64_t rows,
                int64_t columns, const float* weight, const float* bias, float epsilon) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* added = residual ? residual + row * residual_stride : nullptr;
    normalize(x + row * x_stride, added, columns, weight, bias, epsilon);
  }
}

template <typename Function>
inline void for_all(float* x, int64_t count, Function function) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(x + i, function(load(x + i)));
  if (i < count) store_some(x + i, function(load_some(x + i, count - i, 0)), count - i);
}

inline Floats tanh_of(Floats x) {
  const Floats bounded = smaller(magnitude(x), all(10.0f));
  const Floats above_zero = 1.0f - 2.0f / (exponential(bounded + bounded) + 1.0f);
  // Near 0 the difference from 1 has lost its digits; there three terms of the series are exact.
  const Floats square = x * x;
  const Floats near_zero = magnitude(x) * multiply_add(square, multiply_add(square, all(2.0f / 15), all(-1.0f / 3)), all(1.0f));
  const Floats size = bounded < all(0.1f) ? near_zero : above_zero;
  return x < Floats{} ? -size : size;
}

// x Phi(x). The normal distribution's tail by Abramowitz and Stegun, 7.1.26: its error is at most 1.5e-7.
inline Floats gelu_of(Floats x) {
  const Floats z = magnitude(x) * 0.70710678f;
  const Floats t = 1.0f / multiply_add(z, all(0.3275911f), all(1.0f));
  Floats series = all(1.061405429f);
  series = multiply_add(series, t, all(-1.453152027f));
  series = multiply_add(series, t, all(1.421413741f));
  series = multiply_add(series, t, all(-0.284496736f));
  series = multiply_add(series, t, all(0.254829592f));
  const Floats tail = 0.5f * series * t * exponential(-z * z);  // Phi(-|x|)
  return x * (x < Floats{} ? tail : 1.0f - tail);
}

inline Floats gelu_tanh_of(Floats x) {
  const Floats cubic = multiply_add(x * x * x, all(0.044715f), x);
  return 0.5f * x * (1.0f + tanh_of(0.79788456f * cubic));
}

void gelu(float* x, int64_t count) { for_all(x, count, gelu_of); }
void gelu_tanh(float* x, int64_t count) { for_all(x, count, gelu_tanh_of); }
void relu(float* x, int64_t count) {
  for_all(x, count, [](Floats values) { return larger(values, Floats{}); });
}
void hyperbolic_tangent(float* x, int64_t count) { for_all(x, count, tanh_of); }

}  // namespace
}  // namespace tritune
