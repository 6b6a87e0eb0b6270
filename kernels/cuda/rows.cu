// Rows of frames on a GPU, between the graphs: moved between utterances and windows, faded, and checked.
//
// kernels/device_rows.py launches these; a row is a frame's features, or its samples. All are bound by memory, and small
// beside the graphs. The source needs no header, and compiles as C++ over tests/fakes/cuda, as nearest.cu does.

namespace {

constexpr float kLargest = 3.402823466e38f;

}  // namespace

// target[to[i]] = source[from[i]] for `count` rows of `width`; a negative `from` gives zeros, a negative `to` is none.
// Without `to`, row i goes to row i.
extern "C" __global__ void __launch_bounds__(256)
    move_rows(const float* source, const int* from, const int* to, float* target, int count, int width) {
  for (int row = blockIdx.x; row < count; row += gridDim.x) {
    const long long there = from[row], here = to ? to[row] : row;
    if (here < 0) continue;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
      target[here * width + column] = there < 0 ? 0.0f : source[there * width + column];
    }
  }
}

// target = old fading into fresh over `count` rows, linearly: the rows' centres are at (i + 0.5) / count.
extern "C" __global__ void __launch_bounds__(256)
    fade_rows(const float* old, const float* fresh, float* target, int count, int width) {
  for (int row = blockIdx.x; row < count; row += gridDim.x) {
    const float weight = (static_cast<float>(row) + 0.5f) / static_cast<float>(count);
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
      const long long place = static_cast<long long>(row) * width + column;
      target[place] = old[place] * (1.0f - weight) + fresh[place] * weight;
    }
  }
}

// Sets the flag of each utterance, of `rows_per_flag` rows, of which a row holds a value that is not finite; rows whose
// bank id is negative are padding.
extern "C" __global__ void __launch_bounds__(256)
    flag_rows(const float* source, const int* bank_ids, int* flags, int count, int width, int rows_per_flag) {
  for (int row = blockIdx.x; row < count; row += gridDim.x) {
    if (bank_ids[row] < 0) continue;
    bool finite = true;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
      const float value = source[static_cast<long long>(row) * width + column];
      finite = finite && value <= kLargest && value >= -kLargest;
    }
    if (!finite) flags[row / rows_per_flag] = 1;
  }
}
