// Same bits for every number of threads, from several threads at once, and after a fork.
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "support.h"

namespace {

struct Work {
  Tensor x, target, w, b, xi, ti, y, dist2, dw, db, n, mean, var, gamma, beta;

  explicit Work(bool last)
      : x({1, 6, 40, 9, 9}, FULA_FLOAT32, last ? 2 : -1),
        target({1, 6, 50, 9, 9}, FULA_FLOAT32, last ? 2 : -1), w({3, 50, 40}), b({3, 50}),
        xi({3}, FULA_INT64), ti({3}, FULA_INT64), y({18, 50, 9, 9}, FULA_FLOAT32, last ? 1 : -1),
        dist2({3, 6}), dw({3, 50, 40}), db({3, 50}),
        n({18, 50, 9, 9}, FULA_FLOAT32, last ? 1 : -1), mean({3, 50}), var({3, 50}), gamma({50}),
        beta({50}) {
    generator().seed(1);
    x.random(), target.random(), w.random(), b.random(), gamma.random(), beta.random();
    xi.fill(0), ti.fill(0);
  }

  void run() {
    CHECK(fula_stitch_hint_forward(x, w, b, xi, target, ti, y, dist2) == FULA_OK);
    CHECK(fula_stitch_hint_backward(nullptr, dist2, x, w, b, xi, target, ti, nullptr, dw, db,
                                    nullptr) == FULA_OK);
    CHECK(fula_lane_norm_forward(y, gamma, beta, mean, var, nullptr, nullptr, 3, 1, 1e-5, 1, n,
                                 nullptr) == FULA_OK);
  }
  bool same(const Work &o) const {
    const auto equal = [](const Tensor &p, const Tensor &q) {
      return std::memcmp(p.bytes(), q.bytes(), p.byte_count()) == 0;
    };
    return equal(y, o.y) && equal(dist2, o.dist2) && equal(dw, o.dw) && equal(db, o.db) &&
           equal(n, o.n) && equal(mean, o.mean) && equal(var, o.var);
  }
};

}  // namespace

int main() {
  for (const bool last : {false, true}) {
    CHECK(fula_set_num_threads(1) == FULA_OK);
    Work alone(last);
    alone.run();
    for (const int count : {2, 3, 7}) {
      CHECK(fula_set_num_threads(count) == FULA_OK && fula_get_num_threads() == count);
      Work shared(last);
      shared.run();
      CHECK(shared.same(alone));
    }
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i)
      callers.emplace_back([&, last] {
        // generator() is shared, so every caller takes the finished inputs
        static thread_local int rounds = 5;
        while (rounds-- > 0) {
          Tensor y({18, 50, 9, 9}, FULA_FLOAT32, last ? 1 : -1), dist2({3, 6});
          CHECK(fula_stitch_hint_forward(alone.x, alone.w, alone.b, alone.xi, alone.target,
                                         alone.ti, y, dist2) == FULA_OK);
          CHECK(std::memcmp(y.bytes(), alone.y.bytes(), y.byte_count()) == 0);
        }
      });
    for (std::thread &caller : callers) caller.join();
    const pid_t child = fork();
    if (child == 0) {
      Work forked(last);
      forked.run();
      _exit(forked.same(alone) ? 0 : 1);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
  }
  std::printf("same bits from every thread count\n");
  return 0;
}
