// Codes of a tensor in bfloat16 in two passes over its values: one for its statistics, one that writes codes.
//
// The statistics are float32 sums of blocks of fixed size, added up in float64 from the first to the last, so that the
// number of threads changes no bit of them. NaN goes into the scale, and thereby into every product, as in the Python
// that these kernels stand in for.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

// One binary for every x86: the widest version that the processor has is chosen when the library is loaded.
#if defined(__x86_64__) && defined(__linux__)
#define EVERY_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_PROCESSOR
#endif

namespace {

using at::Tensor;
using Bfloat16 = uint16_t;  // its bits: the upper half of a float32's

constexpr int64_t kBlock = 4096;
constexpr int64_t kBlocksPerTask = 8;
constexpr float kSmallestMagnitude = 1e-30f;  // as SMALLEST_MAGNITUDE of uniform.py
constexpr float kSmallestScale = 1e-15f;      // as _SMALLEST_SCALE of quantizer.py

struct Magnitudes {
  float largest = 0, sum = 0;
  int32_t nans = 0;
};

struct Kept {
  float sum = 0, count = 0;
};

EVERY_PROCESSOR void widen(const Bfloat16* __restrict in, float* __restrict out, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) out[i] = std::bit_cast<float>(uint32_t(in[i]) << 16);
}

// The largest magnitude, and the sum of magnitudes clipped to `clip`.
EVERY_PROCESSOR Magnitudes magnitudes(const float* __restrict in, int64_t count, float clip) {
  float largest = 0, sum = 0;
  int32_t nans = 0;
#pragma omp simd reduction(max : largest) reduction(+ : sum, nans)
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(in[i]);
    largest = magnitude > largest ? magnitude : largest;
    sum += magnitude < clip ? magnitude : clip;
    nans += magnitude != magnitude;
  }
  return {largest, sum, nans};
}

// Whole numbers below 256 have no bits in the lower half of a float32.
EVERY_PROCESSOR void uniform_codes(
    const float* __restrict in, Bfloat16* __restrict out, int64_t count, float codes_per_unit, float largest_code) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    float code = std::nearbyint(in[i] * codes_per_unit);
    code = code > largest_code ? largest_code : code;
    code = code < -largest_code ? -largest_code : code;
    out[i] = std::bit_cast<uint32_t>(code) >> 16;
  }
}

EVERY_PROCESSOR Kept ternary_codes(
    const float* __restrict in, Bfloat16* __restrict out, int64_t count, float clip, float threshold) {
  float sum = 0, kept = 0;
#pragma omp simd reduction(+ : sum, kept)
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(in[i]) < clip ? std::fabs(in[i]) : clip;
    const float is_kept = magnitude > threshold ? 1.0f : 0.0f;
    sum += magnitude > threshold ? magnitude : 0.0f;
    kept += is_kept;
    out[i] = std::bit_cast<uint32_t>(std::copysign(is_kept, in[i])) >> 16;
  }
  return {sum, kept};
}

// `compute` of every block of float32 values and the place of its codes, in order.
template <class Result, class Compute>
std::vector<Result> for_blocks(const Tensor& values, Bfloat16* codes, Compute compute) {
  const int64_t count = values.numel(), blocks = (count + kBlock - 1) / kBlock;
  std::vector<Result> results(blocks);
  const bool is_narrow = values.scalar_type() == at::kBFloat16;
  const void* data = values.const_data_ptr();
  at::parallel_for(0, blocks, kBlocksPerTask, [&](int64_t begin, int64_t end) {
    float widened[kBlock];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t start = block * kBlock, size = std::min(kBlock, count - start);
      const float* floats = widened;
      if (is_narrow) {
        widen(static_cast<const Bfloat16*>(data) + start, widened, size);
      } else {
        floats = static_cast<const float*>(data) + start;
      }
      results[block] = compute(floats, codes == nullptr ? nullptr : codes + start, size);
    }
  });
  return results;
}

struct Statistics {
  double sum = 0;
  float largest = 0;
};

// Both NaN if a value is.
Statistics statistics(const Tensor& values, float clip) {
  Statistics all;
  int64_t nans = 0;
  for (const Magnitudes& block : for_blocks<Magnitudes>(
           values, nullptr, [clip](const float* in, Bfloat16*, int64_t size) { return magnitudes(in, size, clip); })) {
    all.sum += block.sum;
    all.largest = std::max(all.largest, block.largest);
    nans += block.nans;
  }
  if (nans > 0) {
    all.largest = std::numeric_limits<float>::quiet_NaN();
    all.sum = all.largest;
  }
  return all;
}

// The values in one piece of memory, in whatever order of dimensions.
Tensor dense(const Tensor& values) { return values.is_non_overlapping_and_dense() ? values : values.contiguous(); }

Tensor codes_like(const Tensor& values) { return at::empty_like(values, values.options().dtype(at::kBFloat16)); }

// One value in as many dimensions as `values` have.
Tensor broadcastable(float value, const Tensor& values) {
  Tensor tensor = at::empty(std::vector<int64_t>(values.dim(), 1), at::kFloat);
  *tensor.mutable_data_ptr<float>() = value;
  return tensor;
}

using Coded = std::tuple<Tensor, Tensor, Tensor>;  // codes, scale, largest magnitude

// A NaN stays: std::max gives its first argument where the two do not compare.
Coded coded(const Tensor& codes, float scale, float largest) {
  return {codes, broadcastable(std::max(scale, kSmallestScale), codes), broadcastable(largest, codes)};
}

Coded uniform(const Tensor& given, double clip, int64_t largest_code) {
  const Tensor values = dense(given);
  const float largest = statistics(values, clip).largest;
  const float range = std::isnan(largest) ? largest : std::min(std::max(largest, kSmallestMagnitude), float(clip));
  // torch takes a number over a tensor as the number times the tensor's reciprocal.
  const float codes_per_unit = float(largest_code) * (1.0f / range);
  Tensor codes = codes_like(values);
  for_blocks<char>(
      values,
      static_cast<Bfloat16*>(codes.mutable_data_ptr()),
      [=](const float* in, Bfloat16* out, int64_t size) {
        uniform_codes(in, out, size, codes_per_unit, float(largest_code));
        return char();
      });
  return coded(codes, 1 / codes_per_unit, largest);
}

Coded ternary(const Tensor& given, double clip, double threshold_factor) {
  const Tensor values = dense(given);
  const Statistics all = statistics(values, clip);
  const float threshold = float(threshold_factor) * float(all.sum / double(values.numel()));
  Tensor codes = codes_like(values);
  double sum = 0, count = 0;
  for (const Kept& block : for_blocks<Kept>(
           values,
           static_cast<Bfloat16*>(codes.mutable_data_ptr()),
           [=](const float* in, Bfloat16* out, int64_t size) {
             return ternary_codes(in, out, size, float(clip), threshold);
           })) {
    sum += block.sum;
    count += block.count;
  }
  const float scale = std::isnan(threshold) ? threshold : float(sum / std::max(count, 1.0));
  return coded(codes, scale, all.largest);
}

}  // namespace

TORCH_LIBRARY(tritune_kernels, library) {
  library.def("uniform(Tensor values, float clip, int largest_code) -> (Tensor, Tensor, Tensor)", uniform);
  library.def("ternary(Tensor values, float clip, float threshold_factor) -> (Tensor, Tensor, Tensor)", ternary);
}
