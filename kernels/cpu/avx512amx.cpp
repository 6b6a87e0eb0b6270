// Products of 8-bit numbers by the tiles of AMX, on processors that have AVX-512 and VNNI, too.

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
const TileOperators kTiles = {avx512amx::convolve, avx512amx::exercise, avx512amx::tiles_are_right};
}  // namespace mkc
#pragma GCC pop_options
