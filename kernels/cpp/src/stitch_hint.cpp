// fula_stitch_hint_forward, and the reading of arguments for both directions.
#include "stitch_hint.h"

#include "cuda/cuda.h"

namespace fula {
namespace {

template <class A> class StitchForward {
 public:
  explicit StitchForward(const StitchArguments &s)
      : s_(s), ops_(ops_for(s.x.dtype)), walk_(s, ops_.panel), workers_(pool_size()) {}

  fula_status run() {
    const StitchScratch<A> scratch(s_, walk_, ops_.panel, workers_, 0);
    if (!scratch.ok()) return no_memory(scratch.bytes());
    const i64 run = walk_.run(), runs = (s_.batch + run - 1) / run;
    parallel_for(workers_, s_.lanes * runs, [&](i64 task, int worker) {
      const i64 lane = task / runs, from = task % runs * run;
      samples(lane, from, std::min(s_.batch, from + run), scratch.space(worker));
    });
    return FULA_OK;
  }

 private:
  void samples(i64 lane, i64 from, i64 to, const StitchSpace<A> &space) const {
    StitchProduct<A> product(s_);
    product.prepare(lane, space);
    std::fill(space.distances, space.distances + (to - from), 0.0);
    walk_.blocks(from, to, [&](const Block &block) {
      product.multiply(block, space, space.block);
      finish(lane, block, space.block, space.distances + (block.sample - from));
    });
    for (i64 b = from; s_.dist2 && b < to; ++b)
      static_cast<A *>(s_.dist2)[lane * s_.batch + b] = static_cast<A>(space.distances[b - from]);
  }

  // Bias, output and distances of one block.
  void finish(i64 lane, const Block &block, const A *products, double *distances) const {
    const i64 es = element_size(s_.x.dtype), group = s_.batch * s_.c2 * s_.positions;
    const A *bias = static_cast<const A *>(s_.bias) + lane * s_.c2;
    for_rows(s_.last, block, s_.c2, [&](i64 channel, i64 sample, i64 in_block, i64 length) {
      const i64 at = row_at(s_.last, block, s_.positions, s_.c2, channel, sample, in_block);
      StitchRow row = {products + in_block, bias + channel, s_.last, nullptr, length};
      if (s_.target.data) row.target = s_.target.data + (s_.target_index[lane] * group + at) * es;
      distances[sample] +=
          ops_.stitch_out(row, s_.y.data ? s_.y.data + (lane * group + at) * es : nullptr);
    });
  }

  const StitchArguments &s_;
  const Ops &ops_;
  const StitchWalk walk_;
  const int workers_;
};

fula_status check_indices(const Argument &a, i64 lanes, i64 end, const i64 **out) {
  FULA_TRY(check_dtype(a, FULA_INT64));
  FULA_TRY(check_shape(a, {lanes}));
  FULA_TRY(check_contiguous(a));
  const i64 *index = static_cast<const i64 *>(a.tensor->data);
  for (i64 lane = 0; lane < lanes; ++lane)
    if (index[lane] < 0 || index[lane] >= end)
      return refuse(FULA_ERROR_INDEX, "%s[%lld] = %lld: must lie in [0, %lld)", a.name,
                    static_cast<long long>(lane), static_cast<long long>(index[lane]),
                    static_cast<long long>(end));
  *out = index;
  return FULA_OK;
}

}  // namespace

fula_status StitchReader::read_x(const fula_tensor *x, const fula_tensor *x_index) {
  FULA_TRY(read_activation({"x", x}, 2, &s.x));
  x_ = x;
  s.sources = x->shape[0], s.batch = x->shape[1], s.c1 = x->shape[2], s.positions = s.x.positions;
  s.lanes = x_index->rank == 1 ? x_index->shape[0] : 0;
  return check_indices({"x_index", x_index, true, false, true}, s.lanes, s.sources, &s.x_index);
}

fula_status StitchReader::read_weight(const fula_tensor *weight, const fula_tensor *bias) {
  const Argument w = {"weight", weight}, b = {"bias", bias};
  s.c2 = weight->rank == 3 ? weight->shape[1] : 0;
  FULA_TRY(read_sums(w, {s.lanes, s.c2, s.c1}, &s.weight));
  return read_sums(b, {s.lanes, s.c2}, &s.bias);
}

fula_status StitchReader::read_target(const fula_tensor *target, const fula_tensor *index) {
  if (!target) return FULA_OK;
  i64 shape[FULA_MAX_RANK] = {target->rank > 0 ? target->shape[0] : 0, s.batch, s.c2};
  for (int i = 3; i < x_->rank; ++i) shape[i] = x_->shape[i];
  FULA_TRY(check_dtype({"target", target}, s.x.dtype));
  FULA_TRY(check_shape({"target", target}, shape, x_->rank));
  FULA_TRY(read_activation({"target", target}, 2, &s.target));
  return check_indices({"target_index", index}, s.lanes, shape[0], &s.target_index);
}

fula_status StitchReader::read_output(const Argument &a, Activation *out) {
  if (!a.tensor) return FULA_OK;
  i64 shape[FULA_MAX_RANK] = {s.lanes * s.batch, s.c2};
  for (int i = 3; i < x_->rank; ++i) shape[i - 1] = x_->shape[i];
  FULA_TRY(check_dtype(a, s.x.dtype));
  FULA_TRY(check_shape(a, shape, x_->rank - 1));
  return read_activation(a, 1, out);
}

fula_status StitchReader::read_like_x(const Argument &a, Activation *out) {
  if (!a.tensor) return FULA_OK;
  FULA_TRY(check_dtype(a, s.x.dtype));
  FULA_TRY(check_shape(a, x_->shape, x_->rank));
  return read_activation(a, 2, out);
}

fula_status StitchReader::read_sums(const Argument &a, std::initializer_list<i64> shape,
                                    const void **out) {
  if (!a.tensor) return FULA_OK;
  FULA_TRY(check_dtype(a, sum_dtype(s.x.dtype)));
  FULA_TRY(check_shape(a, shape));
  FULA_TRY(check_contiguous(a));
  *out = a.tensor->data;
  return FULA_OK;
}

fula_status StitchReader::choose_layout() {
  return common_layout({&s.x, &s.target, &s.y, &s.dy, &s.dx}, &s.last);
}

}  // namespace fula

extern "C" fula_status fula_stitch_hint_forward(
    const fula_tensor *x, const fula_tensor *weight, const fula_tensor *bias,
    const fula_tensor *x_index, const fula_tensor *target, const fula_tensor *target_index,
    const fula_tensor *y, const fula_tensor *dist2) {
  using namespace fula;
  const bool measured = target || target_index || dist2;
  int device;
  FULA_TRY(check_all({{"x", x}, {"weight", weight}, {"bias", bias}, {"x_index", x_index, true, false, true},
                      {"target", target, measured}, {"target_index", target_index, measured, false, true},
                      {"y", y, false, true}, {"dist2", dist2, measured, true}}, &device));
  StitchReader reader;
  StitchArguments &s = reader.s;
  FULA_TRY(reader.read_x(x, x_index));
  FULA_TRY(reader.read_weight(weight, bias));
  FULA_TRY(reader.read_target(target, target_index));
  FULA_TRY(reader.read_output({"y", y}, &s.y));
  FULA_TRY(reader.read_sums({"dist2", dist2}, {s.lanes, s.batch}, const_cast<const void **>(&s.dist2)));
  FULA_TRY(reader.choose_layout());
  if (!y && !dist2) return FULA_OK;
  if (device == FULA_CUDA) return cuda::stitch_hint_forward(s);
  return s.x.dtype == FULA_FLOAT64 ? StitchForward<double>(s).run() : StitchForward<float>(s).run();
}
