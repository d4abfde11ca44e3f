// Where threads of this process may run. OpenMP, told to bind its threads, binds the one that loads it, too, and what
// that one starts would share its processor.
#pragma once

#include <thread>

namespace xent {

int processors();  // how many; 0: not known

void unbind(std::thread& started);

}  // namespace xent
