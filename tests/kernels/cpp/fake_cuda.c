/* A stand-in for the CUDA driver library: memory is the host's, launches go to a callback.
 *
 * It is strict where the driver is: modules must be a cubin or PTX that holds the kernels asked for,
 * large dynamic shared memory must be allowed first, frees must match allocations. Fresh memory is
 * filled with NaNs, so that reading what nobody wrote shows.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int (*launch_callback)(const char *name, unsigned grid, unsigned threads, unsigned shared,
                               void **arguments, void *stream);

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500, MOST = 4096 };

static launch_callback launched;
static int major = 9, live, refuse_memory;
static void *context;
static struct { char *at; size_t bytes; } blocks[MOST];
static struct function { char name[128]; int dynamic; } functions[MOST];
static int function_count;
static const char *image;
static size_t image_bytes;

void fake_set(launch_callback callback, int compute_major, int fail_allocations) {
  launched = callback, major = compute_major, refuse_memory = fail_allocations;
}
int fake_live(void) { return live; }
void fake_new_context(void) { context = (void *)((uintptr_t)context + 16); }
const char *fake_image(void) { return image; }

/* Bytes from `at` to the end of its allocation, 0 for memory that is not ours. */
size_t fake_extent(uint64_t at) {
  for (int i = 0; i < MOST; ++i)
    if (blocks[i].at && at >= (uint64_t)blocks[i].at && at < (uint64_t)blocks[i].at + blocks[i].bytes)
      return (uint64_t)blocks[i].at + blocks[i].bytes - at;
  return 0;
}

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? INVALID_VALUE : 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  *value = attribute == 75 ? major : -1;
  return attribute == 75 ? 0 : INVALID_VALUE;
}
int cuDevicePrimaryCtxRetain(void **out, int device) {
  (void)device;
  *out = (void *)(uintptr_t)0x100;
  return 0;
}
int cuCtxGetCurrent(void **out) { *out = context; return 0; }
int cuCtxSetCurrent(void *given) { context = given; return 0; }
int cuCtxGetDevice(int *device) { *device = 0; return 0; }
int cuPointerGetAttribute(void *out, int attribute, uint64_t pointer) {
  (void)pointer;
  *(int *)out = 0;
  return attribute == 9 ? 0 : INVALID_VALUE;
}

static size_t elf_bytes(const char *elf) {
  uint64_t table;
  uint16_t size, count;
  memcpy(&table, elf + 40, 8), memcpy(&size, elf + 58, 2), memcpy(&count, elf + 60, 2);
  return table + (size_t)size * count;
}
int cuModuleLoadData(void **module, const void *data) {
  image = data;
  const int elf = memcmp(image, "\177ELF", 4) == 0;
  if (!elf && !strstr(image, ".version")) return INVALID_VALUE;
  image_bytes = elf ? elf_bytes(image) : strlen(image);
  *module = (void *)image;
  return 0;
}
int cuModuleGetFunction(void **out, void *module, const char *name) {
  if (module != image || !memmem(image, image_bytes, name, strlen(name)) || function_count == MOST)
    return NOT_FOUND;
  struct function *f = &functions[function_count++];
  strncpy(f->name, name, sizeof f->name - 1);
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
  if (gy != 1 || gz != 1 || by != 1 || bz != 1 || extra || !gx || !bx) return INVALID_VALUE;
  if (shared > 48u << 10 && shared > (unsigned)f->dynamic) return INVALID_VALUE;
  return launched(f->name, gx, bx, shared, arguments, stream);
}

int cuMemAllocAsync(uint64_t *out, size_t bytes, void *stream) {
  (void)stream;
  if (refuse_memory || !bytes) return refuse_memory ? OUT_OF_MEMORY : INVALID_VALUE;
  for (int i = 0; i < MOST; ++i)
    if (!blocks[i].at) {
      blocks[i].at = aligned_alloc(256, (bytes + 255) / 256 * 256);
      blocks[i].bytes = bytes;
      memset(blocks[i].at, 0xff, bytes);
      *out = (uint64_t)blocks[i].at;
      ++live;
      return 0;
    }
  return OUT_OF_MEMORY;
}
int cuMemFreeAsync(uint64_t pointer, void *stream) {
  (void)stream;
  for (int i = 0; i < MOST; ++i)
    if ((uint64_t)blocks[i].at == pointer && pointer) {
      free(blocks[i].at);
      blocks[i].at = NULL;
      --live;
      return 0;
    }
  return INVALID_VALUE;
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
