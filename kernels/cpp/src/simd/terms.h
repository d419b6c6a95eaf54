// Squared distance of two runs, and its gradient.
#pragma once

#include "vec.h"

namespace fula {
namespace FULA_ISA {

template <class T> double distance(const void *av, const void *gv, i64 n) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const T *a = static_cast<const T *>(av), *g = static_cast<const T *>(gv);
  Vec<A> sum[4] = {};
  i64 i = 0;
  for (; i + 4 * W <= n; i += 4 * W)
    for (int k = 0; k < 4; ++k) {
      const Vec<A> d = load(a + i + k * W) - load(g + i + k * W);
      sum[k] += d * d;
    }
  for (; i < n; i += W) {
    const Vec<A> d = load(a + i, n - i) - load(g + i, n - i);  // zero beyond the end
    sum[0] += d * d;
  }
  return total((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <class T>
void distance_grad(const void *av, const void *gv, double coef, void *dav, i64 n) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const T *a = static_cast<const T *>(av), *g = static_cast<const T *>(gv);
  T *da = static_cast<T *>(dav);
  const Vec<A> c = splat<A>(static_cast<A>(coef));
  i64 i = 0;
  for (; i + W <= n; i += W) store(da + i, c * (load(a + i) - load(g + i)));
  if (i < n) store(da + i, c * (load(a + i, n - i) - load(g + i, n - i)), n - i);
}

}  // namespace FULA_ISA
}  // namespace fula
