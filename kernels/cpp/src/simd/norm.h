// Normalise, add, rectify, and measure the distance to a target: one pass over a tile, and back.
#pragma once

#include "affine.h"

namespace fula {
namespace FULA_ISA {

constexpr float kNone = -__builtin_inff();

template <class T, bool Residual, bool Target>
FULA_INLINE Vec<Sum<T>> forward_vector(const NormForward &f, i64 at, i64 n,
                                       const Affine<Sum<T>> &affine, Vec<Sum<T>> floor) {
  using A = Sum<T>;
  Vec<A> y = before_relu<T, Residual>(f.x, f.residual, at, n, affine);
  y = y < floor ? floor : y;  // keeps NaN
  store(static_cast<T *>(f.y) + at, y, n);
  if (!Target) return Vec<A>{};
  const Vec<A> d = y - load(static_cast<const T *>(f.target) + at, n);
  return n < kWidth<A> ? keep<A>(d * d, n) : d * d;
}

template <class T, bool Residual, bool Target>
void forward_first(const Tile &t, const NormForward &f) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const Vec<A> floor = splat<A>(f.relu ? A(0) : A(kNone));
  for (i64 s = 0; s < t.samples; ++s) {
    Vec<A> dist = {}, dist1 = {};
    for (i64 c = 0; c < t.channels; ++c) {
      const Affine<A> a = affine_of<A>(f.affine, c);
      const i64 from = s * t.sample_stride + c * t.step;
      i64 p = 0;
      for (; p + 2 * W <= t.positions; p += 2 * W) {
        dist += forward_vector<T, Residual, Target>(f, from + p, W, a, floor);
        dist1 += forward_vector<T, Residual, Target>(f, from + p + W, W, a, floor);
      }
      for (; p < t.positions; p += W)
        dist += forward_vector<T, Residual, Target>(f, from + p, t.positions - p, a, floor);
    }
    if (Target) f.dist[s] = total(dist + dist1);
  }
}

template <class T, bool Residual, bool Target>
void forward_last(const Tile &t, const NormForward &f) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const Vec<A> floor = splat<A>(f.relu ? A(0) : A(kNone));
  for (i64 s = 0; s < t.samples; ++s) {
    Vec<A> dist = {}, dist1 = {};
    for (i64 p = 0; p < t.positions; ++p) {
      const i64 from = s * t.sample_stride + p * t.step;
      i64 c = 0;
      for (; c + 2 * W <= t.channels; c += 2 * W) {
        const Affine<A> a = affine_of<A>(f.affine, c, W), b = affine_of<A>(f.affine, c + W, W);
        dist += forward_vector<T, Residual, Target>(f, from + c, W, a, floor);
        dist1 += forward_vector<T, Residual, Target>(f, from + c + W, W, b, floor);
      }
      for (; c < t.channels; c += W) {
        const i64 n = t.channels - c;
        const Affine<A> a = affine_of<A>(f.affine, c, n);
        dist += forward_vector<T, Residual, Target>(f, from + c, n, a, floor);
      }
    }
    if (Target) f.dist[s] = total(dist + dist1);
  }
}

template <class T, bool Last, bool Residual>
FULA_INLINE void forward_target(const Tile &t, const NormForward &f) {
  if (Last) return f.target ? forward_last<T, Residual, true>(t, f)
                            : forward_last<T, Residual, false>(t, f);
  return f.target ? forward_first<T, Residual, true>(t, f)
                  : forward_first<T, Residual, false>(t, f);
}

template <class T, bool Last> void norm_forward(const Tile &t, const NormForward &f) {
  return f.residual ? forward_target<T, Last, true>(t, f) : forward_target<T, Last, false>(t, f);
}

}  // namespace FULA_ISA
}  // namespace fula
