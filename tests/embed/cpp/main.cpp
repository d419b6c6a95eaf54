// Stitching from C++: fit two stitches at once, by gradient descent on their Hint distance.
//
// The fronts' activations go through a known affine map to make the target, so the fitted weights
// are known too.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "fula_core.h"

namespace {

constexpr int64_t L = 2, B = 16, C1 = 6, C2 = 4, H = 5, W = 5, P = H * W;

fula_tensor view(std::vector<float> &v, std::vector<int64_t> shape) {
  fula_tensor t = {};
  t.data = v.data(), t.dtype = FULA_FLOAT32, t.device = FULA_CPU;
  t.rank = static_cast<int32_t>(shape.size());
  int64_t stride = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    t.shape[i] = shape[i], t.stride[i] = stride;
    stride *= shape[i];
  }
  return t;
}

void must(fula_status status) {
  if (status == FULA_OK) return;
  std::printf("fula_core: %s\n", fula_error_message());
  std::exit(1);
}

}  // namespace

int main() {
  std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  const auto draw = [&](size_t n, float scale) {
    std::vector<float> v(n);
    for (float &e : v) e = scale * normal(generator);
    return v;
  };
  std::vector<float> x = draw(L * B * C1 * P, 1), truth = draw(L * C2 * C1, 0.5f), offset = draw(L * C2, 1);
  std::vector<float> target(L * B * C2 * P), weight(L * C2 * C1), bias(L * C2), dist2(L * B);
  std::vector<float> slope(L * B, 0.5f / (B * P)), dweight(weight.size()), dbias(bias.size());
  std::vector<int64_t> lanes = {0, 1};

  const fula_tensor xs = view(x, {L, B, C1, H, W}), goal = view(target, {L, B, C2, H, W});
  const fula_tensor w = view(weight, {L, C2, C1}), b = view(bias, {L, C2}), d = view(dist2, {L, B});
  const fula_tensor tw = view(truth, {L, C2, C1}), tb = view(offset, {L, C2});
  const fula_tensor s = view(slope, {L, B}), dw = view(dweight, {L, C2, C1}), db = view(dbias, {L, C2});
  fula_tensor index = {};
  index.data = lanes.data(), index.dtype = FULA_INT64, index.rank = 1, index.shape[0] = L, index.stride[0] = 1;

  // The true map makes the target; checked against plain loops.
  const fula_tensor flat = view(target, {L * B, C2, H, W});
  must(fula_stitch_hint_forward(&xs, &tw, &tb, &index, nullptr, nullptr, &flat, nullptr));
  double worst = 0;
  for (int64_t i = 0; i < L * B * C2 * P; ++i) {
    const int64_t p = i % P, o = i / P % C2, sample = i / (P * C2), l = sample / B;
    double sum = offset[l * C2 + o];
    for (int64_t c = 0; c < C1; ++c)
      sum += static_cast<double>(truth[(l * C2 + o) * C1 + c]) * x[(sample * C1 + c) * P + p];
    worst = std::fmax(worst, std::fabs(sum - target[i]));
  }

  double first = 0, last = 0;
  for (int step = 0; step < 60; ++step) {
    must(fula_stitch_hint_forward(&xs, &w, &b, &index, &goal, &index, nullptr, &d));
    last = 0;
    for (float v : dist2) last += v;
    if (step == 0) first = last;
    must(fula_stitch_hint_backward(nullptr, &s, &xs, &w, &b, &index, &goal, &index, nullptr, &dw, &db, nullptr));
    for (size_t i = 0; i < weight.size(); ++i) weight[i] -= 0.5f * dweight[i];
    for (size_t i = 0; i < bias.size(); ++i) bias[i] -= 0.5f * dbias[i];
  }
  double error = 0;
  for (size_t i = 0; i < weight.size(); ++i) error = std::fmax(error, std::fabs(weight[i] - truth[i]));

  fula_tensor broken = xs;
  broken.stride[4] = 3;
  const bool refused = fula_stitch_hint_forward(&broken, &w, &b, &index, nullptr, nullptr, &flat,
                                                nullptr) == FULA_ERROR_STRIDE;
  std::printf("fula_core %s on %s: distance %.3g -> %.3g, weights off by %.2g, y off by %.2g\n",
              fula_version(), fula_get_cpu(), first, last, error, worst);
  return worst < 1e-4 && error < 1e-3 && last < 1e-4 * first && refused ? 0 : 1;
}
