// Times of the engine's products on one thread, beside what the processor gives at best: one line of CSV for each.
//
//     products ROUNDS [ISA ...]
//
// All are timed in turn, ROUNDS times, the peaks too; medians. "cache" takes the same weight again and again, "memory"
// walks over copies that no cache holds.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"
#include "peak.h"

using namespace tritune;

static constexpr int64_t kMemory = int64_t{96} << 20;   // more than a last cache has for one processor
static constexpr double kSlice = 2e-3;                  // seconds for which one product is repeated at a time

template <typename T>
static T* room_for(int64_t count) {
  return static_cast<T*>(std::aligned_alloc(64, padded(count * sizeof(T), 64)));
}

static double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

struct Shape {
  int bits;
  int64_t rows, columns;
};

// The linears of MiniLM and BERT-base; the products of attention, for 128 tokens and heads of 32 and 64.
static constexpr Shape kShapes[] = {{2, 384, 384},  {2, 1536, 384}, {2, 384, 1536}, {2, 768, 768}, {2, 3072, 768},
                                    {2, 768, 3072}, {8, 128, 32},   {8, 32, 128},   {8, 128, 64},  {8, 64, 128}};
static constexpr int64_t kTokens[] = {1, 16, 128};

struct Peak {
  double (*measure)(int64_t rounds);
  int64_t rounds;
  std::vector<double> values;
};

static Peak* peak_of(const std::string& isa, [[maybe_unused]] int bits) {
  static Peak scalar{peak_scalar, 20000, {}};
#if defined(__x86_64__)
  static Peak amx{peak_amx, 2000, {}}, avx512vnni{peak_avx512vnni, 20000, {}}, avxvnni{peak_avxvnni, 20000, {}};
  static Peak avx2{peak_avx2, 20000, {}}, avx2_bytes{peak_avx2_bytes, 20000, {}};
  if (isa == "amx") return &amx;
  if (isa == "avx512vnni") return &avx512vnni;
  if (isa == "avxvnni") return &avxvnni;
  if (isa == "avx2") return bits == 2 ? &avx2 : &avx2_bytes;
#elif defined(__aarch64__)
  static Peak neon{peak_neon, 20000, {}};
  if (isa == "neon") return &neon;
#endif
  return &scalar;
}

class Product {
 public:
  Product(const Kernels& kernels, const Shape& shape, int64_t tokens, bool from_memory, const uint8_t* fields)
      : kernels_(kernels), from_memory_(from_memory), peak_(*peak_of(kernels.isa, shape.bits)) {
    weight_ = {shape.rows, shape.columns, shape.bits, 1, shape.bits == 2 ? -1 : -128, fields, nullptr, nullptr};
    outputs_ = weight_.panels() * kPanelRows;
    bytes_ = weight_.panels() * weight_.panel_bytes();
    const int64_t stride = weight_.padded_columns();
    auto* x = room_for<int8_t>(tokens * stride);
    auto* sums = room_for<int32_t>(tokens);
    std::mt19937 random;
    for (int64_t m = 0; m < tokens; ++m) {
      sums[m] = 0;
      for (int64_t k = 0; k < stride; ++k) {
        x[m * stride + k] = k < shape.columns ? static_cast<int8_t>(random() % 255 - 127) : 0;
        sums[m] += x[m * stride + k];
      }
    }
    weight_.scales = weight_.bias = ones(outputs_);
    codes_ = {x, stride, ones(tokens), sums, tokens};
    out_ = ones(tokens * outputs_);
    const double once = time(1);
    repeats_ = std::max<int64_t>(1, static_cast<int64_t>(kSlice / std::max(once, 1e-9)));
    if (from_memory) repeats_ = std::max(repeats_, kMemory / bytes_);
  }

  void measure() { times_.push_back(time(repeats_) / static_cast<double>(repeats_)); }

  void print(double read) const {
    const double time = median(times_), products = static_cast<double>(codes_.rows * weight_.rows * weight_.columns);
    const double peak = median(peak_.values);
    std::printf("%s,%d,%ld,%ld,%ld,%s,%.2f,%.4f,%.4f,%.3f,%.1f,%.1f\n", kernels_.isa, weight_.bits,
                static_cast<long>(weight_.rows), static_cast<long>(weight_.columns), static_cast<long>(codes_.rows),
                from_memory_ ? "memory" : "cache", 1e6 * time, 2e-12 * products / time, 2e-12 * peak,
                products / time / peak, 1e-9 * static_cast<double>(bytes_) / time, 1e-9 * read);
  }

 private:
  static float* ones(int64_t count) {
    auto* values = room_for<float>(count);
    std::fill(values, values + count, 1.0f);
    return values;
  }

  double time(int64_t repeats) {
    Weight weight = weight_;
    const int64_t copies = from_memory_ ? kMemory / bytes_ : 1;
    const double begin = seconds();
    for (int64_t i = 0; i < repeats; ++i) {
      weight.fields = weight_.fields + i % copies * bytes_;
      kernels_.linear(codes_, weight, 0, weight.panels(), out_, outputs_);
    }
    return seconds() - begin;
  }

  const Kernels& kernels_;
  const bool from_memory_;
  const Peak& peak_;
  Weight weight_{};
  Codes codes_{};
  float* out_;
  int64_t outputs_, bytes_, repeats_;
  std::vector<double> times_;
};

int main(int count, char** words) {
  const char* names[8];
  const int available = available_isas(names, 8);
  std::vector<std::string> isas(words + std::min(count, 2), words + count);
  if (isas.empty()) isas.assign(names, names + available);
  const int rounds = count > 1 ? std::atoi(words[1]) : 15;
  auto* memory = room_for<uint8_t>(kMemory);
  std::mt19937 random;
  for (int64_t i = 0; i < kMemory; i += 4) {
    const uint32_t word = random();
    std::memcpy(memory + i, &word, 4);
  }
  std::vector<Product> products;
  std::vector<Peak*> peaks;
  for (const auto& isa : isas) {
    const Kernels* kernels = kernels_for(isa.c_str());
    if (!kernels) {
      std::fprintf(stderr, "%s does not run here\n", isa.c_str());
      continue;
    }
    for (const auto& shape : kShapes) {
      for (const int64_t tokens : kTokens) products.emplace_back(*kernels, shape, tokens, false, memory);
      if (shape.bits == 2 && isa != "scalar") products.emplace_back(*kernels, shape, 1, true, memory);
      Peak* peak = peak_of(isa, shape.bits);
      if (std::find(peaks.begin(), peaks.end(), peak) == peaks.end()) peaks.push_back(peak);
    }
  }
  std::vector<double> reads;
  for (int round = 0; round < rounds; ++round) {
    for (Peak* peak : peaks) peak->values.push_back(peak->measure(peak->rounds));
    reads.push_back(read_bandwidth(memory, kMemory));
    for (auto& product : products) product.measure();
  }
  std::puts("isa,bits,rows,columns,tokens,weights_in,us,tops,peak_tops,of_peak,weights_gb_s,read_gb_s");
  for (const auto& product : products) product.print(median(reads));
}
