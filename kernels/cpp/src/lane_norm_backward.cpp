// fula_lane_norm_backward.
#include <cmath>

#include "cpu.h"
#include "cuda/cuda.h"
#include "norm_arguments.h"
#include "pool.h"

namespace fula {
namespace {

// With dz the gradient before the ReLU and rows = B * positions, per lane and channel:
//     dx = weight / sigma * (dz - sum(dz) / rows - (x - mean) * sum(dz * (x - mean)) / (rows * sigma^2))
// where the two sums are left out when not training.
template <class A> class Backward {
 public:
  Backward(const NormArguments &n, const NormWalk &walk)
      : n_(n), walk_(walk), ops_(ops_for(n.x.dtype)), workers_(pool_size()),
        sums_needed_((n.training && n.dx.data) || n.dweight || n.dbias),
        grads_needed_(n.dx.data || n.dresidual.data) {}

  fula_status run() {
    const i64 c = walk_.channels, parts = walk_.last ? walk_.chunks() : 1;
    if (c == 0) return FULA_OK;
    const i64 bytes = 8 * (workers_ * 2 * c + walk_.lanes * (parts * 2 * c + 4 * c));
    const Scratch scratch(bytes);
    if (!scratch.ok()) return no_memory(bytes);
    per_worker_ = scratch.at<double>();
    sums_ = per_worker_ + workers_ * 2 * c;
    slopes_ = sums_ + walk_.lanes * parts * 2 * c;
    walk_.last ? in_two_phases() : chunk_by_chunk();
    return FULA_OK;
  }

 private:
  const A *mean(i64 lane) const { return static_cast<A *>(n_.mean) + lane * walk_.channels; }
  A *scale(i64 lane) const { return reinterpret_cast<A *>(slopes_ + lane * 4 * walk_.channels); }
  A *shift(i64 lane) const { return scale(lane) + walk_.channels; }
  A *sum_share(i64 lane) const { return scale(lane) + 2 * walk_.channels; }
  A *dot_share(i64 lane) const { return scale(lane) + 3 * walk_.channels; }

  void chunk_by_chunk() {
    const i64 chunks = walk_.chunks(), c = walk_.channels;
    parallel_for(workers_, walk_.lanes * chunks, [&](i64 task, int worker) {
      const i64 lane = task / chunks, chunk = task % chunks, from = walk_.first_channel(chunk);
      double *sum = sums_ + lane * 2 * c + from;
      prepare(lane, from, walk_.chunk_channels(chunk));
      if (sums_needed_) collect(lane, chunk, worker, sum, sum + c);
      finish(lane, from, walk_.chunk_channels(chunk), sum, sum + c);
      if (grads_needed_) apply(lane, chunk);
    });
  }

  void in_two_phases() {
    const i64 chunks = walk_.chunks(), c = walk_.channels, step = walk_.lanes_at_once();
    for (i64 from = 0; from < walk_.lanes; from += step) {
      const i64 to = std::min(walk_.lanes, from + step), tasks = (to - from) * chunks;
      for (i64 lane = from; lane < to; ++lane) prepare(lane, 0, c);
      if (sums_needed_)
        parallel_for(workers_, tasks, [&](i64 task, int worker) {
          double *sum = sums_ + (from * chunks + task) * 2 * c;
          collect(from + task / chunks, task % chunks, worker, sum, sum + c);
        });
      for (i64 lane = from; lane < to; ++lane) finish_lane(lane);
      if (grads_needed_)
        parallel_for(workers_, tasks, [&](i64 task, int) {
          const i64 back = tasks - 1 - task;  // what was read last is still near
          apply(from + back / chunks, back % chunks);
        });
    }
  }

  NormBackward pointers(i64 lane, i64 chunk, i64 sample, i64 offset) const {
    const i64 at = (lane * walk_.lane() + offset) * walk_.bytes;
    const i64 c = walk_.first_channel(chunk);
    const auto moved = [at](const Activation &a) { return a.data ? a.data + at : nullptr; };
    NormBackward g = {};
    g.dy = moved(n_.dy), g.x = moved(n_.x), g.residual = moved(n_.residual);
    g.dx = moved(n_.dx), g.dresidual = moved(n_.dresidual);
    if (n_.ddist2) {
      g.target = n_.target.data + offset * walk_.bytes;
      g.ddist2 = static_cast<const A *>(n_.ddist2) + lane * walk_.batch + sample;
    }
    g.affine = {mean(lane) + c, scale(lane) + c, shift(lane) + c};
    g.sum_share = sum_share(lane) + c, g.dot_share = dot_share(lane) + c;
    g.relu = n_.relu;
    return g;
  }

  void collect(i64 lane, i64 chunk, int worker, double *sum, double *dot) {
    double *tile_sum = per_worker_ + worker * 2 * walk_.channels;
    double *tile_dot = tile_sum + walk_.channels;
    for (i64 c = 0; c < walk_.chunk_channels(chunk); ++c) sum[c] = dot[c] = 0;
    walk_.tiles(chunk, [&](const Tile &tile, i64 sample, i64 offset) {
      NormBackward g = pointers(lane, chunk, sample, offset);
      g.sum = tile_sum, g.dot = tile_dot;
      ops_.norm_sums[walk_.last](tile, g);
      for (i64 c = 0; c < tile.channels; ++c) sum[c] += tile_sum[c], dot[c] += tile_dot[c];
    });
  }

  void finish_lane(i64 lane) {
    const i64 chunks = walk_.chunks(), c = walk_.channels;
    double *sum = sums_ + lane * chunks * 2 * c;
    for (i64 i = c * 2; sums_needed_ && i < chunks * c * 2; ++i) sum[i % (c * 2)] += sum[i];
    finish(lane, 0, c, sum, sum + c);
  }

  double sigma(i64 lane, i64 c) const {
    return std::sqrt(static_cast<const A *>(n_.var)[lane * walk_.channels + c] + n_.eps);
  }

  // What the output is computed from again.
  void prepare(i64 lane, i64 from, i64 channels) {
    const A *weight = static_cast<const A *>(n_.weight) + lane * n_.weight_stride;
    const A *bias = static_cast<const A *>(n_.bias) + lane * n_.weight_stride;
    for (i64 c = from; c < from + channels; ++c) {
      scale(lane)[c] = static_cast<A>(weight[c] / sigma(lane, c));
      shift(lane)[c] = bias[c];
    }
  }

  void finish(i64 lane, i64 from, i64 channels, const double *sum, const double *dot) {
    const double rows = walk_.rows();
    for (i64 c = from; c < from + channels; ++c) {
      const double spread = sigma(lane, c);
      const double s = sums_needed_ && rows > 0 ? sum[c - from] : 0;
      const double d = sums_needed_ && rows > 0 ? dot[c - from] : 0;
      sum_share(lane)[c] = static_cast<A>(n_.training ? s / rows : 0);
      dot_share(lane)[c] = static_cast<A>(n_.training ? d / (rows * spread * spread) : 0);
      if (n_.dweight)
        static_cast<A *>(n_.dweight)[lane * walk_.channels + c] = static_cast<A>(d / spread);
      if (n_.dbias) static_cast<A *>(n_.dbias)[lane * walk_.channels + c] = static_cast<A>(s);
    }
  }

  void apply(i64 lane, i64 chunk) {
    walk_.tiles(chunk, [&](const Tile &tile, i64 sample, i64 offset) {
      ops_.norm_backward[walk_.last](tile, pointers(lane, chunk, sample, offset));
    });
  }

  const NormArguments &n_;
  const NormWalk &walk_;
  const Ops &ops_;
  const int workers_;
  const bool sums_needed_, grads_needed_;
  double *per_worker_ = nullptr, *sums_ = nullptr, *slopes_ = nullptr;
};

}  // namespace
}  // namespace fula

extern "C" fula_status fula_lane_norm_backward(
    const fula_tensor *dy, const fula_tensor *ddist2, const fula_tensor *x,
    const fula_tensor *weight, const fula_tensor *bias, const fula_tensor *mean,
    const fula_tensor *var, const fula_tensor *residual, const fula_tensor *target, int64_t lanes,
    int32_t training, double eps, int32_t relu, const fula_tensor *dx,
    const fula_tensor *dresidual, const fula_tensor *dweight, const fula_tensor *dbias) {
  using namespace fula;
  int device;
  FULA_TRY(check_all({{"dy", dy, false}, {"ddist2", ddist2, false}, {"x", x}, {"weight", weight},
                      {"bias", bias}, {"mean", mean}, {"var", var}, {"residual", residual, false},
                      {"target", target, ddist2 != nullptr}, {"dx", dx, false, true},
                      {"dresidual", dresidual, false, true}, {"dweight", dweight, false, true},
                      {"dbias", dbias, false, true}}, &device));
  NormArguments n;
  FULA_TRY(n.read_common(x, weight, bias, mean, var, residual, target,
                         {lanes, training != 0, relu != 0, eps}));
  FULA_TRY(n.read_like_x({"dy", dy}, &n.dy));
  FULA_TRY(n.read_distances({"ddist2", ddist2}, &n.ddist2));
  FULA_TRY(n.read_like_x({"dx", dx}, &n.dx));
  FULA_TRY(n.read_like_x({"dresidual", dresidual}, &n.dresidual));
  FULA_TRY(n.read_statistics({"dweight", dweight}, &n.dweight));
  FULA_TRY(n.read_statistics({"dbias", dbias}, &n.dbias));
  bool last;
  FULA_TRY(common_layout({&n.x, &n.dy, &n.residual, &n.target, &n.dx, &n.dresidual}, &last));
  if (device == FULA_CUDA) return cuda::lane_norm_backward(n, last);
  const NormWalk walk(n.x, lanes, last);
  return n.x.dtype == FULA_FLOAT64 ? Backward<double>(n, walk).run()
                                   : Backward<float>(n, walk).run();
}
