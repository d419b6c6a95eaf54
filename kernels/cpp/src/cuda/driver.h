// The CUDA driver, found at run time: nothing of CUDA is needed to build or to start.
#pragma once

#include <cstdint>

#include "../status.h"

namespace fula {
namespace cuda {

using Handle = void *;  // CUcontext, CUmodule, CUfunction, CUstream
using Pointer = std::uint64_t;

// The driver's entry points, as cuda.h declares them.
struct Driver {
  int (*init)(unsigned);
  int (*device_get)(int *, int);
  int (*device_attribute)(int *, int attribute, int device);
  int (*primary_context)(Handle *, int device);
  int (*current_context)(Handle *);
  int (*set_context)(Handle);
  int (*context_device)(int *);
  int (*pointer_attribute)(void *, int attribute, Pointer);
  int (*load_module)(Handle *, const void *image);
  int (*get_function)(Handle *, Handle module, const char *name);
  int (*set_attribute)(Handle function, int attribute, int value);
  int (*launch)(Handle function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                unsigned shared, Handle stream, void **arguments, void **extra);
  int (*allocate)(Pointer *, std::size_t bytes, Handle stream);
  int (*release)(Pointer, Handle stream);
  int (*upload)(Pointer, const void *, std::size_t bytes, Handle stream);
  int (*copy)(Pointer to, Pointer from, std::size_t bytes, Handle stream);
  int (*fill_bytes)(Pointer, unsigned char value, std::size_t count, Handle stream);
  int (*fill_words)(Pointer, unsigned value, std::size_t count, Handle stream);
  int (*error_text)(int, const char **);
};

// The driver, or a refusal that says what is missing. FULA_LIBCUDA names another library (tests).
fula_status find_driver(const Driver **driver);

// FULA_OK, or a refusal with the driver's own words for what `doing` failed with.
fula_status check(const Driver &driver, int result, const char *doing);

}  // namespace cuda
}  // namespace fula
