// The tensors of a safetensors file in memory, all offsets checked; no value is copied until it is asked for.

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace tritune {

enum class Dtype { u8, f16, bf16, f32, f64 };

struct Tensor {
  std::string name;
  Dtype dtype;
  std::vector<int64_t> shape;
  const uint8_t* bytes;   // of any alignment
  int64_t length;         // of the bytes
  int64_t count;          // of elements

  bool is_float() const { return dtype != Dtype::u8; }
  // As 32-bit floats. Throws Failure: one is not finite.
  std::vector<float> floats() const;
  // As they are, or widened. Throws Failure: one is not finite.
  std::vector<double> doubles() const;
};

class Tensors {
 public:
  // Throws Failure: not safetensors; the header is too large; a tensor lies outside of the bytes or over another one,
  // or is not as long as its dtype and shape say; or its dtype is none that a packed checkpoint holds.
  Tensors(const uint8_t* bytes, size_t size);

  bool has(std::string_view name) const { return find(name) != nullptr; }
  // Throws Failure: there is none.
  const Tensor& take(std::string_view name);
  // Throws Failure: the file holds a tensor that nobody has taken.
  void check_all_taken() const;

 private:
  const Tensor* find(std::string_view name) const;

  std::vector<Tensor> tensors_;   // by name
  std::vector<char> taken_;
};

}  // namespace tritune
