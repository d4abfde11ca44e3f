#include "call.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>

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

// Measured on 2 virtual cores of a Zen 5: two threads took 1.2 to 1.5 times as long as one for 2^17 to 2^18 elements,
// 0.93 for 2^19, 0.75 for 2^20.
constexpr double kAlone = 1 << 19;
constexpr double kChunk = 1 << 17;

// Output larger than this is written past the caches if its memory has been used before: an ordinary store would first
// read the line (524 MB take 36 ms, and 19 ms past the caches). The operating system has just zeroed fresh memory in
// the cache, where a write past it takes twice as long (69 ms, and 125 ms).
constexpr int64_t kStreamBytes = 8 << 20;
constexpr int64_t kHugeBytes = 4 << 20, kPage = 2 << 20;

// If two threads touch a fresh 2 MB page at once, the system zeroes two pages and throws one away; with parts smaller
// than a page that happens to all of them (524 MB take 62 ms instead of 56). So each thread takes several pages at a
// time.
constexpr double kFreshChunk = 8 << 20;

// Getting fresh memory in pages of 4 kB takes longer than writing to it, so 2 MB pages are asked for before it is
// touched. Memory that was touched before keeps its pages.
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

// Memory that is to stay in a core's cache, in one huge page: of many small pages, some would share sets of the cache,
// by chance (the same loss and gradients of linear_ce took 2.0 s in one process and 2.2 s in the next).
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : bytes_(size_t(bytes + 2 * kPage)) {
#if defined(__linux__)
    if (bytes >= kPage / 8) {  // not by malloc, which may reuse memory in small pages
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

// Whether the page in the middle of a buffer has been touched
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

// Whether a large output goes to memory that was touched before, and is streamed, or to fresh memory
struct Output {
  bool streamed;
  int64_t fresh;  // bytes of fresh memory, else 0
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

struct Available {
  const Kernels* all[3];
  int n = 0;

  Available() {
#if defined(XENT_X86)
    for (const Kernels* k : {&avx512::table, &avx2::table}) {
      if (supported(k->isa)) all[n++] = k;
    }
#endif
    all[n++] = &baseline::table;
  }
};

const Kernels* chosen() {
  int n;
  auto* all = available(&n);
  const char* wanted = std::getenv("XENT_ISA");
  if (!wanted || !*wanted) return all[0];
  for (int i = 0; i < n; ++i) {
    if (!std::strcmp(all[i]->isa, wanted)) return all[i];
  }
  throw std::invalid_argument("xent: there are no kernels for XENT_ISA=" + std::string(wanted));
}

// ---- checks of sizes and addresses

// Whether so many elements of 8 bytes can exist, with room for a kernel to round sizes up
bool can_be(std::initializer_list<int64_t> sizes) {
  int64_t most = int64_t(1) << 58;
  for (int64_t n : sizes) {
    if (n < 0) return false;
    if (n) most /= n;
  }
  return most > 0;
}

void check_dtype(Dtype dtype) { require(dtype >= kF32 && dtype <= kBF16, "xent: unknown dtype"); }

void check_sizes(const Rows& k) {
  check_dtype(k.dtype);
  require(k.classes > 0, "xent: rows without classes");
  require(can_be({k.outer, k.classes, k.inner}), "xent: impossible sizes of logits");
}

void check_arrays(const Rows& k) {
  require(k.x, "xent: logits are missing");
  require(k.t || k.ids, "xent: labels are missing");
  require(k.u || !k.c, "xent: smoothing's weights are missing");
  require(k.t || !k.dt, "xent: soft labels are missing");
  require(!k.gap_sum == !k.argmax && !(k.argmax && (k.t || k.task == Task::kBackward)),
          "xent: gap_sum and argmax go together, with hard labels");
  switch (k.task) {
    case Task::kForward: return require((k.m && k.s && k.loss) || k.summed, "xent: memory for results is missing");
    case Task::kBackward: return require(k.m && k.s && k.a, "xent: statistics or coefficients are missing");
    case Task::kBoth: return require(k.dx && !k.dt && (k.a || k.summed), "xent: memory or coefficients are missing");
  }
}

void check_sizes(const Sigmoid& k) {
  check_dtype(k.dtype);
  require(can_be({k.n}), "xent: impossible sizes of logits");
  for (const Pattern* p : {&k.pos_weight, &k.weight}) {
    require(!p->at || (p->length > 0 && p->inner > 0), "xent: impossible sizes of a weight");
  }
}

void check_arrays(const Sigmoid& k) { require(k.x && k.targets, "xent: logits or labels are missing"); }

void check_sizes(const Entropy& k) {
  check_dtype(k.dtype);
  require(k.classes > 0, "xent: rows without classes");
  require(can_be({k.rows, k.classes}), "xent: impossible sizes of logits");
}

void check_arrays(const Entropy& k) {
  require(k.x, "xent: logits are missing");
  require(k.h || k.dx, "xent: memory for results is missing");
}

void check_sizes(const Product& k) {
  check_dtype(k.dtype);
  require(k.features > 0 && k.classes > 0, "xent: matrices without features or classes");
  bool possible = can_be({k.rows, k.features}) && can_be({k.classes, k.features}) && can_be({k.rows, k.classes});
  require(possible, "xent: impossible sizes of matrices");
}

void check_arrays(const Product& k) {
  bool given = (k.hidden || k.task == Product::kPull) && (k.weight || k.task == Product::kAccumulate);
  require(given && k.x && (k.out || k.task == Product::kProject), "xent: a matrix is missing");
}

// A sum of block sums by two-sum, as accurate for 10^9 elements as for 10
struct Total {
  double high = 0, low = 0;
  void add(double v) {
    double sum = high + v, moved = sum - high;
    low += (high - (sum - moved)) + (v - moved);
    high = sum;
  }
  double value() const { return low == low ? high + low : high; }  // inf - inf: the sum is infinite all the same
};

// Eight running totals in a block, so that additions do not wait for each other
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
  threads = cost < kAlone ? 1 : threads_for(threads);
  Call<K> call{&k, kernel};
  double part = kChunk / cost;  // of the whole
  if (fresh) part = std::max(part, std::min(kFreshChunk / double(fresh), 1.0 / (4 * threads)));
  double chunk = part * double(units);
  parallel(threads, units, chunk < 1 ? 1 : chunk > double(units) ? units : int64_t(chunk), Call<K>::work, &call);
}

}  // namespace

void* thread_scratch() {
  try {
    static thread_local const Scratch own(kThreadScratch);
    return own.get();
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

const Kernels* kernels() {
  static const Kernels* const best = chosen();
  return best;
}
const Kernels* const* available(int* n) {
  static const Available found;
  *n = found.n;
  return found.all;
}

double cost(const Rows& k) {
  double visits = (k.task != Task::kBackward) + (k.dx != nullptr) + (k.dt != nullptr);
  return double(k.outer) * double(k.inner) * (double(k.classes) + 32) * visits * (k.dtype == kF64 ? 3 : 1);
}

double cost(const Sigmoid& k) { return double(k.n) * (k.dtype == kF64 ? 6 : 2); }

double cost(const Entropy& k) {
  return double(k.rows) * (double(k.classes) + 32) * (k.dx ? 3 : 2) * (k.dtype == kF64 ? 3 : 1);
}

double cost(const Product& k) {
  return double(k.rows) * double(k.features) * double(k.classes) * (k.dtype == kF64 ? 2 : 1) / 16;
}

bool spreads(double cost) { return cost >= kAlone && threads_for(0) > 1; }

void check(const Rows& k) {
  check_sizes(k);
  if (k.outer && k.inner) check_arrays(k);
}

double run(Rows k, int threads) {
  check(k);
  if (k.outer == 0 || k.inner == 0) return 0;
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
  check_sizes(k);
  if (k.n == 0) return 0;
  check_arrays(k);
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

double run(Entropy k, int threads) {
  check_sizes(k);
  if (k.rows == 0) return 0;
  check_arrays(k);
  int64_t bytes = k.rows * k.classes * size_of(k.dtype);
  huge_pages(k.dx, bytes);
  spread(k, kernels()->entropy, k.rows, cost(k), Output(k.dx, bytes).fresh, threads);
  return 0;
}

double run(Product k, int threads) {
  check_sizes(k);
  if (k.rows == 0) return 0;
  check_arrays(k);
  int64_t units = kernels()->product_units(k, threads_for(threads));
  Scratch scratch(kernels()->product_scratch(k));
  k.scratch = scratch.get();
  kernels()->prepare(k);
  spread(k, kernels()->product, units, cost(k), 0, threads);
  return 0;
}

}  // namespace xent
