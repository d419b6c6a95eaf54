// Mean and sum of squared deviations of every channel of a tile.
//
// One pass around a pivot K, the mean of the tile's first samples: with d = x - K, mean = K +
// sum(d)/n and m2 = sum(d^2) - sum(d)^2/n. The pivot comes from the data itself, so the subtraction
// loses at most the digits of n / n_pivot, whatever the mean of x.
#pragma once

#include "vec.h"

namespace fula {
namespace FULA_ISA {

FULA_INLINE void finish_moments(double pivot, double sum, double square, double count,
                                double *mean, double *m2) {
  *mean = pivot + sum / count;
  const double rest = square - sum * sum / count;
  *m2 = rest < 0 ? 0 : rest;  // keeps NaN
}

// Sums of d and d^2 over one contiguous run.
template <class T>
FULA_INLINE void run_moments(const T *x, i64 n, Vec<Sum<T>> pivot, Vec<Sum<T>> &sum,
                             Vec<Sum<T>> &square) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  i64 i = 0;
  if (n >= 4 * W) {
    Vec<A> s1 = {}, s2 = {}, s3 = {}, q1 = {}, q2 = {}, q3 = {};
    for (; i + 4 * W <= n; i += 4 * W) {
      const Vec<A> d0 = load(x + i) - pivot, d1 = load(x + i + W) - pivot;
      const Vec<A> d2 = load(x + i + 2 * W) - pivot, d3 = load(x + i + 3 * W) - pivot;
      sum += d0, s1 += d1, s2 += d2, s3 += d3;
      square += d0 * d0, q1 += d1 * d1, q2 += d2 * d2, q3 += d3 * d3;
    }
    sum += s1 + (s2 + s3);
    square += q1 + (q2 + q3);
  }
  for (; i + W <= n; i += W) {
    const Vec<A> d = load(x + i) - pivot;
    sum += d, square += d * d;
  }
  if (i < n) {
    const Vec<A> d = keep<A>(load(x + i, n - i) - pivot, n - i);
    sum += d, square += d * d;
  }
}

template <class T>
void moments_first(const Tile &t, const void *data, double *mean, double *m2) {
  using A = Sum<T>;
  const T *x = static_cast<const T *>(data);
  const i64 head = t.samples < 8 ? 1 : t.samples / 8;
  Vec<A> sums[kTileChannels], squares[kTileChannels];
  A pivots[kTileChannels];
  for (i64 c = 0; c < t.channels; ++c) {
    Vec<A> sum = {}, square = {};
    for (i64 s = 0; s < head; ++s)
      run_moments(x + s * t.sample_stride + c * t.step, t.positions, Vec<A>{}, sum, square);
    pivots[c] = static_cast<A>(total(sum) / static_cast<double>(head * t.positions));
    sums[c] = Vec<A>{}, squares[c] = Vec<A>{};
  }
  for (i64 s = 0; s < t.samples; ++s)
    for (i64 c = 0; c < t.channels; ++c)
      run_moments(x + s * t.sample_stride + c * t.step, t.positions, splat<A>(pivots[c]), sums[c],
                  squares[c]);
  const double count = static_cast<double>(t.samples * t.positions);
  for (i64 c = 0; c < t.channels; ++c)
    finish_moments(pivots[c], total(sums[c]), total(squares[c]), count, mean + c, m2 + c);
}

// Channels-last: B vectors of channels side by side, n channels in the last one.
template <class T, int B>
FULA_INLINE void column_moments(const Tile &t, const T *x, i64 n, double *mean, double *m2) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const i64 rows = t.samples * t.positions;
  const i64 head = rows < 8 ? 1 : rows / 8;
  Vec<A> pivot[B] = {}, sum[B] = {}, square[B] = {};
  const auto row = [&](i64 r) {
    return x + (r / t.positions) * t.sample_stride + (r % t.positions) * t.step;
  };
  for (i64 r = 0; r < head; ++r)
    for (int b = 0; b < B; ++b) pivot[b] += load(row(r) + b * W, B == 1 ? n : W);
  for (int b = 0; b < B; ++b) pivot[b] /= splat<A>(static_cast<A>(head));
  for (i64 s = 0; s < t.samples; ++s) {
    const T *at = x + s * t.sample_stride;
    for (i64 p = 0; p < t.positions; ++p, at += t.step)
      for (int b = 0; b < B; ++b) {
        const Vec<A> d = load(at + b * W, B == 1 ? n : W) - pivot[b];
        sum[b] += d, square[b] += d * d;
      }
  }
  for (int b = 0; b < B; ++b)
    for (i64 i = 0; i < (B == 1 ? n : W); ++i)
      finish_moments(pivot[b][i], sum[b][i], square[b][i], static_cast<double>(rows),
                     mean + b * W + i, m2 + b * W + i);
}

template <class T>
void moments_last(const Tile &t, const void *data, double *mean, double *m2) {
  constexpr int W = kWidth<Sum<T>>;
  constexpr int B = FULA_VECTOR_BYTES == 64 ? 4 : 2;
  const T *x = static_cast<const T *>(data);
  i64 c = 0;
  for (; c + B * W <= t.channels; c += B * W)
    column_moments<T, B>(t, x + c, W, mean + c, m2 + c);
  for (; c < t.channels; c += W)
    column_moments<T, 1>(t, x + c, t.channels - c < W ? t.channels - c : W, mean + c, m2 + c);
}

}  // namespace FULA_ISA
}  // namespace fula
