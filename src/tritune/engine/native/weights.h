// Tensors of a packed checkpoint to the weights that the engine runs, each checked against the shape it must have.

#pragma once

#include <string>
#include <vector>

#include "model.h"
#include "quantization.h"
#include "safetensors.h"

namespace tritune {

// Everything throws Failure where a tensor is missing, has another shape, or holds what cannot have been written; and
// NotServed where a weight is float that must be packed, or the other way round.
class Weights {
 public:
  Weights(const uint8_t* bytes, size_t size) : tensors_(bytes, size) {}

  bool is_packed(const std::string& name) const { return tensors_.has(name + ".weight_scale"); }

  // Linears of (rows, columns) each, one below the other in one weight.
  OwnWeight packed(const std::vector<std::string>& names, int64_t rows, int64_t columns, const Coding& coding);
  PackedTable packed_table(const std::string& name, int64_t rows, int64_t columns, const Coding& coding);
  // A convolution's kernel, (outputs, channels, height, width), transposed: (inputs, padded outputs), and its bias.
  FloatMatrix convolution(const std::string& name, const std::vector<int64_t>& shape);
  std::vector<float> values(const std::string& name, const std::vector<int64_t>& shape) {
    return take_floats(name, shape);
  }
  FloatMatrix linear(const std::string& name, int64_t rows, int64_t columns);
  FloatMatrix table(const std::string& name, int64_t rows, int64_t columns);
  Norm norm(const std::string& name, int64_t columns);

  void check_all_taken() const { tensors_.check_all_taken(); }

 private:
  const Tensor& take_packed(const std::string& name, int64_t rows, int64_t columns, const Coding& coding);
  std::vector<float> take_scales(const std::string& name, int64_t rows, const Coding& coding);
  std::vector<float> take_floats(const std::string& name, const std::vector<int64_t>& shape);

  Tensors tensors_;
};

}  // namespace tritune
