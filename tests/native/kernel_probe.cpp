// The products and panels behind C functions, for tests/test_engine_kernels.py.

#include <cstring>

#include "kernels.h"
#include "layout.h"

using namespace tritune;

#define PROBE extern "C" __attribute__((visibility("default")))

// Filled by Python; see Codes and Weight.
struct Product {
  const int8_t* x;
  int64_t x_stride;
  const float* x_scales;
  const int32_t* x_sums;
  int64_t tokens, rows, columns;
  int32_t bits, step, first;
  const uint8_t* fields;
  const float *scales, *bias;
  int64_t first_panel, end_panel, out_stride;
};

static Codes codes_of(const Product& p) { return {p.x, p.x_stride, p.x_scales, p.x_sums, p.tokens}; }

static Weight weight_of(const Product& p) {
  return {p.rows, p.columns, p.bits, p.step, p.first, p.fields, p.scales, p.bias};
}

// Whether the processor runs it is the caller's affair: tests build some for other instructions than they ship with.
static const Kernels* table_of(const char* isa) {
  const Kernels* tables[] = {kernels_amx(),  kernels_avx512vnni(), kernels_avxvnni(),
                             kernels_avx2(), kernels_neon(),       kernels_scalar()};
  for (const Kernels* table : tables) {
    if (table && std::strcmp(table->isa, isa) == 0) return table;
  }
  return nullptr;
}

PROBE int probe_isas(const char** names, int room) { return available_isas(names, room); }

PROBE int probe_has(const char* isa) { return table_of(isa) != nullptr; }

// The name of the table that is chosen, or null.
PROBE const char* probe_chosen(const char* isa_or_null) {
  const Kernels* kernels = kernels_for(isa_or_null);
  return kernels ? kernels->isa : nullptr;
}

PROBE void probe_sums(const char* isa, const Product* p, int32_t* out) {
  table_of(isa)->sums(codes_of(*p), weight_of(*p), p->first_panel, p->end_panel, out, p->out_stride);
}

PROBE void probe_linear(const char* isa, const Product* p, float* out) {
  table_of(isa)->linear(codes_of(*p), weight_of(*p), p->first_panel, p->end_panel, out, p->out_stride);
}

PROBE void probe_panels_of_packed(const uint8_t* packed, int64_t rows, int64_t columns, uint8_t* fields) {
  panels_of_packed(packed, rows, columns, fields);
}

PROBE void probe_panels_of_codes(const int8_t* codes, int64_t stride, int64_t rows, int64_t columns, uint8_t* fields) {
  panels_of_codes(codes, stride, rows, columns, fields);
}

PROBE void probe_panels_of_columns(const int8_t* codes, int64_t stride, int64_t rows, int64_t columns,
                                   uint8_t* fields) {
  panels_of_columns(codes, stride, rows, columns, fields);
}
