// Runs the source of graft's CUDA kernels on the host, thread by thread, for tests where there is
// no GPU: each thread of a block is a coroutine that runs to its next barrier or shuffle. It knows
// what the kernels use: one-dimensional grids of whole warps, static shared memory, __syncthreads,
// __shfl_xor_sync of a whole warp, integer atomics. It finds wrong indices, missing work and
// barriers that not all threads reach; a missing barrier it may not find.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

namespace graft::cuda_on_host {

struct Index {
  unsigned x = 0;
};
inline Index threadIdx, blockIdx, blockDim;

class Block {
 public:
  // Runs all threads of block `number`.
  Block(unsigned number, unsigned threads, std::function<void()> kernel)
      : kernel_(std::move(kernel)), threads_(threads), shuffled_(threads) {
    current_ = this;
    blockIdx.x = number;
    blockDim.x = threads;
    for (Thread& thread : threads_) Start(&thread);
    while (RunOnce()) {
    }
  }

  static void Wait(bool of_block) {
    Thread& thread = current_->threads_[threadIdx.x];
    thread.state = of_block ? State::kAtBlockBarrier : State::kAtWarpBarrier;
    ::swapcontext(&thread.context, &current_->scheduler_);
  }
  static float Shuffle(float value, unsigned apart) {
    const unsigned own = threadIdx.x;
    current_->shuffled_[own] = value;
    Wait(false);
    const float other = current_->shuffled_[own ^ apart];
    Wait(false);
    return other;
  }

 private:
  enum class State { kRuns, kAtWarpBarrier, kAtBlockBarrier, kDone };
  struct Thread {
    State state = State::kRuns;
    ::ucontext_t context{};
    std::unique_ptr<char[]> stack;
  };
  static constexpr size_t kStack = 64 << 10;

  static void Body() {
    current_->kernel_();
    current_->threads_[threadIdx.x].state = State::kDone;
  }
  void Start(Thread* thread) {
    thread->stack = std::make_unique_for_overwrite<char[]>(kStack);
    ::getcontext(&thread->context);
    thread->context.uc_stack.ss_sp = thread->stack.get();
    thread->context.uc_stack.ss_size = kStack;
    thread->context.uc_link = &scheduler_;
    ::makecontext(&thread->context, &Body, 0);
  }

  // Lets every thread that can run do so, then opens barriers; false when all are done.
  bool RunOnce() {
    for (size_t i = 0; i < threads_.size(); ++i) {
      if (threads_[i].state != State::kRuns) continue;
      threadIdx.x = static_cast<unsigned>(i);
      ::swapcontext(&scheduler_, &threads_[i].context);
    }
    const auto all = [&](size_t begin, size_t end, State state) {
      return std::all_of(threads_.begin() + static_cast<std::ptrdiff_t>(begin),
                         threads_.begin() + static_cast<std::ptrdiff_t>(end),
                         [&](const Thread& thread) { return thread.state == state; });
    };
    if (all(0, threads_.size(), State::kDone)) return false;
    bool opened = false;
    const auto open = [&](size_t begin, size_t end) {
      for (size_t i = begin; i < end; ++i) threads_[i].state = State::kRuns;
      opened = true;
    };
    for (size_t warp = 0; warp < threads_.size(); warp += 32) {
      if (all(warp, warp + 32, State::kAtWarpBarrier)) open(warp, warp + 32);
    }
    if (all(0, threads_.size(), State::kAtBlockBarrier)) open(0, threads_.size());
    if (!opened) throw std::logic_error("threads wait for each other at different barriers");
    return true;
  }

  static inline Block* current_ = nullptr;
  std::function<void()> kernel_;
  std::vector<Thread> threads_;
  std::vector<float> shuffled_;
  ::ucontext_t scheduler_{};
};

inline void Launch(int64_t blocks, unsigned threads, const std::function<void()>& kernel) {
  for (int64_t i = 0; i < blocks; ++i) Block(static_cast<unsigned>(i), threads, kernel);
}

inline void __syncthreads() { Block::Wait(true); }
inline float __shfl_xor_sync(unsigned, float value, int apart) {
  return Block::Shuffle(value, static_cast<unsigned>(apart));
}
inline unsigned long long atomicAdd(unsigned long long* number, unsigned long long more) {
  return std::exchange(*number, *number + more);
}
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline float __int_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float number) { return std::bit_cast<unsigned>(number); }
inline long long max(long long a, long long b) { return std::max(a, b); }
inline long long min(long long a, long long b) { return std::min(a, b); }

}  // namespace graft::cuda_on_host

#define __device__
#define __global__ inline
#define __shared__ static
