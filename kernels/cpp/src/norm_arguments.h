// The arguments of lane_norm, checked and read once for both directions.
#pragma once

#include <cmath>

#include "norm_walk.h"

namespace fula {

struct NormOptions {
  i64 lanes;
  bool training, relu;
  double eps;
};

struct NormArguments {
  Activation x, residual, target, y, dy, dx, dresidual;
  void *weight = nullptr, *bias = nullptr, *mean = nullptr, *var = nullptr;
  void *dist2 = nullptr, *ddist2 = nullptr, *dweight = nullptr, *dbias = nullptr;
  i64 weight_stride = 0;
  i64 lanes = 0;
  bool training = false, relu = false;
  double eps = 0;
  const fula_tensor *x_tensor = nullptr;

  // What forward and backward share.
  fula_status read_common(const fula_tensor *x_given, const fula_tensor *weight_given,
                          const fula_tensor *bias_given, const fula_tensor *mean_given,
                          const fula_tensor *var_given, const fula_tensor *residual_given,
                          const fula_tensor *target_given, const NormOptions &options) {
    FULA_TRY(read_options(options));
    FULA_TRY(read_x(x_given));
    FULA_TRY(read_weight({"weight", weight_given}, &weight));
    FULA_TRY(read_weight({"bias", bias_given}, &bias));
    if (weight_given->rank != bias_given->rank)
      return refuse(FULA_ERROR_SHAPE, "weight has %d axes and bias %d: both must be (C) or (L, C)",
                    weight_given->rank, bias_given->rank);
    FULA_TRY(read_statistics({"mean", mean_given}, &mean));
    FULA_TRY(read_statistics({"var", var_given}, &var));
    FULA_TRY(read_like_x({"residual", residual_given}, &residual));
    return read_target(target_given);
  }

  // (L, C), or absent.
  fula_status read_statistics(const Argument &a, void **out) {
    return read_sums(a, x.channels, out);
  }
  // (L, B), or absent.
  fula_status read_distances(const Argument &a, void **out) {
    return read_sums(a, lanes ? x.samples / lanes : 0, out);
  }

  fula_status read_like_x(const Argument &a, Activation *out) {
    if (!a.tensor) return FULA_OK;
    FULA_TRY(check_dtype(a, x.dtype));
    FULA_TRY(check_like_x(a, x_tensor->shape[0]));
    return read_activation(a, 1, out);
  }

 private:
  fula_status read_options(const NormOptions &o) {
    lanes = o.lanes, training = o.training, relu = o.relu, eps = o.eps;
    if (lanes < 0)
      return refuse(FULA_ERROR_VALUE, "lanes = %lld: must be at least 0",
                    static_cast<long long>(lanes));
    if (!(eps >= 0) || std::isinf(eps))
      return refuse(FULA_ERROR_VALUE, "eps = %g: must be finite and at least 0", eps);
    return FULA_OK;
  }

  fula_status read_x(const fula_tensor *t) {
    FULA_TRY(read_activation({"x", t}, 1, &x));
    if (lanes == 0 ? x.samples != 0 : x.samples % lanes != 0)
      return refuse(FULA_ERROR_SHAPE, "x has %lld samples: not a multiple of lanes = %lld",
                    static_cast<long long>(x.samples), static_cast<long long>(lanes));
    x_tensor = t;
    return FULA_OK;
  }

  // (C), or (L, C).
  fula_status read_weight(const Argument &a, void **out) {
    FULA_TRY(check_dtype(a, sum_dtype(x.dtype)));
    FULA_TRY(check_contiguous(a));
    if (a.tensor->rank == 2) {
      FULA_TRY(check_shape(a, {lanes, x.channels}));
      weight_stride = x.channels;
    } else {
      FULA_TRY(check_shape(a, {x.channels}));
    }
    *out = a.tensor->data;
    return FULA_OK;
  }

  fula_status read_target(const fula_tensor *t) {
    if (!t) return FULA_OK;
    const Argument a = {"target", t};
    FULA_TRY(check_dtype(a, x.dtype));
    FULA_TRY(check_like_x(a, lanes || !t->rank ? x.samples / std::max<i64>(1, lanes) : t->shape[0]));
    return read_activation(a, 1, &target);
  }

  fula_status read_sums(const Argument &a, i64 length, void **out) {
    if (!a.tensor) return FULA_OK;
    FULA_TRY(check_dtype(a, sum_dtype(x.dtype)));
    // No lanes: any second length will do.
    FULA_TRY(check_shape(a, {lanes, lanes || a.tensor->rank != 2 ? length : a.tensor->shape[1]}));
    FULA_TRY(check_contiguous(a));
    *out = a.tensor->data;
    return FULA_OK;
  }

  fula_status check_like_x(const Argument &a, i64 samples) const {
    i64 expected[FULA_MAX_RANK];
    for (int i = 0; i < x_tensor->rank; ++i) expected[i] = i ? x_tensor->shape[i] : samples;
    return check_shape(a, expected, x_tensor->rank);
  }
};

}  // namespace fula
