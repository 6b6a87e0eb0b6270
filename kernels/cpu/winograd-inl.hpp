// HiFi-GAN's residual blocks with fewer multiplications: Winograd's convolution in one dimension, exact but for rounding.
//
// Four samples in a row of a convolution with four taps take 7 products instead of 16 (Toom 1963, Cook 1966; Winograd
// 1980; for networks Lavin and Gray 2016, arXiv 1509.09308): inputs and weights are evaluated as polynomials at 7 points,
// multiplied point by point, and the samples interpolated. Longer kernels are sums of four taps each, added before they
// are interpolated; three taps take 6 points. With dilation d, samples that lie d apart are taken together. A point's
// products are, over all channels, a product of matrices. The points (0, 1, -1, 1/2, -1/2, 3 and infinity; for three
// taps 0, 1, -1, 1/2, -2 and infinity) were chosen for the least rounding error: 4 times that of plain sums.
//
// A sample that is not finite, or near the largest float32, spreads over the tiles that it lies in: up to 6 * dilation
// samples to either side, where plain sums would keep it within a kernel's reach.
//
// Tiles lie on one grid from a sequence's first sample on, so a result depends neither on how the work is cut nor on the
// number of threads. export/graphs/packing.py holds the same points and evaluates the weights.
//
// Expects: included by kernels-inl.hpp after simd-inl.hpp, product-inl.hpp and whole-inl.hpp, in the namespace of one
// instruction set within mkc; Vector, leaky, tile_of_width, WholeFrames, kPanel, kSub, kRows; from operators.hpp ResidualBlocks, groups_of, points_of,
// Threads and Scratch; <cstring>.

constexpr int kOutputs = 4;  // samples of a tile

template <int taps>
struct Points;

template <>
struct Points<4> {
    static constexpr int kCount = 7;
    static constexpr float kInput[7][7] = {
        {3.0f, -1.0f, -15.0f, 5.0f, 12.0f, -4.0f, 0.0f},
        {0.0f, -3.0f, -2.0f, 13.0f, 8.0f, -4.0f, 0.0f},
        {0.0f, 3.0f, -4.0f, -11.0f, 16.0f, -4.0f, 0.0f},
        {0.0f, 24.0f, 40.0f, -40.0f, -40.0f, 16.0f, 0.0f},
        {0.0f, -24.0f, 56.0f, 8.0f, -56.0f, 16.0f, 0.0f},
        {0.0f, 1.0f, 0.0f, -5.0f, 0.0f, 4.0f, 0.0f},
        {0.0f, -3.0f, 1.0f, 15.0f, -5.0f, -12.0f, 4.0f},
    };
    static constexpr float kOutput[4][7] = {
        {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 0.0f},
        {0.0f, 1.0f, -1.0f, 0.5f, -0.5f, 3.0f, 0.0f},
        {0.0f, 1.0f, 1.0f, 0.25f, 0.25f, 9.0f, 0.0f},
        {0.0f, 1.0f, -1.0f, 0.125f, -0.125f, 27.0f, 1.0f},
    };
};

template <>
struct Points<3> {
    static constexpr int kCount = 6;
    static constexpr float kInput[6][6] = {
        {2.0f, -3.0f, -4.0f, 3.0f, 2.0f, 0.0f},
        {0.0f, -2.0f, 1.0f, 5.0f, 2.0f, 0.0f},
        {0.0f, -2.0f, 5.0f, -1.0f, -2.0f, 0.0f},
        {0.0f, 32.0f, 16.0f, -32.0f, -16.0f, 0.0f},
        {0.0f, 1.0f, -2.0f, -1.0f, 2.0f, 0.0f},
        {0.0f, 2.0f, -3.0f, -4.0f, 3.0f, 2.0f},
    };
    static constexpr float kOutput[4][6] = {
        {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 0.0f},
        {0.0f, 1.0f, -1.0f, 0.5f, -2.0f, 0.0f},
        {0.0f, 1.0f, 1.0f, 0.25f, 4.0f, 0.0f},
        {0.0f, 1.0f, -1.0f, 0.125f, -8.0f, 1.0f},
    };
};

// One convolution of a block, with what its weights are laid out by.
struct Step {
    const float* weights;  // (points, panels, groups * pitch, 32)
    const float* bias;     // (pitch,)
    long kernel, dilation, groups;
    bool three;            // taps
    const int16_t* whole;  // instead of weights: (points, panels, groups * pitch / 2, 32, 2)
    const float* scales;   // of these: (points, panels, groups * blocks of pitch channels, 32)
    long points() const { return three ? 6 : 7; }
    // A tile row: 4 * dilation samples. Its first input is that many samples before its first output.
    long before() const { return dilation * ((kernel - 1) / 2); }
    // Inputs past the end of a tile row that it reads.
    long after() const { return three ? dilation : dilation * (4 * groups - 1 - (kernel - 1) / 2); }
};

// Samples [first, last) of a sequence, in rows of `pitch` channels.
struct Span {
    float* memory = nullptr;
    long first = 0, last = 0, pitch = 0;
    float* row(long t) const { return memory + (t - first) * pitch; }
};

// Zeros before sample `begin` and from `end` on.
inline void clear_outside(const Span& span, long begin, long end) {
    if (begin > span.first) std::memset(span.row(span.first), 0, (begin - span.first) * span.pitch * sizeof(float));
    if (span.last > end) std::memset(span.row(end), 0, (span.last - end) * span.pitch * sizeof(float));
}

inline long floor_to(long x, long unit) { return (x >= 0 ? x : x - unit + 1) / unit * unit; }

// Evaluates what one tile row reads, from `rows` on, at the points: (points, plane) floats.
template <int taps>
inline void evaluate_row(const float* rows, long dilation, long pitch, bool activated, Vector leak, float* at, long plane) {
    using P = Points<taps>;
    for (long c = 0; c < pitch; c += Vector::kWidth) {
        Vector x[P::kCount];
#pragma GCC unroll 8
        for (int i = 0; i < P::kCount; i++) {
            x[i] = Vector::load(rows + i * dilation * pitch + c);
            if (activated) x[i] = leaky(x[i], leak);
        }
#pragma GCC unroll 8
        for (int p = 0; p < P::kCount; p++) {
            Vector sum = Vector::zero();
            bool any = false;
#pragma GCC unroll 8
            for (int i = 0; i < P::kCount; i++) {
                if (P::kInput[p][i] == 0.0f) continue;
                sum = any ? fma(x[i], Vector::all(P::kInput[p][i]), sum) : x[i] * Vector::all(P::kInput[p][i]);
                any = true;
            }
            sum.store(at + p * plane + c);
        }
    }
}

// What tile rows [from, to) are evaluated to: (points, dilation, to - from, pitch).
struct Evaluated {
    static long floats(const Step& step, long tile_rows, long pitch) {
        return step.points() * step.dilation * tile_rows * pitch;
    }
    Evaluated(float* memory, const Step& step, long tile_rows_, long pitch_)
        : values(memory), tile_rows(tile_rows_), pitch(pitch_), plane(step.dilation * tile_rows_ * pitch_) {}
    template <int taps>
    void evaluate(const Step& step, long residue, long row, const float* rows, bool activated, Vector leak) const {
        evaluate_row<taps>(rows, step.dilation, pitch, activated, leak, values + (residue * tile_rows + row) * pitch, plane);
    }
    // Sums of `count` tile rows from `row` on, at one point, in columns [sub, wide) of a panel.
    void multiply(const Step& step, long point, long residue, long row, int count, long panel, long panels, int sub,
                  long wide, float* out) const {
        const long depth = step.groups * pitch;
        const float* weights = step.weights + (point * panels + panel) * depth * kPanel + sub;
        const float* a = values + ((point * step.dilation + residue) * tile_rows + row) * pitch;
        float* at = out + sub;
        tile_of_width<false>(
            wide - sub, count, a, pitch, weights, static_cast<int>(depth), [](int, int) { return Vector::zero(); },
            [=](int i, int j, Vector sum) { sum.store(at + i * kPanel + j * Vector::kWidth); });
    }
    float* values;
    long tile_rows, pitch, plane;
};

// The same in whole numbers of 16 bits: a frame is a tile row at a point.
struct WholeEvaluated {
    static long floats(const Step& step, long tile_rows, long pitch) {
        return WholeFrames<int16_t>::floats(step.points() * step.dilation * tile_rows, pitch);
    }
    WholeEvaluated(float* memory, const Step& step, long tile_rows_, long pitch_)
        : frames(memory, step.points() * step.dilation * tile_rows_, pitch_), tile_rows(tile_rows_), pitch(pitch_) {}
    template <int taps>
    void evaluate(const Step& step, long residue, long row, const float* rows, bool activated, Vector leak) const {
        static thread_local Scratch row_memory;
        float* values = row_memory.floats(Points<taps>::kCount * pitch);
        evaluate_row<taps>(rows, step.dilation, pitch, activated, leak, values, pitch);
        for (int p = 0; p < Points<taps>::kCount; p++)
            frames.round((p * step.dilation + residue) * tile_rows + row, values + p * pitch, false, leak);
    }
    void multiply(const Step& step, long point, long residue, long row, int count, long panel, long panels, int sub,
                  long wide, float* out) const {
        const long words = pitch / 2 * kPanel, at = (point * panels + panel) * step.groups;
        const int* weights = reinterpret_cast<const int*>(step.whole) + at * words;
        const float* scales = step.scales + at * frames.blocks * kPanel;
        for (long group = 0; group < step.groups; group++)
            for (long block = 0; block < frames.blocks; block++) {
                const WholeWeights part{weights + group * words + block * kBlock / 2 * kPanel,
                                        scales + (group * frames.blocks + block) * kPanel, nullptr};
                add_block(frames, (point * step.dilation + residue) * tile_rows + row + group, 1, block, part, sub, wide,
                          count, group == 0 && block == 0, out);
            }
    }
    WholeFrames<int16_t> frames;
    long tile_rows, pitch;
};

// Interpolate the samples of tile rows [from, to) in `wide` channels of a panel, and hand each to `take`: (sample, vector,
// value).
template <int taps, class Take>
inline void interpolate(const Step& step, const float* products, long from, long to, long column, long wide, Take take) {
    using P = Points<taps>;
    const long d = step.dilation, tile_rows = to - from, plane = d * tile_rows * kPanel;
    for (long residue = 0; residue < d; residue++) {
        for (long s = from; s < to; s++) {
            const float* at = products + (residue * tile_rows + s - from) * kPanel;
            for (int j = 0; j < wide; j += Vector::kWidth) {
                Vector y[P::kCount];
#pragma GCC unroll 8
                for (int p = 0; p < P::kCount; p++) y[p] = Vector::load(at + p * plane + j);
                const Vector bias = Vector::load(step.bias + column + j);
#pragma GCC unroll 4
                for (int i = 0; i < kOutputs; i++) {
                    Vector sum = bias;
#pragma GCC unroll 8
                    for (int p = 0; p < P::kCount; p++)
                        if (P::kOutput[i][p] != 0.0f) sum = fma(y[p], Vector::all(P::kOutput[i][p]), sum);
                    take(kOutputs * d * s + residue + i * d, j, sum);
                }
            }
        }
    }
}

// Samples [first, last) of a convolution of `input`, handed to `take` 32 channels at a time.
template <int taps, class Values, class Take>
inline void convolve_span(const Step& step, const Span& input, long first, long last, bool activated, float slope,
                          Take take) {
    static thread_local Scratch evaluated_memory, products_memory;
    const long d = step.dilation, unit = kOutputs * d, pitch = input.pitch, panels = (pitch + kPanel - 1) / kPanel;
    const long begin = floor_to(first, unit) / unit, end = floor_to(last + unit - 1, unit) / unit;
    const Vector leak = Vector::all(slope);
    // As many tiles at a time as keep what they are evaluated to in the second-level cache.
    const long fitting = 70 * 128 / pitch;
    long at_once = (fitting > 140 ? 140 : fitting) / d / kRows * kRows;
    if (at_once < kRows) at_once = kRows;
    for (long from = begin; from < end; from += at_once) {
        const long to = from + at_once < end ? from + at_once : end;
        const long count = to - from, with_groups = count + step.groups - 1;
        const Values values(evaluated_memory.floats(Values::floats(step, with_groups, pitch)), step, with_groups, pitch);
        for (long residue = 0; residue < d; residue++)
            for (long s = 0; s < with_groups; s++)
                values.template evaluate<taps>(step, residue, s, input.row(unit * (from + s) + residue - step.before()),
                                               activated, leak);
        float* products = products_memory.floats(step.points() * d * count * kPanel);
        for (long panel = 0; panel < panels; panel++) {
            // The last panel may be half empty.
            const long wide = pitch - panel * kPanel < kPanel ? pitch - panel * kPanel : kPanel;
            for (long p = 0; p < step.points(); p++)
                for (int sub = 0; sub < wide; sub += kSub)
                    for (long residue = 0; residue < d; residue++)
                        for (long s = 0; s < count; s += kRows)
                            values.multiply(step, p, residue, s, static_cast<int>(count - s < kRows ? count - s : kRows),
                                            panel, panels, sub, wide,
                                            products + ((p * d + residue) * count + s) * kPanel);
            interpolate<taps>(step, products, from, to, panel * kPanel, wide,
                              [&](long t, int j, Vector value) { take(t, panel * kPanel + j, value); });
        }
    }
}

template <class Take>
inline void convolve_span(const Step& step, const Span& input, long first, long last, bool activated, float slope,
                          Take take) {
    if (step.whole && step.three)
        convolve_span<3, WholeEvaluated>(step, input, first, last, activated, slope, take);
    else if (step.whole)
        convolve_span<4, WholeEvaluated>(step, input, first, last, activated, slope, take);
    else if (step.three)
        convolve_span<3, Evaluated>(step, input, first, last, activated, slope, take);
    else
        convolve_span<4, Evaluated>(step, input, first, last, activated, slope, take);
}

// What a convolution reads for samples [first, last).
inline void widen(const Step& step, long& first, long& last) {
    const long unit = kOutputs * step.dilation;
    first = floor_to(first, unit) - step.before();
    last = floor_to(last + unit - 1, unit) + step.after();
}

// Samples [first, last) of one block, added to or put into the output.
inline void residual_block(const ResidualBlocks& r, const Step* steps, long count, long entry, long first, long last,
                           bool add) {
    static thread_local Scratch first_memory, second_memory;
    Scratch* spare = &second_memory;
    const long per_pair = r.plain ? 2 : 1, pairs = count / per_pair;
    const long pitch = r.pitch;
    // Backwards: the samples that each pair has to give.
    long firsts[17], lasts[17];
    firsts[pairs] = first, lasts[pairs] = last;
    for (long pair = pairs; pair-- > 0;) {
        firsts[pair] = firsts[pair + 1], lasts[pair] = lasts[pair + 1];
        for (long step = per_pair; step-- > 0;) widen(steps[pair * per_pair + step], firsts[pair], lasts[pair]);
    }
    Span current{first_memory.floats((lasts[0] - firsts[0]) * pitch), firsts[0], lasts[0], pitch};
    for (long t = current.first; t < current.last; t++) {
        float* row = current.row(t);
        const bool inside = t >= 0 && t < r.frames;
        const long channels = inside ? r.channels : 0;
        if (inside) std::memcpy(row, r.input + (entry * r.frames + t) * r.channels, channels * sizeof(float));
        std::memset(row + channels, 0, (pitch - channels) * sizeof(float));
    }
    const Vector leak = Vector::all(r.slope);
    for (long pair = 0; pair < pairs; pair++) {
        // Within the sequence: past its ends are zeros, for every convolution.
        const long begin = firsts[pair + 1] > 0 ? firsts[pair + 1] : 0;
        const long end = lasts[pair + 1] < r.frames ? lasts[pair + 1] : r.frames;
        const auto add_to_current = [&](long t, long c, Vector value) {
            if (t < begin || t >= end) return;
            float* at = current.row(t) + c;
            (Vector::load(at) + value).store(at);
        };
        const Step* step = steps + pair * per_pair;
        if (!r.plain) {
            // Not in place: tiles to come read samples that these would change.
            const long from = firsts[pair + 1], to = lasts[pair + 1];
            const Span sum{spare->floats((to - from) * pitch), from, to, pitch};
            clear_outside(sum, begin, end);
            convolve_span(step[0], current, begin, end, true, r.slope, [&](long t, long c, Vector value) {
                if (t >= begin && t < end) (Vector::load(current.row(t) + c) + value).store(sum.row(t) + c);
            });
            spare = sum.memory == first_memory.floats(0) ? &second_memory : &first_memory;
            current = sum;
            continue;
        }
        long from = firsts[pair + 1], to = lasts[pair + 1];
        widen(step[1], from, to);
        const Span middle{spare->floats((to - from) * pitch), from, to, pitch};
        const long inner = from > 0 ? from : 0, outer = to < r.frames ? to : r.frames;
        clear_outside(middle, inner, outer);
        convolve_span(step[0], current, inner, outer, true, r.slope, [&](long t, long c, Vector value) {
            if (t >= inner && t < outer) leaky(value, leak).store(middle.row(t) + c);
        });
        convolve_span(step[1], middle, begin, end, false, r.slope, add_to_current);
    }
    for (long t = first; t < last; t++) {
        float* out = r.output + (entry * r.frames + t) * r.channels;
        const float* row = current.row(t);
        for (long c = 0; c < r.channels; c++) out[c] = add ? out[c] + row[c] : row[c];
    }
}

inline ort::Status* residual_blocks(const ResidualBlocks& r, const Threads& threads) {
    const long pitch = r.pitch, wide = (pitch + kPanel - 1) / kPanel * kPanel, per_block = r.pairs * (r.plain ? 2 : 1);
    if (r.frames <= 0 || r.batch <= 0) return nullptr;
    Step steps[kMostSteps];
    long made = 0;
    const float *weights = r.weights, *bias = r.biases, *scales = r.scales;
    const int16_t* whole = r.whole;
    for (long block = 0; block < r.blocks; block++) {
        const long kernel = r.kernels[block], groups = groups_of(kernel), points = points_of(kernel);
        for (long i = 0; i < per_block; i++) {
            const bool dilated = !r.plain || i % 2 == 0;
            const long dilation = dilated ? r.dilations[block * r.pairs + (r.plain ? i / 2 : i)] : 1;
            steps[made++] = {weights, bias, kernel, dilation, groups, kernel == 3, whole, scales};
            if (whole) {
                whole += points * groups * pitch * wide;
                scales += points * groups * blocks_of(pitch) * wide;
            } else {
                weights += points * groups * pitch * wide;
            }
            bias += wide;
        }
    }
    // Long enough that what segments compute twice, at their ends, is little; short enough for the caches, and for all
    // cores to have some.
    long length = 262144 / pitch < 2048 ? 2048 : 262144 / pitch;
    const long share = (r.batch * r.frames + Threads::cores() - 1) / Threads::cores();
    if (share < length) length = share < 256 ? 256 : share;
    const long segments = (r.frames + length - 1) / length;
    length = (r.frames + segments - 1) / segments;
    return threads.run(r.batch * segments, [&](long task) {
        const long entry = task / segments, first = task % segments * length;
        const long last = first + length < r.frames ? first + length : r.frames;
        for (long block = 0; block < r.blocks && first < last; block++)
            residual_block(r, steps + block * per_block, per_block, entry, first, last, block > 0);
    });
}
