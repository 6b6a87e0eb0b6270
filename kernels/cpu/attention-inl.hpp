// Multi-head attention, one head and a block of queries at a time, so that the scores stay in the cache.
//
// Expects: included by kernels-inl.hpp after simd-inl.hpp and product-inl.hpp, in the namespace of one instruction set
// within mkc; Vector, exponential, tile_of, tile_of_width, kPanel, kSub, kRows; from operators.hpp Attention, Threads and
// Scratch; <cstring>.
//
// A block takes these steps: copy_queries, multiply_keys, add_positions and softmax of each query, and
// multiply_values. The keys and values of all heads are packed before, once for all blocks.

constexpr long kQueries = 56;  // of a block: 4 register tiles of 14 rows

// Sizes that follow from those of the operator, in floats.
struct AttentionSizes {
    long frame;                     // from a frame's queries, keys and values to those of the next
    long key_panels, value_panels;  // of one head
    long keys, values;              // packed, of one head
    long columns;                   // scores of a query, filled up to whole panels
    long score_stride;              // from the scores of a query to those of the next

    explicit AttentionSizes(const Attention& a)
        : frame(3 * a.heads * a.width),
          key_panels((a.frames + kPanel - 1) / kPanel),
          value_panels((a.width + kPanel - 1) / kPanel),
          keys(key_panels * a.width * kPanel),
          values(value_panels * a.frames * kPanel),
          columns(key_panels * kPanel),
          // 16 more than a multiple of 32, so that rows do not fall on the same lines of the cache.
          score_stride(columns + 16) {}
};

// Queries [first, first + count) of one head of one batch entry.
struct QueryBlock {
    long entry, head, first, count;
};

// The keys of one head, (frames, width) in rows `frame` apart, as weights: (key_panels, width, 32).
inline void pack_keys(const Attention& a, const AttentionSizes& sizes, const float* keys, float* packed) {
    for (long panel = 0; panel < sizes.key_panels; panel++) {
        for (long j = 0; j < kPanel; j++) {
            const long frame = panel * kPanel + j;
            float* out = packed + panel * a.width * kPanel + j;
            for (long p = 0; p < a.width; p++) out[p * kPanel] = frame < a.frames ? keys[frame * sizes.frame + p] : 0.0f;
        }
    }
}

// The values of one head, (frames, width) in rows `frame` apart, as weights: (value_panels, frames, 32).
inline void pack_values(const Attention& a, const AttentionSizes& sizes, const float* values, float* packed) {
    for (long panel = 0; panel < sizes.value_panels; panel++) {
        const long count = a.width - panel * kPanel < kPanel ? a.width - panel * kPanel : kPanel;
        for (long frame = 0; frame < a.frames; frame++) {
            float* out = packed + (panel * a.frames + frame) * kPanel;
            std::memcpy(out, values + frame * sizes.frame + panel * kPanel, count * sizeof(float));
            std::memset(out + count, 0, (kPanel - count) * sizeof(float));
        }
    }
}

// The block's queries as consecutive rows (count, width).
inline void copy_queries(const Attention& a, const AttentionSizes& sizes, const QueryBlock& block, float* queries) {
    const float* from = a.projected + (a.frames * block.entry + block.first) * sizes.frame + block.head * a.width;
    for (long i = 0; i < block.count; i++)
        std::memcpy(queries + i * a.width, from + i * sizes.frame, a.width * sizeof(float));
}

// Scores (count, columns): queries times packed keys.
inline void multiply_keys(const Attention& a, const AttentionSizes& sizes, long count, const float* queries,
                          const float* keys, float* scores) {
    const long stride = sizes.score_stride;
    for (long panel = 0; panel < sizes.key_panels; panel++)
        for (int sub = 0; sub < kPanel; sub += kSub)
            for (long i = 0; i < count; i += kRows) {
                float* at = scores + i * stride + panel * kPanel + sub;
                tile_of<false>(
                    static_cast<int>(count - i < kRows ? count - i : kRows), queries + i * a.width, a.width,
                    keys + panel * a.width * kPanel + sub, static_cast<int>(a.width),
                    [](int, int) { return Vector::zero(); },
                    [=](int row, int j, Vector sum) { sum.store(at + row * stride + j * Vector::kWidth); });
            }
}

// The mask of each key (columns,); keys past the last frame are masked.
inline void copy_mask(const Attention& a, const AttentionSizes& sizes, long entry, float* mask) {
    for (long k = 0; k < sizes.columns; k++) mask[k] = k < a.frames ? a.mask[entry * a.frames + k] : -1e30f;
}

// The table of positions by distance: biases[k - q + count - 1] for key k and query q of the block.
inline void copy_positions(const Attention& a, const AttentionSizes& sizes, const QueryBlock& block, float* biases) {
    const float* table = a.table + block.head * (2 * a.reach + 1) + a.reach;
    for (long k = 1 - block.count; k < sizes.columns; k++) {
        const long distance = k - block.first < -a.reach  ? -a.reach
                              : k - block.first > a.reach ? a.reach
                                                          : k - block.first;
        biases[k + block.count - 1] = table[distance];
    }
}

// Adds the mask and, where there are some, gate * biases to the scores of one query; returns the largest of each lane.
inline Vector add_positions(long columns, const float* mask, const float* biases, float gate, float* scores) {
    Vector top = Vector::all(-1e38f);
    for (long k = 0; k < columns; k += Vector::kWidth) {
        Vector score = Vector::load(scores + k) + Vector::load(mask + k);
        if (biases) score = fma(Vector::all(gate), Vector::load(biases + k), score);
        score.store(scores + k);
        top = max(top, score);
    }
    return top;
}

// Replaces the scores of one query by e^(score - largest); returns one over their sum, which normalizes them.
inline float softmax(long columns, Vector top, float* scores) {
    const Vector shift = Vector::all(highest(top));
    Vector total = Vector::zero();
    for (long k = 0; k < columns; k += Vector::kWidth) {
        // Below e^-80 a weight is nothing in float32, and numbers so small would be slow.
        const Vector score = Vector::load(scores + k) - shift;
        const Vector weight = where_positive(score + Vector::all(80.0f), exponential(score), Vector::zero());
        weight.store(scores + k);
        total = total + weight;
    }
    return 1.0f / sum(total);
}

// Writes the block's output: weights times packed values, times the normalization of each query.
inline void multiply_values(const Attention& a, const AttentionSizes& sizes, const QueryBlock& block,
                            const float* weights, const float* normalization, const float* values, float* mixed) {
    const long count = block.count, stride = sizes.score_stride;
    for (long panel = 0; panel < sizes.value_panels; panel++) {
        const long wide = a.width - panel * kPanel < kPanel ? a.width - panel * kPanel : kPanel;
        for (int sub = 0; sub < wide; sub += kSub)
            for (long i = 0; i < count; i += kRows) {
                float* at = mixed + i * kPanel + sub;
                const float* scale = normalization + i;
                tile_of_width<false>(
                    wide - sub, static_cast<int>(count - i < kRows ? count - i : kRows), weights + i * stride, stride,
                    values + panel * a.frames * kPanel + sub, static_cast<int>(a.frames),
                    [](int, int) { return Vector::zero(); },
                    [=](int r, int j, Vector sum) {
                        (sum * Vector::all(scale[r])).store(at + r * kPanel + j * Vector::kWidth);
                    });
            }
        for (long i = 0; i < count; i++)
            std::memcpy(a.output + ((block.entry * a.frames + block.first + i) * a.heads + block.head) * a.width +
                            panel * kPanel,
                        mixed + i * kPanel, wide * sizeof(float));
    }
}

// One block of queries, from the packed keys and values of its head to its rows of the output.
inline void attend_block(const Attention& a, const AttentionSizes& sizes, const QueryBlock& block, const float* keys,
                         const float* values) {
    static thread_local Scratch query_memory, score_memory, addend_memory, mixed_memory;
    const long count = block.count;
    float* queries = query_memory.floats((count + kRows) * a.width);
    float* scores = score_memory.floats((count + kRows) * sizes.score_stride);
    float* mask = addend_memory.floats(2 * sizes.columns + count + kPanel);
    float* biases = a.table ? mask + sizes.columns : nullptr;
    float normalization[kQueries];
    copy_queries(a, sizes, block, queries);
    multiply_keys(a, sizes, count, queries, keys, scores);
    copy_mask(a, sizes, block.entry, mask);
    if (biases) copy_positions(a, sizes, block, biases);
    for (long i = 0; i < count; i++) {
        float* row = scores + i * sizes.score_stride;
        const float gate = a.gate ? a.gate[(block.entry * a.heads + block.head) * a.frames + block.first + i] : 1.0f;
        const Vector top = add_positions(sizes.columns, mask, biases ? biases + count - 1 - i : nullptr, gate, row);
        normalization[i] = softmax(sizes.columns, top, row);
    }
    float* mixed = mixed_memory.floats((count + kRows) * kPanel);
    multiply_values(a, sizes, block, scores, normalization, values, mixed);
}

inline ort::Status* attend(const Attention& a, const Threads& threads) {
    if (a.frames <= 0 || a.batch <= 0) return nullptr;
    const AttentionSizes sizes(a);
    const long heads = a.batch * a.heads, blocks = (a.frames + kQueries - 1) / kQueries;
    Scratch shared;
    float* packed_keys = shared.floats(heads * (sizes.keys + sizes.values));
    float* packed_values = packed_keys + heads * sizes.keys;
    ort::Status* failed = threads.run(heads, [&](long task) {
        const long entry = task / a.heads, head = task % a.heads;
        const float* keys = a.projected + entry * a.frames * sizes.frame + (a.heads + head) * a.width;
        pack_keys(a, sizes, keys, packed_keys + task * sizes.keys);
        pack_values(a, sizes, keys + a.heads * a.width, packed_values + task * sizes.values);
    });
    if (failed) return failed;
    return threads.run(heads * blocks, [&](long task) {
        const long which = task / blocks, first = task % blocks * kQueries;
        const long count = a.frames - first < kQueries ? a.frames - first : kQueries;
        const QueryBlock block{which / a.heads, which % a.heads, first, count};
        attend_block(a, sizes, block, packed_keys + which * sizes.keys, packed_values + which * sizes.values);
    });
}
