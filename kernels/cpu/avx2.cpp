// The operators for processors with AVX2 and FMA.

#include <immintrin.h>

#include <cstring>

#include "operators.hpp"

#define MKC_ISA 256
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace mkc {
namespace avx2 {
#include "kernels-inl.hpp"
}  // namespace avx2
const Operators kAvx2 = {
    avx2::convolve, avx2::residual_blocks, avx2::direct_blocks, avx2::attend, avx2::depthwise,
    avx2::multiply_frames<float>, avx2::exercise, avx2::decide, avx2::multiply_frames<Half>, avx2::pack_frames,
    avx2::multiply_packed<float>, avx2::multiply_packed<Half>, avx2::decide_half};
}  // namespace mkc
#pragma GCC pop_options
