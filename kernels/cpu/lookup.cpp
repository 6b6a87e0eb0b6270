// The look-up on a CPU: shares the frames of a call out to threads, each bank entry read once. Called through ctypes.

#include <pmmintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "operators.hpp"

namespace mkc {
namespace {

// Frames of a task: with D = 1024, 400 KB of features that stay in the second cache.
constexpr long kTaskFrames = 96;
// Tasks that a thread should have at least, so that all end at about the same time.
constexpr long kTasksOfThread = 4;
// A thread is worth its start if it has so many multiplications, or so many numbers to read.
constexpr double kThreadWork = 3e7, kThreadNumbers = 2e6;
// Frames of one round: their products with all centroids are kept.
constexpr long kRoundFrames = 4096;
// Centroids of a task at least.
constexpr long kLeastClusters = 64;

// Frames of one entry, and of its centroids those from `first` to `last`.
struct Task {
    long begin, count;  // in the order of entries
    long first, last;
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

// Runs work(task, thread) of tasks 0 .. count - 1, on so many threads, or on fewer if the system starts no more.
template <class Work>
void share(long count, int threads, const Work& work) {
    std::atomic<long> next{0};
    const auto run = [&](int thread) {
        const FullRange range;
        for (long task; (task = next++) < count;) work(task, thread);
    };
    std::vector<std::thread> others;
    try {
        others.reserve(threads);
        for (int thread = 1; thread < std::min<long>(threads, count); thread++) others.emplace_back(run, thread);
    } catch (const std::system_error&) {  // the threads that did start do all the work
    } catch (const std::bad_alloc&) {
    }
    run(0);
    for (std::thread& other : others) other.join();
}

// The frames `order` of one round.
void assign_round(const Operators& with, const Bank& bank, const float* features, const int64_t* bank_ids,
                  const int64_t* order, long frames, int threads, int32_t* out) {
    // This thread keeps its memory from call to call: new memory takes as long as the products of a short call.
    static thread_local Scratch frame_memory, dot_memory;
    std::vector<Task> tasks;
    long entries = 0;
    for (long begin = 0, end; begin < frames; begin = end, entries++) {
        const int64_t entry = bank_ids[order[begin]];
        for (end = begin + 1; end < frames && bank_ids[order[end]] == entry;) end++;
        const long parts = (end - begin + kTaskFrames - 1) / kTaskFrames;
        for (long part = 0; part < parts; part++) {
            const long first = begin + (end - begin) * part / parts;
            tasks.push_back({first, begin + (end - begin) * (part + 1) / parts - first, 0, bank.num_clusters[entry]});
        }
    }
    const auto copy = [&](const Task& task, float* to) {
        for (long i = 0; i < task.count; i++)
            std::memcpy(to + i * bank.dim, features + order[task.begin + i] * bank.dim, bank.dim * sizeof(float));
    };
    const auto entry_of = [&](const Task& task) { return bank_ids[order[task.begin]]; };
    const bool halved = bank.half != nullptr;
    const auto multiply = [&](const Task& task, const float* copied, float* dots) {
        const int64_t entry = entry_of(task);
        if (halved)
            with.multiply_frames_half(copied, task.count, bank.half + entry * bank.clusters * bank.dim, task.first,
                                      task.last, bank.dim, dots, bank.clusters);
        else
            with.multiply_frames(copied, task.count, bank.entry(entry), task.first, task.last, bank.dim, dots,
                                 bank.clusters);
    };
    const auto decide = [&](const Task& task, const float* copied, const float* dots) {
        const int64_t entry = entry_of(task);
        const long clusters = bank.num_clusters[entry];
        const double* norms = bank.norms(entry);
        const double largest = std::sqrt(2 * *std::max_element(norms, norms + clusters));
        const double* errors = bank.errors + (halved ? entry * bank.clusters : 0);
        const double off = halved ? *std::max_element(errors, errors + clusters) : 0;
        for (long i = 0; i < task.count; i++) {
            const float* frame = copied + i * bank.dim;
            const float* products = dots + i * bank.clusters;
            out[order[task.begin + i]] =
                halved ? with.decide_half(frame, products, bank.entry(entry), norms, largest + off, errors,
                                          bank.scales[entry], clusters, bank.dim)
                       : with.decide(frame, products, bank.entry(entry), norms, largest, clusters, bank.dim);
        }
    };
    const double numbers = static_cast<double>(bank.clusters) * static_cast<double>(bank.dim);
    const double useful = std::max(static_cast<double>(frames) * numbers / kThreadWork,
                                   static_cast<double>(entries) * numbers / kThreadNumbers);
    threads = static_cast<int>(std::clamp(useful, 1.0, static_cast<double>(threads)));
    const long wanted = threads * kTasksOfThread;
    if (threads == 1 || static_cast<long>(tasks.size()) >= wanted) {
        float* all_copied = frame_memory.floats(threads * kTaskFrames * bank.dim);
        float* all_dots = dot_memory.floats(threads * kTaskFrames * bank.clusters);
        share(static_cast<long>(tasks.size()), threads, [&](long number, int thread) {
            const Task& task = tasks[number];
            float* copied = all_copied + thread * kTaskFrames * bank.dim;
            float* dots = all_dots + thread * kTaskFrames * bank.clusters;
            copy(task, copied);
            multiply(task, copied, dots);
            decide(task, copied, dots);
        });
        return;
    }
    // Fewer entries than that: threads share an entry's centroids, and decide when all products are there.
    std::vector<Task> parts;
    const long each = (wanted + static_cast<long>(tasks.size()) - 1) / static_cast<long>(tasks.size());
    for (const Task& task : tasks) {
        const long split = std::max(1L, std::min(each, task.last / kLeastClusters));
        for (long part = 0; part < split; part++)
            parts.push_back({task.begin, task.count, task.last * part / split, task.last * (part + 1) / split});
    }
    float* copied = frame_memory.floats(frames * bank.dim);
    float* dots = dot_memory.floats(frames * bank.clusters);
    for (const Task& task : tasks) copy(task, copied + task.begin * bank.dim);
    share(static_cast<long>(parts.size()), threads, [&](long number, int) {
        const Task& part = parts[number];
        multiply(part, copied + part.begin * bank.dim, dots + part.begin * bank.clusters);
    });
    share(static_cast<long>(tasks.size()), threads, [&](long number, int) {
        const Task& task = tasks[number];
        decide(task, copied + task.begin * bank.dim, dots + task.begin * bank.clusters);
    });
}

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
            assign_round(*chosen(), bank, features, bank_ids, order.data() + first, count, most, out);
        }
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
