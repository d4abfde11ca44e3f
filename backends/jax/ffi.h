// The kernels as XLA custom calls. cpu/_native.pyi says what their operands are.
#pragma once

#include <vector>

namespace xent {

struct Handler {
  const char* name;
  void* function;
};
std::vector<Handler> handlers();

}  // namespace xent
