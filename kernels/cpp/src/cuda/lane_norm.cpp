// lane_norm from the Triton kernels; kernels/cuda/README.md says how they are launched.
#include "cuda.h"
#include "session.h"

namespace fula {
namespace cuda {
namespace {

constexpr i64 kMostChunks = 128;  // what one program merges
constexpr unsigned kNaN = 0x7fc00000u;

class Norm {
 public:
  Norm(Session &session, const NormArguments &n, bool last)
      : s_(session), n_(n), last_(last), batch_(n.lanes ? n.x.samples / n.lanes : 0),
        rows_(batch_ * n.x.positions) {}

  fula_status open() {
    FULA_TRY(dtype_name(n_.x.dtype, &dtype_));
    FULA_TRY(s_.open({n_.mean, n_.x.data, n_.dist2}));
    fast_ = last_ && n_.x.channels % 16 == 0 &&
            aligned({n_.x.data, n_.residual.data, n_.target.data, n_.y.data, n_.dy.data, n_.dx.data,
                     n_.dresidual.data, n_.weight, n_.bias, n_.mean, n_.var, n_.ddist2});
    return FULA_OK;
  }

  fula_status forward() {
    if (n_.x.size() * n_.x.samples == 0) return nothing();
    if (n_.training) FULA_TRY(statistics());
    return normalise();
  }

  fula_status backward() {
    const i64 channels = n_.x.channels;
    if (n_.x.size() * n_.x.samples == 0) {
      FULA_TRY(fill(n_.dweight, 0, n_.lanes * channels));
      return fill(n_.dbias, 0, n_.lanes * channels);
    }
    Pointer d = reinterpret_cast<Pointer>(n_.dresidual.data ? n_.dresidual.data : n_.dx.data);
    if (!d) FULA_TRY(s_.scratch(n_.x.samples * n_.x.size() * element_size(n_.x.dtype), &d));
    Pointer sums;
    FULA_TRY(s_.scratch_floats(n_.lanes * 2 * channels, &sums));
    FULA_TRY(gradient_sums(d, sums));
    for (i64 lane = 0; lane < n_.lanes; ++lane) {  // (L, 2, C) apart
      const Pointer from = sums + 8 * lane * channels;
      if (n_.dbias) FULA_TRY(s_.copy(row(n_.dbias, lane), from, 4 * channels));
      if (n_.dweight) FULA_TRY(s_.copy(row(n_.dweight, lane), from + 4 * channels, 4 * channels));
    }
    return n_.dx.data ? input_gradient(d, sums) : FULA_OK;
  }

 private:
  Pointer row(void *table, i64 lane) const {
    return reinterpret_cast<Pointer>(table) + static_cast<Pointer>(4 * lane * n_.x.channels);
  }
  fula_status fill(void *to, unsigned value, i64 words) {
    return to ? s_.fill_words(reinterpret_cast<Pointer>(to), value, words) : FULA_OK;
  }
  fula_status nothing() {
    if (n_.training) {
      FULA_TRY(fill(n_.mean, kNaN, n_.lanes * n_.x.channels));
      FULA_TRY(fill(n_.var, kNaN, n_.lanes * n_.x.channels));
    }
    return fill(n_.dist2, 0, n_.x.samples);
  }

  std::string name(const char *step, bool residual, bool target) const {
    return std::string("lane_norm_") + step + (residual ? "_residual" : "") +
           (target ? "_target" : "") + "_" + dtype_ + (fast_ ? "_fast" : "_any");
  }

  // Sizes and parameters that every kernel of the noun takes.
  void describe(Launch &launch) const {
    launch.number("lanes", n_.lanes).number("samples", batch_);
    launch.number("positions", n_.x.positions).number("channels", n_.x.channels);
    launch.number("affine_stride", n_.weight_stride).real("eps", n_.eps);
    launch.real("floor", n_.relu ? 0.0 : -INFINITY);
    launch.pointer("weight", n_.weight).pointer("bias", n_.bias);
    launch.pointer("mean", n_.mean).pointer("var", n_.var);
    launch.pointer("x", n_.x.data).strides("x", strides_of(n_.x, last_));
  }

  // An input of the call; or one zero, where a kernel has it all the same (`fast` ones have not).
  fula_status input(Launch &launch, const char *name, const Activation &a) {
    if (!a.data && fast_) return FULA_OK;
    Pointer zero = reinterpret_cast<Pointer>(a.data);
    if (!a.data) FULA_TRY(s_.zero(&zero));
    launch.pointer(name, zero).strides(name, strides_of(a, last_));
    return FULA_OK;
  }

  // Few chunks of `most` tiles, or longer ones where there would be too many.
  void chunk(Launch &launch, i64 most, i64 *chunks, i64 *tiles) const {
    const i64 all = ceil_div(rows_, launch.size("ROWS"));
    *tiles = std::max(std::min(most, all), ceil_div(all, kMostChunks));
    *chunks = ceil_div(all, *tiles);
    launch.number("chunks", *chunks).number("tiles", *tiles);
  }

  fula_status statistics() {
    Launch stats(s_, name("stats", false, false));
    i64 chunks, tiles;
    Pointer partial;
    describe(stats);
    chunk(stats, 16, &chunks, &tiles);
    FULA_TRY(s_.scratch_floats(n_.lanes * chunks * 2 * n_.x.channels, &partial));
    FULA_TRY(stats.pointer("partial", partial)
                 .run(n_.lanes * chunks * ceil_div(n_.x.channels, stats.size("COLS"))));
    Launch merge(s_, "lane_norm_merge_stats_f32_any");
    describe(merge);
    merge.pointer("partial", partial).number("chunks", chunks);
    merge.number("span", tiles * stats.size("ROWS")).number("rows", rows_);
    return merge.run(n_.lanes * ceil_div(n_.x.channels, merge.size("COLS")));
  }

  fula_status normalise() {
    const bool target = n_.target.data != nullptr;
    Launch launch(s_, name("normalise", n_.residual.data || !fast_, target));
    describe(launch);
    FULA_TRY(input(launch, "residual", n_.residual));
    if (target) FULA_TRY(input(launch, "target", n_.target));
    const i64 tiles = ceil_div(rows_, launch.size("ROWS"));
    const i64 parts = ceil_div(n_.x.channels, launch.size("COLS"));
    launch.number("tiles", tiles).number("parts", parts);
    launch.pointer("y", n_.y.data).strides("y", strides_of(n_.y, last_));
    Pointer partial = 0;
    if (target) FULA_TRY(s_.scratch_floats(n_.lanes * rows_ * parts, &partial));
    FULA_TRY(launch.pointer("partial", partial).run(n_.lanes * tiles * parts));
    if (!target) return FULA_OK;
    return sum_within_rows(s_, partial, n_.x.positions * parts, n_.x.samples,
                           reinterpret_cast<Pointer>(n_.dist2));
  }

  fula_status gradient_sums(Pointer d, Pointer sums) {
    const bool target = n_.ddist2 != nullptr;
    if (!n_.dy.data) fast_ = false;  // a zero with strides 0 stands in
    Launch launch(s_, name("sums", n_.residual.data || !fast_, target));
    describe(launch);
    FULA_TRY(input(launch, "residual", n_.residual));
    FULA_TRY(input(launch, "grad_y", n_.dy));
    if (target) FULA_TRY(input(launch, "target", n_.target));
    launch.pointer("grad_dist2", n_.ddist2).pointer("d_out", d);
    launch.strides("d_out", strides_of(n_.x, last_));
    i64 chunks, tiles;
    Pointer partial;
    chunk(launch, 32, &chunks, &tiles);
    const i64 size = n_.lanes * 2 * n_.x.channels;
    FULA_TRY(s_.scratch_floats(chunks * size, &partial));
    FULA_TRY(launch.pointer("partial", partial)
                 .run(n_.lanes * chunks * ceil_div(n_.x.channels, launch.size("COLS"))));
    return sum_over_rows(s_, partial, chunks, size, sums);
  }

  fula_status input_gradient(Pointer d, Pointer sums) {
    Launch launch(s_, name("input_gradient", false, false));
    describe(launch);
    const i64 tiles = ceil_div(rows_, launch.size("ROWS"));
    launch.number("tiles", tiles).pointer("sums", sums);
    launch.real("share", n_.training ? 1.0 / static_cast<double>(rows_) : 0.0);
    launch.pointer("d_in", d).strides("d_in", strides_of(n_.x, last_));
    launch.pointer("dx", n_.dx.data).strides("dx", strides_of(n_.dx, last_));
    return launch.run(n_.lanes * tiles * ceil_div(n_.x.channels, launch.size("COLS")));
  }

  Session &s_;
  const NormArguments &n_;
  const bool last_;
  const i64 batch_, rows_;  // samples and rows of a lane
  bool fast_ = false;
  std::string dtype_;
};

}  // namespace

fula_status lane_norm_forward(const NormArguments &n, bool last) {
  Session session;
  Norm norm(session, n, last);
  FULA_TRY(norm.open());
  return norm.forward();
}

fula_status lane_norm_backward(const NormArguments &n, bool last) {
  Session session;
  Norm norm(session, n, last);
  FULA_TRY(norm.open());
  return norm.backward();
}

}  // namespace cuda
}  // namespace fula
