#include "tensor.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fula {
namespace {

constexpr const char *kDtypes[] = {"float32", "bfloat16", "float16", "float64",
                                   "uint8",   "bool",     "int32",   "int64"};
constexpr i64 kSizes[] = {4, 2, 2, 8, 1, 1, 4, 8};
constexpr i64 kMostBytes = i64{1} << 46;

// "(2, 3, 4)" for messages.
struct ShapeText {
  char text[128];
  ShapeText(const i64 *shape, i64 rank) {
    int used = std::snprintf(text, sizeof text, "(");
    for (i64 i = 0; i < rank; ++i)
      used += std::snprintf(text + used, sizeof text - used, "%s%lld", i ? ", " : "",
                            static_cast<long long>(shape[i]));
    std::snprintf(text + used, sizeof text - used, ")");
  }
  explicit ShapeText(const fula_tensor &t) : ShapeText(t.shape, t.rank) {}
};

struct Range {
  const char *from, *to;
};

// Memory a tensor spans; its strides are known to be non-negative.
Range range_of(const fula_tensor &t) {
  i64 last = 0;
  for (int i = 0; i < t.rank; ++i) last += (t.shape[i] - 1) * t.stride[i];
  const char *from = static_cast<const char *>(t.data);
  return {from, from + (last + 1) * kSizes[t.dtype]};
}

fula_status check_description(const Argument &a, const fula_tensor &t) {
  if (t.rank < 0 || t.rank > FULA_MAX_RANK)
    return refuse(FULA_ERROR_SHAPE, "%s has %d axes: at most %d are possible", a.name, t.rank,
                  FULA_MAX_RANK);
  if (t.dtype < 0 || t.dtype > FULA_INT64)
    return refuse(FULA_ERROR_DTYPE, "%s has dtype %d: not a fula_dtype", a.name, t.dtype);
  i64 count = 1, span = 1;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] < 0 || t.shape[i] > kMostBytes || t.stride[i] < 0 || t.stride[i] > kMostBytes)
      return refuse(t.shape[i] < 0 || t.shape[i] > kMostBytes ? FULA_ERROR_SHAPE
                                                              : FULA_ERROR_STRIDE,
                    "%s: axis %d has length %lld and stride %lld; both must lie in [0, 2^46]",
                    a.name, i, static_cast<long long>(t.shape[i]),
                    static_cast<long long>(t.stride[i]));
    i64 reach = 0;
    if (__builtin_mul_overflow(count, t.shape[i], &count) ||
        (t.shape[i] > 1 && __builtin_mul_overflow(t.shape[i] - 1, t.stride[i], &reach)) ||
        __builtin_add_overflow(span, reach, &span) || count > kMostBytes || span > kMostBytes)
      return refuse(FULA_ERROR_SHAPE, "%s of shape %s is too large", a.name, ShapeText(t).text);
  }
  if (count > 0 && !t.data)
    return refuse(FULA_ERROR_NULL, "%s of shape %s has no data", a.name, ShapeText(t).text);
  return FULA_OK;
}

fula_status check_device(const Argument &a, const fula_tensor &t, int *device) {
  if (t.device != FULA_CPU && t.device != FULA_CUDA)
    return refuse(FULA_ERROR_DEVICE, "%s is on device %d: not a fula_device", a.name, t.device);
  if (a.host) {
    if (t.device == FULA_CPU) return FULA_OK;
    return refuse(FULA_ERROR_DEVICE, "%s is on a GPU: it must be on the host", a.name);
  }
  if (*device >= 0 && t.device != *device)
    return refuse(FULA_ERROR_DEVICE, "%s is not on the device of the arguments before it", a.name);
  *device = t.device;
  return FULA_OK;
}

bool overlap(const fula_tensor &a, const fula_tensor &b) {
  if (element_count(a) == 0 || element_count(b) == 0) return false;
  const Range p = range_of(a), q = range_of(b);
  return p.from < q.to && q.from < p.to;
}

template <class Arguments> fula_status check_arguments(const Arguments &arguments, int *device) {
  *device = -1;
  for (const Argument &a : arguments) {
    if (!a.tensor && a.required) return refuse(FULA_ERROR_NULL, "%s is missing", a.name);
    if (!a.tensor) continue;
    FULA_TRY(check_description(a, *a.tensor));
    FULA_TRY(check_device(a, *a.tensor, device));
  }
  for (const Argument &a : arguments)
    for (const Argument &b : arguments)
      if (a.output && a.tensor && b.tensor && &a != &b && overlap(*a.tensor, *b.tensor))
        return refuse(FULA_ERROR_VALUE, "%s shares memory with %s: an output needs its own",
                      a.name, b.name);
  return FULA_OK;
}

// Whether the strides are dense with the given axes from outermost to innermost.
bool dense(const fula_tensor &t, const int *order) {
  i64 expected = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    const int axis = order[i];
    if (t.shape[axis] == 1) continue;
    if (t.stride[axis] != expected) return false;
    expected *= t.shape[axis];
  }
  return true;
}

}  // namespace

i64 element_size(int dtype) { return kSizes[dtype]; }

i64 element_count(const fula_tensor &t) {
  i64 count = 1;
  for (int i = 0; i < t.rank; ++i) count *= t.shape[i];
  return count;
}

fula_status check_all(std::initializer_list<Argument> arguments, int *device) {
  return check_arguments(arguments, device);
}
fula_status check_all(const std::vector<Argument> &arguments, int *device) {
  return check_arguments(arguments, device);
}

fula_status check_shape(const Argument &a, const i64 *shape, int rank) {
  const bool same = a.tensor->rank == rank &&
                    std::memcmp(a.tensor->shape, shape, sizeof(i64) * rank) == 0;
  if (same) return FULA_OK;
  return refuse(FULA_ERROR_SHAPE, "%s has shape %s: must be %s", a.name,
                ShapeText(*a.tensor).text, ShapeText(shape, rank).text);
}

fula_status check_dtype(const Argument &a, int dtype) {
  if (a.tensor->dtype == dtype) return FULA_OK;
  return refuse(FULA_ERROR_DTYPE, "%s has dtype %s: must be %s", a.name, kDtypes[a.tensor->dtype],
                kDtypes[dtype]);
}

fula_status check_float(const Argument &a) {
  if (a.tensor->dtype <= FULA_FLOAT64) return FULA_OK;
  return refuse(FULA_ERROR_DTYPE, "%s has dtype %s: must be a float dtype", a.name,
                kDtypes[a.tensor->dtype]);
}

fula_status check_contiguous(const Argument &a) {
  constexpr int kOrder[] = {0, 1, 2, 3, 4};
  static_assert(FULA_MAX_RANK == 5, "kOrder names every axis");
  if (element_count(*a.tensor) == 0 || dense(*a.tensor, kOrder)) return FULA_OK;
  return refuse(FULA_ERROR_STRIDE, "%s with strides %s must be contiguous", a.name,
                ShapeText(a.tensor->stride, a.tensor->rank).text);
}

fula_status read_activation(const Argument &a, int channel_axis, Activation *out) {
  const fula_tensor &t = *a.tensor;
  FULA_TRY(check_float(a));
  if (t.rank <= channel_axis)
    return refuse(FULA_ERROR_SHAPE, "%s has shape %s: at least %d axes are needed", a.name,
                  ShapeText(t).text, channel_axis + 1);
  int first[FULA_MAX_RANK], last[FULA_MAX_RANK];
  Activation r;
  r.data = static_cast<char *>(t.data), r.dtype = t.dtype;
  r.samples = r.positions = 1;
  for (int i = 0; i < t.rank; ++i) {
    first[i] = i;
    last[i] = i < channel_axis ? i : (i == t.rank - 1 ? channel_axis : i + 1);
    if (i < channel_axis) r.samples *= t.shape[i];
    if (i > channel_axis) r.positions *= t.shape[i];
  }
  r.channels = t.shape[channel_axis];
  const bool empty = element_count(t) == 0;
  if (empty || dense(t, first)) r.layouts |= kChannelsFirst;
  if (empty || dense(t, last)) r.layouts |= kChannelsLast;
  if (!r.layouts)
    return refuse(FULA_ERROR_STRIDE, "%s of shape %s with strides %s is neither contiguous nor "
                  "channels-last", a.name, ShapeText(t).text, ShapeText(t.stride, t.rank).text);
  *out = r;
  return FULA_OK;
}

fula_status common_layout(std::initializer_list<const Activation *> activations, bool *last) {
  unsigned shared = kChannelsFirst | kChannelsLast;
  i64 channels = 0;
  for (const Activation *a : activations)
    if (a->layouts) shared &= a->layouts, channels = channels ? channels : a->channels;
  if (!shared)
    return refuse(FULA_ERROR_STRIDE,
                  "contiguous and channels-last activations are mixed: all need one layout");
  // Where both fit, channels or positions have length 1: walk along the longer axis.
  *last = shared == kChannelsLast || (shared & kChannelsLast && channels > 1);
  return FULA_OK;
}

Scratch::Scratch(i64 bytes)
    : data_(std::aligned_alloc(64, static_cast<std::size_t>((bytes + 127) / 64 * 64))) {}
Scratch::~Scratch() { std::free(data_); }

fula_status no_memory(i64 bytes) {
  return refuse(FULA_ERROR_MEMORY, "%lld bytes of scratch memory could not be had",
                static_cast<long long>(bytes));
}

}  // namespace fula
