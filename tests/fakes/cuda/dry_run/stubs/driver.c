// CUDA's driver without a device, as far as mkc-fast, CuPy and NVRTC call it. A module is a cubin, an ELF file: its
// sections say which kernels there are, with which parameters and how much shared memory.
#include "dry_run.h"

#include <cuda.h>
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK CUDA_SUCCESS

CUresult cuInit(unsigned flags) { return OK; }
CUresult cuDriverGetVersion(int *version) { return *version = CUDA_VERSION, OK; }
CUresult cuDeviceGetCount(int *count) { return *count = 1, OK; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal ? CUDA_ERROR_INVALID_DEVICE : OK;
}
CUresult cuDeviceGetName(char *name, int room, CUdevice device) { return snprintf(name, room, DEVICE_NAME), OK; }
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { return *bytes = DEVICE_BYTES, OK; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = CAPABILITY_MAJOR; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = CAPABILITY_MINOR; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = PROCESSORS; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = SHARED_BYTES_ASKED; break;
        default: *value = 1;
    }
    return OK;
}
static const char *const context = DEVICE_NAME;  // there is one, and only its address matters
CUresult cuCtxGetCurrent(CUcontext *current) { return *current = (CUcontext)context, OK; }
CUresult cuCtxSetCurrent(CUcontext wanted) { return OK; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { return OK; }
CUresult cuGetExportTable(const void **table, const CUuuid *id) { return CUDA_ERROR_NOT_FOUND; }  // NVRTC asks
CUresult cuGetErrorName(CUresult error, const char **text) {
    switch (error) {
        case CUDA_SUCCESS: *text = "CUDA_SUCCESS"; break;
        case CUDA_ERROR_INVALID_VALUE: *text = "CUDA_ERROR_INVALID_VALUE"; break;
        case CUDA_ERROR_INVALID_IMAGE: *text = "CUDA_ERROR_INVALID_IMAGE"; break;
        case CUDA_ERROR_NOT_FOUND: *text = "CUDA_ERROR_NOT_FOUND"; break;
        default: *text = "CUDA_ERROR_UNKNOWN";
    }
    return OK;
}
CUresult cuGetErrorString(CUresult error, const char **text) { return cuGetErrorName(error, text); }

enum { MOST_PARAMETERS = 64 };
struct function {
    struct function *next;
    const char *name;
    unsigned parameter_bytes[MOST_PARAMETERS], parameters;
    size_t static_shared, shared_asked;
};
struct module { struct function *functions; };

static struct function *find_function(const struct module *module, const char *name) {
    struct function *each = module->functions;
    while (each && strcmp(each->name, name)) each = each->next;
    return each;
}
// A section .nv.info.NAME is a list of records: a byte for the format, one for the meaning, two for the length or a
// value. One of the meaning 0x17 is a parameter: its place is the third short of the record's data, and its bytes are
// the upper 14 bits of the third word.
static void read_parameters(struct function *function, const unsigned char *data, size_t size) {
    enum { WITH_DATA = 4, PARAMETER = 0x17 };
    for (size_t at = 0; at + 4 <= size;) {
        uint16_t length = data[at] == WITH_DATA ? data[at + 2] | data[at + 3] << 8 : 0;
        if (data[at] == WITH_DATA && data[at + 1] == PARAMETER && length >= 12 && at + 16 <= size) {
            uint16_t place;
            uint32_t packed;
            memcpy(&place, data + at + 8, sizeof place);
            memcpy(&packed, data + at + 12, sizeof packed);
            if (place < MOST_PARAMETERS) {
                function->parameter_bytes[place] = packed >> 18;
                if (place >= function->parameters) function->parameters = place + 1;
            }
        }
        at += 4 + length;
    }
}
static const char *after(const char *text, const char *prefix) {
    return strncmp(text, prefix, strlen(prefix)) ? NULL : text + strlen(prefix);
}
CUresult cuModuleLoadData(CUmodule *made, const void *image) {
    const char *bytes = image;
    const Elf64_Ehdr *header = image;
    if (memcmp(bytes, ELFMAG, SELFMAG)) {
        dry_run_wrong("module that is no cubin");
        return CUDA_ERROR_INVALID_IMAGE;
    }
    const Elf64_Shdr *sections = (const void *)(bytes + header->e_shoff);
    const char *names = bytes + sections[header->e_shstrndx].sh_offset, *name;
    struct module *module = calloc(1, sizeof *module);
    size_t count = 0;
    for (int i = 0; i < header->e_shnum; i++) {
        if (!(name = after(names + sections[i].sh_name, ".nv.info."))) continue;
        struct function *added = calloc(1, sizeof *added);
        added->name = strdup(name);
        added->next = module->functions;
        module->functions = added;
        read_parameters(added, (const unsigned char *)bytes + sections[i].sh_offset, sections[i].sh_size);
        count++;
    }
    for (int i = 0; i < header->e_shnum; i++) {
        struct function *found = NULL;
        if ((name = after(names + sections[i].sh_name, ".nv.shared."))) found = find_function(module, name);
        if (found) found->static_shared = sections[i].sh_size;
    }
    dry_run_log("module", count, "kernels");
    return *made = (CUmodule)module, OK;
}
CUresult cuModuleLoadDataEx(CUmodule *made, const void *image, unsigned count, CUjit_option *options, void **values) {
    return cuModuleLoadData(made, image);
}
CUresult cuModuleUnload(CUmodule module) { return OK; }
CUresult cuModuleGetFunction(CUfunction *made, CUmodule module, const char *name) {
    struct function *found = find_function((struct module *)module, name);
    if (!found) {
        dry_run_wrong("kernel %s, which its module lacks", name);
        return CUDA_ERROR_NOT_FOUND;
    }
    return *made = (CUfunction)found, OK;
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction handle) {
    const struct function *function = (const struct function *)handle;
    switch (which) {
        case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = BLOCK_THREADS; break;
        case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = function->static_shared; break;
        case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = function->shared_asked; break;
        default: *value = 0;
    }
    return OK;
}
CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute which, int value) {
    struct function *function = (struct function *)handle;
    if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return OK;
    if (value < 0 || value + function->static_shared > SHARED_BYTES_ASKED) {
        dry_run_wrong("%s asks for %d bytes of shared memory", function->name, value);
        return CUDA_ERROR_INVALID_VALUE;
    }
    return function->shared_asked = value, OK;
}
CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **parameters,
                        void **extra) {
    const struct function *function = (const struct function *)handle;
    const struct dry_run_launch launch = {function->name, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared,
                                          function->static_shared, function->shared_asked, stream};
    // What has a pointer's size and is no small number has to point to memory that is allocated.
    for (unsigned i = 0; parameters && i < function->parameters; i++) {
        uintptr_t value;
        if (function->parameter_bytes[i] != sizeof value) continue;
        memcpy(&value, parameters[i], sizeof value);
        if (value >> 32 && !dry_run_room((const void *)value, NULL))
            dry_run_wrong("launch of %s: parameter %u points to 0x%lx, where nothing is allocated", function->name, i, value);
    }
    return dry_run_launched(&launch) ? CUDA_ERROR_INVALID_VALUE : OK;
}
CUresult cuLaunchCooperativeKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                                   CUstream stream, void **parameters) {
    return cuLaunchKernel(handle, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, parameters, NULL);
}
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction handle, int threads, size_t shared) {
    return *blocks = threads > 0 ? PROCESSOR_THREADS / threads : 0, OK;
}
