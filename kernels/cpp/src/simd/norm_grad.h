// Backward of norm.h: the gradient before the ReLU (dz), its sums per channel, and dx from them.
//
// The forward output is computed again from x and the residual: it costs no more memory traffic than
// reading it back, and is not rounded.
#pragma once

#include "affine.h"

namespace fula {
namespace FULA_ISA {

// What dz is made of: dy given, residual given, target given, and the output needed (for the ReLU
// or the target).
template <bool Dy, bool Residual, bool Target, bool Output> struct Parts {};

template <class T, bool Dy, bool Residual, bool Target, bool Output>
FULA_INLINE Vec<Sum<T>> gradient_before_relu(Parts<Dy, Residual, Target, Output>,
                                             const NormBackward &g, i64 at, i64 n,
                                             const Affine<Sum<T>> &affine, Vec<Sum<T>> coef,
                                             Vec<Sum<T>> floor) {
  using A = Sum<T>;
  Vec<A> dz = {};
  if (Dy) dz = load(static_cast<const T *>(g.dy) + at, n);
  if (!Output) return dz;
  const Vec<A> y = before_relu<T, Residual>(g.x, g.residual, at, n, affine);
  if (Target) dz += coef * (y - load(static_cast<const T *>(g.target) + at, n));
  return y <= floor ? Vec<A>{} : dz;
}

// Below every number where there is no ReLU: NaN compares false.
template <class A> FULA_INLINE Vec<A> relu_floor(const NormBackward &g) {
  return splat<A>(g.relu ? A(0) : A(__builtin_nanf("")));
}

template <class A> FULA_INLINE Vec<A> coef_at(const NormBackward &g, i64 s) {
  return splat<A>(g.target ? 2 * static_cast<const A *>(g.ddist2)[s] : A(0));
}

template <class T, class P>
FULA_INLINE void sum_vector(P parts, const NormBackward &g, i64 at, i64 n,
                            const Affine<Sum<T>> &affine, Vec<Sum<T>> coef, Vec<Sum<T>> floor,
                            Vec<Sum<T>> &sum, Vec<Sum<T>> &dot) {
  using A = Sum<T>;
  Vec<A> dz = gradient_before_relu<T>(parts, g, at, n, affine, coef, floor);
  Vec<A> x = load(static_cast<const T *>(g.x) + at, n) - affine.mean;
  if (n < kWidth<A>) dz = keep<A>(dz, n), x = keep<A>(x, n);
  sum += dz;
  dot += dz * x;
}

template <class A> struct Products {
  LongSum<A> sum, dot;
  FULA_INLINE_MEMBER void add(Vec<A> s, Vec<A> d) { sum.add(s), dot.add(d); }
};

template <class T, class P> void sums_first(P parts, const Tile &t, const NormBackward &g) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const Vec<A> floor = relu_floor<A>(g);
  Products<A> products[kTileChannels];
  for (i64 c = 0; c < t.channels; ++c) products[c] = Products<A>();
  for (i64 s = 0; s < t.samples; ++s) {
    const Vec<A> coef = coef_at<A>(g, s);
    for (i64 c = 0; c < t.channels; ++c) {
      const Affine<A> affine = affine_of<A>(g.affine, c);
      const i64 from = s * t.sample_stride + c * t.step;
      for (i64 p = 0; p < t.positions;) {
        const i64 end = t.positions - p < 2 * W * kShort ? t.positions : p + 2 * W * kShort;
        Vec<A> sum[2] = {}, dot[2] = {};
        for (; p + 2 * W <= end; p += 2 * W)
          for (int k = 0; k < 2; ++k)
            sum_vector<T>(parts, g, from + p + k * W, W, affine, coef, floor, sum[k], dot[k]);
        for (; p < end; p += W)
          sum_vector<T>(parts, g, from + p, end - p, affine, coef, floor, sum[0], dot[0]);
        products[c].add(sum[0] + sum[1], dot[0] + dot[1]);
      }
    }
  }
  for (i64 c = 0; c < t.channels; ++c)
    g.sum[c] = products[c].sum.all(), g.dot[c] = products[c].dot.all();
}

// B vectors of channels side by side; n channels where B is 1.
template <class T, int B, class P>
FULA_INLINE void sum_columns(P parts, const Tile &t, const NormBackward &g, i64 c, i64 n) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const i64 width = B == 1 ? n : W;
  const Vec<A> floor = relu_floor<A>(g);
  Affine<A> affine[B];
  Products<A> products[B] = {};
  for (int b = 0; b < B; ++b) affine[b] = affine_of<A>(g.affine, c + b * W, width);
  for (i64 s = 0; s < t.samples; ++s) {
    const Vec<A> coef = coef_at<A>(g, s);
    for (i64 p = 0; p < t.positions; p += 2 * kShort) {
      const i64 end = t.positions - p < 2 * kShort ? t.positions : p + 2 * kShort;
      Vec<A> sum[B] = {}, dot[B] = {};
      for (i64 r = p; r < end; ++r)
        for (int b = 0; b < B; ++b)
          sum_vector<T>(parts, g, s * t.sample_stride + r * t.step + c + b * W, width, affine[b],
                        coef, floor, sum[b], dot[b]);
      for (int b = 0; b < B; ++b) products[b].add(sum[b], dot[b]);
    }
  }
  for (int b = 0; b < B; ++b)
    for (i64 i = 0; i < width; ++i)
      g.sum[c + b * W + i] = products[b].sum.at(i), g.dot[c + b * W + i] = products[b].dot.at(i);
}

template <class T, class P> void sums_last(P parts, const Tile &t, const NormBackward &g) {
  constexpr int W = kWidth<Sum<T>>;
  i64 c = 0;
  for (; c + 2 * W <= t.channels; c += 2 * W) sum_columns<T, 2>(parts, t, g, c, W);
  for (; c < t.channels; c += W)
    sum_columns<T, 1>(parts, t, g, c, t.channels - c < W ? t.channels - c : W);
}

// dx = scale * (dz - sum_share - (x - mean) * dot_share)
template <class A> struct Shares { Vec<A> sum, dot; };

template <class T, class P>
FULA_INLINE void grad_vector(P parts, const NormBackward &g, i64 at, i64 n,
                             const Affine<Sum<T>> &affine, const Shares<Sum<T>> &shares,
                             Vec<Sum<T>> coef, Vec<Sum<T>> floor) {
  using A = Sum<T>;
  const Vec<A> dz = gradient_before_relu<T>(parts, g, at, n, affine, coef, floor);
  if (g.dresidual) store(static_cast<T *>(g.dresidual) + at, dz, n);
  if (!g.dx) return;
  const Vec<A> x = load(static_cast<const T *>(g.x) + at, n) - affine.mean;
  store(static_cast<T *>(g.dx) + at, affine.scale * (dz - shares.sum - x * shares.dot), n);
}

template <class T, class P> void grad_first(P parts, const Tile &t, const NormBackward &g) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const Vec<A> floor = relu_floor<A>(g);
  for (i64 s = 0; s < t.samples; ++s) {
    const Vec<A> coef = coef_at<A>(g, s);
    for (i64 c = 0; c < t.channels; ++c) {
      const Affine<A> affine = affine_of<A>(g.affine, c);
      const Shares<A> shares = {splat_sum<A>(g.sum_share, c), splat_sum<A>(g.dot_share, c)};
      const i64 from = s * t.sample_stride + c * t.step;
      i64 p = 0;
      for (; p + W <= t.positions; p += W)
        grad_vector<T>(parts, g, from + p, W, affine, shares, coef, floor);
      if (p < t.positions)
        grad_vector<T>(parts, g, from + p, t.positions - p, affine, shares, coef, floor);
    }
  }
}

template <class T, class P> void grad_last(P parts, const Tile &t, const NormBackward &g) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const Vec<A> floor = relu_floor<A>(g);
  for (i64 s = 0; s < t.samples; ++s) {
    const Vec<A> coef = coef_at<A>(g, s);
    for (i64 p = 0; p < t.positions; ++p)
      for (i64 c = 0; c < t.channels; c += W) {
        const i64 n = t.channels - c;
        const Affine<A> affine = affine_of<A>(g.affine, c, n);
        const Shares<A> shares = {sums_at<A>(g.sum_share, c, n), sums_at<A>(g.dot_share, c, n)};
        grad_vector<T>(parts, g, s * t.sample_stride + p * t.step + c, n, affine, shares, coef,
                       floor);
      }
  }
}

// Calls `body` with the Parts that the given pointers make.
template <bool Residual, class Body>
FULA_INLINE void with_output(const NormBackward &g, Body body) {
  if (!g.target) return body(Parts<true, Residual, false, true>{});
  if (g.dy) return body(Parts<true, Residual, true, true>{});
  return body(Parts<false, Residual, true, true>{});
}
template <class Body> FULA_INLINE void with_parts(const NormBackward &g, Body body) {
  if (!g.target && !g.dy) return body(Parts<false, false, false, false>{});
  if (!g.target && !g.relu) return body(Parts<true, false, false, false>{});
  return g.residual ? with_output<true>(g, body) : with_output<false>(g, body);
}

template <class T, bool Last> void norm_sums(const Tile &t, const NormBackward &g) {
  with_parts(g, [&](auto parts) {
    return Last ? sums_last<T>(parts, t, g) : sums_first<T>(parts, t, g);
  });
}
template <class T, bool Last> void norm_backward(const Tile &t, const NormBackward &g) {
  with_parts(g, [&](auto parts) {
    return Last ? grad_last<T>(parts, t, g) : grad_first<T>(parts, t, g);
  });
}

}  // namespace FULA_ISA
}  // namespace fula
