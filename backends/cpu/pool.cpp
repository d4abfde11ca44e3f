#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "affinity.h"

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace xent {
namespace {

constexpr int kMost = 256;

// IEEE arithmetic during its lifetime. Threads of XLA and TensorFlow flush subnormal numbers to zero, PyTorch's can be
// told to, and threads inherit that from the thread that starts them: the same logits would have different losses.
class Ieee {
#if defined(__SSE2__) || defined(_M_X64)
 public:
  Ieee() { _mm_setcsr(0x1f80); }
  ~Ieee() { _mm_setcsr(before_); }

 private:
  unsigned before_ = _mm_getcsr();
#elif defined(__aarch64__) && defined(__GNUC__)
 public:
  Ieee() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(uint64_t(0)));
  }
  ~Ieee() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  uint64_t before_;
#endif
};

struct Job {
  int64_t units, chunk;
  void (*work)(void*, int64_t, int64_t);
  void* context;
};

// If a call uses all processors, each has a helper that is bound to it, but for the caller's processor. Without
// binding, Linux wakes a thread where it ran last, even if the caller runs there: calls of 1.6 ms took 2.9 ms on two
// processors, one of them idle.
struct Helper {
  std::condition_variable start;
  int processor = -1;  // any
  bool called = false;
};

class Pool {
 public:
  // The caller holds `busy`.
  void run(int helpers, const Job& job) {
    Helper* called[kMost];
    int n;
    {
      std::lock_guard lock(mutex_);
      n = choose(helpers, called);
      job_ = job;
      next_.store(0, std::memory_order_relaxed);
      for (int i = 0; i < n; ++i) called[i]->called = true;
    }
    for (int i = 0; i < n; ++i) called[i]->start.notify_one();
    take_chunks();
    std::unique_lock lock(mutex_);
    for (int i = 0; i < n; ++i) called[i]->called = false;  // a helper that has not started need not
    done_.wait(lock, [&] { return at_work_ == 0; });
  }

  std::mutex busy;

 private:
  using Helpers = std::vector<std::unique_ptr<Helper>>;

  int choose(int wanted, Helper** called) {
    bool everywhere = wanted + 1 == int(places_.size());
    int own = everywhere ? here() : -1, n = 0;
    Helpers& some = everywhere ? at_home_ : roaming_;
    for (size_t i = 0; n < wanted && (i < some.size() || start(some, everywhere)); ++i) {
      if (some[i]->processor != own || own < 0) called[n++] = some[i].get();
    }
    return n;
  }

  bool start(Helpers& some, bool at_home) {
    if (at_home && some.size() == places_.size()) return false;
    some.push_back(std::make_unique<Helper>());
    Helper* helper = some.back().get();
    if (at_home) helper->processor = places_[some.size() - 1];
    try {
      std::thread one(&Pool::help, this, helper);
      at_home ? bind(one, helper->processor) : unbind(one);
      one.detach();
      return true;
    } catch (const std::system_error&) {  // no more threads can be made: go on with fewer
      some.pop_back();
      return false;
    }
  }

  void help(Helper* self) {
    std::unique_lock lock(mutex_);
    for (;;) {
      self->start.wait(lock, [&] { return self->called; });
      self->called = false;
      ++at_work_;
      lock.unlock();
      take_chunks();
      lock.lock();
      if (--at_work_ == 0) done_.notify_one();
    }
  }

  void take_chunks() {
    Ieee ieee;
    for (;;) {
      int64_t begin = next_.fetch_add(job_.chunk, std::memory_order_relaxed);
      if (begin >= job_.units) return;
      job_.work(job_.context, begin, begin + job_.chunk < job_.units ? begin + job_.chunk : job_.units);
    }
  }

  std::mutex mutex_;
  std::condition_variable done_;
  Job job_{};
  std::atomic<int64_t> next_{0};
  int at_work_ = 0;
  const std::vector<int> places_ = processors();
  Helpers at_home_, roaming_;
};

// Never destroyed: its threads may outlive main, and a forked child's copy of it may have locked mutexes.
std::atomic<Pool*> current{nullptr};

Pool& pool() {
  Pool* now = current.load(std::memory_order_acquire);
  if (now) return *now;
  Pool* made = new Pool;
  if (current.compare_exchange_strong(now, made, std::memory_order_acq_rel)) {
#if !defined(_WIN32)
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); }); });
#endif
    return *made;
  }
  delete made;
  return *now;
}

int usable_cpus() {
  if (const char* given = std::getenv("XENT_NUM_THREADS")) {
    long n = std::strtol(given, nullptr, 10);
    if (n > 0) return n < kMost ? int(n) : kMost;
  }
  if (int n = int(processors().size())) return n;
  int n = int(std::thread::hardware_concurrency());
  return n > 0 ? n : 1;
}

}  // namespace

int max_threads() {
  static const int n = usable_cpus();
  return n < kMost ? n : kMost;
}

int threads_for(int wanted) { return wanted <= 0 ? max_threads() : wanted < kMost ? wanted : kMost; }

void parallel(int threads, int64_t units, int64_t chunk, void (*work)(void*, int64_t, int64_t), void* context) {
  int64_t chunks = (units + chunk - 1) / chunk;
  if (threads > chunks) threads = int(chunks);
  if (threads > 1) {
    Pool& here = pool();
    std::unique_lock alone(here.busy, std::try_to_lock);
    if (alone) return here.run(threads - 1, {units, chunk, work, context});
  }
  Ieee ieee;
  work(context, 0, units);
}

}  // namespace xent
