#include "si_extension.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* One interpreter at a time: PyModuleDef_Init writes into the definition of a
 * module that is not copied, which the process has once. CPython does it under
 * the main lock. Several threads of the interpreter may: an init function
 * imports other modules, which another thread may be importing, and would wait
 * for this one. */
static struct {
    si_mutex mu;            /* guards what follows */
    const si_loader *by;    /* whose init functions run; NULL: nobody's */
    int n;                  /* of its threads */
    si_word changed;        /* counts changes of `by`; slept on */
} initializing;

/* How long a thread sleeps before it looks again. */
#define INIT_PATIENCE 100000000LL

static void begin_init(const si_loader *l)
{
    for (;;) {
        si_lock(&initializing.mu);
        uint32_t seen = atomic_load(&initializing.changed);
        bool mine = !initializing.by || initializing.by == l;
        bool fresh = mine && initializing.n++ == 0;
        if (fresh) {
            initializing.by = l;
            atomic_fetch_add(&initializing.changed, 1);
        }
        si_unlock(&initializing.mu);
        if (fresh)      /* others of this interpreter may follow */
            si_futex_wake(&initializing.changed, INT_MAX);
        if (mine)
            return;
        Py_BEGIN_ALLOW_THREADS
        (void)si_futex_wait(&initializing.changed, seen, si_now() + INIT_PATIENCE);
        Py_END_ALLOW_THREADS
    }
}

static void end_init(void)
{
    si_lock(&initializing.mu);
    bool last = --initializing.n == 0;
    if (last) {
        initializing.by = NULL;
        atomic_fetch_add(&initializing.changed, 1);
    }
    si_unlock(&initializing.mu);
    if (last)
        si_futex_wake(&initializing.changed, INT_MAX);
}

void si_extensions_after_fork(void)
{
    atomic_store(&initializing.mu.word, 0);
    initializing.by = NULL;
    initializing.n = 0;
}

static const char IMAGE[] = "subinterp.image", LOADER[] = "subinterp.loader";
static const char CALLBACK[] = "subinterp.callback";

/* ---- failures ------------------------------------------------------------------- */

static PyObject *cannot_load(PyObject *path, si_ret st, char *why)
{
    if (st == SI_NOMEM)
        PyErr_NoMemory();
    else {
        PyObject *text = PyUnicode_FromFormat("%s", why ? why : "it cannot be loaded");
        if (text)
            PyErr_SetImportError(text, NULL, path);
        Py_XDECREF(text);
    }
    free(why);
    return NULL;
}

/* What an init function did, as an ImportError; what it raised is the cause. */
static PyObject *init_failed(PyObject *spec, const char *what)
{
    PyObject *cause = PyErr_GetRaisedException();
    if (cause && (PyErr_GivenExceptionMatches(cause, PyExc_ImportError)
                  || !PyErr_GivenExceptionMatches(cause, PyExc_Exception))) {
        PyErr_SetRaisedException(cause);
        return NULL;
    }
    PyObject *name = PyObject_GetAttrString(spec, "name");
    PyObject *path = name ? PyObject_GetAttrString(spec, "origin") : NULL;
    PyObject *text = path ? PyUnicode_FromFormat("the init function of %U (%S) %s", name, path, what)
                          : NULL;
    if (text) {
        PyErr_SetImportError(text, name, path);
        if (cause) {
            PyObject *exc = PyErr_GetRaisedException();
            PyException_SetContext(exc, Py_NewRef(cause));
            PyException_SetCause(exc, Py_NewRef(cause));
            PyErr_SetRaisedException(exc);
        }
    }
    Py_XDECREF(cause);
    Py_XDECREF(text);
    Py_XDECREF(path);
    Py_XDECREF(name);
    return NULL;
}

/* ---- CPython's check ---------------------------------------------------------------- */

static int set_check(si_loader *l, long value)
{
    PyObject *r = PyObject_CallFunction(l->override, "l", value);
    Py_XDECREF(r);
    return r ? 0 : -1;
}

static int begin_unchecked(si_loader *l)
{
    if (l->unchecked == 0 && set_check(l, -1) < 0)
        return -1;
    l->unchecked++;
    return 0;
}

static void end_unchecked(si_loader *l)
{
    PyObject *exc = PyErr_GetRaisedException();
    if (--l->unchecked == 0 && set_check(l, 0) < 0)
        PyErr_WriteUnraisable(NULL);
    if (exc)
        PyErr_SetRaisedException(exc);
}

/* ---- functions for _extensions.py ------------------------------------------------------ */

static si_loader *loader_of(PyObject *self)
{
    return PyCapsule_GetPointer(self, LOADER);
}

/* facts(path) -> (makes its module whole in its init function, declared support) */
static PyObject *facts(PyObject *self, PyObject *path)
{
    (void)self;
    PyObject *bytes;
    if (!PyUnicode_FSConverter(path, &bytes))
        return NULL;
    si_file_facts f;
    char *why = NULL;
    si_ret st;
    Py_BEGIN_ALLOW_THREADS
    st = si_image_facts(PyBytes_AS_STRING(bytes), &f, &why);
    Py_END_ALLOW_THREADS
    Py_DECREF(bytes);
    if (st != SI_OK)
        return cannot_load(path, st, why);
    return Py_BuildValue("OO", f.single_phase ? Py_True : Py_False,
                         f.declares ? Py_True : Py_False);
}

/* open(path, copy) -> image */
static PyObject *open_image(PyObject *self, PyObject *args)
{
    si_loader *l = loader_of(self);
    PyObject *path, *bytes;
    int copy;
    if (!l || !PyArg_ParseTuple(args, "Op:open", &path, &copy)
        || !PyUnicode_FSConverter(path, &bytes))
        return NULL;
    si_image *image = NULL;
    char *why = NULL;
    si_ret st;
    st = copy ? si_image_copy(&l->images, PyBytes_AS_STRING(bytes), &image, &why)
              : si_image_native(&l->images, PyBytes_AS_STRING(bytes), &image, &why);
    /* Also if it failed: libraries may have been copied. */
    if (l->cx->n_copies < l->images.n_copies)
        l->cx->n_copies = l->images.n_copies;
    Py_DECREF(bytes);
    if (st != SI_OK)
        return cannot_load(path, st, why);
    return PyCapsule_New(image, IMAGE, NULL);
}

/* Kinds of modules that create() makes; execute() is told. */
enum { WHOLE, FROM_DEFINITION, FROM_SLOTS };

static PyObject *module_of_definition(PyModuleDef *def, PyObject *spec, bool need, bool *declares)
{
    *declares = si_slots_declare(def->m_slots);
    if (need && !*declares)
        return Py_NewRef(Py_None);
    return PyModule_FromDefAndSpec(def, spec);
}

/* A module of the old kind: nothing is left to be executed. */
static PyObject *whole_module(PyObject *module, PyObject *spec)
{
    PyModuleDef *def = PyModule_Check(module) ? PyModule_GetDef(module) : NULL;
    if (!def) {
        Py_DECREF(module);
        return init_failed(spec, "did not return an extension module");
    }
    /* For PyState_FindModule; its init function may have done it. */
    if (PyState_FindModule(def) != module && PyState_AddModule(module, def) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

static PyObject *call_init(PyObject *(*init)(void), PyObject *spec, bool need, int *kind,
                           bool *declares)
{
    PyObject *r = init();
    if (!r)
        return init_failed(spec, PyErr_Occurred() ? "failed"
                                                  : "returned NULL without raising an exception");
    if (PyErr_Occurred()) {
        if (Py_TYPE(r) != NULL && !PyObject_TypeCheck(r, &PyModuleDef_Type))
            Py_DECREF(r);
        return init_failed(spec, "left an exception behind");
    }
    if (Py_TYPE(r) == NULL)
        return init_failed(spec, "returned a definition without calling PyModuleDef_Init");
    if (PyObject_TypeCheck(r, &PyModuleDef_Type)) {
        *kind = FROM_DEFINITION;
        return module_of_definition((PyModuleDef *)r, spec, need, declares);
    }
    *kind = WHOLE;
    *declares = false;
    return whole_module(r, spec);
}

/* create(image, spec, suffix, need_declaration) -> (module, kind, declares)
 * suffix: what follows PyInit in the function's name. need_declaration: the
 * module is None if it does not declare its support. */
static PyObject *create(PyObject *self, PyObject *args)
{
    si_loader *l = loader_of(self);
    PyObject *capsule, *spec;
    const char *suffix;
    int need;
    if (!l || !PyArg_ParseTuple(args, "OOsp:create", &capsule, &spec, &suffix, &need))
        return NULL;
    si_image *image = PyCapsule_GetPointer(capsule, IMAGE);
    if (!image)
        return NULL;
    PyObject *symbol = PyBytes_FromFormat("PyModExport%s", suffix);
    if (!symbol)
        return NULL;
    void *slots = si_image_symbol(image, PyBytes_AS_STRING(symbol));
    Py_SETREF(symbol, PyBytes_FromFormat("PyInit%s", suffix));
    if (!symbol)
        return NULL;
    void *init = si_image_symbol(image, PyBytes_AS_STRING(symbol));
    Py_DECREF(symbol);
    if (!init && !(slots && SI_MODEXPORT)) {
        PyObject *text = PyUnicode_FromFormat("it has no function PyInit%s", suffix);
        if (text)
            PyErr_SetImportError(text, NULL, NULL);
        Py_XDECREF(text);
        return NULL;
    }
    if (begin_unchecked(l) < 0)
        return NULL;
    bool shared = !si_image_is_copy(image), declares = false;
    int kind = FROM_SLOTS;
    PyObject *module;
    if (shared)
        begin_init(l);
    if (slots && SI_MODEXPORT)
        module = si_module_from_export(slots, spec, need, &declares);
    else
        module = call_init((PyObject * (*)(void)) init, spec, need, &kind, &declares);
    if (shared)
        end_init();
    end_unchecked(l);
    if (!module)
        return NULL;
    return Py_BuildValue("NiO", module, kind, declares ? Py_True : Py_False);
}

/* execute(module, kind) */
static PyObject *execute(PyObject *self, PyObject *args)
{
    si_loader *l = loader_of(self);
    PyObject *module;
    int kind, bad = 0;
    if (!l || !PyArg_ParseTuple(args, "Oi:execute", &module, &kind))
        return NULL;
    if (!PyModule_Check(module))
        Py_RETURN_NONE;     /* Py_mod_create may return anything */
    if (begin_unchecked(l) < 0)
        return NULL;
    if (kind == FROM_SLOTS)
        bad = si_module_exec(module);
    else if (kind == FROM_DEFINITION) {
        PyModuleDef *def = PyModule_GetDef(module);
        bad = def ? PyModule_ExecDef(module, def) : PyErr_Occurred() ? -1 : 0;
    }
    end_unchecked(l);
    if (bad < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* declares(image): remember that the file declared its support */
static PyObject *declares(PyObject *self, PyObject *capsule)
{
    (void)self;
    si_image *image = PyCapsule_GetPointer(capsule, IMAGE);
    if (!image)
        return NULL;
    si_image_declares(image);
    Py_RETURN_NONE;
}

/* handle(image) -> the linker's handle, as ctypes keeps it */
static PyObject *handle(PyObject *self, PyObject *capsule)
{
    (void)self;
    si_image *image = PyCapsule_GetPointer(capsule, IMAGE);
    return image ? PyLong_FromVoidPtr(si_image_handle(image)) : NULL;
}

/* unchecked(function, argument): call it while CPython's check is off */
static PyObject *unchecked(PyObject *self, PyObject *args)
{
    si_loader *l = loader_of(self);
    PyObject *function, *argument;
    if (!l || !PyArg_ParseTuple(args, "OO:unchecked", &function, &argument)
        || begin_unchecked(l) < 0)
        return NULL;
    PyObject *r = PyObject_CallOneArg(function, argument);
    end_unchecked(l);
    return r;
}

/* checked(function, argument): the same with the check on, whoever runs now */
static PyObject *checked(PyObject *self, PyObject *args)
{
    si_loader *l = loader_of(self);
    PyObject *function, *argument;
    if (!l || !PyArg_ParseTuple(args, "OO:checked", &function, &argument))
        return NULL;
    int before = l->unchecked;
    if (before && set_check(l, 0) < 0)
        return NULL;
    l->unchecked = 0;
    PyObject *r = PyObject_CallOneArg(function, argument);
    l->unchecked += before;
    if (before) {
        PyObject *exc = PyErr_GetRaisedException();
        if (set_check(l, -1) < 0)
            PyErr_WriteUnraisable(NULL);
        if (exc)
            PyErr_SetRaisedException(exc);
    }
    return r;
}

static void free_callback(PyObject *capsule)
{
    free(PyCapsule_GetPointer(capsule, CALLBACK));
}

/* callback(thunk, where its entry is) -> an object to be kept as long as the thunk */
static PyObject *callback(PyObject *self, PyObject *args)
{
    si_loader *l = loader_of(self);
    PyObject *thunk;
    unsigned long long address;
    if (!l || !PyArg_ParseTuple(args, "OK:callback", &thunk, &address))
        return NULL;
    void *entry = *(void **)(uintptr_t)address;
    bool known;
    si_callback *c = si_gate_callback(l->gate, thunk, entry, &known);
    if (!c && known)
        return PyErr_NoMemory();
    if (!c) {
        PyErr_SetString(PyExc_RuntimeError,
                        "callbacks cannot be made in this interpreter: this Python's _ctypes is not "
                        "one that subinterp knows how to bind to it");
        return NULL;
    }
    return PyCapsule_New(c, CALLBACK, free_callback);
}

static PyMethodDef functions[] = {
    {"facts", facts, METH_O, NULL},
    {"open", open_image, METH_VARARGS, NULL},
    {"create", create, METH_VARARGS, NULL},
    {"execute", execute, METH_VARARGS, NULL},
    {"declares", declares, METH_O, NULL},
    {"handle", handle, METH_O, NULL},
    {"unchecked", unchecked, METH_VARARGS, NULL},
    {"checked", checked, METH_VARARGS, NULL},
    {"callback", callback, METH_VARARGS, NULL},
};

/* The functions are gone: the interpreter ends. */
static void functions_gone(PyObject *self)
{
    si_loader *l = loader_of(self);
    if (l)
        Py_CLEAR(l->override);
}

PyObject *si_loader_functions(si_loader *loader)
{
    PyObject *dict = PyDict_New(), *self = dict ? PyCapsule_New(loader, LOADER, functions_gone) : NULL;
    bool ok = self != NULL;
    for (size_t i = 0; ok && i < sizeof functions / sizeof *functions; i++) {
        PyObject *f = PyCFunction_New(&functions[i], self);
        ok = f && PyDict_SetItemString(dict, functions[i].ml_name, f) == 0;
        Py_XDECREF(f);
    }
    Py_XDECREF(self);
    if (!ok)
        Py_CLEAR(dict);
    return dict;
}

/* ---- the loader --------------------------------------------------------------------------- */

int si_loader_begin(si_context *cx, PyInterpreterState *interp)
{
    si_loader *l = calloc(1, sizeof *l);
    if (!l) {
        PyErr_NoMemory();
        return -1;
    }
    const char *why = NULL;
    l->cx = cx;
    l->gate = l->images.gate = si_gate_new(interp, &why);
    if (!l->gate) {
        PyErr_Format(PyExc_RuntimeError,
                     "private copies of extension modules cannot be loaded here: %s; "
                     "make the pool with extensions=\"strict\"", why);
        free(l);
        return -1;
    }
    PyObject *imp = PyImport_ImportModule("_imp");
    l->override = imp ? PyObject_GetAttrString(imp, "_override_multi_interp_extensions_check")
                      : NULL;
    Py_XDECREF(imp);
    if (!l->override) {
        si_loader_free(l);
        return -1;
    }
    cx->loader = l;
    return 0;
}

void si_loader_free(si_loader *loader)
{
    si_images_free(&loader->images);
    si_gate_free(loader->gate);
    free(loader);
}
