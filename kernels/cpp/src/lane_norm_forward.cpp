// fula_lane_norm_forward.
#include <cmath>
#include <cstring>

#include "cpu.h"
#include "cuda/cuda.h"
#include "norm_arguments.h"
#include "pool.h"

namespace fula {
namespace {

// Mean and squared deviations of `rows` values, per channel; merging is Chan's formula.
struct Moments {
  double *mean, *m2;
  double rows = 0;

  void merge(const double *other_mean, const double *other_m2, double other_rows, i64 channels) {
    const double all = rows + other_rows;
    const double share = other_rows / all, cross = rows * share;
    for (i64 c = 0; c < channels; ++c) {
      const double delta = other_mean[c] - mean[c];
      mean[c] = rows == 0 ? other_mean[c] : mean[c] + delta * share;
      m2[c] = rows == 0 ? other_m2[c] : m2[c] + other_m2[c] + delta * delta * cross;
    }
    rows = all;
  }
};

template <class A> class Forward {
 public:
  Forward(const NormArguments &n, const NormWalk &walk)
      : n_(n), walk_(walk), ops_(ops_for(n.x.dtype)), workers_(pool_size()) {}

  fula_status run() {
    const i64 c = walk_.channels, chunks = walk_.chunks();
    if (c == 0) return nothing();
    const i64 per_worker = 2 * c + walk_.tile_samples;
    const i64 dist_parts = walk_.last ? 1 : chunks;
    const i64 bytes = 8 * (workers_ * per_worker + walk_.lanes * (2 * c * (walk_.last ? chunks : 1) +
                                                                  2 * c + dist_parts * walk_.batch));
    const Scratch scratch(bytes);
    if (!scratch.ok()) return no_memory(bytes);
    per_worker_ = scratch.at<double>();
    moments_ = per_worker_ + workers_ * per_worker;
    affine_ = moments_ + walk_.lanes * 2 * c * (walk_.last ? chunks : 1);
    dist_ = affine_ + walk_.lanes * 2 * c;
    stride_ = per_worker;
    walk_.last ? in_two_phases() : chunk_by_chunk();
    sum_distances(dist_parts);
    return FULA_OK;
  }

 private:
  A *mean(i64 lane) const { return static_cast<A *>(n_.mean) + lane * walk_.channels; }
  A *var(i64 lane) const { return static_cast<A *>(n_.var) + lane * walk_.channels; }
  A *scale(i64 lane) const { return reinterpret_cast<A *>(affine_ + lane * 2 * walk_.channels); }
  A *shift(i64 lane) const { return scale(lane) + walk_.channels; }
  double *worker_space(int worker) const { return per_worker_ + worker * stride_; }

  fula_status nothing() {
    if (n_.dist2) std::memset(n_.dist2, 0, sizeof(A) * n_.x.samples);
    return FULA_OK;
  }

  void chunk_by_chunk() {
    const i64 chunks = walk_.chunks(), c = walk_.channels;
    parallel_for(workers_, walk_.lanes * chunks, [&](i64 task, int worker) {
      const i64 lane = task / chunks, chunk = task % chunks, from = walk_.first_channel(chunk);
      double *moments = moments_ + lane * 2 * c + from;
      Moments total{moments, moments + c};
      if (n_.training) collect(lane, chunk, worker, &total);
      finish(lane, from, walk_.chunk_channels(chunk), total);
      apply(lane, chunk, chunk, worker);
    });
  }

  void in_two_phases() {
    const i64 chunks = walk_.chunks(), c = walk_.channels, step = walk_.lanes_at_once();
    for (i64 from = 0; from < walk_.lanes; from += step) {
      const i64 to = std::min(walk_.lanes, from + step), tasks = (to - from) * chunks;
      if (n_.training)
        parallel_for(workers_, tasks, [&](i64 task, int worker) {
          double *moments = moments_ + (from * chunks + task) * 2 * c;
          Moments total{moments, moments + c};
          collect(from + task / chunks, task % chunks, worker, &total);
        });
      for (i64 lane = from; lane < to; ++lane) finish_lane(lane);
      parallel_for(workers_, tasks, [&](i64 task, int worker) {
        const i64 back = tasks - 1 - task;  // what was read last is still near
        apply(from + back / chunks, back % chunks, 0, worker);
      });
    }
  }

  void collect(i64 lane, i64 chunk, int worker, Moments *total) {
    double *mean = worker_space(worker), *m2 = mean + walk_.channels;
    const char *x = n_.x.data + lane * walk_.lane() * walk_.bytes;
    walk_.tiles(chunk, [&](const Tile &tile, i64, i64 offset) {
      ops_.moments[walk_.last](tile, x + offset * walk_.bytes, mean, m2);
      total->merge(mean, m2, static_cast<double>(tile.samples * tile.positions), tile.channels);
    });
  }

  // The channels-last case: merge a lane's chunks into its first.
  void finish_lane(i64 lane) {
    const i64 chunks = walk_.chunks(), c = walk_.channels;
    double *parts = moments_ + lane * chunks * 2 * c;
    Moments total{parts, parts + c};
    for (i64 k = 0; n_.training && k < chunks; ++k) {
      const double rows = static_cast<double>(
          std::min(walk_.run, walk_.batch - k * walk_.run) * walk_.positions);
      if (k == 0) total.rows = rows;
      else total.merge(parts + k * 2 * c, parts + k * 2 * c + c, rows, c);
    }
    finish(lane, 0, c, total);
  }

  // Statistics out, and what normalises: (x - mean) * scale + shift.
  void finish(i64 lane, i64 from, i64 channels, const Moments &total) {
    for (i64 c = from; c < from + channels; ++c) {
      if (n_.training) {
        mean(lane)[c] = static_cast<A>(walk_.rows() > 0 ? total.mean[c - from] : NAN);
        var(lane)[c] = static_cast<A>(walk_.rows() > 0 ? total.m2[c - from] / total.rows : NAN);
      }
      const A *weight = static_cast<const A *>(n_.weight) + lane * n_.weight_stride;
      const A *bias = static_cast<const A *>(n_.bias) + lane * n_.weight_stride;
      scale(lane)[c] = static_cast<A>(weight[c] / std::sqrt(var(lane)[c] + n_.eps));
      shift(lane)[c] = bias[c];
    }
  }

  void apply(i64 lane, i64 chunk, i64 part, int worker) {
    const i64 es = walk_.bytes, base = lane * walk_.lane() * es;
    const i64 from = walk_.first_channel(chunk);
    double *tile_dist = worker_space(worker) + 2 * walk_.channels;
    double *dist = dist_ + (lane * (walk_.last ? 1 : walk_.chunks()) + part) * walk_.batch;
    walk_.tiles(chunk, [&](const Tile &tile, i64 sample, i64 offset) {
      const i64 at = base + offset * es;
      NormForward f = {};
      f.x = n_.x.data + at, f.y = n_.y.data + at;
      f.residual = n_.residual.data ? n_.residual.data + at : nullptr;
      f.target = n_.target.data ? n_.target.data + offset * es : nullptr;
      f.affine = {mean(lane) + from, scale(lane) + from, shift(lane) + from};
      f.dist = tile_dist, f.relu = n_.relu;
      ops_.norm_forward[walk_.last](tile, f);
      if (f.target) add_distances(tile, offset, dist + sample, tile_dist);
    });
  }

  // The first tile of a sample sets its distance, later ones add to it.
  void add_distances(const Tile &tile, i64 offset, double *dist, const double *tile_dist) const {
    const i64 in_sample = offset % walk_.sample();
    const i64 position = walk_.last ? in_sample / walk_.channels : in_sample % walk_.positions;
    for (i64 s = 0; s < tile.samples; ++s)
      dist[s] = (position == 0 ? 0 : dist[s]) + tile_dist[s];
  }

  void sum_distances(i64 parts) {
    if (!n_.dist2) return;
    const i64 batch = walk_.batch;
    for (i64 lane = 0; lane < walk_.lanes; ++lane)
      for (i64 b = 0; b < batch; ++b) {
        double sum = 0;
        for (i64 part = 0; walk_.sample() > 0 && part < parts; ++part)
          sum += dist_[(lane * parts + part) * batch + b];
        static_cast<A *>(n_.dist2)[lane * batch + b] = static_cast<A>(sum);
      }
  }

  const NormArguments &n_;
  const NormWalk &walk_;
  const Ops &ops_;
  const int workers_;
  double *per_worker_ = nullptr, *moments_ = nullptr, *affine_ = nullptr, *dist_ = nullptr;
  i64 stride_ = 0;
};

}  // namespace
}  // namespace fula

extern "C" fula_status fula_lane_norm_forward(
    const fula_tensor *x, const fula_tensor *weight, const fula_tensor *bias,
    const fula_tensor *mean, const fula_tensor *var, const fula_tensor *residual,
    const fula_tensor *target, int64_t lanes, int32_t training, double eps, int32_t relu,
    const fula_tensor *y, const fula_tensor *dist2) {
  using namespace fula;
  int device;
  FULA_TRY(check_all({{"x", x}, {"weight", weight}, {"bias", bias}, {"mean", mean, true, training != 0},
                      {"var", var, true, training != 0}, {"residual", residual, false},
                      {"target", target, dist2 != nullptr}, {"y", y, true, true},
                      {"dist2", dist2, target != nullptr, true}}, &device));
  NormArguments n;
  FULA_TRY(n.read_common(x, weight, bias, mean, var, residual, target,
                         {lanes, training != 0, relu != 0, eps}));
  FULA_TRY(n.read_like_x({"y", y}, &n.y));
  FULA_TRY(n.read_distances({"dist2", dist2}, &n.dist2));
  bool last;
  FULA_TRY(common_layout({&n.x, &n.residual, &n.target, &n.y}, &last));
  if (device == FULA_CUDA) return cuda::lane_norm_forward(n, last);
  const NormWalk walk(n.x, lanes, last);
  return n.x.dtype == FULA_FLOAT64 ? Forward<double>(n, walk).run() : Forward<float>(n, walk).run();
}
