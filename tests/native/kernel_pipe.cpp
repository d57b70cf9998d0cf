// Products from the standard input, to the sums and results that one instruction set gives: for processors that are
// emulated whole.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels.h"

using namespace tritune;

template <typename T>
static std::vector<T> read_some(int64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != static_cast<size_t>(count)) std::exit(2);
  return values;
}

int main(int, char** words) {
  const Kernels* kernels = kernels_for(words[1]);
  if (!kernels) return 1;
  enum { tokens, stride, rows, columns, bits, step, first, numbers };
  int64_t shape[numbers];
  while (std::fread(shape, sizeof shape, 1, stdin) == 1) {
    const auto x = read_some<int8_t>(shape[tokens] * shape[stride]);
    const auto x_scales = read_some<float>(shape[tokens]);
    const auto x_sums = read_some<int32_t>(shape[tokens]);
    Weight w{};
    w.rows = shape[rows];
    w.columns = shape[columns];
    w.bits = static_cast<int32_t>(shape[bits]);
    w.step = static_cast<int32_t>(shape[step]);
    w.first = static_cast<int32_t>(shape[first]);
    const int64_t outputs = w.panels() * kPanelRows;
    const auto fields = read_some<uint8_t>(w.panels() * w.panel_bytes());
    const auto scales = read_some<float>(outputs), bias = read_some<float>(outputs);
    w.fields = fields.data();
    w.scales = scales.data();
    w.bias = bias.data();
    const Codes codes{x.data(), shape[stride], x_scales.data(), x_sums.data(), shape[tokens]};
    std::vector<int32_t> sums(shape[tokens] * outputs);
    std::vector<float> results(sums.size());
    kernels->sums(codes, w, 0, w.panels(), sums.data(), outputs);
    kernels->linear(codes, w, 0, w.panels(), results.data(), outputs);
    std::fwrite(sums.data(), 4, sums.size(), stdout);
    std::fwrite(results.data(), 4, results.size(), stdout);
  }
}
