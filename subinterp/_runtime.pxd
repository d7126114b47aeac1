# _runtime.pxd: the C layer as Cython sees it. What each function and struct
# means stands in the headers under _runtime/.
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t, uintptr_t


cdef extern from "si_cython.h":
    pass


cdef extern from "si_compat.h":
    int SI_PREIMPORT_DATETIME
    bint si_can_free_blocked_calls()
    bint si_has_arenas()


cdef extern from "si_base.h" nogil:
    ctypedef enum si_ret:
        SI_OK, SI_EMPTY, SI_FULL, SI_CLOSED, SI_TIMEOUT, SI_INTR, SI_NOMEM
        SI_SHUTDOWN, SI_BROKEN, SI_FORKED, SI_DEADLOCK, SI_NOTFAST
    int64_t SI_FOREVER
    int64_t si_now()
    void si_expect_large(void *p, size_t n)
    void si_set_spin(int64_t ns)
    int si_usable_cores()
    uint32_t si_generation()
    int si_cores
    ctypedef struct si_live_counts:
        int64_t contexts, pools, workers, parked, channels, shared, syncs, functions, tasks, messages
    si_live_counts si_live
    ctypedef struct si_spin:
        pass


cdef extern from "si_message.h" nogil:
    ctypedef struct si_block:
        bint readonly
        size_t size
        char *data
    si_block *si_block_new(size_t size)
    void si_block_retain(si_block *b)
    void si_block_release(si_block *b)
    ctypedef struct si_shared:
        uint64_t id
        size_t size
        char *data
    si_shared *si_shared_new(size_t size)
    si_shared *si_shared_find(uint64_t id)
    si_shared *si_shared_at(const void *p, size_t n)
    void si_shared_retain(si_shared *s)
    void si_shared_release(si_shared *s)
    ctypedef enum si_part_kind:
        SI_PART_NONE, SI_PART_BYTES, SI_PART_BLOCK, SI_PART_SHARED, SI_PART_VIEW
        SI_PART_SENDER, SI_PART_RECEIVER, SI_PART_POOL, SI_PART_SYNC, SI_PART_MSG
    ctypedef struct si_part:
        si_part_kind kind
        size_t n
        void *ptr
        size_t start
    ctypedef enum si_format:
        SI_FMT_NONE, SI_FMT_FAST, SI_FMT_PICKLE, SI_FMT_LOST
    ctypedef struct si_msg:
        char *data
        size_t len
        si_part *parts
        uint32_t n_parts
        uint8_t format
    void si_msg_init(si_msg *m)
    void si_msg_clear(si_msg *m)
    void si_msg_cut(si_msg *m, size_t len, uint32_t n_parts)
    void si_msg_move(si_msg *to, si_msg *source)
    bint si_put(si_msg *m, const void *p, size_t n)
    bint si_msg_part(si_msg *m, si_part_kind kind, void *ptr, size_t n)
    size_t si_msg_weight(const si_msg *m)


# CPython's internal structures, as far as the library looks at them or says where their
# fields are: nothing of them is compiled in here, since the layout is the running Python's
# (si_layout.h). A field without a remark is in all versions from 3.12 on. That each is where
# it is declared, in the versions it is declared for and in no other, is tested against
# their headers.
cdef extern from *:
    ctypedef struct PyThreadState:
        PyThreadState *next
        PyInterpreterState *interp
        unsigned long thread_id
        unsigned long native_thread_id
        uintptr_t eval_breaker                  # from 3.13
        int holds_gil                           # from 3.14
        int gil_requested                       # from 3.15
    # The lock.
    ctypedef struct _gil_runtime_state "struct _gil_runtime_state":
        unsigned long interval
        PyThreadState *last_holder
        int locked
        unsigned long switch_number
    ctypedef struct gc_generation "struct gc_generation":
        int threshold
        int count
    ctypedef struct _gc_runtime_state "struct _gc_runtime_state":
        int enabled
        gc_generation generations[3]
        int collecting
    ctypedef struct _ceval_state "struct _ceval_state":
        int eval_breaker                        # until 3.12
        int gil_drop_request                    # until 3.12
        int recursion_limit
        _gil_runtime_state *gil
        int own_gil
    ctypedef struct pythreads "struct pythreads":
        PyThreadState *head
    ctypedef struct PyInterpreterState:
        _ceval_state ceval
        PyInterpreterState *next
        int64_t id
        long _whence                            # from 3.13
        int _ready                              # from 3.13
        pythreads threads
        PyThreadState *_finalizing
        _gc_runtime_state gc
        _gil_runtime_state _gil
        unsigned long feature_flags
        void *xidregistry                       # until 3.12
    ctypedef struct pyinterpreters "struct pyinterpreters":
        PyInterpreterState *head
        PyInterpreterState *main
        int64_t next_id
    ctypedef struct _ceval_runtime_state "struct _ceval_runtime_state":
        int signals_pending                     # until 3.12
    ctypedef struct _gilstate_runtime_state "struct _gilstate_runtime_state":
        int check_enabled
        PyInterpreterState *autoInterpreterState
    ctypedef struct _PyRuntimeState:
        char debug_offsets                      # from 3.13
        int preinitialized
        int core_initialized
        int initialized
        PyThreadState *_finalizing
        pyinterpreters interpreters
        unsigned long main_thread
        void *xidregistry                       # until 3.12
        void *xi                                # from 3.13
        void *autoTSSkey                        # until 3.14
        void *atexit
        _ceval_runtime_state ceval
        _gilstate_runtime_state gilstate
        void *preconfig
        void *open_code_hook
        void *open_code_userdata
        void *audit_hooks


cdef extern from "si_context.h":
    ctypedef enum si_side:
        SI_SENDER, SI_RECEIVER
    ctypedef enum si_channel_kind:
        SI_KIND_CHANNEL, SI_KIND_QUEUE, SI_KIND_CHANNEL_554
    ctypedef struct si_channel:
        uint64_t id
        size_t maxsize
        si_channel_kind kind
        int64_t asked
        uint8_t unbound
        uint32_t count
        int handles[2]
    ctypedef struct si_handle:
        si_channel *channel
        si_side side
    ctypedef struct si_context:
        PyInterpreterState *interp
        si_context *all_next
        bint ended
        int64_t interp_id
        si_cq *notices
        bint core_loaded
        uint32_t n_copies
    PyThreadState *PyThreadState_Get()
    PyInterpreterState *PyInterpreterState_Get()
    si_context *si_context_of(PyInterpreterState *interp) except NULL
    void si_context_retain(si_context *cx) nogil
    void si_context_release(si_context *cx) nogil
    void si_ledger_add(si_context *cx, si_handle *h) nogil
    void si_ledger_remove(si_context *cx, si_handle *h) nogil
    bint si_runtime_known() nogil
    size_t si_runtime_list(int64_t *ids, size_t max) nogil
    si_ret si_runtime_init(PyThreadState *ts)
    si_context *si_contexts_lock() nogil
    void si_contexts_unlock() nogil


cdef extern from "si_codec.h":
    ctypedef struct si_encoder:
        int depth
    void si_encoder_init(si_encoder *e)
    si_ret si_encode(si_encoder *e, si_msg *m, PyObject *obj)
    ctypedef struct si_reader:
        const char *p
        const char *end
        si_msg *m
        bint keep
    void si_reader_init(si_reader *r, si_msg *m)
    object si_decode(si_reader *r)
    bint si_get_u32(si_reader *r, uint32_t *v)
    bint si_put_u32(si_msg *m, uint32_t v)


cdef extern from "si_task.h" nogil:
    ctypedef enum si_task_state:
        SI_PENDING, SI_RUNNING, SI_DONE, SI_FAILED, SI_CANCELLED, SI_LOST, SI_ABANDONED, SI_OVERDUE
    uint32_t SI_STATE_MASK, SI_WAITED, SI_OBSERVED
    bint SI_IS_FINAL(uint32_t word)
    int SI_ARITY_STAR
    ctypedef enum si_task_kind:
        SI_CALL, SI_CALL_PICKLED, SI_CHUNK, SI_WORKER_CALL
    ctypedef struct si_function:
        int64_t cost
        bint remember
        si_msg msg
    si_function *si_function_new(si_msg *msg, bint by_name)
    void si_function_retain(si_function *f)
    void si_function_retire(si_function *f)
    void si_function_release(si_function *f)
    ctypedef struct si_node:
        bint is_task
    ctypedef struct si_task:
        si_node node
        int refs
        uint8_t kind
        uint8_t arity
        bint failed_items
        uint32_t n_items
        uint32_t generation
        si_function *function
        PyObject *observer
        int64_t run_ns
        size_t weight
        int64_t limit_ns
        si_msg msg
    si_task *si_task_new()
    void si_task_free(si_task *t)
    void si_task_retain(si_task *t)
    void si_task_release(si_task *t)
    uint32_t si_task_word(si_task *t)
    uint32_t si_task_cancel(si_task *t)
    bint si_task_orphan(si_task *t, const char *reason)
    uint32_t si_task_observe(si_task *t, si_cq *cq)
    si_ret si_task_wait(si_task *t, int64_t deadline, si_spin *spin)
    ctypedef struct si_cq:
        pass
    si_cq *si_cq_new()
    void si_cq_retain(si_cq *q)
    void si_cq_release(si_cq *q)
    void si_cq_close(si_cq *q)
    bint si_cq_post(si_cq *q, si_node *node)
    bint si_cq_ready(si_cq *q)
    void si_cq_nudge(si_cq *q)
    si_ret si_cq_pop(si_cq *q, si_node **node)
    si_ret si_cq_wait(si_cq *q, int64_t deadline, si_spin *spin)


cdef extern from "si_meter.h" nogil:
    int SI_BUCKETS, SI_N_DONE, SI_N_FAILED, SI_N_IN, SI_N_OUT, SI_N_BUSY, SI_N_IDLE
    int SI_N_RUN, SI_N_WAIT, SI_N_COUNTS
    ctypedef struct si_trace_record:
        int64_t pushed
        int64_t begin
        int32_t pushed_by
        uint32_t n_items
        uint32_t n_failed
        uint8_t kind
    ctypedef struct si_trace_segment:
        si_trace_segment *next
        int64_t thread_id
        int index
        si_trace_record *record
    ctypedef struct si_trace:
        int64_t begun
        int64_t n_dropped
    si_trace *si_trace_new(size_t max_records)
    void si_trace_release(si_trace *t)
    si_trace_segment *si_trace_segments(si_trace *t)
    uint32_t si_trace_count(si_trace_segment *s)
    int64_t si_trace_end_of(si_trace_record *r)
    const char *si_trace_name_of(si_trace_record *r)


cdef extern from "si_signal.h" nogil:
    int si_dump_signal()
    si_ret si_dump_begin(int signum)
    void si_dump_end()
    int si_dump_ask()
    si_ret si_dump_wait(int64_t deadline)


cdef extern from "si_pool.h" nogil:
    ctypedef enum si_worker_state:
        SI_W_STARTING, SI_W_PREPARING, SI_W_IDLE, SI_W_RUNNING, SI_W_FINISHING, SI_W_ENDING, SI_W_ENDED
        SI_W_ABANDONED, SI_W_JAILED, SI_W_PARKED
    ctypedef struct si_worker_view:
        int index
        uint32_t state
        int64_t thread_id, interp_id, memory, since
        int64_t *count
    ctypedef struct si_worker_thread:
        int index
        uint32_t state
        int64_t thread_id, since
    ctypedef enum si_claim:
        SI_CLAIM_FREE, SI_CLAIM_RUNS, SI_CLAIM_CLOSED
    ctypedef struct si_pool:
        uint64_t id
        int64_t creator
        int64_t single
        int users
        char *name
        uint32_t generation
        int max_workers
        int per_home
        bint allow_threads
        bint allow_daemon_threads
        int n_workers
        uint32_t n_queued
        si_msg boot
        si_msg initializer
        si_spin caller_spin
        size_t stack_size
        int64_t grace
        int max_left
        bint forward_output
        int draining
        si_cq *out_cq
    ctypedef struct si_worker:
        si_pool *pool
    ctypedef struct si_output:
        si_output *next
        int stream
        size_t n
        char *data
    si_pool *si_pool_new(si_context *creator, int max_workers, int per_home, int64_t max_tasks,
                         const char *name, const char *key)
    void si_pool_retain(si_pool *p)
    void si_pool_release(si_pool *p)
    si_pool *si_pool_find(uint64_t id)
    si_pool *si_pool_of_single(int64_t interp_id, bint user)
    bint si_pool_drop_user(si_pool *p)
    size_t si_pool_singles_ending(int64_t *ids, size_t max)
    si_claim si_pool_claim(si_pool *p, si_claim how)
    void si_pool_unclaim(si_pool *p)
    si_claim si_pool_claimed(si_pool *p)
    int si_pool_look(si_pool *p, si_worker_view *views, int max, int64_t *gone,
                     uint32_t *n_queued)
    int si_workers_of(si_pool *p, si_worker_thread *threads, int max)
    bint si_worker_signal(si_pool *p, int64_t thread_id, int signum, int value)
    bint si_pool_trace(si_pool *p, si_trace *t)
    void si_pool_untrace(si_pool *p, si_trace *t)
    si_ret si_pool_push(si_pool *p, si_task *t)
    si_ret si_pool_broadcast(si_pool *p, si_task **tasks, int room, int *n)
    si_ret si_pool_resize(si_pool *p, int max_workers)
    void si_fail_for_tests(int n)
    void si_pool_close(si_pool *p, bint cancel, bint give_up)
    si_ret si_pool_join(si_pool *p, int64_t deadline)
    bint si_pool_is_broken(si_pool *p)
    bint si_pool_is_closing(si_pool *p)
    char *si_pool_reason(si_pool *p)
    si_ret si_pool_wait_task(si_pool *p, si_worker *me, si_task *t, int64_t deadline, bint slice)
    si_ret si_pool_wait_cq(si_pool *p, si_worker *me, si_cq *q, int64_t deadline, bint slice)
    si_worker *si_worker_self()
    bint si_pool_has_output(si_pool *p, int64_t interp_id)
    si_output *si_pool_take_output(si_pool *p, int64_t interp_id)
    void si_measure_memory()
    void si_exit_begin()
    bint si_exit_wait(int64_t until)
    void si_exit_abandon()
    bint si_pool_tell_broken(si_pool *p)
    bint si_pool_given_up(si_pool *p)
    size_t si_pools_of(int64_t creator, uint64_t *ids, size_t max)


cdef extern from "si_stop.h" nogil:
    bint si_call_is_asked(si_worker *w)
    bint si_call_take(si_worker *w)
    bint si_stop_task(si_task *t)
    void si_stop_all(si_pool *p, int64_t grace)


cdef extern from "si_fields.h" nogil:
    ctypedef enum si_place:
        SI_IN_RUNTIME, SI_IN_INTERPRETER, SI_IN_THREAD, SI_THREAD_LOCAL, SI_GONE
    ctypedef enum si_value_kind:
        SI_VALUE_NONE, SI_VALUE_INT, SI_VALUE_LONG, SI_VALUE_SET, SI_VALUE_PRECONFIG
    ctypedef struct si_field:
        const char *field
        const char *part
        const char *path
        const char *about
        si_place place
        si_value_kind kind
    const si_field *si_fields
    size_t si_n_fields
    ctypedef struct si_preconfig_member:
        const char *name
        size_t offset
    const si_preconfig_member *si_preconfig
    size_t si_n_preconfig
    size_t SI_UNKNOWN
    int SI_N_TABLE
    ctypedef struct si_table_entry:
        const char *name
        size_t at
    const si_table_entry *si_table
    size_t si_table_size
    unsigned long si_built_version


cdef extern from "si_layout.h":
    ctypedef struct si_layout:
        size_t list
    size_t SI_LAYOUT_N
    const char **si_layout_names
    const char *_PyRuntime
    void si_layout_read(si_layout *l, const void *table, PyThreadState *ts)
    const si_layout *si_runtime_layout() nogil
    const void *si_field_at(const si_layout *l, const si_field *f, PyInterpreterState *interp)


cdef extern from "si_view.h" nogil:
    ctypedef struct si_interp_view:
        int64_t id, whence
        int ready, finalizing, own_lock, own_allocator
        int allow_fork, allow_exec, allow_threads, allow_daemon_threads, check_extensions
        uintptr_t lock, own
        int locked
        int64_t switches, interval
        int gc_enabled, gc_collecting
        int *gc_threshold
        int *gc_count
        size_t first_thread, n_threads
    ctypedef struct si_thread_view:
        uint64_t ident
        int64_t native
        int holds, waits
    bint si_look(const si_layout *l, si_interp_view *interps, size_t max_interps,
                 size_t *n_interps, si_thread_view *threads, size_t max_threads,
                 size_t *n_threads)
    ctypedef enum si_ask_state:
        SI_ASK_OPEN, SI_ASK_ANSWERED, SI_ASK_FAILED, SI_ASK_GIVEN_UP
    ctypedef struct si_ask:
        uint32_t state
        si_msg answer
    si_ask *si_ask_new(int64_t interp_id)
    si_ret si_ask_wait(si_ask *a, int64_t deadline)
    void si_ask_done(si_ask *a)


cdef extern from "si_view.h":
    object si_report(si_context *cx)


cdef extern from "si_park.h" nogil:
    void si_park_arm(int default_limit)
    void si_park_set_limit(int n)
    size_t si_park_list(int64_t *interps, int64_t *threads, size_t max)


cdef extern from "si_pool.h":
    ctypedef struct si_hooks:
        PyObject *(*init_module)() noexcept
        int (*encode)(si_context *cx, si_msg *m, PyObject *obj) except -1
        PyObject *(*decode)(si_context *cx, si_msg *m, bint keep) except NULL
    si_hooks si_python
    object si_value_decode(si_context *cx, si_msg *m, bint keep)
    int si_value_encode(si_context *cx, si_msg *m, PyObject *obj) except -1


cdef extern from "si_channel.h" nogil:
    ctypedef struct si_link:
        pass
    ctypedef struct si_async:
        si_node node
        si_channel *channel
        void *owner
    ctypedef enum si_receipt_state:
        SI_IN_CHANNEL, SI_RECEIVED, SI_DROPPED
    ctypedef struct si_receipt:
        uint32_t state
    ctypedef struct si_sending:
        si_context *cx
        uint8_t unbound
        si_receipt *receipt
        bint met
    si_channel *si_channel_new(si_channel_kind kind, int64_t maxsize, uint8_t unbound)
    size_t si_channels_list(si_channel_kind kind, uint64_t *ids, size_t max)
    si_ret si_channel_await(si_channel *c, si_receipt *receipt, int64_t deadline)
    si_receipt_state si_channel_withdraw(si_channel *c, si_receipt *receipt)
    void si_channels_unbind(int64_t interp_id)
    bint si_channel_open(si_channel *c, si_side side)
    si_channel *si_channel_find(uint64_t id)
    void si_channel_retain(si_channel *c)
    void si_channel_release(si_channel *c)
    si_ret si_channel_add_handle(si_channel *c, si_side side, bint attach)
    void si_channel_drop_count(si_channel *c, si_side side)
    si_ret si_channel_try_send(si_channel *c, si_msg *m, si_sending *how)
    si_ret si_channel_try_recv(si_channel *c, si_msg *m)
    si_ret si_channel_wait(si_handle *h, int64_t deadline)
    void si_channel_tell_side(si_channel *c, si_side side)
    bint si_channel_spin(si_channel *c)
    si_ret si_channel_select(si_handle **handles, si_link *links, uint32_t n, int64_t deadline)
    si_ret si_async_register(si_async *a, si_handle *h)
    void si_async_cancel(si_async *a, si_side side)
    si_async *si_async_new(si_channel *c, si_cq *cq)
    void si_async_release(si_async *a)
    void si_async_pass_on(si_async *a)
    bint si_handle_claim_drop(si_handle *h)
    void si_handle_init(si_handle *h, si_channel *c, si_side side)
    bint si_handle_counted(si_handle *h)
    int si_channel_size(si_channel *c)


cdef extern from "si_sync.h" nogil:
    ctypedef enum si_sync_kind:
        SI_SYNC_LOCK, SI_SYNC_RLOCK, SI_SYNC_SEMAPHORE, SI_SYNC_EVENT, SI_SYNC_BARRIER, SI_SYNC_COUNTER
    int64_t SI_SYNC_MAX
    uint64_t SI_SYNC_BROKEN
    int SI_SYNC_SHIFT
    ctypedef struct si_sync_waiter:
        int64_t index
    ctypedef struct si_sync:
        si_sync_kind kind
        int64_t limit
        int64_t timeout
        uint64_t id
        uint64_t depth
    ctypedef struct si_sync_handle:
        pass
    si_sync *si_sync_new(si_sync_kind kind, int64_t value, int64_t limit, int64_t timeout)
    si_sync *si_sync_find(uint64_t id)
    void si_sync_retain(si_sync *s)
    void si_sync_release(si_sync *s)
    si_sync_handle *si_sync_handle_new(si_context *cx, si_sync *s)
    void si_sync_handle_drop(si_context *cx, si_sync_handle *h)
    void si_sync_waiter_init(si_sync_waiter *w, si_context *cx)
    bint si_sync_forked(const si_sync *s)
    si_ret si_sync_take(si_sync *s, si_context *cx)
    si_ret si_sync_wait(si_sync *s, si_sync_waiter *w, int64_t deadline)
    si_ret si_sync_give(si_sync *s, si_context *cx, int64_t n)
    bint si_sync_is_mine(si_sync *s, si_context *cx)
    uint64_t si_sync_state(si_sync *s)
    si_ret si_event_set(si_sync *s)
    si_ret si_event_clear(si_sync *s)
    si_ret si_event_wait(si_sync *s, si_sync_waiter *w, int64_t deadline)
    si_ret si_barrier_arrive(si_sync *s, si_sync_waiter *w, bint act)
    si_ret si_barrier_wait(si_sync *s, si_sync_waiter *w, bint act, int64_t deadline)
    si_ret si_barrier_leave(si_sync *s, si_sync_waiter *w, bint in_time)
    si_ret si_barrier_open(si_sync *s, si_sync_waiter *w)
    si_ret si_barrier_break(si_sync *s, bint reset)
    int64_t si_barrier_waiting(si_sync *s)
    bint si_barrier_set_action(si_sync *s, si_msg *m)
    si_msg *si_barrier_action(si_sync *s)
    int64_t si_counter_get(si_sync *s)
    int64_t si_counter_exchange(si_sync *s, int64_t value)
    bint si_counter_compare_exchange(si_sync *s, int64_t expected, int64_t value)
    bint si_counter_add(si_sync *s, int64_t n, bint minus, int64_t *sum)


cdef extern from "si_process.h" nogil:
    bint si_is_main_thread()
    void si_name_thread(const char *name)
    void si_store_cost(si_function *f, int64_t cost)
    int64_t si_load_cost(si_function *f)
    void si_store_refs(si_task *t, int refs)


cdef extern from "si_gate.h":
    const char *si_gate_unsupported() nogil


cdef extern from "si_arrow.h" nogil:
    ctypedef struct ArrowSchema "struct ArrowSchema":
        const char *format
        const char *name
        const char *metadata
        int64_t flags
        int64_t n_children
        ArrowSchema **children
        ArrowSchema *dictionary
        void *release
    ctypedef struct ArrowArray "struct ArrowArray":
        int64_t length, null_count, offset, n_buffers, n_children
        const void **buffers
        ArrowArray **children
        ArrowArray *dictionary
        void *release
    ctypedef struct ArrowArrayStream "struct ArrowArrayStream":
        void *release
    ctypedef struct si_arrow_memory:
        pass
    si_arrow_memory *si_arrow_memory_new(uint32_t room)
    void si_arrow_memory_add_block(si_arrow_memory *m, si_block *b)
    void si_arrow_memory_add_shared(si_arrow_memory *m, si_shared *s)
    void si_arrow_memory_release(si_arrow_memory *m)
    bint si_arrow_schema_init(ArrowSchema *s, const char *format, const char *name,
                              const char *metadata, size_t n_metadata, int64_t flags,
                              int64_t n_children, bint dictionary)
    bint si_arrow_array_init(ArrowArray *a, si_arrow_memory *m, int64_t length,
                             int64_t null_count, int64_t offset, int64_t n_buffers,
                             int64_t n_children, bint dictionary)
    size_t si_arrow_metadata_size(const char *metadata)
    const char *si_arrow_error(ArrowArrayStream *s)
    void si_arrow_release_stream(ArrowArrayStream *s)
    void si_arrow_release_schema(ArrowSchema *s)
    void si_arrow_release_array(ArrowArray *a)
    ctypedef enum si_arrow_how:
        SI_ARROW_PLAIN, SI_ARROW_OFFSETS_32, SI_ARROW_OFFSETS_64, SI_ARROW_VIEWS
    ctypedef struct si_arrow_job:
        si_arrow_how how
        const char *from_ "from"
        size_t n, at
        const ArrowArray *array
        int64_t first
        size_t text_at, size_at
    void si_arrow_copy(char *to, const si_arrow_job *job)
    size_t si_arrow_text_size(const ArrowArray *a, int64_t first, int64_t n)


cdef extern from "si_arrow.h":
    # They run the code of the library whose stream it is.
    int si_arrow_get_schema(ArrowArrayStream *s, ArrowSchema *out)
    int si_arrow_get_next(ArrowArrayStream *s, ArrowArray *out)
    object si_arrow_stream_capsule(ArrowSchema *schema, ArrowArray *arrays, uint32_t n_arrays)
