// hint_terms, pgd_step and augment from the Triton kernels.
#include "cuda.h"
#include "session.h"

namespace fula {
namespace cuda {

fula_status hint_terms(const Depth &d) {
  if (d.lanes * d.batch == 0) return FULA_OK;
  std::string dtype;
  Session s;
  FULA_TRY(dtype_name(d.dtype, &dtype));
  FULA_TRY(s.open({d.dist2}));
  if (d.size == 0)
    return d.out ? FULA_OK
                 : s.clear(reinterpret_cast<Pointer>(d.dist2), 4 * d.lanes * d.batch);
  const bool fast = d.size % 16 == 0 && aligned({d.activation, d.target, d.out, d.dist2});
  const char *step = d.out ? "gradients_" : "distances_";
  Launch launch(s, "hint_terms_" + std::string(step) + dtype + (fast ? "_fast" : "_any"));
  const i64 pieces = ceil_div(d.size, std::max<i64>(1, launch.size("BLOCK")));
  launch.pointer("activations[0]", d.activation).pointer("targets[0]", d.target);
  launch.pointer(d.out ? "shares[0]" : "outs[0]", d.dist2).pointer("grads[0]", d.out);
  launch.number("firsts[0]", 0).number("samples[0]", d.batch);
  launch.number("sizes[0]", d.size).number("pieces[0]", pieces);
  return launch.run(d.lanes * d.batch * (d.out ? pieces : 1));
}

fula_status pgd_step(const PgdStep &p) {
  if (p.samples * p.size == 0) return FULA_OK;
  std::string dtype;
  Session s;
  FULA_TRY(dtype_name(p.dtype, &dtype));
  FULA_TRY(s.open({p.x}));
  const i64 size = p.linf ? p.samples * p.size : p.size;
  const bool fast = size % 16 == 0 && aligned({p.x, p.grad, p.clean, p.out});
  const char *step = p.linf ? "pgd_step_linf_" : "pgd_step_l2_";
  Launch launch(s, step + dtype + (fast ? "_fast" : "_any"));
  launch.pointer("x", p.x).pointer("grad", p.grad).pointer("clean", p.clean).pointer("out", p.out);
  launch.number("size", size).real("step", p.step).real("eps", p.eps);
  return launch.run(p.linf ? ceil_div(size, std::max<i64>(1, launch.size("BLOCK"))) : p.samples);
}

fula_status augment(const Augment &a) {
  const i64 pixels = a.height * a.width * a.channels;
  if (a.size * pixels == 0) return FULA_OK;
  std::string dtype;
  Session s;
  FULA_TRY(dtype_name(a.dtype, &dtype));
  FULA_TRY(s.open({a.images, a.out}));
  const std::string name = std::string("augment") + (a.markers ? "_markers" : "") +
                           (a.wide ? "_i64_" : "_i32_") + dtype + "_any";
  Launch launch(s, name);
  const i64 pieces = ceil_div(pixels, std::max<i64>(1, launch.size("BLOCK")));
  launch.pointer("images", a.images).pointer("index", a.index).pointer("dy", a.dy);
  launch.pointer("dx", a.dx).pointer("flip", a.flip).pointer("markers", a.markers);
  launch.pointer("marker_index", a.marker_index).pointer("marker_y", a.marker_y);
  launch.pointer("marker_x", a.marker_x).pointer("out", a.out);
  launch.number("height", a.height).number("width", a.width).number("channels", a.channels);
  launch.number("pad", a.pad).number("marker_height", a.marker_height);
  launch.number("marker_width", a.marker_width).number("pieces", pieces);
  return launch.run(a.size * pieces);
}

}  // namespace cuda
}  // namespace fula
