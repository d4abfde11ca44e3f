// The kernels for a library that is not linked with them: what _native hands to the operators of TensorFlow's graphs.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace xent {

struct Runners {
  size_t sizes[3];  // of what these take, by which the two libraries know that they are of one build
  double (*rows)(Rows, int threads);
  double (*sigmoid)(Sigmoid, int threads);
  double (*product)(Product, int threads);
};

}  // namespace xent
