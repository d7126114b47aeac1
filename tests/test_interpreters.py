"""subinterp.interpreters: the module of PEP 734, in our hands."""

from __future__ import annotations

import _interpreters
import gc
import os
import sys
import threading
import time

import pytest

import _work
import subinterp
from _support import interpreter_ids, run_script, wait_until
from _work import Gate, Point, add, capture, identity, interpreter_id
from subinterp import SharedBuffer, create_channel, interpreters

LONG = 60


@pytest.fixture
def interp():
    interp = interpreters.create()
    yield interp
    try:
        interp.close()
    except interpreters.InterpreterNotFoundError:
        pass  # the test closed it


# The module ---------------------------------------------------------------------------


def test_public_names():
    for name in ("create", "list_all", "get_current", "get_main", "is_shareable", "Interpreter"):
        assert hasattr(interpreters, name)
    assert issubclass(interpreters.InterpreterNotFoundError, interpreters.InterpreterError)
    assert issubclass(interpreters.ExecutionFailed, interpreters.InterpreterError)
    assert issubclass(interpreters.InterpreterError, Exception)


def test_create(interp):
    assert isinstance(interp, interpreters.Interpreter)
    assert isinstance(interp.id, int)
    assert interp.id in interpreter_ids()
    assert interp.id != interpreters.get_main().id
    assert interp in interpreters.list_all()
    assert str(interp.id) in repr(interp)


def test_create_many():
    made = [interpreters.create() for _ in range(5)]
    assert len({interp.id for interp in made}) == 5
    for interp in made:
        interp.close()


def test_current_and_main():
    main = interpreters.get_main()
    assert main.id == 0
    assert interpreters.get_current() == main
    assert interpreters.get_current().id == 0
    assert main in interpreters.list_all()


def test_list_all(interp):
    other = interpreters.create()
    ids = [i.id for i in interpreters.list_all()]
    assert {0, interp.id, other.id} <= set(ids)
    assert len(ids) == len(set(ids))
    other.close()
    assert other.id not in [i.id for i in interpreters.list_all()]


def test_list_all_shows_foreign_interpreters():
    foreign = _interpreters.create()
    try:
        [found] = [i for i in interpreters.list_all() if i.id == foreign]
        assert not found.is_running()
    finally:
        _interpreters.destroy(foreign)


def test_list_all_shows_workers(pool):
    workers = set(pool.broadcast(interpreter_id))
    assert workers <= {i.id for i in interpreters.list_all()}


def test_equality_and_hash(interp):
    [same] = [i for i in interpreters.list_all() if i.id == interp.id]
    assert same == interp and hash(same) == hash(interp)
    assert interp != interpreters.get_main()
    assert len({interp, same, interpreters.get_main()}) == 2


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (None, True),
        (True, True),
        (5, True),
        (1.5, True),
        ("text", True),
        (b"bytes", True),
        ((1, "a"), True),
        (memoryview(b"x"), True),
    ],
)
def test_is_shareable(obj, expected):
    assert interpreters.is_shareable(obj) is expected


def test_is_shareable_of_unsendable():
    assert interpreters.is_shareable(threading.Lock()) is False


def test_is_shareable_of_our_own():
    recv, send = create_channel()
    assert interpreters.is_shareable(recv) and interpreters.is_shareable(send)
    assert interpreters.is_shareable(SharedBuffer(5))


# exec -----------------------------------------------------------------------------------


def test_exec(interp, tmp_path):
    path = tmp_path / "out"
    assert interp.exec(f"open({str(path)!r}, 'w').write('x' * 3)") is None
    assert path.read_text() == "xxx"


def test_exec_keeps_main(interp):
    interp.exec("x = 1")
    interp.exec("x += 1")
    interp.exec("assert x == 2 and __name__ == '__main__'")


def test_exec_dedents(interp):
    interp.exec("""
        value = 5
        if value:
            value += 1
    """)
    interp.exec("assert value == 6")


def test_exec_is_isolated(interp):
    interp.exec("import _work; _work.STATE = 'changed there'")
    assert _work.STATE == "unset"


def test_exec_knows_the_path_of_its_maker(interp):
    interp.exec("import _work")


def test_exec_failure(interp):
    with pytest.raises(interpreters.ExecutionFailed) as caught:
        interp.exec("1 / 0")
    assert "ZeroDivisionError" in str(caught.value)
    assert "division by zero" in str(caught.value)
    excinfo = caught.value.excinfo
    assert excinfo.type.__name__ == "ZeroDivisionError"
    assert "division by zero" in excinfo.msg
    interp.exec("pass")  # it goes on


def test_exec_syntax_error(interp):
    with pytest.raises((interpreters.ExecutionFailed, SyntaxError)):
        interp.exec("def (")
    interp.exec("pass")


@pytest.mark.parametrize("code", [None, 5, ["x"]])
def test_exec_wrong_type(interp, code):
    with pytest.raises(TypeError):
        interp.exec(code)


def test_exec_system_exit(interp):
    with pytest.raises(interpreters.ExecutionFailed):
        interp.exec("import sys; sys.exit(3)")
    interp.exec("pass")


def test_exec_output(interp, capfd):
    interp.exec("print('from inside')")
    assert "from inside" in capfd.readouterr().out


def test_exec_in_closed(interp):
    interp.close()
    with pytest.raises(interpreters.InterpreterNotFoundError):
        interp.exec("pass")


# call ------------------------------------------------------------------------------------


def test_call(interp):
    assert interp.call(add, 1, 2) == 3
    assert interp.call(capture, 1, k=2) == ((1,), {"k": 2})
    assert interp.call(interpreter_id) == interp.id
    assert interp.call(identity, Point(1, 2)) == Point(1, 2)
    assert interp.call(identity, None) is None


def test_call_by_value(interp):
    offset = 10
    assert interp.call(lambda x: x + offset, 5) == 15


def test_call_keeps_state(interp):
    interp.call(_work.set_state, "kept")
    assert interp.call(_work.get_state) == "kept"
    interp.exec("import _work; assert _work.STATE == 'kept'")


def test_call_failure(interp):
    """The exception arrives as itself, as it does from a pool, or as PEP 734 has it."""
    with pytest.raises((_work.PlainError, interpreters.ExecutionFailed)) as caught:
        interp.call(_work.fail, _work.PlainError, "text")
    assert "text" in str(caught.value)
    assert interp.call(add, 1, 2) == 3


def test_call_unsendable(interp):
    with pytest.raises(subinterp.NotSendableError, match=r"args\[0\]\[1\]"):
        interp.call(identity, [1, threading.Lock()])
    with pytest.raises((subinterp.NotSendableError, interpreters.ExecutionFailed), match="lock"):
        interp.call(_work.return_unsendable)
    assert interp.call(add, 1, 2) == 3


def test_call_not_callable(interp):
    with pytest.raises(TypeError):
        interp.call(5)


def test_call_big_data(interp):
    data = bytes(range(256)) * 10_000
    assert interp.call(identity, data) == data
    buf = SharedBuffer(10)
    interp.call(_work.poke, buf, 1, 5)
    assert memoryview(buf)[1] == 5


def test_call_from_many_threads(interp):
    """One call at a time, whoever makes them; who comes second waits or is told."""
    results = []

    def call(*args):
        while True:
            try:
                return interp.call(*args)
            except interpreters.InterpreterError as error:
                if "running" not in str(error):
                    raise
                time.sleep(0.001)

    def work(base):
        results.extend(call(add, base, n) for n in range(50))

    threads = [threading.Thread(target=work, args=(n * 100,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert sorted(results) == sorted(n * 100 + k for n in range(4) for k in range(50))


def test_call_leaves_the_callers_lock(interp):
    """While an interpreter works, the caller's other threads run."""
    with Gate() as gate:
        thread = threading.Thread(target=interp.call, args=(gate.wait,))
        thread.start()
        time.sleep(0.02)
        assert thread.is_alive()
        gate.set()
        thread.join(LONG)
        assert not thread.is_alive()


# call_in_thread ---------------------------------------------------------------------------


def test_call_in_thread(interp):
    with Gate() as started, Gate() as gate:
        thread = interp.call_in_thread(_work.pass_gate, gate, None, started)
        assert isinstance(thread, threading.Thread)
        assert started.wait(LONG)
        assert thread.is_alive()
        assert interp.is_running()
        gate.set()
        thread.join(LONG)
        assert not thread.is_alive()
        wait_until(lambda: not interp.is_running())


def test_call_in_thread_side_effects(interp):
    recv, send = create_channel()
    interp.call_in_thread(_work.send_all, send, [1, 2]).join(LONG)
    assert [recv.recv(LONG), recv.recv(LONG)] == [1, 2]


def test_call_in_thread_failure_is_reported(interp):
    """It ends in threading.excepthook, as in any thread."""
    seen = []
    before = threading.excepthook
    threading.excepthook = lambda args: seen.append(args.exc_value)
    try:
        interp.call_in_thread(_work.fail, ValueError, "lost in a thread").join(LONG)
    finally:
        threading.excepthook = before
    assert len(seen) == 1
    assert "lost in a thread" in str(seen[0])


# prepare_main -------------------------------------------------------------------------------


def test_prepare_main(interp):
    interp.prepare_main({"a": 1}, b="two", c=b"three")
    interp.exec("assert (a, b, c) == (1, 'two', b'three')")
    interp.prepare_main(a=10)
    interp.exec("assert a == 10 and b == 'two'")
    interp.prepare_main({"ns": 5})
    interp.exec("assert ns == 5")
    interp.prepare_main(ns=6)
    interp.exec("assert ns == 6")


def test_prepare_main_any_object(interp):
    interp.prepare_main(point=Point(1, 2), items=[1, {"k": (2,)}], buf=SharedBuffer(5))
    interp.exec("assert point.x == 1 and items == [1, {'k': (2,)}] and len(buf) == 5")


def test_prepare_main_unsendable(interp):
    with pytest.raises((subinterp.NotSendableError, interpreters.InterpreterError)):
        interp.prepare_main(good=1, bad=threading.Lock())
    with pytest.raises(interpreters.ExecutionFailed):
        interp.exec("bad")


def test_prepare_main_shared_buffer(interp):
    buf = SharedBuffer(10)
    interp.prepare_main(buf=buf)
    interp.exec("memoryview(buf)[3] = 9")
    assert memoryview(buf)[3] == 9


# is_running, close ---------------------------------------------------------------------------


def test_is_running(interp):
    assert not interp.is_running()
    assert interpreters.get_main().is_running()
    assert interpreters.get_current().is_running()


def test_close(interp):
    interp.close()
    assert interp.id not in interpreter_ids()
    for attempt in (
        interp.close,
        lambda: interp.exec("pass"),
        lambda: interp.call(add, 1, 2),
        interp.is_running,
        lambda: interp.prepare_main(a=1),
    ):
        with pytest.raises(interpreters.InterpreterNotFoundError):
            attempt()


def test_close_while_running(interp):
    with Gate() as started, Gate() as gate:
        thread = interp.call_in_thread(_work.pass_gate, gate, None, started)
        assert started.wait(LONG)
        with pytest.raises(interpreters.InterpreterError):
            interp.close()
        assert interp.id in interpreter_ids()
        gate.set()
        thread.join(LONG)
    wait_until(lambda: not interp.is_running())
    interp.close()


def test_close_main_and_current():
    with pytest.raises(interpreters.InterpreterError):
        interpreters.get_main().close()
    with pytest.raises(interpreters.InterpreterError):
        interpreters.get_current().close()


def test_a_worker_cannot_be_closed_from_outside(pool):
    worker = pool.submit(interpreter_id).result(LONG)
    [interp] = [i for i in interpreters.list_all() if i.id == worker]
    with pytest.raises(interpreters.InterpreterError):
        interp.close()
    assert pool.submit(add, 1, 2).result(LONG) == 3


def test_forgotten_interpreter_is_collected():
    interp = interpreters.create()
    id = interp.id
    interp.exec("x = 1")
    del interp
    gc.collect()
    wait_until(lambda: id not in interpreter_ids(), what="the end of a forgotten interpreter")


def test_two_handles_of_one_interpreter():
    interp = interpreters.create()
    [other] = [i for i in interpreters.list_all() if i.id == interp.id]
    del interp
    gc.collect()
    other.exec("pass")
    other.close()


def test_run_and_close_race():
    """Threads that run, close and create never crash; they win or get a clear error."""

    def once():
        interp = interpreters.create()
        errors = []

        def run():
            try:
                interp.exec("sum(range(100))")
            except interpreters.InterpreterError as error:
                errors.append(error)

        def close():
            try:
                interp.close()
            except interpreters.InterpreterError as error:
                errors.append(error)

        threads = [threading.Thread(target=target) for target in (run, close, run, close)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
        try:
            interp.close()
        except interpreters.InterpreterNotFoundError:
            pass
        assert interp.id not in interpreter_ids()

    for _ in range(15):
        once()


def test_create_from_many_threads():
    made = []

    def work():
        for _ in range(3):
            interp = interpreters.create()
            interp.exec("x = 1")
            made.append(interp.id)
            interp.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(set(made)) == 12


# From inside -------------------------------------------------------------------------------------


def test_interpreters_in_a_worker(pool):
    def work():
        from subinterp import interpreters

        current = interpreters.get_current().id
        interp = interpreters.create()
        try:
            inner = interp.call(lambda: __import__("_work").interpreter_id())
            interp.exec("x = 1")
        finally:
            interp.close()
        return current, interpreters.get_main().id, inner, interp.id

    current, main, inner, made = pool.submit(work).result(LONG)
    assert current in pool.broadcast(interpreter_id)
    assert main == 0
    assert inner == made != current


def test_exec_uses_the_channel(interp):
    recv, send = create_channel()
    interp.prepare_main(send=send)
    interp.exec("for n in range(3): send.send(n)")
    assert [recv.recv(LONG) for _ in range(3)] == [0, 1, 2]


def test_own_lock(interp):
    """Two interpreters compute at the same time: each waits for the other's sign."""
    with Gate() as a, Gate() as b:
        thread = interp.call_in_thread(_work.meet, a, b)
        assert _work.meet(b, a)
        thread.join(LONG)


def test_environment(interp):
    assert interp.call(_work.get_path) == sys.path
    assert interp.call(_work.process_id) == os.getpid()


def test_left_open_at_exit():
    result = run_script(
        """
        from subinterp import interpreters
        interps = [interpreters.create() for _ in range(3)]
        for interp in interps:
            interp.exec("x = [1]")
        print("end")
        """
    ).check()
    assert result.stdout == "end\n"


def test_running_at_exit():
    result = run_script(
        """
        import time
        from subinterp import interpreters
        interp = interpreters.create()
        interp.call_in_thread(time.sleep, 0.5)
        print("end", flush=True)
        """
    ).check()
    assert result.stdout == "end\n"
