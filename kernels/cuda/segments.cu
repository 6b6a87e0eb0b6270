// Sums of rows by segment on a GPU: what Lloyd's algorithm makes new centroids of.
//
// kernels/cuda/segments.py launches this. Bound by memory: each row is read once. The source needs no header, and
// compiles as C++ over tests/fakes/cuda, as nearest.cu does.

// sums[s] = the sum of rows[order[i]] for i from begins[s] to begins[s + 1], in that order, so that equal calls give
// equal bits; `width` columns. A segment without rows gets zeros.
extern "C" __global__ void __launch_bounds__(256)
    sum_segments(const float* rows, const int* order, const int* begins, double* sums, int segments, int width) {
  for (int segment = blockIdx.x; segment < segments; segment += gridDim.x) {
    const int begin = begins[segment], end = begins[segment + 1];
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
      double sum = 0.0;
      for (int i = begin; i < end; ++i) sum += rows[static_cast<long long>(order[i]) * width + column];
      sums[static_cast<long long>(segment) * width + column] = sum;
    }
  }
}
