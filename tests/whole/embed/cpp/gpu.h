// A host program's own memory on the first CUDA device: the driver by dlopen, nothing to link.
//
// FULA_LIBCUDA names another driver library, for this program as for fula_core.
#pragma once

#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "fula_core.h"

class Gpu {
 public:
  // Takes the device's primary context. Where there is none to use, says why in `problem()`.
  Gpu() {
    const char *name = std::getenv("FULA_LIBCUDA");
    library_ = dlopen(name ? name : "libcuda.so.1", RTLD_NOW);
    if (!fula_has_cuda()) problem_ = "this fula_core was built without -DFULA_CUDA=ON";
    else if (!library_) problem_ = "there is no CUDA driver";
    else if (function<int (*)(unsigned)>("cuInit")(0) ||
             function<int (*)(int *, int)>("cuDeviceGet")(&device_, 0))
      problem_ = "there is no CUDA device";
    if (problem_) return;
    void *context = nullptr;
    must("cuDevicePrimaryCtxRetain",
         function<int (*)(void **, int)>("cuDevicePrimaryCtxRetain")(&context, device_));
    must("cuCtxSetCurrent", function<int (*)(void *)>("cuCtxSetCurrent")(context));
  }
  ~Gpu() {
    for (const uint64_t at : memory_) function<int (*)(uint64_t)>("cuMemFree_v2")(at);
    if (!problem_) function<int (*)(int)>("cuDevicePrimaryCtxRelease_v2")(device_);
  }
  Gpu(const Gpu &) = delete;
  Gpu &operator=(const Gpu &) = delete;

  const char *problem() const { return problem_; }

  // The same tensor on the device, with the same contents.
  fula_tensor upload(const fula_tensor &host) {
    uint64_t at = 0;
    must("cuMemAlloc", function<int (*)(uint64_t *, size_t)>("cuMemAlloc_v2")(&at, bytes(host)));
    memory_.push_back(at);
    must("cuMemcpyHtoD", function<int (*)(uint64_t, const void *, size_t)>("cuMemcpyHtoD_v2")(
                             at, host.data, bytes(host)));
    fula_tensor there = host;
    there.data = reinterpret_cast<void *>(at), there.device = FULA_CUDA;
    return there;
  }

  // What a dense float32 tensor holds, once the device has done all that was asked of it.
  std::vector<float> download(const fula_tensor &there) const {
    std::vector<float> here(bytes(there) / sizeof(float));
    must("cuCtxSynchronize", function<int (*)()>("cuCtxSynchronize")());
    must("cuMemcpyDtoH", function<int (*)(void *, uint64_t, size_t)>("cuMemcpyDtoH_v2")(
                             here.data(), reinterpret_cast<uint64_t>(there.data), bytes(there)));
    return here;
  }

 private:
  static size_t bytes(const fula_tensor &t) {
    size_t count = sizeof(float);
    for (int i = 0; i < t.rank; ++i) count *= static_cast<size_t>(t.shape[i]);
    return count;
  }
  template <class F> F function(const char *name) const {
    F found = reinterpret_cast<F>(dlsym(library_, name));
    must(name, found ? 0 : -1);
    return found;
  }
  static void must(const char *what, int result) {
    if (result == 0) return;
    std::printf("%s failed with %d\n", what, result);
    std::exit(1);
  }

  void *library_ = nullptr;
  int device_ = 0;
  const char *problem_ = nullptr;
  std::vector<uint64_t> memory_;
};
