// Vectors of floats of one instruction set, and the functions of them that the operators need.
//
// Expects: included first by kernels-inl.hpp, once for each instruction set: within that set's target pragmas, in a
// namespace of its own within mkc. MKC_ISA is 512 (AVX-512, vectors of 16 floats) or 256 (AVX2 and FMA, of 8);
// <immintrin.h> is included before, outside the namespace.

#if MKC_ISA == 512

struct Vector {
    static constexpr int kWidth = 16;
    static constexpr int kRows = 14;  // of a register tile: 14 x 2 sums, 2 weights and 1 input fill the 32 registers
    __m512 v;
    static Vector load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static Vector load(const Half* p) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
    }
    static Vector all(float x) { return {_mm512_set1_ps(x)}; }
    static Vector zero() { return {_mm512_setzero_ps()}; }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    // The first `count` of them.
    void store(float* p, int count) const { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v); }
};
inline Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vector fma(Vector a, Vector b, Vector c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vector max(Vector a, Vector b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vector min(Vector a, Vector b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vector round(Vector a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a where x > 0, else b
inline Vector where_positive(Vector x, Vector a, Vector b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GT_OQ), b.v, a.v)};
}
// a * 2^n, of a whole number n in [-126, 127]
inline Vector scale(Vector a, Vector n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline float sum(Vector a) { return _mm512_reduce_add_ps(a.v); }
// The sums of four vectors.
inline __m128 sums(Vector a, Vector b, Vector c, Vector d) {
    const __m512 low = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
    const __m512 high = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
inline float highest(Vector a) { return _mm512_reduce_max_ps(a.v); }
// Numbers of float64.
struct Doubles {
    static constexpr int kWidth = 8;
    __m512d v;
    static Doubles load(const double* p) { return {_mm512_loadu_pd(p)}; }
    static Doubles load(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
    static Doubles all(double x) { return {_mm512_set1_pd(x)}; }
    void store(double* p) const { _mm512_storeu_pd(p, v); }
};
inline Doubles operator+(Doubles a, Doubles b) { return {_mm512_add_pd(a.v, b.v)}; }
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
// c - a b
inline Doubles less_product(Doubles c, Doubles a, Doubles b) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
inline Doubles min(Doubles a, Doubles b) { return {_mm512_min_pd(a.v, b.v)}; }
// A bit for each that is not greater, also where one of the two is NaN.
inline unsigned not_greater(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_NGT_UQ); }
// In a register from here on: compilers rather load a value again for each use.
inline void hold(Vector& a) { __asm__("" : "+v"(a.v)); }
// As if it were used, so that what computes it is not left out.
inline void keep(const Vector& a) { __asm__ volatile("" : : "v"(a.v)); }
// Transposes a block: first four rows and four columns at a time, then quarters of vectors.
inline void turn(Vector (&rows)[16]) {
    __m512 part[4][4];  // [k][j]: columns j, 4 + j, 8 + j and 12 + j of rows 4k to 4k + 3
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const Vector* r = rows + 4 * k;
        const __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(r[0].v, r[1].v));
        const __m512d high = _mm512_castps_pd(_mm512_unpackhi_ps(r[0].v, r[1].v));
        const __m512d next_low = _mm512_castps_pd(_mm512_unpacklo_ps(r[2].v, r[3].v));
        const __m512d next_high = _mm512_castps_pd(_mm512_unpackhi_ps(r[2].v, r[3].v));
        part[k][0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, next_low));
        part[k][1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, next_low));
        part[k][2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, next_high));
        part[k][3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, next_high));
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        const __m512 even = _mm512_shuffle_f32x4(part[0][j], part[1][j], 0x88);
        const __m512 even_next = _mm512_shuffle_f32x4(part[2][j], part[3][j], 0x88);
        const __m512 odd = _mm512_shuffle_f32x4(part[0][j], part[1][j], 0xdd);
        const __m512 odd_next = _mm512_shuffle_f32x4(part[2][j], part[3][j], 0xdd);
        rows[j].v = _mm512_shuffle_f32x4(even, even_next, 0x88);
        rows[4 + j].v = _mm512_shuffle_f32x4(odd, odd_next, 0x88);
        rows[8 + j].v = _mm512_shuffle_f32x4(even, even_next, 0xdd);
        rows[12 + j].v = _mm512_shuffle_f32x4(odd, odd_next, 0xdd);
    }
}

// 16 whole numbers of 32 bits, or what they are made of: pairs of 16 bits, fours of 8.
struct Integers {
    __m512i v;
    static Integers load(const void* p) { return {_mm512_loadu_si512(p)}; }
    static Integers all(int x) { return {_mm512_set1_epi32(x)}; }
    static Integers zero() { return {_mm512_setzero_si512()}; }
};
inline Integers max(Integers a, Integers b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline Vector to_floats(Integers a) { return {_mm512_cvtepi32_ps(a.v)}; }
// The bits of |x|: as whole numbers they are in the order of the magnitudes, and a NaN is the largest.
inline Integers magnitude(Vector x) {
    return {_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff))};
}
inline int highest(Integers a) { return _mm512_reduce_max_epi32(a.v); }
inline void keep(const Integers& a) { __asm__ volatile("" : : "v"(a.v)); }
// The nearest whole numbers, which fit 16 bits.
inline void store_whole(int16_t* p, Vector x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x.v)));
}
// The same plus 128, which fit 8 bits without a sign.
inline void store_whole(uint8_t* p, Vector x) {
    const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(x.v), _mm512_set1_epi32(128));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(whole));
}
// sum + products of pairs of 16 bits
inline Integers dot(Integers sum, Integers weights, Integers inputs, int16_t) {
#ifdef MKC_VNNI
    // Not by its intrinsic: compilers keep copies of the sums.
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum.v) : "v"(weights.v), "v"(inputs.v));
    return sum;
#else
    return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(weights.v, inputs.v))};
#endif
}
// sum + products of fours of 8 bits, those of the inputs without a sign
inline Integers dot(Integers sum, Integers weights, Integers inputs, uint8_t) {
#ifdef MKC_VNNI
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(inputs.v), "v"(weights.v));
    return sum;
#else
    const __m512i even = _mm512_madd_epi16(_mm512_srai_epi16(_mm512_slli_epi16(weights.v, 8), 8),
                                           _mm512_and_si512(inputs.v, _mm512_set1_epi16(0xff)));
    const __m512i odd = _mm512_madd_epi16(_mm512_srai_epi16(weights.v, 8), _mm512_srli_epi16(inputs.v, 8));
    return {_mm512_add_epi32(sum.v, _mm512_add_epi32(even, odd))};
#endif
}

#else

struct Vector {
    static constexpr int kWidth = 8;
    static constexpr int kRows = 6;  // 6 x 2 sums, 2 weights and 1 input of 16 registers
    __m256 v;
    static Vector load(const float* p) { return {_mm256_loadu_ps(p)}; }
    static Vector load(const Half* p) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
    }
    static Vector all(float x) { return {_mm256_set1_ps(x)}; }
    static Vector zero() { return {_mm256_setzero_ps()}; }
    void store(float* p) const { _mm256_storeu_ps(p, v); }
    void store(float* p, int count) const {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes), v);
    }
};
inline Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vector operator/(Vector a, Vector b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vector fma(Vector a, Vector b, Vector c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vector max(Vector a, Vector b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vector min(Vector a, Vector b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vector round(Vector a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vector where_positive(Vector x, Vector a, Vector b) {
    return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GT_OQ))};
}
inline Vector scale(Vector a, Vector n) {
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(power))};
}
inline float sum(Vector a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline __m128 sums(Vector a, Vector b, Vector c, Vector d) {
    const __m256 low = _mm256_add_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v));
    const __m256 high = _mm256_add_ps(_mm256_unpacklo_ps(c.v, d.v), _mm256_unpackhi_ps(c.v, d.v));
    const __m256 all = _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}
inline float highest(Vector a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
struct Doubles {
    static constexpr int kWidth = 4;
    __m256d v;
    static Doubles load(const double* p) { return {_mm256_loadu_pd(p)}; }
    static Doubles load(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
    static Doubles all(double x) { return {_mm256_set1_pd(x)}; }
    void store(double* p) const { _mm256_storeu_pd(p, v); }
};
inline Doubles operator+(Doubles a, Doubles b) { return {_mm256_add_pd(a.v, b.v)}; }
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline Doubles less_product(Doubles c, Doubles a, Doubles b) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }
inline Doubles min(Doubles a, Doubles b) { return {_mm256_min_pd(a.v, b.v)}; }
inline unsigned not_greater(Doubles a, Doubles b) {
    return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_NGT_UQ)));
}
inline void hold(Vector& a) { __asm__("" : "+x"(a.v)); }
inline void keep(const Vector& a) { __asm__ volatile("" : : "x"(a.v)); }
inline void turn(Vector (&rows)[8]) {
    __m256 part[2][4];  // [k][j]: columns j and 4 + j of rows 4k to 4k + 3
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        const Vector* r = rows + 4 * k;
        const __m256d low = _mm256_castps_pd(_mm256_unpacklo_ps(r[0].v, r[1].v));
        const __m256d high = _mm256_castps_pd(_mm256_unpackhi_ps(r[0].v, r[1].v));
        const __m256d next_low = _mm256_castps_pd(_mm256_unpacklo_ps(r[2].v, r[3].v));
        const __m256d next_high = _mm256_castps_pd(_mm256_unpackhi_ps(r[2].v, r[3].v));
        part[k][0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, next_low));
        part[k][1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, next_low));
        part[k][2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high, next_high));
        part[k][3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high, next_high));
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        rows[j].v = _mm256_permute2f128_ps(part[0][j], part[1][j], 0x20);
        rows[4 + j].v = _mm256_permute2f128_ps(part[0][j], part[1][j], 0x31);
    }
}

struct Integers {
    __m256i v;
    static Integers load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
    static Integers all(int x) { return {_mm256_set1_epi32(x)}; }
    static Integers zero() { return {_mm256_setzero_si256()}; }
};
inline Integers max(Integers a, Integers b) { return {_mm256_max_epi32(a.v, b.v)}; }
inline Vector to_floats(Integers a) { return {_mm256_cvtepi32_ps(a.v)}; }
inline Integers magnitude(Vector x) {
    return {_mm256_and_si256(_mm256_castps_si256(x.v), _mm256_set1_epi32(0x7fffffff))};
}
inline int highest(Integers a) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}
inline void keep(const Integers& a) { __asm__ volatile("" : : "x"(a.v)); }
inline void store_whole(int16_t* p, Vector x) {
    const __m256i whole = _mm256_cvtps_epi32(x.v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
}
inline void store_whole(uint8_t* p, Vector x) {
    const __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(x.v), _mm256_set1_epi32(128));
    const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(pairs, pairs));
}
inline Integers dot(Integers sum, Integers weights, Integers inputs, int16_t) {
    return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(weights.v, inputs.v))};
}
inline Integers dot(Integers sum, Integers weights, Integers inputs, uint8_t) {
    const __m256i even = _mm256_madd_epi16(_mm256_srai_epi16(_mm256_slli_epi16(weights.v, 8), 8),
                                           _mm256_and_si256(inputs.v, _mm256_set1_epi16(0xff)));
    const __m256i odd = _mm256_madd_epi16(_mm256_srai_epi16(weights.v, 8), _mm256_srli_epi16(inputs.v, 8));
    return {_mm256_add_epi32(sum.v, _mm256_add_epi32(even, odd))};
}

#endif

// e^x to 2 units in the last place; x below -87 gives what -87 gives, 1.6e-38.
inline Vector exponential(Vector x) {
    // In this order of operands a NaN stays one.
    x = min(Vector::all(88.0f), max(Vector::all(-87.0f), x));
    const Vector n = round(x * Vector::all(1.44269504f));
    // ln 2 in two parts, the first of so few bits that its products are exact.
    Vector r = fma(n, Vector::all(-0.693359375f), x);
    r = fma(n, Vector::all(2.12194440e-4f), r);
    // Taylor: r is within ln(2) / 2, where the first term left out is 6e-9.
    Vector p = Vector::all(1.0f / 5040.0f);
    p = fma(p, r, Vector::all(1.0f / 720.0f));
    p = fma(p, r, Vector::all(1.0f / 120.0f));
    p = fma(p, r, Vector::all(1.0f / 24.0f));
    p = fma(p, r, Vector::all(1.0f / 6.0f));
    p = fma(p, r, Vector::all(0.5f));
    p = fma(p, r, Vector::all(1.0f));
    p = fma(p, r, Vector::all(1.0f));
    return scale(p, n);
}

inline Vector sigmoid(Vector x) {
    return Vector::all(1.0f) / (Vector::all(1.0f) + exponential(Vector::zero() - x));
}

// x/2 (1 + erf(x / sqrt 2)), to 1e-7 of max(1, |x|).
//
// erfc(t) is e^-q(t); q is a polynomial without constant, fitted on 0..4.5 so that the error of x e^-q is least where it
// is largest (Lawson's iterated least squares). Past 4.5, erfc is below float32's rounding of one.
inline Vector gelu(Vector x) {
    const Vector t = min(Vector::all(4.5f), max(x, Vector::zero() - x) * Vector::all(0.70710678f));
    Vector q = Vector::all(2.3510672690e-5f);
    q = fma(q, t, Vector::all(-2.4299122743e-4f));
    q = fma(q, t, Vector::all(8.1685883924e-4f));
    q = fma(q, t, Vector::all(8.9309690520e-4f));
    q = fma(q, t, Vector::all(-1.9898464903e-2f));
    q = fma(q, t, Vector::all(1.0306373239e-1f));
    q = fma(q, t, Vector::all(6.3656753302e-1f));
    q = fma(q, t, Vector::all(1.1283823252f));
    const Vector tail = exponential(Vector::zero() - q * t) * Vector::all(0.5f) * x;
    return where_positive(x, x - tail, tail);
}

// x where positive, else slope x
inline Vector leaky(Vector x, Vector slope) { return where_positive(x, x, x * slope); }
