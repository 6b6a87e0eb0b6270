// The look-up on a CPU: shares the frames of a call out to threads, each bank entry read once. Called through ctypes.

#include <pmmintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "operators.hpp"

namespace mkc {
namespace {

// Tasks that a thread should have at least, so that all end at about the same time.
constexpr long kTasksOfThread = 6;
// A thread is worth its start if it has so many multiplications, or so many numbers to read.
constexpr double kThreadWork = 3e7, kThreadNumbers = 2e6;
// Frames of one round: their products with all centroids are kept.
constexpr long kRoundFrames = 42 * kTaskFrames;
// Centroids of a task at least.
constexpr long kLeastClusters = 64;
// Frames of a task at least that are worth packing, and the share of their vectors that they have to fill.
constexpr long kLeastPacked = 60, kVectorFrames = 16;
constexpr double kLeastFilled = 0.85;

// Frames of one entry.
struct Task {
    long begin, count;  // in the order of entries
    long place;         // of its frames among those of all tasks, where these are packed or copied
    // Whether they fill the vectors of packed frames well enough.
    bool packed() const {
        const long filled = (count + kVectorFrames - 1) / kVectorFrames * kVectorFrames;
        return count >= kLeastPacked && static_cast<double>(count) >= kLeastFilled * static_cast<double>(filled);
    }
    // Rows of memory that they may take.
    long rows() const { return (count + kPanelFrames - 1) / kPanelFrames * kPanelFrames; }
};

// Of a task's centroids those from `first` to `last`.
struct Part {
    long task, first, last;
};

struct Bank {
    const float* centroids;
    const double* half_norms;
    const int64_t* num_clusters;
    long clusters, dim;
    // A copy in float16, divided by scales of entries, and how far it is off; null where there is none.
    const Half* half;
    const double* errors;
    const double* scales;
    const float* entry(int64_t number) const { return centroids + number * clusters * dim; }
    const double* norms(int64_t number) const { return half_norms + number * clusters; }
};

// Denormal numbers are numbers here, whatever other libraries have set for this thread.
class FullRange {
   public:
    FullRange() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~(0x8000u | 0x0040u)); }
    ~FullRange() { _mm_setcsr(before_); }
    FullRange(const FullRange&) = delete;
    FullRange& operator=(const FullRange&) = delete;

   private:
    unsigned before_;
};

// Starts threads on all cores but that of this thread. Otherwise the system may put a new thread on the same core, where it
// waits until this thread has used up its time.
class OnOtherCores {
   public:
    OnOtherCores() {
        known_ = pthread_attr_init(&attributes_) == 0;
#ifdef __GLIBC__
        // Set before the thread starts. Setting the cores of a thread that has ended sets those of the caller.
        cpu_set_t cores;
        const int here = sched_getcpu();
        if (!known_ || here < 0 || sched_getaffinity(0, sizeof cores, &cores) != 0) return;
        CPU_CLR(here, &cores);
        if (CPU_COUNT(&cores) > 0) pthread_attr_setaffinity_np(&attributes_, sizeof cores, &cores);
#endif
    }
    ~OnOtherCores() {
        if (known_) pthread_attr_destroy(&attributes_);
    }
    OnOtherCores(const OnOtherCores&) = delete;
    OnOtherCores& operator=(const OnOtherCores&) = delete;
    // Whether it could be started.
    bool start(pthread_t* thread, void* (*function)(void*), void* argument) const {
        return known_ && (pthread_create(thread, &attributes_, function, argument) == 0 ||
                          pthread_create(thread, nullptr, function, argument) == 0);
    }

   private:
    pthread_attr_t attributes_;
    bool known_;
};

// Runs work(task, thread) of tasks 0 .. count - 1, on so many threads, or on fewer if the system starts no more. They
// begin in this order.
template <class Work>
void share(long count, int threads, const Work& work) {
    struct Shared {
        const Work& work;
        const long count;
        std::atomic<long> next{0};
        void run(int thread) {
            const FullRange range;
            for (long task; (task = next++) < count;) work(task, thread);
        }
    } shared{work, count};
    struct Other {
        Shared* shared;
        int number;
        pthread_t thread;
    };
    std::vector<Other> others(std::max(0L, std::min<long>(threads, count) - 1));
    const OnOtherCores cores;
    size_t started = 0;
    for (; started < others.size(); started++) {
        Other& other = others[started];
        other = {&shared, static_cast<int>(started) + 1, {}};
        const auto run = [](void* given) -> void* {
            const Other& own = *static_cast<Other*>(given);
            own.shared->run(own.number);
            return nullptr;
        };
        if (!cores.start(&other.thread, run, &other)) break;  // the threads that did start do all the work
    }
    shared.run(0);
    for (size_t i = 0; i < started; i++) pthread_join(others[i].thread, nullptr);
}

// The frames of one round, in the order of their entries.
class Round {
   public:
    Round(const Operators& with, const Bank& bank, const float* features, const int64_t* bank_ids, const int64_t* order,
          long frames, int32_t* out)
        : with_(with), bank_(bank), features_(features), bank_ids_(bank_ids), order_(order), frames_(frames), out_(out) {
        for (long begin = 0, end; begin < frames; begin = end, entries_++) {
            for (end = begin + 1; end < frames && bank_ids[order[end]] == bank_ids[order[begin]];) end++;
            // Whole vectors of packed frames, about as many in each task.
            const long count = end - begin, vectors = (count + kVectorFrames - 1) / kVectorFrames;
            const long parts = (count + kTaskFrames - 1) / kTaskFrames;
            for (long part = 0, first = 0, last; part < parts; part++, first = last) {
                last = std::min(count, vectors * (part + 1) / parts * kVectorFrames);
                tasks_.push_back({begin + first, last - first, rows_});
                rows_ += tasks_.back().rows();
            }
        }
    }

    void assign(int most_threads) {
        // This thread keeps its memory from call to call: new memory takes as long as the products of a short call.
        static thread_local Scratch frame_memory, dot_memory;
        const double numbers = static_cast<double>(bank_.clusters) * static_cast<double>(bank_.dim);
        const double useful = std::max(static_cast<double>(frames_) * numbers / kThreadWork,
                                       static_cast<double>(entries_) * numbers / kThreadNumbers);
        const int threads = static_cast<int>(std::clamp(useful, 1.0, static_cast<double>(most_threads)));
        const long count = static_cast<long>(tasks_.size()), wanted = threads * kTasksOfThread;
        if (threads == 1 || count >= wanted) {
            float* all_frames = frame_memory.floats(threads * kTaskFrames * bank_.dim);
            float* all_dots = dot_memory.floats(threads * kTaskFrames * bank_.clusters);
            share(count, threads, [&](long number, int thread) {
                const Task& task = tasks_[number];
                float* dots = all_dots + thread * kTaskFrames * bank_.clusters;
                const float* frames = prepare(task, all_frames + thread * kTaskFrames * bank_.dim);
                multiply(task, frames, 0, clusters_of(task), dots);
                decide(task, dots);
            });
            return;
        }
        // Fewer entries than that: threads share an entry's centroids.
        std::vector<Part> parts;
        std::vector<long> parts_of(count);
        for (long task = 0; task < count; task++) {
            const long clusters = clusters_of(tasks_[task]);
            const long split = std::max(1L, std::min((wanted + count - 1) / count, clusters / kLeastClusters));
            for (long part = 0; part < split; part++)
                parts.push_back({task, clusters * part / split, clusters * (part + 1) / split});
            parts_of[task] = split;
        }
        float* all_frames = frame_memory.floats(rows_ * bank_.dim);
        float* all_dots = dot_memory.floats(frames_ * bank_.clusters);
        std::vector<const float*> frames(count);
        std::vector<std::atomic<long>> multiplied(count);
        std::atomic<long> prepared{0};
        share(count + static_cast<long>(parts.size()), threads, [&](long number, int) {
            if (number < count) {
                frames[number] = prepare(tasks_[number], all_frames + tasks_[number].place * bank_.dim);
                prepared.fetch_add(1, std::memory_order_release);
                return;
            }
            // All of these have been begun.
            while (prepared.load(std::memory_order_acquire) < count) _mm_pause();
            const Part& part = parts[number - count];
            const Task& task = tasks_[part.task];
            float* dots = all_dots + task.begin * bank_.clusters;
            multiply(task, frames[part.task], part.first, part.last, dots);
            if (multiplied[part.task].fetch_add(1, std::memory_order_acq_rel) + 1 == parts_of[part.task])
                decide(task, dots);
        });
    }

   private:
    int64_t entry_of(const Task& task) const { return bank_ids_[order_[task.begin]]; }
    long clusters_of(const Task& task) const { return bank_.num_clusters[entry_of(task)]; }
    const float* frame(const Task& task, long i) const { return features_ + order_[task.begin + i] * bank_.dim; }

    // A task's frames as they are multiplied: packed, or row by row, where they are if they lie together.
    const float* prepare(const Task& task, float* to) const {
        if (task.packed()) {
            const float* rows[kTaskFrames];
            for (long i = 0; i < task.count; i++) rows[i] = frame(task, i);
            with_.pack_frames(rows, task.count, bank_.dim, to);
            return to;
        }
        if (order_[task.begin + task.count - 1] - order_[task.begin] == task.count - 1) return frame(task, 0);
        for (long i = 0; i < task.count; i++)
            std::memcpy(to + i * bank_.dim, frame(task, i), bank_.dim * sizeof(float));
        return to;
    }

    void multiply(const Task& task, const float* frames, long first, long last, float* dots) const {
        const int64_t entry = entry_of(task);
        if (bank_.half)
            (task.packed() ? with_.multiply_packed_half : with_.multiply_frames_half)(
                frames, task.count, bank_.half + entry * bank_.clusters * bank_.dim, first, last, bank_.dim, dots,
                bank_.clusters);
        else
            (task.packed() ? with_.multiply_packed : with_.multiply_frames)(
                frames, task.count, bank_.entry(entry), first, last, bank_.dim, dots, bank_.clusters);
    }

    void decide(const Task& task, const float* dots) const {
        const int64_t entry = entry_of(task);
        const long clusters = clusters_of(task);
        const double* norms = bank_.norms(entry);
        const double largest = std::sqrt(2 * *std::max_element(norms, norms + clusters));
        const double* errors = bank_.half ? bank_.errors + entry * bank_.clusters : nullptr;
        const double off = errors ? *std::max_element(errors, errors + clusters) : 0;
        for (long i = 0; i < task.count; i++) {
            const float* products = dots + i * bank_.clusters;
            out_[order_[task.begin + i]] =
                errors ? with_.decide_half(frame(task, i), products, bank_.entry(entry), norms, largest + off, errors,
                                           bank_.scales[entry], clusters, bank_.dim)
                       : with_.decide(frame(task, i), products, bank_.entry(entry), norms, largest, clusters, bank_.dim);
        }
    }

    const Operators& with_;
    const Bank& bank_;
    const float* features_;
    const int64_t* bank_ids_;
    const int64_t* order_;
    long frames_;
    int32_t* out_;
    std::vector<Task> tasks_;
    long entries_ = 0, rows_ = 0;
};

}  // namespace
}  // namespace mkc

// Ids of the nearest centroids; all arguments have been checked. Returns 0, or 1 if memory ran out.
//
//   features (frames, dim), bank_ids (frames,) in [0, N), centroids (N, clusters, dim), half_norms (N, clusters),
//   num_clusters (N,), half (N, clusters, dim) float16, errors (N, clusters), scales (N,), or null for all three, out
//   (frames,); all contiguous. At most so many threads; 0: one a core.
extern "C" __attribute__((visibility("default"))) int mkc_fast_nearest(
    const float* features, const int64_t* bank_ids, long frames, const float* centroids, const double* half_norms,
    const int64_t* num_clusters, const void* half, const double* errors, const double* scales, long clusters, long dim,
    int threads, int32_t* out) {
    using namespace mkc;
    try {
        const FullRange range;
        std::vector<int64_t> order(frames);
        for (long frame = 0; frame < frames; frame++) order[frame] = frame;
        std::stable_sort(order.begin(), order.end(),
                         [&](int64_t a, int64_t b) { return bank_ids[a] < bank_ids[b]; });
        const int most = threads > 0 ? threads : Threads::cores();
        const Bank bank{centroids, half_norms, num_clusters, clusters, dim, static_cast<const Half*>(half), errors, scales};
        for (long first = 0; first < frames; first += kRoundFrames) {
            const long count = std::min(kRoundFrames, frames - first);
            Round(*chosen(), bank, features, bank_ids, order.data() + first, count, out).assign(most);
        }
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
