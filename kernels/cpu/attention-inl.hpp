// Multi-head attention of one head and some queries at a time: the scores never leave the cache.

constexpr long kQueries = 56;  // 4 register tiles of 14 rows

inline ort::Status* attend(const Attention& a, const Threads& threads) {
    if (a.frames <= 0 || a.batch <= 0) return nullptr;
    const long pitch = 3 * a.heads * a.width;
    const long key_panels = (a.frames + kPanel - 1) / kPanel, value_panels = (a.width + kPanel - 1) / kPanel;
    const long key_size = key_panels * a.width * kPanel, value_size = value_panels * a.frames * kPanel;
    // Keys and values of all heads as panels of weights, once for all blocks of queries.
    Scratch shared;
    float* packed = shared.floats(a.batch * a.heads * (key_size + value_size));
    ort::Status* failed = threads.run(a.batch * a.heads, [&](long task) {
        const long entry = task / a.heads, head = task % a.heads;
        const float* keys = a.projected + entry * a.frames * pitch + (a.heads + head) * a.width;
        const float* values = keys + a.heads * a.width;
        float* key_out = packed + task * (key_size + value_size);
        float* value_out = key_out + key_size;
        for (long panel = 0; panel < key_panels; panel++) {
            for (long j = 0; j < kPanel; j++) {
                const long frame = panel * kPanel + j;
                float* out = key_out + panel * a.width * kPanel + j;
                for (long p = 0; p < a.width; p++) out[p * kPanel] = frame < a.frames ? keys[frame * pitch + p] : 0.0f;
            }
        }
        for (long panel = 0; panel < value_panels; panel++) {
            const long count = a.width - panel * kPanel < kPanel ? a.width - panel * kPanel : kPanel;
            for (long frame = 0; frame < a.frames; frame++) {
                float* out = value_out + (panel * a.frames + frame) * kPanel;
                std::memcpy(out, values + frame * pitch + panel * kPanel, count * sizeof(float));
                std::memset(out + count, 0, (kPanel - count) * sizeof(float));
            }
        }
    });
    if (failed) return failed;
    const long blocks = (a.frames + kQueries - 1) / kQueries;
    return threads.run(a.batch * a.heads * blocks, [&](long task) {
        static thread_local Scratch scores_memory, query_memory, mixed_memory, near_memory;
        const long block = task % blocks, which = task / blocks, entry = which / a.heads, head = which % a.heads;
        const long first = block * kQueries, last = first + kQueries < a.frames ? first + kQueries : a.frames;
        const long count = last - first;
        const float* keys = packed + which * (key_size + value_size);
        const float* values = keys + key_size;
        // 16 more than a multiple of 32, so that rows do not fall on the same lines of the cache.
        const long columns = key_panels * kPanel, stride = columns + 16;
        float* scores = scores_memory.floats((count + kRows) * stride);
        float shares[kQueries];  // what a query's weights, which are not normalized, are multiplied by
        float* queries = query_memory.floats((count + kRows) * a.width);
        for (long i = 0; i < count; i++)
            std::memcpy(queries + i * a.width,
                        a.projected + (entry * a.frames + first + i) * pitch + head * a.width, a.width * sizeof(float));
        for (long panel = 0; panel < key_panels; panel++)
            for (int sub = 0; sub < kPanel; sub += kSub)
                for (long i = 0; i < count; i += kRows) {
                    float* at = scores + i * stride + panel * kPanel + sub;
                    tile_of<false>(
                        static_cast<int>(count - i < kRows ? count - i : kRows), queries + i * a.width, a.width,
                        keys + panel * a.width * kPanel + sub, static_cast<int>(a.width),
                        [](int, int) { return Vector::zero(); },
                        [=](int row, int j, Vector sum) { sum.store(at + row * stride + j * Vector::kWidth); });
                }
        // What the keys' mask and, by distance, the table add.
        float* mask = near_memory.floats(2 * columns + count + kPanel);
        for (long k = 0; k < columns; k++) mask[k] = k < a.frames ? a.mask[entry * a.frames + k] : -1e30f;
        float* near = mask + columns;  // near[k - q + count - 1] of key k and the block's query q
        if (a.table) {
            const float* table = a.table + head * (2 * a.reach + 1) + a.reach;
            for (long k = 1 - count; k < columns; k++) {
                const long distance = k - first < -a.reach ? -a.reach : k - first > a.reach ? a.reach : k - first;
                near[k + count - 1] = table[distance];
            }
        }
        for (long i = 0; i < count; i++) {
            float* row = scores + i * stride;
            Vector top = Vector::all(-1e38f);
            const float gate = a.gate ? a.gate[which * a.frames + first + i] : 1.0f;
            for (long k = 0; k < columns; k += Vector::kWidth) {
                Vector score = Vector::load(row + k) + Vector::load(mask + k);
                if (a.table) score = fma(Vector::all(gate), Vector::load(near + k - i + count - 1), score);
                score.store(row + k);
                top = max(top, score);
            }
            const Vector shift = Vector::all(highest(top));
            Vector total = Vector::zero();
            for (long k = 0; k < columns; k += Vector::kWidth) {
                // Below e^-80 nothing is left of a share in float32, but numbers so small that they would be slow.
                const Vector score = Vector::load(row + k) - shift;
                const Vector weight = where_positive(score + Vector::all(80.0f), exponential(score), Vector::zero());
                weight.store(row + k);
                total = total + weight;
            }
            shares[i] = 1.0f / sum(total);
        }
        float* mixed = mixed_memory.floats((count + kRows) * kPanel);
        for (long panel = 0; panel < value_panels; panel++) {
            const long wide = a.width - panel * kPanel < kPanel ? a.width - panel * kPanel : kPanel;
            for (int sub = 0; sub < wide; sub += kSub)
                for (long i = 0; i < count; i += kRows) {
                    float* at = mixed + i * kPanel + sub;
                    const float* part = shares + i;
                    tile_of_width<false>(
                        wide - sub, static_cast<int>(count - i < kRows ? count - i : kRows), scores + i * stride, stride,
                        values + panel * a.frames * kPanel + sub, static_cast<int>(a.frames),
                        [](int, int) { return Vector::zero(); },
                        [=](int r, int j, Vector sum) {
                            (sum * Vector::all(part[r])).store(at + r * kPanel + j * Vector::kWidth);
                        });
                }
            for (long i = 0; i < count; i++)
                std::memcpy(a.output + ((entry * a.frames + first + i) * a.heads + head) * a.width + panel * kPanel,
                            mixed + i * kPanel, wide * sizeof(float));
        }
    });
}
