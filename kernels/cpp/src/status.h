// Refusing arguments: a status for the caller, a sentence for the person.
#pragma once

#include "fula_core.h"

namespace fula {

// Sets the thread's message (printf style) and returns `status`.
fula_status refuse(fula_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

}  // namespace fula

// Returns from the calling function when `expression` is not FULA_OK.
#define FULA_TRY(expression)                                   \
  do {                                                         \
    if (const fula_status status_ = (expression)) return status_; \
  } while (0)
