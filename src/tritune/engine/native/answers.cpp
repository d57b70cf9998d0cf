#include "answers.h"

#include <cstring>

namespace tritune {

void multiply(const float* x, const FloatMatrix& matrix, float* out) {
  for (int64_t n = 0; n < matrix.rows; ++n) {
    const float* row = matrix.values.data() + n * matrix.columns;
    float sums[16] = {};
    int64_t k = 0;
    for (; k + 16 <= matrix.columns; k += 16) {
      for (int i = 0; i < 16; ++i) sums[i] += x[k + i] * row[k + i];
    }
    float sum = matrix.bias.empty() ? 0 : matrix.bias[n];
    for (; k < matrix.columns; ++k) sum += x[k] * row[k];
    for (const float part : sums) sum += part;
    out[n] = sum;
  }
}

namespace {

// The head's dense layer and activation, from `row` to `buffer`; `codes` has room for the row's codes.
void dense(const Model& model, const Kernels& kernels, const float* row, int8_t* codes, float* buffer) {
  const Head& head = model.head;
  if (head.dense.is_there()) {
    const int64_t stride = padded(model.hidden, kColumnGroup);
    float scale;
    int32_t sum;
    kernels.quantize(row, stride, 1, model.hidden, model.levels, codes, stride, &scale, &sum);
    kernels.linear({codes, stride, &scale, &sum, 1}, head.dense.view, 0, head.dense.view.panels(), buffer,
                   padded(head.dense.view.rows, kPanelRows));
  } else {
    multiply(row, head.float_dense, buffer);
  }
  const int64_t count = model.hidden;
  if (head.activation == Activation::gelu) kernels.gelu(buffer, count);
  if (head.activation == Activation::gelu_tanh) kernels.gelu_tanh(buffer, count);
  if (head.activation == Activation::relu) kernels.relu(buffer, count);
  if (head.activation == Activation::tanh) kernels.tanh(buffer, count);
}

}  // namespace

void answer(const Model& model, const Kernels& kernels, const float* row, int8_t* codes, float* buffer, float* out) {
  const Head& head = model.head;
  if (head.dense.is_there() || head.float_dense.is_there()) {
    dense(model, kernels, row, codes, buffer);
    row = buffer;
  }
  if (head.classifier.is_there()) return multiply(row, head.classifier, out);
  std::memcpy(out, row, model.hidden * sizeof(float));
}

}  // namespace tritune
