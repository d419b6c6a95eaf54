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

template <class A> struct Deviations {
  LongSum<A> sum, square;
  FULA_INLINE_MEMBER void add(Vec<A> s, Vec<A> q) { sum.add(s), square.add(q); }
};

// Adds d and d^2 over one contiguous run.
template <class T>
FULA_INLINE void run_moments(const T *x, i64 n, Vec<Sum<T>> pivot, Deviations<Sum<T>> &out) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  i64 i = 0;
  while (i + 4 * W <= n) {
    const i64 end = n - i < 4 * W * kShort ? i + (n - i) / (4 * W) * (4 * W) : i + 4 * W * kShort;
    Vec<A> s[4] = {}, q[4] = {};
    for (; i < end; i += 4 * W)
      for (int k = 0; k < 4; ++k) {
        const Vec<A> d = load(x + i + k * W) - pivot;
        s[k] += d, q[k] += d * d;
      }
    out.add((s[0] + s[1]) + (s[2] + s[3]), (q[0] + q[1]) + (q[2] + q[3]));
  }
  for (; i < n; i += W) {
    Vec<A> d = load(x + i, n - i) - pivot;
    if (n - i < W) d = keep<A>(d, n - i);
    out.add(d, d * d);
  }
}

template <class T>
void moments_first(const Tile &t, const void *data, double *mean, double *m2) {
  using A = Sum<T>;
  const T *x = static_cast<const T *>(data);
  const i64 head = t.samples < 8 ? 1 : t.samples / 8;
  Deviations<A> parts[kTileChannels];
  A pivots[kTileChannels];
  for (i64 c = 0; c < t.channels; ++c) {
    Deviations<A> first = {};
    for (i64 s = 0; s < head; ++s)
      run_moments(x + s * t.sample_stride + c * t.step, t.positions, Vec<A>{}, first);
    parts[c] = Deviations<A>();
    pivots[c] = static_cast<A>(first.sum.all() / static_cast<double>(head * t.positions));
  }
  for (i64 s = 0; s < t.samples; ++s)
    for (i64 c = 0; c < t.channels; ++c)
      run_moments(x + s * t.sample_stride + c * t.step, t.positions, splat<A>(pivots[c]), parts[c]);
  const double count = static_cast<double>(t.samples * t.positions);
  for (i64 c = 0; c < t.channels; ++c)
    finish_moments(pivots[c], parts[c].sum.all(), parts[c].square.all(), count, mean + c, m2 + c);
}

// Channels-last: B vectors of channels side by side, n channels where B is 1.
template <class T, int B>
FULA_INLINE void column_moments(const Tile &t, const T *x, i64 n, double *mean, double *m2) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const i64 rows = t.samples * t.positions, width = B == 1 ? n : W;
  const i64 head = rows < 8 ? 1 : rows / 8;
  Vec<A> pivot[B] = {};
  for (i64 r = 0; r < head; ++r) {
    const T *at = x + (r / t.positions) * t.sample_stride + (r % t.positions) * t.step;
    for (int b = 0; b < B; ++b) pivot[b] += load(at + b * W, width);
  }
  for (int b = 0; b < B; ++b) pivot[b] /= splat<A>(static_cast<A>(head));
  Deviations<A> parts[B] = {};
  for (i64 s = 0; s < t.samples; ++s)
    for (i64 p = 0; p < t.positions; p += 2 * kShort) {
      const i64 end = t.positions - p < 2 * kShort ? t.positions : p + 2 * kShort;
      Vec<A> sum[B] = {}, square[B] = {};
      for (i64 r = p; r < end; ++r)
        for (int b = 0; b < B; ++b) {
          const Vec<A> d = load(x + s * t.sample_stride + r * t.step + b * W, width) - pivot[b];
          sum[b] += d, square[b] += d * d;
        }
      for (int b = 0; b < B; ++b) parts[b].add(sum[b], square[b]);
    }
  for (int b = 0; b < B; ++b)
    for (i64 i = 0; i < width; ++i)
      finish_moments(pivot[b][i], parts[b].sum.at(i), parts[b].square.at(i),
                     static_cast<double>(rows), mean + b * W + i, m2 + b * W + i);
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
