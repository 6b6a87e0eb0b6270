// Windows times weights, in blocks of rows that fit the caches.
//
// Expects: included by kernels-inl.hpp after simd-inl.hpp, product-inl.hpp and tiles-inl.hpp, in the namespace of one
// instruction set within mkc; Vector and its functions, tile_of, kPanel, kSub, kRows, WholeFrames, add_block; from
// operators.hpp Convolution, Threads and Scratch; <cstring>. It declares has_few_columns and convolve_few, which direct-inl.hpp defines.

constexpr long kDepth = 256;      // 256 x 32 weights stay in the first-level cache while the rows pass by
constexpr long kBlockRows = 126;  // 9 register tiles of 14 rows, 21 of 6
constexpr long kBlockPanels = 16;
constexpr long kFewPanels = 8, kShort = 512;

// Rows [first, last) of a batch entry, as `tile` wants them: p by p, kRows together.
//
// Stores whole vectors, up to kWidth - kRows floats past the end.
inline void pack_rows(const Convolution& c, const float* entry, long first, long last, float* packed) {
    const long depth = c.kernel * c.channels, length = c.frames * c.channels;
    const Vector leak = Vector::all(c.slope);
    for (long row = first; row < last; row += kRows) {
        const long count = last - row < kRows ? last - row : kRows;
        for (long p0 = 0; p0 < depth; p0 += Vector::kWidth) {
            const long width = depth - p0 < Vector::kWidth ? depth - p0 : Vector::kWidth;
            Vector block[Vector::kWidth];
            for (long i = 0; i < Vector::kWidth; i++) {
                const long start = ((row + i) * c.stride - c.left) * c.channels + p0;
                if (i >= count) {
                    block[i] = Vector::zero();
                } else if (start >= 0 && start + Vector::kWidth <= length) {
                    block[i] = Vector::load(entry + start);
                } else {
                    alignas(64) float part[Vector::kWidth] = {};
                    for (long p = 0; p < width; p++)
                        if (start + p >= 0 && start + p < length) part[p] = entry[start + p];
                    block[i] = Vector::load(part);
                }
                if (c.slope != 1.0f) block[i] = leaky(block[i], leak);
            }
            turn(block);
            for (long p = 0; p < width; p++) {
                block[p].store(packed);
                packed += kRows;
            }
        }
    }
}

inline Vector activate(Vector x, Activation activation) {
    switch (activation) {
        case Activation::kGelu: return gelu(x);
        case Activation::kSilu: return x * sigmoid(x);
        default: return x;
    }
}

// `count` sums of one row, at most a panel of them, from column `column` on, to where they belong.
inline void finish_row(const Convolution& c, const float* sums, long entry, long row, long column, long count) {
    alignas(64) float values[kPanel];
    long out_column = column;
    alignas(64) float bias[kPanel];
    const float* added = c.bias + column;
    if (count < kPanel) {
        std::memset(bias, 0, sizeof bias);
        std::memcpy(bias, added, count * sizeof(float));
        added = bias;
    }
    const long width = Vector::kWidth;
    if (c.activation == Activation::kGlu) {
        // A panel holds 16 columns and then their 16 gates.
        for (long j = 0; j < kPanel / 2; j += width) {
            const Vector value = Vector::load(sums + j) + Vector::load(added + j);
            const Vector gate = Vector::load(sums + kPanel / 2 + j) + Vector::load(added + kPanel / 2 + j);
            (value * sigmoid(gate)).store(values + j);
        }
        out_column = column / 2;
        count = kPanel / 2;
        if (out_column + count > c.out_channels) count = c.out_channels - out_column;
    } else {
        for (long j = 0; j < kPanel; j += width)
            activate(Vector::load(sums + j) + Vector::load(added + j), c.activation).store(values + j);
    }
    long start = (row * c.rate - c.crop) * c.out_channels + out_column;
    const long length = c.out_frames * c.out_channels;
    const float* from = values;
    if (start < 0) {
        from -= start;
        count += start;
        start = 0;
    }
    if (start + count > length) count = length - start;
    float* out = c.output + entry * length + start;
    if (count == kPanel && !c.residual) {
        for (long j = 0; j < kPanel; j += width) Vector::load(values + j).store(out + j);
    } else if (count == kPanel) {
        const float* residual = c.residual + entry * length + start;
        for (long j = 0; j < kPanel; j += width) (Vector::load(values + j) + Vector::load(residual + j)).store(out + j);
    } else {
        const float* residual = c.residual ? c.residual + entry * length + start : nullptr;
        for (long j = 0; j < count; j++) out[j] = from[j] + (residual ? residual[j] : 0.0f);
    }
}

// One block: rows [first, last) of a batch entry, panels [panel, panel_end).
inline void convolve_block(const Convolution& c, long entry, long first, long last, long panel, long panel_end) {
    static thread_local Scratch packed_memory, sums_memory;
    const long depth = c.kernel * c.channels, tiles = (last - first + kRows - 1) / kRows;
    const float* input = c.input + entry * c.frames * c.channels;
    // Few panels do not make up for packing, unless long rows would fall on the same lines of the cache. The sums are the
    // same either way, in the same order.
    const bool inside = first * c.stride >= c.left && (last - 1) * c.stride - c.left + c.kernel <= c.frames;
    const bool pack = !inside || c.slope != 1.0f || panel_end - panel > kFewPanels || depth > kShort;
    const long step = c.stride * c.channels;
    const float* rows = input + first * step - c.left * c.channels;
    float* packed = nullptr;
    if (pack) {
        packed = packed_memory.floats(tiles * kRows * depth + Vector::kWidth);
        pack_rows(c, input, first, last, packed);
    }
    float* sums = sums_memory.floats(tiles * kBlockPanels * kRows * kPanel);
    for (long from = panel; from < panel_end; from += kBlockPanels) {
        const long to = from + kBlockPanels < panel_end ? from + kBlockPanels : panel_end;
        for (long begin = 0; begin < depth; begin += kDepth) {
            const int count = static_cast<int>(depth - begin < kDepth ? depth - begin : kDepth);
            for (long p = from; p < to; p++) {
                for (int sub = 0; sub < kPanel; sub += kSub) {
                    const float* weights = c.weights + (p * depth + begin) * kPanel + sub;
                    for (long t = 0; t < tiles; t++) {
                        float* at = sums + ((p - from) * tiles + t) * kRows * kPanel + sub;
                        const auto start = [=](int i, int j) {
                            return begin ? Vector::load(at + i * kPanel + j * Vector::kWidth) : Vector::zero();
                        };
                        const auto finish = [=](int i, int j, Vector sum) {
                            sum.store(at + i * kPanel + j * Vector::kWidth);
                        };
                        const long left = last - first - t * kRows;
                        const int height = static_cast<int>(left < kRows ? left : kRows);
                        if (pack)
                            tile_of<true>(height, packed + t * kRows * depth + begin * kRows, 0, weights, count, start,
                                          finish);
                        else
                            tile_of<false>(height, rows + t * kRows * step + begin, step, weights, count, start, finish);
                    }
                }
            }
        }
        for (long row = first; row < last; row++)
            for (long p = from; p < to; p++)
                finish_row(c, sums + (p - from) * tiles * kRows * kPanel + (row - first) * kPanel, entry, row,
                           p * kPanel, c.columns - p * kPanel < kPanel ? c.columns - p * kPanel : kPanel);
    }
}

// The same of one group of channels, whose windows lie apart in the input: they are copied together first.
inline void convolve_group(const Convolution& c, long entry, long first, long last, long group) {
    static thread_local Scratch frames_memory, sums_memory;
    const long width = c.channels / c.groups, out_width = c.columns / c.groups, depth = c.kernel * width;
    const long tiles = (last - first + kRows - 1) / kRows, panels = (out_width + kPanel - 1) / kPanel;
    const long begin_frame = first * c.stride - c.left;
    const long frames = (last - first - 1) * c.stride + c.kernel;
    float* near = frames_memory.floats(frames * width);
    for (long i = 0; i < frames; i++) {
        const long frame = begin_frame + i;
        if (frame >= 0 && frame < c.frames)
            std::memcpy(near + i * width, c.input + (entry * c.frames + frame) * c.channels + group * width,
                        width * sizeof(float));
        else
            std::memset(near + i * width, 0, width * sizeof(float));
    }
    const long step = c.stride * width;
    float* sums = sums_memory.floats(tiles * panels * kRows * kPanel);
    for (long begin = 0; begin < depth; begin += kDepth) {
        const int count = static_cast<int>(depth - begin < kDepth ? depth - begin : kDepth);
        for (long p = 0; p < panels; p++) {
            for (int sub = 0; sub < kPanel; sub += kSub) {
                const float* weights = c.weights + ((group * panels + p) * depth + begin) * kPanel + sub;
                for (long t = 0; t < tiles; t++) {
                    float* at = sums + (p * tiles + t) * kRows * kPanel + sub;
                    const long left = last - first - t * kRows;
                    tile_of<false>(
                        static_cast<int>(left < kRows ? left : kRows), near + t * kRows * step + begin, step, weights, count,
                        [&](int i, int j) {
                            return begin ? Vector::load(at + i * kPanel + j * Vector::kWidth) : Vector::zero();
                        },
                        [&](int i, int j, Vector sum) { sum.store(at + i * kPanel + j * Vector::kWidth); });
                }
            }
        }
    }
    for (long row = first; row < last; row++)
        for (long p = 0; p < panels; p++)
            finish_row(c, sums + p * tiles * kRows * kPanel + (row - first) * kPanel, entry, row,
                       group * out_width + p * kPanel,
                       out_width - p * kPanel < kPanel ? out_width - p * kPanel : kPanel);
}

// One block of a convolution's rows [first, last), panels [panel, panel_end) of a group.
template <class Input>
inline void convolve_whole(const Convolution& c, long entry, long first, long last, long group, long panel,
                           long panel_end) {
    static thread_local Scratch frames_memory, sums_memory;
    const long width = c.channels / c.groups, out_width = c.columns / c.groups, depth = c.kernel * width;
    const long group_panels = (out_width + kPanel - 1) / kPanel;
    const long tiles = (last - first + kRows - 1) / kRows, begin = first * c.stride - c.left;
    const long count = (last - first - 1) * c.stride + c.kernel;
    const WholeFrames<Input> frames(frames_memory.floats(WholeFrames<Input>::floats(count, width)), count, width);
    const Vector slope = Vector::all(c.slope);
    const TilesInUse tiles_in_use(sizeof(Input) == 1);
    for (long i = 0; i < count; i++) {
        if (begin + i >= 0 && begin + i < c.frames)
            frames.round(i, c.input + (entry * c.frames + begin + i) * c.channels + group * width, c.slope != 1.0f, slope);
        else
            frames.clear(i);
    }
    const long all_blocks = c.kernel * frames.blocks, words = depth / Whole<Input>::kTogether * kPanel;
    float* sums = sums_memory.floats(tiles * kBlockPanels * kRows * kPanel);
    for (long from = panel; from < panel_end; from += kBlockPanels) {
        const long to = from + kBlockPanels < panel_end ? from + kBlockPanels : panel_end;
        for (long which = 0; which < all_blocks; which++) {
            const long tap = which / frames.blocks, block = which % frames.blocks;
            const long word = (tap * width + block * kBlock) / Whole<Input>::kTogether * kPanel;
            for (long p = from; p < to; p++) {
                const long at = group * group_panels + p;
                const WholeWeights weights{static_cast<const int*>(c.whole) + at * words + word,
                                           c.scales + (at * all_blocks + which) * kPanel,
                                           sizeof(Input) == 1 ? c.offsets + (at * all_blocks + which) * kPanel : nullptr};
                add_rows(tiles_in_use, frames, tap, c.stride, block, weights, last - first, which == 0,
                         sums + (p - from) * tiles * kRows * kPanel);
            }
        }
        for (long row = first; row < last; row++)
            for (long p = from; p < to; p++)
                finish_row(c, sums + (p - from) * tiles * kRows * kPanel + (row - first) * kPanel, entry, row,
                           group * out_width + p * kPanel,
                           out_width - p * kPanel < kPanel ? out_width - p * kPanel : kPanel);
    }
}

inline void convolve_in_bits(const Convolution& c, long entry, long first, long last, long group, long panel,
                             long panel_end) {
    if (c.bits == 16)
        convolve_whole<int16_t>(c, entry, first, last, group, panel, panel_end);
    else
        convolve_whole<uint8_t>(c, entry, first, last, group, panel, panel_end);
}

bool has_few_columns(const Convolution& c);
ort::Status* convolve_few(const Convolution& c, const Threads& threads);

inline ort::Status* convolve(const Convolution& c, const Threads& threads) {
    if (c.rows <= 0 || c.batch <= 0 || c.out_frames <= 0) return nullptr;
    if (c.bits == 32 && has_few_columns(c)) return convolve_few(c, threads);
    const long panels = (c.columns + kPanel - 1) / kPanel;
    const long blocks = (c.rows + kBlockRows - 1) / kBlockRows;
    // Blocks of like size, of whole tiles.
    long rows = (c.rows + blocks - 1) / blocks;
    rows = (rows + kRows - 1) / kRows * kRows;
    if (c.groups > 1)
        return threads.run(c.batch * blocks * c.groups, [&](long task) {
            const long group = task % c.groups, block = task / c.groups % blocks, entry = task / c.groups / blocks;
            const long first = block * rows, last = first + rows < c.rows ? first + rows : c.rows;
            if (first >= last) return;
            if (c.bits == 32)
                convolve_group(c, entry, first, last, group);
            else
                convolve_in_bits(c, entry, first, last, group, 0, (c.columns / c.groups + kPanel - 1) / kPanel);
        });
    // Few rows are shared out by columns, so that no core is idle; each task packs its rows anew.
    long splits = 1;
    const auto uneven = [&](long tasks) {
        const long cores = Threads::cores();
        return tasks < cores || (tasks < 2 * cores && tasks % cores != 0);
    };
    while (uneven(c.batch * blocks * splits) && splits * 2 <= panels) splits *= 2;
    const long wide = (panels + splits - 1) / splits;
    return threads.run(c.batch * blocks * splits, [&](long task) {
        const long split = task % splits, block = task / splits % blocks, entry = task / splits / blocks;
        const long first = block * rows, last = first + rows < c.rows ? first + rows : c.rows;
        const long panel = split * wide, end = panel + wide < panels ? panel + wide : panels;
        if (first >= last || panel >= end) return;
        if (c.bits == 32)
            convolve_block(c, entry, first, last, panel, end);
        else
            convolve_in_bits(c, entry, first, last, 0, panel, end);
    });
}
