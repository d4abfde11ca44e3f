// Rows beside each other: the class axis is in the middle, [outer, classes, inner] with inner > 1, or rows have few
// classes. Included by kernels.cpp, after rows.h.
//
// A unit is a tile: all classes of up to kTile neighbouring rows, few enough to stay in L2 between visits. The first
// visit takes the maxima, class by class, from kTile adjacent elements each; the second adds up strip by strip, a strip
// being a vector of rows; the third writes the gradient, class by class. Each lane is a row of its own, so rows never
// mix.

constexpr int64_t kTile = 512, kTileBytes = 256 << 10;

inline int64_t tile_width(const Rows& k) {
  int64_t size = k.dtype == kF64 ? 8 : k.dtype == kF32 ? 4 : 2;
  int64_t fits = kTileBytes / (k.classes * size) / 64 * 64;
  return fits < 64 ? 64 : fits > kTile ? kTile : fits;
}
inline int64_t tiles(const Rows& k) { return (k.inner + tile_width(k) - 1) / tile_width(k); }

// Per-row values of a tile. Lanes past the last row hold finite numbers that are not used.
template <class T>
struct Tile {
  using Int = typename Float<T>::Int;
  T m[kTile], s[kTile], share[kTile], spread[kTile];
  T k[kTile], a[kTile], c[kTile], at_label[kTile];
  Int label[kTile];                            // -1 where there is none
  T peak[kTile], a_r[kTile], rest_r[kTile];    // soft labels: m if that class has p > 1/2, else NaN; as in slopes()
  T nothing[kTile];                            // gradient of a masked row
  Int masked[kTile];                           // all bits set where it is
  bool any_masked, any_peak;
};

template <class T>
XENT_INLINE inline Vec<T> lanes_of(const T* p, int64_t i) {
  return get<Vec<T>>(p + i, 0);
}

// Pieces that fit into a vector of float64, in which rows' results are computed, to be rounded once at the end
using Doubles = Vec<double>;
template <class T>
using Piece = Pack<T, kLanes<double>>;
template <class T>
XENT_INLINE inline Doubles widened(const T* p) {
  return convert<Doubles>(get<Piece<T>>(p, 0));
}

// From memory to lanes and back, for `width` rows, which need not be whole vectors
template <class T>
void take(T* lanes, const void* p, int64_t first, int64_t width) {
  if (p) std::memcpy(lanes, static_cast<const char*>(p) + first * int64_t(sizeof(T)), size_t(width) * sizeof(T));
}
template <class T>
void give(void* p, int64_t first, int64_t width, const T* lanes) {
  if (p) std::memcpy(static_cast<char*>(p) + first * int64_t(sizeof(T)), lanes, size_t(width) * sizeof(T));
}

// body(i, width) for each vector of a tile's rows
template <class T, class F>
XENT_INLINE inline void each_strip(int64_t width, F&& body) {
  constexpr int n = kLanes<T>;
  int64_t i = 0;
  for (; i + n <= width; i += n) body(i, Full{});
  if (i < width) body(i, int(width - i));
}

// Four classes at a time: the maxima so far are read and written once for them.
template <class X>
void maxima(const Rows& k, const X* x, int64_t width, Tile<Compute<X>>& tile) {
  using T = Compute<X>;
  int64_t j = 0;
  auto raise = [&](auto classes) XENT_INLINE {
    each_strip<T>(width, [&](int64_t i, auto count) XENT_INLINE {
      Vec<T> m = lanes_of(tile.m, i);
      for (int64_t c = 0; c < classes; ++c) m = max(m, load_some(x, (j + c) * k.inner + i, count, T(0)));
      store(tile.m, i, m);
    });
    j += classes;
  };
  while (j + 4 <= k.classes) raise(std::integral_constant<int, 4>{});
  while (j < k.classes) raise(std::integral_constant<int, 1>{});
}

// Sums over the classes, before they are rounded
struct Sums {
  double s[kTile], gaps[kTile], soft[kTile], share[kTile], smooth[kTile];
};

// The sums of one strip, and the first class with the maximum, -1 where there is none. Meanwhile what the tile after it
// wants, `next` rows on, is fetched, unless that is 0: the hardware gives up at the end of each class's short piece.
template <class X, bool kSoft, bool kSmooth, bool kStats, class W>
XENT_INLINE inline void strip(const Rows& k, const X* x, const Compute<X>* t, int64_t i, W width, Tile<Compute<X>>& tile,
                              Sums& sums, typename Float<Compute<X>>::Int* argmax, int64_t next) {
  using T = Compute<X>;
  using V = Vec<T>;
  using Int = typename Float<T>::Int;
  V m = lanes_of(tile.m, i), ties = V{} - T(1);
  m = select(magnitude(m) == all(kInf<T>), all(kNaN<T>), m);
  Sum<T> s, gaps, label_gaps, shares, smooth_gaps;
  Ints<T> none = Ints<T>{} - Int(1), first = none;
  for (int64_t begin = 0; begin < k.classes; begin += kTerms) {
    int64_t end = begin + kTerms < k.classes ? begin + kTerms : k.classes;
    V e{}, f{}, g{}, w{}, h{};
    for (int64_t j = begin; j < end; ++j) {
      V at = load_some(x, j * k.inner + i, width, T(0)), gap = at - m;
      if (next) fetch_for_later(x, j * k.inner + i + next);
      auto same = at == m;
      V term = exp_neg<T>(gap);
      e += select(same, V{}, term);
      ties += select(same, all(T(1)), V{});
      if constexpr (kStats) {
        f = f - select(term == V{}, V{}, term * gap);
        first = select(same, select(first == none, Ints<T>{} + Int(j), first), first);
      }
      if constexpr (kSoft) {
        V weight = load_some(t, j * k.inner + i, width, T(0));
        if (next) fetch_for_later(t, j * k.inner + i + next);
        g = g - select(weight == V{}, V{}, weight * gap);
        w += weight;
      }
      if constexpr (kSmooth) {
        T weight = get<T>(k.u, j);
        if (weight != 0) h = h - gap * weight;
      }
    }
    s.add(e);
    if constexpr (kStats) gaps.add(f);
    if constexpr (kSoft) label_gaps.add(g), shares.add(w);
    if constexpr (kSmooth) smooth_gaps.add(h);
  }
  s.add(ties);
  store(tile.m, i, m);
  s.give(sums.s + i);
  if constexpr (kStats) gaps.give(sums.gaps + i), put(argmax + i, 0, first);
  if constexpr (kSoft) label_gaps.give(sums.soft + i), shares.give(sums.share + i);
  if constexpr (kSmooth) smooth_gaps.give(sums.smooth + i);
}

template <class X, bool kSoft, bool kSmooth>
void tile_gradient(const Rows& k, const X* x, const Compute<X>* t, int64_t width, const Tile<Compute<X>>& tile, X* dx) {
  using T = Compute<X>;
  using V = Vec<T>;
  using Int = typename Float<T>::Int;
  bool aligned = misaligned(dx, 1) == 0 && k.inner * int64_t(sizeof(X)) % int64_t(sizeof(Raw<X>)) == 0;
  bool streaming = k.streaming && aligned;
  for (int64_t j = 0; j < k.classes; ++j) {
    T u = kSmooth ? get<T>(k.u, j) : T(0);
    each_strip<T>(width, [&](int64_t i, auto count) XENT_INLINE {
      int64_t at = j * k.inner + i;
      V x_j = load_some(x, at, count, T(0)), v = exp_neg<T>(x_j - lanes_of(tile.m, i)) * lanes_of(tile.k, i);
      if constexpr (kSoft) {
        V weight = load_some(t, at, count, T(0));
        v = multiply_add<T>(V{} - lanes_of(tile.a, i), weight, v);
        if (tile.any_peak) {
          V miss = (lanes_of(tile.share, i) - weight) - weight * lanes_of(tile.s, i);
          v = select(x_j == lanes_of(tile.peak, i), miss * lanes_of(tile.a_r, i) + lanes_of(tile.rest_r, i), v);
        }
      } else {
        v = select(get<Ints<T>>(tile.label + i, 0) == Ints<T>{} + Int(j), lanes_of(tile.at_label, i), v);
      }
      if constexpr (kSmooth) v = v - lanes_of(tile.c, i) * u;
      if (tile.any_masked) v = select(get<Ints<T>>(tile.masked + i, 0) != Ints<T>{}, lanes_of(tile.nothing, i), v);
      if constexpr (!std::is_same_v<decltype(count), Full>) {
        store_part(dx, at, count, v);
      } else if (streaming) {
        stream(dx, at, v);
      } else {
        store(dx, at, v);
      }
    });
  }
}

template <class X, bool kSoft, bool kSmooth, bool kStats>
void one_tile(const Rows& k, int64_t unit, double u_total) {
  using T = Compute<X>;
  using V = Vec<T>;
  using Int = typename Float<T>::Int;
  int64_t outer = unit / tiles(k), first = unit % tiles(k) * tile_width(k);
  int64_t width = k.inner - first < tile_width(k) ? k.inner - first : tile_width(k);
  int64_t row = outer * k.inner + first, origin = outer * k.classes * k.inner + first;
  const X* x = static_cast<const X*>(k.x) + origin;
  const T* t = kSoft ? static_cast<const T*>(k.t) + origin : nullptr;
  const T U = T(u_total);

  Tile<T> tile;
  T smooth[kTile], gap_sum[kTile], lse[kTile], loss[kTile], x_y[kTile];
  Int argmax[kTile];
  tile.any_masked = tile.any_peak = false;
  for (int64_t i = 0; i < (width + 15) / 16 * 16; ++i) {
    int64_t id = k.ids && i < width ? id_at(k, row + i) : 0;
    tile.masked[i] = id < 0 ? -1 : 0;
    tile.nothing[i] = id == kInvalid ? kNaN<T> : T(0);
    tile.any_masked |= id < 0;
    tile.label[i] = kSoft || id < 0 ? Int(-1) : Int(id);
    tile.m[i] = k.task == Task::kBackward ? T(0) : -kInf<T>;
    tile.s[i] = tile.share[i] = tile.c[i] = lse[i] = x_y[i] = T(0);
    tile.a[i] = T(k.slope);
    if (!kSoft && id >= 0 && i < width) x_y[i] = load_one(x, id * k.inner + i);
  }

  if (k.task == Task::kBackward) {
    take(tile.m, k.m, row, width);
    take(tile.s, k.s, row, width);
    if (kSoft) {
      each_strip<T>(width, [&](int64_t i, auto count) {
        Sum<T> share;
        for (int64_t j = 0; j < k.classes; ++j) share.add(load_some(t, j * k.inner + i, count, T(0)));
        store(tile.share, i, share.lanes());
      });
    }
  } else {
    maxima(k, x, width, tile);
    Sums sums;
    const int64_t next = first + width < k.inner ? width : 0;
    each_strip<T>(width, [&](int64_t i, auto count) XENT_INLINE {
      strip<X, kSoft, kSmooth, kStats>(k, x, t, i, count, tile, sums, argmax, next);
    });
    // A loop of its own: its long chains of operations would delay the strips.
    each_strip<double>(width, [&](int64_t i, auto) XENT_INLINE {
      Doubles sum = get<Doubles>(sums.s + i, 0), spread = log1p_any(sum), m = widened(tile.m + i);
      auto masked = get<Pack<Int, kLanes<double>>>(tile.masked + i, 0) != Pack<Int, kLanes<double>>{};
      auto keep = [&](T* to, Doubles value, Piece<T> otherwise) XENT_INLINE {
        put(to + i, 0, select(masked, otherwise, convert<Piece<T>>(value)));
      };
      Piece<T> nothing = get<Piece<T>>(tile.nothing + i, 0);
      if constexpr (kSoft) {
        Doubles share = get<Doubles>(sums.share + i, 0);
        keep(loss, get<Doubles>(sums.soft + i, 0) + share * spread, nothing);
        put(tile.share + i, 0, convert<Piece<T>>(share));
      } else {
        keep(loss, (m - widened(x_y + i)) + spread, nothing);
      }
      keep(lse, m + spread, nothing);
      if constexpr (kStats) keep(gap_sum, get<Doubles>(sums.gaps + i, 0), Piece<T>{});
      if constexpr (kSmooth) keep(smooth, get<Doubles>(sums.smooth + i, 0) + spread * u_total, nothing);
      keep(tile.m, select(sum == sum, m, sum), Piece<T>{});
      keep(tile.s, sum, Piece<T>{});
    });
    give(k.loss, row, width, loss);
    give(k.lse, row, width, lse);
    give(kSmooth ? k.smooth : nullptr, row, width, smooth);
    give(k.m, row, width, tile.m);
    give(k.s, row, width, tile.s);
    if constexpr (kStats) {
      give(k.gap_sum, row, width, gap_sum);
      for (int64_t i = 0; i < width; ++i) put_class(k, row + i, tile.masked[i] ? Int(kInvalid) : argmax[i]);
    }
  }
  if (!k.dx && !k.dt) return;

  T b[kTile] = {}, lse2[kTile] = {};
  take(tile.a, k.a, row, width);
  take(tile.c, k.c, row, width);
  take(b, k.b, row, width);
  take(lse2, k.lse2, row, width);
  each_strip<T>(width, [&](int64_t i, auto) XENT_INLINE {
    V m = lanes_of(tile.m, i), s = lanes_of(tile.s, i), a = lanes_of(tile.a, i), label = lanes_of(x_y, i);
    V rest = lanes_of(b, i) + lanes_of(lse2, i) * lanes_of(lse, i) * T(2) + lanes_of(tile.c, i) * U;
    V r = T(1) / (s + T(1));
    store(tile.k, i, ((kSoft ? a * lanes_of(tile.share, i) : a) + rest) * r);
    if constexpr (kSoft) {
      store(tile.peak, i, select(s < all(T(1)), m, all(kNaN<T>)));
      store(tile.a_r, i, a * r);
      store(tile.rest_r, i, rest * r);
    } else {
      V e_y = exp_neg<T>(label - m), miss = select(label == m, V{} - s, e_y - (s + T(1)));
      store(tile.at_label, i, multiply_add<T>(a, miss, rest * e_y) * r);
    }
  });
  if (kSoft) {
    for (int64_t i = 0; i < width; ++i) tile.any_peak |= tile.s[i] < T(1);
  }
  if (k.dx) tile_gradient<X, kSoft, kSmooth>(k, x, t, width, tile, static_cast<X*>(k.dx) + origin);
  if (!k.dt) return;
  each_strip<double>(width, [&](int64_t i, auto) {
    put(tile.spread + i, 0, convert<Piece<T>>(log1p_any(widened(tile.s + i))));
  });
  for (int64_t j = 0; j < k.classes; ++j) {
    T* dt = static_cast<T*>(k.dt) + origin;
    each_strip<T>(width, [&](int64_t i, auto count) XENT_INLINE {
      V gap = lanes_of(tile.m, i) - load_some(x, j * k.inner + i, count, T(0));
      V v = (gap + lanes_of(tile.spread, i)) * lanes_of(tile.a, i);
      v = select(get<Ints<T>>(tile.masked + i, 0) != Ints<T>{}, lanes_of(tile.nothing, i), v);
      if constexpr (std::is_same_v<decltype(count), Full>) {
        store(dt, j * k.inner + i, v);
      } else {
        store_part(dt, j * k.inner + i, count, v);
      }
    });
  }
}

template <class X, bool kSoft, bool kSmooth, bool kStats>
void beside(const Rows& k, int64_t begin, int64_t end) {
  using T = Compute<X>;
  double u_total = kSmooth ? total(static_cast<const T*>(k.u), k.classes) : 0;
  for (int64_t unit = begin; unit < end; ++unit) one_tile<X, kSoft, kSmooth, kStats>(k, unit, u_total);
}

// ---- rows of few classes that lie side by side: they would leave vectors half empty, and most of the time would be
// the fixed work of each row. So a tile that fits in L1 is transposed, treated as above, and its gradient is transposed
// back.

constexpr int64_t kFew = 64, kTurnedBytes = 32 << 10;
static_assert(64 * kFew * sizeof(double) <= kTurnedBytes, "64 rows fit");

inline bool turns(const Rows& k) { return k.inner == 1 && k.classes <= kFew; }
inline int64_t turned_width(const Rows& k) {
  int64_t fits = kTurnedBytes / (k.classes * (k.dtype == kF64 ? 8 : 4)) / 64 * 64;
  return fits > kTile ? kTile : fits;
}

template <class X>
void turn(const X* from, int64_t rows, int64_t columns, X* to) {
  // by memcpy, since the caller's memory may not be aligned
  auto move = [&](int64_t i, int64_t j) XENT_INLINE { std::memcpy(to + j * rows + i, from + i * columns + j, sizeof(X)); };
  int64_t done = 0;
  if (rows > columns) {  // the inner loop along the longer side, for four lines of the other
    for (; done + 4 <= columns; done += 4) {
      for (int64_t i = 0; i < rows; ++i) move(i, done), move(i, done + 1), move(i, done + 2), move(i, done + 3);
    }
    for (; done < columns; ++done) {
      for (int64_t i = 0; i < rows; ++i) move(i, done);
    }
  } else {
    for (; done + 4 <= rows; done += 4) {
      for (int64_t j = 0; j < columns; ++j) move(done, j), move(done + 1, j), move(done + 2, j), move(done + 3, j);
    }
    for (; done < rows; ++done) {
      for (int64_t j = 0; j < columns; ++j) move(done, j);
    }
  }
}

template <class T, class P>
P* from_row(P* p, int64_t row) {
  using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
  return p ? reinterpret_cast<Byte*>(p) + row * int64_t(sizeof(T)) : nullptr;
}

template <class X, bool kSoft, bool kSmooth, bool kStats>
void turned(const Rows& k, int64_t begin, int64_t end) {
  using T = Compute<X>;
  constexpr size_t most = kTurnedBytes / sizeof(T);
  double u_total = kSmooth ? total(static_cast<const T*>(k.u), k.classes) : 0;
  X x[most], dx[most];
  T t[kSoft ? most : 1], dt[kSoft ? most : 1];
  for (int64_t unit = begin; unit < end; ++unit) {
    int64_t first = unit * turned_width(k), n = k.classes;
    int64_t rows = k.outer - first < turned_width(k) ? k.outer - first : turned_width(k);
    Rows tile = k;
    tile.outer = 1, tile.inner = rows, tile.streaming = false;
    turn(static_cast<const X*>(k.x) + first * n, rows, n, x);
    tile.x = x, tile.dx = k.dx ? dx : nullptr;
    if constexpr (kSoft) {
      turn(static_cast<const T*>(k.t) + first * n, rows, n, t);
      tile.t = t, tile.dt = k.dt ? dt : nullptr;
    }
    tile.ids = k.wide ? from_row<int64_t>(k.ids, first) : from_row<int32_t>(k.ids, first);
    for (auto p : {&tile.a, &tile.b, &tile.c, &tile.lse2}) *p = from_row<T>(*p, first);
    for (auto p : {&tile.m, &tile.s, &tile.loss, &tile.lse, &tile.smooth, &tile.gap_sum}) *p = from_row<T>(*p, first);
    tile.argmax = k.wide ? from_row<int64_t>(k.argmax, first) : from_row<int32_t>(k.argmax, first);
    one_tile<X, kSoft, kSmooth, kStats>(tile, 0, u_total);
    if (k.dx) turn(dx, n, rows, static_cast<X*>(k.dx) + first * n);
    if constexpr (kSoft) {
      if (k.dt) turn(dt, n, rows, static_cast<T*>(k.dt) + first * n);
    }
  }
}
