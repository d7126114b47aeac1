/* si_compat.h: every difference between CPython versions and platforms, each
 * with its reason. Nothing outside this file tests PY_VERSION_HEX. */
#ifndef SI_COMPAT_H
#define SI_COMPAT_H

#ifndef _GNU_SOURCE
#  define _GNU_SOURCE 1
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if PY_VERSION_HEX < 0x030D0000
#  error "subinterp needs CPython 3.13 or newer"
#endif
#ifdef Py_GIL_DISABLED
#  error "subinterp needs a build of CPython with the GIL: a free-threaded build runs threads in parallel already"
#endif
#if !defined(__linux__) || !defined(__GLIBC__)
#  error "subinterp runs on Linux with glibc only"
#endif

/* Declared in internal headers, exported by every supported version. The
 * prototypes stand here so that no internal struct layout is compiled in:
 * layouts differ between patch releases (3.13.0 and 3.13.18). */
extern const char *_PyMem_GetCurrentAllocatorName(void);
extern char _PyRuntime[]; /* really a _PyRuntimeState; read through its debug offsets */

/* The first fields of _Py_DebugOffsets, the same in 3.13, 3.14 and 3.15
 * (pycore_runtime.h in 3.13, pycore_debug_offsets.h after it). They stand at
 * the start of _PyRuntime so that debuggers can rely on them. */
typedef struct {
    char cookie[8];
    uint64_t version;
    uint64_t free_threaded;
    struct { uint64_t size, finalizing, interpreters_head; } runtime_state;
    struct { uint64_t size, id, next, threads_head; } interpreter_state;
} si_debug_offsets;

/* 3.13: `import datetime` in two interpreters at once can crash unless the
 * main interpreter imported it first. Remove when 3.13 is dropped. */
#define SI_PREIMPORT_DATETIME (PY_VERSION_HEX < 0x030E0000)

#endif
