// Attention of one head of one sequence in 8-bit codes. Internal to the including file.

#pragma once

#include "attention_scratch.h"
#include "glue.h"
#include "layout.h"

namespace tritune {
namespace {

// A row of sums of codes to the codes of its softmax; returns their sum. `row` is written over.
inline int32_t softmax_codes(int32_t* row, int64_t tokens, float query_scale, const float* key_scales, float scaling,
                             Levels levels, int8_t* codes, int64_t stride, float* scale) {
  float* scores = reinterpret_cast<float*>(row);
  const int64_t whole = padded(tokens, kLanes), last = whole - kLanes;
  const float factor = query_scale * scaling * kLog2E;  // powers of two are less work than those of e
  for (int64_t i = tokens; i < whole; ++i) row[i] = 0;
  Floats highest = all(-3e38f);
  for (int64_t i = 0; i < last; i += kLanes) {
    const Floats values = to_floats(load(row + i)) * factor * load(key_scales + i);
    store(scores + i, values);
    highest = larger(values, highest);
  }
  store(scores + last, to_floats(load(row + last)) * factor * load(key_scales + last));
  for (int64_t i = tokens; i < whole; ++i) scores[i] = -3e38f;  // its power is nothing beside the others
  const float maximum = largest_of(larger(highest, load(scores + last)));
  Floats sum = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Floats powers = power_of_two(load(scores + i) - maximum);
    store(scores + i, powers);
    sum += powers;
  }
  // The largest power is 1: so the largest probability is known without another look.
  const float share = 1 / sum_of(sum);
  const Unit unit = unit_of(share, levels);
  *scale = unit.scale;
  const float largest = levels.clip < 1 ? levels.largest : 0;
  return codes_of(scores, tokens, {share * unit.codes_per_unit, 0}, largest, codes, stride);
}

// V with one scale: codes, then panels of its columns.
inline void quantize_values(const AttentionShape& shape, const float* value, const Pieces& at) {
  float peak = 0;
  for (int64_t t = 0; t < shape.tokens; ++t) peak = peak_of(value + t * shape.stride, shape.width, peak);
  const Unit unit = unit_of(peak, shape.levels);
  for (int64_t t = 0; t < shape.tokens; ++t) {
    codes_of(value + t * shape.stride, shape.width, unit, shape.levels.largest, at.values + t * at.width_stride,
             at.width_stride);
  }
  panels_of_columns(at.values, at.width_stride, shape.tokens, shape.width, at.value_fields);
  for (int64_t d = 0; d < padded(shape.width, kPanelRows); ++d) at.value_scales[d] = unit.scale;
}

template <void (*kSums)(const Codes&, const Weight&, int64_t, int64_t, int32_t*, int64_t)>
void attention(const AttentionShape& shape, const float* query, const float* key, const float* value, float* context,
               uint8_t* scratch) {
  const Pieces at(scratch, shape.tokens, shape.width);
  const int64_t keys = padded(shape.tokens, kPanelRows), columns = padded(shape.width, kPanelRows);
  quantize(key, shape.stride, shape.tokens, shape.width, shape.levels, at.rows, at.width_stride, at.key_scales, at.sums);
  panels_of_codes(at.rows, at.width_stride, shape.tokens, shape.width, at.key_fields);
  for (int64_t i = shape.tokens; i < keys; ++i) at.key_scales[i] = 0;
  quantize_values(shape, value, at);
  quantize(query, shape.stride, shape.queries, shape.width, shape.levels, at.rows, at.width_stride, at.scales, at.sums);

  const Weight all_keys{shape.tokens, shape.width, 8, 1, -128, at.key_fields, nullptr, nullptr};
  const Weight all_values{shape.width, shape.tokens, 8, 1, -128, at.value_fields, nullptr, nullptr};
  for (int64_t first = 0; first < shape.queries; first += kQueryBlock) {
    const int64_t rows = shape.queries - first < kQueryBlock ? shape.queries - first : kQueryBlock;
    const Codes asked{at.rows + first * at.width_stride, at.width_stride, at.scales + first, at.sums + first, rows};
    kSums(asked, all_keys, 0, keys / kPanelRows, at.scores, keys);
    for (int64_t i = 0; i < rows; ++i) {
      at.prob_sums[i] = softmax_codes(at.scores + i * keys, shape.tokens, asked.scales[i], at.key_scales, shape.scaling,
                                      shape.levels, at.probs + i * at.keys_stride, at.keys_stride, at.prob_scales + i);
    }
    const Codes probs{at.probs, at.keys_stride, at.prob_scales, at.prob_sums, rows};
    kSums(probs, all_values, 0, columns / kPanelRows, at.products, columns);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = context + (first + i) * shape.context_stride;
      for (int64_t d = 0; d < shape.width; d += kLanes) {
        const Floats values =
            to_floats(load(at.products + i * columns + d)) * at.prob_scales[i] * load(at.value_scales + d);
        if (d + kLanes <= shape.width) {
          store(row + d, values);
        } else {
          store_some(row + d, values, shape.width - d);
        }
      }
    }
  }
}

// The table of an instruction set, from its two products.
template <void (*kLinear)(const Codes&, const Weight&, int64_t, int64_t, float*, int64_t),
          void (*kSums)(const Codes&, const Weight&, int64_t, int64_t, int32_t*, int64_t)>
constexpr Kernels kernels_of(const char* isa) {
  return {isa,  kLinear,   kSums, quantize,           float_linear,    layer_norm,
          gelu, gelu_tanh, relu,  hyperbolic_tangent, attention<kSums>};
}

}  // namespace
}  // namespace tritune
