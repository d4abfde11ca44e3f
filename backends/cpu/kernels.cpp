// The kernels of one instruction set: compiled several times, XENT_ISA naming the namespace of each.

#include "kernels.h"

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#define XENT_NAME_OF(x) #x
#define XENT_NAME(x) XENT_NAME_OF(x)

namespace xent::XENT_ISA {
namespace {

#include "simd.h"
#include "rows.h"
#include "columns.h"
#include "sigmoid.h"

template <class X>
void rows_of(const Rows& k, int64_t begin, int64_t end) {
  using Kernel = void (*)(const Rows&, int64_t, int64_t);
  constexpr Kernel variants[3][2][2] = {
      {{side_by_side<X, false, false>, side_by_side<X, false, true>},
       {side_by_side<X, true, false>, side_by_side<X, true, true>}},
      {{beside<X, false, false>, beside<X, false, true>}, {beside<X, true, false>, beside<X, true, true>}},
      {{turned<X, false, false>, turned<X, false, true>}, {turned<X, true, false>, turned<X, true, true>}},
  };
  variants[k.inner > 1 ? 1 : turns(k) ? 2 : 0][k.t != nullptr][k.u != nullptr](k, begin, end);
  if (k.streaming) stream_end();
}

void rows(const Rows& k, int64_t begin, int64_t end) {
  constexpr void (*of_dtype[])(const Rows&, int64_t, int64_t) = {rows_of<float>, rows_of<double>, rows_of<f16>,
                                                                 rows_of<bf16>};
  of_dtype[k.dtype](k, begin, end);
}

void sigmoid(const Sigmoid& k, int64_t begin, int64_t end) {
  constexpr void (*of_dtype[])(const Sigmoid&, int64_t, int64_t) = {elements<float>, elements<double>, elements<f16>,
                                                                    elements<bf16>};
  of_dtype[k.dtype](k, begin, end);
}

int64_t row_units(const Rows& k) {
  if (k.inner > 1) return k.outer * tiles(k);
  return turns(k) ? (k.outer + turned_width(k) - 1) / turned_width(k) : k.outer;
}

}  // namespace

extern const Kernels table;
const Kernels table = {XENT_NAME(XENT_ISA), row_units, rows, sigmoid};

}  // namespace xent::XENT_ISA
