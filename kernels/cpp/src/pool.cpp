#include "pool.h"

#include "status.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace fula {
namespace {

struct Job {
  TaskBody body;
  void *context;
  i64 tasks;
  int workers;
  std::atomic<i64> next{0};

  void work(int worker) {
    if (worker >= workers) return;  // the pool has grown since the caller looked
    for (i64 task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      body(context, task, worker);
  }
};

int usable_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// The first of the two variables that is set to a positive number; else every usable processor.
int first_size() {
  for (const char *name : {"FULA_NUM_THREADS", "OMP_NUM_THREADS"}) {
    const char *text = std::getenv(name);
    const int wanted = text ? std::atoi(text) : 0;
    if (wanted > 0) return std::min(wanted, 1024);
  }
  return usable_processors();
}

class Pool {
 public:
  explicit Pool(int size) : size_(size) {}
  ~Pool() { stop(); }

  int size() const { return size_.load(); }

  void resize(int size) {
    std::lock_guard<std::mutex> owner(owner_);
    stop();
    size_ = size;
  }

  void run(Job &job) {
    std::unique_lock<std::mutex> owner(owner_, std::try_to_lock);
    if (!owner || size_ == 1 || job.tasks == 1) return job.work(0);
    start();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job, busy_ = static_cast<int>(threads_.size()), ++round_;
    }
    wake_.notify_all();
    job.work(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [&] { return busy_ == 0; });
  }

 private:
  // A thread that the system refuses is done without: the caller does its share.
  void start() {
    if (started_) return;
    started_ = true;
    stopping_ = false;
    try {
      for (int worker = 1; worker < size_; ++worker)
        threads_.emplace_back([this, worker, seen = round_] { serve(worker, seen); });
    } catch (const std::exception &) {
    }
  }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread &thread : threads_) thread.join();
    threads_.clear();
    started_ = false;
  }

  void serve(int worker, std::uint64_t seen) {
    for (;;) {
      Job *job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || round_ != seen; });
        if (stopping_) return;
        seen = round_;
        job = job_;
      }
      job->work(worker);
      std::lock_guard<std::mutex> lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex owner_;  // held by the thread whose job runs
  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_, done_;
  std::vector<std::thread> threads_;
  std::atomic<int> size_;
  Job *job_ = nullptr;
  std::uint64_t round_ = 0;
  int busy_ = 0;
  bool started_ = false, stopping_ = false;
};

Pool *pool = nullptr;
std::once_flag made;

// A forked child has none of the threads: it starts over, and leaves the parent's pool alone.
void forget_threads() { pool = new Pool(pool->size()); }

Pool &the_pool() {
  std::call_once(made, [] {
    pool = new Pool(first_size());
    pthread_atfork(nullptr, nullptr, forget_threads);
  });
  return *pool;
}

}  // namespace

int pool_size() { return the_pool().size(); }
void set_pool_size(int count) { the_pool().resize(count); }

void run_tasks(int workers, i64 tasks, TaskBody body, void *context) {
  if (tasks <= 0) return;
  Job job{body, context, tasks, workers};
  the_pool().run(job);
}

}  // namespace fula

extern "C" int32_t fula_get_num_threads(void) { return fula::pool_size(); }

extern "C" fula_status fula_set_num_threads(int32_t count) {
  if (count < 1 || count > 1024)
    return fula::refuse(FULA_ERROR_VALUE, "count = %d: must lie in [1, 1024]", count);
  fula::set_pool_size(count);
  return FULA_OK;
}
