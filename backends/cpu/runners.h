// The kernels for a library that is not linked with them: what _native hands to the operators of TensorFlow's graphs.
#pragma once

#include "kernels.h"

namespace xent {

struct Runners {
  double (*rows)(Rows, int threads);
  double (*sigmoid)(Sigmoid, int threads);
  double (*product)(Product, int threads);
};

}  // namespace xent
