// One execution of an operator: access to its operands and results, and errors. For operators.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "../cpu/kernels.h"
#include "c_api.h"

namespace xent {
namespace {

using Shape = std::vector<int64_t>;

struct Failed {};

struct Status {
  TF_Status* raw = tf.TF_NewStatus();
  Status() = default;
  Status(const Status&) = delete;
  ~Status() { tf.TF_DeleteStatus(raw); }
  void check() const {
    if (tf.TF_GetCode(raw) != kTfOk) throw Failed();
  }
};

using Tensor = std::unique_ptr<TF_Tensor, void (*)(TF_Tensor*)>;

size_t width(int type) {
  switch (type) {
    case kTfHalf:
    case kTfBFloat16: return 2;
    case kTfFloat: return 4;
    default: return 8;
  }
}

class Call {
 public:
  Call(TF_OpKernelContext* context, const Status& status) : context_(context), status_(status) {}

  Shape shape(int i) {
    Tensor tensor = input(i);
    Shape shape;
    for (int d = 0; d < tf.TF_NumDims(tensor.get()); ++d) shape.push_back(tf.TF_Dim(tensor.get(), d));
    return shape;
  }

  Shape matrix(int i) {
    Shape found = shape(i);
    require(found.size() == 2);
    return found;
  }

  int64_t count(int i) { return tf.TF_TensorElementCount(input(i).get()); }

  int type(int i) { return tf.TF_TensorType(input(i).get()); }

  Dtype dtype(int i) {
    switch (type(i)) {
      case kTfFloat: return kF32;
      case kTfDouble: return kF64;
      case kTfHalf: return kF16;
      default: return kBF16;
    }
  }

  // An operand's address, valid until the operator is done; nullptr: absent
  const void* in(int i) { return data(input(i)); }

  double scalar(int i) {
    const void* at = in(i);
    return dtype(i) == kF64 ? *static_cast<const double*>(at) : double(*static_cast<const float*>(at));
  }

  int out_type(int i) { return tf.TF_ExpectedOutputDataType(context_, i); }

  void* out(int i, const Shape& shape) {
    int type = out_type(i);
    size_t bytes = width(type);
    for (int64_t n : shape) bytes *= size_t(n);
    return kept(tf.TF_AllocateOutput(context_, i, type, shape.data(), int(shape.size()), bytes, status_.raw));
  }

  void* out_if(bool wanted, int i, const Shape& shape) { return out(i, wanted ? shape : Shape{0}); }

  // An output in the memory of an operand of the same shape and dtype, if that is used nowhere else; else new memory
  void* out_over(int operand, int i, const Shape& shape) {
    int from = -1;
    return kept(tf.TF_ForwardInputOrAllocateOutput(context_, &operand, 1, i, shape.data(), int(shape.size()), &from,
                                                   status_.raw));
  }

  // Checks that operand `computed` has the compute dtype of operand `typed`
  void require_computed(int typed, int computed) {
    require((type(typed) == kTfDouble) == (type(computed) == kTfDouble));
  }

  void require(bool holds) {
    if (holds) return;
    tf.TF_SetStatus(status_.raw, kTfInvalidArgument, "xent: operands are not as this version of the kernels has them");
    throw Failed();
  }

 private:
  Tensor input(int i) {
    TF_Tensor* tensor = nullptr;
    tf.TF_GetInput(context_, i, &tensor, status_.raw);
    status_.check();
    return {tensor, tf.TF_DeleteTensor};
  }

  void* kept(TF_Tensor* tensor) {
    status_.check();
    return data({tensor, tf.TF_DeleteTensor});  // the output itself has another reference
  }

  static void* data(const Tensor& tensor) {
    return tf.TF_TensorByteSize(tensor.get()) ? tf.TF_TensorData(tensor.get()) : nullptr;
  }

  TF_OpKernelContext* context_;
  const Status& status_;
};

}  // namespace
}  // namespace xent
