// Each channel's own small convolution, with SiLU.
//
// Expects: included by kernels-inl.hpp after simd-inl.hpp, in the namespace of one instruction set within mkc; Vector, fma
// and sigmoid; from operators.hpp Depthwise and Threads; <cstring>.

inline ort::Status* depthwise(const Depthwise& d, const Threads& threads) {
    if (d.frames <= 0 || d.batch <= 0 || d.channels <= 0) return nullptr;
    constexpr long kFrames = 64;
    const long blocks = (d.frames + kFrames - 1) / kFrames;
    return threads.run(d.batch * blocks, [&](long task) {
        const long entry = task / blocks, first = task % blocks * kFrames;
        const long last = first + kFrames < d.frames ? first + kFrames : d.frames;
        for (long t = first; t < last; t++) {
            float* out = d.output + (entry * d.frames + t) * d.channels;
            for (long c = 0; c < d.channels; c += Vector::kWidth) {
                const long count = d.channels - c < Vector::kWidth ? d.channels - c : Vector::kWidth;
                const auto read = [&](const float* from) {
                    if (count == Vector::kWidth) return Vector::load(from);
                    alignas(64) float part[Vector::kWidth] = {};
                    std::memcpy(part, from, count * sizeof(float));
                    return Vector::load(part);
                };
                Vector sum = read(d.bias + c);
                for (long j = 0; j < d.kernel; j++) {
                    const long frame = t + j - d.kernel / 2;
                    if (frame < 0 || frame >= d.frames) continue;
                    sum = fma(read(d.input + (entry * d.frames + frame) * d.channels + c),
                              read(d.weights + j * d.channels + c), sum);
                }
                sum = sum * sigmoid(sum);
                alignas(64) float part[Vector::kWidth];
                sum.store(part);
                std::memcpy(out + c, part, count * sizeof(float));
            }
        }
    });
}
