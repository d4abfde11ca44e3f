// Rows whose classes lie side by side. Included by kernels.cpp, after simd.h.
//
// Statistics take one trip over memory. A block (twice kTerms vectors for each of four sums) is added up relative to the
// maximum so far, while its own maximum is taken; only where that is a new one, or a tie, is the block, by now in L1,
// gone through again. Where the gradient follows, the exponentials are kept for it, with the maximum that each block's are
// relative to. Bytes moved, a row of n: forward n x; backward and both n x (the second visit is in L2) + n dx; n more for
// soft labels.

struct Full {
  constexpr operator int() const { return 0; }
};

template <class X, class W>
XENT_INLINE inline Vec<Compute<X>> load_some(const X* p, int64_t i, W width, Compute<X> fill) {
  if constexpr (std::is_same_v<W, Full>) {
    return load(p, i);
  } else {
    return load_part(p, i, width, fill);
  }
}

template <class X, class W>
XENT_INLINE inline void store_some(X* p, int64_t i, W width, Vec<Compute<X>> v) {
  if constexpr (std::is_same_v<W, Full>) {
    store(p, i, v);
  } else {
    store_part(p, i, width, v);
  }
}

// body(i, k, width) for each vector: from i, into sum k of 4; width is Full or, at the end, how many elements there are
template <class T, class F>
XENT_INLINE inline void sweep(int64_t i, int64_t end, F&& body) {
  constexpr int n = kLanes<T>;
  for (; i + 4 * n <= end; i += 4 * n) {
    body(i, 0, Full{});
    body(i + n, 1, Full{});
    body(i + 2 * n, 2, Full{});
    body(i + 3 * n, 3, Full{});
  }
  for (; i + n <= end; i += n) body(i, 0, Full{});
  if (i < end) body(i, 0, int(end - i));
}

template <class V>
XENT_INLINE inline V add4(const V (&v)[4]) {
  return (v[0] + v[1]) + (v[2] + v[3]);
}

template <class V>
XENT_INLINE inline V max4(const V (&v)[4]) {
  return max(max(v[0], v[1]), max(v[2], v[3]));
}

// A sum that is linear in exp(m) or moves with m: what was added up relative to an older m is kept apart, in float64.
template <class T>
struct Moving {
  Sum<T> now;
  double before = 0;
  double value() const { return before + now.value(); }
  void restart(double value) {
    before = value;
    now = Sum<T>{};
  }
};

template <class T>
struct Stats {
  T m;
  double s;
  double soft, share;      // sum t (m - x), sum t
  double smooth, u_total;  // the same for u
};

// Sum of w (m - x) with 0 * inf = 0, and of w
template <class T>
struct Weighted {
  Moving<T> gap;
  Sum<T> total;
  void rise(double d) {
    double share = total.value();
    gap.restart(gap.value() + (share == 0 ? 0 : d * share));
  }
};

// exp(a - b), and what a - b rounds off: it would be the error of a whole sum
inline double exp_of_difference(double a, double b) {
  double d = a - b, moved = d - a, lost = (a - (d - moved)) - (b + moved);
  return std::exp(d) * (1 + (lost == lost ? lost : 0));  // inf - inf
}

template <class T>
constexpr int64_t kBlock = 2 * 4 * kTerms * kLanes<T>;

// What a row's statistics leave for its gradient, where it has not too many blocks: exp(x_j - m) is exp(x_j - top) times
// scale, those of j's block. The first factor may be kept.
template <class T>
struct Visit {
  static constexpr int64_t kBlocks = 256, kMost = kBlocks * kBlock<T>;
  T top[kBlocks];  // the maximum so far
  double scale[kBlocks];
  T* terms = nullptr;  // null: they are not kept

  // Where the block begins in which the maximum is met first
  int64_t first(T m) const {
    int64_t b = 0;
    while (b + 1 < kBlocks && top[b] != m) ++b;
    return b * kBlock<T>;
  }

  // From all blocks' maxima to their scales. False where some are so small that products would be no normal numbers.
  bool settle(int64_t n, T m) {
    T last = m;
    double power = 1, least = 1;
    for (int64_t b = 0; b * kBlock<T> < n; ++b) {
      if (top[b] != last) last = top[b], power = std::exp(double(last) - double(m));
      scale[b] = power;
      least = power < least ? power : least;
    }
    return least > 0x1p-60;
  }
};

template <class X, bool kSoft, bool kSmooth>
Stats<Compute<X>> statistics(const X* x, const Compute<X>* t, const Compute<X>* u, int64_t n, Visit<Compute<X>>& visit) {
  using T = Compute<X>;
  using V = Vec<T>;
  constexpr int64_t block = kBlock<T>, half = block / 2;
  T m = -kInf<T>;
  Moving<T> s;
  Weighted<T> soft, smooth;

  for (int64_t begin = 0; begin < n; begin += block) {
    int64_t end = begin + block < n ? begin + block : n;
    V most[4], e, g, w, h, v;
    // Adds up the block relative to `to`; where `careful`, without the elements equal to m, which are counted.
    auto add_up = [&](auto careful, T to) XENT_INLINE {
      for (int k = 0; k < 4; ++k) most[k] = careful ? V{} : all(-kInf<T>);
      e = g = w = h = v = V{};
      for (int64_t from = begin; from < end; from += half) {
        V e4[4] = {}, g4[4] = {}, w4[4] = {}, h4[4] = {}, v4[4] = {};
        sweep<T>(from, from + half < end ? from + half : end, [&](int64_t i, int k, auto width) XENT_INLINE {
          fetch_ahead(x, i);
          V at = load_some(x, i, width, -kInf<T>), gap = at - all(to);  // <= 0
          V term = exp_neg<T>(gap);
          if (visit.terms) store_some(visit.terms, i, width, term);
          if constexpr (careful) {
            auto same = at == all(m);
            term = select(same, V{}, term);
            most[k] += select(same, all(T(1)), V{});
          } else {
            most[k] = max(most[k], at);
          }
          e4[k] += term;
          if constexpr (kSoft) {
            V weight = load_some(t, i, width, T(0));
            g4[k] = g4[k] - select(weight == V{}, V{}, weight * gap);
            w4[k] += weight;
          }
          if constexpr (kSmooth) {
            V weight = load_some(u, i, width, T(0));
            h4[k] = h4[k] - select(weight == V{}, V{}, weight * gap);
            v4[k] += weight;
          }
        });
        e += add4(e4), g += add4(g4), w += add4(w4), h += add4(h4), v += add4(v4);
      }
    };

    bool rises = begin == 0;
    if (!rises) {
      add_up(std::false_type{}, m == -kInf<T> ? T(0) : m);
      rises = any_at_least<T>(max4(most), m);
    }
    if (rises) {
      for (int k = 0; k < 4; ++k) most[k] = all(-kInf<T>);
      sweep<T>(begin, end, [&](int64_t i, int k, auto width) XENT_INLINE {
        most[k] = max(most[k], load_some(x, i, width, -kInf<T>));
      });
      double excluded = 0;
      T top = largest<T>(max4(most));
      if (top > m) {  // the older maximum is now one of the others
        double d = double(top) - double(m);
        s.restart(begin == 0 ? 0 : (s.value() + 1) * exp_of_difference(double(m), double(top)));
        if (m > -kInf<T>) soft.rise(d), smooth.rise(d);
        m = top;
        excluded = 1;
      }
      add_up(std::true_type{}, m == -kInf<T> ? T(0) : m);
      s.before += double(added<T, kLanes<T>>(add4(most))) - excluded;
    }
    if (n <= visit.kMost) visit.top[begin / block] = m;
    s.now.add(e);
    if constexpr (kSoft) soft.gap.now.add(g), soft.total.add(w);
    if constexpr (kSmooth) smooth.gap.now.add(h), smooth.total.add(v);
  }

  double sum = s.value();
  if (!(sum == sum) || m == kInf<T> || m == -kInf<T>) m = kNaN<T>, sum = kNaN<double>;
  return {m, sum, soft.gap.value(), soft.total.value(), smooth.gap.value(), smooth.total.value()};
}

// ---- results and coefficients of one row, in float64

template <class T>
struct Slopes {
  T k, a, c;   // dx_j = k exp(x_j - m) - a t_j - c u_j
  T at_place;  // all of it at one place where the first two terms may cancel, below
};

// Where labels are hard, the label's place; where they are soft, that of the one class with p > 1/2, if there is one.
template <class T>
struct Place {
  int64_t at = -1;
  T x = 0, t = 0, u = 0;
};

// pull's per-row part; `rest` = b + c sum u. At the place, (sum t - t) p - t (1 - p), where 1 - p is what the others
// have: for labels that are 1 at one place, that is the gradient of hard ones.
template <class T>
Slopes<T> slopes(const Stats<T>& row, const Place<T>& place, double a, double rest, double c) {
  double r = 1 / (1 + row.s), at_place = 0;
  if (place.at >= 0) {
    double e = std::exp(double(place.x) - double(row.m)), others = (1 - e) + row.s, t = place.t;
    at_place = (a * ((row.share - t) * e - t * others) + rest * e) * r - c * double(place.u);
  }
  return {T((a * row.share + rest) * r), T(a), T(c), T(at_place)};
}

// The first place from i on where x has its maximum m, which is there; -1 where it is not, after all
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

// How many elements from p on until vectors in memory are aligned; n where they never are
template <class X>
int64_t misaligned(const X* p, int64_t n) {
  constexpr uintptr_t size = sizeof(Raw<X>);
  uintptr_t short_by = (size - reinterpret_cast<uintptr_t>(p) % size) % size;
  int64_t count = int64_t(short_by / sizeof(X));
  return short_by % sizeof(X) || count > n ? n : count;
}

// Whether loads of x, going up, run into the stores to dx that are still under way: a processor that tells places apart by
// the last 12 bits of their addresses waits for each (4K aliasing; twice the time and more). Going down, they do not.
inline bool collide(const void* x, const void* dx) {
  constexpr uintptr_t page = 4096, ahead = 512;
  uintptr_t apart = (reinterpret_cast<uintptr_t>(dx) - reinterpret_cast<uintptr_t>(x)) % page;
  return apart && apart < ahead;
}

// term(i, width): the vector exp(x_i - m), ... down: of what is streamed, whole vectors from the last to the first
template <class X, bool kSoft, bool kSmooth, bool kStream, class F>
void gradient(const F& term, const Compute<X>* t, const Compute<X>* u, int64_t n, int64_t place,
              Slopes<Compute<X>> slope, X* dx, bool down) {
  using T = Compute<X>;
  using V = Vec<T>;
  constexpr int lanes = kLanes<T>;
  auto subtract = [&](V v, int64_t i, auto width) XENT_INLINE {
    if constexpr (kSoft) v = v - load_some(t, i, width, T(0)) * slope.a;
    if constexpr (kSmooth) v = v - load_some(u, i, width, T(0)) * slope.c;
    return v;
  };
  auto span = [&](int64_t begin, int64_t end) XENT_INLINE {  // whole vectors without the place
    const bool falling = kStream && down;
    for (int64_t i = falling ? end - lanes : begin; i >= begin && i < end; i += falling ? -lanes : lanes) {
      V v = subtract(term(i, Full{}) * slope.k, i, Full{});
      kStream ? stream(dx, i, v) : store(dx, i, v);
    }
  };
  auto some = [&](int64_t i, int64_t end) {  // any, a vector at a time
    for (; i < end; i += lanes) {
      int width = end - i < lanes ? int(end - i) : lanes;
      V v = width == lanes ? subtract(term(i, Full{}) * slope.k, i, Full{}) : subtract(term(i, width) * slope.k, i, width);
      if (place >= i && place < i + width) v[int(place - i)] = slope.at_place;
      if (width == lanes) {
        kStream ? stream(dx, i, v) : store(dx, i, v);
      } else {
        store_part(dx, i, width, v);
      }
    }
  };
  int64_t first = kStream ? misaligned(dx, n) : 0;
  if (first == n) {
    if constexpr (kStream) return gradient<X, kSoft, kSmooth, false>(term, t, u, n, place, slope, dx, down);
  }
  int64_t whole = first + (n - first) / lanes * lanes;
  some(0, first);
  if (place >= first && place < whole) {
    int64_t its = first + (place - first) / lanes * lanes;
    span(first, its);
    some(its, its + lanes);
    span(its + lanes, whole);
  } else {
    span(first, whole);
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

// ---- one row

template <class T>
void put_result(void* p, int64_t row, double value) {
  if (p) put(p, row, T(value));
}

// An id past the classes is never looked up, even if another thread wrote it after the caller's check.
inline int64_t id_at(const Rows& k, int64_t row) {
  int64_t id = k.wide ? get<int64_t>(k.ids, row) : get<int32_t>(k.ids, row);
  return id < k.classes ? id : kInvalid;
}

// Where there was a visit, each block relative to its own maximum; its result is the same, kept or computed anew. Blocks of
// one maximum are written as one: between two, a line of memory would be streamed in part and stored in part, which waits.
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
      k.streaming ? gradient<X, kSoft, kSmooth, true>(term, t_from, u_from, n, place - begin, slope, dx + begin, down)
                  : gradient<X, kSoft, kSmooth, false>(term, t_from, u_from, n, place - begin, slope, dx + begin, down);
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

template <class X, bool kSoft, bool kSmooth>
void one_row(const Rows& k, int64_t row, double u_total) {
  using T = Compute<X>;
  int64_t n = k.classes, id = k.ids ? id_at(k, row) : 0;
  const X* x = static_cast<const X*>(k.x) + row * n;
  const T* t = kSoft ? static_cast<const T*>(k.t) + row * n : nullptr;
  const T* u = static_cast<const T*>(k.u);
  X* dx = k.dx ? static_cast<X*>(k.dx) + row * n : nullptr;
  T* dt = k.dt ? static_cast<T*>(k.dt) + row * n : nullptr;

  if (id < 0) {
    T nothing = id == kInvalid ? kNaN<T> : T(0);
    if (k.task != Task::kBackward) {
      for (void* p : {k.loss, k.lse, k.smooth}) put_result<T>(p, row, double(nothing));
      for (void* p : {k.m, k.s}) put_result<T>(p, row, 0);
    }
    if (dx) fill(dx, n, nothing);
    if (dt) fill(dt, n, nothing);
    return;
  }

  T block[kBlock<T>];
  Visit<T> visit;
  if (dx && k.task == Task::kBoth) {
    if (n <= kBlock<T>) {
      visit.terms = block;
    } else if constexpr (std::is_same_v<X, T>) {  // in the gradient's own place, unless that is not to be read
      if (!k.streaming && dx != x && n <= visit.kMost) visit.terms = dx;
    }
  }
  Stats<T> stats{};
  T x_y = kSoft ? T(0) : load_one(x, id);  // before dx, which may be in its place
  double lse = 0;
  if (k.task == Task::kBackward) {
    stats.m = get<T>(k.m, row);
    stats.s = double(get<T>(k.s, row));
    stats.share = kSoft ? total(t, n) : 1;
    stats.u_total = u_total;
  } else {
    stats = statistics<X, kSoft, kSmooth>(x, t, u, n, visit);
    if (!kSoft) stats.share = 1;
    double spread = std::log1p(stats.s), m = double(stats.m);
    lse = m + spread;
    put_result<T>(k.loss, row, kSoft ? stats.soft + stats.share * spread : (m - double(x_y)) + spread);
    put_result<T>(k.lse, row, lse);
    put_result<T>(k.smooth, row, stats.smooth + stats.u_total * spread);
    put_result<T>(k.m, row, m);
    put_result<T>(k.s, row, stats.s);
  }
  if (dt) {
    label_gradient(x, n, stats.m, T(std::log1p(stats.s)), get<T>(k.a, row), dt);
  }
  if (dx) {
    double a = k.a ? double(get<T>(k.a, row)) : k.slope, c = k.c ? double(get<T>(k.c, row)) : 0;
    double b = k.b ? double(get<T>(k.b, row)) : k.z ? 2 * double(get<T>(k.z, row)) * lse : 0;
    bool visited = k.task == Task::kBoth && n <= visit.kMost;
    Place<T> place{id, x_y, T(1)};
    if constexpr (kSoft) {
      place.at = stats.s < 1 ? place_of(x, visited ? visit.first(stats.m) : 0, n, stats.m) : -1;
      if (place.at >= 0) place.x = stats.m, place.t = get<T>(t, place.at);
    }
    if (kSmooth && place.at >= 0) place.u = get<T>(u, place.at);
    Slopes<T> slope = slopes<T>(stats, place, a, b + (kSmooth ? c * stats.u_total : 0), c);
    bool settled = visited && visit.settle(n, stats.m);
    row_gradient<X, kSoft, kSmooth>(k, x, t, u, place.at, stats.m, settled ? &visit : nullptr, slope, dx);
  }
}

template <class X, bool kSoft, bool kSmooth>
void side_by_side(const Rows& k, int64_t begin, int64_t end) {
  using T = Compute<X>;
  double u_total = kSmooth && k.task == Task::kBackward ? total(static_cast<const T*>(k.u), k.classes) : 0;
  for (int64_t row = begin; row < end; ++row) one_row<X, kSoft, kSmooth>(k, row, u_total);
}
