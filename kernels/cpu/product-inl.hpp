// Products of matrices with packed weights: the register tile that the other operators are made of.
//
// Expects: included by kernels-inl.hpp after simd-inl.hpp, in the namespace of one instruction set within mkc; Vector.
//
// Weights (K, N) lie in panels of 32 columns, (N / 32, K, 32), the last one filled up with zeros; see
// export/graphs/packing.py.
// Every sum runs over K in one order, in blocks of kDepth, whatever the number of rows, threads or tasks. So a row's
// result depends on that row alone, to the last bit.

constexpr int kPanel = 32;
constexpr int kSub = 2 * Vector::kWidth;  // the columns of a register tile: one or two of them in a panel
constexpr int kRows = Vector::kRows;

// rows x (vectors of columns) sums over `depth` inputs; a(i, p) is the input of row i, b the weights of these columns.
//
// Packed inputs lie p by p, kRows of them together; others in rows `stride` apart.
template <int rows, bool packed, int vectors = 2, class Start, class Finish>
inline __attribute__((always_inline)) void tile(const float* a, long stride, const float* b, int depth, Start start,
                                                Finish finish) {
    Vector sums[rows][vectors];
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) sums[i][j] = start(i, j);
    for (int p = 0; p < depth; p++) {
        Vector weights[vectors];
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) weights[j] = Vector::load(b + j * Vector::kWidth);
        // Processors do not fetch ahead past the end of a page of 4 KB, and 32 rows of weights fill one.
        __builtin_prefetch(b + 12 * kPanel);
        __builtin_prefetch(b + 12 * kPanel + 16);
        b += kPanel;
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) {
            const Vector input = Vector::all(packed ? a[i] : a[i * stride]);
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++) sums[i][j] = fma(input, weights[j], sums[i][j]);
        }
        a += packed ? kRows : 1;
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) finish(i, j, sums[i][j]);
}

// A tile of a number of rows that is known at run time only.
template <bool packed, int vectors = 2, int rows = kRows, class Start, class Finish>
inline void tile_of(int count, const float* a, long stride, const float* b, int depth, Start start, Finish finish) {
    if (count == rows) {
        tile<rows, packed, vectors>(a, stride, b, depth, start, finish);
    } else if constexpr (rows > 1) {
        tile_of<packed, vectors, rows - 1>(count, a, stride, b, depth, start, finish);
    }
}

// The same where a panel may end after one vector of columns: `wide` are left.
template <bool packed, class Start, class Finish>
inline void tile_of_width(long wide, int count, const float* a, long stride, const float* b, int depth, Start start,
                          Finish finish) {
    if (wide <= Vector::kWidth)
        tile_of<packed, 1>(count, a, stride, b, depth, start, finish);
    else
        tile_of<packed>(count, a, stride, b, depth, start, finish);
}
