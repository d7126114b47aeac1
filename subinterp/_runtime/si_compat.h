/* si_compat.h: every difference between CPython versions and platforms, each
 * with its reason. Nothing outside this file tests PY_VERSION_HEX. */
#ifndef SI_COMPAT_H
#define SI_COMPAT_H

#ifndef _GNU_SOURCE
#  define _GNU_SOURCE 1
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

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
static inline bool si_has_arenas(void)
{
    const char *name = _PyMem_GetCurrentAllocatorName();
    return name && strncmp(name, "pymalloc", 8) == 0;
}
extern char _PyRuntime[]; /* really a _PyRuntimeState; read as si_layout.h has it */

/* What an interpreter says of itself, by functions that the running Python brings: no
 * layout is needed. Exported by every supported version. They read plain fields, and
 * need no lock but that the interpreter does not go meanwhile. */
extern long _PyInterpreterState_GetWhence(PyInterpreterState *interp);
extern int _PyInterpreterState_IsReady(PyInterpreterState *interp);
extern int _Py_IsInterpreterFinalizing(PyInterpreterState *interp);
extern int _PyInterpreterConfig_InitFromState(PyInterpreterConfig *config,
                                              PyInterpreterState *interp);

/* 3.13: `import datetime` in two interpreters at once can crash unless the
 * main interpreter imported it first. Remove when 3.13 is dropped. */
#define SI_PREIMPORT_DATETIME (PY_VERSION_HEX < 0x030E0000)

/* An interpreter's queue of calls to make soon; Py_AddPendingCall knows the main
 * interpreter only. Exported by every supported version; the result is an enum
 * with 0 for success. */
extern int _PyEval_AddPendingCall(PyInterpreterState *interp, int (*function)(void *), void *arg,
                                  int flags);

/* An exception was set by PyThreadState_SetAsyncExc and has not been raised. */
static inline bool si_async_exception_is_set(PyThreadState *ts)
{
    return __atomic_load_n(&ts->async_exc, __ATOMIC_RELAXED) != NULL;
}

/* The exception that the thread is handling, or NULL. Asked by the thread itself,
 * also while it is detached, or with the interpreter's lock held. */
static inline PyObject *si_handled_exception(PyThreadState *ts)
{
    for (_PyErr_StackItem *item = ts->exc_info; item; item = item->previous_item)
        if (item->exc_value && item->exc_value != Py_None)
            return item->exc_value;
    return NULL;
}

/* In a signal's handler without SA_RESTART: have the system call that the signal
 * has interrupted report that its time is up, since CPython would repeat it
 * after an EINTR. Known for x86-64 only, by its instruction and its registers. */
#if defined(__x86_64__)
#  include <errno.h>
#  include <ucontext.h>

static inline bool si_can_free_blocked_calls(void)
{
    return true;
}

/* Where the thread was blocked: the same number for the same call; 0: it was not. */
static inline uintptr_t si_blocked_place(void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *next = (const unsigned char *)registers[REG_RIP];
    if (registers[REG_RAX] != -EINTR || next[-2] != 0x0f || next[-1] != 0x05)
        return 0;
    return (uintptr_t)registers[REG_RIP] * 31 + (uintptr_t)registers[REG_RSP];
}

/* The call's first argument: for a futex, its address. */
static inline uintptr_t si_blocked_on(void *context)
{
    return (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RDI];
}

static inline void si_free_blocked_call(void *context)
{
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = -ETIMEDOUT;
}
#else
static inline bool si_can_free_blocked_calls(void)
{
    return false;
}

static inline uintptr_t si_blocked_place(void *context)
{
    (void)context;
    return 0;
}

static inline uintptr_t si_blocked_on(void *context)
{
    (void)context;
    return 0;
}

static inline void si_free_blocked_call(void *context)
{
    (void)context;
}
#endif

/* What a slot's number means; 3.15 gave slots new numbers and knows the old ones. */
static inline bool si_is_interpreters_slot(int slot)
{
#if PY_VERSION_HEX >= 0x030F0000
    return slot == 3 || slot == 86;
#else
    return slot == Py_mod_multiple_interpreters;
#endif
}

static inline bool si_slots_declare(const PyModuleDef_Slot *s)
{
    for (; s && s->slot; s++)
        if (si_is_interpreters_slot(s->slot))
            return s->value == Py_MOD_PER_INTERPRETER_GIL_SUPPORTED;
    return false;
}

/* PEP 788: views of interpreters. PEP 793: PyModExport functions, which give
 * modules as slots. Both since 3.15. */
#if PY_VERSION_HEX >= 0x030F0000
#  define SI_HAVE_VIEWS
#  define SI_MODEXPORT 1

static inline bool si_export_declares(const PySlot *s)
{
    for (; s && s->sl_id; s++) {
        if (si_is_interpreters_slot(s->sl_id))
            return s->sl_ptr == Py_MOD_PER_INTERPRETER_GIL_SUPPORTED;
        if ((s->sl_id == Py_slot_subslots && si_export_declares((const PySlot *)s->sl_ptr))
            || (s->sl_id == Py_mod_slots && si_slots_declare((PyModuleDef_Slot *)s->sl_ptr)))
            return true;
    }
    return false;
}

/* The module of a PyModExport function, to be executed yet. None if `need` and
 * it does not declare its support. */
static inline PyObject *si_module_from_export(void *function, PyObject *spec, bool need,
                                              bool *declares)
{
    PySlot *slots = ((PySlot * (*)(void)) function)();
    if (!slots) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ImportError,
                            "its PyModExport function returned NULL without raising an exception");
        return NULL;
    }
    *declares = si_export_declares(slots);
    if (need && !*declares)
        return Py_NewRef(Py_None);
    return PyModule_FromSlotsAndSpec(slots, spec);
}

static inline int si_module_exec(PyObject *module)
{
    return PyModule_Exec(module);
}
#else
#  define SI_MODEXPORT 0

static inline PyObject *si_module_from_export(void *function, PyObject *spec, bool need,
                                              bool *declares)
{
    (void)function, (void)spec, (void)need, (void)declares;
    return NULL;
}

static inline int si_module_exec(PyObject *module)
{
    (void)module;
    return 0;
}
#endif

#endif
