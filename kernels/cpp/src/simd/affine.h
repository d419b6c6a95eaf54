// The value that lane_norm rectifies: computed forward, and again backward.
#pragma once

#include "vec.h"

namespace fula {
namespace FULA_ISA {

// Parameters of the channels under one vector.
template <class A> struct Affine { Vec<A> mean, scale, shift; };

template <class A> FULA_INLINE Vec<A> splat_sum(const void *p, i64 c) {
  return splat<A>(static_cast<const A *>(p)[c]);
}
template <class A> FULA_INLINE Vec<A> sums_at(const void *p, i64 c, i64 n) {
  return load(static_cast<const A *>(p) + c, n);
}

// One channel's, in every place; or those of n channels side by side.
template <class A> FULA_INLINE Affine<A> affine_of(const AffineRows &rows, i64 c) {
  return {splat_sum<A>(rows.mean, c), splat_sum<A>(rows.scale, c), splat_sum<A>(rows.shift, c)};
}
template <class A> FULA_INLINE Affine<A> affine_of(const AffineRows &rows, i64 c, i64 n) {
  return {sums_at<A>(rows.mean, c, n), sums_at<A>(rows.scale, c, n), sums_at<A>(rows.shift, c, n)};
}

template <class T, bool Residual>
FULA_INLINE Vec<Sum<T>> before_relu(const void *x, const void *residual, i64 at, i64 n,
                                    const Affine<Sum<T>> &a) {
  const Vec<Sum<T>> y = (load(static_cast<const T *>(x) + at, n) - a.mean) * a.scale + a.shift;
  return Residual ? y + load(static_cast<const T *>(residual) + at, n) : y;
}

}  // namespace FULA_ISA
}  // namespace fula
