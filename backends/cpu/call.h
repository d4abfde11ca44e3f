// From a description of the work to the kernels: checks it, cuts it into parts, decides on the number of threads and
// which output is written past the caches. Called by module.cpp, jax/ffi.cpp and tensorflow/operators.cpp.
#pragma once

#include <stdexcept>

#include "kernels.h"

namespace xent {

// Checked in every build: a wrong size or address would reach memory that was not passed. A ValueError in Python.
inline void require(bool holds, const char* sentence) {
  if (!holds) throw std::invalid_argument(sentence);
}

inline int64_t size_of(Dtype dtype) { return dtype == kF64 ? 8 : dtype == kF32 ? 4 : 2; }

double cost(const Rows& k);  // rough, in elements of float32
double cost(const Sigmoid& k);
double cost(const Entropy& k);
double cost(const Product& k);
bool spreads(double cost);  // whether it is worth more than one thread

void check(const Rows& k);  // what `run` begins with, for callers that read arrays themselves before it

// These throw std::invalid_argument for impossible sizes, dtypes or addresses. Work without elements returns at once.
double run(Rows k, int threads);     // the sum of the losses, if it is wanted
double run(Sigmoid k, int threads);  // the sum of w * loss; 0 backward
double run(Entropy k, int threads);  // 0
double run(Product k, int threads);  // 0

}  // namespace xent
