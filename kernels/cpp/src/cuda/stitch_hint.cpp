// stitch_hint from the Triton kernels; kernels/cuda/README.md says how they are launched.
#include "cuda.h"
#include "session.h"

namespace fula {
namespace cuda {
namespace {

constexpr i64 kWorkspace = i64{256} << 20;  // most bytes of e, and of partial sums of dW
constexpr i64 kPrograms = 1024;             // fills any current GPU a few times over

// A located tensor: its first element for lane 0, and its strides.
struct Located {
  Pointer data = 0;
  Strides strides;
};

class Stitch {
 public:
  Stitch(Session &session, const StitchArguments &s)
      : s_(session), a_(s), rows_(s.batch * s.positions), es_(element_size(s.x.dtype)) {}

  fula_status open() {
    FULA_TRY(dtype_name(a_.x.dtype, &dtype_));
    FULA_TRY(s_.open({a_.weight, a_.x.data, a_.bias, a_.dist2, a_.dx.data}));
    fast_ = a_.last && a_.c1 % 16 == 0 && a_.c2 % 16 == 0 &&
            aligned({a_.x.data, a_.target.data, a_.y.data, a_.dy.data, a_.dx.data, a_.weight,
                     a_.bias, a_.ddist2, a_.dweight, a_.dbias});
    FULA_TRY(cast_weight());
    FULA_TRY(upload_index(a_.x_index, &x_index_));
    return upload_index(a_.target_index, &target_index_);
  }

  fula_status forward() {
    if (a_.lanes * rows_ == 0 || a_.c2 == 0) return zero_distances();
    Located y = outputs(a_.y.data);
    if (!a_.y.data && !fast_)
      FULA_TRY(s_.scratch(a_.lanes * rows_ * a_.c2 * es_, &y.data));
    const char *mode = !a_.dist2 ? "y" : y.data ? "y_dist" : "dist";
    return product(mode, 0, a_.lanes, Located(), y, reinterpret_cast<Pointer>(a_.dist2));
  }

  fula_status backward() {
    if (a_.lanes * rows_ * a_.c1 == 0 || a_.c2 == 0) return zero_gradients();
    const i64 lane_bytes = rows_ * a_.c2 * 4;
    const bool whole = a_.dx.data || !a_.ddist2;  // dx wants e of all lanes at once
    // Four lanes at a time keep ddist2 aligned.
    const i64 group = whole ? a_.lanes : std::max<i64>(4, kWorkspace / lane_bytes / 4 * 4);
    if (a_.ddist2 && !a_.dx.data && fast_ && fits_fused()) return fused_gradient();
    for (i64 lane = 0; lane < a_.lanes; lane += group) {
      const i64 lanes = std::min(group, a_.lanes - lane);
      Located e;
      FULA_TRY(residual(lane, lanes, &e));
      FULA_TRY(weight_gradient(lane, lanes, e));
      if (a_.dx.data) FULA_TRY(input_gradient(e));
    }
    return FULA_OK;
  }

 private:
  static Pointer at(const void *p) { return reinterpret_cast<Pointer>(p); }
  std::string named(const std::string &step) const {
    return "stitch_hint_" + step + "_" + dtype_ + (fast_ ? "_fast" : "_any");
  }

  fula_status upload_index(const i64 *index, Pointer *out) {
    return s_.upload(index ? std::vector<i64>(index, index + a_.lanes) : std::vector<i64>(a_.lanes),
                     out);
  }

  // The weight in the activations' dtype.
  fula_status cast_weight() {
    const i64 size = a_.lanes * a_.c1 * a_.c2;
    weight_ = at(a_.weight);
    if (a_.x.dtype == FULA_FLOAT32 || size == 0) return FULA_OK;
    FULA_TRY(s_.scratch(size * es_, &weight_));
    const bool even = size % 16 == 0 && aligned({a_.weight});
    Launch launch(s_, "cast_" + dtype_ + (even ? "_fast" : "_any"));
    launch.pointer("x", a_.weight).pointer("out", weight_).number("size", size);
    return launch.run(ceil_div(size, std::max<i64>(1, launch.size("BLOCK"))));
  }

  // (lanes * B, c2, ...) tensors, in this call's layout.
  Located outputs(const void *data) const {
    Located y;
    y.data = at(data);
    const i64 sample = a_.c2 * a_.positions;
    y.strides.of[0] = sample, y.strides.of[1] = a_.last ? a_.c2 : 1;
    y.strides.of[2] = a_.last ? 1 : a_.positions, y.strides.of[3] = a_.lanes * a_.batch * sample;
    return y;
  }

  void describe(Launch &launch, i64 lane, i64 lanes) const {
    launch.number("lanes", lanes).number("samples", a_.batch).number("positions", a_.positions);
    launch.number("c1", a_.c1).number("c2", a_.c2);
    launch.pointer("x", a_.x.data).strides("x", strides_of(a_.x, a_.last, a_.batch));
    launch.pointer("target", a_.target.data);
    launch.strides("target", strides_of(a_.target, a_.last, a_.batch));
    launch.pointer("weight", weight_ + static_cast<Pointer>(lane * a_.c1 * a_.c2 * es_));
    launch.pointer("bias", at(a_.bias) + static_cast<Pointer>(lane * a_.c2 * 4));
    launch.pointer("x_index", x_index_ + static_cast<Pointer>(8 * lane));
    launch.pointer("target_index", target_index_ + static_cast<Pointer>(8 * lane));
    if (a_.ddist2)
      launch.pointer("grad_dist2", at(a_.ddist2) + static_cast<Pointer>(4 * lane * a_.batch));
  }

  // dy of the lanes from `lane` on, or one zero.
  fula_status incoming(i64 lane, Located *out) {
    if (!a_.dy.data) return s_.zero(&out->data);
    *out = outputs(a_.dy.data);
    out->data += static_cast<Pointer>(lane * rows_ * a_.c2 * es_);
    return FULA_OK;
  }

  fula_status product(const char *mode, i64 lane, i64 lanes, const Located &dy, const Located &y,
                      Pointer dist2) {
    Launch launch(s_, named(mode));
    describe(launch, lane, lanes);
    const i64 tiles = ceil_div(rows_, std::max<i64>(1, launch.size("ROWS")));
    const i64 parts = ceil_div(a_.c2, std::max<i64>(1, launch.size("COLS")));
    launch.number("tiles", tiles).number("parts", parts);
    launch.pointer("y", y.data).strides("y", y.strides);
    launch.pointer("grad_y", dy.data).strides("grad_y", dy.strides);
    Pointer partial = 0;
    if (dist2) FULA_TRY(s_.scratch_floats(lanes * rows_ * parts, &partial));
    FULA_TRY(launch.pointer("partial", partial).run(lanes * tiles * parts));
    if (!dist2) return FULA_OK;
    return sum_within_rows(s_, partial, a_.positions * parts, lanes * a_.batch, dist2);
  }

  bool wide() const { return a_.x.dtype == FULA_FLOAT16 && a_.ddist2; }

  // e = dy + 2 ddist2 (y - target), float32 for float16.
  fula_status residual(i64 lane, i64 lanes, Located *e) {
    Located dy;
    FULA_TRY(incoming(lane, &dy));
    if (!a_.ddist2 && a_.dy.data) return *e = dy, FULA_OK;
    *e = outputs(nullptr);
    if (!a_.ddist2) {  // nothing comes in: all gradients are zero
      FULA_TRY(s_.scratch(lanes * rows_ * a_.c2 * es_, &e->data));
      return s_.clear(e->data, lanes * rows_ * a_.c2 * es_);
    }
    FULA_TRY(s_.scratch(lanes * rows_ * a_.c2 * (wide() ? 4 : es_), &e->data));
    return product(fast_ && !a_.dy.data ? "e_hint" : "e", lane, lanes, dy, *e, 0);
  }

  bool fits_fused() const {
    const Kernel *kernel = find_kernel(named("fused_gradient"));
    return kernel && a_.c1 <= constant(*kernel, "DEPTH");
  }

  // Splits of the rows: enough programs, bounded partial sums.
  i64 split(Launch &launch, i64 lanes, i64 parts) const {
    const i64 tiles = ceil_div(rows_, std::max<i64>(1, launch.size("ROWS")));
    const i64 wanted = std::min({ceil_div(kPrograms, lanes * parts),
                                 kWorkspace / (lanes * a_.c1 * a_.c2 * 4), tiles});
    const i64 each = ceil_div(tiles, std::max<i64>(1, wanted));
    const i64 splits = ceil_div(tiles, each);
    launch.number("tiles", each).number("splits", splits).number("parts", parts);
    return splits;
  }

  // Runs a kernel that leaves dW and db in parts, and adds them.
  fula_status gradients(Launch &launch, i64 lane, i64 lanes, i64 parts) {
    const i64 splits = split(launch, lanes, parts);
    const i64 sizes[] = {lanes * a_.c2 * a_.c1, lanes * a_.c2};
    void *const outs[] = {a_.dweight, a_.dbias};
    Pointer partial[2], out[2];
    for (int i : {0, 1}) {
      out[i] = at(outs[i]) + static_cast<Pointer>(4 * lane * sizes[i] / lanes);
      if (!outs[i]) FULA_TRY(s_.scratch_floats(sizes[i], &out[i]));
      partial[i] = out[i];
      if (splits > 1) FULA_TRY(s_.scratch_floats(splits * sizes[i], &partial[i]));
    }
    launch.pointer("dw", partial[0]).pointer("db", partial[1]);
    FULA_TRY(launch.run(lanes * splits * parts));
    for (int i : {0, 1})
      if (splits > 1) FULA_TRY(sum_over_rows(s_, partial[i], splits, sizes[i], out[i]));
    return FULA_OK;
  }

  fula_status fused_gradient() {
    Launch launch(s_, named(a_.dy.data ? "fused_gradient_dy" : "fused_gradient"));
    Located dy;
    FULA_TRY(incoming(0, &dy));
    describe(launch, 0, a_.lanes);
    launch.pointer("grad_y", dy.data).strides("grad_y", dy.strides);
    return gradients(launch, 0, a_.lanes, ceil_div(a_.c2, std::max<i64>(1, launch.size("COLS"))));
  }

  fula_status weight_gradient(i64 lane, i64 lanes, const Located &e) {
    Launch launch(s_, named(wide() ? "weight_gradient_wide" : "weight_gradient"));
    describe(launch, lane, lanes);
    launch.pointer("e", e.data).strides("e", e.strides);
    const i64 blocks = ceil_div(a_.c1, std::max<i64>(1, launch.size("DEPTH")));
    launch.number("blocks", blocks);
    return gradients(launch, lane, lanes,
                     ceil_div(a_.c2, std::max<i64>(1, launch.size("COLS"))) * blocks);
  }

  // dx of every front, summed over its lanes in their order.
  fula_status input_gradient(const Located &e) {
    std::vector<i64> order, starts;
    for (i64 front = 0; front < a_.sources; ++front) {
      starts.push_back(static_cast<i64>(order.size()));
      for (i64 lane = 0; lane < a_.lanes; ++lane)
        if (a_.x_index[lane] == front) order.push_back(lane);
    }
    starts.push_back(a_.lanes);
    Pointer order_there, starts_there;
    FULA_TRY(s_.upload(order, &order_there));
    FULA_TRY(s_.upload(starts, &starts_there));
    Launch launch(s_, named(wide() ? "input_gradient_wide" : "input_gradient"));
    describe(launch, 0, a_.lanes);
    const i64 tiles = ceil_div(rows_, std::max<i64>(1, launch.size("ROWS")));
    launch.number("fronts", a_.sources).number("tiles", tiles);
    launch.pointer("order", order_there).pointer("starts", starts_there);
    launch.pointer("e", e.data).strides("e", e.strides);
    launch.pointer("dx", a_.dx.data).strides("dx", strides_of(a_.dx, a_.last, a_.batch));
    return launch.run(a_.sources * tiles *
                      ceil_div(a_.c1, std::max<i64>(1, launch.size("COLS"))));
  }

  fula_status zero_distances() {
    return a_.dist2 ? s_.clear(at(a_.dist2), 4 * a_.lanes * a_.batch) : FULA_OK;
  }
  fula_status zero_gradients() {
    if (a_.dweight) FULA_TRY(s_.clear(at(a_.dweight), 4 * a_.lanes * a_.c2 * a_.c1));
    if (a_.dbias) FULA_TRY(s_.clear(at(a_.dbias), 4 * a_.lanes * a_.c2));
    const i64 bytes = a_.sources * a_.batch * a_.c1 * a_.positions * es_;
    return a_.dx.data ? s_.clear(at(a_.dx.data), bytes) : FULA_OK;
  }

  Session &s_;
  const StitchArguments &a_;
  const i64 rows_, es_;  // rows of a lane, bytes of an element
  bool fast_ = false;
  std::string dtype_;
  Pointer weight_ = 0, x_index_ = 0, target_index_ = 0;
};

}  // namespace

fula_status stitch_hint_forward(const StitchArguments &s) {
  Session session;
  Stitch stitch(session, s);
  FULA_TRY(stitch.open());
  return stitch.forward();
}

fula_status stitch_hint_backward(const StitchArguments &s) {
  Session session;
  Stitch stitch(session, s);
  FULA_TRY(stitch.open());
  return stitch.backward();
}

}  // namespace cuda
}  // namespace fula
