// What a core can do at most: register tiles over a few numbers that stay in the first-level cache, again and again.
//
// Expects: included by kernels-inl.hpp after product-inl.hpp and whole-inl.hpp, in the namespace of one instruction set
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

// Does so many rounds in float32 or in whole numbers of 16 or 8 bits; returns the multiplications and additions in them.
inline double exercise(long bits, long rounds) {
    if (bits == 16) return exercise_whole<int16_t>(rounds);
    if (bits == 8) return exercise_whole<uint8_t>(rounds);
    alignas(64) static const float inputs[kRows * kPeakSteps] = {}, weights[kPeakSteps * kPanel] = {};
    for (long round = 0; round < rounds; round++)
        tile<kRows, true>(inputs, 0, weights, kPeakSteps, [](int, int) { return Vector::zero(); },
                          [](int, int, const Vector& sum) { keep(sum); });
    return 2.0 * kRows * 2 * Vector::kWidth * kPeakSteps * static_cast<double>(rounds);
}
