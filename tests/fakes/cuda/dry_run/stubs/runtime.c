// CUDA's runtime without a device. Memory is the host's, copies are made, kernels do nothing, and each call is logged.
#include "dry_run.h"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <pthread.h>
#include <search.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define OK cudaSuccess

// One lock for all tables and for what is captured.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

// The log

static const void *captured;     // the stream that is recorded
static size_t captured_calls;    // what the recording holds
static __thread cudaError_t last_error;

// One write a line: threads, and processes that share the file, do not mix their lines.
static void write_line(const char *word, const void *stream, size_t amount, const char *text, va_list values) {
    static int file = -1;
    char line[4096];
    pthread_mutex_lock(&lock);
    if (file < 0) {
        const char *path = getenv("CUDA_DRY_RUN_LOG");
        file = open(path ? path : "/dev/null", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    }
    pthread_mutex_unlock(&lock);
    int length = stream == (void *)-1 ? snprintf(line, sizeof line, "%s - %zu ", word, amount)
                                      : snprintf(line, sizeof line, "%s 0x%lx %zu ", word, (long)stream, amount);
    length += vsnprintf(line + length, sizeof line - length - 1, text, values);
    if (length > (int)sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    if (write(file, line, length) != length) abort();  // a count that lacks calls must not pass
}
#define WRITE_LINE(word, stream, amount) do { \
        va_list values; \
        va_start(values, text); \
        write_line(word, stream, amount, text, values); \
        va_end(values); \
    } while (0)
#define NO_STREAM ((void *)-1)

void dry_run_log(const char *word, size_t amount, const char *text, ...) { WRITE_LINE(word, NO_STREAM, amount); }
void dry_run_blocking(const char *word, size_t amount, const char *text, ...) {
    WRITE_LINE(word, NO_STREAM, amount);
    if (captured) dry_run_log("refused", 0, "%s in a capture", word);
}
void dry_run_wrong(const char *text, ...) { WRITE_LINE("wrong", NO_STREAM, 0); }
static int is_stream(const void *stream);
void dry_run_queue(const char *word, const void *stream, size_t amount, const char *text, ...) {
    WRITE_LINE(word, stream, amount);
    if (!is_stream(stream)) dry_run_wrong("%s in 0x%lx, which is no stream", word, (long)stream);
    if (captured && stream == captured) captured_calls++;
    // Work in the legacy stream is refused; in another stream it goes on, and the recording lacks it.
    if (captured && stream != captured) dry_run_log("refused", 0, "%s in another stream than the captured one", word);
}

// Errors

static cudaError_t failed(cudaError_t error) { return last_error = error; }
cudaError_t cudaPeekAtLastError(void) { return last_error; }
cudaError_t cudaGetLastError(void) {
    cudaError_t error = last_error;
    last_error = OK;
    return error;
}
// Those that the stubs give.
#define ERRORS(each) \
    each(cudaSuccess, "no error") \
    each(cudaErrorInvalidValue, "invalid argument") \
    each(cudaErrorMemoryAllocation, "out of memory") \
    each(cudaErrorInvalidDevice, "invalid device ordinal") \
    each(cudaErrorInvalidConfiguration, "invalid configuration argument") \
    each(cudaErrorInvalidResourceHandle, "invalid resource handle") \
    each(cudaErrorNotSupported, "operation not supported")
const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
#define NAME(name, text) case name: return #name;
        ERRORS(NAME)
        default: return "cudaErrorUnknown";
    }
}
const char *cudaGetErrorString(cudaError_t error) {
    switch (error) {
#define TEXT(name, text) case name: return text;
        ERRORS(TEXT)
        default: return "unknown error";
    }
}

// The device

int cuda_dry_run(void) { return 1; }  // tells these libraries from the real ones
cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, OK; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, OK; }
cudaError_t cudaSetDevice(int device) { return device ? failed(cudaErrorInvalidDevice) : OK; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = CUDART_VERSION, OK; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = CUDART_VERSION, OK; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *about, int device) {
    if (device) return failed(cudaErrorInvalidDevice);
    memset(about, 0, sizeof *about);
    strcpy(about->name, DEVICE_NAME);
    about->major = CAPABILITY_MAJOR;
    about->minor = CAPABILITY_MINOR;
    about->totalGlobalMem = DEVICE_BYTES;
    about->warpSize = WARP_THREADS;
    about->multiProcessorCount = PROCESSORS;
    about->maxThreadsPerBlock = BLOCK_THREADS;
    about->maxThreadsPerMultiProcessor = PROCESSOR_THREADS;
    about->regsPerBlock = about->regsPerMultiprocessor = REGISTERS;
    about->l2CacheSize = L2_BYTES;
    about->sharedMemPerBlock = SHARED_BYTES;
    about->sharedMemPerBlockOptin = SHARED_BYTES_ASKED;
    about->sharedMemPerMultiprocessor = PROCESSOR_SHARED_BYTES;
    about->maxThreadsDim[0] = about->maxThreadsDim[1] = BLOCK_THREADS;
    about->maxThreadsDim[2] = 64;
    about->maxGridSize[0] = GRID_X;
    about->maxGridSize[1] = about->maxGridSize[2] = GRID_YZ;
    return OK;
}
static int attribute_value(enum cudaDeviceAttr attribute) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: return CAPABILITY_MAJOR;
        case cudaDevAttrComputeCapabilityMinor: return CAPABILITY_MINOR;
        case cudaDevAttrMultiProcessorCount: return PROCESSORS;
        case cudaDevAttrWarpSize: return WARP_THREADS;
        case cudaDevAttrMaxThreadsPerBlock: return BLOCK_THREADS;
        case cudaDevAttrMaxThreadsPerMultiProcessor: return PROCESSOR_THREADS;
        case cudaDevAttrMaxSharedMemoryPerBlock: return SHARED_BYTES;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: return SHARED_BYTES_ASKED;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return PROCESSOR_SHARED_BYTES;
        case cudaDevAttrL2CacheSize: return L2_BYTES;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor: return REGISTERS;
        case cudaDevAttrMaxGridDimX: return GRID_X;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: return GRID_YZ;
        default: return 1;  // most others ask whether the device can do something
    }
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    return *value = attribute_value(attribute), OK;
}

// Memory: a tree of allocations. Two ranges that overlap are equal, so a range of one byte finds what it lies in.

struct allocation { char *begin; size_t size; int pinned; };
static void *allocations;
static size_t device_bytes_used;

static int compare_ranges(const void *left, const void *right) {
    const struct allocation *a = left, *b = right;
    return a->begin + a->size <= b->begin ? -1 : b->begin + b->size <= a->begin ? 1 : 0;
}
static struct allocation *find_allocation(const void *address) {
    struct allocation one = {(char *)address, 1, 0}, **found = tfind(&one, &allocations, compare_ranges);
    return found ? *found : NULL;
}
size_t dry_run_room(const void *address, int *pinned) {
    pthread_mutex_lock(&lock);
    const struct allocation *found = find_allocation(address);
    size_t room = found ? found->begin + found->size - (char *)address : 0;
    if (pinned) *pinned = found && found->pinned;
    pthread_mutex_unlock(&lock);
    return room;
}
// Read at each allocation, so that a program may change it.
static size_t memory_limit(void) {
    const char *megabytes = getenv("CUDA_DRY_RUN_MEMORY_MB");
    return megabytes ? (size_t)atoll(megabytes) << 20 : DEVICE_BYTES_FREE;
}
static cudaError_t allocate(const char *word, void **made, size_t size, int pinned) {
    *made = NULL;
    if (!size) return OK;
    pthread_mutex_lock(&lock);
    size_t limit = memory_limit();
    int fits = pinned || (size <= limit && device_bytes_used <= limit - size);
    // Pages that nothing writes to take no memory of the host.
    void *memory = fits ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                        : MAP_FAILED;
    if (memory != MAP_FAILED) {
        struct allocation *added = malloc(sizeof *added);
        *added = (struct allocation){memory, size, pinned};
        tsearch(added, &allocations, compare_ranges);
        if (!pinned) device_bytes_used += size;
        *made = memory;
    }
    pthread_mutex_unlock(&lock);
    dry_run_blocking(*made ? word : "short", size, "%s", *made ? "" : word);
    return *made ? OK : failed(cudaErrorMemoryAllocation);
}
static cudaError_t release(const char *word, void *memory) {
    if (!memory) return OK;
    pthread_mutex_lock(&lock);
    struct allocation *found = find_allocation(memory);
    size_t size = found && found->begin == memory ? found->size : 0;
    if (size) {
        tdelete(found, &allocations, compare_ranges);
        if (!found->pinned) device_bytes_used -= size;
        free(found);
        munmap(memory, size);
    }
    pthread_mutex_unlock(&lock);
    dry_run_blocking(word, size, "%s", "");
    if (!size) dry_run_wrong("%s of %p, which is no allocation", word, memory);
    return size ? OK : failed(cudaErrorInvalidValue);
}
cudaError_t cudaMalloc(void **made, size_t size) { return allocate("malloc", made, size, 0); }
cudaError_t cudaFree(void *memory) { return release("free", memory); }
cudaError_t cudaHostAlloc(void **made, size_t size, unsigned flags) { return allocate("pin", made, size, 1); }
cudaError_t cudaMallocHost(void **made, size_t size) { return allocate("pin", made, size, 1); }
cudaError_t cudaFreeHost(void *memory) { return release("unpin", memory); }
cudaError_t cudaMallocAsync(void **made, size_t size, cudaStream_t stream) { return allocate("malloc", made, size, 0); }
cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream) { return release("free", memory); }
cudaError_t cudaMallocFromPoolAsync(void **made, size_t size, cudaMemPool_t pool, cudaStream_t stream) {
    return allocate("malloc", made, size, 0);
}
cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    size_t limit = memory_limit();
    *left = device_bytes_used < limit ? limit - device_bytes_used : 0;
    *total = DEVICE_BYTES;
    return OK;
}
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *about, const void *address) {
    int pinned = 0, known = dry_run_room(address, &pinned) > 0;
    memset(about, 0, sizeof *about);
    about->type = !known ? cudaMemoryTypeUnregistered : pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    about->devicePointer = known ? (void *)address : NULL;
    about->hostPointer = pinned ? (void *)address : NULL;
    return OK;
}
// Pools: there is one, which keeps nothing.
static char only_pool;
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device) { return *pool = (void *)&only_pool, OK; }
cudaError_t cudaDeviceGetMemPool(cudaMemPool_t *pool, int device) { return *pool = (void *)&only_pool, OK; }
cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *how) {
    return *pool = (void *)&only_pool, OK;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) { return OK; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t kept) { return OK; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr which, void *value) { return OK; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr which, void *value) {
    return *(uint64_t *)value = 0, OK;
}

// Copies

static const char *direction(enum cudaMemcpyKind kind) {
    static const char *const names[] = {"H2H", "H2D", "D2H", "D2D"};
    return names[kind];
}
static int on_device(const void *address) {
    int pinned;
    return dry_run_room(address, &pinned) && !pinned;
}
// The direction, where CUDA was left to see it from the addresses.
static enum cudaMemcpyKind seen(enum cudaMemcpyKind kind, const void *to, const void *from) {
    if (kind < cudaMemcpyDefault) return kind;
    if (on_device(from)) return on_device(to) ? cudaMemcpyDeviceToDevice : cudaMemcpyDeviceToHost;
    return on_device(to) ? cudaMemcpyHostToDevice : cudaMemcpyHostToHost;
}
// Makes a copy if both ends have the room; the host's end is unknown where it is not pinned.
static cudaError_t copied(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    int to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    int from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if ((to_device && dry_run_room(to, NULL) < size) || (from_device && dry_run_room(from, NULL) < size)) {
        dry_run_wrong("copy %s of %zu bytes from %p to %p: not that much is allocated", direction(kind), size, from, to);
        return failed(cudaErrorInvalidValue);
    }
    return memmove(to, from, size), OK;
}
// An asynchronous copy waits all the same if the host's memory is not pinned.
static const char *manner(const void *to, const void *from, enum cudaMemcpyKind kind) {
    int pinned = 1;
    if (kind == cudaMemcpyHostToDevice) dry_run_room(from, &pinned);
    if (kind == cudaMemcpyDeviceToHost) dry_run_room(to, &pinned);
    return pinned ? "async" : "pageable";
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    kind = seen(kind, to, from);
    dry_run_blocking("copy", size, "%s sync", direction(kind));
    return copied(to, from, size, kind);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    kind = seen(kind, to, from);
    dry_run_queue("copy", stream, size, "%s %s", direction(kind), manner(to, from, kind));
    return copied(to, from, size, kind);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    kind = seen(kind, to, from);
    dry_run_queue("copy", stream, width * height, "%s %s", direction(kind), manner(to, from, kind));
    cudaError_t error = OK;
    for (size_t row = 0; row < height && !error; row++)
        error = copied((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width, kind);
    return error;
}
cudaError_t cudaMemcpyFromSymbol(void *to, const void *symbol, size_t size, size_t offset, enum cudaMemcpyKind kind) {
    dry_run_blocking("copy", size, "%s sync", direction(seen(kind, to, symbol)));
    memset(to, 0, size);
    return OK;
}
static cudaError_t fill(void *memory, int value, size_t size) {
    if (dry_run_room(memory, NULL) < size) {
        dry_run_wrong("set of %zu bytes at %p: not that much is allocated", size, memory);
        return failed(cudaErrorInvalidValue);
    }
    return memset(memory, value, size), OK;
}
cudaError_t cudaMemset(void *memory, int value, size_t size) {
    dry_run_blocking("set", size, "sync");
    return fill(memory, value, size);
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t size, cudaStream_t stream) {
    dry_run_queue("set", stream, size, "async");
    return fill(memory, value, size);
}

// Streams and events. They are never freed, so that one that was destroyed is noticed when it is used.

struct object { enum { STREAM = 1, EVENT } kind; int alive, recorded; unsigned flags; };
static void *objects;

static int compare_addresses(const void *left, const void *right) {
    return (uintptr_t)left < (uintptr_t)right ? -1 : left != right;
}
static struct object *make_object(int kind, unsigned flags) {
    struct object *made = calloc(1, sizeof *made);
    made->kind = kind;
    made->alive = 1;
    made->flags = flags;
    pthread_mutex_lock(&lock);
    tsearch(made, &objects, compare_addresses);
    pthread_mutex_unlock(&lock);
    return made;
}
static struct object *find_object(const void *handle, int kind) {
    pthread_mutex_lock(&lock);
    struct object **found = tfind(handle, &objects, compare_addresses);
    pthread_mutex_unlock(&lock);
    return found && (*found)->kind == kind && (*found)->alive ? *found : NULL;
}
static int is_stream(const void *stream) {  // also the null stream, and a thread's own
    return (uintptr_t)stream <= 2 || find_object(stream, STREAM);
}
static cudaError_t unknown(const char *what, const void *handle) {
    dry_run_wrong("%s of %p, which there is not", what, handle);
    return failed(cudaErrorInvalidResourceHandle);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = (cudaStream_t)make_object(STREAM, flags);
    dry_run_log("stream", 1, "%p", (void *)*stream);
    return OK;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    struct object *found = find_object(stream, STREAM);
    if (!found) return unknown("destruction of a stream", stream);
    return found->alive = 0, OK;
}
cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags) {
    struct object *found = find_object(stream, STREAM);
    return *flags = found ? found->flags : 0, OK;
}
cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) { return *priority = 0, OK; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return is_stream(stream) ? OK : unknown("query of a stream", stream); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    dry_run_blocking("wait", 1, "cudaStreamSynchronize");
    return is_stream(stream) ? OK : unknown("wait for a stream", stream);
}
cudaError_t cudaDeviceSynchronize(void) { return dry_run_blocking("wait", 1, "cudaDeviceSynchronize"), OK; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    return *event = (cudaEvent_t)make_object(EVENT, flags), OK;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    struct object *found = find_object(event, EVENT);
    if (!found) return unknown("destruction of an event", event);
    return found->alive = 0, OK;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
    struct object *found = find_object(event, EVENT);
    if (!found) return unknown("record of an event", event);
    dry_run_queue("record", stream, 1, "%p", (void *)event);
    return found->recorded = 1, OK;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return cudaEventRecordWithFlags(event, stream, 0); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    if (!find_object(event, EVENT)) return unknown("wait for an event", event);
    return dry_run_queue("follow", stream, 1, "%p", (void *)event), OK;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    dry_run_blocking("wait", 1, "cudaEventSynchronize");
    return find_object(event, EVENT) ? OK : unknown("wait for an event", event);
}
cudaError_t cudaEventQuery(cudaEvent_t event) { return find_object(event, EVENT) ? OK : unknown("query of an event", event); }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    struct object *begin = find_object(from, EVENT), *end = find_object(to, EVENT);
    if (!begin || !end || !begin->recorded || !end->recorded || (begin->flags | end->flags) & cudaEventDisableTiming) {
        dry_run_wrong("time between events that were not recorded, or have no time");
        return failed(cudaErrorInvalidResourceHandle);
    }
    return *milliseconds = 1, OK;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
    dry_run_queue("callback", stream, 1, "%s", "");
    function(data);
    return OK;
}

// CUDA graphs: a recording knows how many calls it holds.

struct recording { size_t calls; };
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    if (captured || (uintptr_t)stream <= 2) dry_run_wrong("capture of the null stream, or inside another capture");
    dry_run_log("capture", 1, "begin");
    captured = stream;
    captured_calls = 0;
    return OK;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (!captured || captured != stream) dry_run_wrong("end of a capture that did not begin");
    struct recording *made = malloc(sizeof *made);
    made->calls = captured_calls;
    captured = NULL;
    dry_run_log("capture", 0, "end");
    return *graph = (cudaGraph_t)made, OK;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = captured && captured == stream ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return OK;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags) {
    struct recording *copy = malloc(sizeof *copy);
    *copy = *(struct recording *)graph;
    dry_run_blocking("instantiate", copy->calls, "%s", "");
    return *made = (cudaGraphExec_t)copy, OK;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
    dry_run_queue("replay", stream, ((struct recording *)graph)->calls, "%s", "");
    return OK;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return free(graph), OK; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return free(graph), OK; }

// Kernels. A library registers them when it is loaded: the address that a launch has, and the name.

struct kernel { const void *address; char *name; size_t shared_asked; };
static void *kernels;

static int compare_kernels(const void *left, const void *right) {
    return compare_addresses(((const struct kernel *)left)->address, ((const struct kernel *)right)->address);
}
static struct kernel *add_kernel(const void *address, const char *name) {
    struct kernel *made = calloc(1, sizeof *made);
    made->address = address ? address : made;
    made->name = strdup(name);
    pthread_mutex_lock(&lock);
    tsearch(made, &kernels, compare_kernels);
    pthread_mutex_unlock(&lock);
    return made;
}
static struct kernel *find_kernel(const void *address) {
    struct kernel wanted = {address};
    pthread_mutex_lock(&lock);
    struct kernel **found = tfind(&wanted, &kernels, compare_kernels);
    pthread_mutex_unlock(&lock);
    return found ? *found : NULL;
}
void **__cudaRegisterFatBinary(void *code) { static void *registered; return &registered; }
void __cudaRegisterFatBinaryEnd(void **code) {}
void __cudaUnregisterFatBinary(void **code) {}
void __cudaRegisterVar(void **code, char *address, char *other, const char *name, int a, size_t size, int b, int c) {}
void __cudaRegisterFunction(void **code, const char *address, char *other, const char *name, int threads, void *tid,
                            void *bid, void *block, void *grid, int *warp) {
    add_kernel(address, name);
}

int dry_run_launched(const struct dry_run_launch *launch) {
    const unsigned *grid = launch->grid, *block = launch->block;
    size_t threads = (size_t)block[0] * block[1] * block[2], blocks = (size_t)grid[0] * grid[1] * grid[2];
    dry_run_queue("kernel", launch->stream, blocks * threads, "%s", launch->name);
    if (!blocks || !threads || threads > BLOCK_THREADS || grid[0] > GRID_X || grid[1] > GRID_YZ || grid[2] > GRID_YZ) {
        dry_run_wrong("launch of %s: %u,%u,%u blocks of %zu threads", launch->name, grid[0], grid[1], grid[2], threads);
        return 1;
    }
    size_t shared = launch->shared + launch->static_shared;
    if (shared > SHARED_BYTES && launch->shared > launch->shared_asked) {
        dry_run_wrong("launch of %s: %zu bytes of shared memory, %zu asked for", launch->name, shared, launch->shared_asked);
        return 1;
    }
    return 0;
}
static cudaError_t launch(const void *address, dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
    const struct kernel *found = find_kernel(address);
    if (!found) {
        dry_run_wrong("launch of a kernel that no library registered");
        return failed(cudaErrorInvalidValue);
    }
    const struct dry_run_launch made = {found->name, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared, 0,
                                        found->shared_asked, stream};
    return dry_run_launched(&made) ? failed(cudaErrorInvalidConfiguration) : OK;
}
cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
    return launch(f, grid, block, shared, s);
}
cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
    return launch(f, grid, block, shared, s);
}
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 grid, dim3 block, void **arguments, size_t shared,
                                        cudaStream_t s) {
    return launch(f, grid, block, shared, s);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *f, void **arguments) {
    return launch(f, how->gridDim, how->blockDim, how->dynamicSmemBytes, how->stream);
}
// What stands between <<< and >>> is pushed by the caller, and popped by the function that the compiler makes of a kernel.
struct configuration { dim3 grid, block; size_t shared; void *stream; };
static __thread struct configuration pushed[8];
static __thread unsigned pushed_count;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
    if (pushed_count == sizeof pushed / sizeof *pushed) return 1;
    pushed[pushed_count++] = (struct configuration){grid, block, shared, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    if (!pushed_count) return failed(cudaErrorInvalidConfiguration);
    const struct configuration *last = &pushed[--pushed_count];
    *grid = last->grid;
    *block = last->block;
    *shared = last->shared;
    *(void **)stream = last->stream;
    return OK;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *f) { return *kernel = (cudaKernel_t)f, OK; }
static cudaError_t ask(const void *f, int attribute, int value) {
    struct kernel *found = find_kernel(f);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || !found) return OK;
    if (value < 0 || value > SHARED_BYTES_ASKED) return failed(cudaErrorInvalidValue);
    return found->shared_asked = value, OK;
}
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute which, int value) { return ask(f, which, value); }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t f, enum cudaFuncAttribute which, int value, int device) {
    return ask(f, which, value);
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *about, const void *f) {
    const struct kernel *found = find_kernel(f);
    memset(about, 0, sizeof *about);
    about->binaryVersion = about->ptxVersion = 10 * CAPABILITY_MAJOR + CAPABILITY_MINOR;
    about->maxThreadsPerBlock = BLOCK_THREADS;
    about->numRegs = 64;
    about->maxDynamicSharedSizeBytes = found && found->shared_asked ? found->shared_asked : SHARED_BYTES;
    return OK;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int threads,
                                                                   size_t shared, unsigned flags) {
    return *blocks = threads > 0 ? PROCESSOR_THREADS / threads : 0, OK;
}
// Code that a program brings along by itself.
cudaError_t cudaLibraryLoadData(cudaLibrary_t *made, const void *code, enum cudaJitOption *jit, void **jit_values,
                                unsigned jit_count, enum cudaLibraryOption *options, void **values, unsigned count) {
    static char only_library;
    return *made = (cudaLibrary_t)&only_library, OK;
}
cudaError_t cudaLibraryUnload(cudaLibrary_t library) { return OK; }
cudaError_t cudaLibraryGetKernel(cudaKernel_t *made, cudaLibrary_t library, const char *name) {
    return *made = (cudaKernel_t)add_kernel(NULL, name)->address, OK;
}
// Functions of the driver that are asked for by name do nothing and succeed.
static int driver_function(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result) {
    dry_run_log("entry", 1, "%s", name);
    *function = (void *)driver_function;
    if (result) *result = cudaDriverEntryPointSuccess;
    return OK;
}
