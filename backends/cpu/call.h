// From a description of the work to the kernels: whether it can be, how it is cut up, when it is worth a second thread,
// which output is written past the caches. What module.cpp, jax/ffi.cpp and tensorflow/operators.cpp all call.
#pragma once

#include <stdexcept>

#include "kernels.h"

namespace xent {

// In every build: a wrong size or address would reach memory that was never passed. Python sees a ValueError.
inline void require(bool holds, const char* sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

inline int64_t size_of(Dtype dtype) { return dtype == kF64 ? 8 : dtype == kF32 ? 4 : 2; }

double cost(const Rows& k);  // rough, in elements of float32
double cost(const Sigmoid& k);
double cost(const Entropy& k);
double cost(const Product& k);
bool spreads(double cost);  // over more than one thread, unless fewer are asked for

// These throw std::invalid_argument where sizes, dtype or addresses cannot be. Work without elements is done at once.
double run(Rows k, int threads);     // the sum of the losses, if it is wanted
double run(Sigmoid k, int threads);  // the sum of w * loss; 0 backward
double run(Entropy k, int threads);  // 0
double run(Product k, int threads);  // 0

}  // namespace xent
