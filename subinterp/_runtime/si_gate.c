#include "si_gate.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- visits --------------------------------------------------------------------- */

/* A thread in an interpreter that it did not come from, between an Ensure and
 * the Release that answers it: Python knows it not, or as another interpreter's. */
typedef struct visit {
    struct visit *next;         /* an earlier one */
    si_gate *gate;
    PyThreadState *ts;          /* what it runs with here */
    bool made;                  /* `ts` was made for the visit, which is counted */
    PyThreadState *before;      /* what was attached when it came, of another interpreter */
    int depth;
} visit;

/* The thread's own, the latest first; nearly always none or one. */
static __thread visit *visits;

static visit *visit_of(const si_gate *g)
{
    visit *v = visits;
    while (v && v->gate != g)
        v = v->next;
    return v;
}

static bool belongs(const si_gate *g, PyThreadState *ts)
{
    return ts && PyThreadState_GetInterpreter(ts) == g->interp;
}

/* What this thread was in the interpreter with, if it came from there by a
 * visit to another one, or is on a visit there already. */
static PyThreadState *known_state(const si_gate *g)
{
    for (visit *v = visits; v; v = v->next) {
        if (v->gate == g)
            return v->ts;
        if (belongs(g, v->before))
            return v->before;
    }
    return NULL;
}

static _Noreturn void hold_for_ever(void)
{
    for (;;)
        pause();
}

static bool enter(si_gate *g)
{
    atomic_fetch_add(&g->inside, 1);
    if (!atomic_load(&g->closed))
        return true;
    if (atomic_fetch_sub(&g->inside, 1) == 1)
        si_futex_wake(&g->inside, 1);
    return false;
}

static void leave(si_gate *g)
{
    if (atomic_fetch_sub(&g->inside, 1) == 1 && atomic_load(&g->closed))
        si_futex_wake(&g->inside, 1);
}

/* The interpreter has ended: nobody shall wait for what the thread holds. */
static _Noreturn void turn_away(PyThreadState *attached)
{
    if (attached)
        PyEval_SaveThread();
    hold_for_ever();
}

static PyGILState_STATE ensure(si_gate *g)
{
    PyThreadState *attached = PyThreadState_GetUnchecked();
    visit *v = visit_of(g);
    if (belongs(g, attached)) {
        if (v)
            v->depth++;
        return PyGILState_LOCKED;
    }
    if (!attached) {
        if (v) {
            v->depth++;
            PyEval_RestoreThread(v->ts);
            return PyGILState_UNLOCKED;
        }
        /* One of the interpreter's own threads, with its lock released. */
        PyThreadState *own = PyGILState_GetThisThreadState();
        if (belongs(g, own)) {
            PyEval_RestoreThread(own);
            return PyGILState_UNLOCKED;
        }
    }
    PyThreadState *known = known_state(g);
    if (!known && !enter(g))
        turn_away(attached);
    if (!(v = malloc(sizeof *v)))
        Py_FatalError("subinterp: no memory for a thread state");
    *v = (visit){.gate = g, .ts = known, .made = !known, .before = attached, .depth = 1};
    if (attached)
        PyEval_SaveThread();
    if (!v->ts && !(v->ts = PyThreadState_New(g->interp)))
        Py_FatalError("subinterp: no memory for a thread state");
    v->next = visits;
    visits = v;
    PyEval_RestoreThread(v->ts);
    return PyGILState_UNLOCKED;
}

static void release(si_gate *g, PyGILState_STATE before)
{
    visit **p = &visits;
    while (*p && (*p)->gate != g)
        p = &(*p)->next;
    visit *v = *p;
    if (v && --v->depth == 0) {
        *p = v->next;
        PyThreadState *back = v->before;
        if (v->made) {
            PyThreadState_Clear(v->ts);
            PyThreadState_DeleteCurrent();
            leave(g);
        }
        else
            PyEval_SaveThread();
        free(v);
        if (back)
            PyEval_RestoreThread(back);
    }
    else if (before == PyGILState_UNLOCKED)
        PyEval_SaveThread();
}

static int check(si_gate *g)
{
    return belongs(g, PyThreadState_GetUnchecked());
}

static PyThreadState *this_thread_state(si_gate *g)
{
    PyThreadState *ts = known_state(g);
    if (ts)
        return ts;
    ts = PyGILState_GetThisThreadState();
    return belongs(g, ts) ? ts : NULL;
}

/* A thread may also make its state itself, as pybind11's do. Then the state is
 * in the interpreter's list, and says that the interpreter must not be ended. */
static PyThreadState *new_thread_state(si_gate *g, PyInterpreterState *interp)
{
    PyThreadState *attached = PyThreadState_GetUnchecked();
    if (interp != g->interp || belongs(g, attached))
        return PyThreadState_New(interp);
    if (!enter(g))
        turn_away(attached);
    PyThreadState *ts = PyThreadState_New(interp);
    leave(g);
    return ts;
}

/* ---- what else asks for "the" interpreter --------------------------------------- */

static int is_initialized(si_gate *g)
{
    return !atomic_load(&g->closed) && Py_IsInitialized();
}

static int is_finalizing(si_gate *g)
{
    return atomic_load(&g->closed) || Py_IsFinalizing();
}

static PyInterpreterState *main_interpreter(si_gate *g)
{
    if (atomic_load(&g->closed) && !check(g))
        hold_for_ever();
    return g->interp;
}

#ifdef SI_HAVE_VIEWS
static PyInterpreterView *main_view(si_gate *g)
{
    PyGILState_STATE before = ensure(g);
    PyInterpreterView *view = PyInterpreterView_FromCurrent();
    if (!view)
        PyErr_Clear();  /* NULL, as the function itself does; it raises nothing */
    release(g, before);
    return view;
}
#endif

/* From any thread, without a lock: it must be counted while it looks. */
static int add_pending_call(si_gate *g, int (*function)(void *), void *arg)
{
    if (!enter(g))
        return -1;
    int bad = _PyEval_AddPendingCall(g->interp, function, arg, 0);
    leave(g);
    return bad ? -1 : 0;
}

/* CPython keeps 32 of them for the process; each copy may bring its own. They
 * may not use Python, so the end of the process will do. */
static int at_exit(si_gate *g, void (*function)(void))
{
    (void)g;
    return atexit(function) ? -1 : 0;
}

/* ---- entrances -------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void *function;     /* takes the gate first */
    int n_args;         /* beside it; integers or pointers */
} redirected;

static const redirected redirections[] = {
    {"PyGILState_Ensure", (void *)ensure, 0},
    {"PyGILState_Release", (void *)release, 1},
    {"PyGILState_Check", (void *)check, 0},
    {"PyGILState_GetThisThreadState", (void *)this_thread_state, 0},
    {"PyThreadState_New", (void *)new_thread_state, 1},
    {"Py_IsInitialized", (void *)is_initialized, 0},
    {"Py_IsFinalizing", (void *)is_finalizing, 0},
    {"PyInterpreterState_Main", (void *)main_interpreter, 0},
    {"Py_AddPendingCall", (void *)add_pending_call, 2},
    {"Py_AtExit", (void *)at_exit, 1},
#ifdef SI_HAVE_VIEWS
    {"PyInterpreterView_FromMain", (void *)main_view, 0},
#endif
};

#define N_REDIRECTIONS (sizeof redirections / sizeof *redirections)
#define ENTRANCE_SIZE 48
#define CODE_SIZE (N_REDIRECTIONS * ENTRANCE_SIZE)

void *si_gate_entrance(const si_gate *g, const char *name)
{
    /* Called for every import of every copy. */
    if (name[0] != 'P' || name[1] != 'y')
        return NULL;
    for (size_t i = 0; i < N_REDIRECTIONS; i++)
        if (strcmp(name, redirections[i].name) == 0)
            return g->code + i * ENTRANCE_SIZE;
    return NULL;
}

void si_gate_hand_out(si_gate *g)
{
    g->handed_out = true;
}

#if defined(__x86_64__)

/* endbr64; shift the integer arguments by one; rdi = gate; jump. */
static void write_entrance(unsigned char *p, const redirected *r, const si_gate *g)
{
    static const unsigned char ENDBR64[] = {0xf3, 0x0f, 0x1e, 0xfa};
    static const unsigned char MOV_RDX_RSI[] = {0x48, 0x89, 0xf2};
    static const unsigned char MOV_RSI_RDI[] = {0x48, 0x89, 0xfe};
    static const unsigned char MOV_RDI[] = {0x48, 0xbf}, MOV_RAX[] = {0x48, 0xb8};
    static const unsigned char JMP_RAX[] = {0xff, 0xe0};
#define PUT(what, n) (memcpy(p, (what), (n)), p += (n))
    PUT(ENDBR64, sizeof ENDBR64);
    if (r->n_args > 1)
        PUT(MOV_RDX_RSI, sizeof MOV_RDX_RSI);
    if (r->n_args > 0)
        PUT(MOV_RSI_RDI, sizeof MOV_RSI_RDI);
    PUT(MOV_RDI, sizeof MOV_RDI);
    PUT(&g, sizeof g);
    PUT(MOV_RAX, sizeof MOV_RAX);
    PUT(&r->function, sizeof r->function);
    PUT(JMP_RAX, sizeof JMP_RAX);
#undef PUT
}

static bool write_entrances(si_gate *g, const char **why)
{
    unsigned char *code = mmap(NULL, CODE_SIZE, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED) {
        *why = "there is no memory for another mapping (see vm.max_map_count)";
        return false;
    }
    for (size_t i = 0; i < N_REDIRECTIONS; i++)
        write_entrance(code + i * ENTRANCE_SIZE, &redirections[i], g);
    if (mprotect(code, CODE_SIZE, PROT_READ | PROT_EXEC) != 0) {
        munmap(code, CODE_SIZE);
        *why = "this system does not let a program make memory executable";
        return false;
    }
    g->code = code;
    return true;
}

#else

static bool write_entrances(si_gate *g, const char **why)
{
    (void)g;
    *why = "they are written for x86-64 only";
    return false;
}

#endif

/* ---- callbacks of ctypes --------------------------------------------------------------- */

typedef void (*closure_function)(void *cif, void *result, void **args, void *data);

struct si_callback {
    si_gate *gate;
    closure_function function;  /* of _ctypes */
    void *data;                 /* for it */
};

static void pass_gate(void *cif, void *result, void **args, void *data)
{
    si_callback *c = data;
    PyGILState_STATE before = ensure(c->gate);
    c->function(cif, result, args, c->data);
    release(c->gate, before);
}

/* CThunkObject: a variable-size head, the closure as it is written, the
 * closure as it is called, the description of the call (cif)... ffi_closure: 16 to
 * 32 bytes of code or an address, then cif, function, data. */
si_callback *si_gate_callback(si_gate *g, void *thunk, void *entry, bool *known)
{
    void **fields = (void **)((char *)thunk + sizeof(PyVarObject));
    void **closure = fields[0];
    *known = false;
    if (!closure || fields[1] != entry)
        return NULL;
    for (int i = 1; i < 5; i++) {
        uintptr_t cif = (uintptr_t)closure[i];
        if (cif != (uintptr_t)(fields + 2) || closure[i + 2] != thunk)
            continue;
        *known = true;
        si_gate_hand_out(g);
        si_callback *c = malloc(sizeof *c);
        if (!c)
            return NULL;
        c->gate = g;
        memcpy(&c->function, &closure[i + 1], sizeof c->function);
        c->data = thunk;
        closure_function through = pass_gate;
        memcpy(&closure[i + 1], &through, sizeof through);
        closure[i + 2] = c;
        return c;
    }
    return NULL;
}

/* ---- the gate ---------------------------------------------------------------------- */

const char *si_gate_unsupported(void)
{
    si_gate g = {.interp = NULL};
    const char *why = NULL;
    if (write_entrances(&g, &why))
        munmap(g.code, CODE_SIZE);
    return why;
}

si_gate *si_gate_new(PyInterpreterState *interp, const char **why)
{
    si_gate *g = calloc(1, sizeof *g);
    if (!g) {
        *why = "out of memory";
        return NULL;
    }
    g->interp = interp;
    if (!write_entrances(g, why)) {
        free(g);
        return NULL;
    }
    return g;
}

void si_gate_free(si_gate *g)
{
    if (!g->handed_out) {
        munmap(g->code, CODE_SIZE);
        free(g);
    }
}

si_ret si_gate_close(si_gate *g, int64_t deadline)
{
    atomic_store(&g->closed, true);
    uint32_t n;
    while ((n = atomic_load(&g->inside)) != 0) {
        if (si_now() > deadline)
            return SI_TIMEOUT;
        (void)si_futex_wait(&g->inside, n, deadline);
    }
    return SI_OK;
}
