#include "si_cpython.h"
#include "si_fields.h"

/* ---- claims ------------------------------------------------------------------ */

typedef struct pyruntimestate si_py_runtime;
typedef struct _is si_py_interpreter;
typedef struct _ts si_py_thread;

/* `struct tag` has no member `name`. */
#define LACKS(tag, name)                                                                           \
    struct tag##_lacks_##name { struct tag; char name; };                                          \
    _Static_assert(sizeof(struct tag##_lacks_##name) > sizeof(struct tag),                         \
                   "structures must be embedded: compile with -fms-extensions");

/* `type` has something at `path`, of this size. */
#define HAS(type, path, size)                                                                      \
    _Static_assert(sizeof(((type *)0)->path) == (size), #type "." #path ": its size");

/* A variable that each native thread has: it is declared, and as such. */
#define IS_THREAD_LOCAL(variable, type)                                                            \
    _Static_assert(__builtin_types_compatible_p(__typeof__(variable), type), #variable);           \
    extern _Py_thread_local type variable;

/* What has moved is not in the runtime's structure any more, under its name of
 * 2019. What is gone is checked with its row. */
LACKS(pyruntimestate, exitfuncs)
LACKS(pyruntimestate, nexitfuncs)
LACKS(pyruntimestate, finalizing)
LACKS(pyruntimestate, gc)
LACKS(pyruntimestate, audit_hook_head)
LACKS(pyruntimestate, pre_initialized)
#if PY_VERSION_HEX >= 0x030D0000
LACKS(pyruntimestate, xidregistry)
#endif
LACKS(_ceval_runtime_state, recursion_limit)
LACKS(_ceval_runtime_state, eval_breaker)
LACKS(_ceval_runtime_state, pending)
LACKS(_ceval_runtime_state, gil)
#if PY_VERSION_HEX >= 0x030D0000
LACKS(_ceval_state, eval_breaker)
#else
LACKS(_ts, eval_breaker)
#endif
LACKS(_gilstate_runtime_state, tstate_current)
#if PY_VERSION_HEX < 0x030F0000
LACKS(_gilstate_runtime_state, autoTSSkey)
#endif
IS_THREAD_LOCAL(_Py_tss_tstate, PyThreadState *)

/* ---- the table ----------------------------------------------------------------- */

#define SIZE_NONE(type, path) sizeof(((type *)0)->path)
#define SIZE_INT(type, path) sizeof(int)
#define SIZE_LONG(type, path) 8
#define SIZE_SET(type, path) sizeof(void *)
#define SIZE_PRECONFIG(type, path) sizeof(PyPreConfig)

#if PY_VERSION_HEX >= 0x030E0000
#  define XI_REGISTRY xi.data_lookup.registry
#elif PY_VERSION_HEX >= 0x030D0000
#  define XI_REGISTRY xi.registry
#else
#  define XI_REGISTRY xidregistry
#endif

#define ROWS                                                                                       \
    RUNTIME("ceval", "pending", ceval.pending_mainthread, NONE,                                    \
            "calls for the main thread, signals' handlers among them; its own mutex")              \
    INTERP("ceval", "pending", ceval.pending, NONE,                                                \
           "calls for any thread of the interpreter; its own mutex")                               \
    INTERP("ceval", "gil", ceval.gil, SET,                                                         \
           "the lock in use: the interpreter's own, or that of the main one")                      \
    INTERP("ceval", "own gil", _gil, NONE, "the interpreter's own lock, if it has one")            \
    INTERP("ceval", "recursion_limit", ceval.recursion_limit, INT, "of Python code")               \
    BREAKER_ROWS                                                                                   \
    GONE("ceval", "tracing_possible", _ceval_runtime_state, _ceval_state, tracing_possible,        \
         "threads count what they trace themselves")                                               \
    SIGNAL_ROWS                                                                                    \
    RUNTIME("exitfuncs", "", atexit.callbacks, NONE,                                               \
            "functions of Py_AtExit; atexit.mutex guards it")                                      \
    RUNTIME("nexitfuncs", "", atexit.ncallbacks, INT, "how many; the same mutex")                  \
    INTERP("exitfuncs", "atexit", atexit.callbacks, SET,                                           \
           "of the module atexit, which each interpreter runs by itself")                          \
    RUNTIME("finalizing", "", _finalizing, SET, "the thread that ends the process")                \
    INTERP("finalizing", "", _finalizing, SET, "the thread that ends the interpreter")             \
    INTERP("gc", "", gc, NONE, "generations, thresholds, statistics")                              \
    INTERP("gc", "enabled", gc.enabled, INT, "automatic collection")                               \
    INTERP("gc", "collecting", gc.collecting, INT, "a collection is under way")                    \
    RUNTIME("gilstate", "check_enabled", gilstate.check_enabled, INT,                              \
            "whether PyGILState_Check answers in earnest; off once there was a second "            \
            "interpreter")                                                                         \
    RUNTIME("gilstate", "autoInterpreterState", gilstate.autoInterpreterState, SET,                \
            "where PyGILState_Ensure goes on threads that Python does not know: main")             \
    TLS("gilstate", "tstate_current", _Py_tss_tstate,                                              \
        "the thread state that is attached; each native thread has its own")                       \
    GILSTATE_ROWS                                                                                  \
    GONE("gilstate", "getframe", _gilstate_runtime_state, _is, getframe, "was a hook for Psyco")   \
    RUNTIME("interpreters", "head", interpreters.head, SET,                                        \
            "the newest interpreter; interpreters.mutex guards the list and the threads'")         \
    RUNTIME("interpreters", "main", interpreters.main, SET, "the first interpreter")               \
    RUNTIME("interpreters", "next_id", interpreters.next_id, LONG,                                 \
            "number of the next interpreter; the same mutex")                                      \
    RUNTIME("main_thread", "", main_thread, LONG,                                                  \
            "the thread that handles signals, as threading.get_ident has it")                      \
    RUNTIME("open_code_hook", "", open_code_hook, SET, "set before the start; constant")           \
    RUNTIME("open_code_userdata", "", open_code_userdata, SET, "handed to that hook")              \
    RUNTIME("audit_hook_head", "", audit_hooks.head, SET,                                          \
            "hooks of PySys_AddAuditHook; audit_hooks.mutex guards adding")                        \
    INTERP("audit_hook_head", "sys.addaudithook", audit_hooks, SET,                                \
           "hooks made in Python are one interpreter's")                                           \
    RUNTIME("pre_initialized", "", preinitialized, INT, "set during the start")                    \
    RUNTIME("core_initialized", "", core_initialized, INT, "set during the start")                 \
    RUNTIME("initialized", "", initialized, INT, "set during the start")                           \
    RUNTIME("preconfig", "", preconfig, PRECONFIG, "set during the start; constant")               \
    RUNTIME("xidregistry", "static types", XI_REGISTRY, NONE,                                      \
            "how objects of static types travel; its own mutex")                                   \
    INTERP("xidregistry", "heap types", XI_REGISTRY, NONE,                                         \
           "how objects of the interpreter's own types travel; its lock")

#if PY_VERSION_HEX >= 0x030D0000
#  define BREAKER_ROWS                                                                             \
    THREAD("ceval", "eval_breaker", eval_breaker, NONE,                                            \
           "why a thread's evaluation loop is to stop; atomic bits of each thread")                \
    GONE("ceval", "gil_drop_request", _ceval_runtime_state, _ceval_state, gil_drop_request,        \
         "a bit of the thread's eval_breaker")
#  define SIGNAL_ROWS                                                                              \
    GONE("ceval", "signals_pending", _ceval_runtime_state, _ceval_state, signals_pending,          \
         "a bit of the main thread's eval_breaker, and signals.is_tripped")
#else
#  define BREAKER_ROWS                                                                             \
    INTERP("ceval", "eval_breaker", ceval.eval_breaker, INT,                                       \
           "why the interpreter's evaluation loops are to stop; atomic")                           \
    INTERP("ceval", "gil_drop_request", ceval.gil_drop_request, INT,                               \
           "another thread wants the interpreter's lock; atomic")
#  define SIGNAL_ROWS                                                                              \
    RUNTIME("ceval", "signals_pending", ceval.signals_pending, INT, "a signal came; atomic")
#endif
#if PY_VERSION_HEX >= 0x030F0000
#  define GILSTATE_ROWS                                                                            \
    GONE("gilstate", "autoTSSkey", pyruntimestate, _gilstate_runtime_state, autoTSSkey,            \
         "a thread's own states are found without a key")
#else
#  define GILSTATE_ROWS                                                                            \
    RUNTIME("gilstate", "autoTSSkey", autoTSSkey, NONE,                                            \
            "key of the thread state that PyGILState functions take")
#endif

/* Once to check, once to fill. */
#define RUNTIME(field, part, path, kind, about)                                                    \
    HAS(si_py_runtime, path, SIZE_##kind(si_py_runtime, path))
#define INTERP(field, part, path, kind, about)                                                     \
    HAS(si_py_interpreter, path, SIZE_##kind(si_py_interpreter, path))
#define THREAD(field, part, path, kind, about)                                                     \
    HAS(si_py_thread, path, SIZE_##kind(si_py_thread, path))
#define TLS(field, part, variable, about)
#define GONE(field, part, one, other, name, about) LACKS(one, name) LACKS(other, name)
ROWS
#undef RUNTIME
#undef INTERP
#undef THREAD
#undef TLS
#undef GONE

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define RUNTIME(field, part, path, kind, about)                                                    \
    {field, part, SI_IN_RUNTIME, TEXT(path), about, SI_VALUE_##kind, offsetof(si_py_runtime, path)},
#define INTERP(field, part, path, kind, about)                                                     \
    {field, part, SI_IN_INTERPRETER, TEXT(path), about, SI_VALUE_##kind,                           \
     offsetof(si_py_interpreter, path)},
#define THREAD(field, part, path, kind, about)                                                     \
    {field, part, SI_IN_THREAD, TEXT(path), about, SI_VALUE_##kind, offsetof(si_py_thread, path)},
#define TLS(field, part, variable, about)                                                          \
    {field, part, SI_THREAD_LOCAL, #variable, about, SI_VALUE_NONE, 0},
#define GONE(field, part, one, other, name, about)                                                 \
    {field, part, SI_GONE, "", about, SI_VALUE_NONE, 0},

const si_field si_fields[] = {ROWS};
const size_t si_n_fields = sizeof si_fields / sizeof *si_fields;

#define MEMBER(name) {#name, offsetof(PyPreConfig, name)}
const si_preconfig_member si_preconfig[] = {
    MEMBER(isolated), MEMBER(use_environment), MEMBER(configure_locale), MEMBER(coerce_c_locale),
    MEMBER(utf8_mode), MEMBER(dev_mode), MEMBER(allocator),
};
const size_t si_n_preconfig = sizeof si_preconfig / sizeof *si_preconfig;

/* ---- the table of offsets ------------------------------------------------------- */

#define ENTRY(path, value) {#path, offsetof(_Py_DebugOffsets, path), value}
#define NO_ENTRY(path) {#path, SI_UNKNOWN, 0}
#define IN_INTERPRETER(path) offsetof(si_py_interpreter, path)
#define IN_THREAD(path) offsetof(si_py_thread, path)

#if PY_VERSION_HEX >= 0x030D0000
const si_table_entry si_table[SI_N_TABLE] = {
    [SI_T_COOKIE] = ENTRY(cookie, 0),
    [SI_T_VERSION] = ENTRY(version, PY_VERSION_HEX),
    [SI_T_FREE_THREADED] = ENTRY(free_threaded, 0),
    [SI_T_RUNTIME_SIZE] = ENTRY(runtime_state.size, sizeof(si_py_runtime)),
    [SI_T_FINALIZING] = ENTRY(runtime_state.finalizing, offsetof(si_py_runtime, _finalizing)),
    [SI_T_LIST] = ENTRY(runtime_state.interpreters_head,
                        offsetof(si_py_runtime, interpreters.head)),
    [SI_T_INTERPRETER_SIZE] = ENTRY(interpreter_state.size, sizeof(si_py_interpreter)),
    [SI_T_ID] = ENTRY(interpreter_state.id, IN_INTERPRETER(id)),
    [SI_T_NEXT] = ENTRY(interpreter_state.next, IN_INTERPRETER(next)),
    [SI_T_THREADS] = ENTRY(interpreter_state.threads_head, IN_INTERPRETER(threads.head)),
    [SI_T_COLLECTOR] = ENTRY(interpreter_state.gc, IN_INTERPRETER(gc)),
    [SI_T_LOCK] = ENTRY(interpreter_state.ceval_gil, IN_INTERPRETER(ceval.gil)),
    [SI_T_OWN_LOCK] = ENTRY(interpreter_state.gil_runtime_state, IN_INTERPRETER(_gil)),
    [SI_T_LOCKED] = ENTRY(interpreter_state.gil_runtime_state_locked, IN_INTERPRETER(_gil.locked)),
    [SI_T_HOLDER] = ENTRY(interpreter_state.gil_runtime_state_holder,
                          IN_INTERPRETER(_gil.last_holder)),
    [SI_T_THREAD_SIZE] = ENTRY(thread_state.size, sizeof(si_py_thread)),
    [SI_T_THREAD_NEXT] = ENTRY(thread_state.next, IN_THREAD(next)),
    [SI_T_THREAD_INTERPRETER] = ENTRY(thread_state.interp, IN_THREAD(interp)),
    [SI_T_THREAD_IDENT] = ENTRY(thread_state.thread_id, IN_THREAD(thread_id)),
    [SI_T_THREAD_NATIVE] = ENTRY(thread_state.native_thread_id, IN_THREAD(native_thread_id)),
#  if PY_VERSION_HEX >= 0x030F0000
    [SI_T_THREAD_HOLDS] = ENTRY(thread_state.holds_gil, IN_THREAD(holds_gil)),
    [SI_T_THREAD_WAITS] = ENTRY(thread_state.gil_requested, IN_THREAD(gil_requested)),
#  else
    [SI_T_THREAD_HOLDS] = NO_ENTRY(thread_state.holds_gil),
    [SI_T_THREAD_WAITS] = NO_ENTRY(thread_state.gil_requested),
#  endif
    [SI_T_COLLECTOR_SIZE] = ENTRY(gc.size, sizeof(struct _gc_runtime_state)),
    [SI_T_COLLECTING] = ENTRY(gc.collecting, offsetof(struct _gc_runtime_state, collecting)),
};
const size_t si_table_size = sizeof(_Py_DebugOffsets);
#endif
const unsigned long si_built_version = PY_VERSION_HEX;

const si_inner si_headers = {
    .interval = offsetof(struct _gil_runtime_state, interval),
    .switches = offsetof(struct _gil_runtime_state, switch_number),
    .lock_size = sizeof(struct _gil_runtime_state),
    .enabled = offsetof(struct _gc_runtime_state, enabled),
    .generation = {
        offsetof(struct _gc_runtime_state, generations[0]),
        offsetof(struct _gc_runtime_state, generations[1]),
        offsetof(struct _gc_runtime_state, generations[2]),
    },
    .threshold = offsetof(struct gc_generation, threshold),
    .count = offsetof(struct gc_generation, count),
};
HAS(struct _gil_runtime_state, interval, 8)
HAS(struct _gil_runtime_state, switch_number, 8)
HAS(struct gc_generation, threshold, 4)
HAS(struct gc_generation, count, 4)
