// Products: a register tile of rows times one packed panel of columns.
#pragma once

#include "vec.h"

namespace fula {
namespace FULA_ISA {

constexpr int kRows = FULA_VECTOR_BYTES == 64 ? 12 : FULA_VECTOR_BYTES == 32 ? 6 : 4;
template <class A> constexpr int kPanel = 2 * kWidth<A>;

// Square block of a transposition, in registers: rows of W elements k apart become columns.
template <class T>
FULA_INLINE void pack_block(const T *from, i64 j_step, Sum<T> *panel) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  A block[W * W];
  for (int j = 0; j < W; ++j) store(block + j * W, load(from + j * j_step));
  for (int k = 0; k < W; ++k)
    for (int j = 0; j < W; ++j) panel[k * kPanel<A> + j] = block[j * W + k];
}

template <class T> void pack(const void *from_data, i64 k_step, i64 j_step, i64 k, i64 n, void *to) {
  using A = Sum<T>;
  constexpr int W = kWidth<A>;
  const T *from = static_cast<const T *>(from_data);
  A *panel = static_cast<A *>(to);
  if (j_step == 1) {
    for (i64 i = 0; i < k; ++i)
      for (i64 j = 0; j < n; j += W)
        store(panel + i * kPanel<A> + j, load(from + i * k_step + j, n - j), n - j);
    return;
  }
  const i64 whole_k = k_step == 1 ? k / W * W : 0, whole_n = k_step == 1 ? n / W * W : 0;
  for (i64 j = 0; j < whole_n; j += W)
    for (i64 i = 0; i < whole_k; i += W)
      pack_block(from + i + j * j_step, j_step, panel + i * kPanel<A> + j);
  for (i64 i = 0; i < k; ++i)
    for (i64 j = i < whole_k ? whole_n : 0; j < n; ++j)
      panel[i * kPanel<A> + j] = widen(from[i * k_step + j * j_step]);
}

// m <= kRows rows; the missing ones repeat the last and are not stored.
template <class A>
FULA_INLINE void multiply_tile(const A *a, i64 i_step, i64 k_step, i64 m, i64 k, const A *panel,
                               i64 n, A *c, i64 c_step, bool add) {
  constexpr int W = kWidth<A>;
  const A *row[kRows];
  for (int i = 0; i < kRows; ++i) row[i] = a + (i < m ? i : m - 1) * i_step;
  Vec<A> left[kRows] = {}, right[kRows] = {};
  for (i64 p = 0; p < k; ++p) {
    const Vec<A> b0 = load(panel + p * 2 * W), b1 = load(panel + p * 2 * W + W);
    const i64 at = p * k_step;
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec<A> v = splat<A>(row[i][at]);
      left[i] += v * b0;
      right[i] += v * b1;
    }
  }
  for (i64 i = 0; i < m; ++i) {
    A *to = c + i * c_step;
    if (add) left[i] += load(to, n), right[i] += n > W ? load(to + W, n - W) : Vec<A>{};
    store(to, left[i], n);
    if (n > W) store(to + W, right[i], n - W);
  }
}

template <class A>
void multiply(const void *a, i64 i_step, i64 k_step, i64 m, i64 k, const void *panel, i64 n,
              void *c, i64 c_step, bool add) {
  for (i64 i = 0; i < m; i += kRows)
    multiply_tile(static_cast<const A *>(a) + i * i_step, i_step, k_step,
                  m - i < kRows ? m - i : kRows, k, static_cast<const A *>(panel), n,
                  static_cast<A *>(c) + i * c_step, c_step, add);
}

template <class T> void widen_run(const void *from, i64 n, void *to) {
  using A = Sum<T>;
  for (i64 i = 0; i < n; i += kWidth<A>)
    store(static_cast<A *>(to) + i, load(static_cast<const T *>(from) + i, n - i), n - i);
}
template <class T> void narrow_run(const void *from, i64 n, void *to) {
  using A = Sum<T>;
  for (i64 i = 0; i < n; i += kWidth<A>)
    store(static_cast<T *>(to) + i, load(static_cast<const A *>(from) + i, n - i), n - i);
}
template <class T> void to_double(const void *from, i64 step, i64 n, double *to) {
  for (i64 i = 0; i < n; ++i)
    to[i] = static_cast<double>(widen(static_cast<const T *>(from)[i * step]));
}

FULA_INLINE bool per_element(const StitchRow &r) { return r.bias_step != 0; }

template <class A> FULA_INLINE Vec<A> biased(const StitchRow &r, i64 i, i64 n) {
  const Vec<A> y = load(static_cast<const A *>(r.y) + i, n);
  const A *bias = static_cast<const A *>(r.bias);
  if (!bias) return y;
  return y + (per_element(r) ? load(bias + i, n) : splat<A>(*bias));
}

template <class T> double stitch_out(const StitchRow &r, void *out) {
  using A = Sum<T>;
  Vec<A> sum = {};
  for (i64 i = 0; i < r.length; i += kWidth<A>) {
    const i64 n = r.length - i;
    const Vec<A> y = biased<A>(r, i, n);
    if (out) store(static_cast<T *>(out) + i, y, n);
    if (!r.target) continue;
    const Vec<A> d = y - load(static_cast<const T *>(r.target) + i, n);
    sum += n < kWidth<A> ? keep<A>(d * d, n) : d * d;
  }
  return r.target ? total(sum) : 0;
}

template <class T>
void stitch_delta(const StitchRow &r, const void *dy, double coef, void *delta, void *sums_data) {
  using A = Sum<T>;
  A *sums = static_cast<A *>(sums_data);
  Vec<A> sum = {};
  for (i64 i = 0; i < r.length; i += kWidth<A>) {
    const i64 n = r.length - i;
    Vec<A> d = {};
    if (r.target)
      d = splat<A>(static_cast<A>(coef)) *
          (biased<A>(r, i, n) - load(static_cast<const T *>(r.target) + i, n));
    if (dy) d += load(static_cast<const T *>(dy) + i, n);
    store(static_cast<A *>(delta) + i, d, n);
    if (per_element(r)) store(sums + i, load(sums + i, n) + d, n);
    else sum += n < kWidth<A> ? keep<A>(d, n) : d;
  }
  if (!per_element(r)) *sums += static_cast<A>(total(sum));
}

}  // namespace FULA_ISA
}  // namespace fula
