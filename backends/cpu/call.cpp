#include "call.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>

#include "pool.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace xent {

namespace baseline {
extern const Kernels table;
}
#if defined(XENT_X86)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

// Measured on 2 virtual cores of a Zen 5: two threads took 1.2 to 1.5 times as long as one for 2^17 to 2^18 elements, 0.93
// for 2^19, 0.75 for 2^20.
constexpr double kAlone = 1 << 19;
constexpr double kChunk = 1 << 17;

// Output larger than this is written past the caches where its memory is there already: the lines would be read first
// for nothing (36 ms or 19 ms for 524 MB). Where it is fresh, the kernel has just zeroed them in the cache, and a write
// past it costs twice as much (69 ms or 125 ms).
constexpr int64_t kStreamBytes = 8 << 20;
constexpr int64_t kHugeBytes = 4 << 20, kPage = 2 << 20;

// Two threads that touch a fresh 2 MB page at the same time both have one zeroed, and one of the two is thrown away: all
// pages, where the threads' parts are smaller than pages (62 ms or 56 ms for 524 MB). So each takes some pages at a time.
constexpr double kFreshChunk = 8 << 20;

int64_t size_of(Dtype dtype) { return dtype == kF64 ? 8 : dtype == kF32 ? 4 : 2; }

// Fresh memory costs more to get, 4 kB at a time, than to write. Ask for 2 MB pages before it is touched; memory that is
// there already keeps its pages.
void ask_for_huge_pages(void* p, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t mask = kPage - 1;
  uintptr_t begin = (reinterpret_cast<uintptr_t>(p) + mask) & ~mask;
  uintptr_t end = (reinterpret_cast<uintptr_t>(p) + uintptr_t(bytes)) & ~mask;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

void huge_pages(void* p, int64_t bytes) {
  if (p && bytes >= kHugeBytes) ask_for_huge_pages(p, bytes);
}

// What is to stay in a core's cache lies in one page: of many small ones, wherever the system had them, some fall on the
// same sets (the same loss and gradients of linear_ce took 2.0 s in one process and 2.2 in the next).
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : bytes_(size_t(bytes + 2 * kPage)) {
#if defined(__linux__)
    if (bytes >= kPage / 8) {  // straight from the system: what malloc had before keeps its small pages
      void* found = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (found != MAP_FAILED) {
        mapped_ = found;
        p_ = next(found, kPage);
        ask_for_huge_pages(found, int64_t(bytes_));
        return;
      }
    }
#endif
    own_.reset(new char[size_t(bytes + kLine)]);
    p_ = next(own_.get(), kLine);
  }
  ~Scratch() {
#if defined(__linux__)
    if (mapped_) munmap(mapped_, bytes_);
#endif
  }
  Scratch(const Scratch&) = delete;
  void* get() const { return p_; }

 private:
  static constexpr int64_t kLine = 64;
  static void* next(void* p, int64_t step) {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(p) + uintptr_t(step) - 1) & ~uintptr_t(step - 1));
  }
  size_t bytes_;
  void *mapped_ = nullptr, *p_;
  std::unique_ptr<char[]> own_;
};

// Whether the middle of a buffer has memory yet
bool touched(void* p, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 1 << 16;  // a multiple of any machine's smallest
  unsigned char present[16] = {};
  uintptr_t middle = (reinterpret_cast<uintptr_t>(p) + uintptr_t(bytes) / 2) & ~(page - 1);
  return mincore(reinterpret_cast<void*>(middle), 1, present) == 0 && (present[0] & 1);
#else
  (void)p, (void)bytes;
  return false;
#endif
}

// What a kernel is about to write, where it is large: is its memory there already?
struct Output {
  bool streamed;
  int64_t fresh;  // bytes, if it is not
  Output(void* p, int64_t bytes) {
    bool large = p && bytes >= kStreamBytes;
    streamed = large && touched(p, bytes);
    fresh = large && !streamed ? bytes : 0;
  }
};

bool supported(const char* isa) {
#if defined(XENT_X86)
  __builtin_cpu_init();
  if (!std::strcmp(isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!std::strcmp(isa, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  (void)isa;
  return true;
}

struct Choice {
  const Kernels* all[3];
  int n = 0;
  const Kernels* best;

  Choice() {
#if defined(XENT_X86)
    for (const Kernels* k : {&avx512::table, &avx2::table}) {
      if (supported(k->isa)) all[n++] = k;
    }
#endif
    all[n++] = &baseline::table;
    best = all[0];
    if (const char* wanted = std::getenv("XENT_ISA")) {
      for (int i = 0; i < n; ++i) {
        if (!std::strcmp(all[i]->isa, wanted)) best = all[i];
      }
    }
  }
};

const Choice& choice() {
  static const Choice made;
  return made;
}

// Of blocks' sums, by two-sum: as good for 10^9 elements as for 10
struct Total {
  double high = 0, low = 0;
  void add(double v) {
    double sum = high + v, moved = sum - high;
    low += (high - (sum - moved)) + (v - moved);
    high = sum;
  }
  double value() const { return low == low ? high + low : high; }  // inf - inf: the sum is infinite all the same
};

// In a block, eight at a time, so that none waits for the last
template <class T>
double sum(const T* p, int64_t n) {
  constexpr int64_t block = 64;
  Total total;
  for (int64_t i = 0; i < n;) {
    int64_t end = std::min(n, i + block);
    double part[8] = {};
    for (; i + 8 <= end; i += 8) {
      for (int k = 0; k < 8; ++k) part[k] += double(p[i + k]);
    }
    for (; i < end; ++i) part[0] += double(p[i]);
    total.add(((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7])));
  }
  return total.value();
}

template <class K>
struct Call {
  const K* k;
  void (*kernel)(const K&, int64_t, int64_t);
  static void work(void* self, int64_t begin, int64_t end) {
    auto* call = static_cast<Call*>(self);
    call->kernel(*call->k, begin, end);
  }
};

template <class K>
void spread(const K& k, void (*kernel)(const K&, int64_t, int64_t), int64_t units, double cost, int64_t fresh,
            int threads) {
  if (units == 0) return;
  threads = cost < kAlone ? 1 : threads_for(threads);
  Call<K> call{&k, kernel};
  double part = kChunk / cost;  // of the whole
  if (fresh) part = std::max(part, std::min(kFreshChunk / double(fresh), 1.0 / (4 * threads)));
  double chunk = part * double(units);
  parallel(threads, units, chunk < 1 ? 1 : chunk > double(units) ? units : int64_t(chunk), Call<K>::work, &call);
}

}  // namespace

const Kernels* kernels() { return choice().best; }
const Kernels* const* available(int* n) {
  *n = choice().n;
  return choice().all;
}

double cost(const Rows& k) {
  double visits = (k.task != Task::kBackward) + (k.dx != nullptr) + (k.dt != nullptr);
  return double(k.outer * k.inner) * (double(k.classes) + 32) * visits * (k.dtype == kF64 ? 3 : 1);
}

double cost(const Sigmoid& k) { return double(k.n) * (k.dtype == kF64 ? 6 : 2); }

double cost(const Product& k) {
  return double(k.rows) * double(k.features) * double(k.classes) * (k.dtype == kF64 ? 2 : 1) / 16;
}

bool spreads(double cost) { return cost >= kAlone && threads_for(0) > 1; }

double run(Rows k, int threads) {
  int64_t bytes = k.outer * k.classes * k.inner * size_of(k.dtype);
  Output dx(k.dx, bytes);
  k.streaming = dx.streamed;
  huge_pages(k.dx, bytes);
  huge_pages(k.dt, k.dtype == kF64 || k.dtype == kF32 ? bytes : 2 * bytes);
  int64_t rows = k.outer * k.inner;
  std::unique_ptr<double[]> losses;
  if (k.summed) losses.reset(new double[size_t(rows)]), k.loss = losses.get();
  spread(k, kernels()->rows, kernels()->row_units(k), cost(k), dx.fresh, threads);
  if (!k.summed) return 0;
  return k.dtype == kF64 ? sum(losses.get(), rows) : sum(reinterpret_cast<const float*>(losses.get()), rows);
}

double run(Sigmoid k, int threads) {
  int64_t units = (k.n + kSigmoidBlock - 1) / kSigmoidBlock, wide = k.dtype == kF64 ? 8 : 4;
  huge_pages(k.loss, k.n * wide);
  huge_pages(k.dz, k.n * wide);
  huge_pages(k.dx, k.n * size_of(k.dtype));
  Output dx(k.dx, k.n * size_of(k.dtype));
  k.streaming = dx.streamed;
  std::unique_ptr<double[]> sums;
  double one[8];
  if (!k.backward && units > 8) sums.reset(new double[size_t(units)]);
  k.sums = sums ? sums.get() : one;
  spread(k, kernels()->sigmoid, units, cost(k), dx.fresh, threads);
  if (k.backward) return 0;
  Total total;
  for (int64_t i = 0; i < units; ++i) total.add(k.sums[i]);
  return total.value();
}

double run(Product k, int threads) {
  int64_t units = kernels()->product_units(k, threads_for(threads));
  if (k.rows == 0 || k.features == 0) units = 0;
  Scratch scratch(kernels()->product_scratch(k));
  k.scratch = scratch.get();
  kernels()->prepare(k);
  spread(k, kernels()->product, units, cost(k), 0, threads);
  return 0;
}

}  // namespace xent
