// The entropy of rows whose classes lie side by side, and its derivative. Included by kernels.cpp, after gradient.h.
//
// With d_j = m - x_j, e_j = exp(-d_j), s the sum of e_j without one of the maximum's, a = sum e_j d_j / (1 + s):
//     H = log1p(s) + a,    dx_j = w e_j (d_j - a) / (1 + s)
// One trip over memory: a block's maximum is taken, and the block, by now in L1, added up relative to the largest so far.
// Where the derivative follows, the row is read once more, from L2. Bytes moved, a row of n: n x, + n dx.

template <class T>
struct Spread {
  T m;
  double s, u;  // u: sum e d
};

template <class X>
Spread<Compute<X>> spread_of(const X* x, int64_t n) {
  using T = Compute<X>;
  using V = Vec<T>;
  constexpr int64_t block = kBlock<T>, half = block / 2;
  T m = -kInf<T>;
  Moving<T> s, u;
  for (int64_t begin = 0; begin < n; begin += block) {
    int64_t end = begin + block < n ? begin + block : n;
    V most[4];
    for (int k = 0; k < 4; ++k) most[k] = all(-kInf<T>);
    sweep<T>(begin, end, [&](int64_t i, int k, auto width) XENT_INLINE {
      fetch_ahead(x, i);
      most[k] = max(most[k], load_some(x, i, width, -kInf<T>));
    });
    T top = largest<T>(max4(most));
    double ties = 0;  // but one of the maximum's
    if (top > m) {
      if (m > -kInf<T>) {  // the older maximum is now one of the others
        double total = s.value() + 1, power = exp_of_difference(double(m), double(top));
        u.restart(gaps_of_risen(u.value(), total, double(top) - double(m), power));
        s.restart(total * power);
      }
      m = top;
      ties = -1;
    }
    const bool there = m > -kInf<T>;  // else nothing but -inf and NaN came so far
    const T to = there ? m : T(0);
    for (int64_t from = begin; from < end; from += half) {
      V e4[4] = {}, g4[4] = {}, t4[4] = {};
      sweep<T>(from, from + half < end ? from + half : end, [&](int64_t i, int k, auto width) XENT_INLINE {
        V at = load_some(x, i, width, -kInf<T>), gap = all(to) - at, term = exp_neg<T>(V{} - gap);
        auto same = at == all(m);
        e4[k] += select(same, V{}, term);
        t4[k] += select(same, all(T(1)), V{});
        g4[k] += select(term == V{}, V{}, term * gap);
      });
      s.now.add(add4(e4)), u.now.add(add4(g4));
      if (there) ties += double(added<T, kLanes<T>>(add4(t4)));
    }
    s.before += ties;
  }
  const double sum = s.value();
  if (!(sum == sum) || m == kInf<T> || m == -kInf<T>) return {kNaN<T>, kNaN<double>, kNaN<double>};
  return {m, sum, u.value()};
}

template <class X>
void entropy_of(const Entropy& k, int64_t first, int64_t last) {
  using T = Compute<X>;
  using V = Vec<T>;
  const int64_t n = k.classes;
  for (int64_t row = first; row < last; ++row) {
    const X* x = static_cast<const X*>(k.x) + row * n;
    X* dx = k.dx ? static_cast<X*>(k.dx) + row * n : nullptr;
    const double w = k.w ? double(get<T>(k.w, row)) : 1;
    if (w == 0) {
      put_result<T>(k.h, row, 0);
      if (dx) fill(dx, n, T(0));
      continue;
    }
    const Spread<T> found = spread_of(x, n);
    const double r = 1 / (1 + found.s), a = found.u * r;
    put_result<T>(k.h, row, std::log1p(found.s) + a);
    if (!dx) continue;
    const T scale = T(w * r), mean = T(a), m = found.m;
    sweep<T>(0, n, [&](int64_t i, int, auto width) XENT_INLINE {
      V gap = all(m) - load_some(x, i, width, T(0)), term = exp_neg<T>(V{} - gap);
      store_some(dx, i, width, V(select(term == V{}, V{}, term * (gap - mean) * scale)));
    });
  }
}
