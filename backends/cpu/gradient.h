// The gradient of a row whose classes lie side by side, from its statistics. Included by kernels.cpp, after
// statistics.h.

// ---- results and coefficients of one row, in float64

template <class T>
struct Slopes {
  T k, a, c;   // dx_j = k exp(x_j - m) - a t_j - c u_j
  T at_place;  // dx at the one place where the first two terms may cancel, computed without cancellation
};

// The place of the label, if labels are hard; else that of the class with p > 1/2, if there is one.
template <class T>
struct Place {
  int64_t at = -1;
  T x = 0, t = 0, u = 0;
};

// The per-row part of formulas.pull; rest = b + c sum u. At the place dx is a ((sum t - t) p - t (1 - p)) + ..., where
// 1 - p comes from the other classes: so one-hot soft labels get the gradient of hard ones.
template <class T>
Slopes<T> slopes(const Stats<T>& row, const Place<T>& place, double a, double rest, double c) {
  double r = 1 / (1 + row.s), at_place = 0;
  if (place.at >= 0) {
    double e = std::exp(double(place.x) - double(row.m)), others = (1 - e) + row.s, t = place.t;
    at_place = (a * ((row.share - t) * e - t * others) + rest * e) * r - c * double(place.u);
  }
  return {T((a * row.share + rest) * r), T(a), T(c), T(at_place)};
}

// The first place from i on where x equals its maximum m; -1 if there is none
template <class X>
int64_t place_of(const X* x, int64_t i, int64_t n, Compute<X> m) {
  using T = Compute<X>;
  constexpr int64_t lanes = kLanes<T>;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    Vec<T> four[4];
    for (int k = 0; k < 4; ++k) four[k] = load(x, i + k * lanes);
    if (any_at_least<T>(max4(four), m)) break;
  }
  while (i + lanes <= n && !any_at_least<T>(load(x, i), m)) i += lanes;
  while (i < n && load_one(x, i) != m) ++i;
  return i < n ? i : -1;
}

// Sum of a vector, block by block
template <class T>
double total(const T* t, int64_t n) {
  constexpr int64_t block = 4 * kTerms * kLanes<T>;
  Sum<T> sum;
  for (int64_t begin = 0; begin < n; begin += block) {
    Vec<T> w[4] = {};
    sweep<T>(begin, begin + block < n ? begin + block : n,
             [&](int64_t i, int k, auto width) XENT_INLINE { w[k] += load_some(t, i, width, T(0)); });
    sum.add(add4(w));
  }
  return sum.value();
}

// How many elements precede the first aligned vector from p on; n if there is none
template <class X>
int64_t misaligned(const X* p, int64_t n) {
  constexpr uintptr_t size = sizeof(Raw<X>);
  uintptr_t short_by = (size - reinterpret_cast<uintptr_t>(p) % size) % size;
  int64_t count = int64_t(short_by / sizeof(X));
  return short_by % sizeof(X) || count > n ? n : count;
}

// Whether loads of x in ascending order would wait for pending stores to dx. A processor that compares only the last 12
// bits of addresses takes them for the same place (4K aliasing), which doubles the time and more. In descending order
// they do not collide.
inline bool collide(const void* x, const void* dx) {
  constexpr uintptr_t page = 4096, ahead = 512;
  uintptr_t apart = (reinterpret_cast<uintptr_t>(dx) - reinterpret_cast<uintptr_t>(x)) % page;
  return apart && apart < ahead;
}

// term(i, width): the vector exp(x_i - m), ... down: streamed vectors are written from the last to the first
template <class X, bool kSoft, bool kSmooth, class F>
void gradient(const F& term, const Compute<X>* t, const Compute<X>* u, int64_t n, int64_t place,
              Slopes<Compute<X>> slope, X* dx, bool streaming, bool down) {
  using T = Compute<X>;
  using V = Vec<T>;
  constexpr int lanes = kLanes<T>;
  const int64_t first = streaming ? misaligned(dx, n) : 0;  // n: never aligned
  const bool streams = streaming && first < n;
  auto subtract = [&](V v, int64_t i, auto width) XENT_INLINE {
    if constexpr (kSoft) v = v - load_some(t, i, width, T(0)) * slope.a;
    if constexpr (kSmooth) v = v - load_some(u, i, width, T(0)) * slope.c;
    return v;
  };
  auto span = [&](int64_t begin, int64_t end) XENT_INLINE {  // whole vectors without the place
    const bool falling = streams && down;
    for (int64_t i = falling ? end - lanes : begin; i >= begin && i < end; i += falling ? -lanes : lanes) {
      V v = subtract(term(i, Full{}) * slope.k, i, Full{});
      streams ? stream(dx, i, v) : store(dx, i, v);
    }
  };
  auto some = [&](int64_t i, int64_t end) {  // any, a vector at a time
    for (; i < end; i += lanes) {
      int width = end - i < lanes ? int(end - i) : lanes;
      V v = width == lanes ? subtract(term(i, Full{}) * slope.k, i, Full{}) : subtract(term(i, width) * slope.k, i, width);
      if (place >= i && place < i + width) v[int(place - i)] = slope.at_place;
      if (width == lanes) {
        streams ? stream(dx, i, v) : store(dx, i, v);
      } else {
        store_part(dx, i, width, v);
      }
    }
  };
  const int64_t begin = streams ? first : 0, whole = begin + (n - begin) / lanes * lanes;
  const bool inside = place >= begin && place < whole;
  const int64_t its = inside ? begin + (place - begin) / lanes * lanes : whole;  // where the vector with the place begins
  some(0, begin);
  for (int64_t from = begin, end = its;; from = its + lanes, end = whole) {
    span(from, end);
    if (end == whole) break;
    some(its, its + lanes);
  }
  some(whole, n);
}

template <class X>
void fill(X* p, int64_t n, Compute<X> value) {
  sweep<Compute<X>>(0, n, [&](int64_t i, int, auto width) XENT_INLINE {
    store_some(p, i, width, all(value));
  });
}

// dt_j = a (lse - x_j)
template <class X>
void label_gradient(const X* x, int64_t n, Compute<X> m, Compute<X> spread, Compute<X> a, Compute<X>* dt) {
  using T = Compute<X>;
  sweep<T>(0, n, [&](int64_t i, int, auto width) XENT_INLINE {
    Vec<T> v = ((all(m) - load_some(x, i, width, T(0))) + spread) * a;
    store_some(dt, i, width, v);
  });
}

// With a `visit`, each block is relative to its own maximum; the result is the same whether exponentials are kept or
// not. Adjacent blocks of the same maximum are written as one: a cache line between two blocks would be partly streamed
// and partly stored, which is slow.
template <class X, bool kSoft, bool kSmooth>
void row_gradient(const Rows& k, const X* x, const Compute<X>* t, const Compute<X>* u, int64_t place, Compute<X> m,
                  const Visit<Compute<X>>* visit, Slopes<Compute<X>> slope, X* dx) {
  using T = Compute<X>;
  const T all_k = slope.k;
  const bool down = collide(x, dx);
  for (int64_t begin = 0, end; begin < k.classes; begin = end) {
    end = k.classes;
    if (visit) {
      int64_t block = begin / kBlock<T>;
      m = visit->top[block], slope.k = T(double(all_k) * visit->scale[block]);
      do ++block;
      while (block * kBlock<T> < k.classes && visit->top[block] == m);
      if (block * kBlock<T> < end) end = block * kBlock<T>;
    }
    const int64_t n = end - begin;
    auto write = [&](const auto& term) XENT_INLINE {
      const T *t_from = kSoft ? t + begin : nullptr, *u_from = kSmooth ? u + begin : nullptr;
      gradient<X, kSoft, kSmooth>(term, t_from, u_from, n, place - begin, slope, dx + begin, k.streaming, down);
    };
    if (visit && visit->terms) {
      write([from = visit->terms + begin](int64_t i, auto width) XENT_INLINE { return load_some(from, i, width, T(0)); });
    } else {
      write([from = x + begin, m](int64_t i, auto width) XENT_INLINE {
        return exp_neg<T>(load_some(from, i, width, T(0)) - all(m));
      });
    }
  }
}
