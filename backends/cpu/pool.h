// A few threads of our own. OpenMP's hang after a fork, and its libraries fight over who is loaded.
#pragma once

#include <cstdint>

namespace xent {

int max_threads();  // XENT_NUM_THREADS, else the CPUs this process may use
int threads_for(int wanted);  // 0: max_threads()

// Calls work(context, begin, end) until all of [0, units), not empty, is done, `chunk` units at a time, on at most `threads`
// (of threads_for) threads, the caller's among them. Who does which chunk is not fixed. While one call runs, another thread's
// is worked off on its own thread. A forked child starts with no threads and makes its own.
void parallel(int threads, int64_t units, int64_t chunk, void (*work)(void*, int64_t, int64_t), void* context);

}  // namespace xent
