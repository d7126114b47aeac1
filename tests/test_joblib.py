"""joblib's tasks in interpreters: what joblib's own tests do not look at."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import multiprocessing
import pickle
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

import subinterp
from _joblibwork import (
    address_of,
    blas_threads,
    fail,
    frame_facts,
    initialize,
    initialized_with,
    looks,
    nested,
    raise_or_sleep,
    slow_identity,
    try_to_write,
    use_backend,
    who,
    write_at,
)
from _support import live_objects, parked_interpreters, run_script, wait_until

joblib = pytest.importorskip("joblib")
np = pytest.importorskip("numpy")

from joblib import Parallel, delayed  # noqa: E402

from subinterp.integrations import joblib as ours  # noqa: E402

pytestmark = [
    pytest.mark.integrations,
    # Those of OpenBLAS, and of packages for data frames, come when they are used first.
    pytest.mark.leaks("threads"),
]

ours.register()

LARGE = 200_000  # items of 8 bytes: more than joblib's 1 MB

SCRIPT = """\
import os, sys, threading, time
import joblib
from joblib import Parallel, delayed
from subinterp.integrations import joblib as ours
from _joblibwork import *
ours.register()
"""


@pytest.fixture(autouse=True)
def _ended():
    """End the workers after each test, so that nothing is left behind."""
    yield
    ours.shutdown()


def parallel(**options):
    options.setdefault("n_jobs", 2)
    return Parallel(backend="subinterp", **options)


def buffers():
    return live_objects()["buffers"]


def shared_memory_is_back_at(before):
    wait_until(lambda: buffers() == before, what="the end of shared memory")


# ---- calls ------------------------------------------------------------------------------


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
def test_results(return_as):
    with joblib.parallel_config(backend="subinterp", n_jobs=2):
        results = Parallel(return_as=return_as)(delayed(pow)(n, 2) for n in range(300))
    results = sorted(results) if return_as == "generator_unordered" else list(results)
    assert results == [n * n for n in range(300)]


def test_tasks_run_in_interpreters():
    found = set(parallel()(delayed(who)() for _ in range(6)))
    assert len(found) == 2 and 0 not in found


def test_n_jobs():
    with joblib.parallel_config(backend="subinterp"):
        assert joblib.effective_n_jobs(-1) == joblib.cpu_count()
        assert joblib.effective_n_jobs(3) == 3
    with pytest.raises(ValueError, match="n_jobs must be at most 4096, not 5000"):
        parallel(n_jobs=5000)([])


def test_workers_are_kept_between_calls():
    first = set(parallel()(delayed(who)() for _ in range(6)))
    assert set(parallel()(delayed(who)() for _ in range(6))) == first
    more = set(parallel(n_jobs=3)(delayed(who)(0.3) for _ in range(6)))
    assert first < more and len(more) == 3
    fewer = set(parallel(n_jobs=2)(delayed(who)() for _ in range(6)))
    assert fewer < more and len(fewer) == 2
    ours.shutdown()
    assert live_objects()["pools"] == 0
    assert parallel()([delayed(abs)(-1)]) == [1]


def test_idle_workers_end():
    assert parallel(idle_worker_timeout=0.05)([delayed(abs)(-1)]) == [1]
    wait_until(lambda: live_objects()["pools"] == 0, what="the end of idle workers")
    assert ours._kept is None
    assert parallel()([delayed(abs)(-1)]) == [1]
    time.sleep(0.2)
    assert live_objects()["pools"] == 1


def test_a_new_path_makes_other_workers(tmp_path, monkeypatch):
    assert parallel()([delayed(abs)(-1)]) == [1]
    (tmp_path / "only_here.py").write_text("def one():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    assert parallel()([delayed(only_here.one)()] * 2) == [1, 1]


def test_calls_at_the_same_time():
    """Calls of several threads have workers of their own, and one pool is kept in the end."""
    results = {}

    def call(n):
        results[n] = set(parallel()(delayed(who)(0.3) for _ in range(4)))

    threads = [threading.Thread(target=call, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # No worker has worked for two of them.
    assert len(set.union(*results.values())) == sum(map(len, results.values())) >= 3
    wait_until(lambda: live_objects()["pools"] == 1, what="the end of the other pools")


def test_one_backend_for_calls_at_the_same_time():
    """Under parallel_config several calls are given the same backend."""
    with joblib.parallel_config(backend="subinterp", n_jobs=2):
        first = Parallel(return_as="generator")(delayed(slow_identity)(i) for i in range(10))
        assert next(first) == 0
        assert Parallel()(delayed(abs)(-i) for i in range(5)) == list(range(5))
        assert list(first) == list(range(1, 10))


@pytest.mark.filterwarnings("ignore:.*tasks which were still being processed")
def test_a_forgotten_generator_stops_its_tasks_only():
    forgotten = parallel(return_as="generator")(delayed(time.sleep)(1000) for _ in range(10))
    kept = parallel(return_as="generator")(delayed(slow_identity)(i) for i in range(10))
    del forgotten
    assert list(kept) == list(range(10))
    # The workers that slept are free again.
    assert parallel()(delayed(abs)(-i) for i in range(4)) == list(range(4))


def test_input_that_uses_parallel_itself():
    """The input is read further by the thread that tells of results, which must not hang."""
    result = run_script(
        SCRIPT
        + """
def numbers():
    for i in range(6):
        yield sum(Parallel(n_jobs=2, backend="subinterp")(delayed(abs)(-n) for n in range(i)))

parallel = Parallel(n_jobs=2, backend="subinterp", pre_dispatch=2)
print(parallel(delayed(abs)(n) for n in numbers()))
"""
    ).clean()
    assert result.stdout.strip() == "[0, 0, 1, 3, 6, 10]"


# ---- failures ---------------------------------------------------------------------------


def test_a_failure_stops_the_other_tasks():
    with pytest.raises(LookupError) as caught:
        parallel()(delayed(raise_or_sleep)(i) for i in range(20))
    assert "raise_or_sleep" in str(caught.value.__cause__)
    # Both workers are free: none sleeps on.
    assert len(set(parallel()(delayed(who)() for _ in range(6)))) == 2


def test_a_time_limit_stops_the_tasks():
    with pytest.raises(multiprocessing.TimeoutError):
        parallel(timeout=0.1)(delayed(time.sleep)(1000) for _ in range(4))
    assert len(set(parallel()(delayed(who)() for _ in range(6)))) == 2


def test_a_context_goes_on_after_a_failure():
    with parallel(batch_size=1) as many:
        for _ in range(2):
            with pytest.raises(LookupError):
                many(delayed(raise_or_sleep)(i) for i in range(20))
            assert many(delayed(abs)(-i) for i in range(5)) == list(range(5))


@pytest.mark.parametrize("bad", [0, 40], ids=["at once", "later"])
def test_what_cannot_be_sent_is_named(bad):
    """Also where the task is sent by the thread that tells of results."""
    tasks = (delayed(len)({"n": [i, threading.Lock()] if i == bad else i}) for i in range(60))
    with pytest.raises(subinterp.NotSendableError) as caught:
        parallel(batch_size=3)(tasks)
    assert isinstance(caught.value, pickle.PicklingError)
    assert "in a task of joblib.Parallel, args[0]['n'][1] cannot be sent" in str(caught.value)
    assert parallel()([delayed(abs)(-1)]) == [1]


def test_input_that_is_none():
    """joblib does not end such a call: its workers come back when it is collected."""
    with pytest.raises(TypeError, match="not iterable"):
        parallel()(5)
    gc.collect()
    assert ours._limited == 0
    assert ours._kept is not None and live_objects()["pools"] == 1
    assert parallel()([delayed(abs)(-1)]) == [1]
    assert live_objects()["pools"] == 1


def test_a_result_that_cannot_be_sent():
    with pytest.raises(subinterp.NotSendableError, match="lock"):
        parallel()(delayed(threading.Lock)() for _ in range(3))


def test_shutdown_while_a_call_runs():
    """It ends what is kept: never what somebody has."""
    results = parallel(return_as="generator")(delayed(slow_identity)(i) for i in range(10))
    ours.shutdown()
    assert list(results) == list(range(10))


def test_interrupted_by_the_keyboard():
    result = run_script(
        SCRIPT
        + """
import signal
threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT]).start()
try:
    Parallel(n_jobs=2, backend="subinterp")(delayed(time.sleep)(1000) for _ in range(10))
except KeyboardInterrupt:
    print("interrupted")
print(Parallel(n_jobs=2, backend="subinterp")(delayed(abs)(-i) for i in range(3)))
""",
    ).clean()
    assert result.stdout.splitlines() == ["interrupted", "[0, 1, 2]"]


def test_the_end_of_the_program():
    """With workers that are kept, and results that nobody reads."""
    result = run_script(
        SCRIPT
        + """
def elsewhere():
    try:
        Parallel(n_jobs=2, backend="subinterp")(delayed(time.sleep)(1000) for i in range(10))
    except Exception as error:
        print(type(error).__name__)

threading.Thread(target=elsewhere).start()
print(Parallel(n_jobs=2, backend="subinterp")(delayed(abs)(-i) for i in range(3)), flush=True)
left = Parallel(n_jobs=2, backend="subinterp", return_as="generator")(
    delayed(time.sleep)(1000) for i in range(10)
)
""",
    ).check()
    first, error = result.stdout.splitlines()
    assert first == "[0, 1, 2]" and error in ("TaskInterrupted", "RuntimeError")


def test_in_the_child_of_a_fork():
    result = run_script(
        SCRIPT
        + """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads
call = lambda: Parallel(n_jobs=2, backend="subinterp")(delayed(abs)(-i) for i in range(3))
print(call(), flush=True)
slowly = (delayed(slow_identity)(i, 0.1) for i in range(10))
running = Parallel(n_jobs=2, backend="subinterp", return_as="generator")(slowly)
print(next(running), flush=True)
child = os.fork()
if not child:
    del running
    print(call(), flush=True)
    sys.exit()
print(os.waitpid(child, 0)[1], call(), list(running))
""",
    ).check()
    values = "[1, 2, 3, 4, 5, 6, 7, 8, 9]"
    assert result.stdout.splitlines() == ["[0, 1, 2]", "0", "[0, 1, 2]", f"0 [0, 1, 2] {values}"]


# ---- large arrays -----------------------------------------------------------------------


def test_large_arrays_are_lent_once_for_a_call():
    array = np.arange(LARGE)
    before = buffers()
    many = parallel(return_as="generator", batch_size=1, pre_dispatch="all")
    addresses = many(delayed(address_of)(array, i) for i in range(10))
    assert buffers() == before + 1
    assert len(set(addresses)) == 1
    shared_memory_is_back_at(before)
    # What has changed since is copied anew.
    for value in (5, 6):
        array[0] = value
        assert (
            parallel()(delayed(looks)(array[:1].repeat(LARGE)) for _ in range(1))[0][0][0] == value
        )
        assert parallel()([delayed(int)(array[0])]) == [value]
    with parallel() as many:
        for value in (7, 8):
            array[:] = value
            assert many(delayed(np.ndarray.max)(array) for _ in range(3)) == [value] * 3
    shared_memory_is_back_at(before)


def test_lent_arrays_are_read_only():
    for thing in (np.zeros(LARGE), np.zeros((2, LARGE)).T):
        found = parallel()(delayed(try_to_write)(a) for a in [thing, thing])
        assert all(message is not None for messages in found for message in messages)


@pytest.mark.parametrize(
    "options",
    [{"max_nbytes": None}, {"max_nbytes": "10M"}, {"mmap_mode": None}, {"mmap_mode": "c"}],
    ids=str,
)
def test_arrays_that_are_not_lent(options):
    array = np.zeros(LARGE)
    before = buffers()
    assert parallel(**options)([delayed(try_to_write)(array)]) == [[None, None]]
    assert buffers() == before
    assert not array.any()


def test_tasks_that_write_to_one_array():
    array = np.zeros(LARGE)
    with parallel(mmap_mode="r+", batch_size=1, pre_dispatch=1) as many:
        # The next task is sent when the first is done, and sees what it wrote.
        found = many(
            delayed(f)(array, *args)
            for f, args in [(write_at, (3,)), (np.ndarray.sum, ()), (np.ndarray.sum, ())]
        )
    assert found == ["ndarray", 3.0, 3.0]
    assert not array.any()


SMALL_ARRAYS = {
    "1d": np.arange(6),
    "C": np.arange(6.0).reshape(2, 3),
    "F": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "strided": np.arange(20)[::3],
    "backwards": np.arange(6)[::-1],
    "dates": np.arange(6).astype("M8[s]"),
    "records": np.zeros(3, dtype=[("a", "i4"), ("b", "f8")]),
    "big endian": np.arange(6).astype(">i4"),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
}


def test_kinds_of_arrays():
    """All are lent here, alone and inside of others; objects cannot be."""
    for nested_in_dict in (False, True):
        things = {k: {"array": a} if nested_in_dict else a for k, a in SMALL_ARRAYS.items()}
        found = parallel(max_nbytes=1)(delayed(looks)(thing) for thing in things.values())
        for (name, array), (values, _, writable) in zip(SMALL_ARRAYS.items(), found, strict=True):
            assert values == array.tolist(), name
            assert not writable, name
    odd = [np.array([None, "x"]), np.zeros(0), np.ma.masked_array([1, 2], [True, False])]
    for array, got in zip(odd, parallel(max_nbytes=1)(delayed(looks)(a) for a in odd), strict=True):
        assert got[0] == array.tolist()


def test_lent_arrays_come_back_as_copies():
    array = np.arange(2.0 * LARGE).reshape(2, LARGE)
    before = buffers()
    results = parallel()(delayed(slow_identity)(a) for a in [array, array, array.T, {"x": array}])
    for result in [*results[:2], results[2].T, results[3]["x"]]:
        assert result.flags.writeable
        np.testing.assert_array_equal(result, array)
    assert results[2].flags.f_contiguous
    results[0][:] = 0
    assert results[1].any() and array.any()
    shared_memory_is_back_at(before)


def test_arrays_from_a_generator():
    """Each is its own, though their ids may be the same; none is kept longer than its tasks."""
    before, most = buffers(), 0

    def arrays():
        nonlocal most
        for i in range(60):
            yield np.full(LARGE, i)
            most = max(most, buffers())

    found = parallel(batch_size=1)(delayed(np.ndarray.max)(a) for a in arrays())
    assert found == list(range(60))
    assert most - before < 20
    shared_memory_is_back_at(before)


@pytest.mark.slow
@pytest.mark.packages
def test_frames_are_lent():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": np.arange(LARGE, dtype=float), "b": 1.0})
    before = buffers()
    many = parallel(return_as="generator", batch_size=1, pre_dispatch="all")
    found = many(delayed(frame_facts)(frame) for _ in range(6))
    assert buffers() > before
    assert list(found) == [(LARGE * (LARGE - 1) / 2, False)] * 6
    del found
    (back,) = parallel()([delayed(slow_identity)(frame)])
    pd.testing.assert_frame_equal(back, frame)
    back.loc[0, "a"] = 5
    shared_memory_is_back_at(before)


def test_arrays_that_the_caller_shared_stay_shared():
    array = subinterp.share(np.zeros(LARGE))
    parallel()(delayed(write_at)(array, i) for i in range(4))
    assert array[:4].tolist() == [0, 1, 2, 3]


def test_mapped_files_are_sent_by_name(tmp_path):
    file = np.memmap(tmp_path / "numbers", "f8", "w+", shape=(10, 100))
    before = buffers()
    found = parallel()(delayed(write_at)(file[i], 50) for i in range(10))
    assert found == ["memmap"] * 10
    assert (file[:, 50] == 50).all() and buffers() == before
    file[:] = np.arange(1000).reshape(10, 100)
    file.flush()
    views = [file, file[3:5, ::7], file.T[::-1], np.asarray(file)[2:]]
    for view, (values, strides, _) in zip(
        views, parallel()(delayed(looks)(v) for v in views), strict=True
    ):
        assert values == view.tolist() and strides == view.strides
    read_only = np.memmap(tmp_path / "numbers", "f8", "r")
    assert parallel()([delayed(looks)(read_only[5:6])]) == [([5.0], (8,), False)]
    (tmp_path / "numbers").unlink()
    with pytest.raises(FileNotFoundError, match="numbers"):
        parallel()([delayed(looks)(read_only)])


# ---- workers ----------------------------------------------------------------------------


def test_the_initializer_runs_once_in_each_worker():
    for _ in range(2):
        found = parallel(initializer=initialize, initargs=(1, "x"))(
            delayed(initialized_with)() for _ in range(8)
        )
        assert [args for _, args in found] == [[(1, "x")]] * 8


def test_the_initializer_makes_other_workers():
    array = np.arange(3)  # which cannot simply be compared
    found = [
        parallel(initializer=initialize, initargs=(value,))([delayed(initialized_with)()])[0][1]
        for value in (1, 2, array, array)
    ]
    assert found[:2] == [[(1,)], [(2,)]]
    assert [len(args) for args in found] == [1, 1, 1, 1]


def test_an_initializer_that_fails():
    with pytest.raises(subinterp.BrokenInterpreterPool, match="no such thing"):
        parallel(initializer=fail)([delayed(abs)(-1)] * 3)
    with pytest.raises(subinterp.NotSendableError, match=r"initargs\[1\] cannot be sent"):
        parallel(initializer=fail, initargs=(1, threading.Lock()))([delayed(abs)(-1)])
    assert parallel()([delayed(abs)(-1)]) == [1]


def test_channels_and_proxies_as_arguments():
    """An initializer gets all that tasks get: ends of channels, and proxies of a manager."""
    recv, send = subinterp.create_channel()
    with recv, send, multiprocessing.get_context("spawn").Manager() as manager:
        numbers = manager.dict()
        parallel(initializer=subinterp.SendChannel.send, initargs=(send, "begun"))(
            delayed(numbers.__setitem__)(i, i) for i in range(4)
        )
        assert recv.recv(timeout=60) == "begun"
        assert numbers.copy() == {i: i for i in range(4)}
        parallel(initializer=numbers.__setitem__, initargs=("x", 1))([delayed(abs)(-1)])
        assert numbers["x"] == 1
        ours.shutdown()
    # Interpreters that wait for another pool keep what the last one's initializer was sent.
    subinterp.set_parked_limit(0)
    wait_until(lambda: not parked_interpreters(), what="the end of parked interpreters")
    subinterp.set_parked_limit(4)


def test_what_tasks_print(capfd):
    """It goes where the caller's output goes, also if that has changed between calls."""
    parallel()(delayed(print)(n, flush=True) for n in "ab")
    with contextlib.redirect_stdout(io.StringIO()) as captured:
        parallel()(delayed(print)(n) for n in "cd")
    assert sorted(captured.getvalue().split()) == ["c", "d"]
    assert sorted(capfd.readouterr().out.split()) == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nonsense": 1}, TypeError, 'the backend "subinterp" of joblib has no parameter nonsense'),
        ({"timeout_": 1, "a": 2}, TypeError, "no parameter a, timeout_"),
        ({"initializer": 1}, TypeError, "initializer must be a callable"),
        ({"idle_worker_timeout": "x"}, TypeError, "must be a number of seconds, not str"),
        ({"idle_worker_timeout": -1}, ValueError, "between 0 and 1e9"),
        ({"mmap_mode": "x"}, ValueError, "mmap_mode must be 'r', 'r+', 'w+', 'c' or None"),
        ({"extensions": "x"}, ValueError, "extensions"),
    ],
)
def test_bad_parameters(options, error, message):
    with pytest.raises(error, match=message.replace("+", r"\+")):
        parallel(**options)([delayed(abs)(-1)])
    assert parallel()([delayed(abs)(-1)]) == [1]


def test_parameters_of_the_configuration():
    with joblib.parallel_config(
        backend="subinterp", n_jobs=2, initializer=initialize, initargs=(3,), extensions="auto"
    ):
        assert Parallel()([delayed(initialized_with)()])[0][1] == [(3,)]
    with (
        joblib.parallel_config(backend="subinterp", timeout=1),
        pytest.raises(TypeError, match="no parameter timeout: use idle_worker_timeout"),
    ):
        Parallel(n_jobs=2)([delayed(abs)(-1)])


# ---- nested calls -----------------------------------------------------------------------


# Pools of threads keep pipes until their interpreter collects them.
@pytest.mark.leaks("threads", "files")
def test_nested_tasks_run_in_threads():
    ((kind, threads, caught),) = parallel()([delayed(nested)(None)])
    assert kind == "ThreadingBackend"
    assert len(set(threads)) == 2 and not caught


@pytest.mark.parametrize("backend", ["subinterp", "loky", "multiprocessing"])
def test_nested_tasks_that_name_the_backend(backend):
    ((kind, threads, caught),) = parallel()([delayed(nested)(backend)])
    assert kind == "SequentialBackend"
    assert len(set(threads)) == 1
    (message,) = caught
    assert "backed parallel loops cannot be nested" in message and "n_jobs=1" in message


def test_in_a_worker_of_any_pool(pool1):
    kind, _, caught = pool1.submit(use_backend).result()
    assert kind == "SequentialBackend"
    assert "this is a worker already" in caught[0]


def test_a_joblib_that_is_not_installed(tmp_path):
    """Interpreters that wait for another pool forget it, and with it what holds it."""
    folder = Path(joblib.__file__).parent
    shutil.copytree(folder, tmp_path / "joblib", ignore=shutil.ignore_patterns("test", "*.pyc"))
    result = run_script(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        + SCRIPT
        + """
for _ in range(2):
    print(Parallel(n_jobs=2, backend="subinterp")([delayed(nested)("subinterp")])[0][0])
    ours.shutdown()
assert joblib.__file__.startswith(sys.path[0])
"""
    ).check()
    assert result.stdout.split() == ["SequentialBackend"] * 2


# ---- threads of libraries ---------------------------------------------------------------


def test_threads_of_blas_are_limited(monkeypatch):
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def threads():
        return [
            i["num_threads"] for i in threadpoolctl.threadpool_info() if i["user_api"] == "blas"
        ]

    if not threads():
        pytest.skip("this NumPy has no BLAS that threadpoolctl knows")
    for name in ours._VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    with threadpoolctl.threadpool_limits(limits=3, user_api="blas"):
        expected = max(joblib.cpu_count() // 2, 1)
        for options, limit in [({}, expected), ({"inner_max_num_threads": 2}, 2)]:
            with joblib.parallel_config(backend="subinterp", n_jobs=2, **options):
                results = Parallel(return_as="generator")(delayed(blas_threads)() for _ in range(4))
                assert set(threads()) == {limit}
                for info in results:
                    assert {n for api, n in info if api == "blas"} == {limit}
            assert set(threads()) == {3}
        with pytest.raises(LookupError):
            parallel()(delayed(fail)() for _ in range(5))
        assert set(threads()) == {3}
        for name in ours._VARIABLES.values():
            monkeypatch.setenv(name, "3")
        (info,) = parallel()([delayed(blas_threads)()])
        assert {n for api, n in info if api == "blas"} == {3}


def test_threads_cannot_be_limited_without_threadpoolctl(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    assert parallel()([delayed(abs)(-1)]) == [1]
    with (
        joblib.parallel_config(backend="subinterp", n_jobs=2, inner_max_num_threads=1),
        pytest.raises(ImportError, match=r"threadpoolctl.*pip install 'subinterp\[joblib\]'"),
    ):
        Parallel()([delayed(abs)(-1)])


# ---- around it ---------------------------------------------------------------------------


def test_memory_within_tasks(tmp_path):
    """Results that a task caches are found by the tasks of another interpreter."""
    log = tmp_path / "calls"
    memory = joblib.Memory(tmp_path / "cache", verbose=0)

    def compute(n):
        with open(log, "a") as file:
            file.write(f"{n}\n")
        return n * n

    cached = memory.cache(compute)
    for _ in range(2):
        assert parallel()(delayed(cached)(n) for n in range(4)) == [0, 1, 4, 9]
        ours.shutdown()
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3"]


def test_progress_is_printed(capsys):
    parallel(verbose=11)(delayed(abs)(n) for n in range(3))
    printed = capsys.readouterr().err
    assert "Using backend SubinterpBackend with 2 concurrent workers." in printed
    assert "3 out of   3" in printed


def test_methods_of_main():
    result = run_script(
        SCRIPT
        + """
class Numbers(list):
    def __init__(self, factor):
        self.factor = factor
    def times(self, n):
        return Numbers, self.factor * n

found = Parallel(n_jobs=2, backend="subinterp")(delayed(Numbers(3).times)(i) for i in range(3))
print([n for _, n in found], all(cls is Numbers for cls, _ in found))
""",
    ).clean()
    assert result.stdout.strip() == "[0, 3, 6] True"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sys.modules['joblib'] = None", "needs joblib 1.5 or newer, which is not installed"),
        ("import joblib; joblib.__version__ = '1.4.2'", "1.5 or newer; installed is 1.4.2"),
    ],
    ids=["missing", "too old"],
)
def test_without_a_suitable_joblib(change, message):
    result = run_script(f"import sys; {change}; import subinterp.integrations.joblib")
    assert result.returncode == 1
    assert message in result.stderr and "pip install 'subinterp[joblib]'" in result.stderr


def test_the_guide(tmp_path):
    guide = Path(__file__).resolve().parent.parent / "docs" / "joblib.md"
    if not guide.exists():
        pytest.skip("only in the checkout and the sdist")
    example, _, _ = guide.read_text().partition("```python\n")[2].partition("```")
    assert run_script(example).clean().stdout.strip() == "[1, 2, 4, 8, 16]"


# ---- scikit-learn --------------------------------------------------------------------------

SKLEARN = """\
import sys
import joblib
import numpy as np
import sklearn
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC
from sklearn.utils.parallel import Parallel, delayed
import subinterp.integrations.joblib

subinterp.integrations.joblib.register()


def work():
    X, y = load_breast_cancer(return_X_y=True)
    yield cross_val_score(SVC(), X, y, cv=4)
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10]}, cv=3).fit(X, y)
    yield search.cv_results_["mean_test_score"]
    yield search.predict(X)
    forest = RandomForestClassifier(20, random_state=0).fit(X, y)
    yield forest.predict(X)
    yield forest.feature_importances_
    yield permutation_importance(forest, X, y, n_repeats=2, random_state=0).importances
    X, y = load_diabetes(return_X_y=True)
    yield RandomForestRegressor(20, random_state=0).fit(X, y).predict(X)
    X, y = np.tile(X, (40, 1)), np.tile(y, 40)  # large enough to be lent
    yield cross_val_score(RandomForestRegressor(5, random_state=0), X, y)
    with sklearn.config_context(assume_finite=True, working_memory=77):
        configs = Parallel()(delayed(sklearn.get_config)() for _ in range(2))
    yield [(config["assume_finite"], config["working_memory"]) for config in configs]


found = []
for backend in ("loky", "subinterp"):
    with joblib.parallel_config(backend=backend, n_jobs=2):
        found.append(list(work()))
for ours, theirs in zip(*found, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
print(len(found[0]), found[1][-1])
"""


@pytest.mark.slow
@pytest.mark.packages
def test_scikit_learn_finds_what_it_finds_with_loky():
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    result = run_script(SKLEARN, timeout=200).check()
    assert result.stdout.strip() == "9 [(True, 77), (True, 77)]"
