// What is refused, with which status, and that the message names the argument.
#include "support.h"

namespace {

// The refusal's status and a word of its message.
#define REFUSED(call, expected, word)                             \
  do {                                                            \
    CHECK((call) == (expected));                                  \
    CHECK(std::strstr(fula_error_message(), word) != nullptr);    \
  } while (0)

struct Norm {
  Tensor x{{4, 3, 2, 2}}, y{{4, 3, 2, 2}}, w{{3}}, b{{3}}, mean{{2, 3}}, var{{2, 3}};
  Tensor target{{2, 3, 2, 2}}, dist2{{2, 2}};

  fula_status run(int64_t lanes = 2, double eps = 1e-5) {
    return fula_lane_norm_forward(x, w, b, mean, var, nullptr, target, lanes, 1, eps, 0, y, dist2);
  }
};

void lane_norm() {
  Norm n;
  CHECK(n.run() == FULA_OK);
  CHECK(Norm().run(0) == FULA_ERROR_SHAPE);
  REFUSED(Norm().run(3), FULA_ERROR_SHAPE, "lanes");
  REFUSED(Norm().run(-1), FULA_ERROR_VALUE, "lanes");
  REFUSED(Norm().run(2, NAN), FULA_ERROR_VALUE, "eps");
  REFUSED(Norm().run(2, INFINITY), FULA_ERROR_VALUE, "eps");
  n.w.t.dtype = FULA_BFLOAT16;
  REFUSED(n.run(), FULA_ERROR_DTYPE, "weight");
  Norm shape;
  shape.target.t.shape[1] = 2;
  REFUSED(shape.run(), FULA_ERROR_SHAPE, "target");
  Norm stride;
  stride.x.t.stride[3] = 2;
  REFUSED(stride.run(), FULA_ERROR_STRIDE, "x");
  Norm device;
  for (Tensor *t : {&device.x, &device.y}) t->t.device = FULA_CUDA;
  REFUSED(device.run(), FULA_ERROR_DEVICE, "device");
  Norm alias;
  alias.y.t.data = alias.x.t.data;
  REFUSED(alias.run(), FULA_ERROR_VALUE, "shares memory");
  Norm missing;
  missing.w.t.data = nullptr;
  REFUSED(missing.run(), FULA_ERROR_NULL, "weight");
  Norm large;
  large.x.t.shape[0] = int64_t{1} << 62;
  REFUSED(large.run(), FULA_ERROR_SHAPE, "x");
  Tensor last({4, 3, 2, 2}, FULA_FLOAT32, 1);
  Norm mixed;
  REFUSED(fula_lane_norm_forward(mixed.x, mixed.w, mixed.b, mixed.mean, mixed.var, last, nullptr, 2,
                                 1, 1e-5, 0, mixed.y, nullptr), FULA_ERROR_STRIDE, "mixed");
  REFUSED(fula_lane_norm_forward(nullptr, n.w, n.b, n.mean, n.var, nullptr, nullptr, 2, 1, 1e-5, 0,
                                 n.y, nullptr), FULA_ERROR_NULL, "x is missing");
}

void hint_terms() {
  Tensor a({4, 5}), g({2, 5}), d({2, 2}), wrong({2, 4});
  CHECK(fula_hint_terms_forward(1, a, g, d) == FULA_OK);
  CHECK(fula_hint_terms_forward(0, nullptr, nullptr, nullptr) == FULA_OK);
  REFUSED(fula_hint_terms_forward(1, a, wrong, d), FULA_ERROR_SHAPE, "targets[0]");
  REFUSED(fula_hint_terms_forward(-1, a, g, d), FULA_ERROR_VALUE, "count");
  REFUSED(fula_hint_terms_forward(1, nullptr, g, d), FULA_ERROR_NULL, "list");
  Tensor three({3, 5});
  REFUSED(fula_hint_terms_forward(1, three, g, d), FULA_ERROR_SHAPE, "multiple");
}

void stitch_hint() {
  Tensor x({1, 2, 3, 2, 2}), w({2, 4, 3}), b({2, 4}), xi({2}, FULA_INT64), y({4, 4, 2, 2});
  xi.fill(0);
  const auto run = [&] {
    return fula_stitch_hint_forward(x, w, b, xi, nullptr, nullptr, y, nullptr);
  };
  CHECK(run() == FULA_OK);
  xi.set(1, 1);
  REFUSED(run(), FULA_ERROR_INDEX, "x_index[1] = 1");
  xi.set(1, -1);
  REFUSED(run(), FULA_ERROR_INDEX, "x_index");
  xi.set(1, 0);
  w.t.shape[2] = 2;
  REFUSED(run(), FULA_ERROR_SHAPE, "weight");
  w.t.shape[2] = 3;
  Tensor d({2, 2});
  REFUSED(fula_stitch_hint_forward(x, w, b, xi, nullptr, nullptr, y, d), FULA_ERROR_NULL, "target");
}

void pixels() {
  Tensor x({2, 3}), g({2, 3}), c({2, 3}), out({2, 3});
  REFUSED(fula_pgd_step(x, g, c, NAN, 0.1, FULA_LINF, out), FULA_ERROR_VALUE, "step");
  REFUSED(fula_pgd_step(x, g, c, 0.1, -1, FULA_LINF, out), FULA_ERROR_VALUE, "eps");
  REFUSED(fula_pgd_step(x, g, c, 0.1, 0.1, 2, out), FULA_ERROR_VALUE, "norm");
  Tensor images({3, 4, 4, 1}, FULA_UINT8), index({2}, FULA_INT64), zero({3}, FULA_INT64);
  Tensor flip({3}, FULA_BOOL), batch({2, 1, 4, 4}, FULA_FLOAT32, 1);
  const auto run = [&](int64_t pad) {
    return fula_augment(images, index, zero, zero, flip, pad, nullptr, nullptr, nullptr, nullptr,
                        batch);
  };
  CHECK(run(0) == FULA_OK);
  REFUSED(run(-1), FULA_ERROR_VALUE, "pad");
  index.set(1, 3);
  REFUSED(run(0), FULA_ERROR_INDEX, "index[1] = 3");
  index.set(1, 2), zero.set(2, 1);
  REFUSED(run(0), FULA_ERROR_INDEX, "dy[2] = 1");
}

void settings() {
  REFUSED(fula_set_num_threads(0), FULA_ERROR_VALUE, "count");
  REFUSED(fula_set_cpu("sse9"), FULA_ERROR_VALUE, "sse9");
  REFUSED(fula_set_cpu(nullptr), FULA_ERROR_NULL, "name");
  CHECK(std::strcmp(fula_version(), FULA_EXPECTED_VERSION) == 0);
}

// Sizes of zero are work of size zero.
void empty() {
  Tensor x({0, 3, 2, 2}), y({0, 3, 2, 2}), w({3}), b({3}), mean({0, 3}), var({0, 3});
  CHECK(fula_lane_norm_forward(x, w, b, mean, var, nullptr, nullptr, 0, 1, 1e-5, 0, y, nullptr) ==
        FULA_OK);
  Tensor thin({4, 0, 2, 2}), thin_y({4, 0, 2, 2}), none({0}), none2({0}), m({2, 0}), v({2, 0});
  Tensor target({2, 0, 2, 2}), dist2({2, 2});
  dist2.fill(7);
  CHECK(fula_lane_norm_forward(thin, none, none2, m, v, nullptr, target, 2, 1, 1e-5, 0, thin_y,
                               dist2) == FULA_OK);
  CHECK(close(dist2, {0, 0, 0, 0}, 0));
  Tensor none_in_lane({0, 3, 2, 2}), out({0, 3, 2, 2}), m2({2, 3}), v2({2, 3});
  CHECK(fula_lane_norm_forward(none_in_lane, w, b, m2, v2, nullptr, nullptr, 2, 1, 1e-5, 0, out,
                               nullptr) == FULA_OK);
  CHECK(std::isnan(m2.get(0)) && std::isnan(v2.get(5)));
}

}  // namespace

int main() {
  lane_norm(), hint_terms(), stitch_hint(), pixels(), settings(), empty();
  std::printf("refusals as documented\n");
  return 0;
}
