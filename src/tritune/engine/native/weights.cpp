#include "weights.h"

#include <algorithm>
#include <limits>

#include "fields.h"
#include "layout.h"

namespace tritune {
namespace {

// Smaller scales of Linears are raised to it, as Quantizer.restore_integers does.
constexpr float kSmallestScale = 1e-15f;

[[noreturn]] void fail(const std::string& name, const std::string& why) {
  fail_with("model.safetensors: " + name + " " + why + "; download or convert it again");
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

void check_shape(const Tensor& tensor, const std::vector<int64_t>& shape) {
  if (tensor.shape != shape) {
    fail(tensor.name, "has the shape " + text_of(tensor.shape) + " where its config.json asks for " + text_of(shape));
  }
}

Buffer padded_floats(const std::vector<float>& values) {
  const auto count = static_cast<size_t>(padded(static_cast<int64_t>(values.size()), kPanelRows));
  Buffer buffer(count * sizeof(float));
  std::copy(values.begin(), values.end(), buffer.as<float>());
  std::fill(buffer.as<float>() + values.size(), buffer.as<float>() + count, 0.0f);
  return buffer;
}

// The bytes of all parts in one piece of memory: that of the file where there is one part, else `room`.
const uint8_t* joined(const std::vector<const Tensor*>& parts, std::vector<uint8_t>& room) {
  if (parts.size() == 1) return parts[0]->bytes;
  for (const Tensor* part : parts) room.insert(room.end(), part->bytes, part->bytes + part->length);
  return room.data();
}

// Codes of 1 bit become fields of 2: no kernel has others below 8.
std::vector<uint8_t> widened(const uint8_t* packed, int64_t rows, int64_t columns, const Coding& coding) {
  const int64_t from_bytes = packed_row_bytes(columns, 1), to_bytes = packed_row_bytes(columns, 2);
  std::vector<uint8_t> wide(static_cast<size_t>(rows * to_bytes));
  std::vector<int8_t> codes(static_cast<size_t>(columns + 7));
  for (int64_t row = 0; row < rows; ++row) {
    read_codes(packed + row * from_bytes, columns, coding, codes.data());
    for (int64_t i = 0; i < columns; ++i) {
      wide[row * to_bytes + i / 4] |= (codes[i] - coding.first) / coding.step << i % 4 * 2;
    }
  }
  return wide;
}

std::vector<int8_t> all_codes(const uint8_t* packed, int64_t rows, int64_t columns, int64_t stride,
                              const Coding& coding) {
  const int64_t row_bytes = packed_row_bytes(columns, coding.bits);
  std::vector<int8_t> codes(static_cast<size_t>(rows * stride));
  for (int64_t row = 0; row < rows; ++row) {
    read_codes(packed + row * row_bytes, columns, coding, codes.data() + row * stride);
  }
  return codes;
}

// Bytes of a file into the panels of `weight`, whose sizes are set.
void fill_panels(OwnWeight& weight, const uint8_t* packed, const Coding& coding) {
  Weight& view = weight.view;
  view.bits = coding.bits <= 2 ? 2 : 8;
  view.step = view.bits == 2 ? coding.step : 1;
  view.first = view.bits == 2 ? coding.first : -128;
  weight.fields = Buffer(static_cast<size_t>(view.panels() * view.panel_bytes()));
  uint8_t* fields = weight.fields.bytes();
  if (coding.bits == 1) {
    panels_of_packed(widened(packed, view.rows, view.columns, coding).data(), view.rows, view.columns, fields);
  } else if (coding.bits == 2) {
    panels_of_packed(packed, view.rows, view.columns, fields);
  } else {
    const int64_t stride = padded(view.columns, 8);
    panels_of_codes(all_codes(packed, view.rows, view.columns, stride, coding).data(), stride, view.rows, view.columns,
                    fields);
  }
  view.fields = fields;
}

}  // namespace

const Tensor& Weights::take_packed(const std::string& name, int64_t rows, int64_t columns, const Coding& coding) {
  const Tensor& tensor = tensors_.take(name + ".weight");
  if (tensor.is_float()) not_served("model.safetensors: " + tensor.name + " is a float weight");
  check_shape(tensor, {rows, packed_row_bytes(columns, coding.bits)});
  if (!are_codes(tensor.bytes, rows, columns, coding)) fail(tensor.name, "holds codes or padding that do not exist");
  return tensor;
}

std::vector<float> Weights::take_scales(const std::string& name, int64_t rows, const Coding& coding) {
  const Tensor& tensor = tensors_.take(name + ".weight_scale");
  check_shape(tensor, {coding.per_row ? rows : 1, 1});
  if (tensor.dtype != (coding.has_units ? Dtype::f64 : Dtype::f32)) fail(tensor.name, "has the dtype of no scale");
  const std::vector<double> stored = tensor.doubles();
  std::vector<float> scales(stored.size());
  for (size_t i = 0; i < stored.size(); ++i) {
    // As Uniform._unit and _scale: from the double the float unit comes back exactly.
    scales[i] = coding.has_units ? 1 / static_cast<float>(1 / stored[i]) : static_cast<float>(stored[i]);
    if (!(scales[i] >= 0 && scales[i] <= std::numeric_limits<float>::max())) {
      fail(tensor.name, "holds a scale that is negative or too large");
    }
  }
  return scales;
}

std::vector<float> Weights::take_floats(const std::string& name, const std::vector<int64_t>& shape) {
  const Tensor& tensor = tensors_.take(name);
  if (!tensor.is_float()) not_served("model.safetensors: " + name + " is packed");
  check_shape(tensor, shape);
  return tensor.floats();
}

OwnWeight Weights::packed(const std::vector<std::string>& names, int64_t rows, int64_t columns, const Coding& coding) {
  std::vector<const Tensor*> parts;
  std::vector<float> scales, biases;
  for (const std::string& name : names) {
    parts.push_back(&take_packed(name, rows, columns, coding));
    const std::vector<float> own = take_scales(name, rows, coding), bias = take_floats(name + ".bias", {rows});
    for (int64_t row = 0; row < rows; ++row) scales.push_back(std::max(own[coding.per_row ? row : 0], kSmallestScale));
    biases.insert(biases.end(), bias.begin(), bias.end());
  }
  OwnWeight weight;
  weight.view.rows = rows * static_cast<int64_t>(names.size());
  weight.view.columns = columns;
  std::vector<uint8_t> room;
  fill_panels(weight, joined(parts, room), coding);
  weight.scales = padded_floats(scales);
  weight.bias = padded_floats(biases);
  weight.view.scales = weight.scales.as<float>();
  weight.view.bias = weight.bias.as<float>();
  return weight;
}

PackedTable Weights::packed_table(const std::string& name, int64_t rows, int64_t columns, const Coding& coding) {
  const Tensor& tensor = take_packed(name, rows, columns, coding);
  return {.rows = rows,
          .columns = columns,
          .bits = coding.bits,
          .step = coding.step,
          .first = coding.first,
          .bytes = tensor.bytes,
          .row_bytes = tensor.shape[1],
          .scales = take_scales(name, rows, coding)};
}

FloatMatrix Weights::linear(const std::string& name, int64_t rows, int64_t columns) {
  FloatMatrix matrix = table(name, rows, columns);
  matrix.bias = take_floats(name + ".bias", {rows});
  return matrix;
}

FloatMatrix Weights::convolution(const std::string& name, const std::vector<int64_t>& shape) {
  const std::vector<float> kernel = take_floats(name + ".weight", shape), bias = take_floats(name + ".bias", {shape[0]});
  const int64_t inputs = static_cast<int64_t>(kernel.size()) / shape[0], outputs = padded(shape[0], kPanelRows);
  FloatMatrix matrix{inputs, outputs, std::vector<float>(inputs * outputs), std::vector<float>(outputs)};
  for (int64_t n = 0; n < shape[0]; ++n) {
    for (int64_t k = 0; k < inputs; ++k) matrix.values[k * outputs + n] = kernel[n * inputs + k];
    matrix.bias[n] = bias[n];
  }
  return matrix;
}

FloatMatrix Weights::table(const std::string& name, int64_t rows, int64_t columns) {
  return {rows, columns, take_floats(name + ".weight", {rows, columns}), {}};
}

Norm Weights::norm(const std::string& name, int64_t columns) {
  return {take_floats(name + ".weight", {columns}), take_floats(name + ".bias", {columns})};
}

}  // namespace tritune
