// A thread pool. Not OpenMP: its threads hang after a fork, and several of its libraries conflict in one process.
#pragma once

#include <cstdint>

namespace xent {

int max_threads();  // XENT_NUM_THREADS, else the CPUs this process may use
int threads_for(int wanted);  // 0: max_threads()

// Calls work(context, begin, end) for all of [0, units), which is not empty, `chunk` units at a time, on at most
// `threads` (from threads_for) threads, the caller's among them. Which thread does which chunk is not fixed. A call
// that comes while another one runs uses its caller's thread alone. A forked child starts without threads and makes its
// own.
void parallel(int threads, int64_t units, int64_t chunk, void (*work)(void*, int64_t, int64_t), void* context);

}  // namespace xent
