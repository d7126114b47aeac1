"""C sources of the extension modules that tests build; `_extbuild` compiles them.

Macros that are passed as flags choose between variants of the same module, so that what is
compared differs in one thing only.
"""

from __future__ import annotations

# What a module keeps in C: a number, an object, a type, an exception. Each of them would be
# shared between interpreters, and break, if its memory were. Variants:
#
#   SINGLE        single-phase, with -DSIZE (m_size, by default -1); else multi-phase
#   EXPORTS       by PyModExport_*, from Python 3.15 on; else PyInit_*
#   DECLARES=...  the value of Py_mod_multiple_interpreters; else no such slot
#   ABI3          without what the limited API lacks (static types)
STATEFUL = r"""
static int count;
static PyObject *kept;
static PyObject *Error;

static PyObject *bump(PyObject *module, PyObject *none) {
    return PyLong_FromLong(++count);
}

static PyObject *keep(PyObject *module, PyObject *object) {
    PyObject *before = kept ? kept : Py_NewRef(Py_None);
    kept = Py_NewRef(object);
    return before;
}

static PyObject *fail(PyObject *module, PyObject *text) {
    PyErr_SetObject(Error, text);
    return NULL;
}

#ifndef ABI3
typedef struct {
    PyObject_HEAD
    PyObject *value;
} Box;

static int box_init(Box *self, PyObject *args, PyObject *kwargs) {
    PyObject *value = Py_None;
    if (!PyArg_ParseTuple(args, "|O", &value)) {
        return -1;
    }
    Py_XSETREF(self->value, Py_NewRef(value));
    return 0;
}

static int box_traverse(Box *self, visitproc visit, void *arg) {
    Py_VISIT(self->value);
    return 0;
}

static int box_clear(Box *self) {
    Py_CLEAR(self->value);
    return 0;
}

static void box_dealloc(Box *self) {
    PyObject_GC_UnTrack(self);
    box_clear(self);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyObject *box_get(Box *self, void *closure) {
    return Py_NewRef(self->value ? self->value : Py_None);
}

static PyGetSetDef box_getset[] = {{"value", (getter)box_get}, {NULL}};

static PyTypeObject BoxType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = NAME ".Box",
    .tp_basicsize = sizeof(Box),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)box_init,
    .tp_traverse = (traverseproc)box_traverse,
    .tp_clear = (inquiry)box_clear,
    .tp_dealloc = (destructor)box_dealloc,
    .tp_getset = box_getset,
};
#endif

static int fill(PyObject *module) {
    Error = PyErr_NewException(NAME ".Error", PyExc_ValueError, NULL);
    if (Error == NULL || PyModule_AddObjectRef(module, "Error", Error) < 0) {
        return -1;
    }
#ifndef ABI3
    if (PyModule_AddType(module, &BoxType) < 0) {
        return -1;
    }
#endif
    return PyModule_AddIntConstant(module, "filled", 1);
}

static PyObject *find(PyObject *module, PyObject *none);

static PyMethodDef methods[] = {
    {"bump", bump, METH_NOARGS, "Count, in a C static."},
    {"keep", keep, METH_O, "Keep an object in a C static; return the one before."},
    {"fail", fail, METH_O, "Raise this module's own Error."},
    {"find", find, METH_NOARGS, "Return what PyState_FindModule finds."},
    {NULL},
};

#ifndef SIZE
#ifdef SINGLE
#define SIZE -1
#else
#define SIZE 0
#endif
#endif

#ifdef EXPORTS

static PyObject *find(PyObject *module, PyObject *none) {
    return Py_NewRef(Py_None);
}

PyABIInfo_VAR(abi_info);

static PySlot slots[] = {
    PySlot_STATIC_DATA(Py_mod_abi, &abi_info),
    PySlot_STATIC_DATA(Py_mod_name, NAME),
    PySlot_STATIC_DATA(Py_mod_methods, methods),
    PySlot_FUNC(Py_mod_exec, fill),
#ifdef DECLARES
    PySlot_DATA(Py_mod_multiple_interpreters, DECLARES),
#endif
    PySlot_END,
};

PyMODEXPORT_FUNC EXPORT(void) {
    return slots;
}

#else

#ifndef SINGLE
static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
#ifdef DECLARES
    {Py_mod_multiple_interpreters, DECLARES},
#endif
    {0, NULL},
};
#endif

static struct PyModuleDef def = {
    PyModuleDef_HEAD_INIT,
    .m_name = NAME,
    .m_size = SIZE,
    .m_methods = methods,
#ifndef SINGLE
    .m_slots = slots,
#endif
};

static PyObject *find(PyObject *module, PyObject *none) {
    PyObject *found = PyState_FindModule(&def);
    return Py_NewRef(found ? found : Py_None);
}

PyMODINIT_FUNC INIT(void) {
#ifdef SINGLE
    PyObject *module = PyModule_Create(&def);
    if (module != NULL && fill(module) < 0) {
        Py_CLEAR(module);
    }
    return module;
#else
    return PyModuleDef_Init(&def);
#endif
}

#endif
"""

# Calls back into Python from threads that it starts itself.
THREADED = r"""
#include <pthread.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

enum { PLAIN, NESTED, UNLOCKED };

typedef struct {
    PyObject *callback;
    int calls, how;
    const char *wrong;  /* what was not as it must be, if anything */
    long sum;
} Job;

static const char *one_call(Job *job) {
    const char *wrong = NULL;
    if (PyGILState_GetThisThreadState() != NULL) {
        return "a thread state before Ensure";
    }
    PyGILState_STATE outer = PyGILState_Ensure();
    PyThreadState *mine = PyThreadState_Get();
    if (!PyGILState_Check()) {
        wrong = "Check says no inside";
    }
    if (PyGILState_GetThisThreadState() != mine) {
        wrong = "GetThisThreadState is another one";
    }
    if (job->how == NESTED) {
        PyGILState_STATE inner = PyGILState_Ensure();
        if (inner != PyGILState_LOCKED || PyThreadState_Get() != mine) {
            wrong = "nested Ensure took another thread state";
        }
        PyGILState_Release(inner);
        if (!PyGILState_Check()) {
            wrong = "nested Release gave the lock away";
        }
    }
    if (job->how == UNLOCKED) {
        PyThreadState *saved = PyEval_SaveThread();
        struct timespec moment = {0, 100000};
        nanosleep(&moment, NULL);
        PyGILState_STATE again = PyGILState_Ensure();
        if (PyThreadState_Get() != saved) {
            wrong = "Ensure after SaveThread took another thread state";
        }
        PyGILState_Release(again);
        PyEval_RestoreThread(saved);
    }
    PyObject *answer = PyObject_CallNoArgs(job->callback);
    if (answer == NULL) {
        PyErr_WriteUnraisable(job->callback);
        wrong = "the callback raised";
    } else {
        job->sum += PyLong_AsLong(answer);
        Py_DECREF(answer);
    }
    PyGILState_Release(outer);
    return wrong;
}

static void *work(void *arg) {
    Job *job = arg;
    for (int i = 0; i < job->calls && job->wrong == NULL; i++) {
        job->wrong = one_call(job);
    }
    return NULL;
}

/* run(callback, threads, calls, how): the sum of what the callback returned. */
static PyObject *run(PyObject *module, PyObject *args) {
    enum { MOST = 16 };
    PyObject *callback;
    int threads, calls, how, started = 0;
    if (!PyArg_ParseTuple(args, "Oiii", &callback, &threads, &calls, &how)) {
        return NULL;
    }
    pthread_t ids[MOST];
    Job jobs[MOST];
    Py_BEGIN_ALLOW_THREADS
    for (; started < threads && started < MOST; started++) {
        jobs[started] = (Job){callback, calls, how};
        if (pthread_create(&ids[started], NULL, work, &jobs[started])) {
            break;
        }
    }
    for (int i = 0; i < started; i++) {
        pthread_join(ids[i], NULL);
    }
    Py_END_ALLOW_THREADS
    long sum = 0;
    for (int i = 0; i < started; i++) {
        if (jobs[i].wrong) {
            PyErr_SetString(PyExc_RuntimeError, jobs[i].wrong);
            return NULL;
        }
        sum += jobs[i].sum;
    }
    return PyLong_FromLong(sum);
}

/* own(callback): the same on the calling thread, which holds the lock already. */
static PyObject *own(PyObject *module, PyObject *callback) {
    PyThreadState *mine = PyThreadState_Get();
    PyGILState_STATE state = PyGILState_Ensure();
    int same = PyThreadState_Get() == mine && state == PyGILState_LOCKED;
    PyGILState_Release(state);
    PyObject *answer = NULL;
    Py_BEGIN_ALLOW_THREADS
    state = PyGILState_Ensure();
    same = same && PyThreadState_Get() == mine && state == PyGILState_UNLOCKED;
    answer = PyObject_CallNoArgs(callback);
    PyGILState_Release(state);
    Py_END_ALLOW_THREADS
    if (answer != NULL && !same) {
        Py_DECREF(answer);
        PyErr_SetString(PyExc_RuntimeError, "another thread state");
        return NULL;
    }
    return answer;
}

static int pending_cb(void *arg) {
    PyObject *callback = arg;
    PyObject *answer = PyObject_CallNoArgs(callback);
    Py_DECREF(callback);
    if (answer == NULL) {
        return -1;
    }
    Py_DECREF(answer);
    return 0;
}

static void *add_pending(void *arg) {
    return (void *)(intptr_t)Py_AddPendingCall(pending_cb, arg);
}

/* pend(callback): have it called soon, asked for by a thread of our own. */
static PyObject *pend(PyObject *module, PyObject *callback) {
    pthread_t id;
    void *status = (void *)(intptr_t)-1;
    Py_INCREF(callback);
    Py_BEGIN_ALLOW_THREADS
    if (pthread_create(&id, NULL, add_pending, callback) == 0) {
        pthread_join(id, &status);
    }
    Py_END_ALLOW_THREADS
    if (status != NULL) {
        Py_DECREF(callback);
        PyErr_SetString(PyExc_RuntimeError, "Py_AddPendingCall failed");
        return NULL;
    }
    Py_RETURN_NONE;
}

/* A thread that nobody joins: says "<", waits for a byte, enters, says "(", stays inside for
   the given time, says ")", leaves, says ">"; as many rounds as it has bytes to read. */
typedef struct {
    int in, out;
    long nanoseconds;
} Stray;

static void say(int fd, char what) {
    while (write(fd, &what, 1) < 0) {
    }
}

static void *stray(void *arg) {
    Stray *self = arg;
    char byte;
    say(self->out, '<');
    while (read(self->in, &byte, 1) == 1) {
        PyGILState_STATE state = PyGILState_Ensure();
        say(self->out, '(');
        struct timespec stay = {self->nanoseconds / 1000000000, self->nanoseconds % 1000000000};
        Py_BEGIN_ALLOW_THREADS
        nanosleep(&stay, NULL);
        Py_END_ALLOW_THREADS
        PyObject *list = PyList_New(1000);
        Py_XDECREF(list);
        say(self->out, ')');
        PyGILState_Release(state);
        say(self->out, '>');
    }
    return NULL;
}

/* leave(in, out, seconds): start such a thread. */
static PyObject *leave(PyObject *module, PyObject *args) {
    static Stray strays[64];
    static int n_strays;
    double seconds;
    pthread_t id;
    Stray *self = &strays[n_strays++ % 64];
    if (!PyArg_ParseTuple(args, "iid", &self->in, &self->out, &seconds)) {
        return NULL;
    }
    self->nanoseconds = (long)(seconds * 1e9);
    if (pthread_create(&id, NULL, stray, self)) {
        PyErr_SetString(PyExc_RuntimeError, "no thread");
        return NULL;
    }
    pthread_detach(id);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"run", run, METH_VARARGS},
    {"own", own, METH_O},
    {"pend", pend, METH_O},
    {"leave", leave, METH_VARARGS},
    {NULL},
};

static void *greet(void *arg) {
    PyGILState_STATE state = PyGILState_Ensure();
    int status = PyModule_AddStringConstant(arg, "greeting", "from the thread");
    if (status < 0) {
        PyErr_WriteUnraisable(arg);
    }
    PyGILState_Release(state);
    return NULL;
}

static int start(PyObject *module) {
#ifdef GREETS
    /* A thread that needs the lock while the module is being made. */
    pthread_t id;
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = pthread_create(&id, NULL, greet, module);
    if (!failed) {
        pthread_join(id, NULL);
    }
    Py_END_ALLOW_THREADS
    return failed ? -1 : 0;
#else
    return 0;
#endif
}

#ifndef SINGLE
static PyModuleDef_Slot slots[] = {{Py_mod_exec, start}, {0, NULL}};
#endif

static struct PyModuleDef def = {
    PyModuleDef_HEAD_INIT,
    .m_name = NAME,
    .m_methods = methods,
#ifdef SINGLE
    .m_size = -1,
#else
    .m_slots = slots,
#endif
};

PyMODINIT_FUNC INIT(void) {
#ifdef SINGLE
    PyObject *module = PyModule_Create(&def);
    if (module != NULL && start(module) < 0) {
        Py_CLEAR(module);
    }
    return module;
#else
    return PyModuleDef_Init(&def);
#endif
}
"""

# Executes Python code, the macro CODE, while the module is being made; `module` is its name
# there. What that raises is what the module's making raises.
RUNS = r"""
static int execute(PyObject *module) {
    PyObject *names = PyModule_GetDict(module);
    if (PyDict_SetItemString(names, "module", module) < 0 ||
        PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) < 0) {
        return -1;
    }
    PyObject *done = PyRun_String(CODE, Py_file_input, names, names);
    Py_XDECREF(done);
    if (done == NULL || PyDict_DelItemString(names, "module") < 0) {
        return -1;
    }
    return 0;
}

#ifndef SINGLE
static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};
#endif

static struct PyModuleDef def = {
    PyModuleDef_HEAD_INIT,
    .m_name = NAME,
#ifdef SINGLE
    .m_size = -1,
#else
    .m_slots = slots,
#endif
};

PyMODINIT_FUNC INIT(void) {
#ifdef SINGLE
    PyObject *module = PyModule_Create(&def);
    if (module != NULL && execute(module) < 0) {
        Py_CLEAR(module);
    }
    return module;
#else
    return PyModuleDef_Init(&def);
#endif
}
"""

# Modules that are made wrongly, each in its own way (-DHOW=...).
WRONG = r"""
enum { NOTHING, RAISES, NO_MODULE, UNINITIALIZED, RESULT_AND_ERROR, EXEC_FAILS, EXEC_SILENT,
       EXEC_RESULT_AND_ERROR, CREATE_SILENT, BAD_SLOT };

static int execute(PyObject *module) {
    if (HOW == EXEC_SILENT) {
        return -1;
    }
    PyErr_SetString(PyExc_ZeroDivisionError, "made to fail");
    return HOW == EXEC_RESULT_AND_ERROR ? 0 : -1;
}

static PyObject *create(PyObject *spec, PyModuleDef *def) {
    return NULL;
}

static PyModuleDef_Slot exec_slots[] = {{Py_mod_exec, execute}, {0, NULL}};
static PyModuleDef_Slot create_slots[] = {{Py_mod_create, create}, {0, NULL}};
static PyModuleDef_Slot bad_slots[] = {{4711, execute}, {0, NULL}};

static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, .m_name = NAME};

PyMODINIT_FUNC INIT(void) {
    switch ((int)HOW) {
    case NOTHING:
        return NULL;
    case RAISES:
        PyErr_SetString(PyExc_ZeroDivisionError, "made to fail");
        return NULL;
    case NO_MODULE:
        return PyUnicode_FromString("not a module");
    case UNINITIALIZED: {
        static PyObject nobody;
        return &nobody;
    }
    case RESULT_AND_ERROR:
        PyErr_SetString(PyExc_ZeroDivisionError, "made to fail");
        return PyModuleDef_Init(&def);
    case CREATE_SILENT:
        def.m_slots = create_slots;
        return PyModuleDef_Init(&def);
    case BAD_SLOT:
        def.m_slots = bad_slots;
        return PyModuleDef_Init(&def);
    default:
        def.m_slots = exec_slots;
        return PyModuleDef_Init(&def);
    }
}
"""

# Makes a submodule while it is being made, and registers it, as modules written in Rust do.
# With FROM_SPEC the submodule has a definition and a spec of its own, else it is created at once.
WITH_SUBMODULE = r"""
static int count;

static PyObject *bump(PyObject *module, PyObject *none) {
    return PyLong_FromLong(++count);
}

static PyMethodDef methods[] = {{"bump", bump, METH_NOARGS}, {NULL}};

#ifdef FROM_SPEC
static int fill_inner(PyObject *module) {
    return PyModule_AddIntConstant(module, "filled", 1);
}

static PyModuleDef_Slot inner_slots[] = {{Py_mod_exec, fill_inner}, {0, NULL}};
#endif

static struct PyModuleDef inner_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "inner",
    .m_methods = methods,
#ifdef FROM_SPEC
    .m_slots = inner_slots,
#else
    .m_size = -1,
#endif
};

static PyObject *make_inner(void) {
#ifdef FROM_SPEC
    PyObject *types = PyImport_ImportModule("types");
    PyObject *make = types ? PyObject_GetAttrString(types, "SimpleNamespace") : NULL;
    PyObject *spec = make ? PyObject_CallNoArgs(make) : NULL;
    PyObject *name = PyUnicode_FromString("inner");
    PyObject *module = NULL;
    if (spec && name && PyObject_SetAttrString(spec, "name", name) == 0) {
        PyModuleDef_Init(&inner_def);
        module = PyModule_FromDefAndSpec(&inner_def, spec);
    }
    if (module && PyModule_ExecDef(module, &inner_def) < 0) {
        Py_CLEAR(module);
    }
    Py_XDECREF(types);
    Py_XDECREF(make);
    Py_XDECREF(spec);
    Py_XDECREF(name);
    return module;
#else
    PyObject *module = PyModule_Create(&inner_def);
    if (module && PyModule_AddIntConstant(module, "filled", 1) < 0) {
        Py_CLEAR(module);
    }
    return module;
#endif
}

static int execute(PyObject *module) {
    PyObject *inner = make_inner();
    if (inner == NULL) {
        return -1;
    }
    PyObject *name = PyUnicode_FromFormat("%s.inner", PyModule_GetName(module));
    int status = name ? PyDict_SetItem(PyImport_GetModuleDict(), name, inner) : -1;
    if (status == 0) {
        status = PyModule_AddObjectRef(module, "inner", inner);
    }
    Py_XDECREF(name);
    Py_DECREF(inner);
    return status;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, .m_name = NAME, .m_slots = slots};

PyMODINIT_FUNC INIT(void) {
    return PyModuleDef_Init(&def);
}
"""

# A library as wheels bring them along: it keeps an object (PYTHON) and counts.
LIBRARY = r"""
#ifdef PYTHON
#include <Python.h>

static PyObject *kept;

PyObject *lib_keep(PyObject *object) {
    PyObject *before = kept ? kept : Py_NewRef(Py_None);
    kept = Py_NewRef(object);
    return before;
}
#endif

static int count;

int lib_bump(void) {
    return ++count;
}
"""

# A library without Python that stands on the one above.
OUTER_LIBRARY = r"""
int lib_bump(void);

int outer_bump(void) {
    return 100 + lib_bump();
}
"""

# A module that uses them: -DPYTHON for lib_keep, -DBUMP=outer_bump for the outer one.
LINKED = r"""
#ifdef PYTHON
PyObject *lib_keep(PyObject *object);

static PyObject *keep(PyObject *module, PyObject *object) {
    return lib_keep(object);
}
#endif

#ifndef BUMP
#define BUMP lib_bump
#endif
int BUMP(void);

static PyObject *bump(PyObject *module, PyObject *none) {
    return PyLong_FromLong(BUMP());
}

static PyMethodDef methods[] = {
    {"bump", bump, METH_NOARGS},
#ifdef PYTHON
    {"keep", keep, METH_O},
#endif
    {NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef def = {
    PyModuleDef_HEAD_INIT, .m_name = NAME, .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC INIT(void) {
    return PyModuleDef_Init(&def);
}
"""

# A C++ inline static: the linker makes one of all of them, in all libraries of the process.
UNIQUE = r"""
struct Counter {
    static inline int count = 0;
};

template <typename T> struct Named {
    static int &count() {
        static int number = 0;
        return number;
    }
};

extern "C" {
static PyObject *bump(PyObject *module, PyObject *none) {
    return Py_BuildValue("(ii)", ++Counter::count, ++Named<int>::count());
}

static PyMethodDef methods[] = {{"bump", bump, METH_NOARGS, nullptr}, {}};
static PyModuleDef_Slot slots[] = {{0, nullptr}};
static struct PyModuleDef def = {
    PyModuleDef_HEAD_INIT, NAME, nullptr, 0, methods, slots, nullptr, nullptr, nullptr,
};

PyMODINIT_FUNC INIT(void) {
    return PyModuleDef_Init(&def);
}
}
"""

# One module exports a function to C, the other keeps it in a static variable, and declares that
# it supports interpreters with their own lock nevertheless.
EXPORTING = r"""
static int count;

static PyObject *next_number(void) {
    return PyLong_FromLong(++count);
}

static int execute(PyObject *module) {
    return PyModule_Add(module, "_api", PyCapsule_New((void *)next_number, NAME "._api", NULL));
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, .m_name = NAME, .m_slots = slots};

PyMODINIT_FUNC INIT(void) {
    return PyModuleDef_Init(&def);
}
"""

IMPORTING = r"""
static PyObject *(*imported)(void);

static PyObject *bump(PyObject *module, PyObject *none) {
    return imported();
}

static int execute(PyObject *module) {
    imported = (PyObject * (*)(void)) PyCapsule_Import("exporting._api", 0);
    return imported ? 0 : -1;
}

static PyMethodDef methods[] = {{"bump", bump, METH_NOARGS}, {NULL}};
static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {0, NULL},
};
static struct PyModuleDef def = {
    PyModuleDef_HEAD_INIT, .m_name = NAME, .m_methods = methods, .m_slots = slots,
};

PyMODINIT_FUNC INIT(void) {
    return PyModuleDef_Init(&def);
}
"""
