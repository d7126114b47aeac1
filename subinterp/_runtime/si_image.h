/* si_image.h: private copies of shared objects, for one interpreter each.
 *
 * The dynamic linker maps a file once: a second dlopen of the same inode, under
 * whatever name, gives the first mapping, with its static variables. So a copy
 * is another file. It is written without a name (O_TMPFILE), loaded through
 * /proc/self/fd, and gone when it is closed, whatever happens to the process;
 * where the folder for temporary files is full, read-only or mounted noexec, it
 * is an anonymous file in memory (memfd) instead, which costs memory that the
 * system cannot take back.
 *
 * The libraries that a wheel brings along are found by the original's folder
 * (RUNPATH $ORIGIN), which a copy has not. The linker first looks for a library
 * among those loaded, by name. So:
 * - those that have nothing to do with Python are loaded from where they are
 *   (and shared: OpenBLAS is mapped once);
 * - those that use Python keep Python objects in static variables, and are
 *   copied too. A copy needs a name of its own, which is written over the old
 *   one, as are the references to it. If one of a module's libraries is copied,
 *   so are the others that its wheel brings, since they know of each other: the
 *   type registry of libarrow holds what libarrow_python puts there;
 * - the few that are not thread-safe (HDF5) are copied as well: the lock that
 *   guards them is one of the interpreter's.
 *
 * Copies are never unloaded: their threads may still run, and types, functions
 * and capsules point into them. They end with the process.
 *
 * Turned down: dlmopen (16 namespaces, and a C library for each); a folder of
 * symbolic links around the copy (leaves files behind when the process is
 * killed); rewriting RUNPATH (does not fit in place).
 *
 * Another format of shared objects (Mach-O, PE) would implement this header. */
#ifndef SI_IMAGE_H
#define SI_IMAGE_H

#include "si_gate.h"

typedef struct si_image si_image;

/* What one interpreter has loaded. `list` and `n_copies` are touched under its
 * lock, which is held while images are opened, as CPython does: constructors
 * of C++ objects may use Python. They may also let other threads run; so one
 * thread at a time opens images, and may do so again from within. */
typedef struct si_images {
    si_mutex mu;        /* held while files are copied and mapped: the exception to the rule
                           that a mutex is held briefly. The interpreter's lock is released
                           while it is waited for, and no other mutex is held */
    _Atomic uintptr_t holder;   /* the thread that has it; written under `mu` */
    si_gate *gate;      /* where copies' calls of the lock API go; constant */
    si_image *list;
    uint32_t n_copies;
} si_images;

/* What is known of a file without loading it. */
typedef struct {
    bool single_phase;  /* makes its module whole in its init function (by what it imports) */
    bool declares;      /* said, in this process, that it supports interpreters with their own
                           lock; and uses nothing that other modules export to C */
} si_file_facts;

/* Both return SI_OK, or another status with a text to be freed in *why. They
 * read, write and map files, with the interpreter's lock held; it is released
 * while another thread of the interpreter loads. A file is loaded once, until it
 * changes. */
si_ret si_image_copy(si_images *images, const char *path, si_image **image, char **why);
si_ret si_image_native(si_images *images, const char *path, si_image **image, char **why);

/* The same, without an interpreter. */
si_ret si_image_facts(const char *path, si_file_facts *facts, char **why);

/* As dlopen gave it. */
void *si_image_handle(const si_image *image);
void *si_image_symbol(const si_image *image, const char *name);
bool si_image_is_copy(const si_image *image);
/* Remember, for all interpreters, that the file supports them as it is. */
void si_image_declares(const si_image *image);

/* Forget what was loaded; it stays mapped. No lock is needed. */
void si_images_free(si_images *images);
void si_images_after_fork(void);

#endif
