// fula_hint_terms_forward, fula_hint_terms_backward.
#include <algorithm>
#include <cstdio>

#include "cpu.h"
#include "cuda/cuda.h"
#include "pool.h"
#include "tensor.h"

namespace fula {
namespace {

// One depth: L lanes of B samples of `size` elements in any dense order.
struct Depth {
  char *activation, *target, *out;  // out: the gradient, backward only
  void *dist2;
  int dtype;
  i64 lanes, batch, size;
  i64 first_task;
};

// Elements taken at once: a piece of the target is read for all lanes while it is near.
constexpr i64 kPiece = 8192;

i64 pieces(const Depth &d) { return (d.size + kPiece - 1) / kPiece; }

fula_status read_depth(const Argument &a, const Argument &t, const Argument &dist2, Depth *depth) {
  Activation activation, target;
  FULA_TRY(check_dtype(t, a.tensor->dtype));
  i64 expected[FULA_MAX_RANK];
  for (int i = 0; i < a.tensor->rank; ++i)
    expected[i] = i ? a.tensor->shape[i] : t.tensor->rank ? t.tensor->shape[0] : 0;
  FULA_TRY(check_shape(t, expected, a.tensor->rank));
  FULA_TRY(read_activation(a, std::min(1, a.tensor->rank - 1), &activation));
  FULA_TRY(read_activation(t, std::min(1, t.tensor->rank - 1), &target));
  bool last;
  FULA_TRY(common_layout({&activation, &target}, &last));
  const i64 samples = a.tensor->shape[0], batch = t.tensor->shape[0];
  if (batch == 0 ? samples != 0 : samples % batch != 0)
    return refuse(FULA_ERROR_SHAPE, "%s has %lld samples: not a multiple of the target's %lld",
                  a.name, static_cast<long long>(samples), static_cast<long long>(batch));
  depth->activation = activation.data, depth->target = target.data;
  depth->dtype = activation.dtype, depth->batch = batch;
  depth->lanes = batch ? samples / batch : dist2.tensor->rank ? dist2.tensor->shape[0] : 0;
  depth->size = 1;
  for (int i = 1; i < a.tensor->rank; ++i) depth->size *= a.tensor->shape[i];
  FULA_TRY(check_dtype(dist2, sum_dtype(activation.dtype)));
  FULA_TRY(check_shape(dist2, {depth->lanes, batch}));
  FULA_TRY(check_contiguous(dist2));
  depth->dist2 = dist2.tensor->data;
  return FULA_OK;
}

fula_status read_gradient(const Argument &out, const fula_tensor &activation, Depth *depth) {
  Activation gradient, like;
  FULA_TRY(check_dtype(out, activation.dtype));
  FULA_TRY(check_shape(out, activation.shape, activation.rank));
  const int axis = std::min(1, activation.rank - 1);
  FULA_TRY(read_activation(out, axis, &gradient));
  FULA_TRY(read_activation({"activation", &activation}, axis, &like));
  bool last;
  FULA_TRY(common_layout({&gradient, &like}, &last));
  depth->out = gradient.data;
  return FULA_OK;
}

// Names of the i-th tensors, for messages.
struct Names {
  char activation[48], target[48], dist2[48], gradient[48];
  explicit Names(i64 i, bool backward) {
    const long long k = static_cast<long long>(i);
    std::snprintf(activation, sizeof activation, "activations[%lld]", k);
    std::snprintf(target, sizeof target, "targets[%lld]", k);
    std::snprintf(dist2, sizeof dist2, backward ? "ddist2[%lld]" : "dist2[%lld]", k);
    std::snprintf(gradient, sizeof gradient, "dactivations[%lld]", k);
  }
};

fula_status read_depths(i64 count, const fula_tensor *activations, const fula_tensor *targets,
                        const fula_tensor *dist2, const fula_tensor *gradients, Depth *depths,
                        int *device) {
  for (i64 i = 0; i < count; ++i) {
    const Names names(i, gradients != nullptr);
    const Argument a = {names.activation, activations + i}, t = {names.target, targets + i};
    const Argument d = {names.dist2, dist2 + i, true, !gradients};
    int where;
    if (gradients)
      FULA_TRY(check_all({a, t, d, {names.gradient, gradients + i, true, true}}, &where));
    else
      FULA_TRY(check_all({a, t, d}, &where));
    if (i == 0) *device = where;
    if (where != *device)
      return refuse(FULA_ERROR_DEVICE, "%s is not on the device of activations[0]", a.name);
    FULA_TRY(check_float(a));
    if (a.tensor->rank < 1)
      return refuse(FULA_ERROR_SHAPE, "%s has no axes: the first is the samples", a.name);
    FULA_TRY(read_depth(a, t, d, depths + i));
    if (gradients)
      FULA_TRY(read_gradient({names.gradient, gradients + i}, activations[i], depths + i));
  }
  return FULA_OK;
}

fula_status check_lists(i64 count, const void *a, const void *b, const void *c) {
  if (count < 0 || count > 1 << 20)
    return refuse(FULA_ERROR_VALUE, "count = %lld: must lie in [0, 2^20]",
                  static_cast<long long>(count));
  if (count > 0 && !(a && b && c)) return refuse(FULA_ERROR_NULL, "a list of tensors is missing");
  return FULA_OK;
}

// Numbers the tasks of all depths, one a sample; returns how many.
i64 number_tasks(Depth *depths, i64 count) {
  i64 tasks = 0;
  for (i64 i = 0; i < count; ++i) {
    depths[i].first_task = tasks;
    tasks += depths[i].lanes ? depths[i].batch : 0;
  }
  return tasks;
}

const Depth &depth_of(const Depth *depths, i64 count, i64 task) {
  const Depth *after = std::upper_bound(
      depths, depths + count, task, [](i64 t, const Depth &d) { return t < d.first_task; });
  return *(after - 1);
}

// f(depth, sample) on the pool, for every sample of every depth.
template <class F> void for_samples(Depth *depths, i64 count, const F &f) {
  parallel_for(pool_size(), number_tasks(depths, count), [&](i64 task, int) {
    const Depth &d = depth_of(depths, count, task);
    f(d, task - d.first_task);
  });
}

double coefficient(const Depth &d, i64 lane, i64 sample) {
  const i64 at = lane * d.batch + sample;
  return 2 * (d.dtype == FULA_FLOAT64 ? static_cast<const double *>(d.dist2)[at]
                                      : static_cast<const float *>(d.dist2)[at]);
}

void set_distance(const Depth &d, i64 lane, i64 sample, double value, bool first) {
  const i64 at = lane * d.batch + sample;
  if (d.dtype == FULA_FLOAT64) {
    double *out = static_cast<double *>(d.dist2) + at;
    *out = first ? value : *out + value;
  } else {
    float *out = static_cast<float *>(d.dist2) + at;
    *out = static_cast<float>(first ? value : *out + value);
  }
}

void measure(const Depth &d, i64 sample) {
  const Ops &ops = ops_for(d.dtype);
  const i64 es = element_size(d.dtype), n = pieces(d);
  if (n == 0)
    for (i64 lane = 0; lane < d.lanes; ++lane) set_distance(d, lane, sample, 0, true);
  for (i64 piece = 0; piece < n; ++piece) {
    const i64 from = sample * d.size + piece * kPiece;
    const i64 length = std::min(kPiece, d.size - piece * kPiece);
    for (i64 lane = 0; lane < d.lanes; ++lane)
      set_distance(d, lane, sample,
                   ops.distance(d.activation + (lane * d.batch * d.size + from) * es,
                                d.target + from * es, length),
                   piece == 0);
  }
}

void differentiate(const Depth &d, i64 sample) {
  const Ops &ops = ops_for(d.dtype);
  const i64 es = element_size(d.dtype), n = pieces(d);
  for (i64 piece = 0; piece < n; ++piece) {
    const i64 from = sample * d.size + piece * kPiece;
    const i64 length = std::min(kPiece, d.size - piece * kPiece);
    for (i64 lane = 0; lane < d.lanes; ++lane) {
      const i64 at = (lane * d.batch * d.size + from) * es;
      ops.distance_grad(d.activation + at, d.target + from * es, coefficient(d, lane, sample),
                        d.out + at, length);
    }
  }
}

fula_status on_gpu(const Depth *depths, i64 count, bool backward) {
  for (i64 i = 0; i < count; ++i) {
    const Depth &d = depths[i];
    FULA_TRY(cuda::hint_terms({d.activation, d.target, d.dist2, backward ? d.out : nullptr, d.dtype,
                               d.lanes, d.batch, d.size}));
  }
  return FULA_OK;
}

fula_status hint_terms(i64 count, const fula_tensor *activations, const fula_tensor *targets,
                       const fula_tensor *dist2, const fula_tensor *gradients) {
  FULA_TRY(check_lists(count, activations, targets, dist2));
  const i64 bytes = count * static_cast<i64>(sizeof(Depth));
  const Scratch scratch(bytes);
  if (!scratch.ok()) return no_memory(bytes);
  Depth *depths = scratch.at<Depth>();
  int device = FULA_CPU;
  FULA_TRY(read_depths(count, activations, targets, dist2, gradients, depths, &device));
  if (device == FULA_CUDA) return on_gpu(depths, count, gradients != nullptr);
  for_samples(depths, count, gradients ? differentiate : measure);
  return FULA_OK;
}

}  // namespace
}  // namespace fula

extern "C" fula_status fula_hint_terms_forward(int64_t count, const fula_tensor *activations,
                                               const fula_tensor *targets,
                                               const fula_tensor *dist2) {
  return fula::hint_terms(count, activations, targets, dist2, nullptr);
}

extern "C" fula_status fula_hint_terms_backward(int64_t count, const fula_tensor *activations,
                                                const fula_tensor *targets,
                                                const fula_tensor *ddist2,
                                                const fula_tensor *dactivations) {
  if (count > 0 && !dactivations)
    return fula::refuse(FULA_ERROR_NULL, "dactivations is missing");
  return fula::hint_terms(count, activations, targets, ddist2, dactivations);
}
