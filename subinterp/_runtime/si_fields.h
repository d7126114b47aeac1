/* si_fields.h: where the fields went that _PyRuntimeState had in May 2019.
 *
 * Each row is a claim about the headers of the Python that is built against, and
 * does not compile if it is wrong, in either direction:
 * - "it is here": offsetof the path;
 * - "it is not there any more": a struct is declared that embeds the whole
 *   structure and has a member of that name besides. If the structure has one,
 *   the compiler refuses the second (-fms-extensions lets structures be embedded
 *   so; without that option, a size shows that they were not).
 * docs/runtime.md has the same table for all versions, with their history. */
#ifndef SI_FIELDS_H
#define SI_FIELDS_H

#include <stddef.h>
#include <stdint.h>

#define SI_UNKNOWN ((size_t)-1)

/* Where something lives. */
typedef enum {
    SI_IN_RUNTIME,      /* _PyRuntimeState */
    SI_IN_INTERPRETER,  /* PyInterpreterState */
    SI_IN_THREAD,       /* PyThreadState */
    SI_THREAD_LOCAL,    /* a variable that each native thread has */
    SI_GONE,
} si_place;

/* How its value is printed. */
typedef enum {
    SI_VALUE_NONE,      /* a structure, or a place that cannot be looked into */
    SI_VALUE_INT,
    SI_VALUE_LONG,      /* 64 bits */
    SI_VALUE_SET,       /* a pointer: whether it is NULL */
    SI_VALUE_PRECONFIG,
} si_value_kind;

typedef struct {
    const char *field;      /* of May 2019 */
    const char *part;       /* of it; "": all */
    si_place place;
    const char *path;       /* within that place; "": gone */
    const char *about;      /* what it is today */
    si_value_kind kind;
    size_t offset;          /* within the place, as the headers have it */
} si_field;

extern const si_field si_fields[];
extern const size_t si_n_fields;

/* PyPreConfig's members that say something, for SI_VALUE_PRECONFIG. */
typedef struct {
    const char *name;
    size_t offset;      /* within PyPreConfig; each is an int */
} si_preconfig_member;
extern const si_preconfig_member si_preconfig[];
extern const size_t si_n_preconfig;

/* The entries of the table at the start of _PyRuntime (_Py_DebugOffsets) that are
 * used. The table itself has kept its form within each minor version. */
typedef enum {
    SI_T_COOKIE, SI_T_VERSION, SI_T_FREE_THREADED,
    SI_T_RUNTIME_SIZE, SI_T_FINALIZING, SI_T_LIST,
    SI_T_INTERPRETER_SIZE, SI_T_ID, SI_T_NEXT, SI_T_THREADS, SI_T_COLLECTOR,
    SI_T_LOCK, SI_T_OWN_LOCK, SI_T_LOCKED, SI_T_HOLDER,
    SI_T_THREAD_SIZE, SI_T_THREAD_NEXT, SI_T_THREAD_INTERPRETER, SI_T_THREAD_IDENT,
    SI_T_THREAD_NATIVE, SI_T_THREAD_HOLDS, SI_T_THREAD_WAITS,
    SI_T_COLLECTOR_SIZE, SI_T_COLLECTING,
    SI_N_TABLE
} si_table_index;

typedef struct {
    const char *name;
    size_t at;          /* where it stands in the table; SI_UNKNOWN: this version has none */
    uint64_t headers;   /* what the headers would have it say */
} si_table_entry;
extern const si_table_entry si_table[SI_N_TABLE];
extern const size_t si_table_size;
extern const unsigned long si_built_version;    /* PY_VERSION_HEX */

/* Beyond the table, as the headers have it: within a lock, and a collector's structure. */
typedef struct {
    size_t interval, switches, lock_size;
    size_t enabled, generation[3], threshold, count;    /* the last two within a generation */
} si_inner;
extern const si_inner si_headers;

#endif
