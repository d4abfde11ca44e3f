// What the kernels take, and the table of them that each instruction set fills in.
#pragma once

#include <cstdint>
#include <optional>

namespace xent {

enum Dtype : int { kF32, kF64, kF16, kBF16 };  // an int, so that any value can be passed and checked
enum class Task { kForward, kBackward, kBoth };

constexpr int64_t kAbsent = -2, kInvalid = -1;  // marks in ids, as in xent/adapter.py

// Addresses as _native.pyi describes them; nullptr: not there.
struct Rows {
  Task task;
  Dtype dtype;
  int64_t outer, classes, inner;
  const void *x, *t, *u, *ids;
  bool wide;                          // ids are int64, not int32
  bool unmarked;                      // ids are a caller's own: negative ones are no marks, but invalid
  std::optional<int64_t> ignored;     // the id that is absent where ids are unmarked
  const void *a, *b, *c, *lse2;       // coefficients of loss, lse, smooth, lse^2
  double slope;                       // the same a for all rows, if that is null
  void *m, *s, *loss, *lse, *smooth;  // m and s go in where the task is kBackward
  void *gap_sum, *argmax;             // both or none, only of hard labels; argmax is as wide as ids
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
  double smoothing, scale;
  const void *x, *targets;
  Pattern pos_weight, weight;
  void *loss, *dx, *dz;
  double* sums;  // forward: the sum of weight * loss in each block
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

// As products.h describes them; the dtype is that of hidden and weight, all else is in the compute dtype.
struct Product {
  enum Task { kProject, kPull, kAccumulate } task;
  Dtype dtype;
  int64_t rows, features, classes;
  const void *hidden, *weight;
  void *x;        // output of kProject, the logits; input of the others, their derivative
  void *out;      // dh or dw
  void *scratch;  // of Kernels::product_scratch bytes
  int64_t strip;  // kPull: features of a unit
};

// Work is cut into units whose results do not depend on the thread: a row, a tile of rows, a block of elements.
struct Kernels {
  const char* isa;
  int64_t (*row_units)(const Rows&);
  void (*rows)(const Rows&, int64_t begin, int64_t end);
  void (*sigmoid)(const Sigmoid&, int64_t begin, int64_t end);
  void (*entropy)(const Entropy&, int64_t begin, int64_t end);
  int64_t (*product_units)(Product&, int threads);  // also sets the strip
  int64_t (*product_scratch)(const Product&);       // bytes
  void (*prepare)(const Product&);                  // before the first unit
  void (*product)(const Product&, int64_t begin, int64_t end);
};

// Memory of the calling thread, which keeps it; nullptr if there is none. It is to fit into a core's cache.
constexpr int64_t kThreadScratch = 1 << 19;
void* thread_scratch();

const Kernels* kernels();                 // the one in use
const Kernels* const* available(int* n);  // those that this machine can run, best first

}  // namespace xent
