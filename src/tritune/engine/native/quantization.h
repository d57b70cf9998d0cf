// The `quantization_config` of a packed checkpoint: how bytes become values, and activations codes.

#pragma once

#include "config.h"
#include "kernels.h"

namespace tritune {

// Codes of a weight: code = first + step * field, value = scale * code.
struct Coding {
  int32_t bits = 2;                  // of a field
  int32_t first = -1, step = 1;
  int32_t lowest = -1, highest = 1;  // the codes that there are
  bool per_row = false;              // a scale for each row, not for all
  // The file holds 1 / unit in 64 bits, where unit is a 32-bit float and values are code / unit.
  bool has_units = false;

  bool has_zero() const { return step == 1; }
  int32_t padding() const { return has_zero() ? 0 : first; }
};

struct Quantization {
  Coding weight, embedding;
  Levels activations{};
};

// Throws Failure: the section is not that of a packed checkpoint; NotServed: the engine does not run such a model.
Quantization read_quantization(const Section& section);

}  // namespace tritune
