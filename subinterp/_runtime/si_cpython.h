/* si_cpython.h: CPython's internal structures, as the headers of the Python that
 * is built against have them. Another patch release may lay them out otherwise:
 * so only si_fields.c and si_layout.c include this, and what they take from it
 * is checked against the running Python before it is used. */
#ifndef SI_CPYTHON_H
#define SI_CPYTHON_H

/* What these headers do is not ours to warn about. */
#pragma GCC system_header

#ifndef _GNU_SOURCE
#  define _GNU_SOURCE 1
#endif
#ifndef Py_BUILD_CORE
#  define Py_BUILD_CORE 1
#endif
#include <Python.h>

#include "internal/pycore_ceval.h"
#include "internal/pycore_interp.h"
#include "internal/pycore_pystate.h"
#include "internal/pycore_runtime.h"

#endif
