// The table of one instruction set, for every element type.
#pragma once

#include "moments.h"
#include "norm.h"
#include "norm_grad.h"
#include "pixels.h"
#include "product.h"
#include "terms.h"

namespace fula {
namespace FULA_ISA {

template <class T> constexpr Ops make_ops() {
  Ops ops{};
  ops.moments[0] = moments_first<T>, ops.moments[1] = moments_last<T>;
  ops.norm_forward[0] = norm_forward<T, false>, ops.norm_forward[1] = norm_forward<T, true>;
  ops.norm_sums[0] = norm_sums<T, false>, ops.norm_sums[1] = norm_sums<T, true>;
  ops.norm_backward[0] = norm_backward<T, false>, ops.norm_backward[1] = norm_backward<T, true>;
  ops.distance = distance<T>, ops.distance_grad = distance_grad<T>;
  ops.panel = kPanel<Sum<T>>;
  ops.pack = pack<T>, ops.multiply = multiply<Sum<T>>;
  ops.widen = widen_run<T>, ops.narrow = narrow_run<T>, ops.to_double = to_double<T>;
  ops.stitch_out = stitch_out<T>, ops.stitch_delta = stitch_delta<T>;
  ops.pgd_linf = pgd_linf<T>, ops.pgd_l2 = pgd_l2<T>, ops.pixels = pixels<T>;
  return ops;
}

// In the order of fula_dtype.
extern const Ops kTable[4];
const Ops kTable[4] = {make_ops<float>(), make_ops<BFloat16>(), make_ops<Float16>(),
                       make_ops<double>()};

}  // namespace FULA_ISA
}  // namespace fula
