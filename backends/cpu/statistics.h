// The statistics of a row whose classes lie side by side, for its loss and its gradient. Included by kernels.cpp, after
// arithmetic.h.
//
// The statistics read memory once. A block (twice kTerms vectors for each of four sums) is added up relative to the
// maximum so far, while its own maximum is taken. Only if that is larger or a tie is the block, by now in L1, visited
// again. If a gradient follows, the exponentials are kept for it, with the maximum that those of each block are
// relative to. Bytes moved for a row of n: forward n x; backward and both n x (the second visit is in L2) + n dx; n
// more for soft labels.

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

// Calls body(i, k, width) for each vector from element i on, for sum k of 4. width: Full, or at the end the elements
// left
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

// A sum relative to the maximum m. What was added up before m last rose is kept apart, in float64, relative to the new
// m.
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
  int64_t first;           // the beginning of the first block that contains m
  double gaps;             // sum exp(x - m) (m - x), over all classes
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

// exp(a - b), corrected for the rounding of a - b, which would be an error of a whole sum
inline double exp_of_difference(double a, double b) {
  double d = a - b, moved = d - a, lost = (a - (d - moved)) - (b + moved);
  return std::exp(d) * (1 + (lost == lost ? lost : 0));  // inf - inf
}

// sum exp(x - m) (m - x) relative to a new m, d larger. For the older m the sum was `gaps`, and that of exp(x - m)
// `total`; power: exp(-d). d and its product may be infinite: numbers of float64 can be so far apart.
inline double gaps_of_risen(double gaps, double total, double d, double power) {
  return power == 0 ? 0 : (gaps + d * total) * power;
}

template <class T>
constexpr int64_t kBlock = 2 * 4 * kTerms * kLanes<T>;

// What the statistics of a row keep for its gradient, if it has no more than kBlocks blocks: exp(x_j - m) is
// exp(x_j - top) * scale, with top and scale those of j's block. The first factors may be kept in `terms`.
template <class T>
struct Visit {
  static constexpr int64_t kBlocks = 256, kMost = kBlocks * kBlock<T>;
  T top[kBlocks];  // the maximum so far
  double scale[kBlocks];
  T* terms = nullptr;  // null: they are not kept

  // Computes the blocks' scales. False if some are so small that products could be subnormal.
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

template <class X, bool kSoft, bool kSmooth, bool kStats>
Stats<Compute<X>> statistics(const X* x, const Compute<X>* t, const Compute<X>* u, int64_t n, Visit<Compute<X>>& visit) {
  using T = Compute<X>;
  using V = Vec<T>;
  constexpr int64_t block = kBlock<T>, half = block / 2;
  T m = -kInf<T>;
  int64_t first = 0;
  Moving<T> s, gaps;
  Weighted<T> soft, smooth;

  for (int64_t begin = 0; begin < n; begin += block) {
    int64_t end = begin + block < n ? begin + block : n;
    V most[4], e, f, g, w, h, v;
    // Adds up the block relative to `to`. If `careful`, elements equal to m are counted instead of added.
    auto add_up = [&](auto careful, T to) XENT_INLINE {
      for (int k = 0; k < 4; ++k) most[k] = careful ? V{} : all(-kInf<T>);
      e = f = g = w = h = v = V{};
      for (int64_t from = begin; from < end; from += half) {
        V e4[4] = {}, f4[4] = {}, g4[4] = {}, w4[4] = {}, h4[4] = {}, v4[4] = {};
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
          if constexpr (kStats) f4[k] = f4[k] - select(term == V{}, V{}, term * gap);
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
        e += add4(e4), f += add4(f4), g += add4(g4), w += add4(w4), h += add4(h4), v += add4(v4);
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
        double d = double(top) - double(m), others = s.value() + 1, power = exp_of_difference(double(m), double(top));
        s.restart(begin == 0 ? 0 : others * power);
        if (m > -kInf<T>) soft.rise(d), smooth.rise(d), gaps.restart(gaps_of_risen(gaps.value(), others, d, power));
        m = top;
        first = begin;
        excluded = 1;
      }
      add_up(std::true_type{}, m == -kInf<T> ? T(0) : m);
      s.before += double(added<T, kLanes<T>>(add4(most))) - excluded;
    }
    if (n <= visit.kMost) visit.top[begin / block] = m;
    s.now.add(e);
    if constexpr (kStats) gaps.now.add(f);
    if constexpr (kSoft) soft.gap.now.add(g), soft.total.add(w);
    if constexpr (kSmooth) smooth.gap.now.add(h), smooth.total.add(v);
  }

  double sum = s.value();
  if (!(sum == sum) || m == kInf<T> || m == -kInf<T>) m = kNaN<T>, sum = kNaN<double>;
  return {m, sum, first, gaps.value(), soft.gap.value(), soft.total.value(), smooth.gap.value(), smooth.total.value()};
}
