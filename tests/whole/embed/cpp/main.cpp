// Stitching from C++: fit two stitches at once, by gradient descent on their Hint distance; then one
// step more on the GPU, where there is one, with the CPU's numbers beside it.
//
// The fronts' activations go through a known affine map to make the target, so the fitted weights
// are known too.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>
#include <vector>

#include "fula_core.h"
#include "gpu.h"

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

std::vector<float> draw(size_t count, float scale) {
  static std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  std::vector<float> v(count);
  for (float &e : v) e = scale * normal(generator);
  return v;
}

double largest(const std::vector<float> &v) {
  double most = 0;
  for (float e : v) most = std::fmax(most, std::fabs(e));
  return most;
}

// Largest |a - b|; NaN where either holds one.
double apart(const std::vector<float> &a, const std::vector<float> &b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double off = std::fabs(static_cast<double>(a[i]) - b[i]);
    if (std::isnan(off)) return off;
    most = std::fmax(most, off);
  }
  return most;
}

// What a stitch step reads and writes: Y, the distances, and the gradients of 0.5/(B P) times their
// sum plus <dy, Y>.
struct Step {
  std::vector<float> x = draw(L * B * C1 * P, 1), weight = std::vector<float>(L * C2 * C1),
                     bias = std::vector<float>(L * C2), target = std::vector<float>(L * B * C2 * P),
                     slope = std::vector<float>(L * B, 0.5f / (B * P)), dy = draw(L * B * C2 * P, 0.1f);
  std::vector<float> y = dy, dist2 = slope, dweight = weight, dbias = bias;
  std::vector<int64_t> lanes = {0, 1};

  // On whatever device `place` puts a tensor; the index stays on the host. Returns the tensors of y,
  // dist2, dweight, dbias.
  template <class Place> std::vector<fula_tensor> run(const Place &place, bool with_y) {
    const fula_tensor xs = place(view(x, {L, B, C1, H, W})), w = place(view(weight, {L, C2, C1}));
    const fula_tensor b = place(view(bias, {L, C2})), goal = place(view(target, {L, B, C2, H, W}));
    const fula_tensor s = place(view(slope, {L, B})), d = place(view(dist2, {L, B}));
    const fula_tensor flat = place(view(y, {L * B, C2, H, W})), g = place(view(dy, {L * B, C2, H, W}));
    const fula_tensor dw = place(view(dweight, {L, C2, C1})), db = place(view(dbias, {L, C2}));
    const fula_tensor i = index();
    must(fula_stitch_hint_forward(&xs, &w, &b, &i, &goal, &i, with_y ? &flat : nullptr, &d));
    must(fula_stitch_hint_backward(with_y ? &g : nullptr, &s, &xs, &w, &b, &i, &goal, &i, nullptr,
                                   &dw, &db, nullptr));
    return {flat, d, dw, db};
  }

  fula_tensor index() {
    fula_tensor t = {};
    t.data = lanes.data(), t.dtype = FULA_INT64, t.rank = 1, t.shape[0] = L, t.stride[0] = 1;
    return t;
  }
};

const auto here = [](const fula_tensor &t) { return t; };

// The target by the true map, and how far it is from plain loops.
double make_target(Step &step, std::vector<float> &truth, std::vector<float> &offset) {
  const fula_tensor xs = view(step.x, {L, B, C1, H, W}), i = step.index();
  const fula_tensor w = view(truth, {L, C2, C1}), b = view(offset, {L, C2});
  const fula_tensor flat = view(step.target, {L * B, C2, H, W});
  must(fula_stitch_hint_forward(&xs, &w, &b, &i, nullptr, nullptr, &flat, nullptr));
  double worst = 0;
  for (int64_t k = 0; k < L * B * C2 * P; ++k) {
    const int64_t p = k % P, o = k / P % C2, sample = k / (P * C2), l = sample / B;
    double sum = offset[l * C2 + o];
    for (int64_t c = 0; c < C1; ++c)
      sum += static_cast<double>(truth[(l * C2 + o) * C1 + c]) * step.x[(sample * C1 + c) * P + p];
    worst = std::fmax(worst, std::fabs(sum - step.target[k]));
  }
  return worst;
}

// Descends for 60 steps; the distances' sum at the first and the last of them.
std::pair<double, double> fit(Step &step) {
  double first = 0, last = 0;
  for (int k = 0; k < 60; ++k) {
    step.run(here, false);
    last = 0;
    for (float v : step.dist2) last += v;
    if (k == 0) first = last;
    for (size_t i = 0; i < step.weight.size(); ++i) step.weight[i] -= 0.5f * step.dweight[i];
    for (size_t i = 0; i < step.bias.size(); ++i) step.bias[i] -= 0.5f * step.dbias[i];
  }
  return {first, last};
}

bool refuses_gaps(Step &step) {
  fula_tensor broken = view(step.x, {L, B, C1, H, W});
  broken.stride[4] = 3;
  const fula_tensor w = view(step.weight, {L, C2, C1}), b = view(step.bias, {L, C2}), i = step.index();
  const fula_tensor flat = view(step.y, {L * B, C2, H, W});
  return fula_stitch_hint_forward(&broken, &w, &b, &i, nullptr, nullptr, &flat, nullptr) ==
         FULA_ERROR_STRIDE;
}

// One step, away from the fit's end, on both: the largest difference, as a share of what is compared.
double gpu_beside_cpu(Gpu &gpu, Step &step) {
  step.weight = draw(L * C2 * C1, 0.5f), step.bias = draw(L * C2, 1);
  const auto there = step.run([&](const fula_tensor &t) { return gpu.upload(t); }, true);
  step.run(here, true);
  double worst = 0;
  const std::vector<float> *cpu[] = {&step.y, &step.dist2, &step.dweight, &step.dbias};
  for (size_t k = 0; k < there.size(); ++k) {
    const double off = apart(gpu.download(there[k]), *cpu[k]) / largest(*cpu[k]);
    if (std::isnan(off)) return off;
    worst = std::fmax(worst, off);
  }
  return worst;
}

}  // namespace

int main() {
  Step step;
  std::vector<float> truth = draw(L * C2 * C1, 0.5f), offset = draw(L * C2, 1);
  const double off = make_target(step, truth, offset);
  const auto [first, last] = fit(step);
  const double error = apart(step.weight, truth);
  std::printf("fula_core %s on %s: distance %.3g -> %.3g, weights off by %.2g, y off by %.2g\n",
              fula_version(), fula_get_cpu(), first, last, error, off);
  const bool fitted = off < 1e-4 && error < 1e-3 && last < 1e-4 * first && refuses_gaps(step);
  Gpu gpu;
  if (gpu.problem()) {
    std::printf("on the CPU only: %s\n", gpu.problem());
    return fitted ? 0 : 1;
  }
  const double difference = gpu_beside_cpu(gpu, step);
  std::printf("on the GPU: numbers off by %.2g of the CPU's\n", difference);
  return fitted && difference < 1e-3 ? 0 : 1;
}
