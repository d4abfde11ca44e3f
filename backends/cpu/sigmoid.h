// Sigmoid cross-entropy, elementwise. Included by kernels.cpp, after rows.h.
//
// With q = exp(-|x|):  loss = (x > 0 ? negative : positive) |x| + (negative + positive) log1p(q)
//                      dx = negative sigmoid(x) - positive sigmoid(-x), sigmoid(|x|) = 1 / (1 + q)
// Bytes moved, per element: x + targets, + 4 (8) for the loss, + dx; loss and dx together are one visit.

// `count` values of a pattern from element i on: where they are if they are adjacent in memory, else copied to `room`
template <class T>
const T* values(const Pattern& p, int64_t i, int64_t count, T* room) {
  const char* at = static_cast<const char*>(p.at);
  int64_t place = p.at ? i / p.inner % p.length : 0, left = p.at ? p.inner - i % p.inner : count;
  if (p.at && p.inner == 1 && place + count <= p.length)
    return reinterpret_cast<const T*>(at + place * int64_t(sizeof(T)));
  for (int64_t k = 0; k < count;) {
    if (p.at && p.inner == 1 && p.length > 1) {
      int64_t run = p.length - place < count - k ? p.length - place : count - k;
      std::memcpy(room + k, at + place * int64_t(sizeof(T)), size_t(run) * sizeof(T));
      k += run;
      place = 0;
      continue;
    }
    int64_t run = p.at && p.length > 1 && left < count - k ? left : count - k;
    fill(room + k, run, p.at ? get<T>(at, place) : T(1));
    k += run;
    left = p.inner;
    place = place + 1 == p.length ? 0 : place + 1;
  }
  return room;
}

template <class X>
void elements(const Sigmoid& k, int64_t first, int64_t last) {
  using T = Compute<X>;
  using V = Vec<T>;
  constexpr int64_t block = 4 * kTerms * kLanes<T>;
  static_assert(kSigmoidBlock % block == 0, "blocks of a sum fill the unit of work");
  const T keep = T(1 - k.smoothing), half = T(k.smoothing / 2), scale = T(k.scale);
  T pos_weight_room[block], weight_room[block];

  for (int64_t unit = first; unit < last; ++unit) {
    int64_t stop = (unit + 1) * kSigmoidBlock < k.n ? (unit + 1) * kSigmoidBlock : k.n;
    Sum<T> sum;
    for (int64_t begin = unit * kSigmoidBlock; begin < stop; begin += block) {
      int64_t count = stop - begin < block ? stop - begin : block;
      const T* pos_weight = values(k.pos_weight, begin, count, pos_weight_room);
      const T* weights = values(k.weight, begin, count, weight_room);
      const X* x = static_cast<const X*>(k.x) + begin;
      const T* targets = static_cast<const T*>(k.targets) + begin;
      V sums[4] = {};
      sweep<T>(0, count, [&](int64_t i, int lane, auto width) XENT_INLINE {
        V at = load_some(x, i, width, T(0)), label = load_some(targets, i, width, T(0));
        V weight = load_some(weights, i, width, T(0)), factor = load_some(pos_weight, i, width, T(0)), zero = V{};
        V positive = (label * keep + half) * factor, negative = (T(1) - label) * keep + half;
        V size = magnitude(at), q = exp_neg<T>(zero - size), spread = log1p_unit<T>(q);
        auto up = at > zero, absent = weight == zero;
        auto times = [&](V a, V b) XENT_INLINE { return select((a == zero) & (b == all(kInf<T>)), zero, a * b); };
        if (!k.backward) {
          V loss = times(select(up, negative, positive), size) + (negative + positive) * spread;
          loss = select(absent, zero, loss);
          sums[lane] += loss * weight;
          if (k.loss) store_some(static_cast<T*>(k.loss) + begin, i, width, loss);
        }
        if (k.dx) {
          V large = T(1) / (q + T(1)), small = q * large;
          V slope = negative * select(up, large, small) - positive * select(up, small, large);
          V gradient = select(absent, zero, slope * (weight * scale));
          store_some(static_cast<X*>(k.dx) + begin, i, width, gradient);
        }
        if (k.dz) {
          V slope = zero - at;
          if (k.pos_weight.at) slope = times(factor, select(up, zero, size) + spread) - (select(up, size, zero) + spread);
          slope = k.smoothing == 1 ? zero : slope * keep;
          V gradient = select(absent, zero, slope * (weight * scale));
          store_some(static_cast<T*>(k.dz) + begin, i, width, gradient);
        }
      });
      sum.add(add4(sums));
    }
    if (!k.backward) k.sums[unit] = sum.value();
  }
}
