// Vectors as wide as the instruction set's registers, and how they come from memory. Included by kernels.cpp, inside
// the namespace of the instruction set being compiled.
//
// GNU vector extensions where the compiler has them, else structs with loops (MSVC); intrinsics only where operators
// cannot express it. Nothing from <algorithm>: the linker keeps one copy of a template's instantiation, and one that
// was compiled here with AVX-512 could then run on every processor.

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define XENT_AVX512 1
constexpr int kBytes = 64;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define XENT_AVX2 1
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

#if defined(__GNUC__) && !defined(XENT_PORTABLE)
#if !defined(XENT_INLINE)  // the sanitizers' build has it empty: inlined, it would compile for minutes
#define XENT_INLINE __attribute__((always_inline))
#endif
template <class T, int N>
struct PackOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Pack = typename PackOf<T, N>::type;
template <class To, class From>
XENT_INLINE inline To convert(From v) {
  return __builtin_convertvector(v, To);
}
template <class M, class V>
XENT_INLINE inline V select(M mask, V yes, V no) {
  return mask ? yes : no;
}
#else
#define XENT_INLINE
#include "pack.h"
#endif

template <class To, class From>
XENT_INLINE inline To bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "same bits");
  To to;
  std::memcpy(&to, &v, sizeof to);
  return to;
}

// ---- element types: X is what memory holds, T = Compute<X> what is computed in

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

template <class X>
using Compute = std::conditional_t<std::is_same_v<X, double>, double, float>;

template <class T>
struct Float;
template <>
struct Float<float> {
  using Int = int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr float lowest = -87.3365f;   // exp of less is no normal number
};
template <>
struct Float<double> {
  using Int = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double magic = 6755399441055744.0;
  static constexpr double lowest = -708.396;
};

template <class T>
constexpr int kLanes = kBytes / int(sizeof(T));
template <class T>
using Vec = Pack<T, kLanes<T>>;
template <class T>
using Ints = Pack<typename Float<T>::Int, kLanes<T>>;

template <class T>
constexpr T kInf = std::numeric_limits<T>::infinity();
template <class T>
constexpr T kNaN = std::numeric_limits<T>::quiet_NaN();

template <class T>
XENT_INLINE inline Vec<T> all(T value) {
  return Vec<T>{} + value;
}

// ---- memory: any alignment

template <class T>
XENT_INLINE inline T get(const void* p, int64_t i) {
  T value;
  std::memcpy(&value, static_cast<const char*>(p) + i * int64_t(sizeof(T)), sizeof value);
  return value;
}
template <class T>
XENT_INLINE inline void put(void* p, int64_t i, T value) {
  std::memcpy(static_cast<char*>(p) + i * int64_t(sizeof(T)), &value, sizeof value);
}

using Half = Pack<uint16_t, kLanes<float>>;
using Word = Pack<uint32_t, kLanes<float>>;

// One vector as memory holds it
template <class X>
using Raw = std::conditional_t<sizeof(X) == 2, Half, Vec<Compute<X>>>;

template <class X>
XENT_INLINE inline Vec<Compute<X>> widen(Raw<X> v) {
  return v;
}
template <>
XENT_INLINE inline Vec<float> widen<bf16>(Half h) {
  return bits<Vec<float>>(convert<Word>(h) << 16);
}
template <>
XENT_INLINE inline Vec<float> widen<f16>(Half h) {
#if XENT_AVX512
  return bits<Vec<float>>(_mm512_cvtph_ps(bits<__m256i>(h)));
#elif XENT_AVX2
  return bits<Vec<float>>(_mm256_cvtph_ps(bits<__m128i>(h)));
#else
  Word w = convert<Word>(h);
  Word size = (w & 0x7fffu) << 13;  // exponents are 112 too small, which a product repairs, subnormals included
  Vec<float> value = bits<Vec<float>>(size) * 0x1p112f;
  Word special = bits<Word>(value) | 0x7f800000u;  // infinities and NaN
  Word is_special = Word{} - (((w & 0x7c00u) + 0x400u) >> 15);
  return bits<Vec<float>>((bits<Word>(value) & ~is_special) | (special & is_special) | (w & 0x8000u) << 16);
#endif
}

template <class X>
XENT_INLINE inline Raw<X> narrow(Vec<Compute<X>> v) {
  return v;
}
template <>
XENT_INLINE inline Half narrow<bf16>(Vec<float> v) {
  Word w = bits<Word>(v);
  Word rounded = (w + 0x7fffu + ((w >> 16) & 1u)) >> 16;  // to nearest, ties to even
  return convert<Half>(select(v == v, rounded, (w >> 16) | 0x40u));
}
template <>
XENT_INLINE inline Half narrow<f16>(Vec<float> v) {
#if XENT_AVX512
  return bits<Half>(_mm512_cvtps_ph(bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif XENT_AVX2
  return bits<Half>(_mm256_cvtps_ph(bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  Word w = bits<Word>(v), sign = (w >> 16) & 0x8000u, size = w & 0x7fffffffu;
  Word normal = (size - (112u << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13;
  Word subnormal = bits<Word>(bits<Vec<float>>(size) + 0.5f) - 0x3f000000u;  // the addition rounds at 2^-24
  Vec<float> a = bits<Vec<float>>(size);
  Word result = select(a < all(0x1p-14f), subnormal, normal);
  result = select(a >= all(65520.0f), Word{} + 0x7c00u, result);
  result = select(v == v, result, Word{} + 0x7e00u);
  return convert<Half>(result | sign);
#endif
}

template <class X>
XENT_INLINE inline Vec<Compute<X>> load(const X* p, int64_t i) {
  return widen<X>(get<Raw<X>>(reinterpret_cast<const char*>(p) + i * int64_t(sizeof(X)), 0));
}
// The hardware prefetcher stops at 4 kB boundaries: with this, a forward pass took 27 ms instead of 35 (4096x32000,
// float32).
template <class X>
XENT_INLINE inline void fetch_ahead(const X* p, int64_t i) {
#if defined(__GNUC__) && !defined(XENT_PORTABLE)
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p + i) + 4096));
#endif
}

// To L2, for a later visit; p + i may lie past the array.
template <class X>
XENT_INLINE inline void fetch_for_later(const X* p, int64_t i) {
#if defined(__GNUC__) && !defined(XENT_PORTABLE)
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + uintptr_t(i) * sizeof(X)), 0, 2);
#endif
}

template <class X>
XENT_INLINE inline void store(X* p, int64_t i, Vec<Compute<X>> v) {
  put(reinterpret_cast<char*>(p) + i * int64_t(sizeof(X)), 0, narrow<X>(v));
}

template <class X>
XENT_INLINE inline Compute<X> load_one(const X* p, int64_t i) {
  Raw<X> raw{};
  std::memcpy(&raw, reinterpret_cast<const char*>(p) + i * int64_t(sizeof(X)), sizeof(X));
  return widen<X>(raw)[0];
}

// The first n < kLanes elements; the others are `fill`
template <class X>
XENT_INLINE inline Vec<Compute<X>> load_part(const X* p, int64_t i, int n, Compute<X> fill) {
  const char* from = reinterpret_cast<const char*>(p) + i * int64_t(sizeof(X));
  Vec<Compute<X>> lanes;
#if XENT_AVX512
  if constexpr (sizeof(X) == 8) {
    __mmask8 some = __mmask8((1u << n) - 1);
    return bits<Vec<Compute<X>>>(_mm512_mask_loadu_pd(bits<__m512d>(all(fill)), some, from));
  } else if constexpr (sizeof(X) == 4) {
    __mmask16 some = __mmask16((1u << n) - 1);
    return bits<Vec<Compute<X>>>(_mm512_mask_loadu_ps(bits<__m512>(all(fill)), some, from));
  } else {
    __mmask16 some = __mmask16((1u << n) - 1);
    lanes = widen<X>(bits<Raw<X>>(_mm256_maskz_loadu_epi16(some, from)));
    return bits<Vec<Compute<X>>>(_mm512_mask_mov_ps(bits<__m512>(all(fill)), some, bits<__m512>(lanes)));
  }
#endif
  Raw<X> raw{};
  std::memcpy(&raw, from, size_t(n) * sizeof(X));
  lanes = widen<X>(raw);
  for (int k = n; k < kLanes<Compute<X>>; ++k) lanes[k] = fill;
  return lanes;
}
template <class X>
XENT_INLINE inline void store_part(X* p, int64_t i, int n, Vec<Compute<X>> v) {
  Raw<X> raw = narrow<X>(v);
  std::memcpy(reinterpret_cast<char*>(p) + i * int64_t(sizeof(X)), &raw, size_t(n) * sizeof(X));
}

// Stores past the caches, for output larger than they are. p + i must be aligned to a vector.
template <class X>
XENT_INLINE inline void stream(X* p, int64_t i, Vec<Compute<X>> v) {
  Raw<X> raw = narrow<X>(v);
  char* to = reinterpret_cast<char*>(p) + i * int64_t(sizeof(X));
#if XENT_AVX512 || XENT_AVX2
  if constexpr (sizeof raw == 64) {
#if XENT_AVX512
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits<__m512i>(raw));
#endif
  } else if constexpr (sizeof raw == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), bits<__m256i>(raw));
  } else {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), bits<__m128i>(raw));
  }
#else
  put(to, 0, raw);
#endif
}
inline void stream_end() {
#if XENT_AVX512 || XENT_AVX2
  _mm_sfence();
#endif
}
