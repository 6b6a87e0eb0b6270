// What the operators are told: sizes, checked before any of them runs, and pointers. The same for every instruction set.
#pragma once

#include <cstdint>

namespace mkc {

enum class Activation : long { kNone = 0, kGelu = 1, kSilu = 2, kGlu = 3 };

// Windows of consecutive frames times weights: Linear, convolutions, and transposed convolutions (rate > 1).
struct Convolution {
    const float* input;     // (batch, frames, channels)
    const float* weights;   // (panels, kernel * channels, 32)
    const float* bias;      // (columns,)
    const float* residual;  // as output, or null
    float* output;          // (batch, out_frames, out_channels)
    long batch, frames, channels;
    long kernel, stride, left;  // a window starts at row * stride - left; outside the input are zeros
    long rows;                  // windows of a batch entry
    long columns;               // of the product, before a GLU halves them
    long groups;                // of channels, each with columns of its own
    long rate, crop;            // rate output frames of a row; the first `crop` of a batch entry are dropped
    long out_frames, out_channels;
    float slope;  // of LeakyReLU on the input; 1: none
    Activation activation;
    // Instead of `weights`, in whole numbers of so many bits; see whole-inl.hpp. 32: float32.
    long bits;
    const void* whole;     // (panels, kernel * channels / 2, 32, 2) of 16 bits, or (..., / 4, 32, 4) of 8
    const float* scales;   // (panels, kernel * blocks of a group's channels, 32)
    const int* offsets;    // as scales, with 8 bits
};

constexpr long kMostPairs = 16;  // of a residual block
constexpr long kMostSteps = 128;  // convolutions of a stage

// Groups of taps of a residual block's convolution, and the points at which each is evaluated; see winograd-inl.hpp.
constexpr long groups_of(long kernel) { return kernel == 3 ? 1 : (kernel + 3) / 4; }
constexpr long points_of(long kernel) { return kernel == 3 ? 6 : 7; }

// The residual blocks of one HiFi-GAN stage, summed.
struct ResidualBlocks {
    const float* input;    // (batch, frames, channels)
    const float* weights;  // of each convolution in turn, see winograd-inl.hpp and direct-inl.hpp
    const float* biases;   // (convolutions, channels rounded up to 32)
    float* output;         // (batch, frames, channels)
    long batch, frames, channels;
    long pitch;  // channels, filled up: how many of them the weights are for
    long blocks;
    const long* kernels;  // (blocks,)
    long pairs;           // dilated convolutions of a block
    const long* dilations;  // (blocks, pairs)
    bool plain;             // whether each dilated convolution is followed by one that is not (type "1")
    float slope;
    // Instead of `weights`, in whole numbers of 16 bits, with the scales of their blocks; null: float32.
    const int16_t* whole;
    const float* scales;
};

struct Attention {
    const float* projected;  // (batch, frames, 3 * heads * width): queries, keys, values
    const float* mask;       // (batch, frames), added to the scores of a key
    const float* table;      // (heads, 2 * reach + 1), added by key - query distance, or null
    const float* gate;       // (batch, heads, frames), what a query multiplies the table by, or null: by one
    float* output;           // (batch, frames, heads * width)
    long batch, frames, heads, width, reach;
};

// A convolution of each channel with itself, centered, and SiLU.
struct Depthwise {
    const float* input;    // (batch, frames, channels)
    const float* weights;  // (kernel, channels)
    const float* bias;     // (channels,)
    float* output;         // as input
    long batch, frames, channels, kernel;
};

}  // namespace mkc
