// The forward pass of a whole encoder.

#pragma once

#include <cstdint>

#include "kernels.h"
#include "model.h"

namespace tritune {

// Sequences without padding, one after the other, as tritune_run takes them; or images, whose offsets are those of
// their class token and patches.
struct Batch {
  const int32_t *ids, *types, *positions;
  const float* pixels;
  const int64_t* offsets;
  int64_t sequences;

  int64_t tokens() const { return offsets[sequences]; }
};

// Throws Failure: an id, type or position is beyond its table, or a sequence is empty or too long.
void check(const Model& model, const Batch& batch);

// Bytes that `encode` needs.
size_t arena_bytes(const Model& model, const Batch& batch, int threads);

// A checked batch to its last hidden state and its answers; either may be null. Where only the answers of sequences are
// asked for, the last layer is computed for first tokens alone: nobody looks at the others.
void encode(const Model& model, const Kernels& kernels, const Batch& batch, int threads, uint8_t* arena, float* hidden,
            float* answers);

}  // namespace tritune
