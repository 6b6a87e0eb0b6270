// Products in whole numbers of 16 or 8 bits, for inputs and weights that are rounded to them in blocks.
//
// A block is 128 values in a row: of a frame's channels, or of a column's weights. Its largest magnitude becomes 4095 in 16
// bits and 127 in 8, and the others are rounded to the whole numbers below. So a value's error is at most 1/8190, or
// 1/254, of the largest in its block, whatever the scale of the numbers. Products of a block are summed in 32 bits without
// an error: 128 * 4095 * 4095 is less than 2^31. Blocks are summed in float32, in one order. So every instruction set gives
// the same bits.
//
// In 16 bits this is as fast as bfloat16 (two products for one of float32) and nearer to float32: the RMS error of a block
// is at most 8e-4 of its RMS value, and 2e-4 where values are distributed normally; bfloat16's is 1.7e-3.
//
// Inputs of 8 bits have 128 added, since processors multiply numbers without a sign by such with one; `offsets` takes it
// off again.
//
// A block whose largest magnitude is below 1e-30 is taken for zeros. One with a NaN or an infinity gives NaNs.
//
// Expects: included by kernels-inl.hpp after simd-inl.hpp and product-inl.hpp, in the namespace of one instruction set
// within mkc; Vector, Integers and their functions, kPanel, kSub, kRows; from operators.hpp Scratch; <cstring>.

constexpr long kBlock = 128;

template <class Input>
struct Whole;
template <>
struct Whole<int16_t> {
    static constexpr float kMost = 4095.0f;
    static constexpr long kTogether = 2;  // that are multiplied and summed into 32 bits by one instruction
};
template <>
struct Whole<uint8_t> {
    static constexpr float kMost = 127.0f;
    static constexpr long kTogether = 4;
};

inline long blocks_of(long channels) { return (channels + kBlock - 1) / kBlock; }

// Frames of a whole-numbered input: (frames, pitch) values and (frames, blocks) scales.
template <class Input>
struct WholeFrames {
    Input* values = nullptr;
    float* scales = nullptr;
    long channels = 0, blocks = 0, pitch = 0;

    // How many floats hold so many frames.
    static long floats(long frames, long channels) {
        return frames * (pitch_of_frames(channels) * static_cast<long>(sizeof(Input)) / 4 + blocks_of(channels)) + 16;
    }
    // Such that rows of a tile do not fall on the same lines of the cache: an odd number of lines.
    static long pitch_of_frames(long channels) {
        const long line = 64 / sizeof(Input);
        return ((channels + line - 1) / line | 1) * line;
    }
    WholeFrames(float* memory, long frames, long channels_)
        : values(reinterpret_cast<Input*>(memory)), channels(channels_), blocks(blocks_of(channels_)),
          pitch(pitch_of_frames(channels_)) {
        scales = memory + frames * pitch * static_cast<long>(sizeof(Input)) / 4;
    }
    // Rounds `channels` values, a multiple of 16, to frame `frame`; LeakyReLU comes first where `activated`.
    void round(long frame, const float* x, bool activated, Vector slope) const {
        Input* out = values + frame * pitch;
        for (long block = 0; block < blocks; block++) {
            const long begin = block * kBlock, end = begin + kBlock < channels ? begin + kBlock : channels;
            Integers top = Integers::zero();
            for (long c = begin; c < end; c += Vector::kWidth) {
                Vector value = Vector::load(x + c);
                if (activated) value = leaky(value, slope);
                top = max(top, magnitude(value));
            }
            const int bits = highest(top);
            float largest;
            std::memcpy(&largest, &bits, sizeof largest);
            const bool nothing = largest < 1e-30f;
            scales[frame * blocks + block] = nothing ? 0.0f : largest * (1.0f / Whole<Input>::kMost);
            const Vector factor = Vector::all(nothing ? 0.0f : Whole<Input>::kMost / largest);
            for (long c = begin; c < end; c += Vector::kWidth) {
                Vector value = Vector::load(x + c);
                if (activated) value = leaky(value, slope);
                store_whole(out + c, value * factor);
            }
        }
    }
    void clear(long frame) const {
        std::memset(values + frame * pitch, sizeof(Input) == 1 ? 128 : 0, channels * sizeof(Input));
        for (long block = 0; block < blocks; block++) scales[frame * blocks + block] = 0.0f;
    }
    const int* at(long frame, long block) const {
        return reinterpret_cast<const int*>(values + frame * pitch + block * kBlock);
    }
    // Rows `step` frames apart are so many words of 32 bits apart.
    long words(long step) const { return step * pitch * static_cast<long>(sizeof(Input)) / 4; }
    int steps(long block) const {
        const long left = channels - block * kBlock;
        return static_cast<int>((left < kBlock ? left : kBlock) / Whole<Input>::kTogether);
    }
};

// rows x (vectors of columns) sums over `steps` words of inputs, rows `stride` words apart, of one block.
template <class Input, int rows, int vectors, class Finish>
inline __attribute__((always_inline)) void whole_tile(const int* a, long stride, const int* b, int steps,
                                                      const int* offsets, Finish finish) {
    constexpr int kWidth = Vector::kWidth;
    Integers sums[rows][vectors];
#pragma GCC unroll 2
    for (int j = 0; j < vectors; j++) {
        const Integers first = sizeof(Input) == 1 ? Integers::load(offsets + j * kWidth) : Integers::zero();
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) sums[i][j] = first;
    }
    for (int p = 0; p < steps; p++) {
        Integers weights[vectors];
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) weights[j] = Integers::load(b + j * kWidth);
        __builtin_prefetch(b + 12 * kPanel);
        __builtin_prefetch(b + 12 * kPanel + 16);
        b += kPanel;
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) {
            const Integers input = Integers::all(a[i * stride]);
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++) sums[i][j] = dot(sums[i][j], weights[j], input, Input{});
        }
        a++;
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) finish(i, j, sums[i][j]);
}

// A tile of a number of rows that is known at run time only.
template <class Input, int vectors, int rows = kRows, class Finish>
inline void whole_tile_of(int count, const int* a, long stride, const int* b, int steps, const int* offsets,
                          Finish finish) {
    if (count == rows) {
        whole_tile<Input, rows, vectors>(a, stride, b, steps, offsets, finish);
    } else if constexpr (rows > 1) {
        whole_tile_of<Input, vectors, rows - 1>(count, a, stride, b, steps, offsets, finish);
    }
}

// Weights of one block and one panel: words (steps, 32), scales (32,) and, in 8 bits, offsets (32,).
struct WholeWeights {
    const int* words;
    const float* scales;
    const int* offsets;
};

// Adds a block's products to `count` rows of sums, (count, 32) floats, in columns [sub, wide) of a panel; `fresh` ones
// are written. The rows' inputs are those of frame `frame` on, `step` frames apart.
template <class Input>
inline void add_block(const WholeFrames<Input>& frames, long frame, long step, long block, const WholeWeights& weights,
                      int sub, long wide, int count, bool fresh, float* sums) {
    constexpr int kWidth = Vector::kWidth;
    const float* scales = frames.scales + frame * frames.blocks + block;
    const long scale_step = step * frames.blocks;
    float* at = sums + sub;
    const float* columns = weights.scales + sub;
    const auto finish = [=](int i, int j, Integers sum) {
        float* to = at + i * kPanel + j * kWidth;
        const Vector scale = Vector::all(scales[i * scale_step]) * Vector::load(columns + j * kWidth);
        fma(to_floats(sum), scale, fresh ? Vector::zero() : Vector::load(to)).store(to);
    };
    const int* offsets = sizeof(Input) == 1 ? weights.offsets + sub : nullptr;
    if (wide - sub <= kWidth)
        whole_tile_of<Input, 1>(count, frames.at(frame, block), frames.words(step), weights.words + sub,
                                frames.steps(block), offsets, finish);
    else
        whole_tile_of<Input, 2>(count, frames.at(frame, block), frames.words(step), weights.words + sub,
                                frames.steps(block), offsets, finish);
}
