// fula_augment.
#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "cuda/cuda.h"
#include "pool.h"
#include "tensor.h"

namespace fula {
namespace {

// A vector of int32 or int64; absent without data.
struct Integers {
  const void *data = nullptr;
  bool wide = false;

  i64 operator[](i64 i) const {
    return wide ? static_cast<const i64 *>(data)[i]
                : static_cast<const std::int32_t *>(data)[i];
  }
};

struct Batch {
  const std::uint8_t *images, *flip;
  i64 samples, height, width, channels;  // of the data set
  i64 size, pad;                         // images of the batch
  Integers index, dy, dx;
  const float *markers;  // may be null
  i64 marker_count, marker_height, marker_width;
  Integers marker_index, marker_y, marker_x;
  char *out;
  int dtype;
};

fula_status read_integers(const Argument &a, i64 length, Integers *out) {
  if (a.tensor->dtype != FULA_INT32) FULA_TRY(check_dtype(a, FULA_INT64));
  FULA_TRY(check_shape(a, {length}));
  FULA_TRY(check_contiguous(a));
  *out = {a.tensor->data, a.tensor->dtype == FULA_INT64};
  return FULA_OK;
}

fula_status check_range(const char *name, i64 at, i64 value, i64 end) {
  if (value >= 0 && value < end) return FULA_OK;
  return refuse(FULA_ERROR_INDEX, "%s[%lld] = %lld: must lie in [0, %lld)", name,
                static_cast<long long>(at), static_cast<long long>(value),
                static_cast<long long>(end));
}

fula_status check_numbers(const Batch &b) {
  for (i64 k = 0; k < b.size; ++k) {
    const i64 i = b.index[k];
    FULA_TRY(check_range("index", k, i, b.samples));
    FULA_TRY(check_range("dy", i, b.dy[i], 2 * b.pad + 1));
    FULA_TRY(check_range("dx", i, b.dx[i], 2 * b.pad + 1));
    if (b.markers) FULA_TRY(check_range("marker_index", i, b.marker_index[i], b.marker_count));
  }
  return FULA_OK;
}

// One cropped, perhaps mirrored row of bytes, zero outside the image.
void crop_row(const Batch &b, i64 i, i64 y, std::uint8_t *row) {
  const i64 c = b.channels, from_y = y + b.dy[i] - b.pad, shift = b.dx[i] - b.pad;
  std::memset(row, 0, b.width * c);
  if (from_y < 0 || from_y >= b.height) return;
  const std::uint8_t *image = b.images + (i * b.height + from_y) * b.width * c;
  const i64 first = std::max<i64>(0, -shift), end = std::min(b.width, b.width - shift);
  if (first >= end) return;
  if (!b.flip[i]) {
    std::memcpy(row + first * c, image + (first + shift) * c, (end - first) * c);
    return;
  }
  for (i64 x = first; x < end; ++x)
    for (i64 k = 0; k < c; ++k)
      row[(b.width - 1 - x) * c + k] = image[(x + shift) * c + k];
}

// The part of a marker that lies inside the image.
void paste(const Batch &b, i64 i, char *image, const Ops &ops) {
  const i64 c = b.channels, bytes = element_size(b.dtype);
  const i64 top = b.marker_y[i], left = b.marker_x[i];
  const float *marker = b.markers + b.marker_index[i] * b.marker_height * b.marker_width * c;
  const i64 first_x = std::clamp<i64>(left, 0, b.width);
  const i64 end_x = std::clamp<i64>(left, -b.marker_width, b.width) + b.marker_width;
  const i64 stop_x = std::min(b.width, end_x);
  const i64 first_y = std::clamp<i64>(top, 0, b.height);
  const i64 end_y = std::clamp<i64>(top, -b.marker_height, b.height) + b.marker_height;
  for (i64 y = first_y; y < std::min(b.height, end_y) && first_x < stop_x; ++y)
    ops.narrow(marker + ((y - top) * b.marker_width + first_x - left) * c,
               (stop_x - first_x) * c, image + (y * b.width + first_x) * c * bytes);
}

void make_image(const Batch &b, i64 k, std::uint8_t *row) {
  const Ops &ops = ops_for(b.dtype);
  const i64 i = b.index[k], length = b.width * b.channels;
  const i64 line = length * element_size(b.dtype);
  char *image = b.out + k * b.height * line;
  for (i64 y = 0; y < b.height; ++y) {
    crop_row(b, i, y, row);
    ops.pixels(row, length, image + y * line);
  }
  if (b.markers) paste(b, i, image, ops);
}

fula_status read_images(const fula_tensor *images, const fula_tensor *flip, i64 pad, Batch *b) {
  const Argument a = {"images", images}, f = {"flip", flip};
  FULA_TRY(check_dtype(a, FULA_UINT8));
  if (images->rank != 4)
    return refuse(FULA_ERROR_SHAPE, "images has %d axes: must be (N, H, W, C)", images->rank);
  FULA_TRY(check_contiguous(a));
  if (pad < 0 || pad > 1 << 20)
    return refuse(FULA_ERROR_VALUE, "pad = %lld: must lie in [0, 2^20]",
                  static_cast<long long>(pad));
  b->images = static_cast<const std::uint8_t *>(images->data), b->pad = pad;
  b->samples = images->shape[0], b->height = images->shape[1];
  b->width = images->shape[2], b->channels = images->shape[3];
  FULA_TRY(check_dtype(f, FULA_BOOL));
  FULA_TRY(check_shape(f, {b->samples}));
  FULA_TRY(check_contiguous(f));
  b->flip = static_cast<const std::uint8_t *>(flip->data);
  return FULA_OK;
}

fula_status read_markers(const fula_tensor *markers, Batch *b) {
  const Argument a = {"markers", markers};
  FULA_TRY(check_dtype(a, FULA_FLOAT32));
  if (markers->rank != 4 || markers->shape[3] != b->channels)
    return refuse(FULA_ERROR_SHAPE, "markers must be (M, h, w, C) with C = %lld",
                  static_cast<long long>(b->channels));
  FULA_TRY(check_contiguous(a));
  b->markers = static_cast<const float *>(markers->data);
  b->marker_count = markers->shape[0];
  b->marker_height = markers->shape[1], b->marker_width = markers->shape[2];
  return FULA_OK;
}

fula_status read_out(const fula_tensor *out, Batch *b) {
  const Argument a = {"out", out};
  Activation to;
  if (out->dtype == FULA_FLOAT64)
    return refuse(FULA_ERROR_DTYPE, "out has dtype float64: must be float32, bfloat16 or float16");
  FULA_TRY(check_float(a));
  FULA_TRY(check_shape(a, {b->size, b->channels, b->height, b->width}));
  FULA_TRY(read_activation(a, 1, &to));
  if (!(to.layouts & kChannelsLast))
    return refuse(FULA_ERROR_STRIDE, "out must be channels-last");
  b->out = to.data, b->dtype = to.dtype;
  return FULA_OK;
}

// The GPU's kernels know two sets of integer types.
fula_status on_gpu(const Batch &b) {
  const bool wide = b.dy.wide;
  const bool marked = b.markers != nullptr;
  if (!b.index.wide || (marked && !b.marker_index.wide))
    return refuse(FULA_ERROR_DTYPE, "index and marker_index must be int64 on a CUDA device");
  if (b.dx.wide != wide || (marked && (b.marker_y.wide != wide || b.marker_x.wide != wide)))
    return refuse(FULA_ERROR_DTYPE,
                  "dy, dx, marker_y and marker_x must have one dtype on a CUDA device");
  return cuda::augment({b.images, b.index.data, b.dy.data, b.dx.data, b.flip, b.markers,
                        b.marker_index.data, b.marker_y.data, b.marker_x.data, b.out, b.dtype, wide,
                        b.height, b.width, b.channels, b.size, b.pad, b.marker_height,
                        b.marker_width});
}

}  // namespace
}  // namespace fula

extern "C" fula_status fula_augment(const fula_tensor *images, const fula_tensor *index,
                                    const fula_tensor *dy, const fula_tensor *dx,
                                    const fula_tensor *flip, int64_t pad,
                                    const fula_tensor *markers, const fula_tensor *marker_index,
                                    const fula_tensor *marker_y, const fula_tensor *marker_x,
                                    const fula_tensor *out) {
  using namespace fula;
  const bool marked = markers != nullptr;
  int device;
  FULA_TRY(check_all({{"images", images}, {"index", index}, {"dy", dy}, {"dx", dx}, {"flip", flip},
                      {"markers", markers, false}, {"marker_index", marker_index, marked},
                      {"marker_y", marker_y, marked}, {"marker_x", marker_x, marked},
                      {"out", out, true, true}}, &device));
  Batch b = {};
  FULA_TRY(read_images(images, flip, pad, &b));
  b.size = index->rank == 1 ? index->shape[0] : -1;
  FULA_TRY(read_integers({"index", index}, std::max<i64>(0, b.size), &b.index));
  FULA_TRY(read_integers({"dy", dy}, b.samples, &b.dy));
  FULA_TRY(read_integers({"dx", dx}, b.samples, &b.dx));
  if (marked) {
    FULA_TRY(read_markers(markers, &b));
    FULA_TRY(read_integers({"marker_index", marker_index}, b.samples, &b.marker_index));
    FULA_TRY(read_integers({"marker_y", marker_y}, b.samples, &b.marker_y));
    FULA_TRY(read_integers({"marker_x", marker_x}, b.samples, &b.marker_x));
  }
  FULA_TRY(read_out(out, &b));
  if (device == FULA_CUDA) return on_gpu(b);
  FULA_TRY(check_numbers(b));
  const i64 line = (b.width * b.channels + 63) / 64 * 64;
  const int workers = pool_size();
  const Scratch rows(workers * line);
  if (!rows.ok()) return no_memory(workers * line);
  if (b.height * b.width * b.channels > 0)
    parallel_for(workers, b.size, [&](i64 k, int worker) {
      make_image(b, k, rows.at<std::uint8_t>(worker * line));
    });
  return FULA_OK;
}
