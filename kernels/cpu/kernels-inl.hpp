// Every operator, for one instruction set. The order of the includes matters.
//
// Expects: included once by each file of an instruction set: within the target pragmas of the instruction set, in a
// namespace of its own within mkc, after <immintrin.h>, <cstring> and operators.hpp, with MKC_ISA defined.

#include "simd-inl.hpp"
#include "product-inl.hpp"
#include "whole-inl.hpp"
#include "tiles-inl.hpp"
#include "convolution-inl.hpp"
#include "direct-inl.hpp"
#include "winograd-inl.hpp"
#include "attention-inl.hpp"
#include "depthwise-inl.hpp"
#include "nearest-inl.hpp"
#include "peak-inl.hpp"
