#include "session.h"

#include <cstring>
#include <map>
#include <mutex>

extern "C" {
extern const unsigned char fula_cubin_80[], fula_cubin_90[], fula_ptx[];
}

namespace fula {
namespace cuda {
namespace {

const Kernel kKernels[] = {
#include "fula_kernels.inc"
};

thread_local Handle current_stream = nullptr;

// cuda.h's numbers.
enum : int {
  kComputeMajor = 75,        // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
  kContext = 1,              // CU_POINTER_ATTRIBUTE_CONTEXT
  kDeviceOrdinal = 9,        // CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
  kMostDynamicShared = 8,    // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
};
constexpr unsigned kSharedByDefault = 48 << 10;
constexpr i64 kMostPrograms = (i64{1} << 31) - 1;

struct Loaded {
  Handle module;
  int arch;
};

std::mutex modules_mutex;  // of all three
std::map<int, Handle> primaries;                         // by device
std::map<Handle, Loaded> modules;                        // by context
std::map<std::pair<Handle, const Kernel *>, Handle> functions;  // by module and kernel

// A device's primary context, retained once.
fula_status primary_context(const Driver &d, int device, Handle *out) {
  const std::lock_guard<std::mutex> lock(modules_mutex);
  Handle &known = primaries[device];
  if (!known)
    FULA_TRY(check(d, d.primary_context(&known, device), "cuDevicePrimaryCtxRetain"));
  return *out = known, FULA_OK;
}

// The context that holds `pointer`. Memory of a pool is of a device, not of a context: the thread's
// serves where it is of that device, else the device's primary one. Null is anywhere.
fula_status context_of(const Driver &d, Pointer pointer, Handle current, Handle *out) {
  if (!pointer && current) return *out = current, FULA_OK;
  if (pointer && d.pointer_attribute(out, kContext, pointer) == 0 && *out) return FULA_OK;
  int ordinal = 0, device = 0, currents = -1;
  if (pointer)
    FULA_TRY(check(d, d.pointer_attribute(&ordinal, kDeviceOrdinal, pointer),
                   "cuPointerGetAttribute"));
  FULA_TRY(check(d, d.device_get(&device, ordinal), "cuDeviceGet"));
  if (current) FULA_TRY(check(d, d.context_device(&currents), "cuCtxGetDevice"));
  if (currents == device) return *out = current, FULA_OK;
  return primary_context(d, device, out);
}

fula_status load_module(const Driver &d, Handle context, Loaded *out) {
  const std::lock_guard<std::mutex> lock(modules_mutex);
  const auto found = modules.find(context);
  if (found != modules.end()) return *out = found->second, FULA_OK;
  int device = 0, major = 0;
  FULA_TRY(check(d, d.context_device(&device), "cuCtxGetDevice"));
  FULA_TRY(check(d, d.device_attribute(&major, kComputeMajor, device), "cuDeviceGetAttribute"));
  if (major < 8)
    return refuse(FULA_ERROR_DEVICE, "compute capability %d.x: 8.0 or newer is needed", major);
  const unsigned char *image = major == 8 ? fula_cubin_80 : major == 9 ? fula_cubin_90 : fula_ptx;
  Loaded loaded = {nullptr, major == 9 ? 90 : 80};
  FULA_TRY(check(d, d.load_module(&loaded.module, image), "cuModuleLoadData"));
  modules[context] = *out = loaded;
  return FULA_OK;
}

}  // namespace

const Kernel *find_kernel(const std::string &name) {
  for (const Kernel &kernel : kKernels)
    if (name == kernel.name) return &kernel;
  return nullptr;
}

i64 constant(const Kernel &kernel, const char *name) {
  const std::string key = std::string(name) + "=";
  const char *at = kernel.constants;
  while ((at = std::strstr(at, key.c_str())) != nullptr) {
    if (at == kernel.constants || at[-1] == ',') return std::atoll(at + key.size());
    at += key.size();
  }
  return 0;
}

Session::~Session() {
  for (const Pointer p : memory_) driver_->release(p, stream());
  if (switched_) driver_->set_context(callers_);
}

Handle Session::stream() const { return current_stream; }

fula_status Session::open(std::initializer_list<const void *> pointers) {
  FULA_TRY(find_driver(&driver_));
  const void *pointer = nullptr;
  for (const void *p : pointers) pointer = pointer ? pointer : p;
  Handle context = nullptr;
  FULA_TRY(check(*driver_, driver_->current_context(&callers_), "cuCtxGetCurrent"));
  FULA_TRY(context_of(*driver_, reinterpret_cast<Pointer>(pointer), callers_, &context));
  if (context != callers_) {
    FULA_TRY(check(*driver_, driver_->set_context(context), "cuCtxSetCurrent"));
    switched_ = true;
  }
  Loaded loaded = {};
  FULA_TRY(load_module(*driver_, context, &loaded));
  module_ = loaded.module, arch_ = loaded.arch;
  return FULA_OK;
}

fula_status Session::function(const Kernel &kernel, Handle *out) const {
  const std::lock_guard<std::mutex> lock(modules_mutex);
  Handle &known = functions[{module_, &kernel}];
  if (!known) {
    FULA_TRY(check(*driver_, driver_->get_function(&known, module_, kernel.name),
                   "cuModuleGetFunction"));
    if (shared(kernel) > kSharedByDefault)
      FULA_TRY(check(*driver_,
                     driver_->set_attribute(known, kMostDynamicShared,
                                            static_cast<int>(shared(kernel))),
                     "cuFuncSetAttribute"));
  }
  *out = known;
  return FULA_OK;
}

fula_status Session::scratch(i64 bytes, Pointer *out) {
  *out = 0;
  if (bytes == 0) return FULA_OK;
  FULA_TRY(check(*driver_, driver_->allocate(out, static_cast<std::size_t>(bytes), stream()),
                 "cuMemAllocAsync"));
  memory_.push_back(*out);
  return FULA_OK;
}

fula_status Session::zero(Pointer *out) {
  if (!zero_) {
    FULA_TRY(scratch(16, &zero_));
    FULA_TRY(clear(zero_, 16));
  }
  *out = zero_;
  return FULA_OK;
}

fula_status Session::upload(const std::vector<i64> &values, Pointer *out) {
  const i64 bytes = 8 * static_cast<i64>(values.size());
  FULA_TRY(scratch(bytes, out));
  if (bytes == 0) return FULA_OK;
  return check(*driver_,
               driver_->upload(*out, values.data(), static_cast<std::size_t>(bytes), stream()),
               "cuMemcpyHtoDAsync");
}

fula_status Session::clear(Pointer to, i64 bytes) {
  if (bytes == 0) return FULA_OK;
  return check(*driver_,
               driver_->fill_bytes(to, 0, static_cast<std::size_t>(bytes), stream()),
               "cuMemsetD8Async");
}

fula_status Session::fill_words(Pointer to, unsigned value, i64 count) {
  if (count == 0) return FULA_OK;
  return check(*driver_,
               driver_->fill_words(to, value, static_cast<std::size_t>(count), stream()),
               "cuMemsetD32Async");
}

fula_status Session::copy(Pointer to, Pointer from, i64 bytes) {
  if (bytes == 0) return FULA_OK;
  return check(*driver_, driver_->copy(to, from, static_cast<std::size_t>(bytes), stream()),
               "cuMemcpyDtoDAsync");
}

Strides strides_of(const Activation &a, bool last, i64 samples_of_front) {
  Strides s;
  if (!a.data) return s;
  s.of[0] = a.channels * a.positions;
  s.of[1] = last ? a.channels : 1;
  s.of[2] = last ? 1 : a.positions;
  s.of[3] = samples_of_front * a.channels * a.positions;
  return s;
}

Launch::Launch(Session &session, const std::string &name)
    : session_(session), kernel_(find_kernel(name)) {
  if (!kernel_) {
    static const Kernel nothing = {"", 0, 0, 0, "", ""};
    problem_ = refuse(FULA_ERROR_DEVICE, "this build has no GPU kernel %s", name.c_str());
    kernel_ = &nothing;
  }
  for (const char *at = kernel_->arguments; *at;) {
    const char *colon = std::strchr(at, ':'), *comma = std::strchr(at, ',');
    slots_.push_back({std::string(at, colon), std::string(colon + 1, comma), 0, false});
    at = comma + 1;
  }
}

Launch::Slot *Launch::find(const char *name, const char *kinds) {
  for (Slot &slot : slots_)
    if (slot.name == name && std::strchr(kinds, slot.type[0])) return &slot;
  return nullptr;
}

Launch &Launch::pointer(const char *name, Pointer value) {
  if (Slot *slot = find(name, "*")) slot->bits = value, slot->set = true;
  return *this;
}

Launch &Launch::number(const char *name, i64 value) {
  Slot *slot = find(name, "i");
  if (!slot) return *this;
  if (slot->type == "i32" && (value < INT32_MIN || value > INT32_MAX)) {
    problem_ = refuse(FULA_ERROR_SHAPE, "%s = %lld: GPU kernels count to 2^31 - 1", name,
                      static_cast<long long>(value));
    return *this;
  }
  slot->bits = static_cast<std::uint64_t>(value), slot->set = true;
  return *this;
}

Launch &Launch::real(const char *name, double value) {
  if (Slot *slot = find(name, "f")) {
    const float narrow = static_cast<float>(value);
    std::memcpy(&slot->bits, &narrow, sizeof narrow);
    slot->set = true;
  }
  return *this;
}

Launch &Launch::strides(const char *name, const Strides &value) {
  for (int axis = 0; axis < 4; ++axis)
    number((std::string(name) + "_strides[" + std::to_string(axis) + "]").c_str(), value.of[axis]);
  return *this;
}

fula_status Launch::run(i64 programs) {
  if (problem_) return problem_;
  if (programs <= 0) return FULA_OK;
  if (programs > kMostPrograms)
    return refuse(FULA_ERROR_SHAPE, "%s needs %lld programs: a launch has at most 2^31 - 1",
                  kernel_->name, static_cast<long long>(programs));
  std::vector<void *> arguments;
  for (Slot &slot : slots_) {
    const bool scratch = slot.name.find("_scratch") != std::string::npos;  // Triton's, null
    if (!slot.set && !scratch)
      return refuse(FULA_ERROR_DEVICE, "%s: argument %s was not given", kernel_->name,
                    slot.name.c_str());
    arguments.push_back(&slot.bits);
  }
  Handle function = nullptr;
  FULA_TRY(session_.function(*kernel_, &function));
  return check(session_.driver(),
               session_.driver().launch(function, static_cast<unsigned>(programs), 1, 1,
                                        kernel_->threads, 1, 1, session_.shared(*kernel_),
                                        session_.stream(), arguments.data(), nullptr),
               kernel_->name);
}

fula_status dtype_name(int dtype, std::string *out) {
  constexpr const char *kNames[] = {"f32", "bf16", "f16"};
  if (dtype > FULA_FLOAT16)
    return refuse(FULA_ERROR_DTYPE, "float64 has no GPU kernels: float32, bfloat16 or float16");
  *out = kNames[dtype];
  return FULA_OK;
}

bool aligned(std::initializer_list<const void *> pointers) {
  for (const void *p : pointers)
    if (reinterpret_cast<Pointer>(p) % 16 != 0) return false;
  return true;
}

fula_status sum_over_rows(Session &s, Pointer partial, i64 count, i64 size, Pointer out) {
  Launch launch(s, "sum_partials_columns_f32_any");
  launch.pointer("partial", partial).pointer("out", out).number("count", count);
  launch.number("size", size).number("stride_count", size);
  return launch.run(ceil_div(size, launch.size("SIZE")));
}

fula_status sum_within_rows(Session &s, Pointer partial, i64 count, i64 size, Pointer out) {
  Launch launch(s, "sum_partials_rows_f32_any");
  launch.pointer("partial", partial).pointer("out", out).number("count", count);
  launch.number("size", size).number("stride_item", count);
  return launch.run(ceil_div(size, launch.size("SIZE")));
}

}  // namespace cuda
}  // namespace fula

extern "C" int32_t fula_has_cuda(void) { return 1; }

extern "C" fula_status fula_set_stream(void *stream) {
  fula::cuda::current_stream = stream;
  return FULA_OK;
}
