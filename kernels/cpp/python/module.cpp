// fula_fast.kernels._core: fula_core for tensors of any library that speaks DLPack.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>
#include <vector>

#include "fula_core.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<>;
using Maybe = std::optional<Array>;
using Arrays = std::vector<Array>;

[[noreturn]] void raise(const std::string &message) {
  const nb::object error = nb::module_::import_("fula_fast.errors").attr("FulaError");
  PyErr_SetString(error.ptr(), message.c_str());
  throw nb::python_error();
}

int32_t dtype_of(const Array &a) {
  const nb::dlpack::dtype t = a.dtype();
  const auto is = [&](nb::dlpack::dtype_code code, int bits) {
    return t.code == static_cast<uint8_t>(code) && t.bits == bits && t.lanes == 1;
  };
  using Code = nb::dlpack::dtype_code;
  if (is(Code::Float, 32)) return FULA_FLOAT32;
  if (is(Code::Bfloat, 16)) return FULA_BFLOAT16;
  if (is(Code::Float, 16)) return FULA_FLOAT16;
  if (is(Code::Float, 64)) return FULA_FLOAT64;
  if (is(Code::UInt, 8)) return FULA_UINT8;
  if (is(Code::Bool, 8)) return FULA_BOOL;
  if (is(Code::Int, 32)) return FULA_INT32;
  if (is(Code::Int, 64)) return FULA_INT64;
  return -1;
}

// A tensor of `a`, with a name for the one rule that the library cannot see.
fula_tensor view(const Array &a) {
  if (a.ndim() > FULA_MAX_RANK)
    raise("an argument has " + std::to_string(a.ndim()) + " axes: at most " +
          std::to_string(FULA_MAX_RANK) + " are possible");
  fula_tensor t = {};
  t.data = a.data();
  t.dtype = dtype_of(a);
  t.device = a.device_type() == nb::device::cpu::value     ? FULA_CPU
             : a.device_type() == nb::device::cuda::value ? FULA_CUDA
                                                          : -1;
  t.rank = static_cast<int32_t>(a.ndim());
  for (size_t i = 0; i < a.ndim(); ++i) {
    t.shape[i] = static_cast<int64_t>(a.shape(i));
    t.stride[i] = a.stride(i);
  }
  return t;
}

// An argument that may be None, as the pointer that the library takes.
class Pointer {
 public:
  explicit Pointer(const Array &a) : tensor_(view(a)), there_(true) {}
  explicit Pointer(const Maybe &a) : there_(a.has_value()) {
    if (there_) tensor_ = view(*a);
  }
  operator const fula_tensor *() const { return there_ ? &tensor_ : nullptr; }

 private:
  fula_tensor tensor_ = {};
  bool there_;
};

std::vector<fula_tensor> views(const Arrays &arrays) {
  std::vector<fula_tensor> out;
  for (const Array &a : arrays) out.push_back(view(a));
  return out;
}

// Calls the library without the interpreter's lock; raises what it refuses.
template <class Call> void run(const Call &call) {
  fula_status status;
  std::string message;
  {
    nb::gil_scoped_release release;
    status = call();
    if (status != FULA_OK) message = fula_error_message();
  }
  if (status == FULA_ERROR_MEMORY) throw std::bad_alloc();
  if (status != FULA_OK) raise(message);
}

void lane_norm_forward(Array x, Array weight, Array bias, Array mean, Array var, Maybe residual,
                       Maybe target, int64_t lanes, bool training, double eps, bool relu, Array y,
                       Maybe dist2) {
  const Pointer px(x), pw(weight), pb(bias), pm(mean), pv(var), pr(residual), pt(target), py(y),
      pd(dist2);
  run([&] {
    return fula_lane_norm_forward(px, pw, pb, pm, pv, pr, pt, lanes, training, eps, relu, py, pd);
  });
}

void lane_norm_backward(Maybe dy, Maybe ddist2, Array x, Array weight, Array bias, Array mean,
                        Array var, Maybe residual, Maybe target, int64_t lanes, bool training,
                        double eps, bool relu, Maybe dx, Maybe dresidual, Maybe dweight,
                        Maybe dbias) {
  const Pointer pdy(dy), pdd(ddist2), px(x), pw(weight), pb(bias), pm(mean), pv(var), pr(residual),
      pt(target), pdx(dx), pdr(dresidual), pdw(dweight), pdb(dbias);
  run([&] {
    return fula_lane_norm_backward(pdy, pdd, px, pw, pb, pm, pv, pr, pt, lanes, training, eps, relu,
                                   pdx, pdr, pdw, pdb);
  });
}

void check_counts(size_t a, size_t b, size_t c) {
  if (a != b || a != c)
    raise("lists of " + std::to_string(a) + ", " + std::to_string(b) + " and " +
          std::to_string(c) + " tensors: all need one length");
}

void hint_terms_forward(const Arrays &activations, const Arrays &targets, const Arrays &dist2) {
  check_counts(activations.size(), targets.size(), dist2.size());
  const auto a = views(activations), t = views(targets), d = views(dist2);
  const auto count = static_cast<int64_t>(a.size());
  run([&] { return fula_hint_terms_forward(count, a.data(), t.data(), d.data()); });
}

void hint_terms_backward(const Arrays &activations, const Arrays &targets, const Arrays &ddist2,
                         const Arrays &dactivations) {
  check_counts(activations.size(), targets.size(), ddist2.size());
  check_counts(activations.size(), dactivations.size(), dactivations.size());
  const auto a = views(activations), t = views(targets), d = views(ddist2), g = views(dactivations);
  const auto count = static_cast<int64_t>(a.size());
  run([&] { return fula_hint_terms_backward(count, a.data(), t.data(), d.data(), g.data()); });
}

void stitch_hint_forward(Array x, Array weight, Array bias, Array x_index, Maybe target,
                         Maybe target_index, Maybe y, Maybe dist2) {
  const Pointer px(x), pw(weight), pb(bias), pxi(x_index), pt(target), pti(target_index), py(y),
      pd(dist2);
  run([&] { return fula_stitch_hint_forward(px, pw, pb, pxi, pt, pti, py, pd); });
}

void stitch_hint_backward(Maybe dy, Maybe ddist2, Array x, Array weight, Array bias, Array x_index,
                          Maybe target, Maybe target_index, Maybe y, Maybe dweight, Maybe dbias,
                          Maybe dx) {
  const Pointer pdy(dy), pdd(ddist2), px(x), pw(weight), pb(bias), pxi(x_index), pt(target),
      pti(target_index), py(y), pdw(dweight), pdb(dbias), pdx(dx);
  run([&] {
    return fula_stitch_hint_backward(pdy, pdd, px, pw, pb, pxi, pt, pti, py, pdw, pdb, pdx);
  });
}

void pgd_step(Array x_adv, Array grad, Array x_clean, double step, double eps,
              const std::string &norm, Array out) {
  if (norm != "linf" && norm != "l2") raise("norm = '" + norm + "': must be 'linf' or 'l2'");
  const Pointer px(x_adv), pg(grad), pc(x_clean), po(out);
  const int32_t kind = norm == "l2" ? FULA_L2 : FULA_LINF;
  run([&] { return fula_pgd_step(px, pg, pc, step, eps, kind, po); });
}

void augment(Array images, Array index, Array dy, Array dx, Array flip, int64_t pad, Maybe markers,
             Maybe marker_index, Maybe marker_y, Maybe marker_x, Array out) {
  const Pointer pi(images), pn(index), py(dy), px(dx), pf(flip), pm(markers), pmi(marker_index),
      pmy(marker_y), pmx(marker_x), po(out);
  run([&] { return fula_augment(pi, pn, py, px, pf, pad, pm, pmi, pmy, pmx, po); });
}

void gram(Array x, Array y, bool accumulate, Array xtx, Array xty) {
  const Pointer px(x), py(y), pxx(xtx), pxy(xty);
  run([&] { return fula_gram(px, py, accumulate, pxx, pxy); });
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "fula_core for tensors that speak DLPack; kernels/cpp/include/fula_core.h documents "
            "shapes, dtypes and layouts. Outputs are written into tensors that the caller gives.";
  m.attr("__version__") = fula_version();

  m.def("get_num_threads", &fula_get_num_threads);
  m.def("set_num_threads", [](int32_t count) { run([&] { return fula_set_num_threads(count); }); },
        "count"_a);
  m.def("get_cpu", &fula_get_cpu);
  m.def("set_cpu", [](const std::string &name) { run([&] { return fula_set_cpu(name.c_str()); }); },
        "name"_a);

  m.def("lane_norm_forward", &lane_norm_forward, "x"_a, "weight"_a, "bias"_a, "mean"_a, "var"_a,
        "residual"_a.none(), "target"_a.none(), "lanes"_a, "training"_a, "eps"_a, "relu"_a, "y"_a,
        "dist2"_a.none());
  m.def("lane_norm_backward", &lane_norm_backward, "dy"_a.none(), "ddist2"_a.none(), "x"_a,
        "weight"_a, "bias"_a, "mean"_a, "var"_a, "residual"_a.none(), "target"_a.none(), "lanes"_a,
        "training"_a, "eps"_a, "relu"_a, "dx"_a.none(), "dresidual"_a.none(), "dweight"_a.none(),
        "dbias"_a.none());
  m.def("hint_terms_forward", &hint_terms_forward, "activations"_a, "targets"_a, "dist2"_a);
  m.def("hint_terms_backward", &hint_terms_backward, "activations"_a, "targets"_a, "ddist2"_a,
        "dactivations"_a);
  m.def("stitch_hint_forward", &stitch_hint_forward, "x"_a, "weight"_a, "bias"_a, "x_index"_a,
        "target"_a.none(), "target_index"_a.none(), "y"_a.none(), "dist2"_a.none());
  m.def("stitch_hint_backward", &stitch_hint_backward, "dy"_a.none(), "ddist2"_a.none(), "x"_a,
        "weight"_a, "bias"_a, "x_index"_a, "target"_a.none(), "target_index"_a.none(),
        "y"_a.none(), "dweight"_a.none(), "dbias"_a.none(), "dx"_a.none());
  m.def("pgd_step", &pgd_step, "x_adv"_a, "grad"_a, "x_clean"_a, "step"_a, "eps"_a, "norm"_a,
        "out"_a);
  m.def("augment", &augment, "images"_a, "index"_a, "dy"_a, "dx"_a, "flip"_a, "pad"_a,
        "markers"_a.none(), "marker_index"_a.none(), "marker_y"_a.none(), "marker_x"_a.none(),
        "out"_a);
  m.def("gram", &gram, "x"_a, "y"_a, "accumulate"_a, "xtx"_a, "xty"_a);
}
