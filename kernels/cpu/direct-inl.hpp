// Convolutions of few channels: time runs along the vectors, and each channel is a plane of its own.
//
// Panels of 32 columns would be mostly zeros here. A sample's sum starts at its bias and runs over taps and then channels,
// whatever lies beside it in a vector. So it has the same bits however the work is cut.
//
// Expects: included by kernels-inl.hpp after convolution-inl.hpp, in the namespace of one instruction set within mkc;
// Vector and its functions, kPanel, activate; from operators.hpp Convolution, ResidualBlocks, Threads and Scratch;
// <cstring>.

constexpr int kOuts = Vector::kWidth == 16 ? 8 : 6;         // output channels of a register tile, at most
constexpr int kRegisters = Vector::kWidth == 16 ? 31 : 15;  // of 32 and 16: compilers spill one where all are taken
constexpr long kSpare = 2 * Vector::kWidth;                 // samples past a plane's end that whole vectors may touch

// Samples [first, last) of some channels.
struct Planes {
    float* memory = nullptr;
    long first = 0, last = 0, pitch = 0;
    float* at(long channel, long t) const { return memory + channel * pitch + t - first; }
};

// From one channel to the next: an odd number of cache lines, so that channels do not share the same lines of the cache.
inline long pitch_of(long samples) { return ((samples + kSpare + 15) / 16 | 1) * 16; }

// A convolution with weights in panels: (panels, kernel * inputs, 32); see export/graphs/packing.py.
struct Filter {
    const float* weights;
    const float* bias;
    long inputs, outputs, kernel, dilation;
    // Samples to either side that the convolution reads.
    long reach() const { return dilation * ((kernel - 1) / 2); }
};

// Vectors of samples of a register tile: besides the sums, the fewer of inputs and weights stay in registers, and one of
// the others.
constexpr int vectors_of(int outs) {
    int vectors = 8;
    while (outs * vectors + (outs < vectors ? outs : vectors) + 1 > kRegisters) vectors--;
    return vectors;
}

// outs x vectors of sums; x points to what the first tap reads for the first sample.
template <int outs, int vectors, class Take>
inline __attribute__((always_inline)) void direct_tile(const Filter& f, const float* x, long pitch, long out, Take take) {
    Vector sums[outs][vectors];
    const float* w = f.weights + out / kPanel * f.kernel * f.inputs * kPanel + out % kPanel;
#pragma GCC unroll 8
    for (int o = 0; o < outs; o++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sums[o][v] = Vector::all(f.bias[out + o]);
    for (long tap = 0; tap < f.kernel; tap++) {
        const float* at = x + tap * f.dilation;
        for (long c = 0; c < f.inputs; c++) {
            if constexpr (vectors > outs) {
                Vector weights[outs];
#pragma GCC unroll 8
                for (int o = 0; o < outs; o++) weights[o] = Vector::all(w[o]);
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++) {
                    Vector input = Vector::load(at + v * Vector::kWidth);
                    if constexpr (outs > 1) hold(input);
#pragma GCC unroll 8
                    for (int o = 0; o < outs; o++) sums[o][v] = fma(weights[o], input, sums[o][v]);
                }
            } else {
                Vector inputs[vectors];
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++) {
                    inputs[v] = Vector::load(at + v * Vector::kWidth);
                    hold(inputs[v]);
                }
#pragma GCC unroll 8
                for (int o = 0; o < outs; o++) {
                    const Vector weight = Vector::all(w[o]);
#pragma GCC unroll 8
                    for (int v = 0; v < vectors; v++) sums[o][v] = fma(weight, inputs[v], sums[o][v]);
                }
            }
            at += pitch;
            w += kPanel;
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < outs; o++)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) take(out + o, v * Vector::kWidth, sums[o][v]);
}

// `count` outputs from `out` on, for `samples` samples; past their end up to a vector's width less one more.
template <int outs = kOuts, class Take>
inline void direct_outputs(long count, const Filter& f, const float* x, long pitch, long out, long samples, Take take) {
    if (count == outs) {
        constexpr int vectors = vectors_of(outs);
        constexpr long step = vectors * Vector::kWidth;
        long t = 0;
        for (; t + step <= samples; t += step)
            direct_tile<outs, vectors>(f, x + t, pitch, out, [&](long o, long i, Vector v) { take(o, t + i, v); });
        for (; t < samples; t += Vector::kWidth)
            direct_tile<outs, 1>(f, x + t, pitch, out, [&](long o, long i, Vector v) { take(o, t + i, v); });
    } else if constexpr (outs > 1) {
        direct_outputs<outs - 1>(count, f, x, pitch, out, samples, take);
    }
}

// All outputs for `samples` samples, each vector handed to `take`: (output, sample, vector).
template <class Take>
inline void direct(const Filter& f, const float* x, long pitch, long samples, Take take) {
    // No tile lies in two panels, and all are of like size.
    for (long panel = 0; panel < f.outputs; panel += kPanel) {
        const long end = f.outputs - panel < kPanel ? f.outputs : panel + kPanel;
        long out = panel;
        for (long tiles = (end - panel + kOuts - 1) / kOuts; tiles > 0; tiles--) {
            const long count = (end - out + tiles - 1) / tiles;
            direct_outputs(count, f, x, pitch, out, samples, take);
            out += count;
        }
    }
}

// Rows of channels to planes and back, some rows at a time so that they stay in the first-level cache.
constexpr long kTurned = 64;

inline void to_planes(const float* rows, long channels, long frames, float* planes, long pitch) {
    for (long begin = 0; begin < frames; begin += kTurned) {
        const long end = begin + kTurned < frames ? begin + kTurned : frames;
        for (long c = 0; c < channels; c++)
            for (long t = begin; t < end; t++) planes[c * pitch + t] = rows[t * channels + c];
    }
}

// Values [from, to) of the rows laid end to end.
inline void to_rows(const float* planes, long pitch, long channels, long from, long to, float* rows) {
    if (from >= to) return;
    const long frames = (to + channels - 1) / channels;
    for (long begin = from / channels; begin < frames; begin += kTurned) {
        const long end = begin + kTurned < frames ? begin + kTurned : frames;
        const bool whole = begin * channels >= from && end * channels <= to;
        for (long c = 0; c < channels; c++)
            for (long t = begin; t < end; t++) {
                const long at = t * channels + c;
                if (whole || (at >= from && at < to)) rows[at - from] = planes[c * pitch + t];
            }
    }
}

// Zeros outside the sequence, of what a plane holds for [from, to).
inline void clear_outside(const Planes& planes, long channels, long from, long to, long frames) {
    const long before = to < 0 ? to : 0, after = from > frames ? from : frames;
    for (long c = 0; c < channels; c++) {
        if (from < before) std::memset(planes.at(c, from), 0, (before - from) * sizeof(float));
        if (after < to) std::memset(planes.at(c, after), 0, (to - after) * sizeof(float));
    }
}

// Samples [first, last) of a stage's blocks, summed.
inline void direct_segment(const ResidualBlocks& r, const Filter* filters, long per_block, long widest, long entry,
                           long first, long last) {
    static thread_local Scratch memory;
    const long channels = r.channels, from = first - widest, to = last + widest, pitch = pitch_of(to - from);
    float* at = memory.floats(6 * channels * pitch);
    const auto next = [&] {
        const Planes planes{at, from, to, pitch};
        at += channels * pitch;
        return planes;
    };
    const Planes input = next(), activated = next(), total = next(), current = next(), even = next(), odd = next();
    const Vector leak = Vector::all(r.slope);
    const long inner = from > 0 ? from : 0, outer = to < r.frames ? to : r.frames;
    to_planes(r.input + (entry * r.frames + inner) * channels, channels, outer - inner, input.at(0, inner), pitch);
    for (long c = 0; c < channels; c++)
        for (long t = inner; t < outer; t += Vector::kWidth)
            leaky(Vector::load(input.at(c, t)), leak).store(activated.at(c, t));
    clear_outside(activated, channels, from, to, r.frames);
    for (long block = 0; block < r.blocks; block++) {
        const Filter* steps = filters + block * per_block;
        long reach = 0;
        for (long i = 0; i < per_block; i++) reach += steps[i].reach();
        Planes source = activated, target = even, base = input;
        for (long i = 0; i < per_block; i++) {
            const Filter& step = steps[i];
            reach -= step.reach();
            const long begin = first - reach > 0 ? first - reach : 0;
            const long end = last + reach < r.frames ? last + reach : r.frames;
            const float* x = source.at(0, begin - step.reach());
            if (r.plain && i % 2 == 0) {
                direct(step, x, pitch, end - begin, [&](long c, long t, Vector value) {
                    leaky(value, leak).store(target.at(c, begin + t));
                });
            } else if (i + 1 < per_block) {
                direct(step, x, pitch, end - begin, [&](long c, long t, Vector value) {
                    value = value + Vector::load(base.at(c, begin + t));
                    value.store(current.at(c, begin + t));
                    leaky(value, leak).store(target.at(c, begin + t));
                });
                base = current;
            } else {
                direct(step, x, pitch, end - begin, [&](long c, long t, Vector value) {
                    value = value + Vector::load(base.at(c, begin + t));
                    float* sum = total.at(c, begin + t);
                    (block > 0 ? value + Vector::load(sum) : value).store(sum);
                });
            }
            clear_outside(target, channels, first - reach, last + reach, r.frames);
            source = target;
            target = source.memory == even.memory ? odd : even;
        }
    }
    to_rows(total.at(0, first), pitch, channels, 0, (last - first) * channels,
            r.output + (entry * r.frames + first) * channels);
}

inline ort::Status* direct_blocks(const ResidualBlocks& r, const Threads& threads) {
    if (r.frames <= 0 || r.batch <= 0) return nullptr;
    const long per_block = r.pairs * (r.plain ? 2 : 1), panels = (r.channels + kPanel - 1) / kPanel;
    Filter filters[kMostSteps];
    long made = 0, widest = 0;
    const float *weights = r.weights, *bias = r.biases;
    for (long block = 0; block < r.blocks; block++) {
        long reach = 0;
        for (long i = 0; i < per_block; i++) {
            const bool dilated = !r.plain || i % 2 == 0;
            const long dilation = dilated ? r.dilations[block * r.pairs + (r.plain ? i / 2 : i)] : 1;
            filters[made] = {weights, bias, r.channels, r.channels, r.kernels[block], dilation};
            reach += filters[made++].reach();
            weights += panels * r.kernels[block] * r.channels * kPanel;
            bias += panels * kPanel;
        }
        if (reach > widest) widest = reach;
    }
    // As for Winograd's method: ends are computed twice, all planes shall stay in the second-level cache, and all cores
    // shall have some.
    long length = 24576 / r.channels;
    if (length < 8 * widest) length = 8 * widest;
    const long share = (r.batch * r.frames + Threads::cores() - 1) / Threads::cores();
    if (share < length) length = share < 256 ? 256 : share;
    const long segments = (r.frames + length - 1) / length;
    length = (r.frames + segments - 1) / segments;
    return threads.run(r.batch * segments, [&](long task) {
        const long entry = task / segments, first = task % segments * length;
        const long last = first + length < r.frames ? first + length : r.frames;
        if (first < last) direct_segment(r, filters, per_block, widest, entry, first, last);
    });
}

// Few columns: a panel of 32 would be mostly zeros.
constexpr long kFewColumns = 16;

inline bool has_few_columns(const Convolution& c) {
    return c.columns <= kFewColumns && c.groups == 1 && c.stride == 1 && !c.residual && c.activation != Activation::kGlu;
}

inline ort::Status* convolve_few(const Convolution& c, const Threads& threads) {
    const Filter filter{c.weights, c.bias, c.channels, c.columns, c.kernel, 1};
    // Rows at a time: planes of the input in the first or second-level cache, and tasks for all cores.
    long length = 16384 / c.channels / 96 * 96;
    if (length < 192) length = 192;
    const long share = (c.batch * c.rows + Threads::cores() - 1) / Threads::cores();
    if (share < length) length = share < 192 ? 192 : share;
    const long blocks = (c.rows + length - 1) / length;
    return threads.run(c.batch * blocks, [&](long task) {
        static thread_local Scratch memory;
        const long entry = task / blocks, first = task % blocks * length;
        const long last = first + length < c.rows ? first + length : c.rows;
        const long from = first - c.left, to = last - 1 - c.left + c.kernel, pitch = pitch_of(to - from);
        float* at = memory.floats((c.channels + c.columns) * pitch);
        const Planes input{at, from, to, pitch}, made{at + c.channels * pitch, 0, last - first, pitch};
        const long inner = from > 0 ? from : 0, outer = to < c.frames ? to : c.frames;
        if (inner < outer)
            to_planes(c.input + (entry * c.frames + inner) * c.channels, c.channels, outer - inner, input.at(0, inner),
                      pitch);
        if (c.slope != 1.0f)
            for (long channel = 0; channel < c.channels; channel++)
                for (long t = inner; t < outer; t += Vector::kWidth)
                    leaky(Vector::load(input.at(channel, t)), Vector::all(c.slope)).store(input.at(channel, t));
        clear_outside(input, c.channels, from, to, c.frames);
        direct(filter, input.at(0, from), pitch, last - first, [&](long column, long row, Vector value) {
            activate(value, c.activation).store(made.at(column, row));
        });
        // A row's columns are consecutive values of the output, of which the first `crop` frames are dropped.
        const long length_out = c.out_frames * c.out_channels, shift = c.crop * c.out_channels;
        long start = first * c.columns - shift, end = last * c.columns - shift;
        if (end > length_out) end = length_out;
        const long skipped = start < 0 ? -start : 0;
        to_rows(made.memory, pitch, c.columns, skipped, end - start, c.output + entry * length_out + start + skipped);
    });
}
