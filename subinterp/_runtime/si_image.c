#include "si_image.h"

#include "si_elf.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file as it was when it was looked at. */
typedef struct {
    dev_t device;
    ino_t inode;
    off_t size;
    struct timespec changed;
} file_id;

struct si_image {
    si_image *next;
    file_id id;
    void *handle;
    bool is_copy;
    char *name;         /* what a copy says its name is; NULL: none, or not copied */
};

/* Files that declared their support; see si_image_declares. */
typedef struct declared {
    struct declared *next;
    file_id id;
} declared;

static si_mutex declared_mu;
static declared *all_declared;

/* Makes names unique. */
static _Atomic uint64_t next_copy = 1;

void si_images_after_fork(void)
{
    atomic_store(&declared_mu.word, 0);
}

void si_images_free(si_images *images)
{
    while (images->list) {
        si_image *image = images->list;
        images->list = image->next;
        free(image->name);
        free(image);
    }
}

__attribute__((format(printf, 2, 3)))
static si_ret explain(char **why, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (vasprintf(why, format, args) < 0)
        *why = NULL;
    va_end(args);
    return SI_BROKEN;
}

/* The linker's error, once. */
static const char *linker_error(void)
{
    const char *error = dlerror();
    return error ? error : "the linker gives no reason";
}

/* ---- files ------------------------------------------------------------------------ */

typedef struct {
    file_id id;
    si_elf elf;
    char *folder;       /* of the file, with symbolic links resolved */
} source;

static bool same_file(const file_id *a, const file_id *b)
{
    return a->device == b->device && a->inode == b->inode && a->size == b->size
           && a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec;
}

static void id_of(const struct stat *st, file_id *id)
{
    id->device = st->st_dev;
    id->inode = st->st_ino;
    id->size = st->st_size;
    id->changed = st->st_mtim;
}

static void close_source(source *s)
{
    if (s->elf.data)
        munmap(s->elf.data, s->elf.size);
    free(s->folder);
}

/* Map a file so that it can be read, and changed without changing the file. */
static si_ret open_source(source *s, const char *path, char **why)
{
    memset(s, 0, sizeof *s);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0) {
        int error = errno;
        if (fd >= 0)
            close(fd);
        return explain(why, "%s cannot be read: %s", path, strerror(error));
    }
    if (!S_ISREG(st.st_mode) || st.st_size == 0) {
        close(fd);
        return explain(why, "%s is %s", path, S_ISREG(st.st_mode) ? "empty" : "not a file");
    }
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    int error = errno;
    close(fd);
    if (data == MAP_FAILED)
        return explain(why, "%s cannot be mapped: %s%s", path, strerror(error),
                       error == ENOMEM ? " (see vm.max_map_count)" : "");
    id_of(&st, &s->id);
    const char *wrong = si_elf_open(&s->elf, data, (size_t)st.st_size);
    if (wrong) {
        close_source(s);
        return explain(why, "%s %s", path, wrong);
    }
    char *real = realpath(path, NULL);
    /* A file without a name (/proc/self/fd/3) has no other path. */
    if (!real && errno != ENOMEM)
        real = strdup(path);
    if (!real) {
        close_source(s);
        return SI_NOMEM;
    }
    char *slash = strrchr(real, '/');
    if (slash)
        *slash = 0;
    else
        strcpy(real, ".");      /* not shorter: the file has been opened */
    s->folder = real;
    return SI_OK;
}

/* ---- libraries of a wheel ------------------------------------------------------------ */

/* Run-time libraries of compilers, and Python itself: never copied, the process
 * has one each. */
static const char *const COMMON[] = {
    "libpython", "libstdc++", "libgcc_s", "libgomp", "libiomp", "libomp", "libgfortran",
    "libquadmath", "libc.so", "libm.so", "libdl.so", "librt.so", "libpthread", "ld-linux", NULL,
};

/* Libraries without Python that only one thread may be in, which the modules that use them
 * see to with a lock of their interpreter's (h5py's `phil`): as shared ones they would be entered
 * by several interpreters at once. */
static const char *const NOT_THREAD_SAFE[] = {"libhdf5", "libnetcdf", NULL};

static bool begins_with_any(const char *name, const char *const *beginnings)
{
    for (; *beginnings; beginnings++)
        if (strncmp(name, *beginnings, strlen(*beginnings)) == 0)
            return true;
    return false;
}

/* A file that is being looked at, and the one that needs it. */
typedef struct chain {
    const struct chain *up;
    const source *file;
} chain;

/* Circles end. */
static bool in_chain(const chain *c, const file_id *id)
{
    for (; c; c = c->up)
        if (same_file(&c->file->id, id))
            return true;
    return false;
}

/* The library in one of the file's own folders. To be freed; NULL: not there. */
static char *find_in(const source *s, int64_t tag, const char *name)
{
    size_t at = 0;
    const char *folders;
    while ((folders = si_elf_next(&s->elf, tag, &at)))
        while (*folders) {
            size_t n = strcspn(folders, ":");
            size_t skip = strncmp(folders, "$ORIGIN", 7) == 0     ? 7
                          : strncmp(folders, "${ORIGIN}", 9) == 0 ? 9
                                                                  : 0;
            char *path = NULL;
            if ((skip || *folders == '/') && skip <= n
                && asprintf(&path, "%s%.*s/%s", skip ? s->folder : "", (int)(n - skip),
                            folders + skip, name) >= 0) {
                char *real = realpath(path, NULL);
                free(path);
                if (real)
                    return real;
            }
            folders += n + (folders[n] == ':');
        }
    return NULL;
}

/* A library that the chain's last file needs, in a folder that the file itself
 * names: one that came with it. DT_RPATH also tells where the libraries of
 * libraries are, unless they have DT_RUNPATH. To be freed; NULL: the system's,
 * which the linker finds. */
static char *find_library(const chain *c, const char *name)
{
    size_t at = 0;
    char *path = NULL;
    if (strchr(name, '/'))
        return NULL;
    if (si_elf_next(&c->file->elf, DT_RUNPATH, &at))
        return find_in(c->file, DT_RUNPATH, name);
    for (; c && !path; c = c->up) {
        at = 0;
        if (!si_elf_next(&c->file->elf, DT_RUNPATH, &at))
            path = find_in(c->file, DT_RPATH, name);
    }
    return path;
}

static si_image *find_image(const si_images *images, const file_id *id, bool is_copy)
{
    si_image *image = images->list;
    while (image && !(image->is_copy == is_copy && same_file(&image->id, id)))
        image = image->next;
    return image;
}

static bool needs_private_libraries(const si_images *images, const chain *c);

/* Does the interpreter need its own copy of this library? It, or one that it
 * needs, uses Python; or is copied already, with a module's that does. */
static bool is_private(const si_images *images, const char *path, const char *name,
                       const chain *up)
{
    if (begins_with_any(name, NOT_THREAD_SAFE))
        return true;
    source lib;
    char *why = NULL;
    if (open_source(&lib, path, &why) != SI_OK) {
        free(why);      /* whoever loads it will say so */
        return false;
    }
    bool found = false;
    if (!in_chain(up, &lib.id)) {
        chain here = {up, &lib};
        found = si_elf_imports_prefix(&lib.elf, "Py") || si_elf_imports_prefix(&lib.elf, "_Py")
                  || find_image(images, &lib.id, true) || needs_private_libraries(images, &here);
    }
    close_source(&lib);
    return found;
}

static bool needs_private_libraries(const si_images *images, const chain *c)
{
    size_t at = 0;
    const char *name;
    bool found = false;
    while (!found && (name = si_elf_next(&c->file->elf, DT_NEEDED, &at))) {
        char *path = find_library(c, name);
        found = path && !begins_with_any(name, COMMON) && is_private(images, path, name, c);
        free(path);
    }
    return found;
}

/* ---- copies -------------------------------------------------------------------------- */

static si_image *add_image(si_images *images, const file_id *id, void *handle, bool is_copy)
{
    si_image *image = calloc(1, sizeof *image);
    if (!image)
        return NULL;
    image->id = *id;
    image->handle = handle;
    image->is_copy = is_copy;
    image->next = images->list;
    images->list = image;
    images->n_copies += is_copy;
    return image;
}

static bool write_all(int fd, const unsigned char *data, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, data, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return false;
        data += done;
        n -= (size_t)done;
    }
    return true;
}

/* The linker takes two equal names for the same file, and numbers of files are
 * used again: spell the same path differently each time. */
static void unique_path(char path[PATH_MAX], int fd)
{
    uint64_t n = atomic_fetch_add(&next_copy, 1);
    char *p = path + sprintf(path, "/proc/self/fd");
    for (; n; n >>= 1)
        p += sprintf(p, "%s", n & 1 ? "/." : "/");
    sprintf(p, "/%d", fd);
}

static bool at_map_limit(void)
{
    FILE *f = fopen("/proc/sys/vm/max_map_count", "re");
    long most = 0, n = 0;
    if (!f || fscanf(f, "%ld", &most) != 1)
        most = LONG_MAX;
    if (f)
        fclose(f);
    if (!(f = fopen("/proc/self/maps", "re")))
        return false;
    for (int c; (c = getc_unlocked(f)) != EOF;)
        n += c == '\n';
    fclose(f);
    return n + 32 > most;
}

/* Write the bytes to a file without a name, which was just made (or not: -1), and load
 * it. NULL: errors are in `text`. */
static void *load_from(int fd, const si_elf *elf, char *text, size_t size)
{
    char path[PATH_MAX];
    void *handle = NULL;
    if (fd < 0) {
        snprintf(text, size, "no file can be made: %s", strerror(errno));
        return NULL;
    }
    if (!write_all(fd, elf->data, elf->size))
        snprintf(text, size, "it cannot be written: %s", strerror(errno));
    else if (access("/proc/self/fd", X_OK) != 0)
        snprintf(text, size, "/proc/self/fd cannot be used: %s", strerror(errno));
    else {
        unique_path(path, fd);
        /* Never RTLD_GLOBAL, whatever sys.setdlopenflags says: the copies of other
         * interpreters would bind to this one. */
        handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!handle) {
            const char *error = linker_error();
            /* "path: reason" */
            size_t n = strlen(path);
            if (strncmp(error, path, n) == 0 && error[n] == ':')
                error += n + 1 + (error[n + 1] == ' ');
            bool memory = strstr(error, "annot allocate memory")
                          || strstr(error, "failed to map segment");
            snprintf(text, size, "%s%s", error, memory && at_map_limit() ? " (the process has as many mappings as "
                                                "vm.max_map_count allows)" : "");
        }
    }
    close(fd);
    return handle;
}

static const char *temporary_folder(void)
{
    const char *folder = secure_getenv("TMPDIR");
    return folder && *folder ? folder : "/tmp";
}

static void *load_copy(const si_elf *elf, const char *name, char **why)
{
    char first[512], second[512];
    const char *folder = temporary_folder();
    int fd = open(folder, O_TMPFILE | O_EXCL | O_RDWR | O_CLOEXEC, 0700);
    void *handle = load_from(fd, elf, first, sizeof first);
    if (!handle)
        handle = load_from(memfd_create(name, MFD_CLOEXEC), elf, second, sizeof second);
    if (handle)
        return handle;
    if (strcmp(first, second) == 0)
        explain(why, "%s", first);
    else
        explain(why, "in %s: %s; in memory: %s", folder, first, second);
    return NULL;
}

typedef struct {
    const si_gate *gate;
    char *base;
    const si_elf *elf;
    int n;              /* changed */
    bool write;
    bool read_only;     /* one of them is in the code */
} patch;

static void patch_slot(void *arg, const char *name, uint64_t at)
{
    patch *p = arg;
    void *entrance = si_gate_entrance(p->gate, name);
    if (!entrance)
        return;
    p->n++;
    if (!si_elf_is_writable(p->elf, at, sizeof entrance))
        p->read_only = true;
    else if (p->write)
        /* Nobody calls through it yet, or a constructor's thread does: one store. */
        atomic_store_explicit((_Atomic(void *) *)(p->base + at), entrance, memory_order_release);
}

/* Point the copy's imports of the lock API at the gate's entrances. */
static bool redirect(si_gate *gate, const si_elf *elf, void *handle, char **why)
{
    struct link_map *map;
    if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0) {
        explain(why, "the linker does not say where it is");
        return false;
    }
    patch p = {.gate = gate, .base = (char *)map->l_addr, .elf = elf};
    si_elf_each_slot(elf, patch_slot, &p);
    if (p.n == 0)
        return true;
    if (p.read_only) {
        explain(why, "it is not position-independent (DT_TEXTREL)");
        return false;
    }
    uint64_t at, size;
    si_elf_relro(elf, &at, &size);
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)p.base + at) & ~(page - 1);
    uintptr_t end = ((uintptr_t)p.base + at + size) & ~(page - 1);
    if (end > begin && mprotect((void *)begin, end - begin, PROT_READ | PROT_WRITE) != 0) {
        explain(why, "its table of imports cannot be made writable: %s", strerror(errno));
        return false;
    }
    p.write = true;
    si_gate_hand_out(gate);
    si_elf_each_slot(elf, patch_slot, &p);
    if (end > begin)
        (void)mprotect((void *)begin, end - begin, PROT_READ);
    return true;
}

/* A name of the same length that no other file has, to be freed. NULL: the
 * name is too short (or there is no memory). */
static char *unique_name(const char *name)
{
    static const char DIGITS[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const char *dot = strstr(name, ".so");
    size_t stem = dot ? (size_t)(dot - name) : strlen(name), n = stem < 7 ? stem : 7;
    char *unique = n < 4 ? NULL : strdup(name);
    if (!unique)
        return NULL;
    uint64_t number = atomic_fetch_add(&next_copy, 1);
    unique[stem - n] = '~';
    for (size_t i = 1; i < n; i++) {
        unique[stem - i] = DIGITS[number % 62];
        number /= 62;
    }
    return unique;
}

static si_ret copy_source(si_images *, source *, const char *path, const char *name, bool all,
                          const chain *up, si_image **image, char **why);

/* The private copy of a library, which must have the name by which it is needed. */
static si_ret copy_library(si_images *images, const char *path, const char *name, bool all,
                           const chain *up, si_image **image, char **why)
{
    source lib;
    si_ret st = open_source(&lib, path, why);
    if (st != SI_OK)
        return st;
    const char *soname = si_elf_soname(&lib.elf);
    if (in_chain(up, &lib.id))
        st = explain(why, "its library %s needs itself", path);
    else if (!soname)
        st = explain(why, "its library %s does not say its own name (DT_SONAME)", path);
    else if (strcmp(soname, name) != 0)
        st = explain(why, "its library %s says that its name is %s (DT_SONAME)", path, soname);
    else {
        *image = find_image(images, &lib.id, true);
        if (!*image)
            st = copy_source(images, &lib, path, name, all, up, image, why);
        if (st == SI_OK && !(*image)->name)
            st = explain(why, "the name of its library %s is too short to be changed", name);
    }
    close_source(&lib);
    return st;
}

/* Have the libraries ready that the chain's last file, `s`, needs, under the
 * names it needs. */
static si_ret prepare_libraries(si_images *images, source *s, const char *path, bool all,
                                const chain *here, char **why)
{
    size_t at = 0;
    const char *name;
    while ((name = si_elf_next(&s->elf, DT_NEEDED, &at))) {
        char *lib = find_library(here, name);
        if (!lib)
            continue;
        si_ret st = SI_OK;
        if (!begins_with_any(name, COMMON) && (all || is_private(images, lib, name, here))) {
            si_image *image;
            char *needed = strdup(name);    /* renaming changes it under us */
            st = needed ? copy_library(images, lib, needed, all, here, &image, why) : SI_NOMEM;
            if (st == SI_OK)
                si_elf_rename(&s->elf, needed, image->name);
            free(needed);
        }
        else {
            source found;
            st = open_source(&found, lib, why);
            if (st == SI_OK) {
                const char *soname = si_elf_soname(&found.elf);
                /* Found again by its name; one that does not tell it has the name
                 * under which the original asked for it. */
                bool by_name = soname && strcmp(soname, name) == 0;
                close_source(&found);
                if (!(by_name && dlopen(lib, RTLD_LAZY | RTLD_LOCAL))
                    && !dlopen(path, RTLD_LAZY | RTLD_LOCAL))
                    st = explain(why, "%s", linker_error());
            }
        }
        free(lib);
        if (st != SI_OK)
            return st;
    }
    return SI_OK;
}

static si_ret copy_source(si_images *images, source *s, const char *path, const char *name, bool all,
                          const chain *up, si_image **image, char **why)
{
    chain here = {up, s};
    all = all || needs_private_libraries(images, &here);
    si_ret st = prepare_libraries(images, s, path, all, &here, why);
    if (st != SI_OK)
        return st;
    /* Not to be found by its name by who needs the original: the main interpreter,
     * or another one's copy. */
    const char *soname = si_elf_soname(&s->elf);
    char *unique = soname ? unique_name(soname) : NULL, *before = unique ? strdup(soname) : NULL;
    if (before)
        si_elf_rename(&s->elf, before, unique);
    free(before);
    si_elf_demote_unique(&s->elf);
    void *handle = load_copy(&s->elf, name, why);
    if (handle && redirect(images->gate, &s->elf, handle, why)
        && (*image = add_image(images, &s->id, handle, true))) {
        (*image)->name = unique;
        return SI_OK;
    }
    if (handle)
        dlclose(handle);    /* none of its code for Python has run */
    free(unique);
    return *why ? SI_BROKEN : SI_NOMEM;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* True: to be given back with end_opening. */
static bool begin_opening(si_images *images)
{
    uintptr_t self = (uintptr_t)pthread_self();
    if (atomic_load(&images->holder) == self)
        return false;   /* a constructor imports something */
    Py_BEGIN_ALLOW_THREADS
    si_lock(&images->mu);
    Py_END_ALLOW_THREADS
    atomic_store(&images->holder, self);
    return true;
}

static void end_opening(si_images *images, bool begun)
{
    if (begun) {
        atomic_store(&images->holder, 0);
        si_unlock(&images->mu);
    }
}

si_ret si_image_copy(si_images *images, const char *path, si_image **image, char **why)
{
    source s;
    *why = NULL;
    bool begun = begin_opening(images);
    si_ret st = open_source(&s, path, why);
    if (st == SI_OK) {
        *image = find_image(images, &s.id, true);
        if (!*image)
            st = copy_source(images, &s, path, base_name(path), false, NULL, image, why);
        close_source(&s);
    }
    end_opening(images, begun);
    return st;
}

si_ret si_image_native(si_images *images, const char *path, si_image **image, char **why)
{
    source s;
    *why = NULL;
    bool begun = begin_opening(images);
    /* Looked at first: mapping a truncated file would kill the process. */
    si_ret st = open_source(&s, path, why);
    if (st == SI_OK) {
        *image = find_image(images, &s.id, false);
        if (!*image) {
            void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (!handle)
                st = explain(why, "%s", linker_error());
            else if (!(*image = add_image(images, &s.id, handle, false)))
                st = SI_NOMEM;
        }
        close_source(&s);
    }
    end_opening(images, begun);
    return st;
}

/* ---- questions ------------------------------------------------------------------------- */

void *si_image_handle(const si_image *image)
{
    return image->handle;
}

void *si_image_symbol(const si_image *image, const char *name)
{
    return dlsym(image->handle, name);
}

bool si_image_is_copy(const si_image *image)
{
    return image->is_copy;
}

static bool is_declared(const file_id *id)
{
    declared *d = all_declared;
    while (d && !same_file(&d->id, id))
        d = d->next;
    return d != NULL;
}

void si_image_declares(const si_image *image)
{
    declared *fresh = calloc(1, sizeof *fresh);
    if (!fresh)
        return;     /* the next interpreter finds out by itself */
    fresh->id = image->id;
    si_lock(&declared_mu);
    if (is_declared(&image->id))
        free(fresh);
    else {
        fresh->next = all_declared;
        all_declared = fresh;
    }
    si_unlock(&declared_mu);
}

si_ret si_image_facts(const char *path, si_file_facts *facts, char **why)
{
    source s;
    *why = NULL;
    si_ret st = open_source(&s, path, why);
    if (st != SI_OK)
        return st;
    facts->single_phase = !si_elf_imports(&s.elf, "PyModuleDef_Init")
                          && (si_elf_imports(&s.elf, "PyModule_Create2")
                              || si_elf_imports(&s.elf, "PyModule_FromDefAndSpec2"));
    si_lock(&declared_mu);
    facts->declares = is_declared(&s.id);
    si_unlock(&declared_mu);
    /* What another module exports to C comes in a capsule, and is kept in a static variable:
     * NumPy's table of functions, in some modules of SciPy that declare their support. It is
     * one interpreter's, as the module that it came from is one interpreter's copy. */
    facts->declares = facts->declares && !si_elf_imports(&s.elf, "PyCapsule_GetPointer")
                      && !si_elf_imports(&s.elf, "PyCapsule_Import");
    close_source(&s);
    return st;
}
