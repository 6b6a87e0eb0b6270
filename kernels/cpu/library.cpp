// Registers the operators with ONNX Runtime, reads what a graph says, and checks it before any of them touches memory.
//
// Graphs come from files, and files may be damaged: a size that does not fit is a status that names it, not a crash.

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <vector>

#include "onnxruntime_abi.hpp"
#include "operators.hpp"

namespace mkc {

// Of an instruction set's vectors; larger ones are not used.
static std::atomic<int> most_bits{512};
static std::atomic<bool> may_use_vnni{true};
static std::atomic<bool> may_use_tiles{true};

static bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

// Whether the processor has AMX with 8-bit numbers, and the system lets this process use it.
static bool has_tiles() {
#ifdef MKC_EMULATED_TILES
    return true;
#else
    unsigned a, b, c, d;
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25, kSavesState = 1u << 27;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kSavesState)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kTile | kInt8)) != (kTile | kInt8)) return false;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned kTileState = 3u << 17;
    if ((low & kTileState) != kTileState) return false;
    // Linux saves the tiles of a process only after it has asked for that: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
    constexpr long kRequest = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#endif
}

static const Operators kAvx512Amx = [] {
    Operators operators = kAvx512Vnni;
    operators.convolve = kTiles.convolve;
    operators.exercise = kTiles.exercise;
    return operators;
}();

const Operators* chosen() {
    static const Operators* const best = []() -> const Operators* {
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma")) {
            if (!__builtin_cpu_supports("avx512vnni")) return &kAvx512;
            return has_tiles() && kTiles.right() ? &kAvx512Amx : &kAvx512Vnni;
        }
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) return &kAvx2;
        return nullptr;
    }();
    // A processor with a later set has the earlier ones.
    if (best == nullptr || best == &kAvx2 || most_bits < 512) return best ? &kAvx2 : nullptr;
    if (!may_use_vnni) return &kAvx512;
    return best == &kAvx512Amx && !may_use_tiles ? &kAvx512Vnni : best;
}

namespace {

using ort::Api;
using ort::call;
using ort::Status;

Status* refuse(Api api, const char* name, const char* why) {
    char text[160];
    std::snprintf(text, sizeof text, "mkc_fast %s: %s", name, why);
    return call<Status*>(api, ort::kCreateStatus, int{ort::kInvalidArgument}, static_cast<const char*>(text));
}

// Thrown where a status of ONNX Runtime's own is not null.
struct Failed {
    Status* status;
};
// Thrown where something does not fit.
struct Misfit {
    const char* why;
};

void check(Status* status) {
    if (status) throw Failed{status};
}
void require(bool fits, const char* why) {
    if (!fits) throw Misfit{why};
}

// A product of sizes of a graph, none of which may be absurd.
long times(long a, long b) {
    long product = 0;
    require(a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, &product) && product < (1L << 46), "sizes too large");
    return product;
}

struct Tensor {
    void* memory = nullptr;  // may be null of an empty one, too
    bool given = false;
    std::vector<int64_t> shape;
    template <class Number = float>
    const Number* data() const {
        return static_cast<const Number*>(memory);
    }
    long rank() const { return static_cast<long>(shape.size()); }
    long at(long axis) const { return shape[axis]; }
    long size() const {
        long count = 1;
        for (int64_t extent : shape) count = times(count, extent);
        return count;
    }
};

Tensor describe(Api api, const ort::Value* value, int expected) {
    ort::Shape* info = nullptr;
    check(call<Status*>(api, ort::kGetTensorTypeAndShape, value, &info));
    int type = 0;
    size_t rank = 0;
    Tensor tensor;
    Status* failed = call<Status*>(api, ort::kGetTensorElementType, static_cast<const ort::Shape*>(info), &type);
    if (!failed) failed = call<Status*>(api, ort::kGetDimensionsCount, static_cast<const ort::Shape*>(info), &rank);
    if (!failed) {
        tensor.shape.resize(rank);
        failed = call<Status*>(api, ort::kGetDimensions, static_cast<const ort::Shape*>(info), tensor.shape.data(), rank);
    }
    call<void>(api, ort::kReleaseTensorTypeAndShapeInfo, info);
    check(failed);
    require(type == expected, "an input is of another type");
    // So no sum or product of two sizes overflows, and each fits an int.
    for (int64_t extent : tensor.shape) require(extent >= 0 && extent < (1L << 31), "sizes too large");
    void* data = nullptr;
    check(call<Status*>(api, ort::kGetTensorMutableData, const_cast<ort::Value*>(value), &data));
    // Weights are mapped from where a graph says that they lie.
    require(reinterpret_cast<uintptr_t>(data) % alignof(float) == 0, "an input is not aligned");
    tensor.memory = data;
    tensor.given = true;
    return tensor;
}

// An input; without data where an optional one is not there.
Tensor input(Api api, const ort::KernelContext* context, size_t index, int type = ort::kFloat) {
    size_t count = 0;
    check(call<Status*>(api, ort::kKernelContextGetInputCount, context, &count));
    const ort::Value* value = nullptr;
    if (index < count) check(call<Status*>(api, ort::kKernelContextGetInput, context, index, &value));
    return value ? describe(api, value, type) : Tensor{};
}

float* output(Api api, ort::KernelContext* context, const std::vector<int64_t>& shape) {
    ort::Value* value = nullptr;
    check(call<Status*>(api, ort::kKernelContextGetOutput, context, size_t{0}, shape.data(), shape.size(), &value));
    void* data = nullptr;
    check(call<Status*>(api, ort::kGetTensorMutableData, value, &data));
    return static_cast<float*>(data);
}

long integer(Api api, const ort::KernelInfo* info, const char* name, long least, long most) {
    int64_t value = 0;
    check(call<Status*>(api, ort::kKernelInfoGetAttributeInt64, info, name, &value));
    require(value >= least && value <= most, name);
    return value;
}

float number(Api api, const ort::KernelInfo* info, const char* name) {
    float value = 0;
    check(call<Status*>(api, ort::kKernelInfoGetAttributeFloat, info, name, &value));
    return value;
}

std::vector<long> integers(Api api, const ort::KernelInfo* info, const char* name, long least, long most) {
    size_t count = 0;
    check(call<Status*>(api, ort::kKernelInfoGetAttributeArrayInt64, info, name, static_cast<int64_t*>(nullptr), &count));
    std::vector<int64_t> found(count);
    check(call<Status*>(api, ort::kKernelInfoGetAttributeArrayInt64, info, name, found.data(), &count));
    for (int64_t value : found) require(value >= least && value <= most, name);
    return {found.begin(), found.end()};
}

constexpr long kMost = 1 << 20;

// Weights of float32, or in whole numbers of 16 or 8 bits with the scales of their blocks and, of 8 bits, offsets.
template <long bits>
struct ConvolutionKernel {
    static constexpr const char* kName = bits == 32 ? "Convolution" : bits == 16 ? "Convolution16" : "Convolution8";
    static constexpr size_t kNeeded = bits == 32 ? 3 : bits == 16 ? 4 : 5, kInputs = kNeeded + 1;
    static int type(size_t index) {
        return bits == 32 || index == 0 || index == 2 || index == 3 || index == kInputs - 1 ? ort::kFloat
               : index == 4                                                                ? ort::kInt32
               : bits == 16                                                                ? ort::kInt16
                                                                                           : ort::kInt8;
    }
    Convolution told{};
    long right = 0;

    ConvolutionKernel(Api api, const ort::KernelInfo* info) {
        told.kernel = integer(api, info, "kernel", 1, 4096);
        told.stride = integer(api, info, "stride", 1, 4096);
        told.left = integer(api, info, "left", 0, 4096);
        right = integer(api, info, "right", 0, 4096);
        told.columns = integer(api, info, "columns", 1, kMost);
        told.groups = integer(api, info, "groups", 1, kMost);
        told.rate = integer(api, info, "rate", 1, 4096);
        told.crop = integer(api, info, "crop", 0, 4096);
        told.activation = static_cast<Activation>(integer(api, info, "activation", 0, 3));
        told.slope = number(api, info, "slope");
        require(told.columns % told.rate == 0 && told.columns % told.groups == 0, "columns");
        const bool glu = told.activation == Activation::kGlu;
        require(!glu || (told.columns % 32 == 0 && told.rate == 1 && told.groups == 1), "columns of a GLU");
        require(told.groups == 1 || (told.rate == 1 && told.slope == 1.0f), "groups");
        told.bits = bits;
    }

    Status* compute(Api api, ort::KernelContext* context, const Threads& threads) const {
        const Tensor in = input(api, context, 0), weights = input(api, context, 1, type(1)), bias = input(api, context, 2),
                     residual = input(api, context, kNeeded);
        Convolution c = told;
        require(in.rank() == 3, "the input is not (batch, frames, channels)");
        c.batch = in.at(0), c.frames = in.at(1), c.channels = in.at(2);
        require(c.channels > 0 && c.channels % c.groups == 0, "channels");
        const long out_width = c.columns / c.groups, panels = c.groups * ((out_width + 31) / 32);
        const long depth = times(c.kernel, c.channels / c.groups);
        constexpr long together = 32 / bits;
        require(weights.rank() == 3 && weights.at(0) == panels && weights.at(1) == depth / together &&
                    weights.at(2) == 32 * together,
                "weights of another size");
        if constexpr (bits < 32) {
            const long width = c.channels / c.groups, blocks = c.kernel * ((width + 127) / 128);
            require(width % 16 == 0, "channels in whole numbers");
            const auto fits = [&](const Tensor& t) {
                return t.rank() == 3 && t.at(0) == panels && t.at(1) == blocks && t.at(2) == 32;
            };
            const Tensor scales = input(api, context, 3);
            require(fits(scales), "scales of another size");
            c.whole = weights.memory, c.scales = scales.data();
            if constexpr (bits == 8) {
                const Tensor offsets = input(api, context, 4, ort::kInt32);
                require(fits(offsets), "offsets of another size");
                c.offsets = offsets.data<int>();
            }
        }
        require(bias.size() == c.columns && bias.rank() == 1, "bias of another size");
        const long padded = c.frames + c.left + right;
        c.rows = padded < c.kernel ? 0 : (padded - c.kernel) / c.stride + 1;
        c.out_channels = c.columns / c.rate / (c.activation == Activation::kGlu ? 2 : 1);
        c.out_frames = c.rate == 1 ? c.rows : times(c.frames, c.rate);
        // A transposed convolution's windows cover its output.
        require(c.rate == 1 ? c.crop == 0 : c.crop + c.out_frames <= times(c.rows, c.rate), "crop");
        const std::vector<int64_t> shape{c.batch, c.out_frames, c.out_channels};
        require(!residual.given || residual.shape == shape, "residual of another size");
        c.input = in.data(), c.weights = bits == 32 ? weights.data() : nullptr, c.bias = bias.data(), c.residual = residual.data();
        c.output = output(api, context, shape);
        return chosen()->convolve(c, threads);
    }
};

enum class Form { kDirect, kWinograd, kWhole };

// The residual blocks of a stage: by Winograd's method, also in whole numbers of 16 bits, or, for few channels, directly.
template <Form form>
struct BlocksKernel {
    static constexpr bool direct = form == Form::kDirect, in_whole = form == Form::kWhole;
    static constexpr const char* kName = direct ? "DirectBlocks" : in_whole ? "ResidualBlocks16" : "ResidualBlocks";
    static constexpr size_t kInputs = in_whole ? 4 : 3, kNeeded = kInputs;
    static int type(size_t index) { return in_whole && index == 1 ? ort::kInt16 : ort::kFloat; }
    ResidualBlocks told{};
    std::vector<long> kernels, dilations;

    BlocksKernel(Api api, const ort::KernelInfo* info) {
        kernels = integers(api, info, "kernels", 3, 31);
        dilations = integers(api, info, "dilations", 1, 64);
        told.plain = integer(api, info, "plain", 0, 1) != 0;
        told.slope = number(api, info, "slope");
        told.blocks = static_cast<long>(kernels.size());
        require(told.blocks > 0 && dilations.size() % kernels.size() == 0, "dilations");
        told.pairs = static_cast<long>(dilations.size()) / told.blocks;
        require(told.pairs > 0 && told.pairs <= kMostPairs && told.blocks * told.pairs * 2 <= kMostSteps, "dilations");
        for (long kernel : kernels) require(kernel % 2 == 1, "kernels");
    }

    Status* compute(Api api, ort::KernelContext* context, const Threads& threads) const {
        const Tensor in = input(api, context, 0), weights = input(api, context, 1, type(1)), biases = input(api, context, 2);
        ResidualBlocks r = told;
        require(in.rank() == 3 && in.at(2) > 0, "the input is not (batch, frames, channels)");
        r.batch = in.at(0), r.frames = in.at(1), r.channels = in.at(2);
        const long wide = (r.channels + 31) / 32 * 32, per_block = r.pairs * (r.plain ? 2 : 1);
        const auto needed = [&](long inputs) {
            long size = 0;
            for (long kernel : kernels) {
                const long each = direct ? kernel : points_of(kernel) * groups_of(kernel);
                size += times(times(each * per_block, wide), inputs);
            }
            return size;
        };
        // Exporters before direct-inl.hpp filled up to whole panels.
        r.pitch = direct ? r.channels : (r.channels + 15) / 16 * 16;
        if (form == Form::kWinograd && weights.size() != needed(r.pitch)) r.pitch = wide;
        require(weights.size() == needed(r.pitch), "weights of another size");
        require(biases.size() == times(r.blocks * per_block, wide), "biases of another size");
        if constexpr (in_whole) {
            const Tensor scales = input(api, context, 3);
            require(scales.size() == needed((r.pitch + 127) / 128), "scales of another size");
            r.whole = weights.data<int16_t>(), r.scales = scales.data();
        } else {
            r.weights = weights.data();
        }
        r.input = in.data(), r.biases = biases.data();
        r.kernels = kernels.data(), r.dilations = dilations.data();
        r.output = output(api, context, in.shape);
        return direct ? chosen()->direct_blocks(r, threads) : chosen()->residual_blocks(r, threads);
    }
};

// Operators of float32 alone.
struct Floats {
    static int type(size_t) { return ort::kFloat; }
};

struct AttentionKernel : Floats {
    static constexpr const char* kName = "Attention";
    static constexpr size_t kInputs = 4, kNeeded = 2;
    long heads = 0;

    AttentionKernel(Api api, const ort::KernelInfo* info) { heads = integer(api, info, "heads", 1, 4096); }

    Status* compute(Api api, ort::KernelContext* context, const Threads& threads) const {
        const Tensor projected = input(api, context, 0), mask = input(api, context, 1), table = input(api, context, 2),
                     gate = input(api, context, 3);
        Attention a{};
        require(projected.rank() == 3 && projected.at(2) > 0 && projected.at(2) % (3 * heads) == 0, "queries");
        a.batch = projected.at(0), a.frames = projected.at(1), a.heads = heads, a.width = projected.at(2) / 3 / heads;
        require(mask.size() == times(a.batch, a.frames), "mask of another size");
        if (table.given) {
            require(table.rank() == 2 && table.at(0) == heads && table.at(1) % 2 == 1, "table of another size");
            a.reach = table.at(1) / 2;
        }
        require(!gate.given || (table.given && gate.size() == times(times(a.batch, heads), a.frames)),
                "gate of another size");
        a.projected = projected.data(), a.mask = mask.data(), a.table = table.data(), a.gate = gate.data();
        a.output = output(api, context, {a.batch, a.frames, heads * a.width});
        return chosen()->attend(a, threads);
    }
};

struct DepthwiseKernel : Floats {
    static constexpr const char* kName = "Depthwise";
    static constexpr size_t kInputs = 3, kNeeded = 3;

    DepthwiseKernel(Api, const ort::KernelInfo*) {}

    Status* compute(Api api, ort::KernelContext* context, const Threads& threads) const {
        const Tensor in = input(api, context, 0), weights = input(api, context, 1), bias = input(api, context, 2);
        Depthwise d{};
        require(in.rank() == 3, "the input is not (batch, frames, channels)");
        d.batch = in.at(0), d.frames = in.at(1), d.channels = in.at(2);
        require(weights.rank() == 2 && weights.at(1) == d.channels && weights.at(0) % 2 == 1, "weights of another size");
        require(bias.size() == d.channels, "bias of another size");
        d.kernel = weights.at(0);
        d.input = in.data(), d.weights = weights.data(), d.bias = bias.data();
        d.output = output(api, context, in.shape);
        return chosen()->depthwise(d, threads);
    }
};

// A kernel with the interface that calls it.
template <class Kernel>
struct Instance {
    Api api;
    Kernel kernel;
};

// No exception crosses into ONNX Runtime.
template <class Work>
Status* guarded(Api api, const char* name, const Work& work) {
    try {
        return work();
    } catch (const Failed& failed) {
        return failed.status;
    } catch (const Misfit& misfit) {
        return refuse(api, name, misfit.why);
    } catch (const std::bad_alloc&) {
        return refuse(api, name, "out of memory");
    }
}

template <class Kernel>
ort::CustomOp declare() {
    ort::CustomOp op{};
    op.version = ort::kApiVersion;
    op.name = [](const ort::CustomOp*) { return Kernel::kName; };
    op.provider = [](const ort::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
    op.input_type = [](const ort::CustomOp*, size_t index) { return Kernel::type(index); };
    op.input_count = [](const ort::CustomOp*) { return Kernel::kInputs; };
    op.output_type = [](const ort::CustomOp*, size_t) -> int { return ort::kFloat; };
    op.output_count = [](const ort::CustomOp*) -> size_t { return 1; };
    op.input_characteristic = [](const ort::CustomOp*, size_t index) -> int {
        return index < Kernel::kNeeded ? ort::kRequired : ort::kOptional;
    };
    op.output_characteristic = [](const ort::CustomOp*, size_t) -> int { return ort::kRequired; };
    op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };
    op.variadic_input_least = op.variadic_output_least = [](const ort::CustomOp*) { return 1; };
    op.variadic_input_uniform = op.variadic_output_uniform = [](const ort::CustomOp*) { return 1; };
    op.create_kernel_v2 = [](const ort::CustomOp*, Api api, const ort::KernelInfo* info, void** made) {
        return guarded(api, Kernel::kName, [&]() -> Status* {
            *made = new Instance<Kernel>{api, Kernel(api, info)};
            return nullptr;
        });
    };
    op.compute_v2 = [](void* instance, ort::KernelContext* context) {
        const auto& given = *static_cast<const Instance<Kernel>*>(instance);
        return guarded(given.api, Kernel::kName,
                       [&] { return given.kernel.compute(given.api, context, Threads(given.api, context)); });
    };
    op.destroy = [](void* instance) { delete static_cast<Instance<Kernel>*>(instance); };
    op.first_version = [](const ort::CustomOp*) { return 1; };
    op.last_version = [](const ort::CustomOp*) { return 1; };
    return op;
}

}  // namespace
}  // namespace mkc

// The best instruction set that this processor has: 512, 256, or 0 for none that the library is built for.
extern "C" __attribute__((visibility("default"))) int mkc_fast_vector_bits() {
    return mkc::chosen() == nullptr ? 0 : mkc::chosen() == &mkc::kAvx2 ? 256 : 512;
}

// Whether it has instructions for products of whole numbers (VNNI), too.
extern "C" __attribute__((visibility("default"))) int mkc_fast_has_vnni() {
    return mkc::chosen() == &mkc::kAvx512Vnni || mkc::chosen() == &mkc::kAvx512Amx;
}

// Whether it has tiles for products of 8-bit numbers (AMX), too.
extern "C" __attribute__((visibility("default"))) int mkc_fast_has_tiles() { return mkc::chosen() == &mkc::kAvx512Amx; }

// Leave larger vectors unused from now on, to test and to measure what smaller ones do.
extern "C" __attribute__((visibility("default"))) void mkc_fast_limit_vector_bits(int bits) {
    mkc::most_bits = bits;
}

// Whether VNNI is used where it is there, likewise.
extern "C" __attribute__((visibility("default"))) void mkc_fast_allow_vnni(int allowed) { mkc::may_use_vnni = allowed != 0; }

// Whether AMX is used where it is there, likewise.
extern "C" __attribute__((visibility("default"))) void mkc_fast_allow_tiles(int allowed) { mkc::may_use_tiles = allowed != 0; }

// Arithmetic alone, to measure what a core can do; returns how many multiplications and additions it did.
extern "C" __attribute__((visibility("default"))) double mkc_fast_exercise(long bits, long rounds) {
    return mkc::chosen() ? mkc::chosen()->exercise(bits, rounds) : 0.0;
}

// What ONNX Runtime calls by this name.
extern "C" __attribute__((visibility("default"))) mkc::ort::Status* RegisterCustomOps(
    mkc::ort::SessionOptions* options, const mkc::ort::ApiBase* base) {
    using namespace mkc;
    const ort::Api api = base->get_api(ort::kApiVersion);
    if (!api) return nullptr;  // an ONNX Runtime before 1.17; the graph will say what it lacks
    static const ort::CustomOp ops[] = {
        declare<ConvolutionKernel<32>>(),         declare<ConvolutionKernel<16>>(),       declare<ConvolutionKernel<8>>(),
        declare<BlocksKernel<Form::kWinograd>>(), declare<BlocksKernel<Form::kWhole>>(), declare<BlocksKernel<Form::kDirect>>(),
        declare<AttentionKernel>(),               declare<DepthwiseKernel>()};
    // The domain has to outlive every session, and there is no call that says when the last one ends.
    static ort::Domain* domain = nullptr;
    static const bool made = [&] {
        ort::Status* failed = ort::call<ort::Status*>(api, ort::kCreateCustomOpDomain, "mkc_fast", &domain);
        for (const ort::CustomOp& op : ops)
            if (!failed) failed = ort::call<ort::Status*>(api, ort::kCustomOpDomainAdd, domain, &op);
        if (failed) ort::call<void>(api, ort::kReleaseStatus, failed);
        return failed == nullptr;
    }();
    if (!made) return refuse(api, "operators", "cannot be registered");
    return ort::call<ort::Status*>(api, ort::kAddCustomOpDomain, options, domain);
}
