/* si_extension.h: extension modules in an interpreter with its own lock.
 *
 * CPython runs the init function of an extension that a subinterpreter imports
 * in the main interpreter, under the main lock (gh-117953), and copies what a
 * module of the old kind (single-phase) has made there. So such a module's
 * objects would be main's: allocated by its allocator, their types its types.
 * And a worker would wait for a busy main interpreter. Here the init function
 * runs in the interpreter that imports the module, on whose behalf it may keep
 * what it likes in the static variables of its private copy.
 *
 * What to copy, and what to say when something fails, is decided in Python
 * (_extensions.py), which gets the functions below. */
#ifndef SI_EXTENSION_H
#define SI_EXTENSION_H

#include "si_context.h"
#include "si_image.h"

/* One an interpreter, owned by its context. */
typedef struct si_loader {
    si_context *cx;             /* borrowed */
    si_images images;
    si_gate *gate;              /* outlives the loader once code knows it */
    int unchecked;              /* > 0: CPython's check of extensions is off, for what the
                                   init functions that run now create themselves. Under the
                                   interpreter's lock, like what follows */
    PyObject *override;         /* _imp._override_multi_interp_extensions_check */
} si_loader;

/* Make the interpreter's loader. Root: called with the lock of `interp` held.
 * 0, or -1 with an exception. */
int si_loader_begin(si_context *cx, PyInterpreterState *interp);
/* No lock is needed; the interpreter has ended. */
void si_loader_free(si_loader *loader);

/* The functions for _extensions.py: a new dict, or NULL with an exception. */
PyObject *si_loader_functions(si_loader *loader);

void si_extensions_after_fork(void);

#endif
