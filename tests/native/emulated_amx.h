// The instructions of AMX that the kernels use, in plain C++: for tests on processors without them.
//
// A shape that the processor would refuse ends the process, as a fault does.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace emulated_amx {

struct Tile {
  int rows = 0, row_bytes = 0;
  uint8_t bytes[16][64] = {};
};

struct Registers {
  bool is_configured = false;
  Tile tiles[8];
};

// Of this thread, as a processor's.
inline Registers& registers() {
  thread_local Registers mine;
  return mine;
}

inline void must(bool holds) {
  if (!holds) std::abort();
}

inline void load_config(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  must(bytes[0] == 1 && bytes[1] == 0);
  for (int i = 2; i < 16; ++i) must(bytes[i] == 0);
  registers() = Registers{};
  registers().is_configured = true;
  for (int tile = 0; tile < 16; ++tile) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * tile, 2);
    const int rows = bytes[48 + tile];
    must(row_bytes <= 64 && rows <= 16 && (row_bytes == 0) == (rows == 0) && (tile < 8 || rows == 0));
    if (tile < 8) registers().tiles[tile] = Tile{rows, row_bytes, {}};
  }
}

inline void release() { registers() = Registers{}; }

inline Tile& tile(int number) {
  must(registers().is_configured && registers().tiles[number].rows > 0);
  return registers().tiles[number];
}

inline void zero(int number) { std::memset(tile(number).bytes, 0, sizeof tile(number).bytes); }

inline void load(int number, const void* base, int64_t stride) {
  zero(number);
  Tile& to = tile(number);
  for (int row = 0; row < to.rows; ++row) {
    std::memcpy(to.bytes[row], static_cast<const uint8_t*>(base) + row * stride, to.row_bytes);
  }
}

inline void store(int number, void* base, int64_t stride) {
  const Tile& from = tile(number);
  for (int row = 0; row < from.rows; ++row) {
    std::memcpy(static_cast<uint8_t*>(base) + row * stride, from.bytes[row], from.row_bytes);
  }
}

// sums[m][n] += four signed bytes of a[m] times four unsigned bytes of b, for all groups of four.
inline void dot_signed_unsigned(int sums, int a, int b) {
  Tile &to = tile(sums), &left = tile(a), &right = tile(b);
  must(sums != a && sums != b && a != b);
  must(to.rows == left.rows && left.row_bytes == 4 * right.rows && to.row_bytes == right.row_bytes);
  for (int m = 0; m < to.rows; ++m) {
    for (int n = 0; n < to.row_bytes / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, to.bytes[m] + 4 * n, 4);
      for (int k = 0; k < left.row_bytes; ++k) {
        sum += static_cast<int8_t>(left.bytes[m][k]) * right.bytes[k / 4][4 * n + k % 4];
      }
      std::memcpy(to.bytes[m] + 4 * n, &sum, 4);
    }
  }
}

}  // namespace emulated_amx

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbsud
#define _tile_loadconfig emulated_amx::load_config
#define _tile_release emulated_amx::release
#define _tile_loadd emulated_amx::load
#define _tile_stored emulated_amx::store
#define _tile_zero emulated_amx::zero
#define _tile_dpbsud emulated_amx::dot_signed_unsigned
