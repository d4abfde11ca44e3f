// The three matrix products of linear_ce, with h [rows, features], w [classes, features], x and dx [rows, classes]:
//   project     x   = h w^T
//   pull        dh  = dx w
//   accumulate  dw += dx^T h
// Included by kernels.cpp, after arithmetic.h.
//
// There are few rows and many classes. So w and dw are read and written once for each product, and never transposed; h,
// which is transposed or laid out in panels, stays in L2. A tile of kTall x kWide vectors of sums stays in registers
// while kDeep terms are added to each: two loads and kTall broadcasts for 2 kTall multiply-adds. The order of the terms
// of a sum does not depend on the threads. Bytes moved: x + w; dx + w + dh; dx + 2 dw.

#if XENT_AVX512
constexpr int kTall = 12;  // of 32 registers, 24 hold sums
#else
constexpr int kTall = 6;  // of 16, 12
#endif
constexpr int kWide = 2;
constexpr int kDeep = 1024;
constexpr int kStride = kDeep + 16;  // between packed rows: at a power of two they would share one set of L1
// The part of w that pull keeps in L2. If it is wider, dx is read less often; if deeper, dh.
constexpr int kPullDeep = 256, kPullWide = 512;
constexpr int kAhead = 4;  // terms to each line that is fetched ahead
template <class T>
constexpr int kSpan = kWide * kLanes<T>;

// Prefetches `rows` of `width` bytes that are needed next, a cache line every few terms.
struct Ahead {
  const char* row;
  int64_t rows, width, stride, at = 0;
  XENT_INLINE void fetch() {
#if defined(__GNUC__) && !defined(XENT_PORTABLE)
    if (rows <= 0) return;
    __builtin_prefetch(row + at);
    at += 64;
    if (at >= width) row += stride, at = 0, --rows;
#endif
  }
};

struct Two {
  Ahead &one, other;
  XENT_INLINE void fetch() { one.fetch(), other.fetch(); }
};

template <class X>
Ahead ahead_of(const X* w, int64_t row, int64_t rows, int64_t column, int64_t columns, int64_t stride) {
  constexpr int64_t size = sizeof(X);
  return {reinterpret_cast<const char*>(w + (rows > 0 ? row * stride + column : 0)), rows, columns * size, stride * size};
}

// done(i, left, right) for each i < kHeight: the sums over k of a[i * kRow + k * kTerm] * terms(k)'s two vectors
template <int kHeight, int kRow, int kTerm, class T, class B, class A, class F>
inline void multiply(const T* a, B&& terms, int64_t depth, A& ahead, F&& done) {
  Vec<T> sum[kHeight][kWide] = {};
  auto term = [&](int64_t k) XENT_INLINE {
    Vec<T> left, right;
    terms(k, left, right);
#if defined(__GNUC__)
#pragma GCC unroll 12
#endif
    for (int i = 0; i < kHeight; ++i) {
      T factor = a[i * kRow + k * kTerm];
      sum[i][0] += left * factor;
      sum[i][1] += right * factor;
    }
  };
  int64_t k = 0;
  for (; k + kAhead <= depth; k += kAhead) {
    ahead.fetch();
    for (int j = 0; j < kAhead; ++j) term(k + j);
  }
  for (; k < depth; ++k) term(k);
#if defined(__GNUC__)
#pragma GCC unroll 12
#endif
  for (int i = 0; i < kHeight; ++i) done(i, sum[i][0], sum[i][1]);
}

// The terms that lie in a panel
template <class T>
auto panel_at(const T* b) {
  return [b](int64_t k, Vec<T>& left, Vec<T>& right) XENT_INLINE {
    left = get<Vec<T>>(b + k * kSpan<T>, 0), right = get<Vec<T>>(b + k * kSpan<T>, 1);
  };
}

// A `done` for `multiply`: of `rows` of its rows, `width` of the kSpan sums are added to `to`, or stored if `fresh`
template <class T>
auto adding_to(T* to, int64_t stride, int64_t rows, int64_t width, bool fresh) {
  return [=](int i, Vec<T> left, Vec<T> right) XENT_INLINE {
    if (i >= rows) return;
    T* p = to + i * stride;
    if (width == kSpan<T>) {
      put(p, 0, fresh ? left : get<Vec<T>>(p, 0) + left), put(p, 1, fresh ? right : get<Vec<T>>(p, 1) + right);
      return;
    }
    T some[kSpan<T>];
    put(some, 0, left), put(some, 1, right);
    for (int64_t j = 0; j < width; ++j) put(p, j, fresh ? some[j] : get<T>(p, j) + some[j]);
  };
}

// Copies n elements, widened to the compute dtype
template <class X>
inline void widen_to(Compute<X>* to, const X* from, int64_t n) {
  constexpr int lanes = kLanes<Compute<X>>;
  int64_t j = 0;
  for (; j + lanes <= n; j += lanes) put(to, 0, load(from, j)), to += lanes;
  if (j < n) {
    Vec<Compute<X>> rest = load_part(from, j, int(n - j), Compute<X>(0));
    std::memcpy(to, &rest, size_t(n - j) * sizeof(Compute<X>));
  }
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t panels(int64_t n, int64_t width) { return (n + width - 1) / width; }

// The columns of `from`, [along][across], as panels of kSpan columns, [along][kSpan] each, filled up with 0
template <class X>
void pack(const X* from, int64_t across, int64_t along, int64_t stride, Compute<X>* to) {
  constexpr int span = kSpan<Compute<X>>;
  for (int64_t begin = 0; begin < across; begin += span) {
    int64_t n = least(span, across - begin);
    for (int64_t k = 0; k < along; ++k, to += span) {
      widen_to(to, from + k * stride + begin, n);
      for (int64_t j = n; j < span; ++j) to[j] = 0;
    }
  }
}

// The same for a matrix [across][along], which is transposed, in pieces that stay in L1
template <class X>
void pack_turned(const X* from, int64_t across, int64_t along, Compute<X>* to) {
  constexpr int span = kSpan<Compute<X>>, piece = 64;
  Compute<X> row[piece];
  for (int64_t begin = 0; begin < across; begin += span, to += along * span) {
    for (int64_t k = 0; k < along; k += piece) {
      int64_t n = least(piece, along - k);
      for (int64_t j = 0; j < span; ++j) {
        if (begin + j < across) {
          widen_to(row, from + (begin + j) * along + k, n);
        } else {
          for (int64_t i = 0; i < n; ++i) row[i] = 0;
        }
        for (int64_t i = 0; i < n; ++i) to[(k + i) * span + j] = row[i];
      }
    }
  }
}

// Packs kHeight rows, `depth` terms of each, kStride apart; rows that do not exist are 0
template <int kHeight, class X>
void rows_beside(const X* from, int64_t n, int64_t stride, int64_t depth, Compute<X>* to) {
  for (int i = 0; i < kHeight; ++i) {
    if (i < n) {
      widen_to(to + i * kStride, from + i * stride, depth);
    } else {
      for (int64_t k = 0; k < depth; ++k) to[i * kStride + k] = 0;
    }
  }
}

// A unit is a panel of kTall classes.
template <class X>
void project(const Product& k, int64_t begin, int64_t end) {
  using T = Compute<X>;
  constexpr int span = kSpan<T>;
  const auto* w = static_cast<const X*>(k.weight);
  const auto* h = static_cast<const T*>(k.scratch);  // in panels of rows
  auto* x = static_cast<T*>(k.x);
  alignas(64) T a[kTall * kStride], tile[kTall][span];
  auto keep = [&](int i, Vec<T> left, Vec<T> right) XENT_INLINE { put(tile[i], 0, left), put(tile[i], 1, right); };
  for (int64_t unit = begin; unit < end; ++unit) {
    int64_t first = unit * kTall, n = least(kTall, k.classes - first);
    Ahead ahead = ahead_of(w, first + kTall, least(kTall, k.classes - first - kTall), 0, k.features, k.features);
    for (int64_t from = 0; from < k.features; from += kDeep) {
      int64_t depth = least(kDeep, k.features - from);
      rows_beside<kTall>(w + first * k.features + from, n, k.features, depth, a);
      for (int64_t row = 0; row < k.rows; row += span) {
        multiply<kTall, kStride, 1>(a, panel_at(h + row * k.features + from * span), depth, ahead, keep);
        int64_t rows = least(span, k.rows - row);
        for (int64_t j = 0; j < rows; ++j) {
          T* to = x + (row + j) * k.classes + first;
          for (int64_t i = 0; i < n; ++i) put(to, i, from ? get<T>(to, i) + tile[i][j] : tile[i][j]);
        }
      }
    }
  }
}

// The terms of a panel, read from the matrix and also packed into `b` for the following rows
template <class X, class T>
auto packing(const X* from, int64_t stride, T* b) {
  return [=](int64_t k, Vec<T>& left, Vec<T>& right) XENT_INLINE {
    left = load(from + k * stride, 0), right = load(from + k * stride, kLanes<T>);
    put(b + k * kSpan<T>, 0, left), put(b + k * kSpan<T>, 1, right);
  };
}

// A part of w, from class `from` and feature `left` on, and where it is packed
template <class X>
struct Part {
  int64_t from, depth, left, width;
  Compute<X>* b;
  Ahead next;
};

// Up to kHeight rows of dh, from `row` on. The first rows of the matrix also pack w for the others.
template <int kHeight, class X>
void pull_rows(const Product& k, Part<X>& part, int64_t row) {
  using T = Compute<X>;
  constexpr int span = kSpan<T>;
  const auto* w = static_cast<const X*>(k.weight) + part.from * k.features + part.left;
  const auto* dx = static_cast<const T*>(k.x) + row * k.classes + part.from;
  T* dh = static_cast<T*>(k.out) + row * k.features + part.left;
  alignas(64) T a[kHeight * kStride];
  rows_beside<kHeight>(dx, k.rows - row, k.classes, part.depth, a);
  Ahead beside = ahead_of(dx, kHeight, least(kTall, k.rows - row - kHeight), 0, part.depth, k.classes);
  int64_t rows = least(kHeight, k.rows - row);
  for (int64_t at = 0; at < part.width; at += span) {
    T* b = part.b + at * part.depth;
    Ahead& ahead = at < 3 * span ? beside : part.next;
    int64_t width = least(span, part.width - at);
    auto add = adding_to(dh + at, k.features, rows, width, part.from == 0);
    if (row == 0 && width == span) {
      multiply<kHeight, kStride, 1>(a, packing(w + at, k.features, b), part.depth, ahead, add);
    } else {
      if (row == 0) pack(w + at, width, part.depth, k.features, b);
      multiply<kHeight, kStride, 1>(a, panel_at(b), part.depth, ahead, add);
    }
  }
}

// Elements of w that a unit packs at a time
inline int64_t packed(const Product& k, int64_t span) {
  return least(kPullDeep, k.classes) * panels(least(kPullWide, k.strip), span) * span;
}

// A unit is k.strip features, with scratch of its own.
template <class X>
void pull(const Product& k, int64_t begin, int64_t end) {
  constexpr int third = kTall / 3;
  const auto* w = static_cast<const X*>(k.weight);
  for (int64_t unit = begin; unit < end; ++unit) {
    auto* b = static_cast<Compute<X>*>(k.scratch) + unit * packed(k, kSpan<Compute<X>>);
    int64_t stop = least((unit + 1) * k.strip, k.features);
    for (int64_t left = unit * k.strip; left < stop; left += kPullWide) {
      int64_t width = least(kPullWide, stop - left);
      for (int64_t from = 0; from < k.classes; from += kPullDeep) {
        int64_t depth = least(kPullDeep, k.classes - from), next = from + kPullDeep;
        Ahead ahead = ahead_of(w, next, least(kPullDeep, k.classes - next), left, width, k.features);
        Part<X> part{from, depth, left, width, b, ahead};
        int64_t row = 0;
        for (; row + 2 * third < k.rows; row += kTall) pull_rows<kTall>(k, part, row);
        if (row + third < k.rows) {
          pull_rows<2 * third>(k, part, row);
        } else if (row < k.rows) {
          pull_rows<third>(k, part, row);
        }
      }
    }
  }
}

// A unit is a panel of kTall classes.
template <class X>
void accumulate(const Product& k, int64_t begin, int64_t end) {
  using T = Compute<X>;
  constexpr int span = kSpan<T>;
  const auto* h = static_cast<const T*>(k.scratch);  // in panels of features
  const auto* dx = static_cast<const T*>(k.x);
  auto* dw = static_cast<T*>(k.out);
  alignas(64) T a[kTall * kDeep];
  for (int64_t unit = begin; unit < end; ++unit) {
    int64_t first = unit * kTall, n = least(kTall, k.classes - first);
    for (int64_t from = 0; from < k.rows; from += kDeep) {
      int64_t depth = least(kDeep, k.rows - from);
      for (int64_t r = 0; r < depth; ++r)
        for (int64_t i = 0; i < kTall; ++i) a[r * kTall + i] = i < n ? get<T>(dx, (from + r) * k.classes + first + i) : T(0);
      Ahead ahead = ahead_of(dx, from, depth, first + kTall, 2 * kTall, k.classes);
      for (int64_t left = 0; left < k.features; left += span) {
        T* to = dw + first * k.features + left;
        int64_t width = least(span, k.features - left);
        Two both{ahead, ahead_of(to, 0, n, span, least(span, k.features - left - span), k.features)};
        multiply<kTall, 1, kTall>(a, panel_at(h + left * k.rows + from * span), depth, both,
                                  adding_to(to, k.features, n, width, false));
      }
    }
  }
}

template <class X>
void product_of(const Product& k, int64_t begin, int64_t end) {
  constexpr void (*of_task[])(const Product&, int64_t, int64_t) = {project<X>, pull<X>, accumulate<X>};
  of_task[int(k.task)](k, begin, end);
}

// Lays out h for the product, in its scratch memory
template <class X>
void prepare_of(const Product& k) {
  const auto* h = static_cast<const X*>(k.hidden);
  auto* to = static_cast<Compute<X>*>(k.scratch);
  if (k.task == Product::kProject) pack_turned(h, k.rows, k.features, to);
  if (k.task == Product::kAccumulate) pack(h, k.features, k.rows, k.features, to);
}
