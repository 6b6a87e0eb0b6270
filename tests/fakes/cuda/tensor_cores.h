// What kernels/cuda/residual.cu needs beyond cuda_shim.h: tensor cores and float16, with the fragments of lanes as in the
// PTX documentation of ldmatrix (.m8n8.x4) and mma (.m16n8k16, float16 to float32).
#pragma once
#include "cuda_shim.h"

namespace shim {

// What all lanes of the warp bring to the same exchange; valid until this lane's next one.
template <class T>
const T* meet(const T& brought, int kind) {
  static T values[kMaxThreads / kLanes][2][kLanes];
  const unsigned warp = threadIdx.x / kLanes, turn = self().exchanges % 2;
  values[warp][turn][threadIdx.x % kLanes] = brought;
  exchange(0xffffffffu, 0, 0, kind);  // counts, and checks that all lanes meet here
  return values[warp][turn];
}

inline float half_at(unsigned pair, unsigned which) {
  const std::uint16_t bits = static_cast<std::uint16_t>(pair >> 16 * which);
  _Float16 half;
  std::memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}

struct Operands {
  unsigned a[4], b[2];
};

}  // namespace shim

inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(static_cast<const unsigned char*>(pointer) - shim::dynamic_shared);
}

inline void load_matrices(unsigned (&to)[4], unsigned row) {
  const unsigned lane = threadIdx.x % shim::kLanes;
  if (row % 16 || row + 16 > shim::kShared) shim::fail("ldmatrix: a row that is not 16 bytes of shared memory");
  const unsigned* rows = shim::meet(row, 11);
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    std::memcpy(&to[matrix], shim::dynamic_shared + rows[8 * matrix + lane / 4] + 4 * (lane % 4), 4);
  }
}

inline void multiply_add(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  const unsigned lane = threadIdx.x % shim::kLanes, group = lane / 4, quad = lane % 4;
  const shim::Operands* lanes = shim::meet(shim::Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}}, 12);
  for (unsigned i = 0; i < 4; ++i) {  // c0, c1: row group, columns 2 quad and the next; c2, c3: row group + 8
    const unsigned lower = i / 2, column = 2 * quad + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned holder = k % 8 / 2, later = k / 8;  // registers a0, a1 hold k < 8, a2, a3 the others
      sums[i] += shim::half_at(lanes[4 * group + holder].a[2 * later + lower], k % 2) *
                 shim::half_at(lanes[4 * column + holder].b[later], k % 2);
    }
  }
}

inline void unpack_halves(unsigned halves, float& first, float& second) {
  first = shim::half_at(halves, 0);
  second = shim::half_at(halves, 1);
}

inline unsigned pack_halves(float first, float second) {
  const _Float16 both[2] = {static_cast<_Float16>(first), static_cast<_Float16>(second)};
  unsigned halves;
  std::memcpy(&halves, both, sizeof halves);
  return halves;
}
