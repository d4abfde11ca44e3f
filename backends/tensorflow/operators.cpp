// The kernels as operators of TensorFlow's graphs, through its C interface. They are a library of their own, which
// tf.load_op_library loads. No TensorFlow is needed to build it: it looks up TensorFlow's functions when it is loaded.
// An operand without elements stands for an absent one. operators.py calls the operators.

#include <algorithm>
#include <cstring>
#include <exception>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/runners.h"
#include "execution.h"

namespace xent {
namespace {

Runners runners;  // the kernels, which are in the library _native

// ---- the operators. They check shapes and dtypes; the caller has checked the class ids. Attributes are in the order
// of the operator's description.

using Attributes = std::vector<int64_t>;

Rows rows(Call& call, Task task, int64_t axis) {
  Rows k{};
  k.task = task, k.dtype = call.dtype(0);
  Shape shape = call.shape(0);
  call.require(axis >= 0 && axis < int64_t(shape.size()));
  k.outer = k.inner = 1;
  for (int64_t i = 0; i < axis; ++i) k.outer *= shape[size_t(i)];
  for (int64_t i = axis + 1; i < int64_t(shape.size()); ++i) k.inner *= shape[size_t(i)];
  k.classes = shape[size_t(axis)];
  int64_t all = call.count(0), each = k.outer * k.inner;
  auto fits = [&](int i, int64_t n) { return call.count(i) == n || call.count(i) == 0; };
  call.require(fits(1, all) && fits(2, k.classes) && fits(3, each));
  call.require_computed(0, 1);
  k.x = call.in(0), k.t = call.in(1), k.u = call.in(2), k.ids = call.in(3), k.wide = call.type(3) == kTfInt64;
  return k;
}

Shape without(Shape shape, int64_t axis) {
  shape.erase(shape.begin() + axis);
  return shape;
}

// attributes: axis, with_lse, with_stats
void row_results(Call& call, Rows* k, const Attributes& attributes) {
  Shape each = without(call.shape(0), attributes[0]);
  k->m = call.out(0, each), k->s = call.out(1, each), k->loss = call.out(2, each);
  k->lse = call.out_if(attributes[1], 3, each), k->smooth = call.out_if(k->u, 4, each);
  k->gap_sum = call.out_if(attributes[2], 5, each), k->argmax = call.out_if(attributes[2], 6, each);
}

// An operand with one value a row
const void* per_row(Call& call, int i, const Rows& k) {
  call.require(call.count(i) == k.outer * k.inner);
  return call.in(i);
}

const void* per_row_if_there(Call& call, int i, const Rows& k) { return call.count(i) ? per_row(call, i, k) : nullptr; }

void rows_forward(Call& call, const Attributes& attributes) {
  Rows k = rows(call, Task::kForward, attributes[0]);
  row_results(call, &k, attributes);
  runners.rows(k, 0);
}

void rows_backward(Call& call, const Attributes& attributes) {
  Rows k = rows(call, Task::kBackward, attributes[0]);
  k.m = const_cast<void*>(per_row(call, 4, k)), k.s = const_cast<void*>(per_row(call, 5, k));
  k.a = per_row(call, 6, k), k.b = per_row_if_there(call, 7, k), k.c = per_row_if_there(call, 8, k);
  k.dx = call.out_if(!attributes[1], 0, call.shape(0)), k.dt = call.out_if(attributes[1], 1, call.shape(0));
  runners.rows(k, 0);
}

void rows_both(Call& call, const Attributes& attributes) {
  Rows k = rows(call, Task::kBoth, attributes[0]);
  k.a = per_row(call, 4, k), k.lse2 = per_row_if_there(call, 5, k), k.c = per_row_if_there(call, 6, k);
  row_results(call, &k, attributes);
  k.dx = k.inner == 1 ? call.out_over(0, 7, call.shape(0)) : call.out(7, call.shape(0));
  runners.rows(k, 0);
}

Sigmoid sigmoid(Call& call, const Attributes& attributes) {
  Sigmoid k{};
  k.dtype = call.dtype(0), k.n = call.count(0);
  call.require(call.count(1) == k.n && call.count(4) == 1 && attributes[0] > 0 && attributes[1] > 0);
  call.require_computed(0, 1);
  k.x = call.in(0), k.targets = call.in(1), k.smoothing = call.scalar(4);
  k.pos_weight = {call.in(2), std::max<int64_t>(call.count(2), 1), attributes[0]};
  k.weight = {call.in(3), std::max<int64_t>(call.count(3), 1), attributes[1]};
  return k;
}

void give_sum(Call& call, int i, Dtype dtype, double sum) {
  void* at = call.out(i, {});
  if (dtype == kF64) {
    *static_cast<double*>(at) = sum;
  } else {
    *static_cast<float*>(at) = float(sum);
  }
}

void sigmoid_forward(Call& call, const Attributes& attributes) {
  Sigmoid k = sigmoid(call, attributes);
  k.loss = call.out_if(attributes[2], 0, call.shape(0));
  give_sum(call, 1, k.dtype, runners.sigmoid(k, 0));
}

void sigmoid_backward(Call& call, const Attributes& attributes) {
  Sigmoid k = sigmoid(call, attributes);
  k.backward = true, k.scale = call.scalar(5);
  k.dx = call.out_if(!attributes[2], 0, call.shape(0)), k.dz = call.out_if(attributes[2], 1, call.shape(0));
  runners.sigmoid(k, 0);
}

void sigmoid_both(Call& call, const Attributes& attributes) {
  Sigmoid k = sigmoid(call, attributes);
  k.scale = call.scalar(5);
  k.loss = call.out_if(attributes[2], 0, call.shape(0));
  k.dx = call.out(2, call.shape(0));
  give_sum(call, 1, k.dtype, runners.sigmoid(k, 0));
}

Product product(Call& call, Product::Task task, const Shape& of_rows, const Shape& of_classes, const Shape& logits) {
  call.require(of_rows[1] == of_classes[1]);
  Product k{};
  k.task = task, k.rows = of_rows[0], k.features = of_rows[1], k.classes = of_classes[0];
  call.require(logits == Shape{k.rows, k.classes});
  return k;
}

void project(Call& call, const Attributes&) {
  Shape h = call.matrix(0), w = call.matrix(1);
  Product k = product(call, Product::kProject, h, w, {h[0], w[0]});
  call.require((call.type(0) == kTfDouble) == (call.out_type(0) == kTfDouble));
  k.dtype = call.dtype(0), k.hidden = call.in(0), k.weight = call.in(1), k.x = call.out(0, {h[0], w[0]});
  runners.product(k, 0);
}

void pull(Call& call, const Attributes&) {
  Shape dx = call.matrix(0), w = call.matrix(1);
  Product k = product(call, Product::kPull, {dx[0], w[1]}, w, dx);
  call.require_computed(1, 0);
  k.dtype = call.dtype(1), k.x = const_cast<void*>(call.in(0)), k.weight = call.in(1), k.out = call.out(0, {dx[0], w[1]});
  runners.product(k, 0);
}

// Adds in the sums' memory if no other operator uses it; sums without elements stand for 0
void accumulate(Call& call, const Attributes&) {
  Shape dx = call.matrix(1), h = call.matrix(2);
  Shape sums{dx[1], h[1]};
  Product k = product(call, Product::kAccumulate, h, sums, dx);
  call.require_computed(2, 0);
  k.dtype = call.dtype(2), k.x = const_cast<void*>(call.in(1)), k.hidden = call.in(2);
  size_t bytes = size_t(sums[0] * sums[1]) * width(call.type(0));
  if (call.count(0) == 0) {
    k.out = call.out(0, sums);
    if (k.out) std::memset(k.out, 0, bytes);
  } else {
    call.require(call.shape(0) == sums);
    const void* before = call.in(0);
    k.out = call.out_over(0, 0, sums);
    if (k.out != before) std::memcpy(k.out, before, bytes);
  }
  runners.product(k, 0);
}

// ---- descriptions of the operators. T is the logits' dtype, C the compute dtype, I that of class ids.

struct Operator {
  const char* name;
  std::vector<const char*> attributes;  // integers
  std::vector<const char*> inputs, outputs;
  void (*run)(Call&, const Attributes&);
};

const Operator kOperators[] = {
    {"XentRows", {"axis", "with_lse", "with_stats"}, {"x: T", "t: C", "u: C", "ids: I"},
     {"m: C", "s: C", "loss: C", "lse: C", "smooth: C", "gap_sum: C", "argmax: I"}, rows_forward},
    {"XentRowsBackward", {"axis", "labels"},
     {"x: T", "t: C", "u: C", "ids: I", "m: C", "s: C", "a: C", "b: C", "c: C"}, {"dx: T", "dt: C"}, rows_backward},
    {"XentRowsBoth", {"axis", "with_lse", "with_stats"},
     {"x: T", "t: C", "u: C", "ids: I", "a: C", "z: C", "c: C"},
     {"m: C", "s: C", "loss: C", "lse: C", "smooth: C", "gap_sum: C", "argmax: I", "dx: T"}, rows_both},
    // e is an operand, not an attribute, since float attributes have 32 bits
    {"XentSigmoid", {"p_inner", "w_inner", "each"}, {"x: T", "z: C", "p: C", "w: C", "e: double"},
     {"loss: C", "sum: C"}, sigmoid_forward},
    {"XentSigmoidBackward", {"p_inner", "w_inner", "labels"},
     {"x: T", "z: C", "p: C", "w: C", "e: double", "scale: C"}, {"dx: T", "dz: C"}, sigmoid_backward},
    {"XentSigmoidBoth", {"p_inner", "w_inner", "each"},
     {"x: T", "z: C", "p: C", "w: C", "e: double", "scale: C"}, {"loss: C", "sum: C", "dx: T"}, sigmoid_both},
    {"XentProject", {}, {"h: T", "w: T"}, {"x: C"}, project},
    {"XentPull", {}, {"dx: C", "w: T"}, {"dh: C"}, pull},
    {"XentAccumulate", {}, {"dw: C", "dx: C", "h: T"}, {"sums: C"}, accumulate},
};

bool uses(const Operator& op, const char* type) {
  auto is = [&](const char* spec) { return std::string(spec).substr(std::string(spec).find(' ') + 1) == type; };
  return std::any_of(op.inputs.begin(), op.inputs.end(), is) || std::any_of(op.outputs.begin(), op.outputs.end(), is);
}

// operators.py sets the shapes.
void no_shapes(TF_ShapeInferenceContext* context, TF_Status* status) {
  tf.TF_ShapeInferenceContextSetUnknownShape(context, status);
}

void describe(const Operator& op, const Status& status) {
  TF_OpDefinitionBuilder* builder = tf.TF_NewOpDefinitionBuilder(op.name);
  for (const char* name : op.attributes) tf.TF_OpDefinitionBuilderAddAttr(builder, (std::string(name) + ": int").c_str());
  if (uses(op, "T")) tf.TF_OpDefinitionBuilderAddAttr(builder, "T: {half, bfloat16, float, double}");
  if (uses(op, "C")) tf.TF_OpDefinitionBuilderAddAttr(builder, "C: {float, double}");
  if (uses(op, "I")) tf.TF_OpDefinitionBuilderAddAttr(builder, "I: {int32, int64}");
  for (const char* spec : op.inputs) tf.TF_OpDefinitionBuilderAddInput(builder, spec);
  for (const char* spec : op.outputs) tf.TF_OpDefinitionBuilderAddOutput(builder, spec);
  tf.TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, no_shapes);
  tf.TF_RegisterOpDefinition(builder, status.raw);
  status.check();
}

template <size_t i>
void* create(TF_OpKernelConstruction* construction) {
  Status status;
  auto values = std::make_unique<Attributes>();
  for (const char* name : kOperators[i].attributes) {
    int64_t value = 0;
    tf.TF_OpKernelConstruction_GetAttrInt64(construction, name, &value, status.raw);
    if (tf.TF_GetCode(status.raw) != kTfOk) {
      tf.TF_OpKernelConstruction_Failure(construction, status.raw);
      return nullptr;
    }
    values->push_back(value);
  }
  return values.release();
}

template <size_t i>
void compute(void* attributes, TF_OpKernelContext* context) {
  Status status;
  try {
    Call call(context, status);
    call.require(runners.rows);
    kOperators[i].run(call, *static_cast<Attributes*>(attributes));
    return;
  } catch (const Failed&) {
  } catch (const std::invalid_argument& error) {
    tf.TF_SetStatus(status.raw, kTfInvalidArgument, error.what());
  } catch (const std::exception& error) {
    tf.TF_SetStatus(status.raw, kTfInternal, error.what());
  }
  tf.TF_OpKernelContext_Failure(context, status.raw);
}

void destroy(void* attributes) { delete static_cast<Attributes*>(attributes); }

template <size_t... i>
void register_all(std::index_sequence<i...>) {
  Status status;
  auto one = [&](const Operator& op, Create create, Compute compute) {
    describe(op, status);
    tf.TF_RegisterKernelBuilder(op.name, tf.TF_NewKernelBuilder(op.name, "CPU", create, compute, destroy), status.raw);
    status.check();
  };
  (one(kOperators[i], create<i>, compute<i>), ...);
}

bool on_load() {
  try {
    if (look_up()) register_all(std::make_index_sequence<std::size(kOperators)>());
    return true;
  } catch (const Failed&) {
    return false;
  }
}

// tf.load_op_library returns the operators that are registered while the library is loaded.
[[maybe_unused]] const bool loaded = on_load();

}  // namespace
}  // namespace xent

extern "C" [[gnu::visibility("default")]] bool xent_attach(const xent::Runners* given) {
  const size_t sizes[] = {sizeof(xent::Rows), sizeof(xent::Sigmoid), sizeof(xent::Product)};
  bool fits = std::equal(std::begin(sizes), std::end(sizes), given->sizes);
  if (fits) xent::runners = *given;
  return fits;
}
