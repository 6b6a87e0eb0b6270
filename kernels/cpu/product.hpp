// Products of matrices with packed weights: the register tile that all else is made of, and whole products by it.
//
// Weights (K, N) lie in panels of 32 columns, (N / 32, K, 32), the last one filled up with zeros; see export/packing.py.
// Every sum runs over K in one order, in blocks of kDepth, whatever the number of rows, threads or tasks. So a row's
// result depends on that row alone, to the last bit.

constexpr int kPanel = 32;
constexpr int kSub = 2 * Vector::kWidth;  // the columns of a register tile: one or two of them in a panel
constexpr int kRows = Vector::kRows;

// rows x kSub sums over `depth` inputs; a(i, p) is the input of row i, b the weights of these columns.
//
// Packed inputs lie p by p, kRows of them together; others in rows `stride` apart.
template <int rows, bool packed, class Start, class Finish>
inline __attribute__((always_inline)) void tile(const float* a, long stride, const float* b, int depth, Start start,
                                                Finish finish) {
    Vector sums[rows][2];
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        sums[i][0] = start(i, 0);
        sums[i][1] = start(i, 1);
    }
    for (int p = 0; p < depth; p++) {
        const Vector left = Vector::load(b), right = Vector::load(b + Vector::kWidth);
        // Processors do not fetch ahead past the end of a page of 4 KB, and 32 rows of weights fill one.
        __builtin_prefetch(b + 12 * kPanel);
        __builtin_prefetch(b + 12 * kPanel + 16);
        b += kPanel;
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++) {
            const Vector input = Vector::all(packed ? a[i] : a[i * stride]);
            sums[i][0] = fma(input, left, sums[i][0]);
            sums[i][1] = fma(input, right, sums[i][1]);
        }
        a += packed ? kRows : 1;
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        finish(i, 0, sums[i][0]);
        finish(i, 1, sums[i][1]);
    }
}

// A tile of a number of rows that is known at run time only.
template <bool packed, int rows = kRows, class Start, class Finish>
inline void tile_of(int count, const float* a, long stride, const float* b, int depth, Start start, Finish finish) {
    if (count == rows) {
        tile<rows, packed>(a, stride, b, depth, start, finish);
    } else if constexpr (rows > 1) {
        tile_of<packed, rows - 1>(count, a, stride, b, depth, start, finish);
    }
}
