// What the kernels take, and the table of them that each instruction set fills in.
#pragma once

#include <cstdint>

namespace xent {

enum Dtype : int { kF32, kF64, kF16, kBF16 };  // int: a wrong one may come in, and is refused
enum class Task { kForward, kBackward, kBoth };

constexpr int64_t kAbsent = -2, kInvalid = -1;  // marks in ids, as in xent/adapter.py

// Addresses as _native.pyi describes them; nullptr: not there.
struct Rows {
  Task task;
  Dtype dtype;
  int64_t outer, classes, inner;
  const void *x, *t, *u, *ids;
  bool wide;                          // ids are int64, not int32
  const void *a, *b, *c, *z;          // coefficients of loss, lse, smooth, lse^2
  double slope;                       // every row's a, where that is null
  void *m, *s, *loss, *lse, *smooth;  // m and s go in where the task is kBackward
  void *dx, *dt;
  bool summed;     // the losses are wanted in one sum, not in `loss`
  bool streaming;  // dx is larger than the caches
};

// Element i of a pattern is at[(i / inner) % length]; nullptr: ones.
struct Pattern {
  const void* at;
  int64_t length, inner;
};

struct Sigmoid {
  Dtype dtype;
  int64_t n;
  double e, scale;
  const void *x, *z;
  Pattern p, w;
  void *loss, *dx, *dz;
  double* sums;  // forward: one of w * loss for each block
  bool backward, streaming;
};
constexpr int64_t kSigmoidBlock = 4096;

// Of rows whose classes lie side by side. w: each row's weight; nullptr: 1. Where it is 0, h and dx are.
struct Entropy {
  Dtype dtype;
  int64_t rows, classes;
  const void *x, *w;
  void *h, *dx;  // nullptr: not wanted
};

// As products.h describes them; the dtype is that of h and w, everything else is in the compute dtype.
struct Product {
  enum Task { kProject, kPull, kAccumulate } task;
  Dtype dtype;
  int64_t rows, features, classes;
  const void *h, *w;
  void *x;        // the logits, out of kProject; their derivative, into the others
  void *out;      // dh or dw
  void *scratch;  // Kernels::scratch bytes of it
  int64_t strip;  // kPull: features to a unit
};

// Work comes in units that do not depend on who does them: a row, a tile of rows beside each other, a block of elements.
struct Kernels {
  const char* isa;
  int64_t (*row_units)(const Rows&);
  void (*rows)(const Rows&, int64_t begin, int64_t end);
  void (*sigmoid)(const Sigmoid&, int64_t begin, int64_t end);
  void (*entropy)(const Entropy&, int64_t begin, int64_t end);
  int64_t (*product_units)(Product&, int threads);  // and how wide a strip is
  int64_t (*product_scratch)(const Product&);       // bytes
  void (*prepare)(const Product&);                  // before the first unit
  void (*product)(const Product&, int64_t begin, int64_t end);
};

// In the order of preference; null where this build has none.
const Kernels* kernels();                 // the one in use
const Kernels* const* available(int* n);  // those this machine runs

}  // namespace xent
