#include "status.h"

#include <cstdarg>
#include <cstdio>

namespace {
thread_local char message[512] = "";
}

namespace fula {

fula_status refuse(fula_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace fula

extern "C" const char *fula_error_message(void) { return message; }
extern "C" const char *fula_version(void) { return FULA_VERSION; }
