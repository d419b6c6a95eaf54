// The same functions on a GPU. Arguments have been read and checked; absent.cpp refuses them all in
// builds without FULA_CUDA.
#pragma once

#include "../norm_arguments.h"
#include "../stitch_walk.h"

namespace fula {
namespace cuda {

fula_status lane_norm_forward(const NormArguments &n, bool last);
fula_status lane_norm_backward(const NormArguments &n, bool last);

fula_status stitch_hint_forward(const StitchArguments &s);
fula_status stitch_hint_backward(const StitchArguments &s);

// One depth: L*B samples of `size` elements; `out` is the gradient, null for the distances.
struct Depth {
  const void *activation, *target, *dist2;
  void *out;
  int dtype;
  i64 lanes, batch, size;
};
fula_status hint_terms(const Depth &depth);

struct PgdStep {
  const void *x, *grad, *clean;
  void *out;
  int dtype;
  bool linf;
  i64 samples, size;
  double step, eps;
};
fula_status pgd_step(const PgdStep &p);

// Numbers lie on the device: they are not checked.
struct Augment {
  const void *images, *index, *dy, *dx, *flip, *markers, *marker_index, *marker_y, *marker_x;
  void *out;
  int dtype;
  bool wide;  // dy, dx, marker_y, marker_x are int64, else int32
  i64 height, width, channels, size, pad, marker_height, marker_width;
};
fula_status augment(const Augment &a);

}  // namespace cuda
}  // namespace fula
