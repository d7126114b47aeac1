"""NumPy's arrays, frames and Arrow data on their way; what lies in shared memory."""

from __future__ import annotations

import array
import contextlib
import datetime
import decimal
import gc
import os
import pickle
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import subinterp
from _support import run_script, wait_until
from _work import (
    array_address,
    array_facts,
    array_kept_facts,
    array_made,
    array_shared,
    array_sum,
    array_write,
    drop_kept,
    frame_equals,
    frame_text,
    identity,
    keep,
    modules_loaded,
)
from subinterp import NotSendableError, SharedBuffer, _core, interpreters, share

np = pytest.importorskip("numpy", reason="needs numpy")

pytestmark = [
    # polars and pyarrow start threads of their own when they are first used, and polars an event
    # loop with them.
    pytest.mark.leaks("threads", "files"),
]

LONG = 120
BIG = 64 * 2**20  # bytes: enough to be seen in the memory of the process


def call(pool, fn, /, *args, **kwargs):
    return pool.submit(fn, *args, **kwargs).result(LONG)


@pytest.fixture(scope="module")
def shared_pool():
    """Workers that have loaded NumPy, if workers can here."""
    missing = _core.extensions_unsupported()
    if missing:
        pytest.skip(f"workers cannot load NumPy here: {missing}")
    with subinterp.InterpreterPool(2) as pool:
        pool.broadcast(array_sum, np.ones(3))
        pool.broadcast(lambda: None)
        yield pool


@pytest.fixture
def hand_over():
    """A function that sends an object through a channel, to ourselves."""
    recv, send = subinterp.create_channel()
    with recv, send:

        def hand(obj):
            send.send(obj)
            return recv.recv(timeout=LONG)

        yield hand


class Sub(np.ndarray):
    """Nothing of its own."""


class Stateful(np.ndarray):
    """Pickles itself."""

    def __reduce__(self):
        return stateful_from, (self.tolist(), getattr(self, "unit", None))


def stateful_from(items, unit):
    made = np.array(items).view(Stateful)
    made.unit = unit
    return made


def arrays():
    a = np.arange(48.0)
    cube = a.reshape(2, 3, 8)
    fixed = a.copy()
    fixed.flags.writeable = False
    pairs = np.zeros(8, [("i", "i4"), ("x", "f8")])
    pairs["x"] = range(8)
    dates = np.arange(20).astype("M8[ns]")
    return {
        "C order": a.reshape(6, 8),
        "Fortran order": np.asfortranarray(a.reshape(6, 8)),
        "axes exchanged": cube.transpose(1, 0, 2),
        "every second": a[::2],
        "backwards": a[::-1],
        "block": a.reshape(6, 8)[1:4, 2:7],
        "gaps and axes exchanged": cube[:, :, ::2].transpose(1, 0, 2),
        "broadcast": np.broadcast_to(a, (3, 48)),
        "read-only": fixed,
        "read-only with gaps": fixed[::3],
        "no axes": np.array(3.0),
        "empty": np.zeros((0, 3)),
        "empty with gaps": np.zeros((3, 0, 4))[:, :, ::2],
        "dates": dates,
        "dates with gaps": dates[::3],
        "durations": dates.view("m8[ns]").reshape(4, 5).T,
        "one date": np.array("2020-01-01", "M8[D]"),
        "records": pairs,
        "records with gaps": pairs[::2],
        "a field of records": pairs["x"],
        "record array": np.rec.array(pairs),
        "matrix": a.reshape(6, 8).view(np.matrix),
        "subclass": a.view(Sub),
        "subclass with gaps": a[::3].view(Sub),
        "other byte order": a.astype(">f8"),
        "text": np.array(["a", "bcd", "e"]),
        "text with gaps": np.array(["a", "bcd", "e"])[::2],
        "bytes": np.array([b"ab", b"c"]),
        "no bytes": np.zeros(3, "S0"),
        "raw": np.zeros(3, "V5"),
        "bools": np.array([True, False]),
        "half": np.arange(5, dtype="f2"),
        "long double": np.arange(6, dtype="g")[::2],
        "complex": np.arange(6)[::2] * 1j,
        "large": np.arange(2**18).reshape(512, 512)[::2, ::2],
    }


@pytest.mark.parametrize("name", arrays())
def test_arrays_arrive_as_from_a_pickle(hand_over, shared_pool, name):
    sent = arrays()[name]
    buffers = []
    data = pickle.dumps(sent, 5, buffer_callback=buffers.append)
    pickled = pickle.loads(data, buffers=buffers)
    expected = array_facts(pickled)
    assert array_facts(hand_over(sent)) == expected
    back = call(shared_pool, identity, sent)
    assert array_facts(back)[:3] == expected[:3] and array_facts(back)[-1] == expected[-1]
    assert call(shared_pool, array_facts, sent) == expected
    assert back.flags.aligned


def test_byte_order_of_arrays_with_gaps_stays(hand_over):
    sent = np.arange(6).astype(">f8")[::2]
    back = hand_over(sent)
    assert back.dtype == sent.dtype and back.tolist() == [0, 2, 4]


def test_masked_arrays(hand_over, shared_pool):
    sent = np.ma.array(np.arange(6.0), mask=[0, 1, 0, 0, 1, 0], fill_value=7)
    for back in (hand_over(sent), call(shared_pool, identity, sent), hand_over(sent[::2])[...]):
        assert type(back) is np.ma.MaskedArray and back.fill_value == 7
        assert back.tolist() == (sent if back.size == 6 else sent[::2]).tolist()
        back[1] = 5  # it can be written, mask and all
        assert back[1] == 5
    assert hand_over(np.ma.array([1, 2])).tolist() == [1, 2]


def test_arrays_of_objects(hand_over, shared_pool):
    sent = np.array([1, "x", None, (2, 3)], dtype=object)
    assert hand_over(sent).tolist() == sent.tolist()
    assert call(shared_pool, identity, sent[::2]).tolist() == [1, None]
    mixed = np.array([(1, "a")], dtype="i4,O")
    assert hand_over(mixed).tolist() == [(1, "a")]
    strings = np.array(["a", "b" * 100], dtype=np.dtypes.StringDType())
    assert call(shared_pool, identity, strings).tolist() == strings.tolist()


def test_a_subclass_that_pickles_itself(hand_over):
    sent = np.arange(4).view(Stateful)
    sent.unit = "metres"
    back = hand_over(sent)
    assert type(back) is Stateful and back.unit == "metres" and back.tolist() == [0, 1, 2, 3]


def test_memmap(hand_over, shared_pool, tmp_path):
    sent = np.memmap(tmp_path / "data", dtype="f8", mode="w+", shape=(10,))
    sent[:] = range(10)
    assert call(shared_pool, array_sum, sent) == 45
    back = hand_over(sent)
    assert type(back) is type(pickle.loads(pickle.dumps(sent)))
    back[0] = 5
    assert sent[0] == 0


def test_identity_within_a_message(hand_over):
    a = np.arange(10)[::2]
    back = hand_over([a, {"a": a}])
    assert back[0] is back[1]["a"]


def test_what_arrives_is_the_receivers_own(hand_over, shared_pool):
    sent = np.zeros(100)
    back = hand_over(sent)
    back[0] = 1
    call(shared_pool, array_write, sent, 5.0)
    assert not sent.any()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_view(hand_over, data):
    """Slices and exchanged axes of plain and of shared arrays."""
    shape = tuple(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)))
    dtype = data.draw(st.sampled_from(["u1", "f8", "M8[s]", "i4,f8", "S3"]))
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    content = np.frombuffer(os.urandom(size), "u1")
    shared = SharedBuffer(size)
    memoryview(shared)[:] = content.tobytes()
    numbers = st.one_of(st.none(), st.integers(-7, 7))
    slices = tuple(
        slice(data.draw(numbers), data.draw(numbers), data.draw(numbers.filter(lambda n: n != 0)))
        for _ in shape
    )
    axes = data.draw(st.permutations(range(len(shape))))
    plain = content.view(dtype).reshape(shape)[slices].transpose(axes) if size else None
    view = shared.asarray(dtype, shape)[slices].transpose(axes)
    back = hand_over(view)
    if view.size:
        assert array_facts(back) == array_facts(view)
        assert array_address(back) == array_address(view)
    else:
        assert back.shape == view.shape and back.dtype == view.dtype
    if plain is not None:
        got = hand_over(plain)
        assert got.tobytes() == plain.tobytes() and got.shape == plain.shape
        assert got.dtype == plain.dtype


# One copy -----------------------------------------------------------------------------


@contextlib.contextmanager
def copied_at_most(nbytes):
    """Fail if the process ever holds that much more memory than at the start."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here

    def status(key):
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if key in x)
        return int(line.split()[1]) * 1024

    before = status("VmRSS")
    yield
    grown = status("VmHWM") - before
    assert grown < nbytes, f"{grown / 2**20:.0f} MB"


def large(kind):
    """BIG bytes in an object of that kind."""
    n = BIG // 8
    numbers = np.arange(n, dtype="f8")
    if kind == "C order":
        return numbers
    if kind == "Fortran order":
        return np.asfortranarray(numbers.reshape(1024, -1))
    if kind == "gaps":
        return np.arange(2 * n, dtype="f8")[::2]
    if kind == "dates":
        return numbers.view("M8[ns]")
    if kind == "records":
        return numbers.view([("a", "i4"), ("b", "f4")])
    if kind == "subclass":
        return numbers.view(Sub)
    if kind == "masked":
        return np.ma.array(numbers, mask=False)
    if kind == "in a list":
        return [numbers[: n // 2], {"x": numbers[n // 2 :]}]
    library, _, what = kind.partition(" ")
    module = pytest.importorskip(library, reason=f"needs {library}")
    if kind == "pandas":
        return module.DataFrame({"a": numbers}, copy=False)
    if kind == "pandas dates":
        return module.DataFrame({"a": numbers.view("M8[ns]")}, copy=False)
    if kind == "pyarrow":
        return module.table({"a": numbers})
    if kind == "polars":
        return module.DataFrame({"a": numbers})
    if kind == "polars chunks":
        half = module.DataFrame({"a": numbers[: n // 2]})
        return module.concat([half, half], rechunk=False)
    assert what == "text"
    return module.DataFrame({"a": [f"this is number {i} of a few" for i in range(n // 8)]})


LARGE = (
    "C order", "Fortran order", "gaps", "dates", "records", "subclass", "masked", "in a list",
    "pandas", "pandas dates", "pyarrow", "polars", "polars chunks", "polars text",
)  # fmt: skip


@pytest.mark.parametrize("kind", LARGE)
def test_one_copy(hand_over, kind):
    sent = large(kind)
    hand_over(sent)  # what the way needs besides is there now
    with copied_at_most(1.5 * BIG):
        back = hand_over(sent)
    assert type(back) is type(sent)


@pytest.mark.parametrize("kind", ["C order", "gaps", "dates"])
def test_one_copy_to_a_worker_and_back(shared_pool, kind):
    sent = large(kind)
    call(shared_pool, array_sum, np.ones(3))
    with copied_at_most(1.5 * BIG):
        call(shared_pool, len, sent)
    with copied_at_most(2.5 * BIG):  # the worker's own, and the copy
        back = call(shared_pool, array_made, BIG // 8, "f8")
    assert back.nbytes == BIG


def test_what_cannot_be_sent_is_not_copied_first(hand_over):
    sent = [large("C order"), threading.Lock()]
    with copied_at_most(0.5 * BIG), pytest.raises(NotSendableError, match=r"obj\[1\]"):
        hand_over(sent)


def test_one_copy_inside_of_a_class_from_main():
    run_script(
        """
        import gc
        from dataclasses import dataclass
        from pathlib import Path

        import numpy as np
        from subinterp import create_channel

        @dataclass
        class Box:
            content: object

        def status(key):
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if key in line).split()[1]) * 1024

        recv, send = create_channel()
        with recv, send:
            send.send(Box(np.arange(3)))
            recv.recv(timeout=60)
            sent = Box(np.ones(8 * 2**20))
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            send.send(sent)
            back = recv.recv(timeout=60)
            grown = status("VmHWM") - before
            assert grown < 1.5 * sent.content.nbytes, grown
            assert type(back) is Box and back.content.sum() == 8 * 2**20
        """
    ).clean()


# SharedBuffer.asarray --------------------------------------------------------------------


def test_asarray():
    buf = SharedBuffer(96)
    whole = buf.asarray()
    assert whole.dtype == "u1" and whole.shape == (96,) and whole.flags.writeable
    doubles = buf.asarray("f8", (3, 4))
    doubles[1, 2] = 5
    assert memoryview(buf).cast("d")[6] == 5
    assert buf.asarray("f8", offset=48).tolist()[:1] == [5]
    assert buf.asarray(np.int32, 5).shape == (5,)
    assert buf.asarray("f8", (3, 4), order="F").flags.f_contiguous
    assert buf.asarray("f8", ()).shape == ()
    assert buf.asarray("f8", (0, 7), offset=96).size == 0
    assert buf.asarray("M8[s]", [2]).dtype == "M8[s]"
    assert buf.asarray([("a", "i4"), ("b", "f8")]).shape == (8,)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "text"),
    [
        (("f8",), {"offset": 1}, ValueError, "95 bytes are not a multiple of the 8 bytes"),
        (("f8", 13), {}, ValueError, "needs 104 bytes, and there are 96 from offset 0"),
        (("f8", (2**40, 2**40)), {}, ValueError, "needs"),
        (("f8", 12), {"offset": 8}, ValueError, "needs 96 bytes, and there are 88 from offset 8"),
        (("u1", -1), {}, ValueError, "negative"),
        (("u1",), {"offset": -1}, ValueError, "offset -1 is outside of 96 bytes"),
        (("u1",), {"offset": 97}, ValueError, "offset 97 is outside of 96 bytes"),
        (("O", 1), {}, TypeError, "objects"),
        (("i4,O", 1), {}, TypeError, "objects"),
        (("S0",), {}, ValueError, None),
        (("u1", 3), {"order": "K"}, ValueError, "order"),
        (("no such type",), {}, TypeError, None),
    ],
)
def test_asarray_that_does_not_fit(args, kwargs, error, text):
    with pytest.raises(error, match=text):
        SharedBuffer(96).asarray(*args, **kwargs)


def test_asarray_without_numpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ImportError, match=r"asarray needs numpy") as caught:
        SharedBuffer(8).asarray()
    assert caught.value.name == "numpy"


def test_arrays_keep_the_memory():
    a = SharedBuffer(800).asarray("f8")
    part = a[10:20].reshape(2, 5)
    del a
    gc.collect()
    assert _core.live_counts()["buffers"] == 1
    part[:] = 3
    assert part.sum() == 30
    del part
    gc.collect()
    assert _core.live_counts()["buffers"] == 0


VIEWS = {
    "whole": lambda a: a,
    "slice": lambda a: a[3:20],
    "gaps": lambda a: a[::5],
    "backwards": lambda a: a[::-2],
    "axes exchanged": lambda a: a.reshape(4, 5, 5).T,
    "block": lambda a: a.reshape(10, 10)[2:5, 3:7],
    "broadcast": lambda a: np.broadcast_to(a[3:5], (4, 2)),
    "other items": lambda a: a.view("i4")[1::2],
    "dates": lambda a: a.view("M8[s]")[::3],
    "records": lambda a: a.view([("a", "i4"), ("b", "f4")]),
    "a field": lambda a: a.view([("a", "i4"), ("b", "f4")])["b"],
    "no axes": lambda a: a[7:8].reshape(()),
    "subclass": lambda a: a.view(Sub)[2:9],
    "matrix": lambda a: a[:6].reshape(2, 3).view(np.matrix),
    "overlapping": lambda a: np.lib.stride_tricks.sliding_window_view(a, 7),
    "from the buffer": lambda a: np.frombuffer(a.base, "f8")[2:5],
    "from a memoryview": lambda a: np.asarray(memoryview(a.base).cast("d"))[4:],
    "read-only": lambda a: read_only(a[4:]),
}


def read_only(a):
    a.flags.writeable = False
    return a


@pytest.mark.parametrize("name", VIEWS)
def test_views_of_shared_arrays_are_the_same_memory(hand_over, shared_pool, name):
    a = SharedBuffer(800).asarray("f8")
    a[:] = range(100)
    view = VIEWS[name](a)
    for back in (
        hand_over(view),
        call(shared_pool, identity, view),
        hand_over({"x": [view]})["x"][0],
    ):
        assert array_facts(back) == array_facts(view)
        assert array_address(back) == array_address(view)
    assert call(shared_pool, array_address, view) == array_address(view)
    assert call(shared_pool, array_facts, view) == array_facts(view)


def test_writes_are_seen_by_all(shared_pool):
    a = SharedBuffer(800).asarray("f8")
    call(shared_pool, array_write, a[::2], 7.0)
    assert a[::2].tolist() == [7] * 50 and not a[1::2].any()
    a[:] = 2
    assert shared_pool.broadcast(array_sum, a) == [200, 200]
    list(shared_pool.map(array_write, np.split(a, 10), range(10)))
    assert a.tolist() == [float(n // 10) for n in range(100)]


def test_shared_arrays_in_closures(shared_pool):
    a = SharedBuffer(80).asarray("f8")

    def task(n):
        a[n] = n

    list(shared_pool.map(task, range(10)))
    assert a.tolist() == list(range(10))


def test_copies_of_shared_arrays_are_not_shared(hand_over):
    a = SharedBuffer(80).asarray("f8")
    back = hand_over(a.copy())
    back[:] = 1
    assert not a.any()
    masked = np.ma.array(a, mask=a == 0)
    assert array_address(hand_over(masked).data) == array_address(a)


def test_lies_about_shared_arrays_are_not_believed(hand_over):
    """An array that reaches beyond the memory is no view of it."""
    buf = SharedBuffer(4096)
    inside = buf.asarray("u1")
    beyond = np.lib.stride_tricks.as_strided(inside[4000:], (97,), (1,))
    address = array_address(beyond)
    assert _core.shared_at(address, 97) is None
    assert _core.shared_at(address, 96)[1] == 4000
    assert _core.shared_at(address, 0) is None
    assert _core.shared_at(array_address(inside) - 1, 1) is None


def test_many_pieces_of_memory(hand_over):
    arrays = [SharedBuffer(16 * (n % 7 + 1)).asarray("f8") for n in range(300)]
    for n, a in enumerate(arrays):
        a[:] = n
    del arrays[::3]
    for a in arrays:
        back = hand_over(a)
        assert array_address(back) == array_address(a) and back[0] == a[0]
    back = hand_over(arrays)
    assert [array_address(a) for a in back] == [array_address(a) for a in arrays]
    del arrays, back, a
    gc.collect()
    assert _core.live_counts()["buffers"] == 0


def test_time_does_not_depend_on_size(hand_over):
    """Nothing of the content is touched, so memory that was never written stays away."""
    a = SharedBuffer(BIG).asarray("f8")
    with copied_at_most(0.25 * BIG):
        back = hand_over(a)
        assert array_address(back) == array_address(a)


# share --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", arrays())
def test_share_array(hand_over, name):
    a = arrays()[name]
    shared = share(a)
    assert type(shared) is type(a) and shared.dtype == a.dtype and shared.shape == a.shape
    assert shared.tobytes() == a.tobytes()
    if a.dtype.itemsize and a.size:
        assert shared.flags.writeable
        assert share(shared) is shared
        assert array_address(shared) != array_address(a)
        assert array_address(hand_over(shared)) == array_address(shared)
        part = shared[1:] if shared.ndim and type(shared) is np.ndarray else shared
        assert share(part) is part


def test_share_array_in_a_worker(shared_pool):
    a = share(np.arange(10.0))
    call(shared_pool, array_write, a[5:], 0.0)
    assert a.sum() == 10
    assert call(shared_pool, array_address, a) == array_address(a)


def test_share_is_one_copy():
    a = large("gaps")
    with copied_at_most(1.25 * BIG):
        shared = share(a)
    assert shared[-1] == a[-1]


@pytest.mark.parametrize(
    "made",
    [
        b"abcdef" * 10,
        bytearray(b"abc"),
        array.array("d", [1, 2, 3]),
        memoryview(b"abcd").cast("B", (2, 2)),
        memoryview(array.array("i", range(10))),
        memoryview(array.array("i", range(10)))[::3],
        memoryview(b"abcd")[::-1],
        os.urandom(3_000_000),
        b"",
    ],
)
def test_share_buffers(hand_over, made):
    view = memoryview(made)
    shared = share(made)
    assert type(shared) is memoryview and not shared.readonly and shared.c_contiguous
    assert (shared.format, shared.shape) == (view.format, view.shape)
    assert shared.tobytes() == view.tobytes()
    if shared.nbytes:
        back = hand_over(shared)
        back.cast("B").cast("B")[0] = 1
        assert shared.tobytes()[0] == 1
    assert share(shared) is shared


def test_share_what_is_shared():
    buf = SharedBuffer(10)
    assert share(buf) is buf
    view = memoryview(buf)[2:4]
    assert share(view) is view
    a = buf.asarray()[::2]
    assert share(a) is a


def test_share_objects_that_hold_memory(hand_over):
    shared = share({"x": np.arange(10), "y": [np.arange(4)[::2], "text"], "z": b"bytes"})
    assert shared["x"].tolist() == list(range(10)) and shared["y"][1] == "text"
    back = hand_over(shared)
    for one, other in ((back["x"], shared["x"]), (back["y"][0], shared["y"][0])):
        assert array_address(one) == array_address(other)
    # Small things share one block, each with a place of its own.
    assert _core.live_counts()["buffers"] == 1
    shared["y"][0][:] = 9
    assert shared["x"].tolist() == list(range(10))
    again = share(shared)
    assert array_address(again["x"]) == array_address(shared["x"])


@pytest.mark.parametrize("obj", [1, "text", None, [1, 2], {}, np.array([None]), object()])
def test_share_what_has_no_memory(obj):
    with pytest.raises(TypeError, match="no memory to share"):
        share(obj)


def test_share_what_cannot_be_pickled():
    with pytest.raises(NotSendableError, match=r"obj\[1\]"):
        share([np.arange(3), threading.Lock()])
    with pytest.raises(TypeError, match="cannot be sent"):
        share(array.array("w", "text"))


# How long it lives ----------------------------------------------------------------------


def test_memory_outlives_the_pool_that_made_it(shared_pool):
    with subinterp.InterpreterPool(1) as pool:
        a = call(pool, array_shared, 1000, 4.0)
        part = call(pool, array_shared, 1000, 5.0)[::10]
    del pool
    gc.collect()
    assert a.sum() == 4000 and part.sum() == 500
    a[:] = 1
    assert call(shared_pool, array_sum, a) == 1000
    assert _core.live_counts()["buffers"] == 2
    del a, part
    gc.collect()
    wait_until(lambda: _core.live_counts()["buffers"] == 0, what="the memory's end")


def test_memory_outlives_its_maker_in_workers(shared_pool):
    a = share(np.arange(100.0))
    facts = array_facts(a)
    shared_pool.broadcast(keep, a)
    del a
    gc.collect()
    assert shared_pool.broadcast(array_kept_facts) == [facts, facts]
    assert _core.live_counts()["buffers"] == 1
    shared_pool.broadcast(drop_kept)
    wait_until(lambda: _core.live_counts()["buffers"] == 0, what="the memory's end")


def test_memory_goes_when_workers_let_go_first(shared_pool):
    a = share(np.arange(100.0))
    shared_pool.broadcast(keep, a)
    shared_pool.broadcast(drop_kept)
    assert a.sum() == 4950
    del a
    gc.collect()
    wait_until(lambda: _core.live_counts()["buffers"] == 0, what="the memory's end")


def test_memory_in_a_message_that_nobody_reads():
    recv, send = subinterp.create_channel()
    send.send(share(np.arange(100.0)))
    gc.collect()
    assert _core.live_counts()["buffers"] == 1
    recv.close()
    send.close()
    gc.collect()
    assert _core.live_counts()["buffers"] == 0


def test_memory_under_way_when_its_maker_ends():
    recv, send = subinterp.create_channel()
    with subinterp.InterpreterPool(1) as pool:
        if _core.extensions_unsupported():
            pytest.skip("workers cannot load NumPy here")
        call(pool, send_array, send, 300)
    del pool
    gc.collect()
    a = recv.recv(timeout=LONG)
    assert a.sum() == 900
    recv.close()
    send.close()


def send_array(send, n):
    send.send(array_shared(n, 3.0))


def test_memory_outlives_an_interpreter_that_was_closed(shared_pool):
    interp = interpreters.create()
    try:
        a = interp.call(array_shared, 100, 2.0)
        interp.call(keep, a)
    finally:
        interp.close()
    gc.collect()
    a[:50] = 0
    assert a.sum() == 100 and call(shared_pool, array_sum, a) == 100


def test_memory_outlives_an_abandoned_interpreter():
    """Its threads do not end, and go on with the memory while main does."""
    run_script(
        """
        import gc, sys
        from subinterp import InterpreterPool, SharedBuffer, _core

        if _core.extensions_unsupported():
            sys.exit()

        def never_ends(a):
            import threading, time

            def write():
                while True:
                    a[0] += 1
                    time.sleep(0.001)

            threading.Thread(target=write, daemon=True).start()
            return a[1:]

        a = SharedBuffer(8000).asarray("f8")
        with InterpreterPool(1) as pool:
            rest = pool.submit(never_ends, a).result(60)
        del pool
        gc.collect()
        rest[:] = 1
        import time

        before, deadline = a[0], time.monotonic() + 30
        while a[0] == before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert a[1:].sum() == 999
        del a, rest
        gc.collect()
        # The thread has it still.
        assert _core.live_counts()["buffers"] == 1
        print("done")
        """
    ).check()


# NumPy is loaded by what needs it ------------------------------------------------------------


def test_nothing_is_imported_without_need():
    result = run_script(
        """
        import sys
        from _work import identity, modules_loaded
        from subinterp import InterpreterPool, SharedBuffer, share

        names = "numpy", "pandas", "pyarrow", "polars", "subinterp._arrays", "subinterp._arrow"
        with InterpreterPool(1) as pool:
            view = share(b"some bytes")
            pool.submit(identity, [view, SharedBuffer(3), {1: 2}, print]).result(60)
            assert not any(pool.submit(modules_loaded, *names).result(60))
            assert not any(modules_loaded(*names))
        """
    )
    result.clean()


def test_workers_load_numpy_with_the_first_array(shared_pool):
    with subinterp.InterpreterPool(1) as pool:
        assert call(pool, array_sum, np.arange(3)) == 3
        assert call(pool, modules_loaded, "numpy", "pyarrow", "polars", "pandas") == [
            True, False, False, False,
        ]  # fmt: skip


# pandas ----------------------------------------------------------------------------------


def pandas_objects():
    pd = pytest.importorskip("pandas", reason="needs pandas")
    frame = pd.DataFrame(
        {
            "f": np.arange(6.0),
            "i": np.arange(6),
            "text": list("abcdef"),
            "when": pd.date_range("2020-01-01", periods=6),
            "kind": pd.Categorical(list("aabbcc")),
            "maybe": pd.array([1, None, 3, 4, 5, 6], dtype="Int64"),
        },
        index=pd.Index(range(10, 16), name="n"),
    )
    return {
        "frame": frame,
        "slice": frame[1:4],
        "every second": frame[::2],
        "numbers": frame[["f", "i"]].T,
        "series": frame["f"],
        "no rows": frame[:0],
        "two levels": frame.set_index(["text", "kind"]),
    }


PANDAS = ("frame", "slice", "every second", "numbers", "series", "no rows", "two levels")


@pytest.mark.parametrize("name", PANDAS)
def test_pandas(hand_over, name):
    same = pytest.importorskip("pandas.testing", reason="needs pandas")
    sent = pandas_objects()[name]
    check = same.assert_series_equal if sent.ndim == 1 else same.assert_frame_equal
    check(hand_over(sent), sent)
    if len(sent):
        shared = share(sent)
        check(shared, sent)
        check(hand_over(shared), sent)


def test_pandas_in_shared_memory(hand_over):
    shared = share(pandas_objects()["frame"])
    back = hand_over(shared)
    for column in ("f", "i", "when"):
        assert array_address(back[column].to_numpy()) == array_address(shared[column].to_numpy())
    pd = sys.modules["pandas"]
    # A frame that was made of shared memory.
    a = SharedBuffer(800).asarray("f8", (10, 10))
    frame = pd.DataFrame(a, copy=False)
    assert array_address(hand_over(frame).to_numpy()) == array_address(a)


def test_pandas_in_a_worker(shared_pool):
    pytest.importorskip("pandas", reason="needs pandas")
    sent = pandas_objects()["frame"][["f", "i", "when"]]
    assert call(shared_pool, frame_equals, sent, frame_text(sent))
    assert frame_text(call(shared_pool, identity, sent)) == frame_text(sent)
    shared = share(sent)
    assert frame_text(call(shared_pool, identity, shared)) == frame_text(sent)


# pyarrow ------------------------------------------------------------------------------------


def nulls(items, every=7):
    return [None if n % every == 0 else item for n, item in enumerate(items)]


ROWS = 3000


def arrow_arrays():
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    n = ROWS
    numbers = list(range(n))
    alternating = pa.array([i % 2 for i in numbers], pa.int8())
    return {
        "int": pa.array(nulls(numbers)),
        "bool": pa.array(nulls([i % 3 == 0 for i in numbers])),
        "string": pa.array(nulls([str(i) * 3 for i in numbers])),
        "large string": pa.array([str(i) for i in numbers], pa.large_string()),
        "string view": pa.array(nulls([str(i) * 9 for i in numbers]), pa.string_view()),
        "binary": pa.array([b"x" * (i % 5) for i in numbers]),
        "list": pa.array(nulls([list(range(i % 4)) for i in numbers])),
        "list of lists": pa.array(
            [[["a"] * (i % 3)] for i in numbers], pa.large_list(pa.list_(pa.string()))
        ),
        "fixed list": pa.array(nulls([[i, i + 1] for i in numbers]), pa.list_(pa.int32(), 2)),
        "list view": pa.array(nulls([[i] * (i % 3) for i in numbers]), pa.list_view(pa.int64())),
        "struct": pa.array(nulls([{"a": i, "b": nulls([str(i)], i % 5 + 1)[0]} for i in numbers])),
        "dictionary": pa.array(nulls([["x", "y"][i % 2] for i in numbers])).dictionary_encode(),
        "map": pa.array([[("k", i)] for i in numbers], pa.map_(pa.string(), pa.int64())),
        "decimal": pa.array([decimal.Decimal(i) for i in numbers], pa.decimal128(20, 2)),
        "decimal 256": pa.array([decimal.Decimal(i) for i in numbers], pa.decimal256(40, 2)),
        "fixed binary": pa.array(nulls([b"abc"] * n), pa.binary(3)),
        "null": pa.nulls(n),
        "timestamp": pa.array(numbers, pa.timestamp("ns", "UTC")),
        "date": pa.array(numbers, pa.date32()),
        "time": pa.array(numbers, pa.time64("us")),
        "interval": pa.array([(1, 2, 3)] * n, pa.month_day_nano_interval()),
        "half": pa.array(np.arange(n).astype("f2")),
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([10, n], pa.int32()), pa.array([1, 2])),
        "sparse union": pa.UnionArray.from_sparse(
            alternating, [pa.array(numbers), pa.array([str(i) for i in numbers])]
        ),
        "dense union": pa.UnionArray.from_dense(
            alternating,
            pa.array([i // 2 for i in numbers], pa.int32()),
            [pa.array(numbers), pa.array([str(i) for i in numbers])],
        ),
    }


ARROW = (
    "int", "bool", "string", "large string", "string view", "binary", "list", "list of lists",
    "fixed list", "list view", "struct", "dictionary", "map", "decimal", "decimal 256",
    "fixed binary", "null", "timestamp", "date", "time", "interval", "half", "runs",
    "sparse union", "dense union",
)  # fmt: skip
SLICES = ((0, ROWS), (3, 20), (1001, 500), (8, 8), (ROWS - 1, 1), (5, 0), (0, 0), (999, 1500))


@pytest.mark.parametrize("through_structs", [False, True])
@pytest.mark.parametrize("name", ARROW)
def test_pyarrow_arrays(hand_over, monkeypatch, name, through_structs):
    """Also all of them through the C data interface, which is for small slices."""
    from subinterp import _arrow

    if through_structs:
        monkeypatch.setattr(_arrow, "_drags_along", lambda obj: True)
    whole = arrow_arrays()[name]
    shared = share(whole) if name != "null" or through_structs else whole
    for start, n in SLICES:
        sent = whole.slice(start, n)
        for back in (hand_over(sent), hand_over(shared.slice(start, n))):
            back.validate(full=True)
            assert type(back) is type(sent) and back.type == sent.type and back.equals(sent)
            assert back.null_count == sent.null_count


def arrow_tables():
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    columns = {name: a for name, a in arrow_arrays().items() if name != "runs"}
    table = pa.table(columns).replace_schema_metadata({"made": "here"})
    plain = table.select(["int", "string", "list", "struct", "dictionary"])
    batch = plain.to_batches()[0]
    return {
        "table": table,
        "slice": table.slice(100, 5),
        "no rows": table.slice(0, 0),
        "no columns": table.select([]),
        "nothing": pa.table({}),
        "batch": batch,
        "slice of a batch": batch.slice(7, 90),
        "batch without rows": batch.slice(7, 0),
        "chunks": pa.concat_tables([plain, plain.slice(5, 1), plain.slice(0, 0), plain]),
        "slice of chunks": pa.concat_tables([plain, plain]).slice(ROWS - 10, 30),
        "chunked": pa.chunked_array([plain["string"].chunk(0), plain["string"].chunk(0)[3:7]]),
        "no chunks": pa.chunked_array([], pa.string()),
    }


TABLES = (
    "table", "slice", "no rows", "no columns", "nothing", "batch", "slice of a batch",
    "batch without rows", "chunks", "slice of chunks", "chunked", "no chunks",
)  # fmt: skip


@pytest.mark.parametrize("through_structs", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_pyarrow_tables(hand_over, monkeypatch, name, through_structs):
    from subinterp import _arrow

    if through_structs:
        monkeypatch.setattr(_arrow, "_drags_along", lambda obj: True)
    sent = arrow_tables()[name]
    back = hand_over(sent)
    if name == "no columns" and not through_structs:
        sent = pickle.loads(pickle.dumps(sent))  # which forgets how many rows there were
    assert type(back) is type(sent) and back.equals(sent)
    back.validate(full=True)
    if hasattr(sent, "schema"):
        assert back.schema.equals(sent.schema, check_metadata=True)
        assert back.num_rows == sent.num_rows


def test_pyarrow_in_shared_memory(hand_over):
    sent = arrow_tables()["chunks"]
    shared = share(sent)
    assert type(shared) is type(sent) and shared.equals(sent)
    shared.validate(full=True)
    for part in (shared, shared.slice(3, 70)):
        back = hand_over(part)
        for name in ("int", "string"):
            ours, theirs = (t[name].chunk(0).buffers()[-1].address for t in (part, back))
            assert ours == theirs
    for kind in ("batch", "chunked"):
        sent = arrow_tables()[kind]
        shared = share(sent)
        assert type(shared) is type(sent) and shared.equals(sent)


def test_a_small_slice_does_not_drag_along_what_it_was_cut_from(hand_over):
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    text = [f"this is row {n}" for n in range(100_000)]
    table = pa.table({"n": np.arange(100_000), "text": text, "view": pa.array(text, "string_view")})
    for sent in (table.slice(500, 50), table["text"].slice(70_000, 9), table["n"].chunk(0)[5:9]):
        back = hand_over(sent)
        assert back.equals(sent) and type(back) is type(sent)
        assert back.get_total_buffer_size() < 20_000


def test_small_slices_of_types_that_only_the_sender_knows(hand_over):
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")

    class Celsius(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.float64(), "celsius")

        def __arrow_ext_serialize__(self):
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage, serialized):
            return cls()

    whole = pa.ExtensionArray.from_storage(Celsius(), pa.array(np.arange(20_000.0)))
    table = pa.table({"t": whole, "list": pa.ListArray.from_arrays(np.arange(20_001), whole)})
    for sent in (whole.slice(5, 2), table.slice(5, 2)):
        back = hand_over(sent)
        assert type(back) is type(sent) and back.to_pylist() == sent.to_pylist()
        kinds = back.schema.types if hasattr(back, "schema") else [back.type]
        assert "Celsius" in str(type(kinds[0]))


def test_pyarrow_in_a_worker(shared_pool):
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    sent = arrow_tables()["slice of chunks"].drop_columns(["dictionary"])
    assert call(shared_pool, frame_equals, sent, frame_text(sent))
    assert call(shared_pool, identity, sent).equals(sent)
    shared = share(sent)
    assert call(shared_pool, frame_equals, shared, frame_text(sent))


# polars --------------------------------------------------------------------------------------


def polars_frames():
    pl = pytest.importorskip("polars", reason="needs polars")
    day = datetime.datetime(2020, 2, 3, 4, 5, 6)
    frame = pl.DataFrame(
        {
            "int": [1, 2, None],
            "float": [1.0, None, 3.5],
            "text": ["a", "something long enough to lie apart", None],
            "bool": [True, False, None],
            "bytes": [b"a", b"bb", None],
            "category": pl.Series(["x", "y", "x"], dtype=pl.Categorical),
            "enum": pl.Series(["x", "y", "x"], dtype=pl.Enum(["x", "y"])),
            "date": [day.date()] * 3,
            "when": [day, None, day],
            "zone": pl.Series([day] * 3).dt.replace_time_zone("Europe/Berlin"),
            "time": [day.time()] * 3,
            "duration": [datetime.timedelta(1, 2)] * 3,
            "decimal": [decimal.Decimal("1.5")] * 3,
            "list": [[1, 2], [], None],
            "texts": [["a", "b"], [None], None],
            "struct": [{"a": 1, "b": "x"}] * 3,
            "array": pl.Series([[1, 2], [3, 4], [5, 6]], dtype=pl.Array(pl.Int32, 2)),
            "null": [None] * 3,
            "128": pl.Series([1, 2, -3], dtype=pl.Int128),
        }
    )
    chunks = pl.concat([frame] * 300, rechunk=False)
    return {
        "frame": frame,
        "chunks": chunks,
        "one chunk": chunks.rechunk(),
        "slice": chunks.rechunk()[7:123],
        "slice of chunks": chunks[5:700],
        "a row": chunks.rechunk()[3:4],
        "no rows": frame[:0],
        "nothing": pl.DataFrame(),
    }


POLARS = (
    "frame", "chunks", "one chunk", "slice", "slice of chunks", "a row", "no rows", "nothing",
)  # fmt: skip


def same_frames(one, other):
    assert one.schema == other.schema
    assert one.equals(other)


@pytest.mark.parametrize("name", POLARS)
def test_polars_frames(hand_over, name):
    sent = polars_frames()[name]
    back = hand_over(sent)
    same_frames(back, sent)
    if sent.width:
        shared = share(sent)
        same_frames(shared, sent)
        same_frames(hand_over(shared[1:]), sent[1:])
        same_frames(hand_over(hand_over(shared)), sent)
    for column in sent.get_columns():
        series = hand_over(column)
        assert series.equals(column, check_names=True) and series.dtype == column.dtype


def test_polars_in_shared_memory(hand_over):
    pl = pytest.importorskip("polars", reason="needs polars")
    shared = share(pl.DataFrame({"n": np.arange(1000.0)}))
    back = hand_over(shared)
    addresses = [array_address(f["n"].to_numpy(allow_copy=False)) for f in (shared, back)]
    assert addresses[0] == addresses[1]


def test_polars_objects_are_refused(hand_over):
    pl = pytest.importorskip("polars", reason="needs polars")
    with pytest.raises(NotSendableError):
        hand_over(pl.DataFrame({"o": pl.Series([object()], dtype=pl.Object)}))
    with pytest.raises(NotSendableError):
        hand_over(pl.Series([object()], dtype=pl.Object))


def test_polars_text_of_a_slice(hand_over):
    """The text of other rows stays behind."""
    pl = pytest.importorskip("polars", reason="needs polars")
    frame = pl.DataFrame({"text": [None, *(f"this is row number {n}" for n in range(100_000))]})
    recv, send = subinterp.create_channel()
    with recv, send, copied_at_most(1_000_000):
        for _ in range(200):
            send.send(frame[5000:5003])
        for _ in range(200):
            back = recv.recv(timeout=LONG)
    same_frames(back, frame[5000:5003])
    same_frames(hand_over(frame[0:2]), frame[0:2])


def test_polars_in_a_worker(shared_pool):
    pytest.importorskip("polars", reason="needs polars")
    sent = polars_frames()["slice of chunks"]
    assert call(shared_pool, frame_equals, sent, frame_text(sent))
    same_frames(call(shared_pool, identity, sent), sent)
    shared = share(sent)
    assert call(shared_pool, frame_equals, shared, frame_text(sent))
    same_frames(call(shared_pool, identity, shared), sent)


# The structs ------------------------------------------------------------------------------------


def test_parts_of_received_arrow_data_outlive_the_whole(hand_over):
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    sent = arrow_arrays()["struct"]
    copy = _core.ArrowCopy([pa.chunked_array([sent]).__arrow_c_stream__()])
    memory = SharedBuffer(copy.nbytes)
    copy.copy_into(memory)
    data = _core.arrow_data(copy.schema, copy.chunks, memoryview(memory), copy.shared)
    first, second = pa.chunked_array(data), pa.chunked_array(data)
    child = first.chunk(0).field("a")
    del copy, memory, data, first
    gc.collect()
    assert second.chunk(0).equals(sent)
    del second
    gc.collect()
    assert _core.live_counts()["buffers"] == 1
    assert child.equals(sent.field("a"))
    del child
    gc.collect()
    assert _core.live_counts()["buffers"] == 0


def test_a_stream_that_nobody_reads():
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    copy = _core.ArrowCopy([pa.table({"a": [1, 2], "b": ["x", None]}).__arrow_c_stream__()])
    memory = SharedBuffer(copy.nbytes)
    with pytest.raises(ValueError, match="too small"):
        copy.copy_into(bytearray(copy.nbytes - 1))
    copy.copy_into(memory)
    data = _core.arrow_data(copy.schema, copy.chunks, memoryview(memory), copy.shared)
    capsule = data.__arrow_c_stream__()
    del memory, data
    gc.collect()
    assert _core.live_counts()["buffers"] == 1
    del capsule
    gc.collect()
    assert _core.live_counts()["buffers"] == 0


def test_a_stream_is_read_once():
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    capsule = pa.table({"a": [1]}).__arrow_c_stream__()
    _core.ArrowCopy([capsule])
    with pytest.raises(ValueError, match="before"):
        _core.ArrowCopy([capsule])
    with pytest.raises(ValueError):
        _core.ArrowCopy([pa.array([1]).__arrow_c_array__()[0]])


def test_a_stream_that_fails():
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    schema = pa.schema([("a", pa.int64())])

    def batches():
        yield pa.record_batch([pa.array([1])], schema)
        raise RuntimeError("no more today")

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    with pytest.raises(ValueError, match="no more today"):
        _core.ArrowCopy([reader.__arrow_c_stream__()])
