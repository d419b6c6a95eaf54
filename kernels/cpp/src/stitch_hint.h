// What the two directions of stitch_hint share: reading arguments, scratch memory.
#pragma once

#include "stitch_walk.h"

namespace fula {

// Reads and checks arguments one after the other; x first, then the weight.
class StitchReader {
 public:
  StitchArguments s;

  fula_status read_x(const fula_tensor *x, const fula_tensor *x_index);
  fula_status read_weight(const fula_tensor *weight, const fula_tensor *bias);
  fula_status read_target(const fula_tensor *target, const fula_tensor *index);
  fula_status read_output(const Argument &a, Activation *out);  // (L*B, C2, ...)
  fula_status read_like_x(const Argument &a, Activation *out);
  fula_status read_sums(const Argument &a, std::initializer_list<i64> shape, const void **out);
  fula_status choose_layout();

 private:
  const fula_tensor *x_ = nullptr;
};

// The workers' matrices, and `extra` sums behind them.
template <class A> class StitchScratch {
 public:
  StitchScratch(const StitchArguments &s, const StitchWalk &walk, i64 panel, int workers, i64 extra)
      : workers_(workers), columns_(walk.most_columns()),
        weight_(s.c1 * s.c2),
        // W' (c1, c2), the block's x (c1, columns), its transpose (columns, c1) or D (c2, columns)
        panels_(std::max(padded(s.c2, panel) * s.c1,
                         panel * std::max(columns_, std::max(s.c1, s.c2)))),
        rows_(columns_ * s.c1), block_(columns_ * s.c2), other_(columns_ * std::max(panel, std::max(s.c1, s.c2))),
        sums_(s.c2), distances_(std::max(walk.run(), walk.block_samples)),
        memory_((per_worker() * workers + extra) * static_cast<i64>(sizeof(A)) +
                workers * distances_ * 8) {}

  bool ok() const { return memory_.ok(); }
  i64 bytes() const { return per_worker() * workers_ * static_cast<i64>(sizeof(A)); }

  StitchSpace<A> space(int worker) const {
    StitchSpace<A> s;
    s.distances = memory_.template at<double>() + worker * distances_;
    A *at = reinterpret_cast<A *>(memory_.template at<double>() + workers_ * distances_) +
            worker * per_worker();
    s.weight = at, at += weight_;
    s.panels = at, at += panels_;
    s.rows = at, at += rows_;
    s.block = at, at += block_;
    s.other = at, at += other_;
    s.sums = at;
    return s;
  }
  A *extra() const {
    return reinterpret_cast<A *>(memory_.template at<double>() + workers_ * distances_) +
           workers_ * per_worker();
  }

 private:
  static i64 padded(i64 n, i64 to) { return (n + to - 1) / to * to; }
  i64 per_worker() const {
    return padded(weight_ + panels_ + rows_ + block_ + other_ + sums_, 16);
  }

  const i64 workers_, columns_, weight_, panels_, rows_, block_, other_, sums_, distances_;
  const Scratch memory_;
};

}  // namespace fula
