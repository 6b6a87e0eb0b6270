// Tasks over ONNX Runtime's threads, and memory that a thread keeps from call to call.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "onnxruntime_abi.hpp"

namespace mkc {

// Runs `task` for 0 .. count - 1, on whichever of the session's threads is free.
class Threads {
   public:
    Threads(ort::Api api, const ort::KernelContext* context) : api_(api), context_(context) {}

    template <class Task>
    ort::Status* run(long count, const Task& task) const {
        struct Work {
            const Task& task;
            std::atomic<bool> short_of_memory{false};
        } work{task};
        void (*function)(void*, size_t) = [](void* data, size_t index) {
            Work& given = *static_cast<Work*>(data);
            try {
                given.task(static_cast<long>(index));
            } catch (const std::bad_alloc&) {
                given.short_of_memory = true;
            }
        };
        ort::Status* failed = nullptr;
        if (count == 1) {
            function(&work, 0);  // without waking another thread
        } else {
            failed = ort::call<ort::Status*>(api_, ort::kKernelContextParallelFor, context_, function,
                                             static_cast<size_t>(count), size_t{0}, static_cast<void*>(&work));
        }
        if (!failed && work.short_of_memory)
            failed = ort::call<ort::Status*>(api_, ort::kCreateStatus, int{ort::kFail}, "out of memory");
        return failed;
    }

    // Cores that this process may use. Fewer tasks than that would leave some idle.
    static int cores() {
        static const int found = [] {
            cpu_set_t set;
            return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
        }();
        return found;
    }

   private:
    ort::Api api_;
    const ort::KernelContext* context_;
};

// Uninitialized memory that grows and is kept.
class Scratch {
   public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    // Throws std::bad_alloc.
    float* floats(size_t count) {
        if (count > capacity_) {
            std::free(memory_);
            capacity_ = 0;
            memory_ = static_cast<float*>(std::aligned_alloc(64, (count * sizeof(float) + 63) / 64 * 64));
            if (!memory_) throw std::bad_alloc();
            capacity_ = count;
        }
        return memory_;
    }

   private:
    float* memory_ = nullptr;
    size_t capacity_ = 0;
};

}  // namespace mkc
