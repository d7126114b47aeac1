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
from _support import fresh_interpreter, interpreter_ids, run_script, wait_until
from _work import Gate, Point, add, capture, identity, interpreter_id
from subinterp import SharedBuffer, create_channel, interpreters

LONG = 60


@pytest.fixture
def interp():
    with fresh_interpreter(interpreters) as interp:
        yield interp


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


# As in concurrent.interpreters ------------------------------------------------------------


def test_everything_of_the_standard_is_there():
    standard = pytest.importorskip("concurrent.interpreters", reason="new in 3.14")
    for name in standard.__all__:
        assert hasattr(interpreters, name)
    for name in vars(standard.Interpreter):
        if not name.startswith("_"):
            assert hasattr(interpreters.Interpreter, name)
    for name in vars(standard.Queue):
        if not name.startswith("_"):
            assert hasattr(interpreters.Queue, name)


def test_create_fails():
    from subinterp import _core

    _core._fail_interpreters(1000)
    try:
        with pytest.raises(interpreters.InterpreterError):
            interpreters.create()
    finally:
        _core._fail_interpreters(0)
    interpreters.create().close()


def test_by_number(interp):
    assert interpreters.Interpreter(interp.id) is interp
    assert interpreters.Interpreter(0) is interpreters.get_main() is interpreters.get_current()
    for id in (10**9, 2**63, 2**100):
        with pytest.raises(interpreters.InterpreterNotFoundError, match=str(id)):
            interpreters.Interpreter(id)
    with pytest.raises(ValueError, match="negative"):
        interpreters.Interpreter(-1)
    for id in ("0", 0.0, None):
        with pytest.raises(TypeError, match="id must be an int"):
            interpreters.Interpreter(id)


def test_usable_from_everywhere(interp):
    """Another interpreter runs code in it, looks at it and closes it."""
    other = interpreters.create()
    other.prepare_main(interp=interp)
    other.exec("""
        from subinterp import interpreters
        assert interp is interpreters.Interpreter(interp.id)
        assert interp.whence == "_interpreters module" and not interp.is_running()
        assert interp.call(divmod, 7, 2) == (3, 1)
        interp.exec("x = 5")
        try:
            interpreters.get_current().close()
        except interpreters.InterpreterError:
            pass
        else:
            assert False
    """)
    interp.exec("assert x == 5")
    other.exec("interp.close()")
    for call in (interp.close, interp.is_running, lambda: interp.exec("1")):
        with pytest.raises(interpreters.InterpreterNotFoundError):
            call()
    assert interp.id not in interpreter_ids()
    other.close()


def test_it_lives_as_long_as_somebody_has_it():
    interp, other = interpreters.create(), interpreters.create()
    id = interp.id
    other.prepare_main(kept=interp)
    interp.exec("x = 1")
    del interp
    gc.collect()
    assert id in [i.id for i in interpreters.list_all()]
    other.exec("kept.exec('assert x == 1')")
    other.exec("del kept")
    gc.collect()
    wait_until(lambda: id not in interpreter_ids(), what="the end of a forgotten interpreter")
    other.close()


def test_one_made_inside_outlives_its_maker(interp):
    interp.exec("from subinterp import interpreters; made = interpreters.create()")
    made = interpreters.Interpreter(interp.call(eval, "made.id"))
    made.exec("x = 1")
    interp.close()
    made.exec("assert x == 1")
    made.close()


def test_the_end_of_an_interpreter_lets_go_of_others(interp):
    interp.exec("from subinterp import interpreters; made = interpreters.create()")
    id = interp.call(eval, "made.id")
    interp.close()
    wait_until(lambda: id not in interpreter_ids(), what="the end of one that nobody has")


def test_closing_from_one_that_it_made(interp):
    """Neither waits for the other."""
    interp.exec("from subinterp import interpreters; made = interpreters.create()")
    made = interpreters.Interpreter(interp.call(eval, "made.id"))
    made.prepare_main(maker=interp)
    made.exec("maker.close()")
    made.exec("x = 1")
    made.close()


def test_is_running_in_itself(interp):
    interp.exec("""
        from subinterp import interpreters
        assert interpreters.get_current().is_running()
        try:
            interpreters.get_current().exec("1")
        except interpreters.InterpreterError as error:
            assert "running" in str(error)
        else:
            assert False
    """)
    assert not interp.is_running()


def test_standard_interpreters_are_usable():
    """Those that the standard library made can be run and closed, whoever made them."""
    id = _interpreters.create()
    foreign = interpreters.Interpreter(id)
    assert foreign.whence == "_interpreters module"
    foreign.prepare_main(a=1)
    foreign.exec("b = a + 1")
    foreign.exec(compile("assert b == 2", "", "exec"))
    with pytest.raises(interpreters.ExecutionFailed, match="ZeroDivisionError") as caught:
        foreign.exec("1 / 0")
    assert caught.value.excinfo.type.__name__ == "ZeroDivisionError"
    assert caught.value.exception is None
    with pytest.raises(interpreters.NotShareableError):
        foreign.prepare_main(lock=threading.Lock())
    if sys.version_info >= (3, 14):
        assert foreign.call(pow, 2, 5) == 32
    foreign.close()
    for call in (foreign.close, foreign.is_running, lambda: foreign.exec("1")):
        with pytest.raises(interpreters.InterpreterNotFoundError):
            call()


def test_standard_objects_and_ours_keep_an_interpreter():
    standard = pytest.importorskip("concurrent.interpreters", reason="new in 3.14")
    theirs = standard.create()
    ours = interpreters.Interpreter(theirs.id)
    del theirs
    gc.collect()
    ours.exec("x = 1")
    id = ours.id
    del ours
    gc.collect()
    assert id not in interpreter_ids()


def test_workers_are_not_to_be_used(pool):
    worker = interpreters.Interpreter(pool.submit(interpreter_id).result(LONG))
    assert worker.whence == "C-API"
    for call in (
        worker.close,
        lambda: worker.exec("1"),
        lambda: worker.call(add, 1, 2),
        lambda: worker.prepare_main(a=1),
    ):
        with pytest.raises(interpreters.InterpreterError, match="unrecognized"):
            call()


def test_exec_of_a_function(interp):
    """Its globals are those of `__main__` there, as of any script."""

    def script():
        global seen
        seen = (__name__, marker)  # noqa: F821

    interp.prepare_main(marker=5)
    interp.exec(script)
    interp.exec("assert seen == ('__main__', 5)")
    offset = 1
    interp.exec(lambda: offset + 1)  # by value


def test_bad_code(interp):
    def takes(a):
        return a

    with pytest.raises(ValueError, match="args"):
        interp.exec(takes.__code__)
    with pytest.raises(ValueError, match="enclosing"):
        interp.exec((lambda: takes).__code__)

    async def coroutine():
        pass

    for code in (coroutine, coroutine.__code__):
        with pytest.raises(ValueError, match="coroutine"):
            interp.exec(code)
    for text in ("def (", b"def ("):
        with pytest.raises(SyntaxError):
            interp.exec(text)
    interp.exec(b"x = '\xc3\xa9'; assert len(x) == 1")
    with pytest.raises(TypeError, match="callable"):
        interp.call("text")


def test_call_of_a_function_that_is_only_code(interp):
    """It has the names of `__main__` there for its globals."""

    def set_name(name, value):
        globals()[name] = value

    def look_up(*names, **more):
        return [globals().get(name) for name in names], more

    interp.call(set_name, "spam", 42)
    assert interp.call(look_up, "spam", "__name__", k=1) == ([42, "__main__"], {"k": 1})
    with pytest.raises(interpreters.NotShareableError, match=r"args\[1\]"):
        interp.call(set_name, "spam", threading.Lock())
    assert not interp.is_running()


def test_call_of_builtins_that_look_around(interp):
    interp.prepare_main(spam=1)
    assert "spam" in interp.call(dir)
    assert interp.call(eval, "spam + 1") == 2
    interp.call(exec, "spam = 3")
    assert interp.call(eval, "spam") == 3
    assert interp.call(eval, "a", {"a": 5}) == 5
    assert interp.call(vars)["spam"] == 3
    assert "append" in interp.call(dir, [])


def test_results_that_cannot_be_sent(interp):
    with pytest.raises(interpreters.NotShareableError, match="result"):
        interp.call(_work.return_unsendable)
    assert interp.call(add, 1, 2) == 3


@pytest.mark.parametrize(
    ("names", "error"),
    [({}, ValueError), ({1: 2}, TypeError), ({"a\0": 1}, ValueError), (5, TypeError)],
)
def test_prepare_main_bad_names(interp, names, error):
    with pytest.raises(error):
        interp.prepare_main(names)
    assert not interp.is_running()


def test_excinfo(interp):
    with pytest.raises(interpreters.ExecutionFailed) as caught:
        interp.call(_work.fail, _work.PlainError, "text")
    failed = caught.value
    assert failed.excinfo.type.__qualname__ == "PlainError"
    assert failed.excinfo.type.__module__ == "_work"
    assert failed.excinfo.msg == "text"
    assert failed.excinfo.formatted == "_work.PlainError: text"
    assert failed.excinfo.errdisplay.endswith("PlainError: text")
    assert "Uncaught in the interpreter" in str(failed)
    assert type(failed.exception) is _work.PlainError
    assert failed.__cause__ is None


def test_failures_can_be_sent(interp):
    other = interpreters.create()
    interp.prepare_main(other=other)
    with pytest.raises(interpreters.ExecutionFailed) as caught:
        interp.exec("other.exec('1 / 0')")
    assert caught.value.excinfo.type.__name__ == "ExecutionFailed"
    assert isinstance(caught.value.exception, interpreters.ExecutionFailed)
    assert "ZeroDivisionError" in str(caught.value)
    other.close()


def test_call_in_thread_begins_at_once():
    """At the end of the program it is waited for, however late its thread starts."""
    result = run_script(
        """
        from subinterp import interpreters

        def work():
            import time
            time.sleep(0.3)
            print("done", flush=True)

        interpreters.create().call_in_thread(work)
        """
    ).clean()
    assert result.stdout == "done\n"


def test_in_the_child_of_a_fork():
    result = run_script(
        """
        import os
        from subinterp import interpreters
        interp = interpreters.create()
        pid = os.fork()
        if pid == 0:
            for call in (lambda: interp.exec("1"), interp.close, interp.is_running):
                try:
                    call()
                except interpreters.InterpreterNotFoundError as error:
                    assert "fork" in str(error), error
                else:
                    os._exit(2)
            own = interpreters.create()
            own.exec("x = 1")
            own.close()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        interp.exec("x = 1")
        """
    ).check()
    assert result.stdout == "0\n"


def test_tasks_use_interpreters_to_the_end_of_the_program():
    result = run_script(
        """
        import time
        from subinterp import InterpreterPool, interpreters
        pool = InterpreterPool(1)
        interp = interpreters.create()

        def work(interp):
            time.sleep(0.3)
            interp.exec("print('used', flush=True)")
            made = interpreters.create()
            made.exec("print('made', flush=True)")

        pool.submit(work, interp)
        """
    ).clean()
    assert result.stdout == "used\nmade\n"
