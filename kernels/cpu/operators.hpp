// The operators' entry points, a table of them for each instruction set.
#pragma once

#include "parallel.hpp"
#include "shapes.hpp"

namespace mkc {

struct Operators {
    ort::Status* (*convolve)(const Convolution&, const Threads&);
    ort::Status* (*residual_blocks)(const ResidualBlocks&, const Threads&);
    ort::Status* (*direct_blocks)(const ResidualBlocks&, const Threads&);
    ort::Status* (*attend)(const Attention&, const Threads&);
    ort::Status* (*depthwise)(const Depthwise&, const Threads&);
};

extern const Operators kAvx2, kAvx512;

}  // namespace mkc
