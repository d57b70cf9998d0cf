// The arithmetic of the engine: one table of functions for each instruction set.
//
// Each `kernels_*.cpp` is compiled with the flags of its instruction set alone and fills one table. Everything else is
// compiled for the oldest processor and calls through the table.

#pragma once

#include <cstdint>

namespace tritune {

constexpr int64_t kPanelRows = 16;      // outputs that a panel holds
constexpr int64_t kColumnGroup = 64;    // inputs are padded with zeros to whole groups
constexpr int64_t kAlignment = 64;      // bytes; of every buffer below

constexpr int64_t padded(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// 8-bit activations: int8 codes in -127..127, (rows, stride), zero from the last column to the stride.
struct Codes {
  const int8_t* values;
  int64_t stride;         // bytes of a row, a multiple of kColumnGroup
  const float* scales;    // (rows): value = scale * code
  const int32_t* sums;    // (rows): of a row's codes
  int64_t rows;
};

// A weight, (rows, columns), in panels of 16 rows; code = first + step * field, value = scale of the row * code.
//
// bits 2: fields 0..3, [panel][64 columns][4][64 bytes]. A block of 64 bytes holds 16 columns of 16 rows: in byte
//         4 n + k, the bits 2 j and 2 j + 1 are the field of row n, column 4 j + k of the block. So `(byte >> 2 j) & 3`
//         is [row][4 columns], what dot-product instructions take.
// bits 8: fields 0..255, [panel][4 columns][row][4 bytes], up to whole groups of 64 columns.
//
// Fields beyond the last row or column are anything: there the inputs' codes are zero, or nobody reads the output.
struct Weight {
  int64_t rows, columns;
  int32_t bits, step, first;
  const uint8_t* fields;
  const float* scales;    // (padded rows)
  const float* bias;      // (padded rows); zeros where there is none

  int64_t panels() const { return padded(rows, kPanelRows) / kPanelRows; }
  int64_t padded_columns() const { return padded(columns, kColumnGroup); }
  // Bytes of one panel.
  int64_t panel_bytes() const { return kPanelRows * padded_columns() * bits / 8; }
};

struct Levels {
  float clip;             // infinite for none
  float largest;          // code: 127 for 8 bits
};

// One sequence of attention. Q, K and V lie side by side in one buffer: row t of head h of K begins at
// key + t * stride + h * width.
struct AttentionShape {
  int64_t queries;        // how many tokens, from the first on, ask
  int64_t tokens, width, stride, context_stride;
  float scaling;          // of Q K^T
  Levels levels;
};

struct Kernels {
  const char* isa;

  // out[m][n] = float(sum_k x.code[m][k] * w.code[n][k]) * x.scale[m] * w.scale[n] + bias[n], each operation rounded
  // once, in this order; n from 16 first_panel to 16 end_panel, at out + m * out_stride + n.
  void (*linear)(const Codes& x, const Weight& w, int64_t first_panel, int64_t end_panel, float* out, int64_t out_stride);

  // The exact int32 sums alone: the sum of code products, without scales and bias.
  void (*sums)(const Codes& x, const Weight& w, int64_t first_panel, int64_t end_panel, int32_t* out, int64_t out_stride);

  // Rows of floats to codes, scales and sums: code = round to even of x * unit, within the levels, where
  // unit = largest / min(max |x|, clip), scale = 1 / unit. A row of zeros has codes of 0 and a finite scale.
  void (*quantize)(const float* x, int64_t x_stride, int64_t rows, int64_t columns, Levels levels, int8_t* codes,
                   int64_t codes_stride, float* scales, int32_t* sums);

  // out = x w + bias in floats: x (rows, columns), w (columns, padded outputs), bias and rows of `out` padded outputs.
  // Each output is added up over the columns in their order.
  void (*float_linear)(const float* x, int64_t x_stride, int64_t rows, int64_t columns, const float* w,
                       const float* bias, int64_t outputs, float* out, int64_t out_stride);

  // x = layer_norm(x + residual) in place, row by row; `residual` may be null.
  void (*layer_norm)(float* x, int64_t x_stride, const float* residual, int64_t residual_stride, int64_t rows,
                     int64_t columns, const float* weight, const float* bias, float epsilon);
  void (*gelu)(float* x, int64_t count);
  void (*gelu_tanh)(float* x, int64_t count);
  void (*relu)(float* x, int64_t count);
  void (*tanh)(float* x, int64_t count);

  // The context of one head of one sequence: softmax(Q K^T * scaling) V in 8-bit codes, with a scale per row of Q, K
  // and the probabilities, and one for all of V. `scratch` has `attention_scratch_bytes` bytes.
  void (*attention)(const AttentionShape& shape, const float* query, const float* key, const float* value,
                    float* context, uint8_t* scratch);
};

// Scratch that serves every sequence of at most so many tokens.
int64_t attention_scratch_bytes(int64_t tokens, int64_t width);

// Null where the compiler could not build it.
const Kernels* kernels_scalar();
const Kernels* kernels_avx2();
const Kernels* kernels_avxvnni();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_amx();
const Kernels* kernels_neon();
const Kernels* kernels_wasm_pairs();
const Kernels* kernels_wasm_quads();
const Kernels* kernels_wasm_simd();

// The fastest table that this processor runs, or the one named; null if it is unknown or does not run here.
const Kernels* kernels_for(const char* isa_or_null);

// The names of all that run here, best first, into `names`; returns how many.
int available_isas(const char** names, int room);

}  // namespace tritune
