// The tile registers of AMX: eight of up to 16 rows of 64 bytes, and products of 8-bit numbers in them.
//
// With MKC_EMULATED_TILES they are arrays, and each function does in C++ what the instruction does. The tests compile the
// library so, because few machines have the instructions.
#pragma once

#include <cstring>

namespace mkc {

// As the instruction LDTILECFG reads it.
struct alignas(64) TileShapes {
    unsigned char palette = 1, start_row = 0, reserved[14] = {};
    unsigned short bytes_of_row[16] = {};
    unsigned char rows[16] = {};
};

#ifdef MKC_EMULATED_TILES

struct EmulatedTiles {
    TileShapes shapes;
    unsigned char bytes[8][16][64];
};
inline EmulatedTiles& emulated() {
    static thread_local EmulatedTiles tiles;
    return tiles;
}
inline void configure_tiles(const TileShapes& shapes) { emulated().shapes = shapes; }
inline void release_tiles() { emulated().shapes = TileShapes{}; }
template <int tile>
void clear_tile() {
    std::memset(emulated().bytes[tile], 0, sizeof emulated().bytes[tile]);
}
template <int tile>
void load_tile(const void* from, long stride) {
    EmulatedTiles& t = emulated();
    clear_tile<tile>();
    for (int row = 0; row < t.shapes.rows[tile]; row++)
        std::memcpy(t.bytes[tile][row], static_cast<const char*>(from) + row * stride, t.shapes.bytes_of_row[tile]);
}
template <int tile>
void store_tile(void* to, long stride) {
    const EmulatedTiles& t = emulated();
    for (int row = 0; row < t.shapes.rows[tile]; row++)
        std::memcpy(static_cast<char*>(to) + row * stride, t.bytes[tile][row], t.shapes.bytes_of_row[tile]);
}
template <int sums, int inputs, int weights>
void add_tile_products() {
    EmulatedTiles& t = emulated();
    for (int row = 0; row < t.shapes.rows[sums]; row++)
        for (int column = 0; column < t.shapes.bytes_of_row[sums] / 4; column++) {
            int sum;
            std::memcpy(&sum, t.bytes[sums][row] + 4 * column, 4);
            for (int k = 0; k < t.shapes.bytes_of_row[inputs]; k++)
                sum += static_cast<int>(t.bytes[inputs][row][k]) *
                       static_cast<int>(static_cast<signed char>(t.bytes[weights][k / 4][4 * column + k % 4]));
            std::memcpy(t.bytes[sums][row] + 4 * column, &sum, 4);
        }
}

#else

// Compilers have names for these instructions, but want the numbers of the tiles as literals. The clobbers keep the order
// of what is read and written.
inline void configure_tiles(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(shapes) : "memory"); }
inline void release_tiles() { __asm__ volatile("tilerelease" : : : "memory"); }
template <int tile>
void clear_tile() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(tile));
}
template <int tile>
void load_tile(const void* from, long stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(tile) : "memory");
}
template <int tile>
void store_tile(void* to, long stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(tile) : "memory");
}
// Adds to (rows, 16) sums of 32 bits the products of inputs (rows, 64) without a sign and weights (16, 16, 4) with one.
template <int sums, int inputs, int weights>
void add_tile_products() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(inputs), "i"(weights));
}

#endif

}  // namespace mkc
