"""Dask workers whose tasks run in interpreters: on a local cluster, and as commands."""

import contextlib
import copyreg
import itertools
import json
import os
import signal
import subprocess
import sys
import traceback
import types
from pathlib import Path

import pytest

# It has all exceptions of its process pickled by functions of tblib's. Not in other tests.
_reducers = dict(copyreg.dispatch_table)
pytest.importorskip("distributed")
_its_reducers = {k: v for k, v in copyreg.dispatch_table.items() if k not in _reducers}
for _type in _its_reducers:
    del copyreg.dispatch_table[_type]

import dask  # noqa: E402
import distributed  # noqa: E402
from distributed import Client, LocalCluster  # noqa: E402

import _daskwork as work  # noqa: E402
import subinterp  # noqa: E402
from _support import HERE, run_script, script_env, wait_until  # noqa: E402
from subinterp.integrations.dask import _SAFE_FRAMES, SubinterpPlugin, UnsafeFramesError  # noqa: E402

pytestmark = [
    pytest.mark.integrations,
    # Distributed's own threads and connections come and go as it likes.
    pytest.mark.leaks("threads", "files"),
]

LONG = 60  # seconds


@pytest.fixture(scope="module", autouse=True)
def _environment():
    """Leave the process as it was: nannies set variables such as OMP_NUM_THREADS in it."""
    before = dict(copyreg.dispatch_table)
    copyreg.dispatch_table.update(_its_reducers)
    with dask.config.set({"distributed.nanny.pre-spawn-environ": {}}):
        yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of two processes, with two interpreters each."""
    folder = str(tmp_path_factory.mktemp("dask"))
    with (
        dask.config.set({"temporary-directory": folder}),
        dask.config.set({"distributed.comm.timeouts.connect": LONG}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=folder,
            resources={"unit": 1},
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(SubinterpPlugin())
        yield client


def addresses(client):
    return list(client.scheduler_info(n_workers=-1)["workers"])


def on_each(client, function, *args, **kwargs):
    """Run a task on each Dask worker, and return their results."""
    futures = [
        client.submit(function, *args, workers=[address], pure=False, **kwargs)
        for address in addresses(client)
    ]
    return client.gather(futures)


def in_interpreters(places):
    return all(number > 0 for _, number in places)


@contextlib.contextmanager
def plugin(client, made):
    """Have another plugin for a while."""
    client.register_plugin(made)
    try:
        yield
    finally:
        client.register_plugin(SubinterpPlugin())


# Where tasks run ----------------------------------------------------------------


def test_tasks_run_in_interpreters_by_default(client):
    places = on_each(client, work.interpreter)
    assert in_interpreters(places) and len({pid for pid, _ in places}) == 2


def test_threads_by_annotation(client):
    with dask.annotate(executor="threads"):
        futures = client.map(work.interpreter, range(4), pure=False)
    assert {number for _, number in client.gather(futures)} == {0}


def test_interpreters_by_annotation_only(client):
    with plugin(client, SubinterpPlugin(default=False)):
        assert not in_interpreters(on_each(client, work.interpreter))
        with dask.annotate(executor="subinterp"):
            futures = client.map(work.interpreter, range(4), pure=False)
        assert in_interpreters(client.gather(futures))
    assert in_interpreters(on_each(client, work.interpreter))


def test_removed_plugin_gives_the_threads_back(client):
    client.unregister_worker_plugin("subinterp")
    try:
        assert not in_interpreters(on_each(client, work.interpreter))
        left = client.run(lambda dask_worker: "subinterp" in dask_worker.executors)
        assert set(left.values()) == {False}
    finally:
        client.register_plugin(SubinterpPlugin())


def test_both_interpreters_compute_at_once(client):
    address = addresses(client)[0]
    futures = [client.submit(work.compute, 0.5, n, workers=[address]) for n in range(2)]
    (_, start1, end1), (_, start2, end2) = client.gather(futures)
    assert max(start1, start2) < min(end1, end2)


# What tasks take and return ---------------------------------------------------------


def test_arguments_and_dependencies(client):
    three = client.submit(work.add, 1, b=2)
    seven = client.submit(lambda x, **more: x + more["y"], three, y=4)
    assert seven.result(LONG) == 7
    assert client.submit(work.total, [three, seven, 1], by={"a": three}).result(LONG) == 14


def test_graphs(client):
    parts = [dask.delayed(work.add)(n, b=1) for n in range(10)]
    assert client.compute(dask.delayed(work.total)(parts)).result(LONG) == 55


def test_coroutines_and_actors_stay_with_the_dask_worker(client):
    async def where():
        return work.interpreter()

    assert client.submit(where).result(LONG)[1] == 0
    actor = client.submit(work.Tally, actor=True).result(LONG)
    assert [actor.add().result(LONG) for _ in range(2)] == [(1, 0), (2, 0)]


def test_large_data(client):
    data = bytes(20_000_000)
    kept = client.scatter(data)
    assert client.submit(len, kept).result(LONG) == len(data)
    assert client.submit(lambda d: d, kept).result(LONG) == data


def test_plain_tasks_import_neither_dask_nor_distributed(client):
    client.run(subinterp.set_parked_limit, 0)  # so that the interpreters are fresh
    try:
        with plugin(client, SubinterpPlugin()):
            found = on_each(client, work.imported)
    finally:
        client.run(subinterp.set_parked_limit, 4)
    assert found == [set(), set()]


# Errors -----------------------------------------------------------------------------


def test_exception_has_its_own_traceback(client):
    future = client.submit(work.fail, "because")
    error = future.exception(LONG)
    assert type(error) is ZeroDivisionError and error.args == ("because",)
    assert [frame.name for frame in traceback.extract_tb(future.traceback())] == [
        "fail",
        "raise_it",
    ]
    # What a client without subinterp could not read.
    assert error.__cause__ is None and type(error.__context__) is KeyError
    assert not error.__suppress_context__ and "_dask_report" not in vars(error)


def test_result_that_cannot_be_sent(client):
    error = client.submit(work.lock).exception(LONG)
    assert isinstance(error, subinterp.NotSendableError)
    assert str(error).startswith("the task's result['locks'][0] cannot be sent: ")
    assert in_interpreters(on_each(client, work.interpreter))


def test_argument_that_cannot_be_sent(client):
    with dask.annotate(executor="threads"):
        kept = client.submit(work.lock, 1)
    error = client.submit(work.hold, kept).exception(LONG)
    assert isinstance(error, subinterp.NotSendableError)
    assert str(error).startswith("args[0]['locks'][0] cannot be sent: ")
    with dask.annotate(executor="threads"):
        assert client.submit(work.hold, kept, key="hold-it").result(LONG) == "held"


def test_exit_in_a_task_is_an_error_of_that_task(client):
    before = client.run(os.getpid)
    error = client.submit(work.leave).exception(LONG)
    assert type(error) is RuntimeError and "SystemExit(3)" in str(error)
    assert client.run(os.getpid) == before


@pytest.mark.parametrize(
    "task", [work.ask_for_worker, work.secede, work.submit_from_task, work.take_lock]
)
def test_what_needs_the_dask_worker_says_what_to_do(client, task):
    error = client.submit(task).exception(LONG)
    assert isinstance(error, (ValueError, AttributeError))
    assert 'dask.annotate(executor="threads")' in error.__notes__[0]


def test_what_needs_the_dask_worker_works_in_threads(client):
    with dask.annotate(executor="threads"):
        address = client.submit(work.ask_for_worker, key="ask-in-thread")
        place = client.submit(work.submit_from_task, key="submit-in-thread")
    assert address.result(LONG) in addresses(client)
    # The task that the task submitted.
    assert in_interpreters([place.result(LONG)])


def test_distributeds_own_tasks_run_in_threads(client):
    assert client.submit(distributed.get_worker).exception(LONG) is None


@pytest.mark.packages
@pytest.mark.slow
def test_shuffle(client):
    """Dask's data frames exchange their parts with tasks that need the Dask worker."""
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"key": [n % 7 for n in range(1000)], "value": range(1000)})
    other = pd.DataFrame({"key": range(7), "name": list("abcdefg")})
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        parts = dd.from_pandas(frame, npartitions=4)
        names = dd.from_pandas(other, npartitions=2)
        merged = parts.merge(names, on="key", shuffle_method="p2p", broadcast=False)
        summed = merged.groupby("name").value.apply(work.total, meta=("value", "int64"))
        found = client.compute(summed).result(LONG)
    expected = frame.merge(other, on="key").groupby("name").value.sum()
    assert found.to_dict() == expected.to_dict()


def test_client_in_a_task(client):
    future = client.submit(work.submit_by_own_client, client.scheduler.address)
    assert future.result(LONG) == 3


def test_task_asks_to_be_rescheduled(client, tmp_path):
    assert in_interpreters([client.submit(work.reschedule_first, str(tmp_path)).result(LONG)])


def test_retries(client, tmp_path):
    calls = client.submit(work.fail_first, str(tmp_path), 2, retries=3).result(LONG)
    assert len(calls) == 3 and all(number > 0 for number in calls)
    again = tmp_path / "again"
    again.mkdir()
    error = client.submit(work.fail_first, str(again), 9, retries=1).exception(LONG)
    assert str(error) == "attempt 2"


# Stopping -----------------------------------------------------------------------------


def begin_spinning(client, folder, address, n):
    futures = [
        client.submit(work.spin, str(folder), f"begun{i}", workers=[address], pure=False)
        for i in range(n)
    ]
    wait_until(lambda: len(list(folder.glob("begun*"))) == n, LONG, "the tasks' begin")
    return futures


def test_cancelled_task_frees_its_interpreter(client, tmp_path):
    address = addresses(client)[0]
    futures = begin_spinning(client, tmp_path, address, 2)
    waiting = client.submit(work.interpreter, workers=[address], pure=False)
    client.cancel(futures)
    assert in_interpreters([waiting.result(LONG)])

    def states(dask_worker):
        pool = dask_worker.executors["subinterp"].pool
        return [worker.state for worker in pool.stats().workers]

    wait_until(
        lambda: "busy" not in str(client.run(states, workers=[address])), LONG, "idle workers"
    )


def test_released_task_is_stopped(client, tmp_path):
    address = addresses(client)[0]
    futures = begin_spinning(client, tmp_path, address, 2)
    del futures[:]  # nobody wants the results
    assert in_interpreters([client.submit(work.interpreter, workers=[address]).result(LONG)])


def test_released_task_that_is_wanted_again(client, tmp_path):
    """It may not have stopped yet when its key comes back: it must run, or run again."""
    address = addresses(client)[0]

    def submit():
        return client.submit(work.spin, str(tmp_path), "begun", workers=[address], key="again")

    for _ in range(3):
        future = submit()
        wait_until((tmp_path / "begun").exists, LONG, "the task's begin")
        # Its client's cancellation would reach the next future of the same key, too.
        future.release()
        wait_until(lambda: "again" not in client.futures, LONG, "the release")
        (tmp_path / "begun").unlink()
    future = submit()
    (tmp_path / "done").touch()
    assert future.result(LONG) == "begun"


def test_stopped_task_that_is_still_wanted_runs_again(client, tmp_path):
    address = addresses(client)[0]
    [future] = begin_spinning(client, tmp_path, address, 1)
    key = future.key
    (tmp_path / "begun0").unlink()
    stopped = client.run(
        lambda dask_worker: dask_worker.executors["subinterp"].interrupt(key),
        workers=[address],
    )
    assert stopped[address]
    wait_until((tmp_path / "begun0").exists, LONG, "its second run")
    (tmp_path / "done").touch()
    assert future.result(LONG) == "begun0"


def test_plugin_that_is_replaced_runs_its_tasks_again(client, tmp_path):
    futures = begin_spinning(client, tmp_path, addresses(client)[0], 1)
    client.register_plugin(SubinterpPlugin())
    (tmp_path / "done").touch()
    assert client.gather(futures) == ["begun0"]


def test_restart_with_tasks_that_run(client, tmp_path):
    before = set(client.run(os.getpid).values())
    futures = begin_spinning(client, tmp_path, addresses(client)[0], 2)
    client.restart(timeout=LONG)
    del futures
    places = on_each(client, work.interpreter)
    assert in_interpreters(places) and not before & {pid for pid, _ in places}


@pytest.mark.slow
def test_broken_pool_ends_the_process_and_a_nanny_starts_another(client, tmp_path):
    with plugin(client, SubinterpPlugin(max_abandoned=0, interrupt_grace=0.1)):
        address = addresses(client)[0]
        pid = client.run(os.getpid, workers=[address])[address]
        assert in_interpreters([client.submit(work.interpreter, workers=[address]).result(LONG)])
        future = client.submit(work.never_end, str(tmp_path), workers=[address])
        wait_until((tmp_path / "begun").exists, LONG, "the task's begin")
        client.cancel(future)

        def broken(dask_worker):
            return "broken" in repr(dask_worker.executors["subinterp"].pool)

        wait_until(lambda: client.run(broken, workers=[address])[address], LONG, "the break")
        # It is noticed by the next task, which has no part in it.
        later = client.submit(
            work.interpreter, workers=[address], allow_other_workers=True, pure=False
        )
        assert in_interpreters([later.result(LONG)])
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), LONG, "the process's end")
        client.wait_for_workers(2, timeout=LONG)


def test_pool_that_never_works(client):
    with plugin(client, SubinterpPlugin(initializer=work.raise_it, initargs=("at once",))):
        before = client.run(os.getpid)
        error = client.submit(work.interpreter, key="never").exception(LONG)
        assert isinstance(error, subinterp.BrokenInterpreterPool) and "at once" in str(error)
        assert client.run(os.getpid) == before


# What distributed sees ------------------------------------------------------------------


def test_resources(client):
    with dask.annotate(resources={"unit": 1}):
        futures = client.map(work.compute, [0.05] * 8, range(8), pure=False)
    runs = sorted(client.gather(futures))
    for (pid, _, end), (next_pid, start, _) in itertools.pairwise(runs):
        assert pid != next_pid or end <= start


def test_heartbeats_while_all_cores_compute(client):
    def seen():
        return client.run_on_scheduler(
            lambda dask_scheduler: {a: w.last_seen for a, w in dask_scheduler.workers.items()}
        )

    futures = client.map(work.compute, [60] * 4, range(4), pure=False)
    wait_until(lambda: sum(map(len, client.processing().values())) == 4, LONG, "their begin")
    found = {address: set() for address in addresses(client)}

    def look():
        for address, when in seen().items():
            found[address].add(when)
        return all(len(times) >= 4 for times in found.values())

    wait_until(look, LONG, "heartbeats of both workers")
    assert not any(future.done() for future in futures)
    client.cancel(futures)


def test_task_stream(client):
    with distributed.get_task_stream(client) as stream:
        future = client.submit(work.compute, 0.05, "stream")
        _, start, end = future.result(LONG)
        failed = client.submit(work.fail, "stream")
        failed.exception(LONG)
        wait_until(lambda: len(client.get_task_stream(start="1 minute")) >= 2, LONG, "the events")
    entries = {entry["key"]: entry for entry in stream.data}
    [span] = [s for s in entries[future.key]["startstops"] if s["action"] == "compute"]
    # Clocks of two processes of one machine, and distributed's estimate of their difference.
    assert abs(span["start"] - start) < 1 and abs(span["stop"] - end) < 1
    assert span["stop"] - span["start"] >= 0.05
    assert entries[future.key]["status"] == "OK" and entries[failed.key]["status"] == "error"
    assert entries[future.key]["thread"] and entries[future.key]["nbytes"] > 0


def test_metrics_of_tasks(client):
    client.submit(work.compute, 0.2, "metrics").result(LONG)

    def digests(dask_worker):
        return {k[-2]: v for k, v in dask_worker.digests_total.items() if "compute" in k}

    found = {}
    for digest in client.run(digests).values():
        found |= digest
    assert found["thread-cpu"] > 0


def test_frames_of_other_interpreters_are_left_alone(client):
    """Distributed's own sampling of frames is over where it would corrupt memory."""

    def look():
        return len(sys._current_frames())

    if sys.version_info[:3] >= _SAFE_FRAMES[sys.version_info.minor]:
        assert all(n > 0 for n in client.run(look).values())
    else:
        with pytest.raises(UnsafeFramesError, match=r"switched off in this Dask worker; use 3\.13"):
            client.run(look)
        left = client.run(lambda dask_worker: "profile" in dask_worker.periodic_callbacks)
        assert set(left.values()) == {False}


def test_log_records_reach_the_dask_worker(client):
    def listen(dask_worker):
        import logging

        class Keep(logging.Handler):
            def emit(self, record):
                dask_worker.heard.append(record.getMessage())

        dask_worker.heard = []
        logging.getLogger("tests.dask").addHandler(Keep())

    client.run(listen)
    on_each(client, work.log, "hello")
    heard = client.run(lambda dask_worker: dask_worker.heard)
    assert list(heard.values()) == [["hello"]] * 2


# Bad input --------------------------------------------------------------------------------


def test_number_of_interpreters_is_that_of_threads():
    with pytest.raises(TypeError, match="--nthreads"):
        SubinterpPlugin(max_workers=2)


def test_options_that_the_pool_does_not_take(client):
    try:
        with pytest.raises(ValueError, match="nonsense"):
            client.register_plugin(SubinterpPlugin(extensions="nonsense"))
        with pytest.raises(TypeError, match="nonsense"):
            client.register_plugin(SubinterpPlugin(nonsense=1))
        # It has taken the place of the earlier one.
        assert not in_interpreters(on_each(client, work.interpreter))
    finally:
        client.register_plugin(SubinterpPlugin())
    assert in_interpreters(on_each(client, work.interpreter))


def test_executor_of_that_name():
    worker = types.SimpleNamespace(executors={"subinterp": None})
    with pytest.raises(RuntimeError, match="has an executor 'subinterp' already"):
        SubinterpPlugin().setup(worker)


def test_in_a_subinterpreter():
    """In a process of its own: that of the tests has a scheduler, which samples frames."""
    done = run_script(
        """
        from subinterp import InterpreterPool

        def setup():
            from subinterp.integrations.dask import SubinterpPlugin

            SubinterpPlugin().setup(None)

        with InterpreterPool(1) as pool:
            print(repr(pool.submit(setup).exception()))
        """
    ).check()
    assert done.stdout.startswith("RuntimeError('this Dask worker is not in the main interpreter")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sys.modules['distributed'] = None", "which is not installed"),
        ("import distributed; distributed.__version__ = '2024.1'", "installed is 2024.1"),
    ],
)
def test_missing_or_old_package(change, message):
    done = run_script(
        f"""
        import sys
        {change}
        try:
            import subinterp.integrations.dask
        except ImportError as error:
            print(error)
        """
    ).check()
    assert message in done.stdout and "pip install 'subinterp[dask]'" in done.stdout


# Commands ---------------------------------------------------------------------------------


def dask_command(stack, *args, log):
    """Start a command of dask's, which ends with the test."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *args],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=script_env({"DASK_TEMPORARY_DIRECTORY": str(Path(log.name).parent)}),
        cwd=HERE,
        start_new_session=True,  # a nanny's processes go with it
    )

    def end():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    stack.callback(end)
    return process


NO_PORT = ("--dashboard-address", "127.0.0.1:0")  # none of its own
PRELOAD = ("--preload", "subinterp.integrations.dask")


@pytest.fixture
def commands(tmp_path):
    """Start a scheduler; yield a client of it and a function that starts Dask workers."""
    file = tmp_path / "scheduler.json"
    log = (tmp_path / "log").open("wb")
    with contextlib.ExitStack() as stack:
        stack.enter_context(log)
        scheduler = ("--host", "127.0.0.1", "--port", "0", *NO_PORT, "--no-show")
        dask_command(stack, "scheduler", *scheduler, "--scheduler-file", str(file), log=log)

        def start_worker(*options):
            folder = tmp_path / f"worker{len(list(tmp_path.glob('worker*')))}"
            folder.mkdir()
            address = json.loads(file.read_text())["address"]
            places = (address, "--local-directory", str(folder))
            more = (*NO_PORT, "--nthreads", "2", "--death-timeout", str(LONG))
            return dask_command(stack, "worker", *places, *more, *PRELOAD, *options, log=log)

        wait_until(file.exists, LONG, "the scheduler's file")
        client = stack.enter_context(Client(scheduler_file=str(file), timeout=LONG))
        try:
            yield client, start_worker
        except BaseException:
            print((tmp_path / "log").read_text(errors="replace"))
            raise


def test_killed_worker_in_the_middle_of_a_computation(commands):
    client, start_worker = commands
    start_worker("--name", "kept", "--no-nanny")
    lost = start_worker("--name", "lost", "--no-nanny")
    client.wait_for_workers(2, timeout=LONG)
    futures = client.map(work.compute, [0.05] * 40, range(40))
    total = client.submit(len, futures)
    wait_until(lambda: sum(f.done() for f in futures) >= 8, LONG, "the first results")
    assert not total.done()
    os.killpg(lost.pid, signal.SIGKILL)
    assert total.result(LONG) == 40
    # Results that the lost worker had kept were computed again.
    assert {pid for pid, _, _ in client.gather(futures)} != {lost.pid}
    assert in_interpreters(on_each(client, work.interpreter))


def test_nanny_starts_a_killed_process_with_the_preload(commands):
    client, start_worker = commands
    start_worker("--subinterp-by-annotation", "--subinterp-grace", "0.5")
    client.wait_for_workers(1, timeout=LONG)

    def places():
        plain = client.submit(work.interpreter, pure=False)
        with dask.annotate(executor="subinterp"):
            return plain.result(LONG), client.submit(work.interpreter, pure=False).result(LONG)

    (pid, number), chosen = places()
    assert number == 0 and chosen[1] > 0
    [before] = addresses(client)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: before not in addresses(client), LONG, "the process's end")
    client.wait_for_workers(1, timeout=LONG)
    (other, number), chosen = places()
    assert other != pid and number == 0 and chosen[1] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--subinterp-grace", "-1"), "--subinterp-grace"),
        (("--subinterp-extensions", "nonsense"), "nonsense"),
        (("--subinterp-nonsense",), "--subinterp-nonsense"),
    ],
)
def test_options_of_the_preload(options, message):
    done = subprocess.run(
        [sys.executable, "-m", "dask", "worker", "127.0.0.1:1", *PRELOAD, *options],
        env=script_env(),
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 2 and message in done.stderr
