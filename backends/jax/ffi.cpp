// Handlers of XLA's typed FFI, which call the kernels. A buffer without elements stands for an absent operand.

#include "ffi.h"

#include <array>

#include "../cpu/call.h"
#include "xla/ffi/api/ffi.h"

namespace xent {
namespace {

namespace ffi = xla::ffi;
using ffi::AnyBuffer;
using ffi::Error;

const char* kWrong = "xent: operands or results are not as this version of the kernels has them";

struct Buffer {
  char* data;
  int64_t count, size;
  // Part g of `of` equal parts, each of n elements of `bytes` bytes; nullptr for an absent buffer
  void* part(int64_t g, int64_t of, int64_t n, int64_t bytes) const {
    if (!count) return nullptr;
    require(count % of == 0 && count / of == n && size == bytes, kWrong);
    return data + g * n * size;
  }
};

Buffer buffer(const AnyBuffer& b) {
  return {static_cast<char*>(b.untyped_data()), int64_t(b.element_count()), int64_t(ffi::ByteWidth(b.element_type()))};
}

template <size_t N>
void read(ffi::RemainingArgs args, ffi::RemainingRets rets, size_t inputs, Buffer (&all)[N]) {
  require(args.size() == inputs && rets.size() == N - inputs, kWrong);
  for (size_t i = 0; i < N; ++i) {
    if (i < inputs) {
      all[i] = buffer(args.get<AnyBuffer>(i).value());
    } else {
      all[i] = buffer(*rets.get<AnyBuffer>(i - inputs).value());
    }
  }
}

Dtype dtype_of(const AnyBuffer& x) {
  switch (x.element_type()) {
    case ffi::F32: return kF32;
    case ffi::F64: return kF64;
    case ffi::F16: return kF16;
    case ffi::BF16: return kBF16;
    default: throw std::invalid_argument(kWrong);
  }
}

int64_t computed_size(Dtype dtype) { return dtype == kF64 ? 8 : 4; }

// Turns exceptions into XLA's errors.
template <class F>
Error answer(F&& work) {
  try {
    work();
    return Error::Success();
  } catch (const std::invalid_argument& error) {
    return Error::InvalidArgument(error.what());
  } catch (const std::exception& error) {
    return Error::Internal(error.what());
  }
}

// Sets the sizes from x, and returns the number of parts: one for each u, several under vmap
int64_t layout(ffi::RemainingArgs args, int64_t trailing, Rows* k) {
  AnyBuffer x = args.get<AnyBuffer>(0).value(), u = args.get<AnyBuffer>(2).value();
  auto shape = x.dimensions();
  require(trailing >= 0 && trailing < int64_t(shape.size()), kWrong);
  int64_t axis = int64_t(shape.size()) - 1 - trailing;
  k->dtype = dtype_of(x);
  k->outer = k->inner = 1;
  for (int64_t i = 0; i < axis; ++i) k->outer *= shape[size_t(i)];
  for (int64_t i = axis + 1; i < int64_t(shape.size()); ++i) k->inner *= shape[size_t(i)];
  k->classes = shape[size_t(axis)];
  k->wide = args.get<AnyBuffer>(3).value().element_type() == ffi::S64;
  require(k->classes > 0, kWrong);
  int64_t parts = u.element_count() ? int64_t(u.element_count()) / k->classes : 1;
  require(parts > 0 && k->outer % parts == 0, kWrong);
  k->outer /= parts;
  return parts;
}

// Runs the kernel on every part. assign(k, row, ids, logits) sets the addresses in k from the N buffers: row(i) is buffer
// i with one value a row, ids(i) one with a class id a row, logits(i, bytes) buffer i of x's shape
template <size_t N, class Assign>
Error each_part(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t trailing, size_t inputs, Task task,
                Assign assign) {
  return answer([&] {
    Rows k{};
    Buffer b[N];
    read(args, rets, inputs, b);
    int64_t parts = layout(args, trailing, &k), rows = k.outer * k.inner, computed = computed_size(k.dtype);
    k.task = task;
    for (int64_t g = 0; g < parts; ++g) {
      auto row = [&](int i) { return b[i].part(g, parts, rows, computed); };
      auto logits = [&](int i, int64_t bytes) { return b[i].part(g, parts, rows * k.classes, bytes); };
      k.x = logits(0, b[0].size), k.t = logits(1, computed);
      auto ids = [&](int i) { return b[i].part(g, parts, rows, k.wide ? 8 : 4); };
      k.u = b[2].part(g, parts, k.classes, computed), k.ids = ids(3);
      assign(k, row, ids, logits);
      run(k, 0);
    }
  });
}

Error rows_forward(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t trailing) {
  return each_part<11>(args, rets, trailing, 4, Task::kForward, [](Rows& k, auto row, auto ids, auto) {
    k.m = row(4), k.s = row(5), k.loss = row(6), k.lse = row(7), k.smooth = row(8);
    k.gap_sum = row(9), k.argmax = ids(10);
  });
}

Error rows_backward(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t trailing) {
  return each_part<11>(args, rets, trailing, 9, Task::kBackward, [](Rows& k, auto row, auto, auto logits) {
    k.m = row(4), k.s = row(5), k.a = row(6), k.b = row(7), k.c = row(8);
    k.dx = logits(9, size_of(k.dtype)), k.dt = logits(10, computed_size(k.dtype));
  });
}

Error rows_both(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t trailing) {
  return each_part<15>(args, rets, trailing, 7, Task::kBoth, [](Rows& k, auto row, auto ids, auto logits) {
    k.a = row(4), k.lse2 = row(5), k.c = row(6);
    k.m = row(7), k.s = row(8), k.loss = row(9), k.lse = row(10), k.smooth = row(11);
    k.gap_sum = row(12), k.argmax = ids(13);
    k.dx = logits(14, size_of(k.dtype));
  });
}

void set_scalar(void* p, Dtype dtype, double value) {
  if (!p) return;
  if (dtype == kF64) {
    *static_cast<double*>(p) = value;
  } else {
    *static_cast<float*>(p) = float(value);
  }
}

double scalar(const void* p, Dtype dtype) {
  return dtype == kF64 ? *static_cast<const double*>(p) : double(*static_cast<const float*>(p));
}

// The same for the sigmoid kernels. There is a part for each value of buffer `counted`, the sums or the scales.
// assign(k, logits, one) returns the address for the sum, or nullptr; one(i) is the part's value in buffer i.
template <size_t N, class Assign>
Error each_part(ffi::RemainingArgs args, ffi::RemainingRets rets, double e, const int64_t (&patterns)[4],
                size_t inputs, size_t counted, Assign assign) {
  return answer([&] {
    Sigmoid k{};
    Buffer b[N];
    read(args, rets, inputs, b);
    k.dtype = dtype_of(args.get<AnyBuffer>(0).value());
    int64_t parts = b[counted].count, computed = computed_size(k.dtype);
    require(parts > 0, kWrong);
    k.smoothing = e, k.n = b[0].count / parts;
    for (int64_t g = 0; g < parts; ++g) {
      auto logits = [&](int i, int64_t bytes) { return b[i].part(g, parts, k.n, bytes); };
      auto one = [&](int i) { return b[i].part(g, parts, 1, computed); };
      k.x = logits(0, b[0].size), k.targets = logits(1, computed);
      k.pos_weight = {b[2].part(g, parts, patterns[0], computed), patterns[0], patterns[1]};
      k.weight = {b[3].part(g, parts, patterns[2], computed), patterns[2], patterns[3]};
      void* sum = assign(k, logits, one);
      double total = run(k, 0);
      set_scalar(sum, k.dtype, total);
    }
  });
}

Error sigmoid_forward(ffi::RemainingArgs args, ffi::RemainingRets rets, double e, int64_t p_len, int64_t p_inner,
                      int64_t w_len, int64_t w_inner) {
  return each_part<6>(args, rets, e, {p_len, p_inner, w_len, w_inner}, 4, 5, [](Sigmoid& k, auto logits, auto one) {
    k.loss = logits(4, computed_size(k.dtype));
    return one(5);
  });
}

Error sigmoid_backward(ffi::RemainingArgs args, ffi::RemainingRets rets, double e, int64_t p_len, int64_t p_inner,
                       int64_t w_len, int64_t w_inner) {
  return each_part<7>(args, rets, e, {p_len, p_inner, w_len, w_inner}, 5, 4,
                      [](Sigmoid& k, auto logits, auto one) -> void* {
                        k.backward = true;
                        k.scale = scalar(one(4), k.dtype);
                        k.dx = logits(5, size_of(k.dtype)), k.dz = logits(6, computed_size(k.dtype));
                        return nullptr;
                      });
}

Error sigmoid_both(ffi::RemainingArgs args, ffi::RemainingRets rets, double e, int64_t p_len, int64_t p_inner,
                   int64_t w_len, int64_t w_inner) {
  return each_part<8>(args, rets, e, {p_len, p_inner, w_len, w_inner}, 5, 4, [](Sigmoid& k, auto logits, auto one) {
    k.scale = scalar(one(4), k.dtype);
    k.loss = logits(5, computed_size(k.dtype)), k.dx = logits(7, size_of(k.dtype));
    return one(6);
  });
}

// x, weight; results: the entropy, its derivative in x. The classes are x's last axis
Error entropy(ffi::RemainingArgs args, ffi::RemainingRets rets) {
  return answer([&] {
    Buffer b[4];
    read(args, rets, 2, b);
    AnyBuffer x = args.get<AnyBuffer>(0).value();
    require(x.dimensions().size() > 0 && x.dimensions().back() > 0, kWrong);
    Entropy k{};
    k.dtype = dtype_of(x), k.classes = x.dimensions().back(), k.rows = b[0].count / k.classes;
    auto row = [&](int i) { return b[i].part(0, 1, k.rows, computed_size(k.dtype)); };
    k.x = b[0].data, k.w = row(1), k.h = row(2);
    k.dx = b[3].part(0, 1, b[0].count, size_of(k.dtype));
    run(k, 0);
  });
}

using Sizes = std::array<int64_t, 2>;

Sizes sizes(const AnyBuffer& matrix) {
  require(matrix.dimensions().size() == 2, kWrong);
  return {matrix.dimensions()[0], matrix.dimensions()[1]};
}

// `typed` has the inputs' dtype, `computed` the compute dtype, x the logits' sizes
Error product(Product::Task task, AnyBuffer typed, AnyBuffer computed, AnyBuffer of_rows, AnyBuffer of_classes,
              AnyBuffer x, Product k) {
  return answer([&] {
    k.task = task, k.dtype = dtype_of(typed);
    require((dtype_of(computed) == kF64) == (k.dtype == kF64), kWrong);
    Sizes rows = sizes(of_rows), classes = sizes(of_classes);
    require(rows[1] == classes[1] && sizes(x) == Sizes{rows[0], classes[0]}, kWrong);
    k.rows = rows[0], k.features = rows[1], k.classes = classes[0];
    run(k, 0);
  });
}

Error project(AnyBuffer h, AnyBuffer w, ffi::Result<AnyBuffer> x) {
  Product k{};
  k.hidden = h.untyped_data(), k.weight = w.untyped_data(), k.x = x->untyped_data();
  return product(Product::kProject, h, *x, h, w, *x, k);
}

Error pull(AnyBuffer dx, AnyBuffer w, ffi::Result<AnyBuffer> dh) {
  Product k{};
  k.x = dx.untyped_data(), k.weight = w.untyped_data(), k.out = dh->untyped_data();
  return product(Product::kPull, w, dx, *dh, w, dx, k);
}

Error accumulate(AnyBuffer dw, AnyBuffer dx, AnyBuffer h, ffi::Result<AnyBuffer> out) {
  if (dw.untyped_data() != out->untyped_data()) return Error::InvalidArgument(kWrong);
  Product k{};
  k.x = dx.untyped_data(), k.hidden = h.untyped_data(), k.out = out->untyped_data();
  return product(Product::kAccumulate, h, dx, h, dw, dx, k);
}

#define XENT_ROWS ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<int64_t>("trailing")
#define XENT_SIGMOID                                                                                            \
  ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<double>("smoothing").Attr<int64_t>("pos_weight_length") \
      .Attr<int64_t>("pos_weight_inner").Attr<int64_t>("weight_length").Attr<int64_t>("weight_inner")

XLA_FFI_DEFINE_HANDLER(forward_handler, rows_forward, XENT_ROWS);
XLA_FFI_DEFINE_HANDLER(backward_handler, rows_backward, XENT_ROWS);
XLA_FFI_DEFINE_HANDLER(both_handler, rows_both, XENT_ROWS);
XLA_FFI_DEFINE_HANDLER(sigmoid_forward_handler, sigmoid_forward, XENT_SIGMOID);
XLA_FFI_DEFINE_HANDLER(sigmoid_backward_handler, sigmoid_backward, XENT_SIGMOID);
XLA_FFI_DEFINE_HANDLER(sigmoid_both_handler, sigmoid_both, XENT_SIGMOID);
XLA_FFI_DEFINE_HANDLER(entropy_handler, entropy, ffi::Ffi::Bind().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER(project_handler, project, ffi::Ffi::Bind().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>());
XLA_FFI_DEFINE_HANDLER(pull_handler, pull, ffi::Ffi::Bind().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>());
XLA_FFI_DEFINE_HANDLER(accumulate_handler, accumulate,
                       ffi::Ffi::Bind().Arg<AnyBuffer>().Arg<AnyBuffer>().Arg<AnyBuffer>().Ret<AnyBuffer>());

}  // namespace

std::vector<Handler> handlers() {
  return {
      {"rows_forward", reinterpret_cast<void*>(forward_handler)},
      {"rows_backward", reinterpret_cast<void*>(backward_handler)},
      {"rows_both", reinterpret_cast<void*>(both_handler)},
      {"sigmoid_forward", reinterpret_cast<void*>(sigmoid_forward_handler)},
      {"sigmoid_backward", reinterpret_cast<void*>(sigmoid_backward_handler)},
      {"sigmoid_both", reinterpret_cast<void*>(sigmoid_both_handler)},
      {"entropy", reinterpret_cast<void*>(entropy_handler)},
      {"project", reinterpret_cast<void*>(project_handler)},
      {"pull", reinterpret_cast<void*>(pull_handler)},
      {"accumulate", reinterpret_cast<void*>(accumulate_handler)},
  };
}

}  // namespace xent
