// From the last hidden state to answers.

#pragma once

#include "kernels.h"
#include "model.h"

namespace tritune {

// (rows, inputs) times a float matrix, (outputs, inputs), one row of it: for small ones only.
void multiply(const float* x, const FloatMatrix& matrix, float* out);

// Columns of an answer.
inline int64_t answer_columns(const Model& model) {
  return model.head.classifier.is_there() ? model.head.classifier.rows : model.hidden;
}

// One answer. `codes` and `buffer` have room for a row of codes and of floats, both padded to kColumnGroup.
void answer(const Model& model, const Kernels& kernels, const float* row, int8_t* codes, float* buffer, float* out);

}  // namespace tritune
