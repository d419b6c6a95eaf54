// fula_pgd_step.
#include <cmath>

#include "cpu.h"
#include "cuda/cuda.h"
#include "pool.h"
#include "tensor.h"

namespace fula {
namespace {

fula_status check_length(const char *name, double value) {
  if (value >= 0 && !std::isinf(value)) return FULA_OK;
  return refuse(FULA_ERROR_VALUE, "%s = %g: must be finite and at least 0", name, value);
}

fula_status read_images(const Argument &a, const fula_tensor &like, Activation *out) {
  FULA_TRY(check_dtype(a, like.dtype));
  FULA_TRY(check_shape(a, like.shape, like.rank));
  return read_activation(a, like.rank > 1 ? 1 : 0, out);
}

}  // namespace
}  // namespace fula

extern "C" fula_status fula_pgd_step(const fula_tensor *x_adv, const fula_tensor *grad,
                                     const fula_tensor *x_clean, double step, double eps,
                                     int32_t norm, const fula_tensor *out) {
  using namespace fula;
  int device;
  FULA_TRY(check_all({{"x_adv", x_adv}, {"grad", grad}, {"x_clean", x_clean},
                      {"out", out, true, true}}, &device));
  FULA_TRY(check_length("step", step));
  FULA_TRY(check_length("eps", eps));
  if (norm != FULA_LINF && norm != FULA_L2)
    return refuse(FULA_ERROR_VALUE, "norm = %d: must be FULA_LINF (0) or FULA_L2 (1)", norm);
  FULA_TRY(check_float({"x_adv", x_adv}));
  Activation x, g, clean, to;
  FULA_TRY(read_images({"x_adv", x_adv}, *x_adv, &x));
  FULA_TRY(read_images({"grad", grad}, *x_adv, &g));
  FULA_TRY(read_images({"x_clean", x_clean}, *x_adv, &clean));
  FULA_TRY(read_images({"out", out}, *x_adv, &to));
  bool last;
  FULA_TRY(common_layout({&x, &g, &clean, &to}, &last));
  const Ops &ops = ops_for(x.dtype);
  const auto move = norm == FULA_LINF ? ops.pgd_linf : ops.pgd_l2;
  const i64 samples = x_adv->rank > 1 ? x.samples : x_adv->shape[0];
  const i64 size = x_adv->rank > 1 ? x.size() : 1, bytes = element_size(x.dtype);
  if (size == 0) return FULA_OK;
  if (device == FULA_CUDA)
    return cuda::pgd_step({x.data, g.data, clean.data, to.data, x.dtype, norm == FULA_LINF, samples,
                           size, step, eps});
  parallel_for(pool_size(), samples, [&](i64 sample, int) {
    const i64 at = sample * size * bytes;
    move(x.data + at, g.data + at, clean.data + at, step, eps, to.data + at, size);
  });
  return FULA_OK;
}
