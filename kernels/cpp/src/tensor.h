// Reading and refusing tensors: one place for every rule about arguments.
#pragma once

#include <initializer_list>
#include <vector>

#include "ops.h"
#include "status.h"

namespace fula {

// The layouts that an activation's strides allow, as bits.
enum Layout : unsigned { kChannelsFirst = 1, kChannelsLast = 2 };

// An activation as (samples, channels, positions); samples are all axes before the channels.
struct Activation {
  char *data = nullptr;
  int dtype = 0;
  i64 samples = 0, channels = 0, positions = 0;
  unsigned layouts = 0;

  i64 size() const { return channels * positions; }  // elements of one sample
};

struct Argument {
  const char *name;
  const fula_tensor *tensor;
  bool required = true;
  bool output = false;
  bool host = false;  // on the host, wherever the others are
};

i64 element_size(int dtype);
i64 element_count(const fula_tensor &t);

// What holds for every call: required tensors are there, each has a valid description, all are on
// one device (*device), and no output overlaps anything.
fula_status check_all(std::initializer_list<Argument> arguments, int *device);
fula_status check_all(const std::vector<Argument> &arguments, int *device);

fula_status check_shape(const Argument &a, const i64 *shape, int rank);
inline fula_status check_shape(const Argument &a, std::initializer_list<i64> shape) {
  return check_shape(a, shape.begin(), static_cast<int>(shape.size()));
}
fula_status check_dtype(const Argument &a, int dtype);
fula_status check_contiguous(const Argument &a);
// One of the four float dtypes.
fula_status check_float(const Argument &a);

// A float tensor whose axis `channel_axis` is the channels, in a dense layout. A tensor with fewer
// axes than that has one channel for all its elements of a sample (axis 0).
fula_status read_activation(const Argument &a, int channel_axis, Activation *out);

// Leaves in *layout the one layout that all given activations (absent ones have no data) share.
fula_status common_layout(std::initializer_list<const Activation *> activations, bool *last);

inline int sum_dtype(int dtype) { return dtype == FULA_FLOAT64 ? FULA_FLOAT64 : FULA_FLOAT32; }

// Fixed-size scratch memory; `ok()` tells whether it was had.
class Scratch {
 public:
  explicit Scratch(i64 bytes);
  ~Scratch();
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
  bool ok() const { return data_ != nullptr; }
  template <class T> T *at(i64 index = 0) const { return static_cast<T *>(data_) + index; }

 private:
  void *data_;
};

fula_status no_memory(i64 bytes);

}  // namespace fula
