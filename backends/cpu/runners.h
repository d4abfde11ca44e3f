// The kernels as function pointers, which _native hands to the library of TensorFlow's operators: they are not linked.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace xent {

struct Runners {
  size_t sizes[3];  // of the arguments' types, to check that both libraries are from the same sources
  double (*rows)(Rows, int threads);
  double (*sigmoid)(Sigmoid, int threads);
  double (*product)(Product, int threads);
};

}  // namespace xent
