// flags: -fopenmp-simd

// Kernels of training: codes of a tensor in bfloat16, in two passes over its values. The first is for their statistics,
// the second writes codes.
//
// The statistics are float32 sums of blocks of fixed size, added up in float64 from the first to the last, so that the
// number of threads changes no bit of them. NaN goes into the scale, and thereby into every product, as in the Python
// that these kernels stand in for.

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <new>
#include <vector>

#include "tritune_engine.h"

// Loops that a compiler makes wide by itself need no file for each processor: the widest version is chosen when the
// library is loaded.
#if defined(__x86_64__) && defined(__linux__)
#define EVERY_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_PROCESSOR
#endif

namespace {

using Bfloat16 = uint16_t;  // its bits: the upper half of a float32's

constexpr int64_t kBlock = 4096;
constexpr int64_t kBlocksPerThread = 8;       // fewer take less time than a thread takes to begin
constexpr float kSmallestMagnitude = 1e-30f;  // as SMALLEST_MAGNITUDE of uniform.py
constexpr float kSmallestScale = 1e-15f;      // as _SMALLEST_SCALE of quantizer.py

struct Magnitudes {
  int32_t largest = 0;  // its bits: they have the order of magnitudes, and those of a NaN come last
  float sum = 0;
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
  int32_t largest = 0;
  float sum = 0;
#pragma omp simd reduction(max : largest) reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    const float magnitude = std::fabs(in[i]);
    const int32_t bits = std::bit_cast<int32_t>(magnitude);
    largest = bits > largest ? bits : largest;
    sum += magnitude < clip ? magnitude : clip;
  }
  return {largest, sum};
}

// Whole numbers below 256 have no bits in the lower half of a float32.
EVERY_PROCESSOR void uniform_codes(const float* __restrict in, Bfloat16* __restrict out, int64_t count,
                                   float codes_per_unit, float largest_code) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    float code = std::nearbyint(in[i] * codes_per_unit);
    code = code > largest_code ? largest_code : code;
    code = code < -largest_code ? -largest_code : code;
    out[i] = std::bit_cast<uint32_t>(code) >> 16;
  }
}

EVERY_PROCESSOR Kept ternary_codes(const float* __restrict in, Bfloat16* __restrict out, int64_t count, float clip,
                                   float threshold) {
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

struct Statistics {
  double sum;
  float largest;
};

// Both NaN if a value is.
Statistics statistics(const std::vector<Magnitudes>& blocks) {
  int32_t largest = 0;
  double sum = 0;
  for (const Magnitudes& block : blocks) {
    largest = std::max(largest, block.largest);
    sum += block.sum;
  }
  const float magnitude = std::bit_cast<float>(largest);
  return {std::isnan(magnitude) ? magnitude : sum, magnitude};
}

// The values of a tensor, cut into blocks that threads share.
class Blocks {
 public:
  Blocks(const void* values, int is_bfloat16, int64_t count, tritune_team team, int threads)
      : values_(values), is_bfloat16_(is_bfloat16 != 0), count_(count), team_(team),
        threads_(std::min<int64_t>(threads, (number() - 1) / kBlocksPerThread + 1)) {}

  int64_t count() const { return count_; }
  int64_t number() const { return (count_ - 1) / kBlock + 1; }

  Statistics magnitudes_within(float clip) const {
    std::vector<Magnitudes> found(number());
    for_each([&](int64_t block, const float* floats, int64_t, int64_t size) {
      found[block] = magnitudes(floats, size, clip);
    });
    return statistics(found);
  }

  // `compute(block, floats, start, size)` of every block; it must not throw.
  template <class Compute>
  void for_each(const Compute& compute) const {
    // The team may have fewer threads than it was asked for: who is done takes another share.
    std::atomic<int64_t> next{0};
    auto work = [&] {
      for (int64_t share = next++; share < threads_; share = next++) {
        for_range(number() * share / threads_, number() * (share + 1) / threads_, compute);
      }
    };
    if (team_ == nullptr || threads_ < 2) return for_range(0, number(), compute);
    team_([](void* shared) { (*static_cast<decltype(work)*>(shared))(); }, &work, unsigned(threads_), 0);
  }

 private:
  template <class Compute>
  void for_range(int64_t block, int64_t end, const Compute& compute) const {
    float widened[kBlock];
    for (; block < end; ++block) {
      const int64_t start = block * kBlock, size = std::min(kBlock, count_ - start);
      compute(block, floats(start, size, widened), start, size);
    }
  }

  const float* floats(int64_t start, int64_t size, float* widened) const {
    if (!is_bfloat16_) return static_cast<const float*>(values_) + start;
    widen(static_cast<const Bfloat16*>(values_) + start, widened, size);
    return widened;
  }

  const void* values_;
  bool is_bfloat16_;
  int64_t count_;
  tritune_team team_;
  int64_t threads_;
};

float codes_per_unit(const Statistics& all, float clip, float largest_code) {
  const float range = std::isnan(all.largest) ? all.largest : std::min(std::max(all.largest, kSmallestMagnitude), clip);
  // torch takes a number over a tensor as the number times the tensor's reciprocal.
  return largest_code * (1.0f / range);
}

// A NaN stays: std::max gives its first argument where the two do not compare.
float finite(float scale) { return std::max(scale, kSmallestScale); }

void uniform(const Blocks& values, float clip, float largest_code, Bfloat16* codes, float* scale, float* peak) {
  const Statistics all = values.magnitudes_within(clip);
  const float unit = codes_per_unit(all, clip, largest_code);
  values.for_each([=](int64_t, const float* floats, int64_t start, int64_t size) {
    uniform_codes(floats, codes + start, size, unit, largest_code);
  });
  *scale = finite(1 / unit);
  *peak = all.largest;
}

void ternary(const Blocks& values, float clip, float threshold_factor, Bfloat16* codes, float* scale, float* peak) {
  const Statistics all = values.magnitudes_within(clip);
  const float threshold = threshold_factor * float(all.sum / double(values.count()));
  std::vector<Kept> kept(values.number());
  values.for_each([&](int64_t block, const float* floats, int64_t start, int64_t size) {
    kept[block] = ternary_codes(floats, codes + start, size, clip, threshold);
  });
  double sum = 0, number = 0;
  for (const Kept& block : kept) {
    sum += block.sum;
    number += block.count;
  }
  *scale = finite(std::isnan(threshold) ? threshold : float(sum / std::max(number, 1.0)));
  *peak = all.largest;
}

}  // namespace

int tritune_uniform(const void* values, int is_bfloat16, int64_t count, float clip, float largest_code,
                    tritune_team team, int threads, uint16_t* codes, float* scale, float* peak) try {
  uniform({values, is_bfloat16, count, team, threads}, clip, largest_code, codes, scale, peak);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}

int tritune_ternary(const void* values, int is_bfloat16, int64_t count, float clip, float threshold_factor,
                    tritune_team team, int threads, uint16_t* codes, float* scale, float* peak) try {
  ternary({values, is_bfloat16, count, team, threads}, clip, threshold_factor, codes, scale, peak);
  return 0;
} catch (const std::bad_alloc&) {
  return 1;
}
