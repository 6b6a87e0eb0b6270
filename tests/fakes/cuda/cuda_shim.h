// As much of CUDA as kernels/lookup/nearest.cu needs, in C++, to run its kernels on a CPU: every thread of a block is a fiber.
//
// It is stricter than a GPU: barriers and shuffles must be reached by all threads of the block or warp (what diverges is
// an error, not a hang), dynamic shared memory starts as NaN, and asynchronous copies arrive as late, or as early, as
// they are allowed to. The order in which blocks, warps and lanes run is chosen by the caller: where a barrier is
// missing, another order gives another result.
#pragma once
#define CUDA_SHIM

#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static  // blocks run one after the other
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(shim::dynamic_shared)

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr int kLanes = 32, kMaxThreads = 1024;
constexpr size_t kStack = 64 << 10, kShared = 256 << 10;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Copy {
  float4* to;
  const float4* from;
  bool valid;
};

struct Fiber {
  State state = State::kDone;
  bool started = false;
  unsigned exchanges = 0;
  std::vector<std::vector<Copy>> groups;  // of copies, those not yet committed last
  jmp_buf at;
  ucontext_t start;
  std::unique_ptr<char[]> stack;
};

struct Warp {
  alignas(8) unsigned char values[2][kLanes][8];
  int kind[2];
  unsigned arrived[2];
};

alignas(16) inline unsigned char dynamic_shared[kShared];
inline std::vector<Fiber> fibers(kMaxThreads);
inline Warp warps[kMaxThreads / kLanes];
inline jmp_buf scheduler;
inline void (*body)(void*);
inline void* body_arguments;
inline bool eager_copies;
inline std::string failure;

inline Fiber& self() { return fibers[threadIdx.x]; }

[[gnu::noinline]] inline void yield(State state) {
  Fiber& fiber = self();
  const unsigned thread = threadIdx.x;
  fiber.state = state;
  if (!_setjmp(fiber.at)) _longjmp(scheduler, 1);
  threadIdx.x = thread;
}

inline void fail(const std::string& what) {
  if (failure.empty()) failure = what + " (block " + std::to_string(blockIdx.x) + ", thread " + std::to_string(threadIdx.x) + ")";
  yield(State::kDone);  // never resumed
}

inline void fiber_main() {
  for (;;) {
    body(body_arguments);
    yield(State::kDone);
  }
}

[[gnu::noinline]] inline void resume(unsigned thread) {
  Fiber& fiber = fibers[thread];
  threadIdx.x = thread;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  if (!fiber.stack) fiber.stack = std::make_unique_for_overwrite<char[]>(kStack);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStack;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

// Orders in which to run: 0 is ascending, 1 descending, others are shuffled, each in its own way.
inline std::vector<unsigned> order_of(unsigned count, unsigned schedule, unsigned salt) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (schedule == 1) {
    for (unsigned i = 0; i < count; ++i) order[i] = count - 1 - i;
  } else if (schedule > 1) {
    std::minstd_rand random(schedule * 7919 + salt);
    for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  }
  return order;
}

// Runs a warp until all of it waits for the block, or has ended.
inline void run_warp(unsigned warp, const std::vector<unsigned>& lanes) {
  for (;;) {
    unsigned at_warp = 0, at_block = 0;
    for (unsigned lane : lanes) {
      Fiber& fiber = fibers[warp * kLanes + lane];
      if (fiber.state == State::kReady) resume(warp * kLanes + lane);
      if (!failure.empty()) return;
      at_warp += fiber.state == State::kAtWarp;
      at_block += fiber.state == State::kAtBlock;
    }
    if (!at_warp) return;
    if (at_warp < kLanes) {
      failure = "a warp has diverged: " + std::to_string(at_warp) + " lanes are at a warp's barrier, " +
                std::to_string(at_block) + " at the block's, the others have ended (block " +
                std::to_string(blockIdx.x) + ", warp " + std::to_string(warp) + ")";
      return;
    }
    for (unsigned lane = 0; lane < kLanes; ++lane) fibers[warp * kLanes + lane].state = State::kReady;
  }
}

inline void run_block(unsigned schedule) {
  const unsigned threads = blockDim.x;
  std::memset(dynamic_shared, 0xff, kShared);
  for (unsigned thread = 0; thread < threads; ++thread) {
    fibers[thread].state = State::kReady;
    fibers[thread].exchanges = 0;
    fibers[thread].groups.assign(1, {});
  }
  std::memset(warps, 0, sizeof warps);
  for (unsigned round = 0;; ++round) {
    const std::vector<unsigned> lanes = order_of(kLanes, schedule, round);
    for (unsigned warp : order_of(threads / kLanes, schedule, blockIdx.x + round)) {
      run_warp(warp, lanes);
      if (!failure.empty()) return;
    }
    unsigned ended = 0;
    for (unsigned thread = 0; thread < threads; ++thread) ended += fibers[thread].state == State::kDone;
    if (ended == threads) return;
    if (ended) {
      failure = std::to_string(ended) + " threads have ended while others wait at a barrier (block " +
                std::to_string(blockIdx.x) + ")";
      return;
    }
    for (unsigned thread = 0; thread < threads; ++thread) fibers[thread].state = State::kReady;
  }
}

inline void run_grid(unsigned blocks, unsigned threads, unsigned schedule) {
  gridDim.x = blocks;
  blockDim.x = threads;
  eager_copies = schedule % 2;
  failure.clear();
  for (unsigned block : order_of(blocks, schedule, 0)) {
    blockIdx.x = block;
    run_block(schedule);
    if (!failure.empty()) {
      for (Fiber& fiber : fibers) fiber.started = false;  // what they were doing is abandoned
      return;
    }
  }
}

// What the lane `source` has for the same exchange.
template <class T>
T exchange(unsigned mask, T value, unsigned source, int kind) {
  static_assert(sizeof(T) <= 8);
  if (mask != 0xffffffffu) fail("a shuffle does not name the whole warp");
  Fiber& fiber = self();
  Warp& warp = warps[threadIdx.x / kLanes];
  const unsigned turn = fiber.exchanges++ % 2, lane = threadIdx.x % kLanes;
  if (warp.arrived[turn]++ % kLanes == 0) warp.kind[turn] = kind;
  if (warp.kind[turn] != kind) fail("lanes of a warp meet in different shuffles");
  std::memcpy(warp.values[turn][lane], &value, sizeof(T));
  yield(State::kAtWarp);
  T received;
  std::memcpy(&received, warp.values[turn][source], sizeof(T));
  return received;
}

template <class... Parameters, size_t... I>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<Parameters>*>(arguments[I])...);
}

struct Kernel {
  std::string name, signature;
  void (*run)(void**);
};

template <auto kernel, class... Parameters>
Kernel described(const char* name, void (*)(Parameters...)) {
  std::string signature;
  ((signature += std::string(typeid(Parameters).name()) + " "), ...);
  return {name, signature, [](void** arguments) {
            call(static_cast<void (*)(Parameters...)>(kernel), arguments, std::index_sequence_for<Parameters...>{});
          }};
}

}  // namespace shim

inline void __syncthreads() { shim::yield(shim::State::kAtBlock); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return shim::exchange(mask, value, static_cast<unsigned>(lane) % shim::kLanes, 1);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return shim::exchange(mask, value, (threadIdx.x % shim::kLanes) ^ static_cast<unsigned>(lanes), 2);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned reach) {
  const unsigned lane = threadIdx.x % shim::kLanes;
  return shim::exchange(mask, value, lane < reach ? lane : lane - reach, 3);
}

inline int atomicAdd(int* to, int value) {
  const int before = *to;
  *to += value;
  return before;
}

template <class T>
T __ldcg(const T* from) {
  return *from;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

template <class To, class From>
To shim_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline int __float_as_int(float value) { return shim_bits<int>(value); }
inline float __int_as_float(int bits) { return shim_bits<float>(bits); }
inline int __double2loint(double value) { return static_cast<int>(shim_bits<std::uint64_t>(value)); }
inline int __double2hiint(double value) { return static_cast<int>(shim_bits<std::uint64_t>(value) >> 32); }
inline double __hiloint2double(int high, int low) {
  return shim_bits<double>(static_cast<std::uint64_t>(static_cast<std::uint32_t>(high)) << 32 |
                           static_cast<std::uint32_t>(low));
}

inline void shim_arrive(const shim::Copy& copy) { *copy.to = copy.valid ? *copy.from : make_float4(0, 0, 0, 0); }
inline void copy_async(float4* to, const float4* from, bool valid) {
  const shim::Copy copy{to, from, valid};
  if (shim::eager_copies) {
    shim_arrive(copy);
  } else {
    shim::self().groups.back().push_back(copy);
  }
}
inline void commit_copies() { shim::self().groups.emplace_back(); }
template <int kLeft>
void wait_for_copies() {
  auto& groups = shim::self().groups;
  while (groups.size() > kLeft + 1) {
    for (const shim::Copy& copy : groups.front()) shim_arrive(copy);
    groups.erase(groups.begin());
  }
}
