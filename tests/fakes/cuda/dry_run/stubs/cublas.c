// cuBLAS without a device: products are logged with their sizes, rows and columns as cuBLAS counts them.
#include "libraries.h"

typedef const void *In;
typedef struct dry_run_handle *Handle;

// Types, as far as they occur here: 0 is float32, 2 float16, 14 bfloat16.
static void product(Handle handle, const char *name, int m, int n, int k, int batch, int type) {
    dry_run_queue("gemm", handle->stream, (size_t)m * n * k * batch, "%s %dx%dx%d batch=%d type=%d", name, m, n, k, batch,
                  type);
}
int cublasSetStream_v2(Handle handle, void *stream) { return handle->stream = stream, 0; }
int cublasGetStream_v2(Handle handle, void **stream) { return *stream = handle->stream, 0; }
int cublasGetMathMode(Handle handle, int *mode) { return *mode = 0, 0; }
int cublasSetMathMode(Handle handle, int mode) { return 0; }
const char *cublasGetStatusName(int status) { return status ? "CUBLAS_STATUS_INTERNAL_ERROR" : "CUBLAS_STATUS_SUCCESS"; }
const char *cublasGetStatusString(int status) { return status ? "an error" : "success"; }
int cublasSgemm_v2(Handle handle, int ta, int tb, int m, int n, int k) {
    return product(handle, "cublasSgemm", m, n, k, 1, 0), 0;
}
int cublasSgemmStridedBatched(Handle handle, int ta, int tb, int m, int n, int k, In alpha, In a, int lda, int64_t sa,
                              In b, int ldb, int64_t sb, In beta, void *c, int ldc, int64_t sc, int batch) {
    return product(handle, "cublasSgemmStridedBatched", m, n, k, batch, 0), 0;
}
int cublasGemmEx(Handle handle, int ta, int tb, int m, int n, int k, In alpha, In a, int type) {
    return product(handle, "cublasGemmEx", m, n, k, 1, type), 0;
}
int cublasGemmStridedBatchedEx(Handle handle, int ta, int tb, int m, int n, int k, In alpha, In a, int type, int lda,
                               int64_t sa, In b, int b_type, int ldb, int64_t sb, In beta, void *c, int c_type, int ldc,
                               int64_t sc, int batch) {
    return product(handle, "cublasGemmStridedBatchedEx", m, n, k, batch, type), 0;
}
