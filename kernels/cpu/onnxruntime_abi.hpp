// The part of ONNX Runtime's C interface that an operator library needs.
//
// ONNX Runtime hands a library a table of functions. Its order is fixed from release to release: new functions are only
// ever appended. So the positions of the few that are used here are all that is needed of its header, and no header of
// one release binds this library to it. Position and meaning: onnxruntime_c_api.h, structs OrtApi and OrtCustomOp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mkc::ort {

// Release 1.17, which brought KernelContext_ParallelFor.
constexpr uint32_t kApiVersion = 17;

enum Position : int {
    kCreateStatus = 0,
    kCreateCustomOpDomain = 26,
    kCustomOpDomainAdd = 27,
    kAddCustomOpDomain = 28,
    kGetTensorMutableData = 51,
    kGetTensorElementType = 60,
    kGetDimensionsCount = 61,
    kGetDimensions = 62,
    kGetTensorTypeAndShape = 65,
    kKernelInfoGetAttributeFloat = 85,
    kKernelInfoGetAttributeInt64 = 86,
    kKernelContextGetInputCount = 88,
    kKernelContextGetInput = 90,
    kKernelContextGetOutput = 91,
    kReleaseStatus = 93,
    kReleaseTensorTypeAndShapeInfo = 99,
    kKernelInfoGetAttributeArrayInt64 = 163,
    kKernelContextParallelFor = 274,
};

// Opaque types of ONNX Runtime.
struct Status;
struct Value;
struct Shape;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct Domain;
using Api = const void* const*;

struct ApiBase {
    Api (*get_api)(uint32_t version);
    const char* (*get_version)();
};

template <class Result, class... Arguments>
inline Result call(Api api, Position position, Arguments... arguments) {
    using Function = Result (*)(Arguments...);
    return reinterpret_cast<Function>(const_cast<void*>(api[position]))(arguments...);
}

enum ElementType : int { kFloat = 1, kInt8 = 3, kInt16 = 5, kInt32 = 6 };
enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

// OrtCustomOp of version 17, field by field.
struct CustomOp {
    uint32_t version;
    void* (*create_kernel)(const CustomOp*, Api, const KernelInfo*);
    const char* (*name)(const CustomOp*);
    const char* (*provider)(const CustomOp*);
    int (*input_type)(const CustomOp*, size_t);
    size_t (*input_count)(const CustomOp*);
    int (*output_type)(const CustomOp*, size_t);
    size_t (*output_count)(const CustomOp*);
    void (*compute)(void*, KernelContext*);
    void (*destroy)(void*);
    int (*input_characteristic)(const CustomOp*, size_t);
    int (*output_characteristic)(const CustomOp*, size_t);
    int (*input_memory)(const CustomOp*, size_t);
    int (*variadic_input_least)(const CustomOp*);
    int (*variadic_input_uniform)(const CustomOp*);
    int (*variadic_output_least)(const CustomOp*);
    int (*variadic_output_uniform)(const CustomOp*);
    Status* (*create_kernel_v2)(const CustomOp*, Api, const KernelInfo*, void**);
    Status* (*compute_v2)(void*, KernelContext*);
    Status* (*infer_shape)(const CustomOp*, void*);
    int (*first_version)(const CustomOp*);
    int (*last_version)(const CustomOp*);
};

}  // namespace mkc::ort
