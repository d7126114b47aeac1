#include "si_codec.h"

#define BYTES_HEAD offsetof(PyBytesObject, ob_sval)
/* Deeper values go to pickle, which reports recursion properly. */
#define MAX_DEPTH 40
#define LONG_STRING 256

void *si_bytes_block(const char *data, size_t n)
{
    char *block = PyMem_RawMalloc(BYTES_HEAD + n + 1);
    if (block) {
        si_get_pages(block, BYTES_HEAD + n);
        memcpy(block + BYTES_HEAD, data, n);
        block[BYTES_HEAD + n] = 0;
    }
    return block;
}

/* Objects above 512 bytes are PyMem_RawMalloc blocks under these allocators,
 * so a block of ours can become an object. Debug allocators add guards. */
static bool adoptable(void)
{
    const char *name = _PyMem_GetCurrentAllocatorName();
    return name && (strcmp(name, "pymalloc") == 0 || strcmp(name, "malloc") == 0);
}

PyObject *si_bytes_adopt(void *block, size_t n)
{
    if (!adoptable()) {
        PyObject *o = PyBytes_FromStringAndSize((char *)block + BYTES_HEAD, (Py_ssize_t)n);
        PyMem_RawFree(block);
        return o;
    }
    /* The object allocator counts its large blocks, and frees an ended
     * interpreter's arenas when the count is right: allocate one the usual
     * way and free it behind its back, as this one goes the other way. */
    void *counted = PyObject_Malloc(1024);
    if (counted)
        PyMem_RawFree(counted);
    PyObject *o = block;
    PyObject_InitVar((PyVarObject *)o, &PyBytes_Type, (Py_ssize_t)n);
    _Py_COMP_DIAG_PUSH
    _Py_COMP_DIAG_IGNORE_DEPR_DECLS
    ((PyBytesObject *)o)->ob_shash = -1;
    _Py_COMP_DIAG_POP
    return o;
}

static inline char *put_tag(si_msg *m, char tag, size_t n)
{
    if (!si_reserve(m, n + 1))
        return NULL;
    char *p = m->data + m->len;
    *p = tag;
    m->len += n + 1;
    return p + 1;
}

static si_ret encode_int(si_msg *m, PyObject *obj)
{
    int overflow;
    long v = PyLong_AsLongAndOverflow(obj, &overflow);
    char *p;
    if (!overflow) {
        if (v >= INT8_MIN && v <= INT8_MAX) {
            if (!(p = put_tag(m, 'b', 1)))
                return SI_NOMEM;
            *p = (char)v;
        }
        else if (v >= INT32_MIN && v <= INT32_MAX) {
            int32_t w = (int32_t)v;
            if (!(p = put_tag(m, 'i', 4)))
                return SI_NOMEM;
            memcpy(p, &w, 4);
        }
        else {
            if (!(p = put_tag(m, 'q', 8)))
                return SI_NOMEM;
            memcpy(p, &v, 8);
        }
        return SI_OK;
    }
    Py_ssize_t n = PyLong_AsNativeBytes(obj, NULL, 0, -1);
    if (n < 0 || n > UINT32_MAX) {
        PyErr_Clear();
        return SI_NOTFAST;
    }
    if (!(p = put_tag(m, 'L', 4 + (size_t)n)))
        return SI_NOMEM;
    uint32_t n32 = (uint32_t)n;
    memcpy(p, &n32, 4);
    PyLong_AsNativeBytes(obj, p + 4, n, -1);
    return SI_OK;
}

/* Many references to one long string are one string for pickle. */
static bool seen_long(si_encoder *e, PyObject *obj)
{
    for (unsigned i = 0; i < 8 && i < e->n_long; i++)
        if (e->longs[i] == obj)
            return true;
    e->longs[e->n_long++ % 8] = obj;
    return false;
}

static si_ret encode_str(si_encoder *e, si_msg *m, PyObject *obj)
{
    size_t n = (size_t)PyUnicode_GET_LENGTH(obj);
    if (n > INT32_MAX || (n >= LONG_STRING && seen_long(e, obj)))
        return SI_NOTFAST;
    uint32_t n32 = (uint32_t)n;
    int kind = PyUnicode_KIND(obj);
    char tag = PyUnicode_IS_ASCII(obj) ? 'a' : kind == 1 ? 'u' : kind == 2 ? 'v' : 'w';
    char *p = put_tag(m, tag, 4 + n * (size_t)kind);
    if (!p)
        return SI_NOMEM;
    memcpy(p, &n32, 4);
    memcpy(p + 4, PyUnicode_DATA(obj), n * (size_t)kind);
    return SI_OK;
}

static si_ret encode_bytes(si_encoder *e, si_msg *m, PyObject *obj)
{
    size_t n = (size_t)PyBytes_GET_SIZE(obj);
    if (n >= LONG_STRING && seen_long(e, obj))
        return SI_NOTFAST;
    if (n < SI_BIG) {
        uint32_t n32 = (uint32_t)n;
        char *p = put_tag(m, 'y', 4 + n);
        if (!p)
            return SI_NOMEM;
        memcpy(p, &n32, 4);
        memcpy(p + 4, PyBytes_AS_STRING(obj), n);
        return SI_OK;
    }
    void *block;
    if (e->depth <= 1) {
        /* An argument itself: its tuple is ours, so others may run meanwhile. */
        Py_BEGIN_ALLOW_THREADS
        block = si_bytes_block(PyBytes_AS_STRING(obj), n);
        Py_END_ALLOW_THREADS
    }
    else
        block = si_bytes_block(PyBytes_AS_STRING(obj), n);
    if (!block)
        return SI_NOMEM;
    uint32_t index = m->n_parts;
    char *p = put_tag(m, 'Y', 4);
    if (!p || !si_msg_part(m, SI_PART_BYTES, block, n)) {
        PyMem_RawFree(block);
        return SI_NOMEM;
    }
    memcpy(p, &index, 4);
    return SI_OK;
}

static bool may_recur(si_encoder *e, PyObject *obj)
{
    if (Py_REFCNT(obj) <= 1)
        return false;
    for (int i = 0; i < e->n_seen; i++)
        if (e->seen[i] == obj)
            return true;
    if (e->n_seen == (int)(sizeof e->seen / sizeof e->seen[0]))
        return true;
    e->seen[e->n_seen++] = obj;
    return false;
}

static si_ret encode_container(si_encoder *e, si_msg *m, PyObject *obj, PyTypeObject *type)
{
    if (e->depth >= MAX_DEPTH)
        return SI_NOTFAST;
    Py_ssize_t n = type == &PyDict_Type ? PyDict_GET_SIZE(obj) : Py_SIZE(obj);
    if (n > INT32_MAX)
        return SI_NOTFAST;
    if (type == &PyTuple_Type) {
        if (Py_REFCNT(obj) > 1 && n && ++e->n_shared_tuples > 256)
            return SI_NOTFAST;
    }
    else if (may_recur(e, obj))
        return SI_NOTFAST;
    char *p = put_tag(m, type == &PyTuple_Type ? '(' : type == &PyList_Type ? '[' : '{', 4);
    if (!p)
        return SI_NOMEM;
    uint32_t n32 = (uint32_t)n;
    memcpy(p, &n32, 4);
    e->depth++;
    si_ret st = SI_OK;
    if (type == &PyDict_Type) {
        Py_ssize_t pos = 0;
        PyObject *key, *value;
        while (st == SI_OK && PyDict_Next(obj, &pos, &key, &value)) {
            st = si_encode(e, m, key);
            if (st == SI_OK)
                st = si_encode(e, m, value);
        }
    }
    else {
        PyObject **items = type == &PyTuple_Type ? ((PyTupleObject *)obj)->ob_item
                                                 : ((PyListObject *)obj)->ob_item;
        for (Py_ssize_t i = 0; st == SI_OK && i < n; i++)
            st = si_encode(e, m, items[i]);
    }
    e->depth--;
    return st;
}

si_ret si_encode(si_encoder *e, si_msg *m, PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyFloat_Type) {
        char *p = put_tag(m, 'd', 8);
        if (!p)
            return SI_NOMEM;
        double d = PyFloat_AS_DOUBLE(obj);
        memcpy(p, &d, 8);
        return SI_OK;
    }
    if (type == &PyLong_Type)
        return encode_int(m, obj);
    if (type == &PyUnicode_Type)
        return encode_str(e, m, obj);
    if (obj == Py_None || obj == Py_True || obj == Py_False)
        return put_tag(m, obj == Py_None ? 'N' : obj == Py_True ? 'T' : 'F', 0)
                   ? SI_OK : SI_NOMEM;
    if (type == &PyTuple_Type || type == &PyList_Type || type == &PyDict_Type)
        return encode_container(e, m, obj, type);
    if (type == &PyBytes_Type)
        return encode_bytes(e, m, obj);
    if (type == &PyComplex_Type) {
        char *p = put_tag(m, 'c', 16);
        if (!p)
            return SI_NOMEM;
        Py_complex c = PyComplex_AsCComplex(obj);
        memcpy(p, &c.real, 8);
        memcpy(p + 8, &c.imag, 8);
        return SI_OK;
    }
    return SI_NOTFAST;
}

static PyObject *corrupt(void)
{
    PyErr_SetString(PyExc_SystemError, "subinterp: a message does not decode");
    return NULL;
}

static PyObject *decode_str(si_reader *r, Py_UCS4 max, size_t kind)
{
    uint32_t n;
    if (!si_get_u32(r, &n) || (size_t)(r->end - r->p) < n * kind)
        return corrupt();
    PyObject *s = PyUnicode_New(n, max);
    if (s && n) {
        memcpy(PyUnicode_DATA(s), r->p, n * kind);
        r->p += n * kind;
    }
    return s;
}

static PyObject *decode_container(si_reader *r, char tag)
{
    uint32_t n;
    /* Each item is a byte at least: a false count cannot ask for memory. */
    if (!si_get_u32(r, &n) || n > (size_t)(r->end - r->p))
        return corrupt();
    PyObject *c;
    if (tag == '(') {
        if (!(c = PyTuple_New(n)))
            return NULL;
        for (uint32_t i = 0; i < n; i++) {
            PyObject *v = si_decode(r);
            if (!v)
                goto fail;
            PyTuple_SET_ITEM(c, i, v);
        }
    }
    else if (tag == '[') {
        if (!(c = PyList_New(n)))
            return NULL;
        for (uint32_t i = 0; i < n; i++) {
            PyObject *v = si_decode(r);
            if (!v)
                goto fail;
            PyList_SET_ITEM(c, i, v);
        }
    }
    else {
        if (!(c = PyDict_New()))
            return NULL;
        for (uint32_t i = 0; i < n; i++) {
            PyObject *k = si_decode(r), *v = k ? si_decode(r) : NULL;
            int bad = !v || PyDict_SetItem(c, k, v) < 0;
            Py_XDECREF(k);
            Py_XDECREF(v);
            if (bad)
                goto fail;
        }
    }
    return c;
fail:
    Py_DECREF(c);
    return NULL;
}

PyObject *si_decode(si_reader *r)
{
    if (r->p >= r->end)
        return corrupt();
    size_t left = (size_t)(r->end - r->p) - 1;
    char tag = *r->p++;
    switch (tag) {
    case 'd': {
        double d;
        if (left < 8)
            return corrupt();
        memcpy(&d, r->p, 8);
        r->p += 8;
        return PyFloat_FromDouble(d);
    }
    case 'b':
        if (left < 1)
            return corrupt();
        return PyLong_FromLong((signed char)*r->p++);
    case 'i': {
        int32_t v;
        if (left < 4)
            return corrupt();
        memcpy(&v, r->p, 4);
        r->p += 4;
        return PyLong_FromLong(v);
    }
    case 'q': {
        int64_t v;
        if (left < 8)
            return corrupt();
        memcpy(&v, r->p, 8);
        r->p += 8;
        return PyLong_FromLongLong(v);
    }
    case 'L': {
        uint32_t n;
        if (!si_get_u32(r, &n) || (size_t)(r->end - r->p) < n)
            return corrupt();
        PyObject *v = PyLong_FromNativeBytes(r->p, n, -1);
        r->p += n;
        return v;
    }
    case 'N':
        Py_RETURN_NONE;
    case 'T':
        Py_RETURN_TRUE;
    case 'F':
        Py_RETURN_FALSE;
    case 'a':
        return decode_str(r, 0x7f, 1);
    case 'u':
        return decode_str(r, 0xff, 1);
    case 'v':
        return decode_str(r, 0xffff, 2);
    case 'w':
        return decode_str(r, 0x10ffff, 4);
    case 'y': {
        uint32_t n;
        if (!si_get_u32(r, &n) || (size_t)(r->end - r->p) < n)
            return corrupt();
        PyObject *v = PyBytes_FromStringAndSize(r->p, n);
        r->p += n;
        return v;
    }
    case 'Y': {
        uint32_t i;
        if (!si_get_u32(r, &i) || i >= r->m->n_parts
            || r->m->parts[i].kind != SI_PART_BYTES)
            return corrupt();
        si_part *part = &r->m->parts[i];
        if (r->keep)
            return PyBytes_FromStringAndSize((char *)part->ptr + BYTES_HEAD, (Py_ssize_t)part->n);
        part->kind = SI_PART_NONE;
        return si_bytes_adopt(part->ptr, part->n);
    }
    case 'c': {
        double re, im;
        if (left < 16)
            return corrupt();
        memcpy(&re, r->p, 8);
        memcpy(&im, r->p + 8, 8);
        r->p += 16;
        return PyComplex_FromDoubles(re, im);
    }
    case '(':
    case '[':
    case '{':
        return decode_container(r, tag);
    default:
        return corrupt();
    }
}
