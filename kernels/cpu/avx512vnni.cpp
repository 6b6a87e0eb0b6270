// The operators for processors with AVX-512 and VNNI, its instructions for products of whole numbers.

#include <immintrin.h>

#include <cstring>

#include "operators.hpp"

#define MKC_ISA 512
#define MKC_VNNI
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,avx2,f16c,avx512vnni")
namespace mkc {
namespace avx512vnni {
#include "kernels-inl.hpp"
}  // namespace avx512vnni
const Operators kAvx512Vnni = {
    avx512vnni::convolve, avx512vnni::residual_blocks, avx512vnni::direct_blocks, avx512vnni::attend,
    avx512vnni::depthwise, avx512vnni::multiply_frames<float>, avx512vnni::exercise, avx512vnni::decide,
    avx512vnni::multiply_frames<Half>, avx512vnni::pack_frames, avx512vnni::multiply_packed<float>,
    avx512vnni::multiply_packed<Half>, avx512vnni::decide_half};
}  // namespace mkc
#pragma GCC pop_options
