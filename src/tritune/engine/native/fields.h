// Packed rows as checkpoints/packing.py writes them: checked, and read.

#pragma once

#include "quantization.h"

namespace tritune {

// Bytes of a row of so many codes.
int64_t packed_row_bytes(int64_t columns, int32_t bits);

// Whether rows hold nothing but codes of `coding`, and padding as it is written.
bool are_codes(const uint8_t* packed, int64_t rows, int64_t columns, const Coding& coding);

// A row to int8 codes; there is room for 7 more than it has columns.
void read_codes(const uint8_t* packed, int64_t columns, const Coding& coding, int8_t* codes);

}  // namespace tritune
