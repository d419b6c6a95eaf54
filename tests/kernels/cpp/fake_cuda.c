/* A stand-in for the CUDA driver library: memory is the host's, launches go to a callback.
 *
 * It is strict where the driver is: modules must be a cubin or PTX that holds the kernels asked for,
 * large dynamic shared memory must be allowed first, frees must match allocations, and everything
 * wants the context that it belongs to. Fresh memory is filled with NaNs, so that reading what nobody
 * wrote shows. There are two devices; a context's handle tells its device (DEVICE_OF). Memory that
 * the test has not placed somewhere is a pool's, on the first device.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int (*launch_callback)(const char *name, unsigned grid, unsigned threads, unsigned shared,
                               void **arguments, void *stream);

enum {
  INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500,
  DEVICES = 2, MOST = 4096
};
#define PRIMARY 0x100
#define DEVICE_OF(context) ((int)((uintptr_t)(context) >> 16))

static launch_callback launched;
static int major = 9, live, refuse_memory;
static void *context, *launched_in;
static int retained[DEVICES];
static struct { char *at; size_t bytes; void *context; int pooled; } blocks[MOST];
static struct module { void *context; const char *image; size_t bytes; } modules[MOST];
static struct function { char name[128]; int dynamic; void *context; } functions[MOST];
static struct { uint64_t at; size_t bytes; void *context; int device; } places[MOST];
static int function_count, module_count, place_count;

void fake_set(launch_callback callback, int compute_major, int fail_allocations) {
  launched = callback, major = compute_major, refuse_memory = fail_allocations;
}
int fake_live(void) { return live; }
void fake_new_context(void) { context = (void *)((uintptr_t)context + 16); }
const char *fake_image(void) { return modules[module_count - 1].image; }
void *fake_launched_in(void) { return launched_in; }
int fake_retained(int device) { return retained[device]; }

/* Says where memory lies: `in` is null for a pool's, `device` negative for memory of no device. */
void fake_place(uint64_t at, size_t bytes, void *in, int device) {
  places[place_count].at = at, places[place_count].bytes = bytes;
  places[place_count].context = in, places[place_count++].device = device;
}
void fake_forget_places(void) { place_count = 0; }

/* Bytes from `at` to the end of its allocation, 0 for memory that is not ours. */
size_t fake_extent(uint64_t at) {
  for (int i = 0; i < MOST; ++i)
    if (blocks[i].at && at >= (uint64_t)blocks[i].at && at < (uint64_t)blocks[i].at + blocks[i].bytes)
      return (uint64_t)blocks[i].at + blocks[i].bytes - at;
  return 0;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : 0; }
int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return ordinal >= 0 && ordinal < DEVICES ? 0 : INVALID_VALUE;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? major : -1;
  return attribute == 75 && device >= 0 && device < DEVICES ? 0 : INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **out, int device) {
  *out = (void *)(uintptr_t)(PRIMARY | device << 16);
  ++retained[device];
  return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return retained[device]-- > 0 ? 0 : INVALID_CONTEXT; }
int cuCtxGetCurrent(void **out) { *out = context; return 0; }
int cuCtxSetCurrent(void *given) { context = given; return 0; }
int cuCtxSynchronize(void) { return context ? 0 : INVALID_CONTEXT; }
int cuCtxGetDevice(int *device) {
  *device = DEVICE_OF(context);
  return context ? 0 : INVALID_CONTEXT;
}
int cuPointerGetAttribute(void *out, int attribute, uint64_t pointer) {
  void *in = NULL;
  int device = 0;
  for (int i = 0; i < MOST; ++i)
    if (blocks[i].at && pointer - (uint64_t)blocks[i].at < blocks[i].bytes)
      in = blocks[i].pooled ? NULL : blocks[i].context, device = DEVICE_OF(blocks[i].context);
  for (int i = 0; i < place_count; ++i)
    if (pointer - places[i].at < places[i].bytes) in = places[i].context, device = places[i].device;
  if (device < 0) return INVALID_VALUE;
  if (attribute == 1) return *(void **)out = in, 0;
  *(int *)out = device;
  return attribute == 9 ? 0 : INVALID_VALUE;
}

static size_t elf_bytes(const char *elf) {
  uint64_t table;
  uint16_t size, count;
  memcpy(&table, elf + 40, 8), memcpy(&size, elf + 58, 2), memcpy(&count, elf + 60, 2);
  return table + (size_t)size * count;
}
int cuModuleLoadData(void **out, const void *data) {
  const char *image = data;
  const int elf = memcmp(image, "\177ELF", 4) == 0;
  if (!context) return INVALID_CONTEXT;
  if ((!elf && !strstr(image, ".version")) || module_count == MOST) return INVALID_VALUE;
  struct module *m = &modules[module_count++];
  m->context = context, m->image = image, m->bytes = elf ? elf_bytes(image) : strlen(image);
  *out = m;
  return 0;
}
int cuModuleGetFunction(void **out, void *module, const char *name) {
  const struct module *m = module;
  if (!memmem(m->image, m->bytes, name, strlen(name)) || function_count == MOST) return NOT_FOUND;
  struct function *f = &functions[function_count++];
  strncpy(f->name, name, sizeof f->name - 1);
  f->context = m->context;
  *out = f;
  return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
  if (attribute != 8) return INVALID_VALUE;
  ((struct function *)function)->dynamic = value;
  return 0;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **arguments, void **extra) {
  const struct function *f = function;
  if (!context || f->context != context) return INVALID_HANDLE;
  if (gy != 1 || gz != 1 || by != 1 || bz != 1 || extra || !gx || !bx) return INVALID_VALUE;
  if (shared > 48u << 10 && shared > (unsigned)f->dynamic) return INVALID_VALUE;
  launched_in = context;
  return launched(f->name, gx, bx, shared, arguments, stream);
}

static int allocate(uint64_t *out, size_t bytes, int pooled) {
  if (!context) return INVALID_CONTEXT;
  if (refuse_memory || !bytes) return refuse_memory ? OUT_OF_MEMORY : INVALID_VALUE;
  for (int i = 0; i < MOST; ++i)
    if (!blocks[i].at) {
      blocks[i].at = aligned_alloc(256, (bytes + 255) / 256 * 256);
      blocks[i].bytes = bytes, blocks[i].context = context, blocks[i].pooled = pooled;
      memset(blocks[i].at, 0xff, bytes);
      *out = (uint64_t)blocks[i].at;
      ++live;
      return 0;
    }
  return OUT_OF_MEMORY;
}
static int release(uint64_t pointer) {
  for (int i = 0; i < MOST; ++i)
    if ((uint64_t)blocks[i].at == pointer && pointer && blocks[i].context == context) {
      free(blocks[i].at);
      blocks[i].at = NULL;
      --live;
      return 0;
    }
  return INVALID_VALUE;
}
int cuMemAllocAsync(uint64_t *out, size_t bytes, void *stream) {
  (void)stream;
  return allocate(out, bytes, 1);
}
int cuMemFreeAsync(uint64_t pointer, void *stream) {
  (void)stream;
  return release(pointer);
}
/* What a host program has besides. */
int cuMemAlloc_v2(uint64_t *out, size_t bytes) { return allocate(out, bytes, 0); }
int cuMemFree_v2(uint64_t pointer) { return release(pointer); }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
  memcpy((void *)to, from, bytes);
  return 0;
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
  memcpy(to, (const void *)from, bytes);
  return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  (void)stream;
  memcpy((void *)to, from, bytes);
  return 0;
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  (void)stream;
  memcpy((void *)to, (const void *)from, bytes);
  return 0;
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t count, void *stream) {
  (void)stream;
  memset((void *)to, value, count);
  return 0;
}
int cuMemsetD32Async(uint64_t to, unsigned value, size_t count, void *stream) {
  (void)stream;
  for (size_t i = 0; i < count; ++i) ((unsigned *)to)[i] = value;
  return 0;
}
int cuGetErrorString(int error, const char **text) {
  *text = error == OUT_OF_MEMORY ? "out of memory" : "stand-in's error";
  return 0;
}
