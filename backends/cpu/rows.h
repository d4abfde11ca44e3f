// Rows whose classes lie side by side. Included by kernels.cpp, after gradient.h.

template <class T>
void put_result(void* p, int64_t row, double value) {
  if (p) put(p, row, T(value));
}

// An id past the classes counts as invalid, also where the caller has checked: another thread may have written it since.
inline int64_t id_at(const Rows& k, int64_t row) {
  int64_t id = k.wide ? get<int64_t>(k.ids, row) : get<int32_t>(k.ids, row);
  if (k.unmarked && id == k.ignored) return kAbsent;
  return id >= k.classes || (k.unmarked && id < 0) ? kInvalid : id;
}

// In the ids' width
inline void put_class(const Rows& k, int64_t row, int64_t id) {
  if (k.wide) {
    put(k.argmax, row, id);
  } else {
    put(k.argmax, row, int32_t(id));
  }
}

template <class X, bool kSoft, bool kSmooth, bool kStats>
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
      for (void* p : {k.m, k.s, k.gap_sum}) put_result<T>(p, row, 0);
      if constexpr (kStats) put_class(k, row, id);
    }
    if (dx) fill(dx, n, nothing);
    if (dt) fill(dt, n, nothing);
    return;
  }

  T block[kBlock<T>];
  Visit<T> visit;
  if (dx && k.task == Task::kBoth && n <= visit.kMost) {
    if (n <= kBlock<T>) {
      visit.terms = block;
    } else if (std::is_same_v<X, T> && !k.streaming && static_cast<const void*>(dx) != x) {
      visit.terms = reinterpret_cast<T*>(dx);  // until the gradient is written over them
    } else if (n * int64_t(sizeof(T)) <= kThreadScratch) {
      visit.terms = static_cast<T*>(thread_scratch());
    }
  }
  Stats<T> stats{};
  T x_y = kSoft ? T(0) : load_one(x, id);  // before dx, which may overwrite it
  double lse = 0;
  if (k.task == Task::kBackward) {
    stats.m = get<T>(k.m, row);
    stats.s = double(get<T>(k.s, row));
    stats.share = kSoft ? total(t, n) : 1;
    stats.u_total = u_total;
  } else {
    stats = statistics<X, kSoft, kSmooth, kStats>(x, t, u, n, visit);
    if (!kSoft) stats.share = 1;
    double spread = std::log1p(stats.s), m = double(stats.m);
    lse = m + spread;
    put_result<T>(k.loss, row, kSoft ? stats.soft + stats.share * spread : (m - double(x_y)) + spread);
    put_result<T>(k.lse, row, lse);
    put_result<T>(k.smooth, row, stats.smooth + stats.u_total * spread);
    put_result<T>(k.m, row, m);
    put_result<T>(k.s, row, stats.s);
    if constexpr (kStats) {
      put_result<T>(k.gap_sum, row, stats.gaps);
      put_class(k, row, stats.m == stats.m ? place_of(x, stats.first, n, stats.m) : kInvalid);
    }
  }
  if (dt) {
    label_gradient(x, n, stats.m, T(std::log1p(stats.s)), get<T>(k.a, row), dt);
  }
  if (dx) {
    double a = k.a ? double(get<T>(k.a, row)) : k.slope, c = k.c ? double(get<T>(k.c, row)) : 0;
    double b = k.b ? double(get<T>(k.b, row)) : k.lse2 ? 2 * double(get<T>(k.lse2, row)) * lse : 0;
    bool visited = k.task == Task::kBoth && n <= visit.kMost;
    Place<T> place{id, x_y, T(1)};
    if constexpr (kSoft) {
      place.at = stats.s < 1 ? place_of(x, stats.first, n, stats.m) : -1;
      if (place.at >= 0) place.x = stats.m, place.t = get<T>(t, place.at);
    }
    if (kSmooth && place.at >= 0) place.u = get<T>(u, place.at);
    Slopes<T> slope = slopes<T>(stats, place, a, b + (kSmooth ? c * stats.u_total : 0), c);
    bool settled = visited && visit.settle(n, stats.m);
    row_gradient<X, kSoft, kSmooth>(k, x, t, u, place.at, stats.m, settled ? &visit : nullptr, slope, dx);
  }
}

template <class X, bool kSoft, bool kSmooth, bool kStats>
void side_by_side(const Rows& k, int64_t begin, int64_t end) {
  using T = Compute<X>;
  double u_total = kSmooth && k.task == Task::kBackward ? total(static_cast<const T*>(k.u), k.classes) : 0;
  for (int64_t row = begin; row < end; ++row) one_row<X, kSoft, kSmooth, kStats>(k, row, u_total);
}
