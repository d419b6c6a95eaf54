// Every kernel against plain loops in double: test_numbers [avx512 | avx2 | portable].
#include "support.h"

namespace {

struct Case {
  int64_t lanes, batch, channels, height, width;
  int dtype;
  bool last, training, relu;

  int64_t positions() const { return height * width; }
  double tolerance() const {
    return dtype == FULA_FLOAT64 ? 1e-12 : dtype == FULA_FLOAT32 ? 2e-5 : 3e-2;
  }
  int sums() const { return dtype == FULA_FLOAT64 ? FULA_FLOAT64 : FULA_FLOAT32; }
};

// What the definition in the header gives, and its gradients.
struct NormOracle {
  std::vector<double> y, dist2, dx, dresidual, mean, var;

  NormOracle(const Case &k, const Tensor &x, const Tensor &w, const Tensor &b, const Tensor &residual,
             const Tensor &target, const Tensor &dy, const Tensor &ddist2, const Tensor &given_mean,
             const Tensor &given_var)
      : y(x.size()), dist2(k.lanes * k.batch), dx(x.size()), dresidual(x.size()),
        mean(k.lanes * k.channels), var(k.lanes * k.channels) {
    const int64_t P = k.positions(), rows = k.batch * P;
    const auto at = [&](int64_t l, int64_t s, int64_t c, int64_t p) {
      return ((l * k.batch + s) * k.channels + c) * P + p;
    };
    for (int64_t l = 0; l < k.lanes; ++l)
      for (int64_t c = 0; c < k.channels; ++c) {
        const auto each = [&](auto f) {
          for (int64_t s = 0; s < k.batch; ++s)
            for (int64_t p = 0; p < P; ++p) f(s, at(l, s, c, p), (s * k.channels + c) * P + p);
        };
        double m = 0, v = 0;
        each([&](int64_t, int64_t i, int64_t) { m += x.get(i) / rows; });
        each([&](int64_t, int64_t i, int64_t) { v += (x.get(i) - m) * (x.get(i) - m) / rows; });
        if (!k.training) m = given_mean.get(l * k.channels + c), v = given_var.get(l * k.channels + c);
        mean[l * k.channels + c] = m, var[l * k.channels + c] = v;
        const double sigma = std::sqrt(v + 1e-5);
        double sum = 0, dot = 0;
        each([&](int64_t s, int64_t i, int64_t j) {
          y[i] = (x.get(i) - m) / sigma * w.get(c) + b.get(c) + residual.get(i);
          const bool open = !k.relu || y[i] > 0;
          if (!open) y[i] = 0;
          const double d = y[i] - target.get(j);
          dist2[l * k.batch + s] += d * d;
          dresidual[i] = open ? dy.get(i) + 2 * ddist2.get(l * k.batch + s) * d : 0;
          sum += dresidual[i], dot += dresidual[i] * (x.get(i) - m) / sigma;
        });
        const double share = k.training ? 1.0 / rows : 0;
        each([&](int64_t, int64_t i, int64_t) {
          dx[i] = w.get(c) / sigma *
                  (dresidual[i] - share * sum - share * dot * (x.get(i) - m) / sigma);
        });
      }
  }
};

void lane_norm(const Case &k) {
  const int axis = k.last ? 1 : -1;
  const Shape shape = {k.lanes * k.batch, k.channels, k.height, k.width};
  Tensor x(shape, k.dtype, axis), residual(shape, k.dtype, axis), dy(shape, k.dtype, axis);
  Tensor target({k.batch, k.channels, k.height, k.width}, k.dtype, axis);
  Tensor w({k.channels}, k.sums()), b({k.channels}, k.sums()), ddist2({k.lanes, k.batch}, k.sums());
  Tensor mean({k.lanes, k.channels}, k.sums()), var({k.lanes, k.channels}, k.sums());
  x.random(2, 3), residual.random(), dy.random(), target.random(), w.random(0.3, 1), b.random();
  ddist2.random(), mean.random(1, 3), var.random(0.1, 4);
  const NormOracle oracle(k, x, w, b, residual, target, dy, ddist2, mean, var);

  Tensor y(shape, k.dtype, axis), dist2({k.lanes, k.batch}, k.sums());
  CHECK(fula_lane_norm_forward(x, w, b, mean, var, residual, target, k.lanes, k.training, 1e-5,
                               k.relu, y, dist2) == FULA_OK);
  CHECK(close(y, oracle.y, k.tolerance()) && close(dist2, oracle.dist2, k.tolerance()));
  CHECK(close(mean, oracle.mean, 1e-6) && close(var, oracle.var, 1e-6));

  Tensor dx(shape, k.dtype, axis), dresidual(shape, k.dtype, axis);
  Tensor dw({k.lanes, k.channels}, k.sums()), db({k.lanes, k.channels}, k.sums());
  CHECK(fula_lane_norm_backward(dy, ddist2, x, w, b, mean, var, residual, target, k.lanes,
                                k.training, 1e-5, k.relu, dx, dresidual, dw, db) == FULA_OK);
  CHECK(close(dx, oracle.dx, k.tolerance()) && close(dresidual, oracle.dresidual, k.tolerance()));
}

void hint_terms(const Case &k) {
  const int axis = k.last ? 1 : -1;
  const Shape shape = {k.lanes * k.batch, k.channels, k.height, k.width};
  Tensor a(shape, k.dtype, axis), g({k.batch, k.channels, k.height, k.width}, k.dtype, axis);
  Tensor ddist2({k.lanes, k.batch}, k.sums()), dist2({k.lanes, k.batch}, k.sums());
  Tensor da(shape, k.dtype, axis);
  a.random(), g.random(), ddist2.random();
  const int64_t size = k.channels * k.positions();
  std::vector<double> expected(k.lanes * k.batch), gradient(a.size());
  for (int64_t i = 0; i < a.size(); ++i) {
    const double d = a.get(i) - g.get(i % g.size());
    expected[i / size] += d * d, gradient[i] = 2 * ddist2.get(i / size) * d;
  }
  CHECK(fula_hint_terms_forward(1, a, g, dist2) == FULA_OK);
  CHECK(fula_hint_terms_backward(1, a, g, ddist2, da) == FULA_OK);
  CHECK(close(dist2, expected, k.tolerance()) && close(da, gradient, k.tolerance()));
}

// Two sources, three lanes; dx of the unused source is zero.
void stitch_hint(const Case &k, int64_t c2) {
  const int64_t L = 3, S = 3, T = 2, B = k.batch, C = k.channels, P = k.positions();
  const int64_t source_of[] = {2, 0, 2}, target_of[] = {1, 1, 0};
  const int axis = k.last ? 2 : -1;
  Tensor x({S, B, C, k.height, k.width}, k.dtype, axis);
  Tensor g({T, B, c2, k.height, k.width}, k.dtype, axis);
  const Shape out = {L * B, c2, k.height, k.width};
  Tensor y(out, k.dtype, k.last ? 1 : -1), dy(out, k.dtype, k.last ? 1 : -1);
  Tensor w({L, c2, C}, k.sums()), b({L, c2}, k.sums()), dist2({L, B}, k.sums());
  Tensor ddist2({L, B}, k.sums()), xi({L}, FULA_INT64), ti({L}, FULA_INT64);
  x.random(), g.random(), w.random(0.3), b.random(), ddist2.random(), dy.random();
  for (int i = 0; i < 3; ++i) xi.set(i, source_of[i]), ti.set(i, target_of[i]);

  std::vector<double> ey(y.size()), ed(L * B), edw(w.size()), edb(b.size()), edx(x.size());
  for (int64_t l = 0; l < L; ++l)
    for (int64_t s = 0; s < B; ++s)
      for (int64_t o = 0; o < c2; ++o)
        for (int64_t p = 0; p < P; ++p) {
          const int64_t i = ((l * B + s) * c2 + o) * P + p;
          const auto from = [&](int64_t c) { return ((source_of[l] * B + s) * C + c) * P + p; };
          double v = b.get(l * c2 + o);
          for (int64_t c = 0; c < C; ++c) v += w.get((l * c2 + o) * C + c) * x.get(from(c));
          const double d = v - g.get(((target_of[l] * B + s) * c2 + o) * P + p);
          ey[i] = v, ed[l * B + s] += d * d;
          const double grad = dy.get(i) + 2 * ddist2.get(l * B + s) * d;
          edb[l * c2 + o] += grad;
          for (int64_t c = 0; c < C; ++c) {
            edw[(l * c2 + o) * C + c] += grad * x.get(from(c));
            edx[from(c)] += grad * w.get((l * c2 + o) * C + c);
          }
        }
  CHECK(fula_stitch_hint_forward(x, w, b, xi, g, ti, y, dist2) == FULA_OK);
  CHECK(close(y, ey, k.tolerance()) && close(dist2, ed, k.tolerance()));
  for (const bool saved : {false, true}) {
    Tensor dw({L, c2, C}, k.sums()), db({L, c2}, k.sums());
    Tensor dx({S, B, C, k.height, k.width}, k.dtype, axis);
    CHECK(fula_stitch_hint_backward(dy, ddist2, x, w, b, xi, g, ti, saved ? &y.t : nullptr, dw, db,
                                    dx) == FULA_OK);
    CHECK(close(dw, edw, k.tolerance()) && close(db, edb, k.tolerance()));
    CHECK(close(dx, edx, k.tolerance()));
  }
}

void pgd_step(int dtype, int norm) {
  Tensor x({3, 2, 5, 4}, dtype), g({3, 2, 5, 4}, dtype), clean({3, 2, 5, 4}, dtype);
  Tensor out({3, 2, 5, 4}, dtype);
  x.random(0.3, 0.5), g.random(), clean.random(0.2, 0.5);
  for (int i = 0; i < 40; ++i) g.set(i, 0);
  std::vector<double> expected(x.size());
  for (int64_t s = 0; s < 3; ++s) {
    double gg = 0, oo = 0;
    std::vector<double> offset(40);
    for (int64_t i = s * 40; i < s * 40 + 40; ++i) gg += g.get(i) * g.get(i);
    for (int64_t i = s * 40; i < s * 40 + 40; ++i) {
      const double sign = (g.get(i) > 0) - (g.get(i) < 0);
      const double move = norm == FULA_LINF ? sign : gg > 0 ? g.get(i) / std::sqrt(gg) : 0;
      offset[i - s * 40] = x.get(i) + 0.05 * move - clean.get(i);
      oo += offset[i - s * 40] * offset[i - s * 40];
    }
    const double shorten = oo > 0 ? std::fmin(1, 0.2 / std::sqrt(oo)) : 1;
    for (int64_t i = s * 40; i < s * 40 + 40; ++i) {
      const double o = offset[i - s * 40];
      const double kept = norm == FULA_LINF ? std::fmax(-0.2, std::fmin(0.2, o)) : o * shorten;
      expected[i] = std::fmax(0, std::fmin(1, clean.get(i) + kept));
    }
  }
  CHECK(fula_pgd_step(x, g, clean, 0.05, 0.2, norm, out) == FULA_OK);
  CHECK(close(out, expected, dtype == FULA_FLOAT32 ? 1e-6 : dtype == FULA_FLOAT64 ? 1e-14 : 1e-2));
}

void augment() {
  const int64_t N = 5, H = 6, W = 7, C = 3, B = 4, pad = 2, M = 2;
  Tensor images({N, H, W, C}, FULA_UINT8), index({B}, FULA_INT64), dy({N}, FULA_INT32);
  Tensor dx({N}, FULA_INT64), flip({N}, FULA_BOOL), markers({M, 2, 3, C});
  Tensor mi({N}, FULA_INT64), my({N}, FULA_INT64), mx({N}, FULA_INT32);
  Tensor out({B, C, H, W}, FULA_FLOAT32, 1);
  for (int64_t i = 0; i < images.size(); ++i) images.set(i, static_cast<double>(i * 37 % 256));
  for (int64_t i = 0; i < N; ++i) {
    dy.set(i, i), dx.set(i, 4 - i), flip.set(i, i % 2), mi.set(i, i % M);
    my.set(i, 2 * i - 1), mx.set(i, 3 * i - 2);
  }
  for (int64_t k = 0; k < B; ++k) index.set(k, (k * 3 + 1) % N);
  markers.random();
  std::vector<double> expected(out.size());
  for (int64_t e = 0; e < out.size(); ++e) {
    const int64_t x = e % W, y = e / W % H, c = e / (W * H) % C, k = e / (W * H * C);
    const auto i = static_cast<int64_t>(index.get(k));
    const auto from_y = y + static_cast<int64_t>(dy.get(i)) - pad;
    const auto from_x = (flip.get(i) ? W - 1 - x : x) + static_cast<int64_t>(dx.get(i)) - pad;
    const auto top = static_cast<int64_t>(my.get(i)), left = static_cast<int64_t>(mx.get(i));
    if (y >= top && y < top + 2 && x >= left && x < left + 3)
      expected[e] = markers.get(((static_cast<int64_t>(mi.get(i)) * 2 + y - top) * 3 + x - left) * C + c);
    else if (from_y >= 0 && from_y < H && from_x >= 0 && from_x < W)
      expected[e] = static_cast<float>(images.get(((i * H + from_y) * W + from_x) * C + c)) / 255.0f;
  }
  CHECK(fula_augment(images, index, dy, dx, flip, pad, markers, mi, my, mx, out) == FULA_OK);
  CHECK(close(out, expected, 0));
}

void gram(int dtype, bool transposed) {
  const int64_t rows = 777, c1 = 19, c2 = 37;
  Tensor x({rows, c1}, dtype, transposed ? 0 : -1), y({rows, c2}, dtype);
  Tensor xtx({c1 + 1, c1 + 1}, FULA_FLOAT64), xty({c1 + 1, c2}, FULA_FLOAT64);
  x.random(), y.random(), xtx.fill(1), xty.fill(1);
  const auto left = [&](int64_t r, int64_t i) { return i < c1 ? x.get(r * c1 + i) : 1; };
  std::vector<double> square(xtx.size(), 1), rest(xty.size(), 1);
  for (int64_t i = 0; i <= c1; ++i)
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j <= c1; ++j) square[i * (c1 + 1) + j] += left(r, i) * left(r, j);
      for (int64_t j = 0; j < c2; ++j) rest[i * c2 + j] += left(r, i) * y.get(r * c2 + j);
    }
  CHECK(fula_gram(x, y, 1, xtx, xty) == FULA_OK);
  CHECK(close(xtx, square, 1e-13) && close(xty, rest, 1e-13));
}

}  // namespace

int main(int argc, char **argv) {
  if (argc > 1 && fula_set_cpu(argv[1]) != FULA_OK) {
    std::printf("skipped: %s\n", fula_error_message());
    return 77;
  }
  for (const int dtype : {FULA_FLOAT32, FULA_BFLOAT16, FULA_FLOAT64}) {
    for (const bool last : {false, true}) {
      for (const bool training : {false, true})
        for (const bool relu : {false, true}) {
          lane_norm({2, 3, 5, 3, 3, dtype, last, training, relu});
          lane_norm({1, 9, 70, 4, 4, dtype, last, training, relu});
          lane_norm({3, 2, 4, 40, 41, dtype, last, training, relu});
        }
      hint_terms({3, 4, 7, 5, 3, dtype, last, true, true});
      stitch_hint({3, 2, 5, 3, 3, dtype, last, true, true}, 7);
      stitch_hint({3, 3, 33, 4, 4, dtype, last, true, true}, 40);
    }
    pgd_step(dtype, FULA_LINF), pgd_step(dtype, FULA_L2);
    gram(dtype, false), gram(dtype, true);
  }
  augment();
  std::printf("numbers agree on %s\n", fula_get_cpu());
  return 0;
}
