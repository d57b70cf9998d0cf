#include "safetensors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "json.h"
#include "model.h"

namespace tritune {
namespace {

constexpr char kFile[] = "model.safetensors";
constexpr char kAgain[] = "; download or convert it again";
// As checkpoints/integrity.py has it.
constexpr uint64_t kLargestHeader = 16 << 20;
constexpr size_t kMostDimensions = 8;

struct DtypeRow {
  const char* name;
  Dtype dtype;
  int64_t bytes;
};
constexpr DtypeRow kDtypes[] = {
    {"U8", Dtype::u8, 1},
    {"F16", Dtype::f16, 2},
    {"BF16", Dtype::bf16, 2},
    {"F32", Dtype::f32, 4},
    {"F64", Dtype::f64, 8},
};

[[noreturn]] void fail(const std::string& why) { fail_with(std::string(kFile) + ": " + why + kAgain); }

[[noreturn]] void fail_of(const std::string& name, const char* why) {
  fail("the entry of " + json::shown(name) + " " + why);
}

// Whole numbers that are not negative, or a failure.
std::vector<int64_t> counts(const json::Value* value, const std::string& name, const char* why) {
  const auto* list = value == nullptr ? nullptr : value->as<json::Value::List>();
  if (list == nullptr || list->size() > kMostDimensions) fail_of(name, why);
  std::vector<int64_t> numbers;
  for (const json::Value& item : *list) {
    const int64_t* number = item.as<int64_t>();
    if (number == nullptr || *number < 0) fail_of(name, why);
    numbers.push_back(*number);
  }
  return numbers;
}

const DtypeRow& dtype_of(const json::Value& entry, const std::string& name) {
  const json::Value* value = entry.find("dtype");
  const std::string* wanted = value == nullptr ? nullptr : value->as<std::string>();
  for (const DtypeRow& row : kDtypes) {
    if (wanted != nullptr && *wanted == row.name) return row;
  }
  fail_of(name, "has a dtype that no packed checkpoint holds");
}

// A tensor whose bytes lie in the `size` bytes at `data`.
Tensor tensor_of(const json::Member& member, const uint8_t* data, int64_t size) {
  const std::string& name = member.name;
  const DtypeRow& row = dtype_of(member.value, name);
  const std::vector<int64_t> shape = counts(member.value.find("shape"), name, "has no shape");
  const std::vector<int64_t> offsets = counts(member.value.find("data_offsets"), name, "has no offsets");
  if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > size) fail_of(name, "lies outside of the file");
  const int64_t length = offsets[1] - offsets[0];
  int64_t elements = std::count(shape.begin(), shape.end(), 0) ? 0 : 1;
  for (const int64_t extent : shape) {
    // No product is formed before it is known to fit.
    if (elements != 0 && elements > length / extent) fail_of(name, "is shorter than its shape");
    elements *= extent;
  }
  if (elements > length / row.bytes || elements * row.bytes != length) fail_of(name, "is not as long as its shape");
  return {name, row.dtype, shape, data + offsets[0], length, elements};
}

void refuse_overlaps(std::vector<Tensor>& tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const Tensor& a, const Tensor& b) { return a.bytes < b.bytes; });
  const uint8_t* end = nullptr;
  for (const Tensor& tensor : tensors) {
    if (tensor.length == 0) continue;
    if (end != nullptr && tensor.bytes < end) fail_of(tensor.name, "lies over another one");
    end = tensor.bytes + tensor.length;
  }
}

float float_of_half(uint16_t half) {
  const uint32_t exponent = (half >> 10) & 31, mantissa = half & 1023;
  const double magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                           : exponent == 0 ? std::ldexp(mantissa, -24)
                                           : std::ldexp(1024 + mantissa, static_cast<int>(exponent) - 25);
  return static_cast<float>(half >> 15 ? -magnitude : magnitude);
}

float float_of_bfloat(uint16_t upper) {
  const uint32_t bits = static_cast<uint32_t>(upper) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The elements, each `read` from its bytes, where all are finite.
template <typename Out, typename In, typename Read>
std::vector<Out> converted(const Tensor& tensor, Read read) {
  std::vector<Out> values(static_cast<size_t>(tensor.count));
  bool all_finite = true;
  for (size_t i = 0; i < values.size(); ++i) {
    In element;
    std::memcpy(&element, tensor.bytes + i * sizeof element, sizeof element);
    values[i] = static_cast<Out>(read(element));
    all_finite &= std::abs(values[i]) <= std::numeric_limits<Out>::max();
  }
  if (!all_finite) fail(tensor.name + " holds NaN or infinite values");
  return values;
}

template <typename Out>
std::vector<Out> values_of(const Tensor& tensor) {
  const auto same = [](auto element) { return element; };
  switch (tensor.dtype) {
    case Dtype::f16: return converted<Out, uint16_t>(tensor, float_of_half);
    case Dtype::bf16: return converted<Out, uint16_t>(tensor, float_of_bfloat);
    case Dtype::f32: return converted<Out, float>(tensor, same);
    case Dtype::f64: return converted<Out, double>(tensor, same);
    case Dtype::u8: break;
  }
  fail(tensor.name + " holds bytes where numbers are expected");
}

}  // namespace

std::vector<float> Tensor::floats() const { return values_of<float>(*this); }

std::vector<double> Tensor::doubles() const { return values_of<double>(*this); }

Tensors::Tensors(const uint8_t* bytes, size_t size) {
  constexpr size_t kLengthBytes = 8;
  if (size < kLengthBytes || size > static_cast<size_t>(std::numeric_limits<int64_t>::max())) fail("truncated");
  uint64_t header = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) header |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  if (header > size - kLengthBytes) fail("truncated");
  if (header > kLargestHeader) fail("a header of " + std::to_string(header) + " bytes is too large");
  const std::string_view text(reinterpret_cast<const char*>(bytes) + kLengthBytes, static_cast<size_t>(header));
  const json::Value parsed = json::parse(text, kFile);
  const auto* entries = parsed.as<json::Value::Object>();
  if (entries == nullptr) fail("its header is no object");

  const uint8_t* data = bytes + kLengthBytes + header;
  const auto data_size = static_cast<int64_t>(size - kLengthBytes - header);
  for (const json::Member& member : *entries) {
    if (member.name != "__metadata__") tensors_.push_back(tensor_of(member, data, data_size));
  }
  refuse_overlaps(tensors_);
  std::sort(tensors_.begin(), tensors_.end(), [](const Tensor& a, const Tensor& b) { return a.name < b.name; });
  taken_.resize(tensors_.size());
}

const Tensor* Tensors::find(std::string_view name) const {
  const auto is_before = [](const Tensor& tensor, std::string_view wanted) { return tensor.name < wanted; };
  const auto found = std::lower_bound(tensors_.begin(), tensors_.end(), name, is_before);
  return found == tensors_.end() || found->name != name ? nullptr : &*found;
}

const Tensor& Tensors::take(std::string_view name) {
  const Tensor* tensor = find(name);
  if (tensor == nullptr) fail(std::string(name) + " is missing");
  taken_[static_cast<size_t>(tensor - tensors_.data())] = true;
  return *tensor;
}

void Tensors::check_all_taken() const {
  const auto left = std::find(taken_.begin(), taken_.end(), false);
  if (left == taken_.end()) return;
  fail("holds " + json::shown(tensors_[static_cast<size_t>(left - taken_.begin())].name) +
       ", for which its config.json has no place");
}

}  // namespace tritune
