// cuDNN without a device. Convolutions and attention are described by objects; an execution plan is planned when it is
// finalized. Here there is one engine for everything, which wants 1 MiB of workspace.
#include "libraries.h"

// Values of cudnnBackendDescriptorType_t, cudnnBackendAttributeType_t and cudnnBackendAttributeName_t.
enum { EXECUTION_PLAN_DESCRIPTOR = 5 };
enum { TYPE_BOOLEAN = 2, TYPE_INT64 = 3, TYPE_NUMERICAL_NOTE = 11, TYPE_DESCRIPTOR = 15, TYPE_BEHAVIOR_NOTE = 19 };
enum { PLAN_WORKSPACE_BYTES = 402, WORKSPACE_BYTES = 1 << 20 };

struct descriptor { int type; };

int cudnnBackendCreateDescriptor(int type, struct descriptor **made) {
    *made = malloc(sizeof **made);
    return (*made)->type = type, 0;
}
int cudnnBackendDestroyDescriptor(struct descriptor *one) { return free(one), 0; }
int cudnnBackendFinalize(struct descriptor *one) {
    if (one->type == EXECUTION_PLAN_DESCRIPTOR) dry_run_log("plan", 1, "cudnn");
    return 0;
}
int cudnnBackendGetAttribute(struct descriptor *one, int name, int type, int64_t room, int64_t *count, void *values) {
    int none = type == TYPE_NUMERICAL_NOTE || type == TYPE_BEHAVIOR_NOTE;
    if (count) *count = !none;
    if (none || !values || room < 1) return 0;
    switch (type) {
        case TYPE_DESCRIPTOR: break;  // the caller has made the objects that are to be filled
        case TYPE_BOOLEAN: *(_Bool *)values = 0; break;
        case TYPE_INT64: *(int64_t *)values = name == PLAN_WORKSPACE_BYTES ? WORKSPACE_BYTES : 0; break;
        default: *(int *)values = 0;
    }
    return 0;
}
int cudnnBackendExecute(struct dry_run_handle *handle, void *plan, void *pointers) {
    return dry_run_queue("execute", handle->stream, 1, "cudnn"), 0;
}
int cudnnSetStream(struct dry_run_handle *handle, void *stream) { return handle->stream = stream, 0; }
int cudnnGetStream(struct dry_run_handle *handle, void **stream) { return *stream = handle->stream, 0; }
int cudnnGetReductionIndicesSize(void *handle, void *how, void *from, void *to, size_t *bytes) { return *bytes = 0, 0; }
int cudnnGetReductionWorkspaceSize(void *handle, void *how, void *from, void *to, size_t *bytes) { return *bytes = 0, 0; }
size_t cudnnGetVersion(void) { return 91500; }
const char *cudnnGetErrorString(int status) { return status ? "an error" : "success"; }
void cudnnGetLastErrorString(char *text, size_t room) {
    if (room) *text = 0;
}
