#include "si_elf.h"

#include <string.h>

#if defined(__x86_64__)
#  define MACHINE EM_X86_64
#  define R_ADDRESS_OF(type) \
    ((type) == R_X86_64_JUMP_SLOT || (type) == R_X86_64_GLOB_DAT || (type) == R_X86_64_64)
#elif defined(__aarch64__)
#  define MACHINE EM_AARCH64
#  define R_ADDRESS_OF(type) \
    ((type) == R_AARCH64_JUMP_SLOT || (type) == R_AARCH64_GLOB_DAT || (type) == R_AARCH64_ABS64)
#else
#  define MACHINE EM_NONE
#  define R_ADDRESS_OF(type) 0
#endif

/* ---- places in the file --------------------------------------------------- */

static bool inside(size_t size, uint64_t at, uint64_t n)
{
    return at <= size && n <= size - at;
}

/* Where `n` bytes at a virtual address stand in the file; NULL: nowhere, or not
 * as things of this alignment do. */
static void *at_address(const si_elf *e, uint64_t address, uint64_t n, size_t alignment)
{
    for (size_t i = 0; i < e->n_headers; i++) {
        const Elf64_Phdr *h = &e->headers[i];
        if (h->p_type == PT_LOAD && address >= h->p_vaddr
            && inside(h->p_filesz, address - h->p_vaddr, n)
            /* Checked again: a string that was renamed may have been a header, too. */
            && inside(e->size, h->p_offset, h->p_filesz)) {
            unsigned char *p = e->data + h->p_offset + (address - h->p_vaddr);
            return (uintptr_t)p % alignment == 0 ? p : NULL;
        }
    }
    return NULL;
}

/* The value of the last dynamic entry with that tag; false: there is none. */
static bool dynamic_value(const si_elf *e, int64_t tag, uint64_t *value)
{
    for (size_t i = 0; i < e->n_dynamic; i++)
        if (e->dynamic[i].d_tag == tag) {
            *value = e->dynamic[i].d_un.d_val;
            return true;
        }
    return false;
}

static const char *string_at(const si_elf *e, uint64_t at)
{
    return at < e->strings_size ? e->strings + at : "";
}

/* ---- opening ---------------------------------------------------------------- */

/* A DT_GNU_HASH table does not tell the number of symbols: it is one more
 * than the last one of the last chain. */
static bool count_gnu_hash(const si_elf *e, uint64_t address, size_t *count)
{
    const uint32_t *head = at_address(e, address, 16, 4);
    if (!head)
        return false;
    uint32_t n_buckets = head[0], first = head[1], n_bloom = head[2], last = 0;
    uint64_t buckets_at = address + 16 + (uint64_t)n_bloom * 8;
    const uint32_t *buckets = at_address(e, buckets_at, (uint64_t)n_buckets * 4, 4);
    if (!buckets)
        return false;
    for (uint32_t i = 0; i < n_buckets; i++)
        if (buckets[i] > last)
            last = buckets[i];
    if (last < first) {
        *count = first;
        return true;
    }
    uint64_t chains_at = buckets_at + (uint64_t)n_buckets * 4;
    for (;; last++) {
        const uint32_t *link = at_address(e, chains_at + (uint64_t)(last - first) * 4, 4, 4);
        if (!link)
            return false;
        if (*link & 1)
            break;
    }
    *count = (size_t)last + 1;
    return true;
}

static bool count_symbols(const si_elf *e, size_t *count)
{
    uint64_t at;
    if (dynamic_value(e, DT_GNU_HASH, &at))
        return count_gnu_hash(e, at, count);
    if (dynamic_value(e, DT_HASH, &at)) {
        const uint32_t *head = at_address(e, at, 8, 4);
        if (!head)
            return false;
        *count = head[1];
        return true;
    }
    *count = 0;
    return true;
}

static const char TRUNCATED[] = "is truncated or damaged";

const char *si_elf_open(si_elf *e, void *data, size_t size)
{
    memset(e, 0, sizeof *e);
    e->data = data;
    e->size = size;
    if (size == 0)
        return "is empty";
    if (size < SELFMAG || memcmp(data, ELFMAG, SELFMAG) != 0)
        return "is not a shared object (ELF)";
    if (size < sizeof(Elf64_Ehdr))
        return TRUNCATED;
    const Elf64_Ehdr *header = data;
    if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB
        || header->e_machine != MACHINE)
        return "was built for another kind of processor";
    if (header->e_type != ET_DYN)
        return "is not a shared object";
    if (header->e_phentsize != sizeof(Elf64_Phdr)
        || header->e_phoff % 8 != 0
        || !inside(size, header->e_phoff, (uint64_t)header->e_phnum * sizeof(Elf64_Phdr)))
        return TRUNCATED;
    e->headers = (const Elf64_Phdr *)(e->data + header->e_phoff);
    e->n_headers = header->e_phnum;
    const Elf64_Phdr *dynamic = NULL;
    for (size_t i = 0; i < e->n_headers; i++) {
        const Elf64_Phdr *h = &e->headers[i];
        /* What is mapped beyond the end of the file would kill its first reader. */
        if ((h->p_type == PT_LOAD || h->p_type == PT_DYNAMIC)
            && !inside(size, h->p_offset, h->p_filesz))
            return TRUNCATED;
        if (h->p_type == PT_DYNAMIC)
            dynamic = h;
    }
    if (!dynamic)
        return "is not a shared object that can be loaded";
    if (dynamic->p_offset % 8 != 0)
        return TRUNCATED;
    e->dynamic = (Elf64_Dyn *)(e->data + dynamic->p_offset);
    size_t most = dynamic->p_filesz / sizeof(Elf64_Dyn);
    while (e->n_dynamic < most && e->dynamic[e->n_dynamic].d_tag != DT_NULL)
        e->n_dynamic++;
    uint64_t at, n;
    if (!dynamic_value(e, DT_STRTAB, &at) || !dynamic_value(e, DT_STRSZ, &n) || n == 0
        || !(e->strings = at_address(e, at, n, 1)))
        return TRUNCATED;
    e->strings_size = n;
    if (e->strings[n - 1] != 0)
        return TRUNCATED;
    size_t count;
    if (!dynamic_value(e, DT_SYMTAB, &at) || !count_symbols(e, &count))
        return TRUNCATED;
    e->symbols = at_address(e, at, (uint64_t)count * sizeof(Elf64_Sym), 8);
    if (!e->symbols)
        return TRUNCATED;
    e->n_symbols = count;
    return NULL;
}

/* ---- reading ------------------------------------------------------------------ */

const char *si_elf_next(const si_elf *e, int64_t tag, size_t *at)
{
    while (*at < e->n_dynamic) {
        const Elf64_Dyn *d = &e->dynamic[(*at)++];
        if (d->d_tag == tag)
            return string_at(e, d->d_un.d_val);
    }
    return NULL;
}

const char *si_elf_soname(const si_elf *e)
{
    size_t at = 0;
    return si_elf_next(e, DT_SONAME, &at);
}

static bool imports(const si_elf *e, const char *name, bool whole)
{
    size_t n = strlen(name) + (whole ? 1 : 0);
    for (size_t i = 0; i < e->n_symbols; i++)
        if (e->symbols[i].st_shndx == SHN_UNDEF
            && strncmp(string_at(e, e->symbols[i].st_name), name, n) == 0)
            return true;
    return false;
}

bool si_elf_imports(const si_elf *e, const char *name)
{
    return imports(e, name, true);
}

bool si_elf_imports_prefix(const si_elf *e, const char *prefix)
{
    return imports(e, prefix, false);
}

static void each_slot_of(const si_elf *e, int64_t table, int64_t bytes,
                         void (*found)(void *, const char *, uint64_t), void *arg)
{
    uint64_t at, size;
    if (!dynamic_value(e, table, &at) || !dynamic_value(e, bytes, &size))
        return;
    const Elf64_Rela *r = at_address(e, at, size, 8);
    if (!r)
        return;
    for (size_t i = 0; i < size / sizeof *r; i++) {
        uint64_t symbol = ELF64_R_SYM(r[i].r_info);
        if (symbol == 0 || symbol >= e->n_symbols || !R_ADDRESS_OF(ELF64_R_TYPE(r[i].r_info))
            || e->symbols[symbol].st_shndx != SHN_UNDEF)
            continue;
        found(arg, string_at(e, e->symbols[symbol].st_name), r[i].r_offset);
    }
}

void si_elf_each_slot(const si_elf *e,
                      void (*found)(void *, const char *, uint64_t), void *arg)
{
    each_slot_of(e, DT_RELA, DT_RELASZ, found, arg);
    each_slot_of(e, DT_JMPREL, DT_PLTRELSZ, found, arg);
}

bool si_elf_is_writable(const si_elf *e, uint64_t at, uint64_t n)
{
    for (size_t i = 0; i < e->n_headers; i++) {
        const Elf64_Phdr *h = &e->headers[i];
        if (h->p_type == PT_LOAD && (h->p_flags & PF_W) && at >= h->p_vaddr
            && inside(h->p_memsz, at - h->p_vaddr, n))
            return true;
    }
    return false;
}

void si_elf_relro(const si_elf *e, uint64_t *at, uint64_t *size)
{
    *at = *size = 0;
    for (size_t i = 0; i < e->n_headers; i++)
        if (e->headers[i].p_type == PT_GNU_RELRO) {
            *at = e->headers[i].p_vaddr;
            *size = e->headers[i].p_memsz;
        }
}

/* ---- changing ------------------------------------------------------------------- */

void si_elf_demote_unique(si_elf *e)
{
    for (size_t i = 0; i < e->n_symbols; i++) {
        unsigned char *info = &e->symbols[i].st_info;
        if (ELF64_ST_BIND(*info) == STB_GNU_UNIQUE)
            *info = ELF64_ST_INFO(STB_GLOBAL, ELF64_ST_TYPE(*info));
    }
}

static void rename_at(si_elf *e, uint64_t at, const char *name, const char *by)
{
    if (strcmp(string_at(e, at), name) == 0)
        memcpy(e->strings + at, by, strlen(by));
}

void si_elf_rename(si_elf *e, const char *name, const char *by)
{
    for (size_t i = 0; i < e->n_dynamic; i++)
        if (e->dynamic[i].d_tag == DT_NEEDED || e->dynamic[i].d_tag == DT_SONAME)
            rename_at(e, e->dynamic[i].d_un.d_val, name, by);
    /* Versions of symbols name the file that defines them; usually, not
     * always, it is the same string. */
    uint64_t at, n;
    if (!dynamic_value(e, DT_VERNEED, &at) || !dynamic_value(e, DT_VERNEEDNUM, &n))
        return;
    while (n-- > 0) {
        const Elf64_Verneed *v = at_address(e, at, sizeof *v, 4);
        if (!v)
            return;
        rename_at(e, v->vn_file, name, by);
        if (v->vn_next == 0)
            return;     /* the last one, however many there were said to be */
        at += v->vn_next;
    }
}
