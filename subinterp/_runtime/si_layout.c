#include "si_layout.h"

const char *const si_layout_names[SI_LAYOUT_N] = {
    "list", "finalizing", "next", "id", "threads", "lock", "own_lock", "collector", "thread_next",
    "thread_ident", "thread_native", "thread_waits", "locked", "holder", "interval", "switches",
    "lock_size", "collecting", "enabled", "generation_0", "generation_1", "generation_2", "headers",
};

/* Structures are smaller than this. */
#define MOST (16u << 20)

static uint64_t entry(const char *table, si_table_index i)
{
    uint64_t value;
    if (si_table[i].at == SI_UNKNOWN)
        return SI_UNKNOWN;
    memcpy(&value, table + si_table[i].at, sizeof value);
    return value;
}

/* The entry is an offset of something of n bytes within a structure whose size is another entry. */
static bool lies_in(const char *table, si_table_index offset, si_table_index size, size_t n)
{
    uint64_t at = entry(table, offset), end = entry(table, size);
    return end <= MOST && at <= end && n <= end - at && at % n == 0;
}

/* Two entries are as far apart as in the headers: what the values alone cannot tell, since
 * many places hold a zero. */
static bool lie_apart(const char *table, si_table_index one, si_table_index other)
{
    return entry(table, one) - entry(table, other) == si_table[one].headers - si_table[other].headers;
}

#define IN_RUNTIME(i, n) lies_in(table, SI_T_##i, SI_T_RUNTIME_SIZE, n)
#define IN_INTERPRETER(i, n) lies_in(table, SI_T_##i, SI_T_INTERPRETER_SIZE, n)
#define IN_THREAD(i, n) lies_in(table, SI_T_##i, SI_T_THREAD_SIZE, n)

/* A number that a function of a module returns, or the item-th of a tuple of them. NAN: it does not. */
static double asked(const char *module, const char *function, Py_ssize_t item)
{
    double value = Py_NAN;
    PyObject *m = PyImport_ImportModule(module);
    PyObject *r = m ? PyObject_CallMethod(m, function, NULL) : NULL;
    PyObject *number = r;
    if (r && item >= 0)
        number = PyTuple_Check(r) && item < PyTuple_GET_SIZE(r) ? PyTuple_GET_ITEM(r, item) : NULL;
    if (number && PyNumber_Check(number)) {
        value = PyFloat_AsDouble(number);
        if (PyErr_Occurred())
            value = Py_NAN;
    }
    PyErr_Clear();
    Py_XDECREF(r);
    Py_XDECREF(m);
    return value;
}

/* The list of interpreters. */
static bool read_list(si_layout *l, const char *table)
{
    PyInterpreterState *first = PyInterpreterState_Main();
    /* struct pyinterpreters: mutex, head, main. */
    if (!IN_RUNTIME(LIST, 8) || entry(table, SI_T_LIST) < si_table_size + 8
        || !IN_INTERPRETER(NEXT, 8) || !IN_INTERPRETER(ID, 8))
        return false;
    size_t head = entry(table, SI_T_LIST);
    if (SI_AT(PyInterpreterState *, _PyRuntime, head + 8) != first
        || SI_AT(int64_t, first, entry(table, SI_T_ID)) != PyInterpreterState_GetID(first)
        || SI_AT(void *, first, entry(table, SI_T_NEXT)) != NULL
        || !lie_apart(table, SI_T_ID, SI_T_NEXT))
        return false;
    l->next = entry(table, SI_T_NEXT);
    l->id = entry(table, SI_T_ID);
    l->list = head;
    if (IN_RUNTIME(FINALIZING, 8) && lie_apart(table, SI_T_LIST, SI_T_FINALIZING)
        && (SI_AT(void *, _PyRuntime, entry(table, SI_T_FINALIZING)) != NULL)
               == (Py_IsFinalizing() != 0))
        l->finalizing = entry(table, SI_T_FINALIZING);
    return true;
}

static void read_threads(si_layout *l, const char *table, PyThreadState *ts)
{
    PyInterpreterState *interp = PyThreadState_GetInterpreter(ts);
    if (!IN_INTERPRETER(THREADS, 8) || !IN_THREAD(THREAD_NEXT, 8)
        || !IN_THREAD(THREAD_INTERPRETER, 8) || !IN_THREAD(THREAD_IDENT, 8)
        || !IN_THREAD(THREAD_NATIVE, 8) || !lie_apart(table, SI_T_THREADS, SI_T_NEXT))
        return;
    /* Public structures keep their form within a minor version. */
    if (entry(table, SI_T_THREAD_NEXT) != si_table[SI_T_THREAD_NEXT].headers || SI_AT(void *, ts, entry(table, SI_T_THREAD_INTERPRETER)) != interp
        || SI_AT(unsigned long, ts, entry(table, SI_T_THREAD_IDENT)) != PyThread_get_thread_ident()
        || SI_AT(unsigned long, ts, entry(table, SI_T_THREAD_NATIVE))
               != PyThread_get_thread_native_id())
        return;
    /* A thread of an extension may add its own meanwhile. */
    size_t head = entry(table, SI_T_THREADS), next = entry(table, SI_T_THREAD_NEXT);
    bool good = false;
    for (int i = 0; i < 3 && !good; i++)
        good = SI_PEEK(PyThreadState *, interp, head) == PyInterpreterState_ThreadHead(interp)
               && SI_PEEK(PyThreadState *, ts, next) == PyThreadState_Next(ts);
    if (!good)
        return;
    l->threads = head;
    l->thread_next = next;
    l->thread_ident = entry(table, SI_T_THREAD_IDENT);
    l->thread_native = entry(table, SI_T_THREAD_NATIVE);
    /* Since 3.15; this thread waits for nothing. */
    if (IN_THREAD(THREAD_HOLDS, 4) && IN_THREAD(THREAD_WAITS, 4)
        && lie_apart(table, SI_T_THREAD_WAITS, SI_T_THREAD_HOLDS)
        && SI_PEEK(int, ts, entry(table, SI_T_THREAD_HOLDS)) == 1
        && SI_PEEK(int, ts, entry(table, SI_T_THREAD_WAITS)) == 0)
        l->thread_waits = entry(table, SI_T_THREAD_WAITS);
}

/* This thread holds its interpreter's lock, and the main interpreter has its own. */
static void read_lock(si_layout *l, const char *table, PyThreadState *ts)
{
    PyInterpreterState *first = PyInterpreterState_Main();
    PyInterpreterState *interp = PyThreadState_GetInterpreter(ts);
    if (!IN_INTERPRETER(LOCK, 8) || !IN_INTERPRETER(OWN_LOCK, 8) || !IN_INTERPRETER(LOCKED, 4)
        || !IN_INTERPRETER(HOLDER, 8) || entry(table, SI_T_LOCKED) < entry(table, SI_T_OWN_LOCK)
        || entry(table, SI_T_HOLDER) < entry(table, SI_T_OWN_LOCK))
        return;
    size_t own = entry(table, SI_T_OWN_LOCK), at = entry(table, SI_T_LOCK);
    size_t locked = entry(table, SI_T_LOCKED) - own, holder = entry(table, SI_T_HOLDER) - own;
    char *lock = SI_PEEK(char *, interp, at);
    if (SI_PEEK(char *, first, at) != (char *)first + own
        || (lock != (char *)first + own && lock != (char *)interp + own)
        || SI_PEEK(int, lock, locked) != 1 || SI_PEEK(PyThreadState *, lock, holder) != ts)
        return;
    l->lock = at;
    l->own_lock = own;
    l->locked = locked;
    l->holder = holder;
    /* Further into it only if all that the table says is as in the headers. */
    if (locked != si_table[SI_T_LOCKED].headers - si_table[SI_T_OWN_LOCK].headers
        || holder != si_table[SI_T_HOLDER].headers - si_table[SI_T_OWN_LOCK].headers
        || own + si_headers.lock_size > entry(table, SI_T_INTERPRETER_SIZE))
        return;
    double microseconds = asked("sys", "getswitchinterval", -1) * 1e6;
    double interval = (double)SI_PEEK(unsigned long, lock, si_headers.interval);
    if (interval - microseconds < 1 && microseconds - interval < 1) {
        l->interval = si_headers.interval;
        l->switches = si_headers.switches;
        l->lock_size = si_headers.lock_size;
    }
}

static void read_collector(si_layout *l, const char *table, PyThreadState *ts)
{
    PyInterpreterState *interp = PyThreadState_GetInterpreter(ts);
    if (!IN_INTERPRETER(COLLECTOR, 8) || !lies_in(table, SI_T_COLLECTING, SI_T_COLLECTOR_SIZE, 4)
        || entry(table, SI_T_COLLECTOR) + entry(table, SI_T_COLLECTOR_SIZE)
               > entry(table, SI_T_INTERPRETER_SIZE))
        return;
    /* Of this structure the table tells one field: not enough to know it by. */
    if (entry(table, SI_T_COLLECTOR_SIZE) != si_table[SI_T_COLLECTOR_SIZE].headers
        || entry(table, SI_T_COLLECTING) != si_table[SI_T_COLLECTING].headers)
        return;
    char *collector = (char *)interp + entry(table, SI_T_COLLECTOR);
    int collecting = SI_PEEK(int, collector, entry(table, SI_T_COLLECTING));
    if ((collecting != 0 && collecting != 1)
        || SI_PEEK(int, collector, si_headers.enabled) != PyGC_IsEnabled())
        return;
    for (int i = 0; i < 3; i++)
        if (SI_PEEK(int, collector, si_headers.generation[i] + si_headers.threshold)
            != asked("gc", "get_threshold", i))
            return;
    l->collector = entry(table, SI_T_COLLECTOR);
    l->collecting = entry(table, SI_T_COLLECTING);
    l->enabled = si_headers.enabled;
    for (int i = 0; i < 3; i++)
        l->generation[i] = si_headers.generation[i];
}

/* Whether the structures are those of the headers, as far as the table can tell. */
static bool is_as_built(const char *table)
{
    for (int i = SI_T_RUNTIME_SIZE; i < SI_N_TABLE; i++)
        if (si_table[i].at != SI_UNKNOWN && entry(table, i) != si_table[i].headers)
            return false;
    return Py_Version == si_built_version;
}

void si_layout_read(si_layout *l, const void *table, PyThreadState *ts)
{
    for (size_t i = 0; i < SI_LAYOUT_N; i++)
        ((size_t *)l)[i] = SI_UNKNOWN;
    if (memcmp((const char *)table + si_table[SI_T_COOKIE].at, "xdebugpy", 8) != 0
        || entry(table, SI_T_VERSION) != (uint64_t)Py_Version
        || (Py_Version >> 16) != (si_built_version >> 16)
        || entry(table, SI_T_FREE_THREADED) != 0 || !read_list(l, table))
        return;
    read_threads(l, table, ts);
    read_lock(l, table, ts);
    read_collector(l, table, ts);
    if (is_as_built(table))
        l->headers = 0;
}

const void *si_field_at(const si_layout *l, const si_field *f, PyInterpreterState *interp)
{
    /* Confirmed, whatever the headers were. */
    const struct { si_place place; const char *path; size_t base, offset; } known[] = {
        {SI_IN_RUNTIME, "_finalizing", 0, l->finalizing},
        {SI_IN_RUNTIME, "interpreters.head", 0, l->list},
        {SI_IN_RUNTIME, "interpreters.main", 8, l->list},
        {SI_IN_INTERPRETER, "ceval.gil", 0, l->lock},
        {SI_IN_INTERPRETER, "gc.enabled", l->collector, l->enabled},
        {SI_IN_INTERPRETER, "gc.collecting", l->collector, l->collecting},
    };
    if (f->kind == SI_VALUE_NONE || (f->place != SI_IN_RUNTIME && f->place != SI_IN_INTERPRETER))
        return NULL;
    const char *place = f->place == SI_IN_RUNTIME ? _PyRuntime : (const char *)interp;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (f->place == known[i].place && strcmp(f->path, known[i].path) == 0)
            return si_knows(known[i].offset) ? place + known[i].base + known[i].offset : NULL;
    return l->headers == 0 ? place + f->offset : NULL;
}

/* Written once by si_layout_init, constant afterwards. */
static si_layout layout;

void si_layout_init(PyThreadState *ts)
{
    si_layout_read(&layout, _PyRuntime, ts);
}

const si_layout *si_runtime_layout(void)
{
    return &layout;
}
