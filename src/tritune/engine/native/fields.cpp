#include "fields.h"

#include <cstring>
#include <vector>

namespace tritune {
namespace {

// The fewest whole bytes that whole fields fill.
constexpr int64_t group_bytes(int32_t bits) { return bits == 3 ? 3 : 1; }
constexpr int64_t group_codes(int32_t bits) { return group_bytes(bits) * 8 / bits; }

int64_t groups(int64_t columns, int32_t bits) { return (columns + group_codes(bits) - 1) / group_codes(bits); }

template <int32_t kBits>
void read_groups(const uint8_t* packed, int64_t count, int32_t first, int32_t step, int8_t* codes) {
  for (int64_t group = 0; group < count; ++group) {
    uint32_t word = 0;
    for (int64_t i = 0; i < group_bytes(kBits); ++i) word |= uint32_t{packed[group * group_bytes(kBits) + i]} << 8 * i;
    for (int64_t i = 0; i < group_codes(kBits); ++i) {
      const auto field = static_cast<int32_t>(word >> kBits * i & ((1u << kBits) - 1));
      codes[group * group_codes(kBits) + i] = static_cast<int8_t>(first + step * field);
    }
  }
}

// Whether a field of 2 bits is 0b11, which is no ternary code.
bool has_three(const uint8_t* packed, int64_t bytes) {
  uint64_t found = 0;
  int64_t at = 0;
  for (; at + 8 <= bytes; at += 8) {
    uint64_t word;
    std::memcpy(&word, packed + at, sizeof word);
    found |= word & word >> 1 & 0x5555555555555555;
  }
  for (; at < bytes; ++at) found |= packed[at] & packed[at] >> 1 & 0x55;
  return found != 0;
}

// For fields of 2 bits, of which a model may have a hundred million: no field is taken apart but those of the padding.
bool are_two_bit_codes(const uint8_t* packed, int64_t rows, int64_t columns, const Coding& coding) {
  const int64_t row_bytes = packed_row_bytes(columns, 2);
  if (coding.highest - coding.lowest == 2 && has_three(packed, rows * row_bytes)) return false;
  const int64_t used = columns % 4;
  if (used == 0) return true;
  const int32_t wanted = (coding.padding() - coding.first) / coding.step * 0x55 >> 2 * used;
  for (int64_t row = 0; row < rows; ++row) {
    if (packed[(row + 1) * row_bytes - 1] >> 2 * used != wanted) return false;
  }
  return true;
}

}  // namespace

int64_t packed_row_bytes(int64_t columns, int32_t bits) { return groups(columns, bits) * group_bytes(bits); }

bool are_codes(const uint8_t* packed, int64_t rows, int64_t columns, const Coding& coding) {
  if (coding.bits == 2) return are_two_bit_codes(packed, rows, columns, coding);
  const int64_t row_bytes = packed_row_bytes(columns, coding.bits);
  std::vector<int8_t> codes(static_cast<size_t>(columns + 7));
  const int64_t filled = groups(columns, coding.bits) * group_codes(coding.bits);
  bool all = true;
  for (int64_t row = 0; row < rows; ++row) {
    read_codes(packed + row * row_bytes, columns, coding, codes.data());
    for (int64_t i = 0; i < filled; ++i) all &= coding.lowest <= codes[i] && codes[i] <= coding.highest;
    for (int64_t i = columns; i < filled; ++i) all &= codes[i] == coding.padding();
  }
  return all;
}

void read_codes(const uint8_t* packed, int64_t columns, const Coding& coding, int8_t* codes) {
  const int64_t count = groups(columns, coding.bits);
  switch (coding.bits) {
    case 1: return read_groups<1>(packed, count, coding.first, coding.step, codes);
    case 2: return read_groups<2>(packed, count, coding.first, coding.step, codes);
    case 3: return read_groups<3>(packed, count, coding.first, coding.step, codes);
    case 4: return read_groups<4>(packed, count, coding.first, coding.step, codes);
    default: return read_groups<8>(packed, count, coding.first, coding.step, codes);
  }
}

}  // namespace tritune
