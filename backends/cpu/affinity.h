// Where threads of this process may run. OpenMP, told to bind its threads, binds the one that loads it, too, and what
// that one starts would share its processor.
#pragma once

#include <thread>
#include <vector>

namespace xent {

std::vector<int> processors();  // none: not known
int here();                     // the one that this runs on, for now; -1: not known

void bind(std::thread& started, int processor);
void unbind(std::thread& started);

}  // namespace xent
