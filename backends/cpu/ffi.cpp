// XLA's typed FFI: buffers in, kernels called. An operand without elements is one that is not there.

#include "ffi.h"

#include "call.h"
#include "xla/ffi/api/ffi.h"

namespace xent {
namespace {

namespace ffi = xla::ffi;
using ffi::AnyBuffer;
using ffi::Error;

struct Buffer {
  char* data;
  int64_t count, size;
  // Part g of G equal ones; nullptr where there is nothing
  void* part(int64_t g, int64_t of) const { return count ? data + g * (count / of) * size : nullptr; }
};

Buffer buffer(const AnyBuffer& b) {
  return {static_cast<char*>(b.untyped_data()), int64_t(b.element_count()), int64_t(ffi::ByteWidth(b.element_type()))};
}

template <size_t N>
bool read(ffi::RemainingArgs args, ffi::RemainingRets rets, size_t inputs, Buffer (&all)[N]) {
  if (args.size() != inputs || rets.size() != N - inputs) return false;
  for (size_t i = 0; i < N; ++i) {
    if (i < inputs) {
      all[i] = buffer(args.get<AnyBuffer>(i).value());
    } else {
      all[i] = buffer(*rets.get<AnyBuffer>(i - inputs).value());
    }
  }
  return true;
}

bool dtype_of(const AnyBuffer& x, Dtype* dtype) {
  switch (x.element_type()) {
    case ffi::F32: *dtype = kF32; return true;
    case ffi::F64: *dtype = kF64; return true;
    case ffi::F16: *dtype = kF16; return true;
    case ffi::BF16: *dtype = kBF16; return true;
    default: return false;
  }
}

const char* kWrong = "xent: operands or results are not as this version of the kernels has them";

// x's layout, and how many parts there are: a u for each (more than one under vmap)
bool layout(ffi::RemainingArgs args, int64_t trailing, Rows* k, int64_t* parts) {
  if (args.size() < 4) return false;
  AnyBuffer x = args.get<AnyBuffer>(0).value(), u = args.get<AnyBuffer>(2).value();
  auto shape = x.dimensions();
  int64_t axis = int64_t(shape.size()) - 1 - trailing;
  if (axis < 0 || !dtype_of(x, &k->dtype)) return false;
  k->outer = k->inner = 1;
  for (int64_t i = 0; i < axis; ++i) k->outer *= shape[size_t(i)];
  for (int64_t i = axis + 1; i < int64_t(shape.size()); ++i) k->inner *= shape[size_t(i)];
  k->classes = shape[size_t(axis)];
  k->wide = args.get<AnyBuffer>(3).value().element_type() == ffi::S64;
  *parts = u.element_count() ? int64_t(u.element_count()) / k->classes : 1;
  if (*parts == 0 || k->outer % *parts) return false;
  k->outer /= *parts;
  return true;
}

// Every part in turn: assign(k, part) says which of the N operands and results is which
template <size_t N, class Assign>
Error each_part(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t trailing, size_t inputs, Task task,
                Assign assign) {
  Rows k{};
  int64_t parts;
  Buffer b[N];
  if (!read(args, rets, inputs, b) || !layout(args, trailing, &k, &parts)) return Error::InvalidArgument(kWrong);
  k.task = task;
  for (int64_t g = 0; g < parts; ++g) {
    auto part = [&](int i) { return b[i].part(g, parts); };
    k.x = part(0), k.t = part(1), k.u = part(2), k.ids = part(3);
    assign(k, part);
    run(k, 0);
  }
  return Error::Success();
}

Error rows_forward(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t trailing) {
  return each_part<9>(args, rets, trailing, 4, Task::kForward, [](Rows& k, auto part) {
    k.m = part(4), k.s = part(5), k.loss = part(6), k.lse = part(7), k.smooth = part(8);
  });
}

Error rows_backward(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t trailing) {
  return each_part<11>(args, rets, trailing, 9, Task::kBackward, [](Rows& k, auto part) {
    k.m = part(4), k.s = part(5), k.a = part(6), k.b = part(7), k.c = part(8), k.dx = part(9), k.dt = part(10);
  });
}

Error rows_both(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t trailing) {
  return each_part<13>(args, rets, trailing, 7, Task::kBoth, [](Rows& k, auto part) {
    k.a = part(4), k.z = part(5), k.c = part(6);
    k.m = part(7), k.s = part(8), k.loss = part(9), k.lse = part(10), k.smooth = part(11), k.dx = part(12);
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

// The same for elements; there are as many parts as the scalar `counted` has values: a sum or a scale for each
template <size_t N, class Assign>
Error each_part(ffi::RemainingArgs args, ffi::RemainingRets rets, double e, const int64_t (&patterns)[4],
                size_t inputs, size_t counted, Assign assign) {
  Sigmoid k{};
  Buffer b[N];
  if (!read(args, rets, inputs, b) || !dtype_of(args.get<AnyBuffer>(0).value(), &k.dtype) || !b[counted].count)
    return Error::InvalidArgument(kWrong);
  int64_t parts = b[counted].count;
  k.e = e, k.n = b[0].count / parts;
  for (int64_t g = 0; g < parts; ++g) {
    auto part = [&](int i) { return b[i].part(g, parts); };
    k.x = part(0), k.z = part(1);
    k.p = {part(2), patterns[0], patterns[1]}, k.w = {part(3), patterns[2], patterns[3]};
    void* sum = assign(k, part);
    double total = run(k, 0);
    set_scalar(sum, k.dtype, total);
  }
  return Error::Success();
}

Error sigmoid_forward(ffi::RemainingArgs args, ffi::RemainingRets rets, double e, int64_t p_len, int64_t p_inner,
                      int64_t w_len, int64_t w_inner) {
  return each_part<6>(args, rets, e, {p_len, p_inner, w_len, w_inner}, 4, 5, [](Sigmoid& k, auto part) {
    k.loss = part(4);
    return part(5);
  });
}

Error sigmoid_backward(ffi::RemainingArgs args, ffi::RemainingRets rets, double e, int64_t p_len, int64_t p_inner,
                       int64_t w_len, int64_t w_inner) {
  return each_part<7>(args, rets, e, {p_len, p_inner, w_len, w_inner}, 5, 4, [](Sigmoid& k, auto part) -> void* {
    k.backward = true;
    k.scale = scalar(part(4), k.dtype);
    k.dx = part(5), k.dz = part(6);
    return nullptr;
  });
}

Error sigmoid_both(ffi::RemainingArgs args, ffi::RemainingRets rets, double e, int64_t p_len, int64_t p_inner,
                   int64_t w_len, int64_t w_inner) {
  return each_part<8>(args, rets, e, {p_len, p_inner, w_len, w_inner}, 5, 4, [](Sigmoid& k, auto part) {
    k.scale = scalar(part(4), k.dtype);
    k.loss = part(5), k.dx = part(7);
    return part(6);
  });
}

// What is read in `dtype`, and a matrix of [rows or classes, features] for each of the two sizes
Error product(Product::Task task, AnyBuffer typed, AnyBuffer of_rows, AnyBuffer of_classes, Product k) {
  k.task = task;
  if (!dtype_of(typed, &k.dtype) || of_rows.dimensions().size() != 2 || of_classes.dimensions().size() != 2)
    return Error::InvalidArgument(kWrong);
  k.rows = of_rows.dimensions()[0], k.features = of_rows.dimensions()[1], k.classes = of_classes.dimensions()[0];
  run(k, 0);
  return Error::Success();
}

Error project(AnyBuffer h, AnyBuffer w, ffi::Result<AnyBuffer> x) {
  Product k{};
  k.h = h.untyped_data(), k.w = w.untyped_data(), k.x = x->untyped_data();
  return product(Product::kProject, h, h, w, k);
}

Error pull(AnyBuffer dx, AnyBuffer w, ffi::Result<AnyBuffer> dh) {
  Product k{};
  k.x = dx.untyped_data(), k.w = w.untyped_data(), k.out = dh->untyped_data();
  return product(Product::kPull, w, *dh, w, k);
}

Error accumulate(AnyBuffer dw, AnyBuffer dx, AnyBuffer h, ffi::Result<AnyBuffer> out) {
  if (dw.untyped_data() != out->untyped_data()) return Error::InvalidArgument(kWrong);
  Product k{};
  k.x = dx.untyped_data(), k.h = h.untyped_data(), k.out = out->untyped_data();
  return product(Product::kAccumulate, h, h, dw, k);
}

#define XENT_ROWS ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<int64_t>("trailing")
#define XENT_SIGMOID                                                                                              \
  ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<double>("e").Attr<int64_t>("p_len").Attr<int64_t>("p_inner") \
      .Attr<int64_t>("w_len").Attr<int64_t>("w_inner")

XLA_FFI_DEFINE_HANDLER(forward_handler, rows_forward, XENT_ROWS);
XLA_FFI_DEFINE_HANDLER(backward_handler, rows_backward, XENT_ROWS);
XLA_FFI_DEFINE_HANDLER(both_handler, rows_both, XENT_ROWS);
XLA_FFI_DEFINE_HANDLER(sigmoid_forward_handler, sigmoid_forward, XENT_SIGMOID);
XLA_FFI_DEFINE_HANDLER(sigmoid_backward_handler, sigmoid_backward, XENT_SIGMOID);
XLA_FFI_DEFINE_HANDLER(sigmoid_both_handler, sigmoid_both, XENT_SIGMOID);
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
      {"project", reinterpret_cast<void*>(project_handler)},
      {"pull", reinterpret_cast<void*>(pull_handler)},
      {"accumulate", reinterpret_cast<void*>(accumulate_handler)},
  };
}

}  // namespace xent
