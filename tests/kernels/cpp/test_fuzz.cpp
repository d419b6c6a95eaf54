// Random descriptions of tensors: every call must answer, never touch memory it does not own.
//
//     test_fuzz ROUNDS SEED
//
// Tensors start valid for one call and are then damaged in a few places: shapes, strides, dtypes,
// ranks, devices, null data. Strides and shapes only ever shrink what a call may touch below the
// memory behind them, or are too large to be accepted, so that the sanitizers catch every stray read.
#include "support.h"

namespace {

uint64_t state = 1;

uint64_t draw(uint64_t bound) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state % bound;
}

bool damage(Tensor &tensor) {
  fula_tensor &t = tensor.t;
  const uint64_t axis = draw(t.rank < 1 ? 1 : t.rank > 5 ? 5 : static_cast<uint64_t>(t.rank));
  switch (draw(9)) {
    case 0: t.data = nullptr; break;
    case 1: t.dtype = static_cast<int32_t>(draw(10)) - 1; break;
    case 2: t.rank = static_cast<int32_t>(draw(8)) - 1; break;
    case 3: t.shape[axis] = static_cast<int64_t>(draw(5)); break;
    case 4: t.shape[axis] = -static_cast<int64_t>(draw(5)); break;
    case 5: t.shape[axis] = int64_t{1} << (40 + draw(23)); break;
    case 6: t.stride[axis] = static_cast<int64_t>(draw(200)) - 20; break;
    case 7: t.stride[axis] = int64_t{1} << (40 + draw(23)); break;
    default: t.device = static_cast<int32_t>(draw(4)) - 1;
  }
  return true;
}

// A dtype wider than the memory would make a valid call read past the end: no such call may pass.
bool fits(const Tensor &tensor) {
  const fula_tensor &t = tensor.t;
  if (!t.data || t.dtype < 0 || t.dtype > FULA_INT64 || t.rank < 0 || t.rank > FULA_MAX_RANK)
    return true;
  double last = 0;
  for (int i = 0; i < t.rank; ++i) {
    if (t.shape[i] <= 0) return true;
    if (t.stride[i] < 0) return true;
    last += static_cast<double>(t.shape[i] - 1) * static_cast<double>(t.stride[i]);
  }
  const double bytes = (last + 1) * static_cast<double>(bytes_of(t.dtype));
  // Beyond 2^46 elements the library refuses by itself.
  return bytes <= static_cast<double>(tensor.byte_count()) || last > 0x1p47;
}

struct Call {
  std::vector<Tensor *> tensors;
  fula_status (*run)(const std::vector<const fula_tensor *> &);
};

int64_t number() {
  constexpr int64_t choices[] = {0, 1, 2, 2, 2, 3, -1, int64_t{1} << 40, INT64_MAX, INT64_MIN};
  return choices[draw(10)];
}

double scale() {
  constexpr double choices[] = {0, 1e-5, 0.1, 1, -1, INFINITY, NAN, 1e300};
  return choices[draw(8)];
}

using Pointers = std::vector<const fula_tensor *>;

fula_status forward(const Pointers &p) {
  return fula_lane_norm_forward(p[0], p[1], p[2], p[3], p[4], p[5], p[6], number(),
                                static_cast<int32_t>(draw(2)), scale(),
                                static_cast<int32_t>(draw(2)), p[7], p[8]);
}
fula_status backward(const Pointers &p) {
  return fula_lane_norm_backward(p[7], p[8], p[0], p[1], p[2], p[3], p[4], p[5], p[6], number(),
                                 static_cast<int32_t>(draw(2)), scale(),
                                 static_cast<int32_t>(draw(2)), p[9], p[10], p[11], p[12]);
}
fula_status terms(const Pointers &p) {
  return draw(2) ? fula_hint_terms_forward(1, p[0], p[1], p[2])
                 : fula_hint_terms_backward(1, p[0], p[1], p[2], p[3]);
}
fula_status stitch(const Pointers &p) {
  return draw(2) ? fula_stitch_hint_forward(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7])
                 : fula_stitch_hint_backward(p[6], p[7], p[0], p[1], p[2], p[3], p[4], p[5],
                                             nullptr, p[8], p[9], p[10]);
}
fula_status pgd(const Pointers &p) {
  return fula_pgd_step(p[0], p[1], p[2], scale(), scale(), static_cast<int32_t>(draw(4)) - 1, p[3]);
}
fula_status augment(const Pointers &p) {
  return fula_augment(p[0], p[1], p[2], p[3], p[4], number(), p[5], p[6], p[7], p[8], p[9]);
}
fula_status gram(const Pointers &p) {
  return fula_gram(p[0], p[1], static_cast<int32_t>(draw(2)), p[2], p[3]);
}

void attack(std::vector<Tensor *> tensors, fula_status (*run)(const Pointers &), int *accepted) {
  const std::vector<fula_tensor> saved = [&] {
    std::vector<fula_tensor> all;
    for (Tensor *t : tensors) all.push_back(t->t);
    return all;
  }();
  for (uint64_t i = draw(4); i > 0; --i) damage(*tensors[draw(tensors.size())]);
  Pointers pointers;
  bool safe = true;
  for (Tensor *t : tensors) {
    safe = safe && fits(*t);
    pointers.push_back(draw(40) == 0 ? nullptr : &t->t);
  }
  if (safe) {
    const fula_status status = run(pointers);
    CHECK(status >= FULA_OK && status <= FULA_ERROR_DEVICE);
    CHECK(status == FULA_OK || fula_error_message()[0] != 0);
    *accepted += status == FULA_OK;
  }
  for (size_t i = 0; i < tensors.size(); ++i) tensors[i]->t = saved[i];
}

}  // namespace

int main(int argc, char **argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 2000;
  state = argc > 2 ? static_cast<uint64_t>(std::atoll(argv[2])) * 2654435761u + 1 : 1;
  CHECK(fula_set_num_threads(2) == FULA_OK);
  Tensor x({4, 3, 2, 3}), residual({4, 3, 2, 3}), target({2, 3, 2, 3}), y({4, 3, 2, 3});
  Tensor w({3}), b({3}), mean({2, 3}), var({2, 3}), dist2({2, 2}), dx({4, 3, 2, 3});
  Tensor dr({4, 3, 2, 3}), dw({2, 3}), db({2, 3}), a({4, 5}), g({2, 5}), da({4, 5});
  Tensor fronts({2, 2, 3, 2, 2}), weight({2, 4, 3}), bias({2, 4}), xi({2}, FULA_INT64);
  Tensor aims({1, 2, 4, 2, 2}), ti({2}, FULA_INT64), sy({4, 4, 2, 2}), sd({2, 2});
  Tensor sdw({2, 4, 3}), sdb({2, 4}), sdx({2, 2, 3, 2, 2});
  Tensor p1({2, 6}), p2({2, 6}), p3({2, 6}), p4({2, 6});
  Tensor images({3, 4, 4, 1}, FULA_UINT8), index({2}, FULA_INT64), dy({3}, FULA_INT64);
  Tensor dxs({3}, FULA_INT32), flip({3}, FULA_BOOL), markers({2, 2, 2, 1}), mi({3}, FULA_INT64);
  Tensor my({3}, FULA_INT64), mx({3}, FULA_INT64), batch({2, 1, 4, 4}, FULA_FLOAT32, 1);
  Tensor left({7, 3}), right({7, 2}), xtx({4, 4}, FULA_FLOAT64), xty({4, 2}, FULA_FLOAT64);
  for (Tensor *t : {&x, &residual, &target, &w, &b, &mean, &a, &g, &fronts, &weight, &bias, &aims,
                    &p1, &p2, &p3, &left, &right, &markers})
    t->random();
  var.fill(1), xi.fill(1), ti.fill(0);
  int accepted = 0;
  for (int round = 0; round < rounds; ++round) {
    attack({&x, &w, &b, &mean, &var, &residual, &target, &y, &dist2}, forward, &accepted);
    attack({&x, &w, &b, &mean, &var, &residual, &target, &y, &dist2, &dx, &dr, &dw, &db}, backward,
           &accepted);
    attack({&a, &g, &sd, &da}, terms, &accepted);
    attack({&fronts, &weight, &bias, &xi, &aims, &ti, &sy, &sd, &sdw, &sdb, &sdx}, stitch,
           &accepted);
    attack({&p1, &p2, &p3, &p4}, pgd, &accepted);
    attack({&images, &index, &dy, &dxs, &flip, &markers, &mi, &my, &mx, &batch}, augment,
           &accepted);
    attack({&left, &right, &xtx, &xty}, gram, &accepted);
  }
  CHECK(accepted > rounds / 2);
  std::printf("%d of %d calls accepted\n", accepted, 7 * rounds);
  return 0;
}
