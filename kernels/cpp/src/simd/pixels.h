// Attack steps and image conversion.
#pragma once

#include "vec.h"

namespace fula {
namespace FULA_ISA {

template <class A> FULA_INLINE Vec<A> clamp(Vec<A> v, A low, A high) {  // keeps NaN
  const Vec<A> l = splat<A>(low), h = splat<A>(high);
  v = v < l ? l : v;
  return v > h ? h : v;
}

template <class T>
void pgd_linf(const void *xv, const void *gv, const void *cv, double step, double eps, void *out,
              i64 n) {
  using A = Sum<T>;
  const A reach = static_cast<A>(eps);
  const Vec<A> up = splat<A>(static_cast<A>(step)), none = {};
  for (i64 i = 0; i < n; i += kWidth<A>) {
    const Vec<A> g = load(static_cast<const T *>(gv) + i, n - i);
    const Vec<A> clean = load(static_cast<const T *>(cv) + i, n - i);
    const Vec<A> moved = load(static_cast<const T *>(xv) + i, n - i) +
                         (g > none ? up : (g < none ? -up : none));
    const Vec<A> offset = clamp<A>(moved - clean, -reach, reach);
    store(static_cast<T *>(out) + i, clamp<A>(clean + offset, 0, 1), n - i);
  }
}

template <class A> FULA_INLINE A inverse_norm(double square) {
  return square > 0 ? static_cast<A>(1 / __builtin_sqrt(square)) : A(0);
}

// x + step * grad / ||grad|| - clean
template <class T>
FULA_INLINE Vec<Sum<T>> l2_offset(const T *x, const T *g, const T *clean, i64 i, i64 n,
                                  Sum<T> scale) {
  return load(x + i, n - i) + splat<Sum<T>>(scale) * load(g + i, n - i) - load(clean + i, n - i);
}

template <class T>
void pgd_l2(const void *xv, const void *gv, const void *cv, double step, double eps, void *out,
            i64 n) {
  using A = Sum<T>;
  const T *x = static_cast<const T *>(xv), *g = static_cast<const T *>(gv);
  const T *clean = static_cast<const T *>(cv);
  Vec<A> square = {};
  for (i64 i = 0; i < n; i += kWidth<A>) {
    const Vec<A> v = load(g + i, n - i);
    square += v * v;
  }
  const A scale = static_cast<A>(step) * inverse_norm<A>(total(square));
  Vec<A> length = {};
  for (i64 i = 0; i < n; i += kWidth<A>) {
    const Vec<A> offset = l2_offset(x, g, clean, i, n, scale);
    length += offset * offset;
  }
  A shorten = static_cast<A>(eps) * inverse_norm<A>(total(length));
  shorten = shorten > 1 ? 1 : shorten;
  for (i64 i = 0; i < n; i += kWidth<A>) {
    const Vec<A> offset = l2_offset(x, g, clean, i, n, scale) * splat<A>(shorten);
    store(static_cast<T *>(out) + i, clamp<A>(load(clean + i, n - i) + offset, 0, 1), n - i);
  }
}

typedef std::uint8_t ByteVec __attribute__((vector_size(FULA_VECTOR_BYTES / 4)));
typedef std::int32_t IntVec __attribute__((vector_size(FULA_VECTOR_BYTES)));

template <class T> void pixels(const std::uint8_t *from, i64 n, void *out) {
  constexpr int W = kWidth<float>;
  T *to = static_cast<T *>(out);
  i64 i = 0;
  for (; i + W <= n; i += W) {
    ByteVec bytes;
    __builtin_memcpy(&bytes, from + i, sizeof bytes);
    const IntVec whole = __builtin_convertvector(bytes, IntVec);
    store(to + i, __builtin_convertvector(whole, FloatVec) / splat<float>(255.0f));
  }
  for (; i < n; ++i) narrow(to + i, static_cast<float>(from[i]) / 255.0f);
}
template <> void pixels<double>(const std::uint8_t *from, i64 n, void *out) {
  for (i64 i = 0; i < n; ++i) static_cast<double *>(out)[i] = from[i] / 255.0;
}

}  // namespace FULA_ISA
}  // namespace fula
