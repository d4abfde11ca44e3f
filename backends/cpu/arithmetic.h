// Arithmetic of the kernels: exp for x <= 0, log1p, and sums. Included by kernels.cpp, after vectors.h.

template <class V>
XENT_INLINE inline V max(V a, V b) {
  return select(a > b, a, b);
}
template <class V>
XENT_INLINE inline auto magnitude(V x) {
  return select(x < V{}, V{} - x, x);
}

template <class T>
XENT_INLINE inline bool any_at_least(Vec<T> v, T bound) {
#if XENT_AVX512
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask(bits<__m512>(v), _mm512_set1_ps(bound), _CMP_GE_OQ) != 0;
  if constexpr (sizeof(T) == 8) return _mm512_cmp_pd_mask(bits<__m512d>(v), _mm512_set1_pd(bound), _CMP_GE_OQ) != 0;
#elif XENT_AVX2
  if constexpr (sizeof(T) == 4)
    return _mm256_movemask_ps(_mm256_cmp_ps(bits<__m256>(v), _mm256_set1_ps(bound), _CMP_GE_OQ)) != 0;
  if constexpr (sizeof(T) == 8)
    return _mm256_movemask_pd(_mm256_cmp_pd(bits<__m256d>(v), _mm256_set1_pd(bound), _CMP_GE_OQ)) != 0;
#endif
  bool any = false;
  for (int k = 0; k < kLanes<T>; ++k) any |= v[k] >= bound;
  return any;
}

// Combines all lanes by halves: one after the other, each operation would wait for the one before
template <class T, int N, class F>
XENT_INLINE inline T folded(Pack<T, N> v, F&& f) {
  if constexpr (N == 2) {
    return f(T(v[0]), T(v[1]));
  } else {
    Pack<T, N / 2> half[2];
    std::memcpy(half, &v, sizeof half);
    return folded<T, N / 2>(f(half[0], half[1]), f);
  }
}

template <class T, int N>
XENT_INLINE inline T added(Pack<T, N> v) {
  return folded<T, N>(v, [](auto a, auto b) XENT_INLINE { return a + b; });
}

template <class T>
XENT_INLINE inline T largest(Vec<T> v) {
  return folded<T, kLanes<T>>(v, [](auto a, auto b) XENT_INLINE {
    if constexpr (std::is_same_v<decltype(a), T>) {
      return a > b ? a : b;
    } else {
      return select(a > b, a, b);
    }
  });
}

// Highest power first; every coefficient a compile-time constant
template <class V>
XENT_INLINE inline V horner(V, V sum) {
  return sum;
}
template <class V, class T, class... Ts>
XENT_INLINE inline V horner(V x, V sum, T next, Ts... more) {
  return horner(x, V(sum * x + next), more...);
}

// a b + c, rounded once where the instruction set can. Of two products that are added, a compiler would choose which one
// to fuse, differently from one loop to the next: a row's bits would depend on its place.
template <class T>
XENT_INLINE inline Vec<T> multiply_add(Vec<T> a, Vec<T> b, Vec<T> c) {
  using V = Vec<T>;
#if XENT_AVX512
  if constexpr (sizeof(T) == 4) {
    return bits<V>(_mm512_fmadd_ps(bits<__m512>(a), bits<__m512>(b), bits<__m512>(c)));
  } else {
    return bits<V>(_mm512_fmadd_pd(bits<__m512d>(a), bits<__m512d>(b), bits<__m512d>(c)));
  }
#elif XENT_AVX2
  if constexpr (sizeof(T) == 4) {
    return bits<V>(_mm256_fmadd_ps(bits<__m256>(a), bits<__m256>(b), bits<__m256>(c)));
  } else {
    return bits<V>(_mm256_fmadd_pd(bits<__m256d>(a), bits<__m256d>(b), bits<__m256d>(c)));
  }
#else
  return V(a * b + c);
#endif
}

// exp(x) for x <= 0, within 1 ulp; 0 where the result is no normal number, and for -inf; NaN for NaN. exp(0) is 1. 2^n
// e^r with n = round(x / ln 2). Coefficients: polynomials.py. No subnormal results: a product of one takes 100 times as
// long.
template <class T>
XENT_INLINE inline Vec<T> exp_neg(Vec<T> x) {
  using V = Vec<T>;
  using F = Float<T>;
#if !XENT_AVX512
  x = select(x < all(F::lowest), all(F::lowest - 1), x);
#endif
  V shifted = x * T(1.44269504088896340736) + F::magic, n = shifted - F::magic, r, p;
  if constexpr (sizeof(T) == 4) {
    // ln 2 in two parts; fused, a product does not round, else the first part has only 9 bits
#if XENT_AVX512
    __m512 rest = _mm512_fnmadd_ps(bits<__m512>(n), _mm512_set1_ps(0.693147182f), bits<__m512>(x));
    r = bits<V>(_mm512_fmadd_ps(bits<__m512>(n), _mm512_set1_ps(1.90465432e-9f), rest));
#elif XENT_AVX2
    __m256 rest = _mm256_fnmadd_ps(bits<__m256>(n), _mm256_set1_ps(0.693147182f), bits<__m256>(x));
    r = bits<V>(_mm256_fmadd_ps(bits<__m256>(n), _mm256_set1_ps(1.90465432e-9f), rest));
#else
    r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
#endif
    p = horner(r, all(0.00139261761f), 0.00836317307f, 0.0416665547f, 0.16666577f, 0.5f, 1.0f, 1.0f);
  } else {
    r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
    p = horner(r, all(2.0914679376583935e-09), 2.5105206373957011e-08, 2.7557273661348637e-07, 2.7557255425746435e-06,
               2.4801587325533363e-05, 0.00019841269874800493, 0.0013888888888883752, 0.0083333333333261411,
               0.041666666666666671, 0.16666666666666671, 0.5, 1.0, 1.0);
  }
#if XENT_AVX512
  if constexpr (sizeof(T) == 4) {
    __mmask16 normal = _mm512_cmp_ps_mask(bits<__m512>(x), _mm512_set1_ps(F::lowest), _CMP_NLT_UQ);
    return bits<V>(_mm512_maskz_scalef_ps(normal, bits<__m512>(p), bits<__m512>(n)));
  } else {
    __mmask8 normal = _mm512_cmp_pd_mask(bits<__m512d>(x), _mm512_set1_pd(F::lowest), _CMP_NLT_UQ);
    return bits<V>(_mm512_maskz_scalef_pd(normal, bits<__m512d>(p), bits<__m512d>(n)));
  }
#endif
  // The low bits of `shifted` are n. Below `lowest` n + bias is 0, and so is the power.
  return p * bits<V>((bits<Ints<T>>(shifted) + F::bias) << F::mantissa);
}

// log1p(q) for 0 <= q <= 1, accurate relative to itself down to q = 0
template <class T>
XENT_INLINE inline Vec<T> log1p_unit(Vec<T> q) {
  if constexpr (sizeof(T) == 4) {
    return q * horner(Vec<T>(q - 0.5f), all(0.00198669659f), -0.0032543436f, 0.00401169083f, -0.00674410465f,
                      0.0118477561f, -0.0205713852f, 0.0366112233f, -0.067687623f, 0.132609762f, -0.288527112f,
                      0.810930216f);
  } else {
    Vec<T> w = q / (q + 2.0), y = w * w;  // 2 atanh(w); 2 w is q - q w, of which q does not round
    Vec<T> p = horner(y, all(0.078152889004614257), 0.037460718977753833, 0.054225891974400073, 0.058671395306515987,
                      0.066675893157246285, 0.076922719824302752, 0.090909099489813572, 0.11111111099118386,
                      0.1428571428580005, 0.19999999999999762, 0.33333333333333331);
    return q - (q * w - (w + w) * (y * p));
  }
}

// log1p(s) for any s >= 0: k ln 2 + log1p of what is left
XENT_INLINE inline Vec<double> log1p_any(Vec<double> s) {
  using V = Vec<double>;
  using I = Ints<double>;
  I u = bits<I>(V(s + 1.0)), one = I{} + 0x3ff0000000000000;
  V rest = bits<V>(I((u & 0xfffffffffffff) | one)) - 1.0;
  V k = bits<V>(I((u >> 52) | 0x4330000000000000)) - (0x1p52 + 1023);  // the exponent behind 2^52, as a number
  auto small = s < all(1.0);
  k = select(small, V{}, k);
  return k * 0.693147180559945309 + log1p_unit<double>(select(small, s, rest)) + s * 0.0;  // NaN stays NaN
}

// ---- sums: each lane adds 8 terms directly, and then these sums by two-sum, which keeps the rounding errors

constexpr int kTerms = 8;

template <class T>
struct Sum {
  Vec<T> high{}, low{};
  XENT_INLINE void add(Vec<T> v) {
    Vec<T> sum = high + v, moved = sum - high;
    low += (high - (sum - moved)) + (v - moved);
    high = sum;
  }
  // The rounding error of an infinite sum is inf - inf, NaN, but the sum itself is right.
  XENT_INLINE Vec<T> rest() const { return select(low == low, low, Vec<T>{}); }
  XENT_INLINE Vec<T> lanes() const { return high + rest(); }
  XENT_INLINE void give(double* to) const {
    using Wide = Pack<double, kLanes<T>>;
    put(to, 0, convert<Wide>(high) + convert<Wide>(rest()));
  }
  XENT_INLINE double value() const {
    constexpr int n = kLanes<T>;
    using Wide = Pack<double, n>;
    return added<double, n>(Wide(convert<Wide>(high) + convert<Wide>(rest())));
  }
};
