// Where threads of this process may run. If OpenMP is told to bind its threads, it also binds the thread that loads it,
// and threads started by that one would all share its processor.
#pragma once

#include <thread>
#include <vector>

namespace xent {

std::vector<int> processors();  // empty: not known
int here();                     // the processor of the calling thread, at the moment; -1: not known

void bind(std::thread& started, int processor);
void unbind(std::thread& started);

}  // namespace xent
