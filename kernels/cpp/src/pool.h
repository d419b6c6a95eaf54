// The library's threads.
#pragma once

#include "ops.h"

namespace fula {

// Threads of the pool, the caller included.
int pool_size();
void set_pool_size(int count);

// Runs body(context, task, worker) for every task in [0, tasks), worker in [0, workers); returns when
// all are done. Which worker runs a task is not defined: a result must not depend on it. While
// another thread has the pool, the caller runs its tasks alone.
using TaskBody = void (*)(void *context, i64 task, int worker);
void run_tasks(int workers, i64 tasks, TaskBody body, void *context);

template <class Body> void parallel_for(int workers, i64 tasks, const Body &body) {
  run_tasks(
      workers, tasks,
      [](void *context, i64 task, int worker) {
        (*static_cast<const Body *>(context))(task, worker);
      },
      const_cast<Body *>(&body));
}

}  // namespace fula
