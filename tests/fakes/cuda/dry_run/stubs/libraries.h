// The head of cuBLAS's, cuDNN's and cuRAND's stubs. What they lack of what is wanted, build.py writes with these macros.
#pragma once
#include "dry_run.h"

#include <stdlib.h>
#include <string.h>

static inline const void *stream_of(const void *handle) {
    return handle ? ((const struct dry_run_handle *)handle)->stream : NULL;
}
// Arguments that are not declared do no harm on x86-64. Of functions that compute, the first one is the handle.
#define CREATES(name) int name(void **made) { return *made = calloc(1, 64), 0; }
#define SUCCEEDS(name) int name(void) { return 0; }
#define COMPUTES(word, name) int name(void *handle) { return dry_run_queue(word, stream_of(handle), 1, #name), 0; }
// Of the runtime and the driver: it must not pass that the stub does not know what it should do.
#define LACKS(name, error) int name(void) { return dry_run_wrong("call of %s, which the stubs lack", #name), error; }
