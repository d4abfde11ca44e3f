// From a description of the work to the kernels: how it is cut up, when it is worth a second thread, which output is
// written past the caches. What module.cpp and ffi.cpp both call.
#pragma once

#include "kernels.h"

namespace xent {

double cost(const Rows& k);  // rough, in elements of float32
double cost(const Sigmoid& k);
double cost(const Product& k);
bool spreads(double cost);  // over more than one thread, unless fewer are asked for
double run(Rows k, int threads);     // the sum of the losses, if it is wanted
double run(Sigmoid k, int threads);  // the sum of w * loss; 0 backward
double run(Product k, int threads);  // 0

}  // namespace xent
