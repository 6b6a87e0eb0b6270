// A pair of convolutions of the vocoder's residual blocks as one kernel, for compute capability 8.0 and later:
//
//   x -> scale * (x + conv2(lrelu(conv1(lrelu(x), dilation d)), dilation 1)) + previous
//
// x is (batch, frames, width) float16, channels last; sums, biases and the residual are float32. Zeros stand before the
// first and after the last frame of each window, for conv2 as well: its input is zero there, not lrelu(bias).
//
// A block makes a run of frames, all channels. It keeps lrelu(x) of these and of those that they depend on (the halo) in
// shared memory, then the intermediate in the same place, which is free once conv1's sums are in registers. Weights
// stream through a ring in shared memory, conv2's behind conv1's. residual_plans.py chooses sizes and packs the weights;
// residual.py launches. Not yet run on a GPU.
//
// A convolution here is a product: frames × (taps, channels in) times (taps, channels in) × channels out, by the tensor
// cores' m16n8k16. A step is 16 input channels of one tap. A group is 16 output channels, in an order in which each lane
// has 4 consecutive channels: it reads and writes 8 bytes, a quad of lanes a whole sector.
//
// The source needs no header, so that NVRTC compiles it as it is. It also compiles as C++ over tests/fakes/cuda, which
// runs it on a CPU; what C++ cannot say is in the next lines.

#ifndef CUDA_SHIM
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "residual.cu needs compute capability 8.0 or later"
#endif

#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]

// Starts a copy of 16 bytes from device memory, around the first-level cache, to shared memory; zeros if not `valid`.
__device__ __forceinline__ void copy_async(float4* to, const float4* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the last `kLeft` groups that this thread committed have arrived, for this thread to see.
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Four matrices of 8 × 8 float16; lane l gives the address of row l % 8 of matrix l / 8, and gets of row l / 4 of each
// matrix the elements 2 (l % 4) and the next.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(row));
}

// sums (16 × 8 float32) += a (16 × 16 float16) times b (16 × 8 float16).
__device__ __forceinline__ void multiply_add(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two float16 of 32 bits, the first in the low half.
__device__ __forceinline__ void unpack_halves(unsigned halves, float& first, float& second) {
  asm("{ .reg .b16 low, high;\n mov.b32 {low, high}, %2;\n cvt.f32.f16 %0, low;\n cvt.f32.f16 %1, high; }"
      : "=f"(first), "=f"(second)
      : "r"(halves));
}

__device__ __forceinline__ unsigned pack_halves(float first, float second) {
  unsigned halves;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(halves) : "f"(second), "f"(first));
  return halves;
}
#endif

namespace residual {

constexpr float kSlope = 0.1f;
constexpr int kLanes = 32;
constexpr int kStages = 3;     // of the ring of weights: one in use, the others on their way
constexpr int kTiles = 4;      // of 16 frames, that a warp multiplies
constexpr int kWarpFrames = 16 * kTiles;
constexpr int kWideGroups = 4;  // a warp's, where 64 divides the width or 8 narrow warps do not reach: 128 sums a lane
constexpr int kWideSteps = 2;   // of a stage
constexpr int kNarrowGroups = 2;
constexpr int kNarrowSteps = 4;
constexpr int kInFlight = 4;  // loads of a thread while the tile is filled

struct Shape {
  int frames, width, kernel_size, dilation, warps_across;
};

__device__ __forceinline__ float leaky_relu(float value) { return value > 0.0f ? value : kSlope * value; }

__device__ __forceinline__ unsigned leaky_relu_halves(int halves) {
  float first, second;
  unpack_halves(static_cast<unsigned>(halves), first, second);
  return pack_halves(leaky_relu(first), leaky_relu(second));
}

__device__ __forceinline__ unsigned long long pack_four(const float (&values)[4]) {
  return static_cast<unsigned long long>(pack_halves(values[2], values[3])) << 32 | pack_halves(values[0], values[1]);
}

__device__ __forceinline__ void unpack_four(unsigned long long halves, float (&values)[4]) {
  unpack_halves(static_cast<unsigned>(halves), values[0], values[1]);
  unpack_halves(static_cast<unsigned>(halves >> 32), values[2], values[3]);
}

// lrelu(x) of `rows` frames from frame `first` on, zeros outside the window, to rows of the tile.
__device__ __forceinline__ void fill_tile(int4* tile, const int4* __restrict__ x, const Shape& shape, int first,
                                          int rows) {
  const int chunks = shape.width / 8, pitch = chunks + 1, all = rows * chunks;
  const int stride = static_cast<int>(blockDim.x);
  for (int start = static_cast<int>(threadIdx.x); start < all; start += kInFlight * stride) {
    int4 loaded[kInFlight];
    int places[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int index = start + i * stride, row = index / chunks, chunk = index % chunks, frame = first + row;
      places[i] = index < all ? row * pitch + chunk : -1;
      loaded[i] = make_int4(0, 0, 0, 0);
      if (index < all && frame >= 0 && frame < shape.frames) loaded[i] = x[frame * chunks + chunk];
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (places[i] < 0) continue;
      const int4 value = loaded[i];
      tile[places[i]] = make_int4(
          static_cast<int>(leaky_relu_halves(value.x)), static_cast<int>(leaky_relu_halves(value.y)),
          static_cast<int>(leaky_relu_halves(value.z)), static_cast<int>(leaky_relu_halves(value.w)));
    }
  }
}

// The weights of both convolutions, on their way through the ring.
template <int kGroups, int kSteps>
struct Stream {
  int4* ring;
  const int4* weights;
  int stage_size, stages;  // in 16 bytes; of both convolutions
  int next = 0;

  // Starts the copies of the next stage; a group of copies in any case, so that groups can be counted.
  __device__ __forceinline__ void request() {
    if (next < stages) {
      int4* to = ring + next % kStages * stage_size;
      const int4* from = weights + static_cast<long long>(next) * stage_size;
      for (int i = static_cast<int>(threadIdx.x); i < stage_size; i += static_cast<int>(blockDim.x)) {
        copy_async(reinterpret_cast<float4*>(to + i), reinterpret_cast<const float4*>(from + i), true);
      }
    }
    commit_copies();
    ++next;
  }

  // Waits for the next stage that nobody has used, of all threads, and requests another into the place of the last.
  __device__ __forceinline__ const int4* receive() {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    const int4* stage = ring + (next - (kStages - 1)) % kStages * stage_size;
    request();
    return stage;
  }
};

// The products of a warp's frames and channels: frame r reads rows r, r + dilation, ... of the tile.
template <int kGroups, int kSteps>
__device__ __forceinline__ void convolve(float (&sums)[kTiles][2 * kGroups][4], Stream<kGroups, kSteps>& stream,
                                         unsigned tile, const Shape& shape, int dilation, int across) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int n = 0; n < 2 * kGroups; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
    }
  }
  const unsigned pitch = static_cast<unsigned>(2 * shape.width + 16);  // bytes
  const unsigned next_tap = static_cast<unsigned>(dilation) * pitch - static_cast<unsigned>(2 * shape.width);
  const int blocks = shape.width / 16, steps = shape.kernel_size * blocks;
  const int step_size = kLanes * kGroups * shape.warps_across;
  const int mine = across * kGroups * kLanes + static_cast<int>(threadIdx.x) % kLanes;
  unsigned row = tile;
  int block = 0;
  for (int first = 0; first < steps; first += kSteps) {
    const int4* stage = stream.receive();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (first + step >= steps) break;
      unsigned a[kTiles][4];
#pragma unroll
      for (int m = 0; m < kTiles; ++m) load_matrices(a[m], row + static_cast<unsigned>(16 * m) * pitch);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const int4 b = stage[step * step_size + group * kLanes + mine];
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          multiply_add(sums[m][2 * group], a[m], static_cast<unsigned>(b.x), static_cast<unsigned>(b.y));
          multiply_add(sums[m][2 * group + 1], a[m], static_cast<unsigned>(b.z), static_cast<unsigned>(b.w));
        }
      }
      row += 32;
      if (++block == blocks) {
        block = 0;
        row += next_tap;
      }
    }
  }
}

template <int kGroups, int kSteps>
__device__ __forceinline__ void run_pair(const void* x_of_all, const void* weights, const float* biases,
                                         const void* previous_of_all, void* out_of_all, float scale,
                                         const Shape& shape, int tiles) {
  DYNAMIC_SHARED(int4, shared);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / kLanes, 0);  // known to be the warp's
  const int across = warp % shape.warps_across, down = warp / shape.warps_across;
  const int rows = static_cast<int>(blockDim.x) / kLanes / shape.warps_across * kWarpFrames;
  const int reach = shape.kernel_size / 2;  // of conv2; what conv1 reaches is this times its dilation
  const int kept = rows - 2 * reach;        // frames that this block makes
  const int window = static_cast<int>(blockIdx.x) / tiles, start = static_cast<int>(blockIdx.x) % tiles * kept;
  const long long offset = static_cast<long long>(window) * shape.frames * shape.width * 2;  // bytes
  const char* x = static_cast<const char*>(x_of_all) + offset;

  const int tile_rows = rows + 2 * reach * shape.dilation, pitch = shape.width / 8 + 1;  // in 16 bytes
  const int stage_size = kSteps * kLanes * kGroups * shape.warps_across;
  const int steps = shape.kernel_size * (shape.width / 16);
  Stream<kGroups, kSteps> stream{shared + tile_rows * pitch, static_cast<const int4*>(weights), stage_size,
                                 2 * ((steps + kSteps - 1) / kSteps)};
  for (int stage = 0; stage < kStages - 1; ++stage) stream.request();
  fill_tile(shared, reinterpret_cast<const int4*>(x), shape, start - reach - reach * shape.dilation, tile_rows);

  // ldmatrix takes from lane l row l % 16 of 16 frames, of 16 channels the half l / 16.
  const unsigned from = shared_address(shared + (down * kWarpFrames + lane % 16) * pitch + lane / 16);
  float sums[kTiles][2 * kGroups][4];
  convolve<kGroups, kSteps>(sums, stream, from, shape, shape.dilation, across);

  // Of each group a lane has channels 4 (l % 4) to 4 (l % 4) + 3, of 16 frames l / 4 and l / 4 + 8.
  const int first_channel = across * kGroups * 16 + lane % 4 * 4, first_row = down * kWarpFrames + lane / 4;
  __syncthreads();  // nobody reads lrelu(x) any more
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int channel = first_channel + 16 * group;
    if (channel >= shape.width) break;
    const float4 bias = *reinterpret_cast<const float4*>(biases + channel);
#pragma unroll
    for (int half = 0; half < 2 * kTiles; ++half) {
      const int row = first_row + 8 * half, frame = start - reach + row;
      const float* const low = &sums[half / 2][2 * group][half % 2 * 2];
      const float* const high = &sums[half / 2][2 * group + 1][half % 2 * 2];
      const bool inside = frame >= 0 && frame < shape.frames;
      const float values[4] = {inside ? leaky_relu(low[0] + bias.x) : 0.0f, inside ? leaky_relu(low[1] + bias.y) : 0.0f,
                               inside ? leaky_relu(high[0] + bias.z) : 0.0f,
                               inside ? leaky_relu(high[1] + bias.w) : 0.0f};
      *reinterpret_cast<unsigned long long*>(reinterpret_cast<char*>(shared + row * pitch) + 2 * channel) =
          pack_four(values);
    }
  }

  // The last 2 * reach rows read past the intermediate, from what is left of lrelu(x); they are not written.
  convolve<kGroups, kSteps>(sums, stream, from, shape, 1, across);
  const char* previous = previous_of_all ? static_cast<const char*>(previous_of_all) + offset : nullptr;
  char* out = static_cast<char*>(out_of_all) + offset;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int channel = first_channel + 16 * group;
    if (channel >= shape.width) break;
    const float4 bias = *reinterpret_cast<const float4*>(biases + shape.width + channel);
#pragma unroll
    for (int half = 0; half < 2 * kTiles; ++half) {
      const int row = first_row + 8 * half, frame = start + row;
      if (row >= kept || frame >= shape.frames) continue;
      const int at = 2 * (frame * shape.width + channel);
      const float* const low = &sums[half / 2][2 * group][half % 2 * 2];
      const float* const high = &sums[half / 2][2 * group + 1][half % 2 * 2];
      float values[4];
      unpack_four(*reinterpret_cast<const unsigned long long*>(x + at), values);
      values[0] = scale * (values[0] + (low[0] + bias.x));
      values[1] = scale * (values[1] + (low[1] + bias.y));
      values[2] = scale * (values[2] + (high[0] + bias.z));
      values[3] = scale * (values[3] + (high[1] + bias.w));
      if (previous) {
        float before[4];
        unpack_four(*reinterpret_cast<const unsigned long long*>(previous + at), before);
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] += before[i];
      }
      *reinterpret_cast<unsigned long long*>(out + at) = pack_four(values);
    }
  }
}

}  // namespace residual

// x, out: (batch, frames, width) float16, not the same array. previous: as out, may be out, or null. weights: as packed
// for this kernel. biases: (2, width) float32. Blocks: tiles for each window; threads: 32 for each warp, warps_across of
// which share the channels.
extern "C" __global__ void __launch_bounds__(256)
residual_pair_wide(const void* x, const void* weights, const float* biases, const void* previous, void* out, float scale,
                   int frames, int width, int kernel_size, int dilation, int warps_across, int tiles) {
  const residual::Shape shape{frames, width, kernel_size, dilation, warps_across};
  residual::run_pair<residual::kWideGroups, residual::kWideSteps>(x, weights, biases, previous, out, scale, shape, tiles);
}

extern "C" __global__ void __launch_bounds__(256, 2)
residual_pair_narrow(const void* x, const void* weights, const float* biases, const void* previous, void* out,
                     float scale, int frames, int width, int kernel_size, int dilation, int warps_across, int tiles) {
  const residual::Shape shape{frames, width, kernel_size, dilation, warps_across};
  residual::run_pair<residual::kNarrowGroups, residual::kNarrowSteps>(x, weights, biases, previous, out, scale, shape,
                                                                      tiles);
}
