// What a core can do at most: register tiles over a few numbers that stay in the first-level cache, again and again.
//
// Expects: included by kernels-inl.hpp after product-inl.hpp and tiles-inl.hpp, in the namespace of one instruction set
// within mkc; Vector, Integers, tile, whole_tile, kPanel, kRows.

constexpr int kPeakSteps = 64;  // 64 x 32 words of weights: 8 KB

template <class Input>
inline double exercise_whole(long rounds) {
    alignas(64) static const int inputs[kRows * kPeakSteps] = {}, weights[kPeakSteps * kPanel] = {}, offsets[kPanel] = {};
    for (long round = 0; round < rounds; round++)
        whole_tile<Input, kRows, 2>(inputs, kPeakSteps, weights, kPeakSteps, offsets,
                                    [](int, int, const Integers& sum) { keep(sum); });
    return 2.0 * Whole<Input>::kTogether * kRows * 2 * Vector::kWidth * kPeakSteps * static_cast<double>(rounds);
}

#ifdef MKC_TILES
// Products of tiles that are loaded once.
inline double exercise_tiles(long rounds) {
    constexpr int kProducts = 4;
    alignas(64) static const int zeros[kTileWords * kTileWords] = {};
    alignas(64) int sums[kTileWords * kTileWords];
    const TilesInUse in_use(true);
    load_tile<0>(zeros, 64);
    load_tile<1>(zeros, 64);
    load_tile<4>(zeros, 64);
    load_tile<5>(zeros, 64);
    clear_tile<6>();
    clear_tile<7>();
    for (long round = 0; round < rounds; round++) {
        add_tile_products<6, 4, 0>();
        add_tile_products<7, 4, 1>();
        add_tile_products<6, 5, 0>();
        add_tile_products<7, 5, 1>();
    }
    store_tile<6>(sums, 64);
    store_tile<7>(sums, 64);
    keep(Integers::load(sums));
    return 2.0 * kProducts * kRows * kTileWords * 64 * static_cast<double>(rounds);
}
#endif

// Does so many rounds in float32 or in whole numbers of 16 or 8 bits; returns the multiplications and additions in them.
inline double exercise(long bits, long rounds) {
    if (bits == 16) return exercise_whole<int16_t>(rounds);
#ifdef MKC_TILES
    if (bits == 8) return exercise_tiles(rounds);
#endif
    if (bits == 8) return exercise_whole<uint8_t>(rounds);
    alignas(64) static const float inputs[kRows * kPeakSteps] = {}, weights[kPeakSteps * kPanel] = {};
    for (long round = 0; round < rounds; round++)
        tile<kRows, true>(inputs, 0, weights, kPeakSteps, [](int, int) { return Vector::zero(); },
                          [](int, int, const Vector& sum) { keep(sum); });
    return 2.0 * kRows * 2 * Vector::kWidth * kPeakSteps * static_cast<double>(rounds);
}
