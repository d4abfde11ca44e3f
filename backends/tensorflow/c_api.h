// TensorFlow's C interface (tensorflow/c/{ops,kernels,tf_tensor,tf_status,tf_datatype}.h), as far as operators.cpp uses it.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>

struct TF_Status;
struct TF_Tensor;
struct TF_OpDefinitionBuilder;
struct TF_ShapeInferenceContext;
struct TF_KernelBuilder;
struct TF_OpKernelConstruction;
struct TF_OpKernelContext;

namespace xent {
namespace {

enum { kTfOk = 0, kTfInvalidArgument = 3, kTfInternal = 13 };
enum { kTfFloat = 1, kTfDouble = 2, kTfInt64 = 9, kTfBFloat16 = 14, kTfHalf = 19 };

using Create = void* (*)(TF_OpKernelConstruction*);
using Compute = void (*)(void*, TF_OpKernelContext*);
using Delete = void (*)(void*);
using InferShapes = void (*)(TF_ShapeInferenceContext*, TF_Status*);

#define XENT_TENSORFLOW(F)                                                                                       \
  F(TF_Status*, TF_NewStatus, ())                                                                                \
  F(void, TF_DeleteStatus, (TF_Status*))                                                                         \
  F(int, TF_GetCode, (const TF_Status*))                                                                         \
  F(void, TF_SetStatus, (TF_Status*, int, const char*))                                                          \
  F(void, TF_DeleteTensor, (TF_Tensor*))                                                                         \
  F(int, TF_TensorType, (const TF_Tensor*))                                                                      \
  F(int, TF_NumDims, (const TF_Tensor*))                                                                         \
  F(int64_t, TF_Dim, (const TF_Tensor*, int))                                                                    \
  F(size_t, TF_TensorByteSize, (const TF_Tensor*))                                                               \
  F(void*, TF_TensorData, (const TF_Tensor*))                                                                    \
  F(int64_t, TF_TensorElementCount, (const TF_Tensor*))                                                          \
  F(TF_OpDefinitionBuilder*, TF_NewOpDefinitionBuilder, (const char*))                                           \
  F(void, TF_OpDefinitionBuilderAddAttr, (TF_OpDefinitionBuilder*, const char*))                                 \
  F(void, TF_OpDefinitionBuilderAddInput, (TF_OpDefinitionBuilder*, const char*))                                \
  F(void, TF_OpDefinitionBuilderAddOutput, (TF_OpDefinitionBuilder*, const char*))                               \
  F(void, TF_OpDefinitionBuilderSetShapeInferenceFunction, (TF_OpDefinitionBuilder*, InferShapes))               \
  F(void, TF_RegisterOpDefinition, (TF_OpDefinitionBuilder*, TF_Status*))                                        \
  F(void, TF_ShapeInferenceContextSetUnknownShape, (TF_ShapeInferenceContext*, TF_Status*))                      \
  F(TF_KernelBuilder*, TF_NewKernelBuilder, (const char*, const char*, Create, Compute, Delete))                 \
  F(void, TF_RegisterKernelBuilder, (const char*, TF_KernelBuilder*, TF_Status*))                                \
  F(void, TF_OpKernelConstruction_GetAttrInt64, (TF_OpKernelConstruction*, const char*, int64_t*, TF_Status*))   \
  F(void, TF_OpKernelConstruction_Failure, (TF_OpKernelConstruction*, TF_Status*))                               \
  F(void, TF_OpKernelContext_Failure, (TF_OpKernelContext*, TF_Status*))                                         \
  F(void, TF_GetInput, (TF_OpKernelContext*, int, TF_Tensor**, TF_Status*))                                      \
  F(int, TF_ExpectedOutputDataType, (TF_OpKernelContext*, int))                                                  \
  F(TF_Tensor*, TF_AllocateOutput, (TF_OpKernelContext*, int, int, const int64_t*, int, size_t, TF_Status*))     \
  F(TF_Tensor*, TF_ForwardInputOrAllocateOutput,                                                                 \
    (TF_OpKernelContext*, const int*, int, int, const int64_t*, int, int*, TF_Status*))

#define XENT_POINTER(result, name, arguments) result(*name) arguments;
struct Api {
  XENT_TENSORFLOW(XENT_POINTER)
} tf;

bool look_up() {
  void* library = dlopen("libtensorflow_framework.so.2", RTLD_NOLOAD | RTLD_LAZY);
  if (!library) return false;
#define XENT_FIND(result, name, arguments) \
  if (!(tf.name = reinterpret_cast<decltype(tf.name)>(dlsym(library, #name)))) return false;
  XENT_TENSORFLOW(XENT_FIND)
  return true;
}

}  // namespace
}  // namespace xent
