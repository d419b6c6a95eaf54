// One call's work on a GPU: scratch memory, and launches with arguments by name.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "../tensor.h"
#include "driver.h"

namespace fula {
namespace cuda {

// A kernel as manifest.json describes it; the table is generated when the library is configured.
struct Kernel {
  const char *name;
  unsigned threads;
  unsigned shared_80, shared_90;
  const char *arguments;  // "x:*fp32,lanes:i32,..."
  const char *constants;  // "ROWS=64,COLS=64,"
};

const Kernel *find_kernel(const std::string &name);
i64 constant(const Kernel &kernel, const char *name);

class Session {
 public:
  Session() = default;
  ~Session();
  Session(const Session &) = delete;
  Session &operator=(const Session &) = delete;

  // Finds driver and module, and makes the context of the first pointer that is not null current
  // until the session ends.
  fula_status open(std::initializer_list<const void *> pointers);

  // Device memory for the length of the call, in the order of the stream.
  fula_status scratch(i64 bytes, Pointer *out);
  fula_status scratch_floats(i64 count, Pointer *out) { return scratch(4 * count, out); }
  // One zero of any dtype, for inputs that a kernel has and the call has not.
  fula_status zero(Pointer *out);
  fula_status upload(const std::vector<i64> &values, Pointer *out);
  fula_status clear(Pointer to, i64 bytes);
  fula_status fill_words(Pointer to, unsigned value, i64 count);
  fula_status copy(Pointer to, Pointer from, i64 bytes);

  const Driver &driver() const { return *driver_; }
  unsigned shared(const Kernel &kernel) const {
    return arch_ == 90 ? kernel.shared_90 : kernel.shared_80;
  }
  fula_status function(const Kernel &kernel, Handle *out) const;
  Handle stream() const;

 private:
  const Driver *driver_ = nullptr;
  Handle callers_ = nullptr;  // the context to come back to, where `switched_`
  bool switched_ = false;
  Handle module_ = nullptr;
  int arch_ = 80;  // whose shared-memory sizes hold
  Pointer zero_ = 0;
  std::vector<Pointer> memory_;
};

// Strides of a tensor as kernels take them: sample, position, channel, front.
struct Strides {
  i64 of[4] = {0, 0, 0, 0};
};
Strides strides_of(const Activation &a, bool last, i64 samples_of_front = 0);

class Launch {
 public:
  Launch(Session &session, const std::string &name);

  // Arguments that the variant has not are passed over.
  Launch &pointer(const char *name, Pointer value);
  Launch &pointer(const char *name, const void *value) {
    return pointer(name, reinterpret_cast<Pointer>(value));
  }
  Launch &number(const char *name, i64 value);
  Launch &real(const char *name, double value);
  Launch &strides(const char *name, const Strides &value);

  i64 size(const char *name) const { return constant(*kernel_, name); }
  fula_status run(i64 programs);

 private:
  struct Slot {
    std::string name, type;
    std::uint64_t bits = 0;
    bool set = false;
  };
  Slot *find(const char *name, const char *kinds);

  Session &session_;
  const Kernel *kernel_;
  std::vector<Slot> slots_;
  fula_status problem_ = FULA_OK;
};

inline i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }

// "f32", "bf16", "f16"; refuses float64.
fula_status dtype_name(int dtype, std::string *out);

// Whether kernels for aligned memory may be used.
bool aligned(std::initializer_list<const void *> pointers);

// out[i] = sum over k of partial (count, size)[k, i], or of partial (size, count)[i, k].
fula_status sum_over_rows(Session &s, Pointer partial, i64 count, i64 size, Pointer out);
fula_status sum_within_rows(Session &s, Pointer partial, i64 count, i64 size, Pointer out);

}  // namespace cuda
}  // namespace fula
