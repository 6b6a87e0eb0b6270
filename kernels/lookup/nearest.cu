// The look-up on a GPU: the nearest of its entry's centroids for every frame, without ever writing a distance matrix.
//
// kernels/launches.py launches these kernels in this order, sizes the scratch arrays and names their shapes:
//
//   plan_all, or count_frames, plan_entries, sort_frames    frames sorted by entry, cut into work items
//   nearest_streamed    entries with few frames: bound by memory; warps stream centroids past frames in shared memory
//   nearest_tiled       entries with many frames: bound by arithmetic; a register-tiled matrix product
//   settle              merges the partial results; flags each frame whose answer float32 rounding could have changed
//   recheck             decides flagged frames in float64
//   gather_rows         the centroids of given ids, on its own
//
// A frame's place is its index after sorting. A split is a run of centroids that one warp has compared with a frame;
// partials[place * splits + split] is an int4 that holds its best score, second-best score and best id.
//
// The source needs no header, so that NVRTC compiles it as it is. It also compiles as C++ over tests/fakes/cuda, which
// runs it on a CPU: so every shuffle and barrier names all threads of its warp or block, and what C++ cannot say is in
// the next few lines.

#ifndef CUDA_SHIM
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]

// Starts a copy of 16 bytes from device memory, around the first-level cache, to shared memory; zeros if not `valid`.
// The copies that a thread starts between two commits are a group; groups arrive in order.
__device__ __forceinline__ void copy_async(float4* to, const float4* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
#else
  *to = valid ? __ldcs(from) : make_float4(0, 0, 0, 0);
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until all but the last `kLeft` groups that this thread committed have arrived, for this thread to see.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}
#endif

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kSortThreads = 1024;  // frames that one block counts and sorts
constexpr int kThreads = 256;       // of every block that is not for sorting
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 4;            // centroids that a warp holds against its frames at a time
constexpr int kStages = 3;          // of a streaming warp's ring in shared memory: one in use, the others on their way
constexpr int kTile = 128;          // frames, and centroids, of a tile of the matrix product
constexpr int kStep = 8;            // dimensions of it in shared memory at a time, in one of two buffers
constexpr int kPitch = kTile + 4;   // keeps float4 reads aligned, spreads the transposing stores over the banks
constexpr int kTiledWidth = 32;     // centroids of a split there: what a warp has of its tile
constexpr int kNone = 0x7fffffff;

// counters[...]
enum { kFrames, kStreamedItems, kTiledItems, kFlagged };

// What a warp knows of a frame after some of its entry's centroids.
struct Running {
  float best, second;
  int id;
};

// The nearest of the centroids that float64 has compared with a frame.
struct Exact {
  double distance;
  int id;
};

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ double infinity64() { return __hiloint2double(0x7ff00000, 0); }

__device__ __forceinline__ int divided_up(int amount, int part) { return (amount + part - 1) / part; }

// An id or row number, int64 or int32; negative if it is no number of anything.
__device__ __forceinline__ int load_index(const void* indices, int wide, int at) {
  if (!wide) return static_cast<const int*>(indices)[at];
  const long long index = static_cast<const long long*>(indices)[at];
  return index < 0 || index >= kNone ? -1 : static_cast<int>(index);
}

__device__ __forceinline__ bool exists(int entry, int entries) { return entry >= 0 && entry < entries; }

// Where an entry's centroids lie; negative if it does not exist or has none on the device in this round.
__device__ __forceinline__ int slot_of(int entry, int entries, const int* slots) {
  if (!exists(entry, entries)) return -1;
  return slots ? slots[entry] : entry;
}

// Of an entry's frames so many, the first ones, go through the matrix product; the rest are streamed.
__device__ __forceinline__ int tiled_frames(int count, int tiled_min) {
  if (tiled_min <= 0) return 0;
  const int rest = count % kTile;
  return rest >= tiled_min ? count : count - rest;
}

// The sum of the values of all threads before this one; `sums` is shared memory for one int a warp.
__device__ int exclusive_sum(int value, int* sums, int& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  int inclusive = value;
  for (int reach = 1; reach < kWarp; reach *= 2) {
    const int other = __shfl_up_sync(kAllLanes, inclusive, reach);
    if (lane >= reach) inclusive += other;
  }
  if (lane == kWarp - 1) sums[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    int sum = lane < warps ? sums[lane] : 0;
    for (int reach = 1; reach < kWarp; reach *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, reach);
      if (lane >= reach) sum += other;
    }
    if (lane < warps) sums[lane] = sum;
  }
  __syncthreads();
  const int before = warp ? sums[warp - 1] : 0;
  total = sums[warps - 1];
  __syncthreads();
  return before + inclusive - value;
}

// The number of this warp, through a shuffle, so that the compiler sees that all lanes have the same, and spends no
// registers on what it could derive from threadIdx once for all work items.
__device__ __forceinline__ int uniform_warp() {
  return __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / kWarp, 0);
}

// ---- Sorting: a counting sort, stable, so that nothing depends on the order in which blocks happen to run ----

// counts[chunk][entry] = frames of the entry in this chunk of kSortThreads frames.
__device__ void count_chunk(int chunk, const void* bank_ids, int wide, int frames, int entries, const int* slots,
                            int* counts) {
  int* row = counts + static_cast<size_t>(chunk) * entries;
  for (int entry = threadIdx.x; entry < entries; entry += blockDim.x) row[entry] = 0;
  __syncthreads();
  const int frame = chunk * kSortThreads + threadIdx.x;
  if (frame < frames) {
    const int entry = load_index(bank_ids, wide, frame);
    if (slot_of(entry, entries, slots) >= 0) atomicAdd(&row[entry], 1);
  }
}

// counts[chunk][entry] become sums over the chunks before; segments[entry] = {first place, frames, first streamed item,
// first tiled item}.
__device__ void plan_segments(int chunks, int entries, const int* num_clusters, int tile_frames, int chunk_rows,
                              int tiled_min, int* counts, int4* segments, int* counters) {
  __shared__ int sums[kSortThreads / kWarp];
  for (int entry = threadIdx.x; entry < entries; entry += blockDim.x) {
    int before = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
      int* count = &counts[static_cast<size_t>(chunk) * entries + entry];
      const int here = *count;
      *count = before;
      before += here;
    }
    segments[entry].y = before;
  }
  __syncthreads();
  const int share = divided_up(entries, static_cast<int>(blockDim.x));
  const int first = min(static_cast<int>(threadIdx.x) * share, entries), last = min(first + share, entries);
  int places = 0, streamed = 0, tiled = 0;
  for (int pass = 0; pass < 2; ++pass) {
#pragma unroll 1
    for (int entry = first; entry < last; ++entry) {
      const int count = segments[entry].y, rows = num_clusters[entry], in_tiles = tiled_frames(count, tiled_min);
      if (pass) segments[entry] = make_int4(places, count, streamed, tiled);
      places += count;
      streamed += divided_up(count - in_tiles, tile_frames) * divided_up(rows, chunk_rows);
      tiled += divided_up(in_tiles, kTile) * divided_up(rows, kTile);
    }
    if (pass) break;
    int total;
    places = exclusive_sum(places, sums, total);
    if (threadIdx.x == 0) counters[kFrames] = total;
    streamed = exclusive_sum(streamed, sums, total);
    if (threadIdx.x == 0) counters[kStreamedItems] = total;
    tiled = exclusive_sum(tiled, sums, total);
    if (threadIdx.x == 0) counters[kTiledItems] = total;
  }
  if (threadIdx.x == 0) counters[kFlagged] = 0;
}

// order[place] = frame. The first frame of each tile also writes that tile's work items, {entry, slot, place,
// row * 256 + frames}: tiles of the same rows stand side by side, so that all but the first find them in the L2 cache.
__device__ void sort_chunk(int chunk, const void* bank_ids, int wide, int frames, int entries, const int* slots,
                           const int* num_clusters, int tile_frames, int chunk_rows, int tiled_min, const int* counts,
                           const int4* segments, int* order, int4* streamed_items, int4* tiled_items,
                           int* cluster_ids) {
  __shared__ int entries_here[kSortThreads];
  const int frame = chunk * kSortThreads + threadIdx.x;
  const int entry = frame < frames ? load_index(bank_ids, wide, frame) : -1;
  const int slot = slot_of(entry, entries, slots);
  entries_here[threadIdx.x] = slot >= 0 ? entry : -1;
  __syncthreads();
  if (slot < 0) {
    if (frame < frames && !exists(entry, entries)) cluster_ids[frame] = -1;
    return;
  }
  int rank = counts[static_cast<size_t>(chunk) * entries + entry];
  const int4* four_entries = reinterpret_cast<const int4*>(entries_here);
  for (int four = 0; four < static_cast<int>(threadIdx.x) / 4; ++four) {
    const int4 others = four_entries[four];
    rank += (others.x == entry) + (others.y == entry) + (others.z == entry) + (others.w == entry);
  }
  for (int other = threadIdx.x / 4 * 4; other < static_cast<int>(threadIdx.x); ++other) {
    rank += entries_here[other] == entry;
  }
  const int4 segment = segments[entry];
  const int place = segment.x + rank, rows = num_clusters[entry], in_tiles = tiled_frames(segment.y, tiled_min);
  order[place] = frame;
  const bool tiled = rank < in_tiles;
  const int first = tiled ? 0 : in_tiles, size = tiled ? kTile : tile_frames, height = tiled ? kTile : chunk_rows;
  if ((rank - first) % size) return;
  const int end = tiled ? in_tiles : segment.y, tile = (rank - first) / size, tiles = divided_up(end - first, size);
  int4* items = tiled ? tiled_items + segment.w : streamed_items + segment.z;
  for (int part = 0; part * height < rows; ++part) {
    items[part * tiles + tile] = make_int4(entry, slot, place, part * height * 256 + min(size, end - rank));
  }
}

// ---- Scores: half the centroid's squared norm less its product with the frame, in float32 ----

// The next centroid in order of id. Infinity and NaN never become the best; `settle` flags frames that could have them.
__device__ __forceinline__ void consider(Running& running, float score, int id) {
  const bool lower = score < running.best;
  running.second = lower ? running.best : fminf(running.second, score);
  running.best = lower ? score : running.best;
  running.id = lower ? id : running.id;
}

// Either id will do where both bests are equal: such a frame is flagged.
__device__ __forceinline__ void merge(Running& running, float best, float second, int id) {
  const bool other = best < running.best;
  running.second = other ? fminf(running.best, second) : fminf(running.second, best);
  running.best = other ? best : running.best;
  running.id = other ? id : running.id;
}

__device__ __forceinline__ void merge_lanes(Running& running, int mask) {
  const float best = __shfl_xor_sync(kAllLanes, running.best, mask);
  const float second = __shfl_xor_sync(kAllLanes, running.second, mask);
  const int id = __shfl_xor_sync(kAllLanes, running.id, mask);
  merge(running, best, second, id);
}

__device__ __forceinline__ int4 packed(const Running& running) {
  return make_int4(__float_as_int(running.best), __float_as_int(running.second), running.id, 0);
}

__device__ __forceinline__ float dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Sums each of kCount values over the lanes of a warp, halving what a lane holds as it goes: lane l ends with the
// values from l * kCount / 32 on (one value, which neighbours share, where kCount is less than 32).
template <int kCount>
__device__ __forceinline__ void sum_over_lanes(float (&values)[kCount], int lane) {
#pragma unroll
  for (int mask = kWarp / 2, held = kCount; mask; mask /= 2) {
    if (held > 1) {
      held /= 2;
      const bool upper = lane & mask;
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        if (i < held) {
          const float sent = upper ? values[i] : values[i + held], kept = upper ? values[i + held] : values[i];
          values[i] = kept + __shfl_xor_sync(kAllLanes, sent, mask);
        }
      }
    } else {
      values[0] += __shfl_xor_sync(kAllLanes, values[0], mask);
    }
  }
}

// One work item of nearest_streamed, of at most kCount frames. Each of the block's warps takes `warp_rows` centroids.
// Shared memory: the warps' rings, then the frames in slices of 128 dimensions, [slice][frame][lane]. A lane reads from
// its warp's ring only what it has copied there itself, so that the ring needs no barrier.
template <int kCount>
__device__ __forceinline__ void stream_item(int4 item, const float4* features, const int* order,
                                            const float4* centroids, const float* half_norms, int rows, int dim4,
                                            int warp_rows, int splits, int4* partials, float4* shared) {
  constexpr int kValues = kCount * kRows, kHeld = kValues > kWarp ? kValues / kWarp : 1;
  constexpr int kStage = kRows * kWarp;
  const int lane = threadIdx.x % kWarp;
  const int warp = uniform_warp();
  const int slices = divided_up(dim4, kWarp), frames = item.w % 256;
  const int first = item.w / 256 + warp * warp_rows, last = min(first + warp_rows, rows);
  float4* const ring = shared + warp * kStages * kStage + lane;
  float4* const staged = shared + kWarps * kStages * kStage;

  int fetched_row = first, fetched_slice = 0;
  const auto fetch = [&](int stage) {
    if (fetched_row < last) {
      const int at = fetched_slice * kWarp + lane;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const unsigned row = min(fetched_row + r, last - 1);
        copy_async(ring + stage * kStage + r * kWarp,
                   centroids + row * static_cast<unsigned>(dim4) + min(at, dim4 - 1), at < dim4);
      }
      if (++fetched_slice == slices) {
        fetched_slice = 0;
        fetched_row += kRows;
      }
    }
    commit_copies();
  };

#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage) fetch(stage);
  for (int i = warp * kWarp + lane; i < slices * kCount * kWarp; i += kThreads) {
    const int frame = min(i / kWarp % kCount, frames - 1);  // past the last any will do: its scores are not used
    const int at = i / (kWarp * kCount) * kWarp + i % kWarp;
    copy_async(staged + i, features + static_cast<size_t>(order[item.z + frame]) * dim4 + min(at, dim4 - 1), at < dim4);
  }
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  if (first >= last) return;

  // What a lane holds after sum_over_lanes: the rows from my_row on, kHeld of them, of frame my_frame.
  const int value = kValues >= kWarp ? lane * kHeld : lane / (kWarp / (kValues < kWarp ? kValues : kWarp));
  const int my_frame = value / kRows, my_row = value % kRows;
  Running running = {infinity(), infinity(), kNone};
  int stage = 0;
  for (int row = first; row < last; row += kRows) {
    float half[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      half[i] = row + my_row + i < last ? half_norms[row + my_row + i] : infinity();
    }
    float sums[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) sums[i] = 0;
    int slice = 0;
    do {  // not `for`: that there is one slice at least spares a second set of registers for the sums
      fetch(stage == 0 ? kStages - 1 : stage - 1);  // where the last slice was
      wait_for_copies<kStages - 1>();
      float4 now[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) now[r] = ring[stage * kStage + r * kWarp];
      const float4* frame_values = staged + slice * kCount * kWarp + lane;
#pragma unroll
      for (int f = 0; f < kCount; ++f) {
        const float4 x = frame_values[f * kWarp];
#pragma unroll
        for (int r = 0; r < kRows; ++r) sums[f * kRows + r] = dot(now[r], x, sums[f * kRows + r]);
      }
      stage = stage == kStages - 1 ? 0 : stage + 1;
    } while (++slice < slices);
    sum_over_lanes<kValues>(sums, lane);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) consider(running, half[i] - sums[i], row + my_row + i);
  }
  // Lanes of one frame that hold other rows; those that hold the same rows must not meet.
#pragma unroll
  for (int mask = kValues < kWarp ? kWarp / kValues : 1; mask < kWarp / kCount; mask *= 2) merge_lanes(running, mask);
  if (lane % (kWarp / kCount) == 0 && my_frame < frames) {
    partials[static_cast<size_t>(item.z + my_frame) * splits + first / warp_rows] = packed(running);
  }
}

// A tile of nearest_tiled is computed by two by four warps; a warp has 64 frames by 32 centroids, a thread 8 by 8 of
// them, in two runs of 4 either way. These are the m-th of its frames and the n-th of its centroids.
constexpr int kSecondFrames = 32, kSecondCentroids = 16;

__device__ __forceinline__ int tile_frame(int warp, int lane, int m) {
  return warp / 4 * 64 + lane / 4 * 4 + m / 4 * kSecondFrames + m % 4;
}

__device__ __forceinline__ int tile_centroid(int warp, int lane, int n) {
  return warp % 4 * kTiledWidth + lane % 4 * 4 + n / 4 * kSecondCentroids + n % 4;
}

// Writes what the products of a tile say of its frames; each warp has a split of its own. The item is read once more:
// the product needs all registers, and would have to move it out of them.
__device__ __forceinline__ void keep_nearest(const float (&sums)[8][8], const int4* items, int at,
                                             const int* num_clusters, const float* half_norms, int clusters,
                                             int splits, int4* partials) {
  const int4 item = __ldcg(items + at);
  const int lane = threadIdx.x % kWarp, warp = uniform_warp();
  const int first = item.w / 256 + warp % 4 * kTiledWidth, frames = item.w % 256, rows = __ldcg(num_clusters + item.x);
  half_norms += static_cast<size_t>(item.x) * clusters;
  float half[8];
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int id = item.w / 256 + tile_centroid(warp, lane, n);
    half[n] = id < rows ? half_norms[id] : infinity();
  }
#pragma unroll
  for (int m = 0; m < 8; ++m) {
    Running running = {infinity(), infinity(), kNone};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      consider(running, half[n] - sums[m][n], item.w / 256 + tile_centroid(warp, lane, n));
    }
    merge_lanes(running, 1);
    merge_lanes(running, 2);
    const int frame = tile_frame(warp, lane, m);
    if (lane % 4 == 0 && frame < frames && first < rows) {
      partials[static_cast<size_t>(item.z + frame) * splits + first / kTiledWidth] = packed(running);
    }
  }
}

// ---- The bound on rounding ----

// How far a float32 score can be from the real one, for a frame of norm x and centroids of norm at most c.
//
// score = h - p with h = c'c/2 and p = x'c. With u = 2^-24 and gamma(n) = nu / (1 - nu):
//   stored h    |fl(h) - h|  <= u h                                     rounding of float64's value
//   product     |fl(p) - p|  <= gamma(n) |x|'|c| <= gamma(n) x c        n: roundings that a term can meet, the longest
//                                                                       path in the tree of sums (Higham, Accuracy and
//                                                                       Stability of Numerical Algorithms, section 4.2)
//   difference  |fl(fl(h) - fl(p)) - (fl(h) - fl(p))|  <=  u (|fl(h)| + |fl(p)|)
// Together, since h <= c^2 / 2 and gamma(n) + u (1 + gamma(n)) <= gamma(n + 1):
//   |fl(score) - score|  <=  gamma(n + 1) x c  +  u (1 + u/2) c^2  +  (dim + 2) 2^-149
// The last term is for what underflows (each operation then errs by at most 2^-150; subnormal numbers are kept). Where
// x c + c^2 could overflow a sum in float32 the error is infinite. The factor in front covers the float64 rounding of
// the norms and of this formula; gamma(n) <= nu (1 + 2nu), as long as nu is less than 1/2.
__device__ double score_error(double frame_norm, double largest_norm, int roundings, int dim) {
  const double unit = 1.0 / (1 << 24), path = (roundings + 1) * unit, gamma = path * (1 + 2 * path);
  const double product = frame_norm * largest_norm, square = largest_norm * largest_norm;
  if (!(product + square < 8.5e37)) return infinity64();  // 2^126
  return 1.001 * (gamma * product + unit * (1 + unit) * square + (dim + 2) * 1.5e-45);
}

// ---- Float64 ----

__device__ __forceinline__ int4 packed(const Exact& exact) {
  return make_int4(__double2loint(exact.distance), __double2hiint(exact.distance), exact.id, 0);
}

__device__ __forceinline__ Exact unpacked(int4 partial) {
  return Exact{__hiloint2double(partial.y, partial.x), partial.z};
}

__device__ __forceinline__ void merge(Exact& exact, const Exact& other) {
  const bool nearer =
      other.distance < exact.distance || (other.distance == exact.distance && other.id < exact.id);
  exact.distance = nearer ? other.distance : exact.distance;
  exact.id = nearer ? other.id : exact.id;
}

__device__ __forceinline__ double sum_over_lanes(double value) {
  for (int mask = kWarp / 2; mask; mask /= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
}

__device__ __forceinline__ double squared_difference(const float4& a, const float4& b, double sum) {
  const double x = static_cast<double>(a.x) - b.x, y = static_cast<double>(a.y) - b.y;
  const double z = static_cast<double>(a.z) - b.z, w = static_cast<double>(a.w) - b.w;
  return fma(w, w, fma(z, z, fma(y, y, fma(x, x, sum))));
}

// The nearest of at most kRows centroids, by a warp; every lane gets it. The sum's order is the same for all of them,
// so that equal centroids are at equal distances.
__device__ Exact nearest_exactly(const float4* x, const float4* centroids, int first, int last, int dim4) {
  const int lane = threadIdx.x % kWarp;
  double sums[kRows] = {};
  for (int at = lane; at < dim4; at += kWarp) {
    const float4 frame = x[at];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const unsigned row = min(first + r, last - 1);
      sums[r] = squared_difference(frame, centroids[row * static_cast<unsigned>(dim4) + at], sums[r]);
    }
  }
  Exact exact = {infinity64(), kNone};
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const double distance = sum_over_lanes(sums[r]);
    if (first + r < last) merge(exact, Exact{distance, first + r});
  }
  return exact;
}

// The row of `out` for a frame; null if there is none.
__device__ __forceinline__ float4* out_row(float4* out, const void* out_rows, int wide, int frame, int dim4) {
  if (!out) return nullptr;
  const int row = out_rows ? load_index(out_rows, wide, frame) : frame;
  return row < 0 ? nullptr : out + static_cast<size_t>(row) * dim4;
}

__device__ __forceinline__ void copy_row(float4* to, const float4* from, int dim4) {
  if (!to) return;
  for (int at = threadIdx.x % kWarp; at < dim4; at += kWarp) to[at] = from[at];
}

__device__ __forceinline__ const float4* centroids_of(const float4* centroids, int slot, int clusters, int dim4) {
  return centroids + static_cast<size_t>(slot) * clusters * dim4;
}

}  // namespace

// ---- Kernels ----
//
// bank_ids, cluster_ids and out_rows are in the order of the caller's frames. Ids outside [0, entries) get cluster -1.
// slots[entry] says where an entry's centroids lie in `centroids` (slots, clusters, dim4); entries with a negative slot
// are passed over, and their frames' results left as they are. Without slots entry e lies at e.

extern "C" __global__ void __launch_bounds__(kSortThreads)
    plan_all(const void* bank_ids, int wide, int frames, int entries, const int* slots, const int* num_clusters,
             int tile_frames, int chunk_rows, int tiled_min, int* counts, int4* segments, int* order,
             int4* streamed_items, int4* tiled_items, int* counters, int* cluster_ids) {
  count_chunk(0, bank_ids, wide, frames, entries, slots, counts);
  __syncthreads();
  plan_segments(1, entries, num_clusters, tile_frames, chunk_rows, tiled_min, counts, segments, counters);
  __syncthreads();
  sort_chunk(0, bank_ids, wide, frames, entries, slots, num_clusters, tile_frames, chunk_rows, tiled_min, counts,
             segments, order, streamed_items, tiled_items, cluster_ids);
}

extern "C" __global__ void __launch_bounds__(kSortThreads)
    count_frames(const void* bank_ids, int wide, int frames, int entries, const int* slots, int* counts) {
  count_chunk(blockIdx.x, bank_ids, wide, frames, entries, slots, counts);
}

extern "C" __global__ void __launch_bounds__(kSortThreads)
    plan_entries(int chunks, int entries, const int* num_clusters, int tile_frames, int chunk_rows, int tiled_min,
                 int* counts, int4* segments, int* counters) {
  plan_segments(chunks, entries, num_clusters, tile_frames, chunk_rows, tiled_min, counts, segments, counters);
}

extern "C" __global__ void __launch_bounds__(kSortThreads)
    sort_frames(const void* bank_ids, int wide, int frames, int entries, const int* slots, const int* num_clusters,
                int tile_frames, int chunk_rows, int tiled_min, const int* counts, const int4* segments, int* order,
                int4* streamed_items, int4* tiled_items, int* cluster_ids) {
  sort_chunk(blockIdx.x, bank_ids, wide, frames, entries, slots, num_clusters, tile_frames, chunk_rows, tiled_min,
             counts, segments, order, streamed_items, tiled_items, cluster_ids);
}

extern "C" __global__ void __launch_bounds__(kThreads, 2)
    nearest_streamed(const float4* __restrict__ features, const int* __restrict__ order,
                     const float4* __restrict__ centroids, const float* __restrict__ half_norms,
                     const int* __restrict__ num_clusters, int clusters, int dim4, int warp_rows, int splits,
                     const int4* __restrict__ items, const int* __restrict__ counters, int4* __restrict__ partials) {
  DYNAMIC_SHARED(float4, shared);
  const int total = counters[kStreamedItems];
  for (int i = blockIdx.x; i < total; i += gridDim.x) {
    const int4 item = items[i];
    const int frames = item.w % 256, rows = num_clusters[item.x];
    const float4* mine = centroids_of(centroids, item.y, clusters, dim4);
    const float* half = half_norms + static_cast<size_t>(item.x) * clusters;
    if (frames == 1) {
      stream_item<1>(item, features, order, mine, half, rows, dim4, warp_rows, splits, partials, shared);
    } else if (frames == 2) {
      stream_item<2>(item, features, order, mine, half, rows, dim4, warp_rows, splits, partials, shared);
    } else if (frames <= 4) {
      stream_item<4>(item, features, order, mine, half, rows, dim4, warp_rows, splits, partials, shared);
    } else if (frames <= 8) {
      stream_item<8>(item, features, order, mine, half, rows, dim4, warp_rows, splits, partials, shared);
    } else {
      stream_item<16>(item, features, order, mine, half, rows, dim4, warp_rows, splits, partials, shared);
    }
    __syncthreads();  // the next item's frames go where this one's lie
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 2)
    nearest_tiled(const float4* __restrict__ features, const int* __restrict__ order,
                  const float4* __restrict__ centroids, const float* __restrict__ half_norms,
                  const int* __restrict__ num_clusters, int clusters, int dim4, int splits,
                  const int4* __restrict__ items, const int* __restrict__ counters, int4* __restrict__ partials) {
  DYNAMIC_SHARED(float4, buffers);
  constexpr int kBuffer = kStep * kPitch;
  float* const frame_buffers = reinterpret_cast<float*>(buffers);  // [2][kStep][kPitch], then as much for centroids
  float* const centroid_buffers = frame_buffers + 2 * kBuffer;
  const int steps = divided_up(dim4, kStep / 4), total = counters[kTiledItems];

  for (int i = blockIdx.x; i < total; i += gridDim.x) {
    const int4 item = items[i];
    const int frames = item.w % 256, first = item.w / 256, rows = num_clusters[item.x];
    const float4* mine = centroids_of(centroids, item.y, clusters, dim4);
    const int lane = threadIdx.x % kWarp, warp = uniform_warp();
    const int loaded_row = warp * (kWarp / 2) + lane / 2, loaded_four = lane % 2;

    // What this thread brings from memory: four values of a frame and of a centroid a step. Past the last frame or
    // centroid any will do: its scores are not used.
    const float4* my_frame = features + static_cast<size_t>(order[item.z + min(loaded_row, frames - 1)]) * dim4;
    const float4* my_centroid = mine + static_cast<size_t>(min(first + loaded_row, rows - 1)) * dim4;
    float4 fetched_frame, fetched_centroid;
    const auto fetch = [&](int step) {
      const int at = step * (kStep / 4) + loaded_four;
      fetched_frame = at < dim4 ? my_frame[at] : make_float4(0, 0, 0, 0);
      fetched_centroid = at < dim4 ? my_centroid[at] : make_float4(0, 0, 0, 0);
    };
    const auto store = [&](float* buffer, const float4& fetched) {
      float* to = buffer + loaded_four * 4 * kPitch + loaded_row;
      to[0] = fetched.x;
      to[kPitch] = fetched.y;
      to[2 * kPitch] = fetched.z;
      to[3 * kPitch] = fetched.w;
    };

    float sums[8][8];
#pragma unroll
    for (int m = 0; m < 8; ++m) {
#pragma unroll
      for (int n = 0; n < 8; ++n) sums[m][n] = 0;
    }
    fetch(0);
    store(frame_buffers, fetched_frame);
    store(centroid_buffers, fetched_centroid);
    __syncthreads();
    int step = 0;
    do {
      const int now = step % 2 * kBuffer, next = kBuffer - now;
      const bool more = step + 1 < steps;
      if (more) fetch(step + 1);
      const float* x = frame_buffers + now + tile_frame(warp, lane, 0);
      const float* c = centroid_buffers + now + tile_centroid(warp, lane, 0);
#pragma unroll
      for (int k = 0; k < kStep; ++k) {
        const float4 x0 = *reinterpret_cast<const float4*>(x + k * kPitch);
        const float4 x1 = *reinterpret_cast<const float4*>(x + k * kPitch + kSecondFrames);
        const float4 c0 = *reinterpret_cast<const float4*>(c + k * kPitch);
        const float4 c1 = *reinterpret_cast<const float4*>(c + k * kPitch + kSecondCentroids);
        const float xs[8] = {x0.x, x0.y, x0.z, x0.w, x1.x, x1.y, x1.z, x1.w};
        const float cs[8] = {c0.x, c0.y, c0.z, c0.w, c1.x, c1.y, c1.z, c1.w};
#pragma unroll
        for (int m = 0; m < 8; ++m) {
#pragma unroll
          for (int n = 0; n < 8; ++n) sums[m][n] = fmaf(xs[m], cs[n], sums[m][n]);
        }
      }
      if (more) {
        store(frame_buffers + next, fetched_frame);
        store(centroid_buffers + next, fetched_centroid);
      }
      __syncthreads();
    } while (++step < steps);

    keep_nearest(sums, items, i, num_clusters, half_norms, clusters, splits, partials);
    // The last step ended with a barrier: the next item may fill the buffers.
  }
}

// A warp for each place. `limits` and `done` are for flagged frames, in the order of `flagged`.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
    settle(const float4* features, const void* bank_ids, int wide, const int* order, const int4* segments,
           const int* slots, const float4* centroids, const int* num_clusters, const double* max_norms, int clusters,
           int dim4, int tiled_min, int warp_rows, int streamed_roundings, int splits, const int4* partials,
           int* counters, int* flagged, double* limits, int* done, int* cluster_ids, float4* out,
           const void* out_rows, int out_wide) {
  const int lane = threadIdx.x % kWarp;
  for (int place = blockIdx.x * kWarps + threadIdx.x / kWarp; place < counters[kFrames];
       place += gridDim.x * kWarps) {
    const int frame = order[place], entry = load_index(bank_ids, wide, frame);
    const int4 segment = segments[entry];
    const bool tiled = place - segment.x < tiled_frames(segment.y, tiled_min);
    const int rows = num_clusters[entry], used = divided_up(rows, tiled ? kTiledWidth : warp_rows);

    Running running = {infinity(), infinity(), kNone};
    for (int split = lane; split < used; split += kWarp) {
      const int4 partial = partials[static_cast<size_t>(place) * splits + split];
      merge(running, __int_as_float(partial.x), __int_as_float(partial.y), partial.z);
    }
    for (int mask = kWarp / 2; mask; mask /= 2) merge_lanes(running, mask);

    double squares = 0;
    for (int at = lane; at < dim4; at += kWarp) {
      squares = squared_difference(features[static_cast<size_t>(frame) * dim4 + at], make_float4(0, 0, 0, 0), squares);
    }
    const double norm = sqrt(sum_over_lanes(squares));
    const double margin =
        2 * score_error(norm, max_norms[entry], tiled ? dim4 * 4 : streamed_roundings, dim4 * 4);
    const double gap = static_cast<double>(running.second) - running.best;
    if (gap > margin) {  // false for NaN
      if (lane == 0) cluster_ids[frame] = running.id;
      const int slot = slots ? slots[entry] : entry;
      copy_row(out_row(out, out_rows, out_wide, frame, dim4),
               centroids_of(centroids, slot, clusters, dim4) + static_cast<size_t>(running.id) * dim4, dim4);
    } else if (lane == 0) {
      const int index = atomicAdd(&counters[kFlagged], 1);
      flagged[index] = place;
      limits[index] = running.best + margin;
      done[index] = 0;
    }
  }
}

// A block for every 32 centroids of a flagged frame, a warp for kRows of them; splits whose best score is beyond the
// frame's limit cannot hold the nearest centroid, and are not read. The block that finishes a frame last merges it.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
    recheck(const float4* features, const void* bank_ids, int wide, const int* order, const int4* segments,
            const int* slots, const float4* centroids, const int* num_clusters, int clusters, int dim4, int tiled_min,
            int warp_rows, int splits, int4* partials, const int* counters, const int* flagged, const double* limits,
            int* done, int* cluster_ids, float4* out, const void* out_rows, int out_wide) {
  constexpr int kBlockRows = kWarps * kRows;
  __shared__ double distances[kWarps];
  __shared__ int ids[kWarps];
  __shared__ int finished;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int blocks = divided_up(clusters, kBlockRows);
  const long long total = static_cast<long long>(counters[kFlagged]) * blocks;
  for (long long item = blockIdx.x; item < total; item += gridDim.x) {
    const int index = static_cast<int>(item / blocks), block = static_cast<int>(item % blocks);
    const int place = flagged[index], frame = order[place], entry = load_index(bank_ids, wide, frame);
    const int rows = num_clusters[entry];
    if (block * kBlockRows >= rows) continue;  // the same for the whole block
    const int4 segment = segments[entry];
    const bool tiled = place - segment.x < tiled_frames(segment.y, tiled_min);
    const int width = tiled ? kTiledWidth : warp_rows, slot = slots ? slots[entry] : entry;
    int4* const mine = partials + static_cast<size_t>(place) * splits;
    const float4* x = features + static_cast<size_t>(frame) * dim4;
    const float4* entry_centroids = centroids_of(centroids, slot, clusters, dim4);

    const int first = block * kBlockRows + warp * kRows, last = min(first + kRows, rows);
    Exact exact = {infinity64(), kNone};
    if (first < last) {
      // Other blocks change other partials in the meantime: read past the first-level cache, which does not see it.
      const float best = __int_as_float(__ldcg(mine + first / width).x);
      if (!(best > limits[index])) exact = nearest_exactly(x, entry_centroids, first, last, dim4);
    }
    if (lane == 0) {
      distances[warp] = exact.distance;
      ids[warp] = exact.id;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int other = 1; other < kWarps; ++other) merge(exact, Exact{distances[other], ids[other]});
      mine[block * kBlockRows / width] = packed(exact);  // all warps that need the old value have read it
      __threadfence();
      finished = atomicAdd(&done[index], 1) == divided_up(rows, kBlockRows) - 1;
    }
    __syncthreads();
    if (finished && warp == 0) {
      __threadfence();
      exact = Exact{infinity64(), kNone};
      for (int other = lane; other * kBlockRows < rows; other += kWarp) {
        merge(exact, unpacked(__ldcg(mine + other * kBlockRows / width)));
      }
      for (int mask = kWarp / 2; mask; mask /= 2) {
        const double distance = __shfl_xor_sync(kAllLanes, exact.distance, mask);
        const int id = __shfl_xor_sync(kAllLanes, exact.id, mask);
        merge(exact, Exact{distance, id});
      }
      const int id = exact.id == kNone ? 0 : exact.id;  // all distances are NaN or infinite
      if (lane == 0) cluster_ids[frame] = id;
      copy_row(out_row(out, out_rows, out_wide, frame, dim4), entry_centroids + static_cast<size_t>(id) * dim4, dim4);
    }
    // For the next item: distances and ids were read between the barriers, and `finished` is read before the next one.
  }
}

// A warp for each frame; frames without a cluster are passed over.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
    gather_rows(const void* bank_ids, int wide, const int* cluster_ids, int frames, int entries, const int* slots,
                const float4* centroids, const int* num_clusters, int clusters, int dim4, float4* out,
                const void* out_rows, int out_wide) {
  for (int frame = blockIdx.x * kWarps + threadIdx.x / kWarp; frame < frames; frame += gridDim.x * kWarps) {
    const int entry = load_index(bank_ids, wide, frame), slot = slot_of(entry, entries, slots);
    const int id = cluster_ids[frame];
    if (slot < 0 || id < 0 || id >= num_clusters[entry]) continue;
    copy_row(out_row(out, out_rows, out_wide, frame, dim4),
             centroids_of(centroids, slot, clusters, dim4) + static_cast<size_t>(id) * dim4, dim4);
  }
}
