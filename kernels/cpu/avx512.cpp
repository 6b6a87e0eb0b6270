// The operators for processors with AVX-512.

#include <immintrin.h>

#include <cstring>

#include "operators.hpp"

#define MKC_ISA 512
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,avx2,f16c")
namespace mkc {
namespace avx512 {
#include "kernels-inl.hpp"
}  // namespace avx512
const Operators kAvx512 = {
    avx512::convolve, avx512::residual_blocks, avx512::direct_blocks, avx512::attend, avx512::depthwise,
    avx512::multiply_frames<float>, avx512::exercise, avx512::decide, avx512::multiply_frames<Half>,
    avx512::pack_frames, avx512::multiply_packed<float>, avx512::multiply_packed<Half>, avx512::decide_half};
}  // namespace mkc
#pragma GCC pop_options
