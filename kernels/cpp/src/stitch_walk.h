// How stitch_hint goes through its activations, and the arguments of both directions.
//
// A block is a few samples, or a run of positions of one: `columns` places (sample, position) whose
// product with a lane's weight fits the second-level cache. Channels-first blocks are
// (channels, columns) matrices, channels-last ones (columns, channels).
#pragma once

#include <algorithm>

#include "cpu.h"
#include "pool.h"
#include "tensor.h"

namespace fula {

struct StitchArguments {
  Activation x, target, y, dy, dx;  // absent ones have no data
  const void *weight = nullptr, *bias = nullptr, *ddist2 = nullptr;
  const i64 *x_index = nullptr, *target_index = nullptr;
  void *dist2 = nullptr, *dweight = nullptr, *dbias = nullptr;
  i64 lanes = 0, sources = 0, batch = 0, c1 = 0, c2 = 0, positions = 0;
  bool last = false;
};

struct Block {
  i64 sample, samples, position, positions;
  i64 columns() const { return samples * positions; }
};

struct StitchWalk {
  i64 batch, positions, block_samples, block_positions;

  StitchWalk(const StitchArguments &s, i64 panel) : batch(s.batch), positions(s.positions) {
    const i64 widest = std::max<i64>(1, std::max(s.c1, s.c2));
    const i64 columns = std::clamp<i64>(65536 / widest / panel * panel, 2 * panel, 16 * panel);
    block_positions = std::min(positions, columns);
    block_samples = std::max<i64>(1, columns / std::max<i64>(1, positions));
  }

  i64 most_columns() const { return block_samples * block_positions; }
  // Samples of a task: enough to make packing the weight worth its while.
  i64 run() const {
    return (std::max<i64>(256, most_columns()) + positions - 1) / std::max<i64>(1, positions);
  }

  // f(block) for the blocks of the samples [from, to).
  template <class F> void blocks(i64 from, i64 to, const F &f) const {
    for (i64 b = from; b < to; b += block_samples)
      for (i64 p = 0; p < positions; p += block_positions)
        f(Block{b, std::min(block_samples, to - b), p, std::min(block_positions, positions - p)});
  }
};

// Matrices of one worker, in sums (A).
template <class A> struct StitchSpace {
  A *weight, *panels, *rows, *block, *other, *sums;
  double *distances;
};

// A piece of an activation (groups, batch, channels, positions) under a block: rows of contiguous
// elements. Channels-first rows are (channel, sample), channels-last ones (sample, position).
template <class Row>
void for_rows(bool last, const Block &block, i64 channels, const Row &row) {
  if (last) {
    for (i64 r = 0; r < block.columns(); ++r) row(i64{0}, r / block.positions, r * channels, channels);
  } else {
    for (i64 c = 0; c < channels; ++c)
      for (i64 s = 0; s < block.samples; ++s)
        row(c, s, c * block.columns() + s * block.positions, block.positions);
  }
}

// Where the row of `for_rows` lies in an activation of `channels` channels, in elements from the
// start of its group of samples.
inline i64 row_at(bool last, const Block &b, i64 positions, i64 channels, i64 channel, i64 sample,
                  i64 in_block) {
  const i64 base = (b.sample + sample) * channels * positions;
  if (!last) return base + channel * positions + b.position;
  return base + (b.position + in_block / channels % b.positions) * channels;
}

// The stitch of one lane on one block, without the bias: Y = W X, or Y' = X' W'.
template <class A> class StitchProduct {
 public:
  StitchProduct(const StitchArguments &s) : s_(s), ops_(ops_for(s.x.dtype)) {}

  // The weight as the products use it: rounded to the activations' dtype.
  const A *rounded_weight(i64 lane, A *space) const {
    const A *weight = static_cast<const A *>(s_.weight) + lane * s_.c1 * s_.c2;
    if (s_.x.dtype == FULA_FLOAT32 || s_.x.dtype == FULA_FLOAT64) return weight;
    const i64 count = s_.c1 * s_.c2, piece = 512;
    char narrow[piece * 2];
    for (i64 i = 0; i < count; i += piece) {
      ops_.narrow(weight + i, std::min(piece, count - i), narrow);
      ops_.widen(narrow, std::min(piece, count - i), space + i);
    }
    return space;
  }

  // Y into space.block, from the lane's weight made ready by `prepare`.
  void prepare(i64 lane, const StitchSpace<A> &space) {
    weight_ = rounded_weight(lane, space.weight);
    if (s_.last) pack_weight(space.panels);
    x_ = s_.x.data + s_.x_index[lane] * s_.batch * s_.c1 * s_.positions * element_size(s_.x.dtype);
  }
  const A *weight() const { return weight_; }

  void multiply(const Block &block, const StitchSpace<A> &space, A *out) const {
    s_.last ? rows_times_weight(block, space, out) : weight_times_columns(block, space, out);
  }

  // The block's x with channels behind one another: panels (columns, c1) for dW.
  void pack_x(const Block &b, i64 first, i64 channels, A *panel) const {
    const i64 es = element_size(s_.x.dtype);
    if (s_.last) {
      const i64 from = (b.sample * s_.positions + b.position) * s_.c1 + first;
      return ops_.pack(x_ + from * es, s_.c1, 1, b.columns(), channels, panel);
    }
    for (i64 s = 0; s < b.samples; ++s) {
      const i64 from = ((b.sample + s) * s_.c1 + first) * s_.positions + b.position;
      ops_.pack(x_ + from * es, 1, s_.positions, b.positions, channels,
                panel + s * b.positions * ops_.panel);
    }
  }

 private:
  void pack_weight(A *panels) const {  // W' as panels of c2
    const Ops &sums = ops_for(sum_dtype(s_.x.dtype));
    for (i64 j = 0; j < s_.c2; j += ops_.panel)
      sums.pack(weight_ + j * s_.c1, 1, s_.c1, s_.c1, std::min(ops_.panel, s_.c2 - j),
                panels + j * s_.c1);
  }

  void rows_times_weight(const Block &b, const StitchSpace<A> &space, A *out) const {
    const i64 from = (b.sample * s_.positions + b.position) * s_.c1;
    const char *x = x_ + from * element_size(s_.x.dtype);
    const A *rows = reinterpret_cast<const A *>(x);
    if (s_.x.dtype != FULA_FLOAT32 && s_.x.dtype != FULA_FLOAT64) {
      ops_.widen(x, b.columns() * s_.c1, space.rows);
      rows = space.rows;
    }
    for (i64 j = 0; j < s_.c2; j += ops_.panel)
      ops_.multiply(rows, s_.c1, 1, b.columns(), s_.c1, space.panels + j * s_.c1,
                    std::min(ops_.panel, s_.c2 - j), out + j, s_.c2, false);
  }

  void weight_times_columns(const Block &b, const StitchSpace<A> &space, A *out) const {
    const i64 columns = b.columns();
    for (i64 j = 0; j < columns; j += ops_.panel) {
      const i64 n = std::min(ops_.panel, columns - j);
      pack_columns(b, j, n, space.panels);
      ops_.multiply(weight_, s_.c1, 1, s_.c2, s_.c1, space.panels, n, out + j, columns, false);
    }
  }

  // Columns [first, first + n) of the block, whichever samples they belong to.
  void pack_columns(const Block &b, i64 first, i64 n, A *panel) const {
    for (i64 j = 0; j < n;) {
      const i64 sample = (first + j) / b.positions, position = (first + j) % b.positions;
      const i64 run = std::min(n - j, b.positions - position);
      const i64 from = (b.sample + sample) * s_.c1 * s_.positions + b.position + position;
      ops_.pack(x_ + from * element_size(s_.x.dtype), s_.positions, 1, s_.c1, run, panel + j);
      j += run;
    }
  }

  const StitchArguments &s_;
  const Ops &ops_;
  const A *weight_ = nullptr;
  const char *x_ = nullptr;
};

}  // namespace fula
