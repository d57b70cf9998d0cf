// Products with tdpbsud: tiles of 16 rows of codes by 64 columns times the fields of a panel for these.
//
// A group of 64 columns of a panel, as fields of 8 bits, is a tile as it lies in memory. Packed fields are unpacked on
// the stack, some groups of two panels at a time, once for all rows of a chunk; two tiles of rows by two panels are
// multiplied at once. Fewer rows than 16 make smaller tiles; the last tile of more rows begins early enough to be a
// whole one, so that a few rows are multiplied twice, to the same results.

#include "product_avx512vnni.h"

#ifdef TRITUNE_EMULATED_AMX
#include "emulated_amx.h"
#endif

namespace tritune {
namespace TRITUNE_ISA_NAMESPACE {

struct Amx : Vnni512 {
  static constexpr int32_t kOffset = 0;
};

constexpr int64_t kTileRows = 16, kTileBytes = 1024;
constexpr int64_t kChunkTiles = 16;     // of rows, that a chunk has
constexpr int64_t kBlockGroups = 16;    // of columns, that are unpacked at a time
constexpr int64_t kFewRows = 4;         // for so few, to unpack into memory takes longer than the product

// The processor's tiles from here to the end of the scope: 0 to 3 are sums, 4 and 5 codes, 6 and 7 fields.
class TileRegisters {
 public:
  explicit TileRegisters(int64_t rows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.row_bytes[tile] = 64;
      shapes.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : 16);
    }
    written();
    _tile_loadconfig(&shapes);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

  // What was written so far lies in memory: compilers do not know what loads of tiles read.
  static void written() { __asm__ volatile("" ::: "memory"); }
};

// One or two tiles of rows by one or two panels.
struct TileOperands {
  const int8_t* x[2];
  int64_t x_stride;
  const uint8_t* fields[2];
  int64_t groups;
  int32_t* sums[2][2];    // [tile of rows][panel]: 16 rows of 16
  bool adds;              // to these sums; otherwise overwrites them
};

template <int row_tiles, int panels>
void multiply_tiles(const TileOperands& o) {
  constexpr bool two_rows = row_tiles == 2, two_panels = panels == 2;
  if (o.adds) {
    _tile_loadd(0, o.sums[0][0], 64);
    if constexpr (two_panels) _tile_loadd(1, o.sums[0][1], 64);
    if constexpr (two_rows) _tile_loadd(2, o.sums[1][0], 64);
    if constexpr (two_rows && two_panels) _tile_loadd(3, o.sums[1][1], 64);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t group = 0; group < o.groups; ++group) {
    _tile_loadd(4, o.x[0] + group * kColumnGroup, o.x_stride);
    _tile_loadd(6, o.fields[0] + group * kTileBytes, 64);
    _tile_dpbsud(0, 4, 6);
    if constexpr (two_panels) {
      _tile_loadd(7, o.fields[1] + group * kTileBytes, 64);
      _tile_dpbsud(1, 4, 7);
    }
    if constexpr (two_rows) {
      _tile_loadd(5, o.x[1] + group * kColumnGroup, o.x_stride);
      _tile_dpbsud(2, 5, 6);
      if constexpr (two_panels) _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, o.sums[0][0], 64);
  if constexpr (two_panels) _tile_stored(1, o.sums[0][1], 64);
  if constexpr (two_rows) _tile_stored(2, o.sums[1][0], 64);
  if constexpr (two_rows && two_panels) _tile_stored(3, o.sums[1][1], 64);
}

inline void unpack(const uint8_t* packed, int64_t groups, uint8_t* fields) {
  for (int64_t block = 0; block < 4 * groups; ++block) {
    for (int j = 0; j < 4; ++j) {
      const auto four = DotTile<Vnni512>::fields_of<2, true>(packed + 64 * block, j);
      __builtin_memcpy(fields + 256 * block + 64 * j, &four, sizeof four);
    }
  }
  TileRegisters::written();
}

// The sums of a chunk of rows for one or two panels: [panel][row of a tile], tile after tile.
struct ChunkSums {
  typename Amx::Ints of[2][kChunkTiles * kTileRows];
};

inline int64_t first_row(int64_t tile, int64_t rows) {
  const int64_t row = tile * kTileRows, last = rows > kTileRows ? rows - kTileRows : 0;
  return row < last ? row : last;
}

template <int panels>
void multiply_chunk(const int8_t* x, int64_t x_stride, int64_t rows, const Weight& w, int64_t panel, ChunkSums& sums) {
  alignas(64) uint8_t unpacked[panels][kBlockGroups * kTileBytes];
  const int64_t groups = parts(w.columns, kColumnGroup), group_bytes = kTileBytes * w.bits / 8;
  in_even_parts(groups, kBlockGroups, [&](int64_t group, int64_t count) {
    TileOperands o{{}, x_stride, {}, count, {}, group > 0};
    for (int64_t p = 0; p < panels; ++p) {
      o.fields[p] = w.fields + ((panel + p) * groups + group) * group_bytes;
      if (w.bits == 2) {
        unpack(o.fields[p], count, unpacked[p]);
        o.fields[p] = unpacked[p];
      }
    }
    const int64_t tiles = parts(rows, kTileRows);
    for (int64_t tile = 0; tile < tiles; tile += 2) {
      for (int64_t i = 0; i < 2; ++i) {
        o.x[i] = x + first_row(tile + i, rows) * x_stride + group * kColumnGroup;
        for (int64_t p = 0; p < panels; ++p) {
          o.sums[i][p] = reinterpret_cast<int32_t*>(sums.of[p] + (tile + i) * kTileRows);
        }
      }
      tile + 1 < tiles ? multiply_tiles<2, panels>(o) : multiply_tiles<1, panels>(o);
    }
  });
}

template <>
inline void product<Amx>(const Codes& x, const Weight& w, int64_t first_panel, int64_t end_panel, const Output& out) {
  if (x.rows <= kFewRows) return product<DotTile<Vnni512>>(x, w, first_panel, end_panel, out);
  const int64_t tile_rows = x.rows < kTileRows ? x.rows : kTileRows;
  const TileRegisters registers(tile_rows);
  ChunkSums sums;
  in_even_parts(x.rows, kChunkTiles * kTileRows, [&](int64_t row, int64_t rows) {
    for (int64_t panel = first_panel; panel < end_panel; panel += 2) {
      const int64_t panels = end_panel - panel < 2 ? 1 : 2;
      (panels == 2 ? multiply_chunk<2> : multiply_chunk<1>)(x.values + row * x.stride, x.stride, rows, w, panel, sums);
      for (int64_t tile = 0; tile * kTileRows < rows; ++tile) {
        for (int64_t p = 0; p < panels; ++p) {
          write<Amx>(x, row + first_row(tile, rows), tile_rows, w, (panel + p) * kPanelRows, out,
                     sums.of[p] + tile * kTileRows);
        }
      }
    }
  });
}

}  // namespace TRITUNE_ISA_NAMESPACE
}  // namespace tritune
