// Tensors that own their memory, and a check that tells where it failed.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "fula_core.h"

#define CHECK(condition)                                                         \
  do {                                                                           \
    if (!(condition)) {                                                          \
      std::printf("%s:%d: %s failed; last message: %s\n", __FILE__, __LINE__, #condition, \
                  fula_error_message());                                         \
      std::exit(1);                                                              \
    }                                                                            \
  } while (0)

using Shape = std::vector<int64_t>;

inline int64_t count_of(const Shape &shape) {
  int64_t n = 1;
  for (int64_t s : shape) n *= s;
  return n;
}

inline size_t bytes_of(int dtype) {
  constexpr size_t sizes[] = {4, 2, 2, 8, 1, 1, 4, 8};
  return sizes[dtype];
}

inline std::mt19937 &generator() {
  static std::mt19937 g(7);
  return g;
}

// Float tensors hold float32, bfloat16 or float64 (float16 is tested through Python).
class Tensor {
 public:
  fula_tensor t = {};

  Tensor(const Shape &shape, int dtype = FULA_FLOAT32, int channels_last_axis = -1)
      : memory_(static_cast<size_t>(count_of(shape)) * bytes_of(dtype)), shape_(shape) {
    t.data = memory_.data();
    t.dtype = dtype, t.rank = static_cast<int32_t>(shape.size());
    std::vector<int> order;
    for (int i = 0; i < t.rank; ++i)
      if (i != channels_last_axis) order.push_back(i);
    if (channels_last_axis >= 0) order.push_back(channels_last_axis);
    int64_t stride = 1;
    for (int i = t.rank - 1; i >= 0; --i) {
      t.shape[order[i]] = shape[order[i]], t.stride[order[i]] = stride;
      stride *= shape[order[i]];
    }
  }
  Tensor(const Tensor &) = delete;

  Tensor &random(double scale = 1, double offset = 0) {
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < size(); ++i) set(i, normal(generator()) * scale + offset);
    return *this;
  }
  Tensor &fill(double value) {
    for (int64_t i = 0; i < size(); ++i) set(i, value);
    return *this;
  }

  int64_t size() const { return count_of(shape_); }
  operator const fula_tensor *() const { return &t; }
  const unsigned char *bytes() const { return memory_.data(); }
  size_t byte_count() const { return memory_.size(); }

  // Element i in the order of the shape, whatever the strides.
  double get(int64_t i) const {
    const unsigned char *p = memory_.data() + place(i) * bytes_of(t.dtype);
    if (t.dtype == FULA_FLOAT64) return read<double>(p);
    if (t.dtype == FULA_FLOAT32) return read<float>(p);
    if (t.dtype == FULA_INT64) return static_cast<double>(read<int64_t>(p));
    if (t.dtype == FULA_INT32) return read<int32_t>(p);
    if (t.dtype != FULA_BFLOAT16) return *p;
    const uint32_t word = static_cast<uint32_t>(read<uint16_t>(p)) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
  void set(int64_t i, double value) {
    unsigned char *p = memory_.data() + place(i) * bytes_of(t.dtype);
    if (t.dtype == FULA_FLOAT64) return write(p, value);
    if (t.dtype == FULA_FLOAT32) return write(p, static_cast<float>(value));
    if (t.dtype == FULA_INT64) return write(p, static_cast<int64_t>(value));
    if (t.dtype == FULA_INT32) return write(p, static_cast<int32_t>(value));
    if (t.dtype != FULA_BFLOAT16) return write(p, static_cast<uint8_t>(value));
    const float narrow = static_cast<float>(value);
    uint32_t word;
    std::memcpy(&word, &narrow, 4);
    write(p, static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16));
  }

 private:
  template <class T> static T read(const unsigned char *p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  template <class T> static void write(unsigned char *p, T value) {
    std::memcpy(p, &value, sizeof value);
  }
  int64_t place(int64_t i) const {
    int64_t at = 0;
    for (int axis = t.rank - 1; axis >= 0; --axis) {
      at += i % t.shape[axis] * t.stride[axis];
      i /= t.shape[axis];
    }
    return at;
  }

  std::vector<unsigned char> memory_;
  Shape shape_;
};

// |a - b| <= tolerance * (1 + largest |b|), for every element.
inline bool close(const Tensor &a, const std::vector<double> &b, double tolerance) {
  double largest = 0, worst = 0;
  for (double v : b) largest = std::fmax(largest, std::fabs(v));
  for (int64_t i = 0; i < a.size(); ++i) {
    const double error = std::fabs(a.get(i) - b[static_cast<size_t>(i)]);
    worst = error > worst || error != error ? error : worst;
  }
  if (worst <= tolerance * (1 + largest)) return true;
  std::printf("worst error %g, largest value %g\n", worst, largest);
  return false;
}
