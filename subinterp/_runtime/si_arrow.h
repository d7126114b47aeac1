/* si_arrow.h: Arrow data in memory that no interpreter owns.
 *
 * The Arrow C data interface hands memory from one library to another with a
 * callback that gives it back. The callback of data that some other library
 * made may run code of the interpreter it lives in, so such data never crosses
 * over to another interpreter: its buffers are copied once, and what arrives
 * are structs made here, whose callbacks are plain C. They may be called by
 * any thread, with or without a lock, in any order, also after the interpreter
 * that received the data has ended.
 *
 * Reference: https://arrow.apache.org/docs/format/CDataInterface.html */
#ifndef SI_ARROW_H
#define SI_ARROW_H

#include "si_message.h"

/* As the specification has them. */
#ifndef ARROW_C_DATA_INTERFACE
#define ARROW_C_DATA_INTERFACE

#define ARROW_FLAG_DICTIONARY_ORDERED 1
#define ARROW_FLAG_NULLABLE 2
#define ARROW_FLAG_MAP_KEYS_SORTED 4

struct ArrowSchema {
    const char *format;
    const char *name;
    const char *metadata;
    int64_t flags;
    int64_t n_children;
    struct ArrowSchema **children;
    struct ArrowSchema *dictionary;
    void (*release)(struct ArrowSchema *);
    void *private_data;
};

struct ArrowArray {
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

#endif

#ifndef ARROW_C_STREAM_INTERFACE
#define ARROW_C_STREAM_INTERFACE

struct ArrowArrayStream {
    int (*get_schema)(struct ArrowArrayStream *, struct ArrowSchema *out);
    int (*get_next)(struct ArrowArrayStream *, struct ArrowArray *out);
    const char *(*get_last_error)(struct ArrowArrayStream *);
    void (*release)(struct ArrowArrayStream *);
    void *private_data;
};

#endif

/* The memory that received arrays lie in; every array, also every child, holds
 * a reference, for consumers may keep parts. refs: atomic; the rest is
 * constant once the first array has been made. */
typedef struct {
    _Atomic int refs;
    uint32_t n;
    struct { void *ptr; bool shared; } holds[];     /* si_shared, else si_block */
} si_arrow_memory;

si_arrow_memory *si_arrow_memory_new(uint32_t room);
void si_arrow_memory_add_block(si_arrow_memory *m, si_block *b);        /* takes a reference */
void si_arrow_memory_add_shared(si_arrow_memory *m, si_shared *s);      /* takes a reference */
void si_arrow_memory_release(si_arrow_memory *m);

/* Make one node; its strings are copied, its children (and dictionary) are
 * there and empty, to be made by further calls. Half-made trees may be
 * released. False: no memory, and nothing to release. metadata: NULL if n is 0. */
bool si_arrow_schema_init(struct ArrowSchema *s, const char *format, const char *name,
                          const char *metadata, size_t n_metadata, int64_t flags,
                          int64_t n_children, bool dictionary);
bool si_arrow_array_init(struct ArrowArray *a, si_arrow_memory *m, int64_t length,
                         int64_t null_count, int64_t offset, int64_t n_buffers,
                         int64_t n_children, bool dictionary);

/* Bytes of a field's metadata. */
size_t si_arrow_metadata_size(const char *metadata);

/* A stream in a PyCapsule, as `__arrow_c_stream__` returns it. `schemas` and
 * `arrays` are moved into it, also if it fails (NULL, with an exception). */
PyObject *si_arrow_stream_capsule(struct ArrowSchema *schema, struct ArrowArray *arrays,
                                  uint32_t n_arrays);

/* Read from a stream that some library made. 0, or an errno. */
static inline int si_arrow_get_schema(struct ArrowArrayStream *s, struct ArrowSchema *out)
{
    return s->get_schema(s, out);
}
static inline int si_arrow_get_next(struct ArrowArrayStream *s, struct ArrowArray *out)
{
    return s->get_next(s, out);
}
static inline const char *si_arrow_error(struct ArrowArrayStream *s)
{
    return s->get_last_error ? s->get_last_error(s) : NULL;
}
static inline void si_arrow_release_stream(struct ArrowArrayStream *s)
{
    if (s->release)
        s->release(s);
}
static inline void si_arrow_release_schema(struct ArrowSchema *s)
{
    if (s->release)
        s->release(s);
}
static inline void si_arrow_release_array(struct ArrowArray *a)
{
    if (a->release)
        a->release(a);
}

/* One thing to do when the content is copied. */
typedef enum {
    SI_ARROW_PLAIN = 0,     /* n bytes as they are; zeros if there is no source */
    SI_ARROW_OFFSETS_32,    /* n bytes of offsets, each less the first */
    SI_ARROW_OFFSETS_64,
    SI_ARROW_VIEWS,         /* n bytes of views; the text they mean goes to `text_at` */
} si_arrow_how;

/* Its holder's own; `array` is borrowed from what the holder keeps. */
typedef struct {
    si_arrow_how how;
    const char *from;
    size_t n;
    size_t at;                      /* where to, from the start of the copy */
    const struct ArrowArray *array; /* SI_ARROW_VIEWS: whose views, */
    int64_t first;                  /* beginning with which, */
    size_t text_at, size_at;        /* and to where its size (int64_t) goes */
} si_arrow_job;

/* Copies; touches no Python object. */
void si_arrow_copy(char *to, const si_arrow_job *job);
/* Bytes of text outside of these views; nulls have none. */
size_t si_arrow_text_size(const struct ArrowArray *a, int64_t first, int64_t n);

#endif
