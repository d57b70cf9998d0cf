// The memory of one call, in pieces.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "encoder.h"
#include "kernels.h"
#include "model.h"

namespace tritune {

// Rows that go through the layer together: enough that unpacking a weight is little work, few enough for the cache.
constexpr int64_t kBlockRows = 64;

// Bytes from one row of codes to the next. Rows 4096 bytes apart share one set of the first cache, which has no room for
// the rows of a tile.
constexpr int64_t codes_stride(int64_t columns) {
  const int64_t stride = padded(columns, kColumnGroup);
  return stride % 4096 ? stride : stride + kColumnGroup;
}

// Strides of rows of floats; padded to whole panels, because a product writes whole panels.
struct Strides {
  int64_t hidden, query_key_value, intermediate, codes, narrow;

  explicit Strides(const Model& model)
      : hidden(padded(std::max(model.hidden, model.words.columns), kPanelRows)),
        query_key_value(padded(3 * model.hidden, kPanelRows)),
        intermediate(padded(std::max({model.intermediate, model.hidden, model.words.columns}), kPanelRows)),
        codes(padded(std::max({model.intermediate, model.hidden, model.words.columns}), kColumnGroup) + kColumnGroup),
        narrow(padded(std::max(model.patches.columns(), model.is_pre_norm ? model.hidden : 0), kPanelRows)) {}
};

// What one thread needs for its block of rows.
struct Own {
  int8_t* codes;
  float *scales, *wide, *narrow;
  int32_t* sums;
  uint8_t* attention;
};

// What all threads share.
struct Shared {
  float *hidden, *query_key_value, *context;
};

struct Workspace {
  Shared shared;
  std::unique_ptr<Own[]> own;   // of each thread
  int64_t bytes;
};

// Cuts `memory` into what a batch needs; null only counts the bytes.
Workspace lay_out(const Model& model, const Batch& batch, int threads, uint8_t* memory);

}  // namespace tritune
