// Weights from the bytes of a packed checkpoint, and codes, into the panels that kernels read; see Weight.

#pragma once

#include "kernels.h"

namespace tritune {

// Fields of 2 bits, four a byte from the lowest bit on, (rows, ceil(columns / 4)), to panels.
void panels_of_packed(const uint8_t* packed, int64_t rows, int64_t columns, uint8_t* fields);

// int8 codes, (rows, columns), a row every `stride` bytes, to panels of 8 bits: field = code + 128. Columns beyond the
// last block of 16 are left as they are.
void panels_of_codes(const int8_t* codes, int64_t stride, int64_t rows, int64_t columns, uint8_t* fields);

// The same for the transposed matrix: row n of the weight is column n of the codes.
void panels_of_columns(const int8_t* codes, int64_t stride, int64_t rows, int64_t columns, uint8_t* fields);

}  // namespace tritune
