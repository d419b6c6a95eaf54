#include "driver.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace fula {
namespace cuda {
namespace {

struct Loaded {
  Driver driver = {};
  char problem[256] = "";
};

// Newest ABI of each function that every driver since CUDA 11.2 has.
template <class F> bool resolve(void *library, const char *name, F *out, Loaded *loaded) {
  *out = reinterpret_cast<F>(dlsym(library, name));
  if (!*out) std::snprintf(loaded->problem, sizeof loaded->problem, "the driver lacks %s", name);
  return *out != nullptr;
}

bool resolve_all(void *library, Loaded *l) {
  Driver &d = l->driver;
  return resolve(library, "cuInit", &d.init, l) &&
         resolve(library, "cuDeviceGet", &d.device_get, l) &&
         resolve(library, "cuDeviceGetAttribute", &d.device_attribute, l) &&
         resolve(library, "cuDevicePrimaryCtxRetain", &d.primary_context, l) &&
         resolve(library, "cuCtxGetCurrent", &d.current_context, l) &&
         resolve(library, "cuCtxSetCurrent", &d.set_context, l) &&
         resolve(library, "cuCtxGetDevice", &d.context_device, l) &&
         resolve(library, "cuPointerGetAttribute", &d.pointer_attribute, l) &&
         resolve(library, "cuModuleLoadData", &d.load_module, l) &&
         resolve(library, "cuModuleGetFunction", &d.get_function, l) &&
         resolve(library, "cuFuncSetAttribute", &d.set_attribute, l) &&
         resolve(library, "cuLaunchKernel", &d.launch, l) &&
         resolve(library, "cuMemAllocAsync", &d.allocate, l) &&
         resolve(library, "cuMemFreeAsync", &d.release, l) &&
         resolve(library, "cuMemcpyHtoDAsync_v2", &d.upload, l) &&
         resolve(library, "cuMemcpyDtoDAsync_v2", &d.copy, l) &&
         resolve(library, "cuMemsetD8Async", &d.fill_bytes, l) &&
         resolve(library, "cuMemsetD32Async", &d.fill_words, l) &&
         resolve(library, "cuGetErrorString", &d.error_text, l);
}

void load(Loaded *l) {
  const char *name = std::getenv("FULA_LIBCUDA");
  void *library = dlopen(name ? name : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char *why = dlerror();
    std::snprintf(l->problem, sizeof l->problem, "no CUDA driver: %s", why ? why : "not found");
    return;
  }
  if (!resolve_all(library, l)) return;
  if (const int result = l->driver.init(0))
    std::snprintf(l->problem, sizeof l->problem, "cuInit failed with %d: no usable GPU", result);
}

}  // namespace

fula_status find_driver(const Driver **driver) {
  static Loaded loaded;
  static std::once_flag once;
  std::call_once(once, load, &loaded);
  if (loaded.problem[0]) return refuse(FULA_ERROR_DEVICE, "%s", loaded.problem);
  *driver = &loaded.driver;
  return FULA_OK;
}

fula_status check(const Driver &driver, int result, const char *doing) {
  if (result == 0) return FULA_OK;
  const char *text = nullptr;
  driver.error_text(result, &text);
  constexpr int kOutOfMemory = 2;
  return refuse(result == kOutOfMemory ? FULA_ERROR_MEMORY : FULA_ERROR_DEVICE,
                "%s failed with %d: %s", doing, result, text ? text : "unknown error");
}

}  // namespace cuda
}  // namespace fula
