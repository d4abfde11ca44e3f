// The Python module `_native`: integers and addresses in, kernels called. _native.pyi says what each argument is.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstring>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

#include "call.h"
#include "../jax/ffi.h"
#include "pool.h"
#include "runners.h"

namespace nb = nanobind;
using namespace xent;
using Int = int64_t;
using Address = uintptr_t;
using namespace nb::literals;

namespace {

std::mutex one_at_a_time;  // for in_turn

void* at(Address address) { return reinterpret_cast<void*>(address); }

// Before Python 3.14, a daemon thread that asks for the GIL while the interpreter exits is ended by unwinding its
// stack. If C++ frames are on it, that ends the process. Such a thread waits here for ever instead, as it does since
// 3.14.
void take_gil_back(PyThreadState* state) {
#if defined(__GLIBCXX__)
  try {
    PyEval_RestoreThread(state);
  } catch (abi::__forced_unwind&) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
#else
  PyEval_RestoreThread(state);
#endif
}

template <class K>
double without_gil(const K& k, double cost, int threads) {
  if (cost < 1 << 13) return run(k, threads);  // less than releasing the GIL would cost
  double result = 0;
  std::exception_ptr failed;
  PyThreadState* state = PyEval_SaveThread();
  try {
    result = run(k, threads);
  } catch (...) {
    failed = std::current_exception();
  }
  take_gil_back(state);
  if (failed) std::rethrow_exception(failed);
  return result;
}

Rows rows(Task task, int dtype, Int outer, Int classes, Int inner, bool wide, Address x, Address t, Address u,
          Address ids) {
  Rows k{};
  k.task = task;
  k.dtype = Dtype(dtype);
  k.outer = outer, k.classes = classes, k.inner = inner, k.wide = wide;
  k.x = at(x), k.t = at(t), k.u = at(u), k.ids = at(ids);
  return k;
}

void rows_forward(int dtype, Int outer, Int classes, Int inner, bool wide, int threads, Address x, Address t, Address u,
                  Address ids, Address m, Address s, Address loss, Address lse, Address smooth, Address gap_sum,
                  Address argmax) {
  Rows k = rows(Task::kForward, dtype, outer, classes, inner, wide, x, t, u, ids);
  k.m = at(m), k.s = at(s), k.loss = at(loss), k.lse = at(lse), k.smooth = at(smooth);
  k.gap_sum = at(gap_sum), k.argmax = at(argmax);
  without_gil(k, cost(k), threads);
}

void rows_backward(int dtype, Int outer, Int classes, Int inner, bool wide, int threads, Address x, Address t, Address u,
                   Address ids, Address m, Address s, Address a, Address b, Address c, Address dx, Address dt) {
  Rows k = rows(Task::kBackward, dtype, outer, classes, inner, wide, x, t, u, ids);
  k.m = at(m), k.s = at(s), k.a = at(a), k.b = at(b), k.c = at(c), k.dx = at(dx), k.dt = at(dt);
  without_gil(k, cost(k), threads);
}

void rows_both(int dtype, Int outer, Int classes, Int inner, bool wide, int threads, Address x, Address t, Address u,
               Address ids, Address a, Address z, Address c, Address loss, Address lse, Address smooth, Address m,
               Address s, Address gap_sum, Address argmax, Address dx) {
  Rows k = rows(Task::kBoth, dtype, outer, classes, inner, wide, x, t, u, ids);
  k.a = at(a), k.lse2 = at(z), k.c = at(c), k.dx = at(dx);
  k.loss = at(loss), k.lse = at(lse), k.smooth = at(smooth), k.m = at(m), k.s = at(s);
  k.gap_sum = at(gap_sum), k.argmax = at(argmax);
  without_gil(k, cost(k), threads);
}

double mean_both(int dtype, Int outer, Int classes, Int inner, bool wide, double n, int threads, Address x, Address t,
                 Address u, Address ids, Address dx) {
  Rows k = rows(Task::kBoth, dtype, outer, classes, inner, wide, x, t, u, ids);
  k.slope = 1 / n, k.dx = at(dx), k.summed = true;
  return without_gil(k, cost(k), threads) / n;
}

// How many of n class ids fulfil a condition
template <class Id, class Condition>
Int count(const void* ids, Int n, Condition condition) {
  Int found = 0;
  for (Int i = 0; i < n; ++i) {
    Id id;
    std::memcpy(&id, static_cast<const char*>(ids) + i * Int(sizeof(Id)), sizeof(Id));  // aligned or not
    found += condition(Int(id));
  }
  return found;
}
template <class Condition>
Int count(const Rows& k, Condition condition) {
  Int n = k.outer * k.inner;
  return k.wide ? count<Int>(k.ids, n, condition) : count<int32_t>(k.ids, n, condition);
}

std::optional<double> mean_of_ids(int dtype, Int outer, Int classes, Int inner, bool wide, std::optional<Int> ignored,
                                  bool invalid_is_nan, int threads, Address x, Address ids, Address dx) {
  Rows k = rows(dx ? Task::kBoth : Task::kForward, dtype, outer, classes, inner, wide, x, 0, 0, ids);
  k.dx = at(dx), k.ignored = ignored, k.unmarked = k.summed = true;
  check(k);
  Int there = outer * inner - (ignored ? count(k, [&](Int id) { return id == *ignored; }) : 0);
  double divisor = there ? double(there) : 1;
  k.slope = 1 / divisor;
  double mean = without_gil(k, cost(k), threads) / divisor;
  if (mean == mean || invalid_is_nan) return mean;
  bool raises = count(k, [&](Int id) { return id != ignored && (id < 0 || id >= classes); });
  return raises ? std::nullopt : std::optional(mean);
}

// e: smoothing, z: targets, p: pos_weight, w: weight; of the products h: hidden, w: weight
Sigmoid sigmoid(int dtype, Int n, double e, Int p_len, Int p_inner, Int w_len, Int w_inner, Address x, Address z,
                Address p, Address w) {
  Sigmoid k{};
  k.dtype = Dtype(dtype);
  k.n = n, k.smoothing = e, k.x = at(x), k.targets = at(z);
  k.pos_weight = {at(p), p_len, p_inner};
  k.weight = {at(w), w_len, w_inner};
  return k;
}

double sigmoid_forward(int dtype, Int n, double e, Int p_len, Int p_inner, Int w_len, Int w_inner, int threads, Address x,
                       Address z, Address p, Address w, Address loss) {
  Sigmoid k = sigmoid(dtype, n, e, p_len, p_inner, w_len, w_inner, x, z, p, w);
  k.loss = at(loss);
  return without_gil(k, double(n), threads);
}

void sigmoid_backward(int dtype, Int n, double e, Int p_len, Int p_inner, Int w_len, Int w_inner, double scale,
                      int threads, Address x, Address z, Address p, Address w, Address dx, Address dz) {
  Sigmoid k = sigmoid(dtype, n, e, p_len, p_inner, w_len, w_inner, x, z, p, w);
  k.backward = true;
  k.scale = scale, k.dx = at(dx), k.dz = at(dz);
  without_gil(k, double(n), threads);
}

double sigmoid_both(int dtype, Int n, double e, Int p_len, Int p_inner, Int w_len, Int w_inner, double scale, int threads,
                    Address x, Address z, Address p, Address w, Address loss, Address dx) {
  Sigmoid k = sigmoid(dtype, n, e, p_len, p_inner, w_len, w_inner, x, z, p, w);
  k.scale = scale, k.loss = at(loss), k.dx = at(dx);
  return without_gil(k, double(n), threads);
}

void entropy(int dtype, Int rows, Int classes, int threads, Address x, Address w, Address h, Address dx) {
  Entropy k{};
  k.dtype = Dtype(dtype);
  k.rows = rows, k.classes = classes;
  k.x = at(x), k.w = at(w), k.h = at(h), k.dx = at(dx);
  without_gil(k, cost(k), threads);
}

Product product(Product::Task task, int dtype, Int rows, Int features, Int classes, Address h, Address w, Address x,
                Address out) {
  Product k{};
  k.task = task, k.dtype = Dtype(dtype);
  k.rows = rows, k.features = features, k.classes = classes;
  k.hidden = at(h), k.weight = at(w), k.x = at(x), k.out = at(out);
  return k;
}

void project(int dtype, Int rows, Int features, Int classes, int threads, Address h, Address w, Address x) {
  Product k = product(Product::kProject, dtype, rows, features, classes, h, w, x, 0);
  without_gil(k, cost(k), threads);
}

void pull(int dtype, Int rows, Int features, Int classes, int threads, Address dx, Address w, Address dh) {
  Product k = product(Product::kPull, dtype, rows, features, classes, 0, w, dx, dh);
  without_gil(k, cost(k), threads);
}

void accumulate(int dtype, Int rows, Int features, Int classes, int threads, Address dx, Address h, Address dw) {
  Product k = product(Product::kAccumulate, dtype, rows, features, classes, h, 0, dx, dw);
  without_gil(k, cost(k), threads);
}

nb::dict ffi_handlers() {
  nb::dict all;
  for (const Handler& handler : handlers()) {
    all[handler.name] = nb::capsule(handler.function, "xla._CUSTOM_CALL_TARGET");
  }
  return all;
}

// One large call at a time: TensorFlow runs operators in parallel, and two on all processors would share their caches.
template <class K>
double in_turn(K k, int threads) {
  std::unique_lock<std::mutex> turn(one_at_a_time, std::defer_lock);
  if (spreads(cost(k))) turn.lock();
  return run(k, threads);
}

Address runners() {
  static const Runners all{{sizeof(Rows), sizeof(Sigmoid), sizeof(Product)}, in_turn, in_turn, in_turn};
  return reinterpret_cast<Address>(&all);
}

}  // namespace

// Python names of the arguments that all kernels of a kind have
#define XENT_ROWS "dtype"_a, "outer"_a, "classes"_a, "inner"_a, "wide"_a, "threads"_a, "x"_a, "t"_a, "u"_a, "ids"_a
#define XENT_ELEMENTS                                                                                               \
  "dtype"_a, "n"_a, "smoothing"_a, "pos_weight_length"_a, "pos_weight_inner"_a, "weight_length"_a, "weight_inner"_a
#define XENT_OPERANDS "threads"_a, "x"_a, "targets"_a, "pos_weight"_a, "weight"_a
#define XENT_PRODUCT "dtype"_a, "rows"_a, "features"_a, "classes"_a, "threads"_a

NB_MODULE(_native, module) {
  module.attr("F32") = int(kF32);
  module.attr("F64") = int(kF64);
  module.attr("F16") = int(kF16);
  module.attr("BF16") = int(kBF16);
  module.attr("version") = XENT_VERSION;
  module.attr("INTERFACE") = 8;  // increased whenever the arguments below change
  module.def("isa", [] { return kernels()->isa; });
  module.def("isas", [] {
    int n;
    auto* all = available(&n);
    std::vector<std::string> names;
    for (int i = 0; i < n; ++i) names.emplace_back(all[i]->isa);
    return names;
  });
  module.def("max_threads", max_threads);
  module.def("rows_forward", rows_forward, XENT_ROWS, "m"_a, "s"_a, "loss"_a, "lse"_a, "smooth"_a,
      "gap_sum"_a, "argmax"_a);
  module.def("rows_backward", rows_backward, XENT_ROWS, "m"_a, "s"_a, "a"_a, "b"_a, "c"_a, "dx"_a, "dt"_a);
  module.def("rows_both", rows_both, XENT_ROWS, "a"_a, "z"_a, "c"_a, "loss"_a, "lse"_a, "smooth"_a, "m"_a, "s"_a,
      "gap_sum"_a, "argmax"_a, "dx"_a);
  module.def("mean_both", mean_both, "dtype"_a, "outer"_a, "classes"_a, "inner"_a, "wide"_a, "n"_a, "threads"_a,
      "x"_a, "t"_a, "u"_a, "ids"_a, "dx"_a);
  module.def("mean_of_ids", mean_of_ids, "dtype"_a, "outer"_a, "classes"_a, "inner"_a, "wide"_a, "ignored"_a.none(),
      "invalid_is_nan"_a, "threads"_a, "x"_a, "ids"_a, "dx"_a);
  module.def("sigmoid_forward", sigmoid_forward, XENT_ELEMENTS, XENT_OPERANDS, "loss"_a);
  module.def("sigmoid_backward", sigmoid_backward, XENT_ELEMENTS, "scale"_a, XENT_OPERANDS, "dx"_a, "dz"_a);
  module.def("sigmoid_both", sigmoid_both, XENT_ELEMENTS, "scale"_a, XENT_OPERANDS, "loss"_a, "dx"_a);
  module.def("entropy", entropy, "dtype"_a, "rows"_a, "classes"_a, "threads"_a, "x"_a, "weight"_a,
      "entropy"_a, "dx"_a);
  module.def("project", project, XENT_PRODUCT, "hidden"_a, "weight"_a, "x"_a);
  module.def("pull", pull, XENT_PRODUCT, "dx"_a, "weight"_a, "dhidden"_a);
  module.def("accumulate", accumulate, XENT_PRODUCT, "dx"_a, "hidden"_a, "dweight"_a);
  module.def("ffi_handlers", ffi_handlers);
  module.def("runners", runners);
}
