// Where the operands of one head of one sequence lie while its attention is computed.

#pragma once

#include "kernels.h"

namespace tritune {
namespace {

constexpr int64_t kQueryBlock = 16;

// The scratch in pieces, each aligned; without memory it only counts the bytes.
struct Pieces {
  int64_t width_stride, keys_stride;    // bytes of a row of codes: of one token, of one column of V
  int8_t *rows, *values, *probs;        // codes of Q and of K, of V, and of a block of probabilities
  uint8_t *key_fields, *value_fields;
  float *scales, *key_scales, *value_scales, *prob_scales;
  int32_t *sums, *prob_sums, *scores, *products;
  int64_t bytes = 0;

  Pieces(uint8_t* scratch, int64_t tokens, int64_t width)
      : width_stride(padded(width, kColumnGroup)), keys_stride(padded(tokens, kColumnGroup)) {
    const auto cut = [&]<typename T>(T*& piece, int64_t count) {
      piece = scratch ? reinterpret_cast<T*>(scratch + bytes) : nullptr;
      bytes += padded(count * sizeof(T), kAlignment);
    };
    const int64_t keys = padded(tokens, kPanelRows), columns = padded(width, kPanelRows);
    cut(rows, keys * width_stride);
    cut(values, keys_stride * width_stride);
    cut(probs, kQueryBlock * keys_stride);
    cut(key_fields, keys * width_stride);
    cut(value_fields, columns * keys_stride);
    cut(scales, keys);
    cut(key_scales, keys);
    cut(value_scales, columns);
    cut(prob_scales, kQueryBlock);
    cut(sums, keys);
    cut(prob_sums, kQueryBlock);
    cut(scores, kQueryBlock * keys);
    cut(products, kQueryBlock * columns);
  }
};

}  // namespace
}  // namespace tritune
