// The operators for processors with AVX-512, VNNI and AMX, its tiles for products of 8-bit numbers.

#include <immintrin.h>

#include <cstring>

#include "operators.hpp"

#define MKC_ISA 512
#define MKC_VNNI
#define MKC_TILES
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,fma,avx2,f16c,avx512vnni")
#include "tiles.hpp"
namespace mkc {
namespace avx512amx {
#include "kernels-inl.hpp"
}  // namespace avx512amx
const Operators kAvx512Amx = {avx512amx::convolve, avx512amx::residual_blocks, avx512amx::direct_blocks, avx512amx::attend,
                              avx512amx::depthwise, avx512amx::multiply_frames<float>, avx512amx::exercise,
                              avx512amx::decide, avx512amx::multiply_frames<Half>, avx512amx::decide_half};
bool tiles_are_right() { return avx512amx::tiles_are_right(); }
}  // namespace mkc
#pragma GCC pop_options
