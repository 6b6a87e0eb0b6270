// The operators' entry points, a table of them for each instruction set.
#pragma once

#include "parallel.hpp"
#include "shapes.hpp"

namespace mkc {

// A float16.
struct Half {
    unsigned short bits;
};

// Frames of one look-up task at most: with D = 1024, 400 KB of features that stay in the second cache.
constexpr long kTaskFrames = 96;
// Frames of a panel, where a task's frames are packed.
constexpr long kPanelFrames = 32;

struct Operators {
    ort::Status* (*convolve)(const Convolution&, const Threads&);
    ort::Status* (*residual_blocks)(const ResidualBlocks&, const Threads&);
    ort::Status* (*direct_blocks)(const ResidualBlocks&, const Threads&);
    ort::Status* (*attend)(const Attention&, const Threads&);
    ort::Status* (*depthwise)(const Depthwise&, const Threads&);
    // See nearest-inl.hpp.
    void (*multiply_frames)(const float* frames, long count, const float* entry, long first, long last, long dim,
                            float* out, long pitch);
    // Arithmetic alone, see peak-inl.hpp.
    double (*exercise)(long bits, long rounds);
    int (*decide)(const float* x, const float* dots, const float* entry, const double* half_norms, double largest_norm,
                  long clusters, long dim);
    // The same of centroids in float16.
    void (*multiply_frames_half)(const float* frames, long count, const Half* entry, long first, long last, long dim,
                                 float* out, long pitch);
    // The same of packed frames.
    void (*pack_frames)(const float* const* frames, long count, long dim, float* out);
    void (*multiply_packed)(const float* packed, long count, const float* entry, long first, long last, long dim,
                            float* out, long pitch);
    void (*multiply_packed_half)(const float* packed, long count, const Half* entry, long first, long last, long dim,
                                 float* out, long pitch);
    int (*decide_half)(const float* x, const float* dots, const float* entry, const double* half_norms,
                       double largest_norm, const double* errors, double scale, long clusters, long dim);
};

extern const Operators kAvx2, kAvx512, kAvx512Vnni;

// What AMX does in place of VNNI.
struct TileOperators {
    ort::Status* (*convolve)(const Convolution&, const Threads&);
    double (*exercise)(long bits, long rounds);
    // Whether the tiles compute as they must here. No processor that has them was at hand, so each process asks.
    bool (*right)();
};

extern const TileOperators kTiles;

// Those for this processor; null if it has neither AVX-512 nor AVX2.
const Operators* chosen();

}  // namespace mkc
