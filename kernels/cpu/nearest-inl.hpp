// The nearest centroids of frames of one bank entry.
//
// Expects: included by kernels-inl.hpp after product-inl.hpp, in the namespace of one instruction set within mkc; Vector,
// Doubles, tile_of_width, turn.
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
// Few frames lie row by row as centroids do, so a tile of products is summed along their rows. Many are packed, so that
// each number of a centroid meets a vector of frames: no sums along vectors, and larger tiles. Either way, each centroid is
// read once for all frames of a task, which stay in the second cache.

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

// Terms that are summed before they are added to a product, where frames are packed: few roundings, and of the frames of
// a panel what stays in the first cache.
constexpr long kPackedDepth = 256;

// Frames, `count` rows in places of their own, into panels of 32 columns, (count / 32, dim, 32), the last one filled up
// with zeros.
inline void pack_frames(const float* const* frames, long count, long dim, float* out) {
    constexpr int kWidth = Vector::kWidth;
    const long whole = dim / kWidth * kWidth;
    for (long first = 0; first < count; first += kPanelFrames, out += kPanelFrames * dim)
        for (int sub = 0; sub < kPanelFrames; sub += kWidth) {
            const long left = count - first - sub;
            const int filled = static_cast<int>(left < 0 ? 0 : left < kWidth ? left : kWidth);
            const float* const* rows = frames + first + sub;
            Vector block[kWidth];
            for (long p = 0; p < whole; p += kWidth) {
                for (int i = 0; i < kWidth; i++) block[i] = i < filled ? Vector::load(rows[i] + p) : Vector::zero();
                turn(block);
                for (int i = 0; i < kWidth; i++) block[i].store(out + (p + i) * kPanelFrames + sub);
            }
            for (long p = whole; p < dim; p++)
                for (int i = 0; i < kWidth; i++) out[p * kPanelFrames + sub + i] = i < filled ? rows[i][p] : 0.0f;
        }
}

// Parts of rows, close together: in their own places, whole pages apart, they would displace one another in the first
// cache. Asks for the rows' next parts.
template <class Element>
inline void copy_rows(const Element* from, int rows, long dim, long depth, float* to) {
    constexpr long kLine = 64 / static_cast<long>(sizeof(Element));
    for (int i = 0; i < rows; i++, from += dim, to += kPackedDepth) {
        for (long p = 0; p < depth; p += kLine) __builtin_prefetch(from + depth + p);
        long p = 0;
        for (; p + Vector::kWidth <= depth; p += Vector::kWidth) Vector::load(from + p).store(to + p);
        for (; p < depth; p++) to[p] = number(from[p]);
    }
}

// All products of `count` packed frames, at most kTaskFrames, with centroids `first` to `last` of an entry:
// out[i * pitch + k].
template <class Element>
inline void multiply_packed(const float* packed, long count, const Element* entry, long first, long last, long dim,
                            float* out, long pitch) {
    alignas(64) float copied[kRows * kPackedDepth], sums[kTaskFrames / kPanelFrames][kRows][kPanelFrames];
    for (long k = first; k < last; k += kRows) {
        const int rows = static_cast<int>(last - k < kRows ? last - k : kRows);
        for (long begin = 0; begin < dim; begin += kPackedDepth) {
            const int depth = static_cast<int>(dim - begin < kPackedDepth ? dim - begin : kPackedDepth);
            copy_rows(entry + k * dim + begin, rows, dim, depth, copied);
            for (long panel = 0; panel * kPanelFrames < count; panel++)
                for (long sub = 0; sub < kPanelFrames && panel * kPanelFrames + sub < count; sub += kSub) {
                    const float* inputs = packed + (panel * dim + begin) * kPanelFrames + sub;
                    const auto place = [&](int i, int j) { return &sums[panel][i][sub + j * Vector::kWidth]; };
                    tile_of_width<false>(
                        count - panel * kPanelFrames - sub, rows, copied, kPackedDepth, inputs, depth,
                        [](int, int) { return Vector::zero(); },
                        [&](int i, int j, Vector sum) {
                            (begin == 0 ? sum : sum + Vector::load(place(i, j))).store(place(i, j));
                        });
                }
        }
        // Columns of frames become rows.
        static_assert(kRows <= Vector::kWidth, "a block has all rows of a tile");
        for (long first_frame = 0; first_frame < count; first_frame += Vector::kWidth) {
            Vector block[Vector::kWidth];
            for (int i = 0; i < Vector::kWidth; i++)
                block[i] = i < rows ? Vector::load(&sums[first_frame / kPanelFrames][i][first_frame % kPanelFrames])
                                    : Vector::zero();
            turn(block);
            const long left = count - first_frame;
            float* to = out + first_frame * pitch + k;
            for (long i = 0; i < Vector::kWidth && i < left; i++) block[i].store(to + i * pitch, rows);
        }
    }
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
    Doubles sums = Doubles::all(0.0), others = sums;
    long p = 0;
    for (; p + 2 * Doubles::kWidth <= dim; p += 2 * Doubles::kWidth) {
        const Doubles even = Doubles::load(x + p), odd = Doubles::load(x + p + Doubles::kWidth);
        sums = fma(even, even, sums);
        others = fma(odd, odd, others);
    }
    double lanes[Doubles::kWidth], total = 0;
    (sums + others).store(lanes);
    for (double each : lanes) total += each;
    for (; p < dim; p++) total += static_cast<double>(x[p]) * static_cast<double>(x[p]);
    return __builtin_sqrt(total);
}

// The id of the centroid nearest to x. `dots` are the products of x with all centroids, to be multiplied by `scale`. With
// `rounded`, `errors` are the distances of these centroids to the ones that count; `largest_norm` is of those multiplied.
template <bool rounded>
inline int decide_with(const float* x, const float* dots, const float* entry, const double* half_norms,
                       double largest_norm, const double* errors, double scale, long clusters, long dim) {
    constexpr int kWidth = Doubles::kWidth;
    constexpr double kInfinity = __builtin_inf();
    const double norm = norm_of(x, dim);
    const Doubles scales = Doubles::all(scale), norms = Doubles::all(norm);
    // What the last vector of centroids lacks has the score infinity.
    const long whole = clusters / kWidth * kWidth;
    double last_norms[kWidth], last_errors[kWidth] = {};
    float last_dots[kWidth] = {};
    for (int lane = 0; lane < kWidth; lane++) {
        const bool there = whole + lane < clusters;
        last_norms[lane] = there ? half_norms[whole + lane] : kInfinity;
        if (there) last_dots[lane] = dots[whole + lane];
        if (rounded && there) last_errors[lane] = errors[whole + lane];
    }
    // The products of the vector that begins at k, their scores, and how far these centroids are off.
    const auto products_at = [&](long k) { return Doubles::load(k < whole ? dots + k : last_dots); };
    const auto scores = [&](long k, Doubles found) {
        return less_product(Doubles::load(k < whole ? half_norms + k : last_norms), scales, found);
    };
    const auto errors_at = [&](long k) { return Doubles::load(k < whole ? errors + k : last_errors); };
    Doubles least_of_lanes = Doubles::all(kInfinity), overflows = Doubles::all(0.0);  // NaN once a product is not finite
    for (long k = 0; k < clusters; k += kWidth) {
        const Doubles found = products_at(k);
        Doubles highest = scores(k, found);
        if (rounded) highest = fma(norms, errors_at(k), highest);
        least_of_lanes = min(highest, least_of_lanes);
        overflows = fma(found, Doubles::all(0.0), overflows);
    }
    double lanes[kWidth], least = kInfinity, overflow = 0;
    least_of_lanes.store(lanes);
    for (double lane : lanes) least = lane < least ? lane : least;
    overflows.store(lanes);
    for (double lane : lanes) overflow += lane;
    constexpr double kUnit = 1.0 / (1 << 24), kSmallest = 0x1p-149;
    const long along_rows = dim / Vector::kWidth + 2 * Vector::kWidth, packed = kPackedDepth + dim / kPackedDepth + 1;
    const double roundings = static_cast<double>(along_rows > packed ? along_rows : packed) * kUnit;
    const double gamma = roundings / (1 - roundings);
    const double size = largest_norm * largest_norm / 2;
    const double error = gamma * norm * largest_norm + static_cast<double>(dim) * kSmallest * scale + size * 0x1p-50;
    // A product that overflowed says nothing: all are compared then.
    const double limit = overflow == 0 ? least + 2 * error : kInfinity;
    const Doubles limits = Doubles::all(limit);
    // A bit for each centroid of the vector that begins at k which may be the nearest.
    const auto candidates_at = [&](long k) {
        Doubles lowest = scores(k, products_at(k));
        if (rounded) lowest = less_product(lowest, norms, errors_at(k));
        const unsigned there = k < whole ? (1u << kWidth) - 1 : (1u << (clusters - whole)) - 1;
        return not_greater(lowest, limits) & there;
    };
    int candidates = 0, only = 0;
    for (long k = 0; k < clusters; k += kWidth)
        if (const unsigned found = candidates_at(k)) {
            candidates += __builtin_popcount(found);
            only = static_cast<int>(k) + __builtin_ctz(found);
        }
    if (candidates == 1) return only;
    int nearest = -1;
    double shortest = kInfinity;
    for (long k = 0; k < clusters; k += kWidth)
        for (unsigned found = candidates_at(k); found; found &= found - 1) {
            const long candidate = k + __builtin_ctz(found);
            const double distance = squared_distance(x, entry + candidate * dim, dim);
            if (nearest < 0 || distance < shortest) nearest = static_cast<int>(candidate), shortest = distance;
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
