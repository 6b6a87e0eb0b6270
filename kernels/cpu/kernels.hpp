// Every operator, for one instruction set. Included by avx2.cpp and avx512.cpp, in a namespace of each.

#include "simd.hpp"
#include "product.hpp"
#include "convolution.hpp"
#include "direct.hpp"
#include "winograd.hpp"
#include "attention.hpp"
#include "depthwise.hpp"
