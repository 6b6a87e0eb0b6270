// Every operator, for one instruction set. Included by avx2.cpp and avx512.cpp, in a namespace of each.

#include "simd-inl.hpp"
#include "product-inl.hpp"
#include "convolution-inl.hpp"
#include "direct-inl.hpp"
#include "winograd-inl.hpp"
#include "attention-inl.hpp"
#include "depthwise-inl.hpp"
