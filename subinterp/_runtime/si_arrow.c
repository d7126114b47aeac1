#include "si_compat.h"
#include "si_arrow.h"

#include <errno.h>

si_arrow_memory *si_arrow_memory_new(uint32_t room)
{
    si_arrow_memory *m = malloc(sizeof *m + room * sizeof m->holds[0]);
    if (m) {
        atomic_init(&m->refs, 1);
        m->n = 0;
    }
    return m;
}

void si_arrow_memory_add_block(si_arrow_memory *m, si_block *b)
{
    si_block_retain(b);
    m->holds[m->n].ptr = b;
    m->holds[m->n++].shared = false;
}

void si_arrow_memory_add_shared(si_arrow_memory *m, si_shared *s)
{
    si_shared_retain(s);
    m->holds[m->n].ptr = s;
    m->holds[m->n++].shared = true;
}

void si_arrow_memory_release(si_arrow_memory *m)
{
    if (atomic_fetch_sub_explicit(&m->refs, 1, memory_order_acq_rel) != 1)
        return;
    for (uint32_t i = 0; i < m->n; i++) {
        if (m->holds[i].shared)
            si_shared_release(m->holds[i].ptr);
        else
            si_block_release(m->holds[i].ptr);
    }
    free(m);
}

/* ---- nodes -------------------------------------------------------------- */

/* Pointers to n nodes of `size` bytes, in one piece with them: all zero. */
static void *new_children(int64_t n, size_t size)
{
    char *p = calloc((size_t)n, sizeof(void *) + size);
    if (p)
        for (int64_t i = 0; i < n; i++)
            ((void **)p)[i] = p + (size_t)n * sizeof(void *) + (size_t)i * size;
    return p;
}

static void release_schema(struct ArrowSchema *s)
{
    for (int64_t i = 0; i < s->n_children; i++)
        si_arrow_release_schema(s->children[i]);
    if (s->dictionary)
        si_arrow_release_schema(s->dictionary);
    free(s->children);
    free(s->dictionary);
    free((char *)s->format);
    free((char *)s->name);
    free((char *)s->metadata);
    s->release = NULL;
}

bool si_arrow_schema_init(struct ArrowSchema *s, const char *format, const char *name,
                          const char *metadata, size_t n_metadata, int64_t flags,
                          int64_t n_children, bool dictionary)
{
    memset(s, 0, sizeof *s);
    s->flags = flags;
    s->format = strdup(format);
    s->name = name ? strdup(name) : NULL;
    if (n_metadata && (s->metadata = malloc(n_metadata)))
        memcpy((char *)s->metadata, metadata, n_metadata);
    if (n_children && (s->children = new_children(n_children, sizeof *s)))
        s->n_children = n_children;
    if (dictionary)
        s->dictionary = calloc(1, sizeof *s);
    s->release = release_schema;
    if (s->format && (s->name || !name) && (s->metadata || !n_metadata)
        && s->n_children == n_children && (s->dictionary || !dictionary))
        return true;
    release_schema(s);
    return false;
}

static void release_array(struct ArrowArray *a)
{
    for (int64_t i = 0; i < a->n_children; i++)
        si_arrow_release_array(a->children[i]);
    if (a->dictionary)
        si_arrow_release_array(a->dictionary);
    free(a->children);
    free(a->dictionary);
    free(a->buffers);
    si_arrow_memory_release(a->private_data);
    a->release = NULL;
}

bool si_arrow_array_init(struct ArrowArray *a, si_arrow_memory *m, int64_t length,
                         int64_t null_count, int64_t offset, int64_t n_buffers,
                         int64_t n_children, bool dictionary)
{
    memset(a, 0, sizeof *a);
    a->length = length;
    a->null_count = null_count;
    a->offset = offset;
    if (n_buffers && (a->buffers = calloc((size_t)n_buffers, sizeof *a->buffers)))
        a->n_buffers = n_buffers;
    if (n_children && (a->children = new_children(n_children, sizeof *a)))
        a->n_children = n_children;
    if (dictionary)
        a->dictionary = calloc(1, sizeof *a);
    atomic_fetch_add_explicit(&m->refs, 1, memory_order_relaxed);
    a->private_data = m;
    a->release = release_array;
    if (a->n_buffers == n_buffers && a->n_children == n_children && (a->dictionary || !dictionary))
        return true;
    release_array(a);
    return false;
}

size_t si_arrow_metadata_size(const char *metadata)
{
    if (!metadata)
        return 0;
    int32_t n, size;
    const char *p = metadata;
    memcpy(&n, p, sizeof n);
    p += sizeof n;
    for (int64_t i = 0; i < 2 * (int64_t)n; i++) {      /* keys and values in turn */
        memcpy(&size, p, sizeof size);
        p += sizeof size + (size_t)size;
    }
    return (size_t)(p - metadata);
}

static bool copy_schema(struct ArrowSchema *to, const struct ArrowSchema *from)
{
    if (!si_arrow_schema_init(to, from->format, from->name, from->metadata,
                              si_arrow_metadata_size(from->metadata), from->flags,
                              from->n_children, from->dictionary != NULL))
        return false;
    bool good = !from->dictionary || copy_schema(to->dictionary, from->dictionary);
    for (int64_t i = 0; good && i < from->n_children; i++)
        good = copy_schema(to->children[i], from->children[i]);
    if (!good)
        release_schema(to);
    return good;
}

/* ---- streams ------------------------------------------------------------- */

/* Used by one consumer at a time, as the specification says. */
typedef struct {
    struct ArrowSchema schema;
    struct ArrowArray *arrays;
    uint32_t n, next;
} si_arrow_stream;

static int stream_get_schema(struct ArrowArrayStream *s, struct ArrowSchema *out)
{
    si_arrow_stream *mine = s->private_data;
    return copy_schema(out, &mine->schema) ? 0 : ENOMEM;
}

static int stream_get_next(struct ArrowArrayStream *s, struct ArrowArray *out)
{
    si_arrow_stream *mine = s->private_data;
    if (mine->next == mine->n) {
        out->release = NULL;    /* the end */
        return 0;
    }
    struct ArrowArray *a = &mine->arrays[mine->next++];
    *out = *a;
    a->release = NULL;          /* it has moved */
    return 0;
}

static const char *stream_get_last_error(struct ArrowArrayStream *s)
{
    return NULL;
}

static void drop_content(struct ArrowSchema *schema, struct ArrowArray *arrays, uint32_t n)
{
    si_arrow_release_schema(schema);
    for (uint32_t i = 0; i < n; i++)
        si_arrow_release_array(&arrays[i]);
    free(arrays);
}

static void stream_release(struct ArrowArrayStream *s)
{
    si_arrow_stream *mine = s->private_data;
    drop_content(&mine->schema, mine->arrays, mine->n);
    free(mine);
    s->release = NULL;
}

static void free_capsule(PyObject *capsule)
{
    struct ArrowArrayStream *s = PyCapsule_GetPointer(capsule, "arrow_array_stream");
    if (s) {
        si_arrow_release_stream(s);     /* unless its consumer moved it away */
        free(s);
    }
}

PyObject *si_arrow_stream_capsule(struct ArrowSchema *schema, struct ArrowArray *arrays,
                                  uint32_t n_arrays)
{
    si_arrow_stream *mine = malloc(sizeof *mine);
    struct ArrowArrayStream *s = malloc(sizeof *s);
    if (!mine || !s) {
        free(mine);
        free(s);
        drop_content(schema, arrays, n_arrays);
        return PyErr_NoMemory();
    }
    *mine = (si_arrow_stream){*schema, arrays, n_arrays, 0};
    *s = (struct ArrowArrayStream){stream_get_schema, stream_get_next, stream_get_last_error,
                                   stream_release, mine};
    PyObject *capsule = PyCapsule_New(s, "arrow_array_stream", free_capsule);
    if (!capsule) {
        stream_release(s);
        free(s);
    }
    return capsule;
}

/* ---- copying --------------------------------------------------------------- */

/* A string or binary view: short ones hold their text themselves. */
typedef struct {
    int32_t size;
    char prefix[4];
    int32_t buffer, offset;
} si_arrow_view;

#define VIEW_INLINE 12

/* The i-th view, counted without the array's offset; NULL if it is null or
 * holds its text itself. */
static const si_arrow_view *outside_view(const struct ArrowArray *a, int64_t i)
{
    const uint8_t *valid = a->buffers[0];
    if (valid && !(valid[i >> 3] >> (i & 7) & 1))
        return NULL;    /* what stands there means nothing */
    const si_arrow_view *v = (const si_arrow_view *)a->buffers[1] + i;
    return v->size > VIEW_INLINE ? v : NULL;
}

size_t si_arrow_text_size(const struct ArrowArray *a, int64_t first, int64_t n)
{
    size_t size = 0;
    for (int64_t i = first; i < first + n; i++) {
        const si_arrow_view *v = outside_view(a, i);
        if (v)
            size += (size_t)v->size;
    }
    return size;
}

static void copy_views(char *to, const si_arrow_job *job)
{
    const uint8_t *valid = job->array->buffers[0];
    si_arrow_view *views = (si_arrow_view *)(to + job->at);
    char *text = to + job->text_at;
    size_t used = 0;
    memcpy(views, job->from, job->n);
    for (int64_t i = 0; i < (int64_t)(job->n / sizeof *views); i++) {
        int64_t there = job->first + i;
        if (valid && !(valid[there >> 3] >> (there & 7) & 1)) {
            memset(&views[i], 0, sizeof views[i]);
            continue;
        }
        const si_arrow_view *v = outside_view(job->array, there);
        if (v) {
            const char *from = job->array->buffers[2 + v->buffer];
            memcpy(text + used, from + v->offset, (size_t)v->size);
            views[i].buffer = 0;
            views[i].offset = (int32_t)used;
            used += (size_t)v->size;
        }
    }
    int64_t size = (int64_t)used;
    memcpy(to + job->size_at, &size, sizeof size);
}

void si_arrow_copy(char *to, const si_arrow_job *job)
{
    char *there = to + job->at;
    switch (job->how) {
    case SI_ARROW_PLAIN:
        if (job->from && job->n)
            memcpy(there, job->from, job->n);
        else
            memset(there, 0, job->n);
        break;
    case SI_ARROW_OFFSETS_32: {
        const int32_t *from = (const int32_t *)job->from;
        for (size_t i = 0; i < job->n / sizeof *from; i++)
            ((int32_t *)there)[i] = from[i] - from[0];
        break;
    }
    case SI_ARROW_OFFSETS_64: {
        const int64_t *from = (const int64_t *)job->from;
        for (size_t i = 0; i < job->n / sizeof *from; i++)
            ((int64_t *)there)[i] = from[i] - from[0];
        break;
    }
    case SI_ARROW_VIEWS:
        copy_views(to, job);
        break;
    }
}
