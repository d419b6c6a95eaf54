// fula_stitch_hint_backward.
#include "stitch_hint.h"

#include "cuda/cuda.h"

namespace fula {
namespace {

// With D = dy + 2 * ddist2 * (y - target): dW = sum of D x', db = sum of D, dx = W' D.
template <class A> class StitchBackward {
 public:
  explicit StitchBackward(const StitchArguments &s)
      : s_(s), ops_(ops_for(s.x.dtype)), sums_(ops_for(sum_dtype(s.x.dtype))),
        walk_(s, ops_.panel), workers_(pool_size()),
        // Few lanes are split, so that threads have work; the parts stay few, whatever the lanes.
        run_(std::max(walk_.run(), (s.batch * s.lanes + 15) / 16)),
        splits_(s.batch ? (s.batch + run_ - 1) / run_ : 0), size_(s.c2 * (s.c1 + 1)) {}

  fula_status run() {
    const StitchScratch<A> scratch(s_, walk_, ops_.panel, workers_, s_.lanes * splits_ * size_);
    if (!scratch.ok()) return no_memory(scratch.bytes());
    if (s_.dweight || s_.dbias) {
      parallel_for(workers_, s_.lanes * splits_, [&](i64 task, int worker) {
        weight_gradient(task / splits_, task % splits_, scratch.space(worker),
                        scratch.extra() + task * size_);
      });
      for (i64 lane = 0; lane < s_.lanes; ++lane)
        add_parts(lane, scratch.extra() + lane * splits_ * size_);
    }
    const i64 run = walk_.run(), runs = (s_.batch + run - 1) / run;
    if (s_.dx.data)
      parallel_for(workers_, s_.sources * runs, [&](i64 task, int worker) {
        const i64 from = task % runs * run;
        input_gradient(task / runs, from, std::min(s_.batch, from + run), scratch.space(worker));
      });
    return FULA_OK;
  }

 private:
  // The part of dW (c2, c1), and behind it of db (c2), from a split's samples.
  void weight_gradient(i64 lane, i64 split, const StitchSpace<A> &space, A *part) const {
    StitchProduct<A> product(s_);
    product.prepare(lane, space);
    std::fill(part, part + size_, A(0));
    const i64 from = split * run_, to = std::min(s_.batch, from + run_);
    walk_.blocks(from, to, [&](const Block &block) {
      std::fill(space.sums, space.sums + s_.c2, A(0));
      output_gradient(lane, block, product, space);
      for (i64 c = 0; c < s_.c2; ++c) part[s_.c1 * s_.c2 + c] += space.sums[c];
      for (i64 j = 0; s_.dweight && j < s_.c1; j += ops_.panel) {
        const i64 n = std::min(ops_.panel, s_.c1 - j), columns = block.columns();
        product.pack_x(block, j, n, space.other);
        ops_.multiply(space.block, s_.last ? 1 : columns, s_.last ? s_.c2 : 1, s_.c2, columns,
                      space.other, n, part + j, s_.c1, true);
      }
    });
  }

  void add_parts(i64 lane, const A *parts) const {
    for (i64 i = 0; i < size_; ++i) {
      double sum = 0;
      for (i64 k = 0; k < splits_; ++k) sum += parts[k * size_ + i];
      const bool in_weight = i < s_.c1 * s_.c2;
      A *to = static_cast<A *>(in_weight ? s_.dweight : s_.dbias);
      if (to) to[in_weight ? lane * s_.c1 * s_.c2 + i : lane * s_.c2 + i - s_.c1 * s_.c2] =
          static_cast<A>(sum);
    }
  }

  // D into space.block; its sums over the columns are added to space.sums (c2).
  void output_gradient(i64 lane, const Block &block, const StitchProduct<A> &product,
                       const StitchSpace<A> &space) const {
    if (s_.ddist2 && !s_.y.data) product.multiply(block, space, space.block);
    const i64 es = element_size(s_.x.dtype), group = s_.batch * s_.c2 * s_.positions;
    const A *bias = static_cast<const A *>(s_.bias) + lane * s_.c2;
    const A *slope = static_cast<const A *>(s_.ddist2) + lane * s_.batch + block.sample;
    for_rows(s_.last, block, s_.c2, [&](i64 channel, i64 sample, i64 in_block, i64 length) {
      const i64 at = row_at(s_.last, block, s_.positions, s_.c2, channel, sample, in_block);
      A *y = space.block + in_block;
      StitchRow row = {y, bias + channel, s_.last, nullptr, length};
      if (s_.ddist2) row.target = s_.target.data + (s_.target_index[lane] * group + at) * es;
      if (s_.ddist2 && s_.y.data) {
        ops_.widen(s_.y.data + (lane * group + at) * es, length, y);
        row.bias = nullptr;  // y has it
      }
      ops_.stitch_delta(row, s_.dy.data ? s_.dy.data + (lane * group + at) * es : nullptr,
                        s_.ddist2 ? 2.0 * slope[sample] : 0.0, y, space.sums + channel);
    });
  }

  // dx of one source: the lanes that read it, in order.
  void input_gradient(i64 source, i64 from, i64 to, const StitchSpace<A> &space) const {
    StitchProduct<A> product(s_);
    walk_.blocks(from, to, [&](const Block &block) {
      const i64 columns = block.columns();
      std::fill(space.other, space.other + s_.c1 * columns, A(0));
      for (i64 lane = 0; lane < s_.lanes; ++lane) {
        if (s_.x_index[lane] != source) continue;
        product.prepare(lane, space);
        output_gradient(lane, block, product, space);
        add_input_gradient(columns, product.weight(), space);
      }
      store_input_gradient(source, block, space.other);
    });
  }

  void add_input_gradient(i64 columns, const A *weight, const StitchSpace<A> &space) const {
    const i64 width = s_.last ? s_.c1 : columns;  // of the result
    for (i64 j = 0; j < width; j += ops_.panel) {
      const i64 n = std::min(ops_.panel, width - j);
      sums_.pack(s_.last ? weight + j : space.block + j, width, 1, s_.c2, n, space.panels);
      if (s_.last)
        sums_.multiply(space.block, s_.c2, 1, columns, s_.c2, space.panels, n, space.other + j,
                       s_.c1, true);
      else
        sums_.multiply(weight, 1, s_.c1, s_.c1, s_.c2, space.panels, n, space.other + j, columns,
                       true);
    }
  }

  void store_input_gradient(i64 source, const Block &block, const A *sums) const {
    const i64 es = element_size(s_.x.dtype), group = s_.batch * s_.c1 * s_.positions;
    for_rows(s_.last, block, s_.c1, [&](i64 channel, i64 sample, i64 in_block, i64 length) {
      const i64 at = row_at(s_.last, block, s_.positions, s_.c1, channel, sample, in_block);
      ops_.narrow(sums + in_block, length, s_.dx.data + (source * group + at) * es);
    });
  }

  const StitchArguments &s_;
  const Ops &ops_, &sums_;
  const StitchWalk walk_;
  const int workers_;
  const i64 run_, splits_, size_;
};

}  // namespace
}  // namespace fula

extern "C" fula_status fula_stitch_hint_backward(
    const fula_tensor *dy, const fula_tensor *ddist2, const fula_tensor *x,
    const fula_tensor *weight, const fula_tensor *bias, const fula_tensor *x_index,
    const fula_tensor *target, const fula_tensor *target_index, const fula_tensor *y,
    const fula_tensor *dweight, const fula_tensor *dbias, const fula_tensor *dx) {
  using namespace fula;
  const bool measured = ddist2 != nullptr;
  int device;
  FULA_TRY(check_all({{"dy", dy, false}, {"ddist2", ddist2, false}, {"x", x}, {"weight", weight},
                      {"bias", bias}, {"x_index", x_index, true, false, true}, {"target", target, measured},
                      {"target_index", target_index, measured, false, true}, {"y", y, false},
                      {"dweight", dweight, false, true}, {"dbias", dbias, false, true},
                      {"dx", dx, false, true}}, &device));
  StitchReader reader;
  StitchArguments &s = reader.s;
  FULA_TRY(reader.read_x(x, x_index));
  FULA_TRY(reader.read_weight(weight, bias));
  if (measured) FULA_TRY(reader.read_target(target, target_index));
  FULA_TRY(reader.read_output({"dy", dy}, &s.dy));
  FULA_TRY(reader.read_output({"y", y}, &s.y));
  FULA_TRY(reader.read_like_x({"dx", dx}, &s.dx));
  FULA_TRY(reader.read_sums({"ddist2", ddist2}, {s.lanes, s.batch}, &s.ddist2));
  FULA_TRY(reader.read_sums({"dweight", dweight}, {s.lanes, s.c2, s.c1},
                            const_cast<const void **>(&s.dweight)));
  FULA_TRY(reader.read_sums({"dbias", dbias}, {s.lanes, s.c2},
                            const_cast<const void **>(&s.dbias)));
  FULA_TRY(reader.choose_layout());
  if (device == FULA_CUDA) return cuda::stitch_hint_backward(s);
  return s.x.dtype == FULA_FLOAT64 ? StitchBackward<double>(s).run()
                                   : StitchBackward<float>(s).run();
}
