// What a build without FULA_CUDA says to tensors on a GPU.
#include "cuda.h"

namespace fula {
namespace cuda {
namespace {

fula_status absent() {
  return refuse(FULA_ERROR_DEVICE,
                "the tensors are on a CUDA device: this build serves the CPU; build with "
                "-DFULA_CUDA=ON");
}

}  // namespace

fula_status lane_norm_forward(const NormArguments &, bool) { return absent(); }
fula_status lane_norm_backward(const NormArguments &, bool) { return absent(); }
fula_status stitch_hint_forward(const StitchArguments &) { return absent(); }
fula_status stitch_hint_backward(const StitchArguments &) { return absent(); }
fula_status hint_terms(const Depth &) { return absent(); }
fula_status pgd_step(const PgdStep &) { return absent(); }
fula_status augment(const Augment &) { return absent(); }

}  // namespace cuda
}  // namespace fula

extern "C" int32_t fula_has_cuda(void) { return 0; }

extern "C" fula_status fula_set_stream(void *) { return fula::cuda::absent(); }
