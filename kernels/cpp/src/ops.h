// The inner kernels, one table per instruction set and element type.
//
// Tables are filled by isa_*.cpp, each compiled for its own processor; everything else is compiled
// for any. The types here are plain, so that no inline code of theirs can leak between the two.
#pragma once

#include <cstdint>

namespace fula {

using i64 = std::int64_t;

struct BFloat16 { std::uint16_t bits; };
struct Float16 { std::uint16_t bits; };

// Part of an activation: element (s, c, p) lies at s * sample_stride + c * step + p in the
// channels-first layout, at s * sample_stride + p * step + c in the channels-last one.
struct Tile {
  i64 samples, channels, positions;
  i64 sample_stride, step;
};

constexpr i64 kTileChannels = 64;  // most channels of a channels-first tile

// Per channel of a tile, in the type of sums A (float or double): (x - mean) * scale + shift.
struct AffineRows {
  const void *mean, *scale, *shift;
};

// Pointers to a tile's first element.
struct NormForward {
  const void *x, *residual, *target;  // residual, target: may be null
  void *y;
  AffineRows affine;
  double *dist;  // per sample of the tile, set if there is a target
  bool relu;
};

struct NormBackward {
  const void *dy, *x, *residual, *target;  // all but x: may be null
  AffineRows affine;
  const void *ddist2;  // A, per sample of the tile; read if there is a target
  // A, per channel: dx = scale * (dz - sum_share - (x - mean) * dot_share)
  const void *sum_share, *dot_share;
  void *dx, *dresidual;  // may be null
  double *sum, *dot;     // per channel of the tile, set: sum of dz, sum of dz * (x - mean)
  bool relu;
};

// One run of a stitch's output: y is what the product left, without the bias.
struct StitchRow {
  const void *y;     // A
  const void *bias;  // A, one for the run (bias_step 0) or one an element (1); may be null
  i64 bias_step;
  const void *target;  // T, may be null
  i64 length;
};

struct Ops {
  // Mean and sum of squared deviations of every channel of a tile.
  void (*moments[2])(const Tile &, const void *x, double *mean, double *m2);
  void (*norm_forward[2])(const Tile &, const NormForward &);
  void (*norm_sums[2])(const Tile &, const NormBackward &);
  void (*norm_backward[2])(const Tile &, const NormBackward &);  // index: channels-last

  // Sum of (a - g)^2 over n elements; da = coef * (a - g).
  double (*distance)(const void *a, const void *g, i64 n);
  void (*distance_grad)(const void *a, const void *g, double coef, void *da, i64 n);

  // Products in sums. Panels are (k, panel) row-major; pack fills n <= panel columns of one from
  // elements (k, j) at k * k_step + j * j_step.
  i64 panel;
  void (*pack)(const void *from, i64 k_step, i64 j_step, i64 k, i64 n, void *panel);
  // c (m, n) = or += a (m, k) * panel, with a's element (i, k) at i * i_step + k * k_step.
  void (*multiply)(const void *a, i64 i_step, i64 k_step, i64 m, i64 k, const void *panel, i64 n,
                   void *c, i64 c_step, bool add);
  void (*widen)(const void *from, i64 n, void *sums);
  void (*narrow)(const void *sums, i64 n, void *to);
  void (*to_double)(const void *from, i64 step, i64 n, double *to);

  // Adds the bias, stores (unless out is null), returns the squared distance to the target.
  double (*stitch_out)(const StitchRow &, void *out);
  // In place of y: coef * (y + bias - target) [if there is a target] + dy [if given]; adds to sums
  // (A) as the bias runs.
  void (*stitch_delta)(const StitchRow &, const void *dy, double coef, void *delta, void *sums);

  void (*pgd_linf)(const void *x, const void *grad, const void *clean, double step, double eps,
                   void *out, i64 n);
  void (*pgd_l2)(const void *x, const void *grad, const void *clean, double step, double eps,
                 void *out, i64 n);
  void (*pixels)(const std::uint8_t *from, i64 n, void *to);  // x / 255, rounded once
};

}  // namespace fula
