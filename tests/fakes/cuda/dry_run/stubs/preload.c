// Put before a program by LD_PRELOAD, this library makes all of it run over the stubs that lie beside it.
//
// A library that a stub stands for is the stub, also where a program opens it by its full path. CuPy's modules have a
// CUDA runtime of their own linked in: each of its functions is overwritten with a jump to the stub's.
#define _GNU_SOURCE
#include "dry_run.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef void *(*open_function)(const char *, int);

// jmp *next; next: the address.
enum { JUMP_BYTES = 14 };
static void write_jump(unsigned char *at, const void *target) {
    static const unsigned char jump[] = {0xff, 0x25, 0, 0, 0, 0};
    memcpy(at, jump, sizeof jump);
    memcpy(at + sizeof jump, &target, sizeof target);
}

// For what the stub of the runtime lacks: code that loads the name as the argument, and jumps to this.
static int lacking(const char *name) {
    enum { NOT_SUPPORTED = 801 };
    dry_run_wrong("call of %s, which the stubs lack", name);
    return NOT_SUPPORTED;
}
enum { LACKING_BYTES = 10 + JUMP_BYTES };
static void *code_for_lacking(const char *name) {
    static unsigned char *page, *free_code;
    if (!page || free_code + LACKING_BYTES > page + 65536) {
        page = mmap(NULL, 65536, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED) abort();
        free_code = page;
    }
    unsigned char *made = free_code;
    const char *kept = strdup(name);
    memcpy(made, "\x48\xbf", 2);  // mov kept, %rdi
    memcpy(made + 2, &kept, sizeof kept);
    write_jump(made + 10, (void *)lacking);
    free_code += LACKING_BYTES;
    return made;
}

static int is_of_runtime(const Elf64_Sym *symbol, const char *name) {
    return ELF64_ST_TYPE(symbol->st_info) == STT_FUNC && symbol->st_size >= JUMP_BYTES &&
           !strncmp(name, "cuda", 4) && name[4] >= 'A' && name[4] <= 'Z';
}
// The symbol table of the file says where the functions of the runtime are; returns how many were overwritten.
static size_t overwrite_runtime(const char *path, uintptr_t base, void *stub) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    char *bytes = MAP_FAILED;
    if (file >= 0 && !fstat(file, &about)) bytes = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE, file, 0);
    if (file >= 0) close(file);
    if (bytes == MAP_FAILED) return 0;
    const Elf64_Ehdr *header = (const void *)bytes;
    const Elf64_Shdr *sections = (const void *)(bytes + header->e_shoff);
    size_t count = 0;
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *symbol = (const void *)(bytes + sections[i].sh_offset);
        const Elf64_Sym *end = symbol + sections[i].sh_size / sizeof *symbol;
        const char *names = bytes + sections[sections[i].sh_link].sh_offset;
        for (; symbol < end; symbol++) {
            const char *name = names + symbol->st_name;
            if (!is_of_runtime(symbol, name)) continue;
            unsigned char *at = (unsigned char *)(base + symbol->st_value);
            uintptr_t first = (uintptr_t)at & -4096UL, last = ((uintptr_t)at + JUMP_BYTES + 4095) & -4096UL;
            void *target = dlsym(stub, name);
            if (mprotect((void *)first, last - first, PROT_READ | PROT_WRITE | PROT_EXEC)) abort();
            write_jump(at, target ? target : code_for_lacking(name));
            mprotect((void *)first, last - first, PROT_READ | PROT_EXEC);
            count++;
        }
    }
    munmap(bytes, about.st_size);
    return count;
}

// The path of a file of this name beside the library that holds an address; NULL if there is none.
static const char *beside(const void *address, const char *name, char path[PATH_MAX]) {
    Dl_info about;
    if (!dladdr(address, &about) || !about.dli_fname) return NULL;
    const char *slash = strrchr(about.dli_fname, '/');
    int folder = slash ? (int)(slash - about.dli_fname) : 0;
    int length = snprintf(path, PATH_MAX, "%.*s/%s", folder, about.dli_fname, name);
    return slash && length < PATH_MAX && !access(path, R_OK) ? path : NULL;
}
void *dlopen(const char *path, int mode) {
    static open_function original;
    static __thread int nested;
    char buffer[PATH_MAX];
    if (!original) original = (open_function)dlsym(RTLD_NEXT, "dlopen");
    if (!path || nested) return original(path, mode);
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *found = NULL;
    if (!strncmp(name, "lib", 3)) found = beside((void *)dlopen, name, buffer);
    // The loader takes this library for the one that asks, and so would not look in that one's folder.
    if (!found && !slash) found = beside(__builtin_return_address(0), name, buffer);
    void *opened = original(found ? found : path, mode);
    struct link_map *map;
    if (opened && strstr(path, "/cupy") && !dlinfo(opened, RTLD_DI_LINKMAP, &map)) {
        nested = 1;
        size_t count = overwrite_runtime(path, map->l_addr, original("libcudart.so.13", RTLD_NOW));
        nested = 0;
        if (count) dry_run_log("redirect", count, "functions of %s", name);
    }
    return opened;
}
