// fula_gram.
#include <algorithm>
#include <cstring>

#include "cpu.h"
#include "pool.h"
#include "tensor.h"

namespace fula {
namespace {

// A strided matrix of one float dtype.
struct Matrix {
  const char *data;
  i64 rows, columns, row_step, column_step;
  int dtype;

  void copy_row(i64 row, double *to) const {
    const i64 bytes = element_size(dtype);
    ops_for(dtype).to_double(data + row * row_step * bytes, column_step, columns, to);
  }
};

constexpr i64 kBlockRows = 512;

// [x, 1, y] in float64, a block of rows at a time; its products with [x, 1], a panel of columns a
// task. The lower triangle of [x, 1]'[x, 1] is mirrored at the end.
class Gram {
 public:
  Gram(const Matrix &x, const Matrix &y, double *xtx, double *xty)
      : x_(x), y_(y), xtx_(xtx), xty_(xty), ops_(ops_for(FULA_FLOAT64)), workers_(pool_size()),
        left_(x.columns + 1), all_(left_ + y.columns) {}

  fula_status run() {
    const i64 panel = kBlockRows * ops_.panel;
    const i64 bytes = 8 * (kBlockRows * all_ + workers_ * panel);
    const Scratch scratch(bytes);
    if (!scratch.ok()) return no_memory(bytes);
    block_ = scratch.at<double>();
    panels_ = block_ + kBlockRows * all_;
    for (i64 row = 0; row < x_.rows; row += kBlockRows)
      add_block(row, std::min(kBlockRows, x_.rows - row));
    for (i64 i = 0; i < left_; ++i)
      for (i64 j = 0; j < i; ++j) xtx_[i * left_ + j] = xtx_[j * left_ + i];
    return FULA_OK;
  }

 private:
  void add_block(i64 from, i64 rows) {
    parallel_for(workers_, rows, [&](i64 row, int) {
      double *to = block_ + row * all_;
      x_.copy_row(from + row, to);
      to[left_ - 1] = 1;
      y_.copy_row(from + row, to + left_);
    });
    const i64 square = (left_ + ops_.panel - 1) / ops_.panel;
    const i64 rest = (y_.columns + ops_.panel - 1) / ops_.panel;
    parallel_for(workers_, square + rest, [&](i64 task, int worker) {
      const bool in_square = task < square;
      const i64 first = (in_square ? task : task - square) * ops_.panel;
      const i64 columns = std::min(ops_.panel, (in_square ? left_ : y_.columns) - first);
      double *panel = panels_ + worker * kBlockRows * ops_.panel;
      std::memset(panel, 0, sizeof(double) * rows * ops_.panel);
      ops_.pack(block_ + (in_square ? first : left_ + first), all_, 1, rows, columns, panel);
      // Rows below a square panel's last column are the mirror's.
      const i64 height = in_square ? first + columns : left_;
      ops_.multiply(block_, 1, all_, height, rows, panel, columns,
                    (in_square ? xtx_ : xty_) + first, in_square ? left_ : y_.columns, true);
    });
  }

  const Matrix &x_, &y_;
  double *xtx_, *xty_;
  const Ops &ops_;
  const int workers_;
  const i64 left_, all_;
  double *block_ = nullptr, *panels_ = nullptr;
};

fula_status read_matrix(const Argument &a, Matrix *out) {
  FULA_TRY(check_float(a));
  if (a.tensor->rank != 2)
    return refuse(FULA_ERROR_SHAPE, "%s has %d axes: must be (rows, columns)", a.name,
                  a.tensor->rank);
  const fula_tensor &t = *a.tensor;
  *out = {static_cast<const char *>(t.data), t.shape[0], t.shape[1], t.stride[0], t.stride[1],
          t.dtype};
  return FULA_OK;
}

}  // namespace
}  // namespace fula

extern "C" fula_status fula_gram(const fula_tensor *x, const fula_tensor *y, int32_t accumulate,
                                 const fula_tensor *xtx, const fula_tensor *xty) {
  using namespace fula;
  int device;
  FULA_TRY(check_all({{"x", x}, {"y", y}, {"xtx", xtx, true, true}, {"xty", xty, true, true}},
                     &device));
  if (device == FULA_CUDA)
    return refuse(FULA_ERROR_DEVICE, "x is on a CUDA device: gram serves the CPU only");
  Matrix left, right;
  FULA_TRY(read_matrix({"x", x}, &left));
  FULA_TRY(check_dtype({"y", y}, left.dtype));
  FULA_TRY(read_matrix({"y", y}, &right));
  FULA_TRY(check_shape({"y", y}, {left.rows, right.columns}));
  const i64 c1 = left.columns + 1, c2 = right.columns;
  for (const Argument &a : {Argument{"xtx", xtx}, Argument{"xty", xty}}) {
    FULA_TRY(check_dtype(a, FULA_FLOAT64));
    FULA_TRY(check_shape(a, {c1, a.tensor == xtx ? c1 : c2}));
    FULA_TRY(check_contiguous(a));
  }
  double *square = static_cast<double *>(xtx->data), *rest = static_cast<double *>(xty->data);
  if (!accumulate) {
    std::fill(square, square + c1 * c1, 0.0);
    std::fill(rest, rest + c1 * c2, 0.0);
  }
  return Gram(left, right, square, rest).run();
}
