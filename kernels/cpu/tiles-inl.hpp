// Products of a block with all rows of a task: by register tiles or, in 8 bits, by AMX where MKC_TILES is defined.
//
// A tile of AMX multiplies in 8 bits alone. The sums are the same whole numbers, so the bits are those of every other set
// of instructions. The weights of a block and a panel, 128 x 32, fill four tiles, which stay while the rows pass by.
//
// Expects: included by kernels-inl.hpp after whole-inl.hpp, in the namespace of one instruction set within mkc; add_block,
// WholeFrames, WholeWeights, kRows, kPanel, kBlock; with MKC_TILES <immintrin.h> and tiles.hpp.

#ifdef MKC_TILES

constexpr int kTileWords = 16;  // in a row of a tile
static_assert(kBlock == 4 * 2 * kTileWords && kPanel == 2 * kTileWords && kRows <= 16, "the tiles are laid out for these");

// Gives the tiles their shapes while it lives. Weights: tiles 0 to 3. Inputs: 4 and 5. Sums: 6 and 7.
struct TilesInUse {
    explicit TilesInUse(bool wanted) : used(wanted) {
        if (!used) return;
        TileShapes shapes;
        for (int tile = 0; tile < 8; tile++) {
            shapes.bytes_of_row[tile] = 64;
            shapes.rows[tile] = tile < 4 ? kTileWords : kRows;
        }
        configure_tiles(shapes);
    }
    ~TilesInUse() {
        if (used) release_tiles();
    }
    TilesInUse(const TilesInUse&) = delete;
    TilesInUse& operator=(const TilesInUse&) = delete;
    const bool used;
};

// Whole tiles of rows of a whole block, as add_block does it.
inline void add_by_tiles(const WholeFrames<uint8_t>& frames, long frame, long step, long block,
                         const WholeWeights& weights, long tiles, bool fresh, float* sums) {
    constexpr long kLine = kPanel * sizeof(int);
    load_tile<0>(weights.words, kLine);
    load_tile<1>(weights.words + kTileWords, kLine);
    load_tile<2>(weights.words + kTileWords * kPanel, kLine);
    load_tile<3>(weights.words + kTileWords * kPanel + kTileWords, kLine);
    const __m512i offsets[2] = {_mm512_loadu_si512(weights.offsets), _mm512_loadu_si512(weights.offsets + kTileWords)};
    const Vector columns[2] = {Vector::load(weights.scales), Vector::load(weights.scales + kTileWords)};
    const long stride = frames.words(step) * static_cast<long>(sizeof(int));
    alignas(64) int found[kRows * kPanel];
    for (long t = 0; t < tiles; t++) {
        const long first = frame + t * kRows * step;
        const int* a = frames.at(first, block);
        load_tile<4>(a, stride);
        load_tile<5>(a + kTileWords, stride);
        clear_tile<6>();
        clear_tile<7>();
        add_tile_products<6, 4, 0>();
        add_tile_products<7, 4, 1>();
        add_tile_products<6, 5, 2>();
        add_tile_products<7, 5, 3>();
        store_tile<6>(found, kLine);
        store_tile<7>(found + kTileWords, kLine);
        const float* scales = frames.scales + first * frames.blocks + block;
        float* to = sums + t * kRows * kPanel;
        for (int i = 0; i < kRows; i++)
            for (int j = 0; j < 2; j++) {
                const int place = i * kPanel + j * kTileWords;
                const Integers sum{_mm512_add_epi32(_mm512_load_si512(found + place), offsets[j])};
                const Vector scale = Vector::all(scales[i * step * frames.blocks]) * columns[j];
                fma(to_floats(sum), scale, fresh ? Vector::zero() : Vector::load(to + place)).store(to + place);
            }
    }
}

// Whether the tiles of this processor give what register tiles give, of numbers of every size.
inline bool tiles_are_right() {
    constexpr long kTiles = 2, kFrames = kTiles * kRows;
    alignas(64) static float memory[kFrames * (192 / 4 + 1) + 16], found[kFrames * kPanel], expected[kFrames * kPanel];
    alignas(64) static int words[2 * kTileWords * kPanel], offsets[kPanel];
    alignas(64) static float scales[kPanel];
    const WholeFrames<uint8_t> frames(memory, kFrames, kBlock);
    unsigned state = 1;
    const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 8; };
    for (long i = 0; i < kFrames * frames.pitch; i++) frames.values[i] = static_cast<uint8_t>(next());
    for (int& word : words) word = static_cast<int>(next() << 16 ^ next());
    for (int i = 0; i < kPanel; i++) offsets[i] = static_cast<int>(next() & 0xffff), scales[i] = 1.0f + i;
    for (long i = 0; i < kFrames; i++) frames.scales[i] = 1.0f / static_cast<float>(1 + i);
    const WholeWeights weights{words, scales, offsets};
    for (int pass = 0; pass < 2; pass++) {
        const bool fresh = pass == 0;
        const TilesInUse in_use(true);
        add_by_tiles(frames, 0, 1, 0, weights, kTiles, fresh, found);
        for (long t = 0; t < kTiles; t++)
            add_block(frames, t * kRows, 1, 0, weights, 0, kPanel, kRows, fresh, expected + t * kRows * kPanel);
    }
    return std::memcmp(found, expected, sizeof found) == 0;
}

#else

struct TilesInUse {
    explicit TilesInUse(bool) {}
    static constexpr bool used = false;
};

#endif

// Adds a block's products to `rows` rows of sums, in register tiles of (kRows, 32) floats one after the other; otherwise as
// add_block.
template <class Input>
inline void add_rows(const TilesInUse& in_use, const WholeFrames<Input>& frames, long frame, long step, long block,
                     const WholeWeights& weights, long rows, bool fresh, float* sums) {
    long done = 0;
#ifdef MKC_TILES
    if constexpr (sizeof(Input) == 1) {
        if (in_use.used && rows >= kRows && frames.steps(block) * Whole<Input>::kTogether == kBlock) {
            done = rows / kRows;
            add_by_tiles(frames, frame, step, block, weights, done, fresh, sums);
        }
    }
#else
    (void)in_use;
#endif
    for (int sub = 0; sub < kPanel; sub += kSub)
        for (long t = done; t * kRows < rows; t++) {
            const long left = rows - t * kRows;
            add_block(frames, frame + t * kRows * step, step, block, weights, sub, kPanel,
                      static_cast<int>(left < kRows ? left : kRows), fresh, sums + t * kRows * kPanel);
        }
}
