// A team of threads for one call: it ends with the call, so that nothing is left running between two of them.

#pragma once

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

namespace tritune {

#if defined(__wasm__)

// A module of WebAssembly is one thread.
constexpr int kMostThreads = 1;

struct Mutex {
  void lock() {}
  void unlock() {}
};

struct Barrier {
  explicit Barrier(int) {}
  void wait() {}
};

template <typename Work>
void run_team(int, const Work& work) {
  work(0);
}

#else

constexpr int kMostThreads = 1024;

using Mutex = std::mutex;

// A meeting point for all threads of a team; may be used any number of times.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}

  void wait() {
    const int round = round_.load(std::memory_order_acquire);
    if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      waiting_.store(0, std::memory_order_relaxed);
      round_.fetch_add(1, std::memory_order_release);
      return;
    }
    // Stages take a fraction of a millisecond: to sleep and wake would take as long.
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins > 1000) std::this_thread::yield();
    }
  }

 private:
  const int members_;
  std::atomic<int> waiting_{0}, round_{0};
};

// Call `work(member)` for every member from 0 to members - 1, each in a thread of its own; member 0 is the caller.
template <typename Work>
void run_team(int members, const Work& work) {
  std::vector<std::thread> others;
  others.reserve(members - 1);
  for (int member = 1; member < members; ++member) others.emplace_back([&work, member] { work(member); });
  work(0);
  for (auto& other : others) other.join();
}

#endif

}  // namespace tritune
