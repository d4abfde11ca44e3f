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

#include "vectors.h"
#include "arithmetic.h"
#include "statistics.h"
#include "gradient.h"
#include "rows.h"
#include "columns.h"
#include "sigmoid.h"
#include "entropy.h"
#include "products.h"

template <class X>
void rows_of(const Rows& k, int64_t begin, int64_t end) {
  using Kernel = void (*)(const Rows&, int64_t, int64_t);
  constexpr Kernel variants[3][3][2] = {
      {{side_by_side<X, false, false, false>, side_by_side<X, false, true, false>},
       {side_by_side<X, true, false, false>, side_by_side<X, true, true, false>},
       {side_by_side<X, false, false, true>, side_by_side<X, false, true, true>}},
      {{beside<X, false, false, false>, beside<X, false, true, false>},
       {beside<X, true, false, false>, beside<X, true, true, false>},
       {beside<X, false, false, true>, beside<X, false, true, true>}},
      {{turned<X, false, false, false>, turned<X, false, true, false>},
       {turned<X, true, false, false>, turned<X, true, true, false>},
       {turned<X, false, false, true>, turned<X, false, true, true>}},
  };
  int labels = k.t ? 1 : k.argmax ? 2 : 0;
  variants[k.inner > 1 ? 1 : turns(k) ? 2 : 0][labels][k.u != nullptr](k, begin, end);
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

void entropy(const Entropy& k, int64_t begin, int64_t end) {
  constexpr void (*of_dtype[])(const Entropy&, int64_t, int64_t) = {entropy_of<float>, entropy_of<double>,
                                                                    entropy_of<f16>, entropy_of<bf16>};
  of_dtype[k.dtype](k, begin, end);
}

int64_t row_units(const Rows& k) {
  if (k.inner > 1) return k.outer * tiles(k);
  return turns(k) ? (k.outer + turned_width(k) - 1) / turned_width(k) : k.outer;
}

void product(const Product& k, int64_t begin, int64_t end) {
  constexpr void (*of_dtype[])(const Product&, int64_t, int64_t) = {product_of<float>, product_of<double>,
                                                                    product_of<f16>, product_of<bf16>};
  of_dtype[k.dtype](k, begin, end);
}

void prepare(const Product& k) {
  constexpr void (*of_dtype[])(const Product&) = {prepare_of<float>, prepare_of<double>, prepare_of<f16>,
                                                  prepare_of<bf16>};
  of_dtype[k.dtype](k);
}

int64_t span_of(const Product& k) { return k.dtype == kF64 ? kSpan<double> : kSpan<float>; }

int64_t product_units(Product& k, int threads) {
  if (k.task != Product::kPull) return panels(k.classes, kTall);
  int64_t span = span_of(k);
  k.strip = panels(panels(k.features, threads), span) * span;
  return panels(k.features, k.strip);
}

int64_t product_scratch(const Product& k) {
  int64_t size = k.dtype == kF64 ? 8 : 4, span = span_of(k);
  if (k.task == Product::kPull) return panels(k.features, k.strip) * packed(k, span) * size;
  int64_t rows = k.task == Product::kProject ? panels(k.rows, span) * span : k.rows;
  int64_t features = k.task == Product::kProject ? k.features : panels(k.features, span) * span;
  return rows * features * size;
}

}  // namespace

extern const Kernels table;
const Kernels table = {XENT_NAME(XENT_ISA), row_units, rows, sigmoid, entropy, product_units, product_scratch,
                       prepare, product};

}  // namespace xent::XENT_ISA
