// What the stubs share: the device that they imagine, the log, and the objects of the runtime that others are asked about.
//
// A line of the log is one call: a word, a stream (or -), an amount, and a text. calls.py says what the words mean.
#pragma once
#include <stddef.h>
#include <stdint.h>

// An H100. ONNX Runtime and CuPy choose kernels by the compute capability and by what a block may have.
enum {
    CAPABILITY_MAJOR = 9,
    CAPABILITY_MINOR = 0,
    PROCESSORS = 132,
    WARP_THREADS = 32,
    BLOCK_THREADS = 1024,
    PROCESSOR_THREADS = 2048,
    REGISTERS = 65536,
    L2_BYTES = 50 << 20,
    SHARED_BYTES = 48 << 10,  // of a block that did not ask for more
    SHARED_BYTES_ASKED = 227 << 10,
    PROCESSOR_SHARED_BYTES = 228 << 10,
    GRID_X = 0x7fffffff,
    GRID_YZ = 65535,
};
#define DEVICE_NAME "dry run of an H100"
#define DEVICE_BYTES ((size_t)80 << 30)
#define DEVICE_BYTES_FREE ((size_t)78 << 30)

#define FORMAT(place) __attribute__((format(printf, place, place + 1)))

// What the host does at once, in no stream.
void dry_run_log(const char *word, size_t amount, const char *text, ...) FORMAT(3);
// The same, where CUDA would refuse it while a stream is captured.
void dry_run_blocking(const char *word, size_t amount, const char *text, ...) FORMAT(3);
// What is queued in a stream.
void dry_run_queue(const char *word, const void *stream, size_t amount, const char *text, ...) FORMAT(4);
// What CUDA would not have taken.
void dry_run_wrong(const char *text, ...) FORMAT(1);

// How many bytes lie between an address and the end of its allocation; 0 where nothing is allocated.
size_t dry_run_room(const void *address, int *pinned);

// A launch, of the runtime or of the driver.
struct dry_run_launch {
    const char *name;
    unsigned grid[3], block[3];
    size_t shared, static_shared, shared_asked;
    const void *stream;
};
int dry_run_launched(const struct dry_run_launch *launch);  // 0, or 1 if CUDA would refuse it

// The first argument of cuBLAS's and cuDNN's functions: a handle knows its stream.
struct dry_run_handle { void *stream; };
