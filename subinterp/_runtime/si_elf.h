/* si_elf.h: reading shared objects, and changing a copy of one in place.
 *
 * Works on the bytes of a file in memory (64-bit, little-endian ELF) and knows
 * neither Python nor the dynamic linker. Every offset is checked before it is
 * followed: the file may be truncated, damaged or no ELF at all.
 *
 * A string can be overwritten in place by one of the same length only; adding
 * to a shared object means moving its tables (what patchelf does), and nothing
 * here needs it.
 *
 * Sources: System V ABI, "Object Files" and "Dynamic Linking"; for the hash
 * table, U. Drepper, "How To Write Shared Libraries" (2011), and the GNU
 * documentation of DT_GNU_HASH. */
#ifndef SI_ELF_H
#define SI_ELF_H

#include "si_base.h"

#include <elf.h>

typedef struct {
    unsigned char *data;        /* the file; borrowed */
    size_t size;
    const Elf64_Phdr *headers;
    size_t n_headers;
    Elf64_Dyn *dynamic;
    size_t n_dynamic;
    char *strings;              /* ends with a zero */
    size_t strings_size;
    Elf64_Sym *symbols;
    size_t n_symbols;
} si_elf;

/* Look at the file. NULL, or what is wrong with it: a constant text that
 * completes "the file ...". */
const char *si_elf_open(si_elf *e, void *data, size_t size);

/* The strings of dynamic entries with this tag, one after the other; *at is 0
 * at first. NULL: no more. */
const char *si_elf_next(const si_elf *e, int64_t tag, size_t *at);
/* DT_SONAME, or NULL. */
const char *si_elf_soname(const si_elf *e);

/* A symbol of that name, or beginning with it, is left to others to define. */
bool si_elf_imports(const si_elf *e, const char *name);
bool si_elf_imports_prefix(const si_elf *e, const char *prefix);

/* Make symbols that the dynamic linker would unify over the whole process
 * (STB_GNU_UNIQUE: static members of C++ templates) ordinary ones. */
void si_elf_demote_unique(si_elf *e);

/* Replace a library's name, by one of the same length, wherever the file names
 * it as its own or as one it needs. */
void si_elf_rename(si_elf *e, const char *name, const char *by);

/* The relocations that put the address of an imported symbol into memory.
 * Calls `found` with the symbol's name and the place's address, relative to
 * where the file will be loaded. */
void si_elf_each_slot(const si_elf *e,
                      void (*found)(void *arg, const char *name, uint64_t at), void *arg);
/* These bytes are in a segment that is loaded writable; see si_elf_relro. */
bool si_elf_is_writable(const si_elf *e, uint64_t at, uint64_t n);
/* The pages that are made read-only after relocation; 0 bytes: none. */
void si_elf_relro(const si_elf *e, uint64_t *at, uint64_t *size);

#endif
