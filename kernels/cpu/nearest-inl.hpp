// The nearest centroids of frames of one bank entry.
//
// Expects: included by kernels-inl.hpp after simd-inl.hpp, in the namespace of one instruction set within mkc; Vector.
//
// 1/2 |x - c|^2 = 1/2 |x|^2 - x.c + 1/2 |c|^2, and the first term is the same for all centroids. The products x.c are
// of float32. A product's error is at most gamma |x| |c| + D 2^-149: gamma = n u / (1 - n u) with the unit roundoff
// u = 2^-24 and the n roundings that a term goes through (Higham, Accuracy and Stability of Numerical Algorithms,
// section 3.1), and 2^-149 for each fused product that is too small for float32. So every centroid that may be the
// nearest is within twice the largest error of the least score, and these are compared in float64.
//
// Centroids may have a copy in float16, divided by a power of two of their entry: half the bytes to read. How far each
// rounded centroid is from its own, |c - c'|, is stored, and |x.c - x.c'| is at most |x| times that. So every centroid
// whose score may be the least within these errors, too, is compared in float64, from the float32 row.
//
// Frames and centroids both lie row by row, so a tile of products is summed along their rows. Each centroid is read once
// for all frames of a task, which stay in the second cache.

// Columns of a tile: with few rows the centroids come from memory, from so many places at a time.
template <int rows>
constexpr int columns_of() {
    return Vector::kWidth == 8 ? 4 : rows <= 3 ? 8 : rows == 4 ? 6 : 4;
}
constexpr int kMostFrames = Vector::kWidth == 8 ? 3 : 6;  // rows of a tile

// Centroids that a tile asks for while it computes, for the tiles to come: so many rows from here.
template <class Element>
struct Ahead {
    const Element* from;
    int rows;
};

inline float number(float x) { return x; }
inline float number(Half x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x.bits))); }

// The products of `rows` frames with `columns` centroids: out[i * pitch + j].
template <int rows, int columns, class Element>
inline void products(const float* frames, const Element* const* centroids, long dim, float* out, long pitch, int kept,
                     Ahead<Element> ahead) {
    constexpr int kWidth = Vector::kWidth;
    Vector each[rows][columns];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) each[i][j] = Vector::zero();
    const long whole = dim / kWidth * kWidth;
    for (long p = 0; p < whole; p += kWidth) {
        // Processors do not fetch ahead past the end of a page, and a centroid may be one. Into the second cache: the
        // first would lose what this tile needs.
        if (p * sizeof(Element) % (kWidth * sizeof(float)) == 0)
            for (int row = 0; row < ahead.rows; row++) __builtin_prefetch(ahead.from + row * dim + p, 0, 2);
        Vector x[rows];
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) x[i] = Vector::load(frames + i * dim + p);
#pragma GCC unroll 8
        for (int j = 0; j < columns; j++) {
            const Vector c = Vector::load(centroids[j] + p);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) each[i][j] = fma(x[i], c, each[i][j]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        float totals[(columns + 3) / 4 * 4];
#pragma GCC unroll 2
        for (int j = 0; j < columns; j += 4)
            _mm_storeu_ps(totals + j, sums(each[i][j], each[i][j + 1], each[i][j + 2 < columns ? j + 2 : j],
                                           each[i][j + 3 < columns ? j + 3 : j]));
        for (int j = 0; j < kept; j++) {
            float total = totals[j];
            for (long p = whole; p < dim; p++) total = __builtin_fmaf(frames[i * dim + p], number(centroids[j][p]), total);
            out[i * pitch + j] = total;
        }
    }
}

template <int rows, int columns, class Element>
inline void products_of(int count, const float* frames, const Element* const* centroids, long dim, float* out,
                        long pitch, int kept, Ahead<Element> ahead) {
    if (count == rows) {
        products<rows, columns>(frames, centroids, dim, out, pitch, kept, ahead);
    } else if constexpr (rows > 1) {
        products_of<rows - 1, columns>(count, frames, centroids, dim, out, pitch, kept, ahead);
    }
}

// All products of `count` frames (count, dim) with centroids `first` to `last` of an entry: out[i * pitch + k].
template <int most, class Element>
inline void multiply_tiles(const float* frames, long count, const Element* entry, long first, long last, long dim,
                           float* out, long pitch) {
    constexpr int columns = columns_of<most>();
    const long tiles = (count + most - 1) / most;
    for (long k = first; k < last; k += columns) {
        const int kept = static_cast<int>(last - k < columns ? last - k : columns);
        const Element* rows[columns];
        for (int j = 0; j < columns; j++) rows[j] = entry + (k + (j < kept ? j : kept - 1)) * dim;
        // Tiles of as equal a number of rows as can be; each asks for its part of the centroids of the next.
        for (long tile = 0, begin = 0; tile < tiles; tile++) {
            const long end = count * (tile + 1) / tiles;
            const long from = columns * tile / tiles, until = columns * (tile + 1) / tiles;
            const Ahead<Element> ahead{rows[0] + (columns + from) * dim,
                                       static_cast<int>(k + columns < last ? until - from : 0)};
            products_of<most, columns>(static_cast<int>(end - begin), frames + begin * dim, rows, dim,
                                       out + begin * pitch + k, pitch, kept, ahead);
            begin = end;
        }
    }
}

template <class Element>
inline void multiply_frames(const float* frames, long count, const Element* entry, long first, long last, long dim,
                            float* out, long pitch) {
    if (count <= 3 || kMostFrames == 3)
        multiply_tiles<3>(frames, count, entry, first, last, dim, out, pitch);
    else if (count == 4)
        multiply_tiles<(kMostFrames > 3 ? 4 : 3)>(frames, count, entry, first, last, dim, out, pitch);
    else
        multiply_tiles<kMostFrames>(frames, count, entry, first, last, dim, out, pitch);
}

// Squared distance in float64, in one order of sums.
inline double squared_distance(const float* x, const float* c, long dim) {
    double sums[16] = {};
    long p = 0;
    for (; p + 16 <= dim; p += 16)
        for (int lane = 0; lane < 16; lane++) {
            const double difference = static_cast<double>(c[p + lane]) - static_cast<double>(x[p + lane]);
            sums[lane] += difference * difference;
        }
    for (int lane = 0; p < dim; p++, lane++) {
        const double difference = static_cast<double>(c[p]) - static_cast<double>(x[p]);
        sums[lane] += difference * difference;
    }
    for (int half = 8; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}

inline double norm_of(const float* x, long dim) {
    double sums[8] = {};
    long p = 0;
    for (; p + 8 <= dim; p += 8)
        for (int lane = 0; lane < 8; lane++)
            sums[lane] += static_cast<double>(x[p + lane]) * static_cast<double>(x[p + lane]);
    for (; p < dim; p++) sums[0] += static_cast<double>(x[p]) * static_cast<double>(x[p]);
    double total = 0;
    for (double each : sums) total += each;
    return __builtin_sqrt(total);
}

// The id of the centroid nearest to x. `dots` are the products of x with all centroids, to be multiplied by `scale`. With
// `rounded`, `errors` are the distances of these centroids to the ones that count; `largest_norm` is of those multiplied.
template <bool rounded>
inline int decide_with(const float* x, const float* dots, const float* entry, const double* half_norms,
                       double largest_norm, const double* errors, double scale, long clusters, long dim) {
    constexpr int kLanes = 16;
    constexpr double kInfinity = __builtin_inf();
    const double norm = norm_of(x, dim);
    const auto score = [&](long k) { return half_norms[k] - scale * static_cast<double>(dots[k]); };
    const auto highest_score = [&](long k) { return rounded ? score(k) + norm * errors[k] : score(k); };
    const auto lowest_score = [&](long k) { return rounded ? score(k) - norm * errors[k] : score(k); };
    double lanes[kLanes];
    float overflows[kLanes] = {};  // NaN once a product is not finite
    for (double& lane : lanes) lane = kInfinity;
    for (long k = 0; k < clusters; k += kLanes) {
        const int filled = static_cast<int>(clusters - k < kLanes ? clusters - k : kLanes);
        for (int lane = 0; lane < filled; lane++) {
            const double most = highest_score(k + lane);
            lanes[lane] = most < lanes[lane] ? most : lanes[lane];
            overflows[lane] += dots[k + lane] * 0.0f;
        }
    }
    double least = lanes[0];
    for (double lane : lanes) least = lane < least ? lane : least;
    float overflow = 0;
    for (float lane : overflows) overflow += lane;
    constexpr double kUnit = 1.0 / (1 << 24), kSmallest = 0x1p-149;
    const double roundings = static_cast<double>(dim / Vector::kWidth + 2 * Vector::kWidth) * kUnit;
    const double gamma = roundings / (1 - roundings);
    const double size = largest_norm * largest_norm / 2;
    const double error = gamma * norm * largest_norm + static_cast<double>(dim) * kSmallest * scale + size * 0x1p-50;
    // A product that overflowed says nothing: all are compared then.
    const double limit = overflow == 0.0f ? least + 2 * error : kInfinity;
    long candidates = 0;
    int only = 0;
    for (long k = 0; k < clusters; k++)
        if (!(lowest_score(k) > limit)) candidates++, only = static_cast<int>(k);
    if (candidates == 1) return only;
    int nearest = -1;
    double shortest = kInfinity;
    for (long k = 0; k < clusters; k++) {
        if (lowest_score(k) > limit) continue;
        const double distance = squared_distance(x, entry + k * dim, dim);
        if (nearest < 0 || distance < shortest) nearest = static_cast<int>(k), shortest = distance;
    }
    return nearest;
}

inline int decide(const float* x, const float* dots, const float* entry, const double* half_norms, double largest_norm,
                  long clusters, long dim) {
    return decide_with<false>(x, dots, entry, half_norms, largest_norm, nullptr, 1.0, clusters, dim);
}

inline int decide_half(const float* x, const float* dots, const float* entry, const double* half_norms,
                       double largest_norm, const double* errors, double scale, long clusters, long dim) {
    return decide_with<true>(x, dots, entry, half_norms, largest_norm, errors, scale, clusters, dim);
}
