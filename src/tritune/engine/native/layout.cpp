#include "layout.h"

// Words are read and written as they lie in memory: the first column in the lowest byte.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the panels of weights are for little-endian processors");

namespace tritune {
namespace {

// 16 bytes in the compiler's own notation for vectors.
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));

constexpr int64_t kPiece = sizeof(Bytes);

// Up to 16 bytes, the others zero.
Bytes read(const uint8_t* bytes, int64_t count) {
  Bytes piece{};
  if (count >= kPiece) {
    __builtin_memcpy(&piece, bytes, kPiece);
  } else if (count > 0) {
    __builtin_memcpy(&piece, bytes, count);
  }
  return piece;
}

Words zip_low(Words a, Words b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
Words zip_high(Words a, Words b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }
Bytes zip_low(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
Bytes zip_high(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// Four vectors a, b, c, d to a[0] b[0] c[0] d[0] a[1] b[1] c[1] d[1] and so on.
template <typename Vector>
void interleave(Vector (&v)[4]) {
  const Vector even_low = zip_low(v[0], v[2]), even_high = zip_high(v[0], v[2]);
  const Vector odd_low = zip_low(v[1], v[3]), odd_high = zip_high(v[1], v[3]);
  v[0] = zip_low(even_low, odd_low);
  v[1] = zip_high(even_low, odd_low);
  v[2] = zip_low(even_high, odd_high);
  v[3] = zip_high(even_high, odd_high);
}

Words swapped(Words words, uint32_t mask, int distance) {
  const Words difference = (words ^ (words >> distance)) & mask;
  return words ^ difference ^ (difference << distance);
}

// The field of column 4 j + k from the bits 8 j + 2 k on to the bits 8 k + 2 j on: 16 fields of 2 bits as a matrix of
// 4 x 4, transposed; first within its quarters, then the quarters.
Words transposed(Words words) { return swapped(swapped(words, 0x00CC00CC, 6), 0x0000F0F0, 12); }

Words biased(Words words) { return words ^ 0x80808080; }

// Rows of `row_bytes` bytes to panels in which words of 4 bytes lie [word][16 rows].
template <typename Change>
void panels_of_rows(const uint8_t* bytes, int64_t stride, int64_t rows, int64_t row_bytes, int64_t panel_bytes,
                    uint8_t* fields, Change change) {
  for (int64_t row = 0; row < padded(rows, kPanelRows); row += 4) {
    uint8_t* to = fields + row / kPanelRows * panel_bytes + row % kPanelRows * 4;
    for (int64_t at = 0; at < row_bytes; at += kPiece) {
      Words words[4];
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t count = row + i < rows ? row_bytes - at : 0;
        words[i] = change(reinterpret_cast<Words>(read(bytes + (row + i) * stride + at, count)));
      }
      interleave(words);
      for (int64_t i = 0; i < 4; ++i) __builtin_memcpy(to + (at / 4 + i) * kPanelRows * 4, &words[i], kPiece);
    }
  }
}

}  // namespace

void panels_of_packed(const uint8_t* packed, int64_t rows, int64_t columns, uint8_t* fields) {
  const int64_t row_bytes = (columns + 3) / 4, panel_bytes = kPanelRows * padded(columns, kColumnGroup) / 4;
  panels_of_rows(packed, row_bytes, rows, row_bytes, panel_bytes, fields, transposed);
}

void panels_of_codes(const int8_t* codes, int64_t stride, int64_t rows, int64_t columns, uint8_t* fields) {
  panels_of_rows(reinterpret_cast<const uint8_t*>(codes), stride, rows, columns,
                 kPanelRows * padded(columns, kColumnGroup), fields, biased);
}

void panels_of_columns(const int8_t* codes, int64_t stride, int64_t rows, int64_t columns, uint8_t* fields) {
  const int64_t panel_bytes = kPanelRows * padded(rows, kColumnGroup);
  for (int64_t column = 0; column < columns; column += kPanelRows) {
    uint8_t* to = fields + column / kPanelRows * panel_bytes;
    for (int64_t row = 0; row < padded(rows, 16); row += 4, to += kPanelRows * 4) {
      Bytes four[4];
      for (int64_t i = 0; i < 4; ++i) {
        const int64_t count = row + i < rows ? columns - column : 0;
        four[i] = read(reinterpret_cast<const uint8_t*>(codes) + (row + i) * stride + column, count) ^ 0x80;
      }
      interleave(four);
      __builtin_memcpy(to, four, sizeof four);
    }
  }
}

}  // namespace tritune
