// Vectors for compilers without GNU vector extensions: arrays with loops. Included by vectors.h.

template <class T, int N>
struct Lanes {
  T lane[N];
  Lanes() : lane{} {}
  Lanes(T value) {
    for (int k = 0; k < N; ++k) lane[k] = value;
  }
  T& operator[](int k) { return lane[k]; }
  T operator[](int k) const { return lane[k]; }

#define XENT_BINARY(op)                                                    \
  friend Lanes operator op(Lanes a, Lanes b) {                             \
    for (int k = 0; k < N; ++k) a.lane[k] = T(a.lane[k] op b.lane[k]);     \
    return a;                                                              \
  }
  XENT_BINARY(+) XENT_BINARY(-) XENT_BINARY(*) XENT_BINARY(/)
  XENT_BINARY(&) XENT_BINARY(|) XENT_BINARY(<<) XENT_BINARY(>>)
#undef XENT_BINARY

  using Mask = Lanes<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, N>;
#define XENT_COMPARE(op)                                                   \
  friend Mask operator op(Lanes a, Lanes b) {                              \
    Mask mask;                                                             \
    for (int k = 0; k < N; ++k) mask.lane[k] = a.lane[k] op b.lane[k] ? -1 : 0; \
    return mask;                                                           \
  }
  XENT_COMPARE(==) XENT_COMPARE(!=) XENT_COMPARE(<) XENT_COMPARE(>) XENT_COMPARE(>=)
#undef XENT_COMPARE

  Lanes operator~() const {
    Lanes v;
    for (int k = 0; k < N; ++k) v.lane[k] = T(~lane[k]);
    return v;
  }
  Lanes& operator+=(Lanes b) { return *this = *this + b; }
};

template <class T, int N>
using Pack = Lanes<T, N>;

template <class To, class T, int N>
inline To convert(Lanes<T, N> v) {
  To to;
  for (int k = 0; k < N; ++k) to.lane[k] = static_cast<std::decay_t<decltype(to.lane[0])>>(v.lane[k]);
  return to;
}
template <class M, class V>
inline V select(M mask, V yes, V no) {
  for (int k = 0; k < int(sizeof mask.lane / sizeof mask.lane[0]); ++k) no.lane[k] = mask.lane[k] ? yes.lane[k] : no.lane[k];
  return no;
}
