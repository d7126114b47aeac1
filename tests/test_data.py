"""Data on its way: builtin types, identity, buffers, SharedBuffer."""

from __future__ import annotations

import array
import collections
import ctypes
import datetime
import decimal
import fractions
import gc
import ipaddress
import itertools
import math
import mmap
import pathlib
import pickle
import random
import re
import string
import sys
import types
import uuid
import weakref

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import subinterp
from _support import run_script
from _work import (
    BytearraySubclass,
    BytesSubclass,
    Carrier,
    Color,
    DictSubclass,
    FloatSubclass,
    IntSubclass,
    ListSubclass,
    Number,
    Pair,
    Permission,
    Point,
    Record,
    SetSubclass,
    Slotted,
    StrSubclass,
    TupleSubclass,
    buffer_facts,
    buffer_sum,
    capture,
    describe,
    drop_kept,
    fill,
    identity,
    keep,
    make_counted,
    peek,
    peek_kept,
    poke,
    same_objects,
)
from subinterp import SharedBuffer

LONG = 60


def call(pool, fn, /, *args, **kwargs):
    return pool.submit(fn, *args, **kwargs).result(LONG)


@pytest.fixture(scope="module")
def shared_pool():
    """One pool for the many small trips of this module."""
    with subinterp.InterpreterPool(2) as pool:
        pool.broadcast(abs, 0)
        # Make cloudpickle and friends arrive before leaks are looked for.
        pool.broadcast(lambda: None)
        yield pool


def same(a, b):
    """Equal in value and in exact type, all the way down; nan equals nan."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (
            a == b and math.copysign(1, a) == math.copysign(1, b)
        )
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, list | tuple | collections.deque):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return (
            len(a) == len(b)
            and all(map(same, a.keys(), b.keys()))
            and all(map(same, a.values(), b.values()))
        )
    if isinstance(a, slice):
        return same((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    return a == b


def check_round_trip(pool, value):
    back = call(pool, identity, value)
    assert same(back, value), f"{describe(value)} came back as {describe(back)}"
    # The worker saw the same thing, too: not only was it carried back and forth.
    if sys.getsizeof(value) < 1000 and " at 0x" not in repr(value):
        assert call(pool, describe, value) == describe(value)


# Builtin types ------------------------------------------------------------------------


VALUES = {
    "singletons": [None, True, False, Ellipsis, NotImplemented],
    "small ints": [0, 1, -1, 5, -5, 255, 256, 257, -6],
    "big ints": [
        sign * (2**bits + delta)
        for bits in [7, 8, 15, 16, *range(29, 33), 53, *range(59, 66), 127, 1000, 50_000]
        for delta in (-1, 0, 1)
        for sign in (1, -1)
    ],
    "floats": [
        0.0, -0.0, 1.5, -1e308, 5e-324, sys.float_info.max, sys.float_info.min,
        math.inf, -math.inf, math.nan, -math.nan, 0.1, 1e16 + 2,
    ],
    "complex": [1j, complex(math.nan, -0.0), complex(math.inf, -math.inf)],
    "str": [
        "", "a", "ascii text", "é", "ÿ", "Ā", "漢字", "😀", "\0", "a\0b", "\udc80", "\ud800 lone",
        "\ud83d\ude00", "x" * 255, "x" * 256, "é" * 65536, "漢" * 70000, "😀" * 40000, "\U0010ffff",
    ],
    "bytes": [b"", b"a", b"\0\xff", bytes(range(256)), b"x" * 255, b"x" * 256, b"x" * 65537],
    "bytearray": [bytearray(), bytearray(b"abc"), bytearray(100_000)],
    "containers": [
        [], (), {}, set(), frozenset(), [[]], ((),), [None] * 1000, tuple(range(1000)),
        {"a": {"b": {"c": [1, (2, {3})]}}}, {1: "int", "1": "str", (1,): "tuple", None: 0},
        {frozenset({1}): frozenset({frozenset()})}, {1, "a", None, (1, 2), 2.5},
        [1, 2.5, "s", b"b", None, True, (1,), [2], {3: 4}, {5}],
        ((1, 2), (3, (4, (5, (6,))))),
    ],
    "ranges and slices": [range(0), range(10), range(10, 0, -3), slice(None), slice(1, 2, 3)],
    "collections": [
        collections.OrderedDict([("b", 1), ("a", 2)]), collections.Counter("abca"),
        collections.defaultdict(list, {"a": [1]}), collections.deque([1, 2, 3], maxlen=5),
        collections.ChainMap({"a": 1}, {"b": 2}),
    ],
    "numbers": [
        decimal.Decimal("1.10"), decimal.Decimal("-Infinity"),
        fractions.Fraction(1, 3),
    ],
    "times": [
        datetime.date(2024, 2, 29), datetime.time(1, 2, 3, 4),
        datetime.datetime(2024, 1, 1, 12, tzinfo=datetime.UTC),
        datetime.datetime(2024, 1, 1, fold=1), datetime.timedelta(days=-1, microseconds=1),
        datetime.timezone(datetime.timedelta(hours=5, minutes=30), "IST"),
    ],
    "library": [
        uuid.UUID(int=5), pathlib.PurePosixPath("/a/b"), pathlib.Path("x"),
        ipaddress.ip_address("::1"), re.compile("a+", re.I), types.SimpleNamespace(a=1),
        random.Random(5).getstate(),
    ],
    "classes and functions": [int, str, Point, ValueError, len, math.sqrt, Point.twice, type(None)],
    "instances": [Point(1, 2), [Point(n, n) for n in range(50)]],
    "generic aliases": [list[int], dict[str, int], int | None],
}  # fmt: skip


@pytest.mark.parametrize("group", VALUES)
def test_round_trip(shared_pool, group):
    for value in VALUES[group]:
        check_round_trip(shared_pool, value)
    back = call(shared_pool, identity, VALUES[group])
    assert same(back, VALUES[group])


@pytest.mark.parametrize("group", VALUES)
def test_round_trip_in_map(shared_pool, group):
    back = list(shared_pool.map(identity, VALUES[group]))
    assert same(back, VALUES[group])


def test_nan_sign_and_payload(shared_pool):
    import struct

    for bits in (0x7FF8000000000000, 0xFFF8000000000001, 0x7FF8DEADBEEF0000):
        value = struct.unpack("<d", struct.pack("<Q", bits))[0]
        back = call(shared_pool, identity, value)
        assert struct.pack("<d", back) == struct.pack("<d", value)


def test_enums_of_this_file_keep_identity(shared_pool):
    for member in (Color.RED, Color.BLUE, Number.ONE, Permission.READ):
        assert call(shared_pool, identity, member) is member
    both = Permission.READ | Permission.WRITE
    assert call(shared_pool, identity, both) == both


@pytest.mark.parametrize(
    "value",
    [
        IntSubclass(5),
        IntSubclass(2**100),
        StrSubclass("text"),
        FloatSubclass(1.5),
        BytesSubclass(b"bytes"),
        BytesSubclass(b"bytes" * 100_000),
        BytearraySubclass(b"bytes"),
        ListSubclass([1, 2]),
        DictSubclass(a=1),
        TupleSubclass((1, 2)),
        SetSubclass({1, 2}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_subclasses_of_builtins(shared_pool, value):
    if not isinstance(value, StrSubclass | TupleSubclass):
        value.note = "an attribute"
    back = call(shared_pool, identity, value)
    assert type(back) is type(value)
    assert back == value
    assert getattr(back, "note", None) == getattr(value, "note", None)
    back = call(shared_pool, identity, [value, {"k": value}])
    assert type(back[0]) is type(value)
    assert back[1]["k"] is back[0]


def test_dataclass_namedtuple_slots(shared_pool):
    record = Record("a", [1, 2], Record("b"))
    assert call(shared_pool, identity, record) == record
    back = call(shared_pool, identity, Pair(1, Pair(2, 3)))
    assert type(back) is Pair and type(back.right) is Pair and back == Pair(1, Pair(2, 3))
    slotted = call(shared_pool, identity, Slotted(1, [2]))
    assert (slotted.a, slotted.b) == (1, [2])


def test_objects_with_state_hooks(shared_pool):
    class Hooked:
        def __init__(self):
            self.kept, self.dropped = 1, 2

        def __getstate__(self):
            return {"kept": self.kept}

        def __setstate__(self, state):
            self.kept = state["kept"]
            self.restored = True

    back = call(shared_pool, identity, Hooked())
    assert back.kept == 1 and back.restored and not hasattr(back, "dropped")


def test_iterators(shared_pool):
    assert list(call(shared_pool, identity, iter([1, 2, 3]))) == [1, 2, 3]
    assert list(call(shared_pool, identity, iter(range(3)))) == [0, 1, 2]
    assert list(call(shared_pool, list, zip([1, 2], "ab", strict=True))) == [(1, "a"), (2, "b")]


@pytest.mark.parametrize("depth", [10, 100, 400])
def test_deep_nesting(shared_pool, depth):
    value = 1
    for _ in range(depth):
        value = [value]
    assert call(shared_pool, identity, value) == value
    value = 1
    for _ in range(depth):
        value = {"k": (value,)}
    assert call(shared_pool, identity, value) == value


def test_too_deep_nesting_is_an_error_and_no_crash(shared_pool):
    value = []
    for _ in range(200_000):
        value = [value]
    try:
        with pytest.raises((RecursionError, subinterp.NotSendableError)):
            call(shared_pool, identity, value)
        assert call(shared_pool, identity, 1) == 1
    finally:
        while value:  # taken apart from outside in, so that its end does not recurse either
            value = value[0]


def test_too_deep_result_is_an_error_and_no_crash(shared_pool):
    def make():
        value = []
        for _ in range(200_000):
            value = [value]
        return value

    error = shared_pool.submit(make).exception(LONG)
    assert isinstance(error, RecursionError | subinterp.NotSendableError)
    assert call(shared_pool, identity, 1) == 1


# Identity inside one trip -----------------------------------------------------------------


def test_shared_references_in_arguments(shared_pool):
    a, b = [1], {"k": 2}
    assert call(shared_pool, same_objects, a, b, a, [a]) == [
        [True, False, True, False],
        [False, True, False, False],
        [True, False, True, False],
        [False, False, False, True],
    ]


def test_shared_references_keep_identity(shared_pool):
    inner = [1]
    back = call(shared_pool, identity, [inner, inner, {"k": inner}, (inner,)])
    assert back[0] is back[1] is back[2]["k"] is back[3][0]


def test_shared_reference_between_args_and_kwargs(shared_pool):
    inner = [1]
    args, kwargs = call(shared_pool, capture, inner, key=inner, other=[inner])
    assert args[0] is kwargs["key"] is kwargs["other"][0]


def test_cycles(shared_pool):
    value = [1]
    value.append(value)
    back = call(shared_pool, identity, value)
    assert back[1] is back and back[0] == 1
    value = {}
    value["self"] = value
    back = call(shared_pool, identity, value)
    assert back["self"] is back
    point = Point(1, None)
    point.y = [point]
    back = call(shared_pool, identity, point)
    assert back.y[0] is back
    pair = ([],)
    pair[0].append(pair)
    back = call(shared_pool, identity, pair)
    assert back[0][0] is back
    value = back = point = pair = None
    gc.collect()


def test_shared_strings_and_bytes(shared_pool):
    text, data = "some text" * 10, b"x" * 200_000
    back = call(shared_pool, identity, [text, text, data, data])
    assert back[0] is back[1]
    assert back[2] is back[3]


def test_copies_are_independent(shared_pool):
    value = [1, [2]]
    back = call(shared_pool, identity, value)
    back[1].append(3)
    assert value == [1, [2]]


# Bytes and buffers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, 100, 4095, 4096, 4097, 65_535, 65_536, 1_000_003, 10_000_000, 50_000_000]
)
@pytest.mark.parametrize("cls", [bytes, bytearray])
def test_big_bytes(shared_pool, size, cls):
    pattern = bytes(range(251))
    data = cls((pattern * (size // 251 + 1))[:size])
    back = call(shared_pool, identity, data)
    assert type(back) is cls
    assert back == data
    assert call(shared_pool, len, data) == size
    assert back is not data or size <= 1


def test_big_bytes_are_proper_bytes(shared_pool):
    """They hash, slice, compare and end as any other bytes."""
    data = bytes(range(256)) * 4096
    back = call(shared_pool, identity, data)
    assert hash(back) == hash(data)
    assert back[1000:1010] == data[1000:1010]
    assert {data: 1}[back] == 1
    assert back + b"x" == data + b"x"
    assert back.decode("latin-1") == data.decode("latin-1")
    assert ctypes.string_at(back, len(back) + 1)[-1] == 0  # the terminating NUL
    assert sys.getrefcount(back) == sys.getrefcount(data)
    assert sys.getsizeof(back) == sys.getsizeof(data)


def test_big_bytes_outlive_their_pool():
    with subinterp.InterpreterPool(1) as pool:
        back = call(pool, identity, b"ab" * 1_000_000)
        blocks = [call(pool, bytes, 1_000_000) for _ in range(10)]
    del pool
    gc.collect()
    assert back == b"ab" * 1_000_000
    assert blocks == [bytes(1_000_000)] * 10


def test_big_strings(shared_pool):
    for char in ("a", "é", "漢", "😀"):
        text = char * 2_000_000
        assert call(shared_pool, identity, text) == text


@pytest.mark.parametrize("typecode", [t for t in array.typecodes if t not in "uw"])
def test_array(shared_pool, typecode):
    for size in (0, 1, 10, 100_000):
        values = array.array(typecode, [n % 100 for n in range(size)])
        back = call(shared_pool, identity, values)
        assert type(back) is array.array
        assert back.typecode == typecode and back == values
        back.append(1)  # it owns its memory


def test_array_of_characters(shared_pool):
    values = array.array("w", "text 😀")
    assert call(shared_pool, identity, values) == values


VIEWS = {
    "bytes": memoryview(b"abcdef"),
    "empty": memoryview(b""),
    "bytearray": memoryview(bytearray(b"abcdef")),
    "big": memoryview(bytes(1_000_000)),
    "slice": memoryview(bytearray(range(100)))[10:20],
    "step": memoryview(bytearray(range(100)))[10:60:7],
    "reversed": memoryview(bytearray(range(100)))[::-1],
    "int": memoryview(array.array("i", range(10))),
    "double": memoryview(array.array("d", [1.5, 2.5])),
    "double step": memoryview(array.array("d", range(10)))[::3],
    "2d": memoryview(bytes(range(24))).cast("B", (4, 6)),
    "3d": memoryview(bytes(range(24))).cast("B", (2, 3, 4)),
    "2d double": memoryview(bytes(48)).cast("d", (2, 3)),
    "cast": memoryview(bytes(16)).cast("q"),
    "char": memoryview(b"abc").cast("c"),
    "bool": memoryview(bytes([0, 1, 1])).cast("?"),
    "ctypes": memoryview((ctypes.c_int * 4)(1, 2, 3, 4)),
    "readonly": memoryview(bytearray(b"abc")).toreadonly(),
}


@pytest.mark.parametrize("name", VIEWS)
def test_memoryview(shared_pool, name):
    view = VIEWS[name]
    facts = call(shared_pool, buffer_facts, view)
    back = call(shared_pool, identity, view)
    assert isinstance(back, memoryview)
    for format, shape, _, readonly, data in (facts, buffer_facts(back)):
        assert data == view.tobytes()
        assert shape == view.shape
        # Native formats only: "<i" of a little-endian machine arrives as "i".
        assert format == view.format.lstrip("@=<")
        assert readonly == view.readonly
    assert back == view


def test_memoryview_is_a_copy(shared_pool):
    data = bytearray(b"abcdef")
    call(shared_pool, fill, memoryview(data), 0)
    assert data == b"abcdef"


def test_released_memoryview(shared_pool):
    view = memoryview(b"abc")
    view.release()
    with pytest.raises((ValueError, subinterp.NotSendableError)):
        shared_pool.submit(identity, view)
    assert call(shared_pool, identity, 1) == 1


def test_source_of_a_sent_buffer_is_free_again(shared_pool):
    data = bytearray(b"x" * 1_000_000)
    future = shared_pool.submit(len, data)
    data.append(1)  # no export is left behind
    future.result(LONG)
    view = memoryview(data)
    shared_pool.submit(len, view).result(LONG)
    view.release()
    data.append(2)


def test_pickle_buffer(shared_pool):
    for size in (10, 1_000_000):
        for kind in (bytes, bytearray):
            back = call(shared_pool, identity, pickle.PickleBuffer(kind(range(10)) * (size // 10)))
            assert bytes(back) == bytes(range(10)) * (size // 10)
            assert memoryview(back).readonly == (kind is bytes)


def test_out_of_band_objects(shared_pool):
    """What reduces to a PickleBuffer travels out of band and finds its data again."""
    with_buffer = Carrier(bytearray(b"d" * 500_000))
    back = call(shared_pool, identity, with_buffer)
    assert type(back) is Carrier and back.data == with_buffer.data
    several = [Carrier(bytearray([n]) * 100_000) for n in range(10)]
    back = call(shared_pool, identity, several)
    assert [c.data for c in back] == [c.data for c in several]


def test_mixed_sizes(shared_pool):
    value = [bytes([n % 256]) * (n * 997 % 100_003) for n in range(200)]
    assert call(shared_pool, identity, value) == value


def test_mmap_cannot_be_sent(shared_pool):
    with mmap.mmap(-1, 4096) as memory:
        with pytest.raises(subinterp.NotSendableError):
            shared_pool.submit(identity, memory)
        view = memoryview(memory)
        assert call(shared_pool, buffer_sum, view) == 0
        view.release()


# Objects die when they should --------------------------------------------------------------------


def test_arguments_are_not_kept(shared_pool):
    point = Point(1, 2)
    gone = weakref.ref(point)
    shared_pool.submit(identity, point).result(LONG)
    del point
    assert gone() is None


def test_results_are_not_kept_in_the_worker(pool1):
    import _work

    for _ in range(5):
        assert len(call(pool1, make_counted, 100)) == 100
    assert call(pool1, _work.counted_alive) == 0
    assert call(pool1, len, make_counted(50)) == 50
    assert call(pool1, _work.counted_alive) == 0
    gc.collect()
    assert _work.Counted.alive == 0


# Property based --------------------------------------------------------------------------------

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**200), max_value=2**200)
    | st.floats()
    | st.complex_numbers()
    | st.text(alphabet=st.characters(exclude_categories=()))
    | st.binary(max_size=2000)
    | st.dates()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
)
hashable = st.none() | st.booleans() | st.integers() | st.text(string.printable) | st.binary()
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.lists(inner, max_size=8).map(tuple)
        | st.dictionaries(hashable, inner, max_size=8)
        | st.sets(hashable, max_size=8)
        | st.frozensets(hashable, max_size=8)
        | st.tuples(inner, inner)
    ),
    max_leaves=30,
)
any_case = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
    database=None,
)


@any_case
@given(value=values)
def test_any_value(shared_pool, value):
    assert same(call(shared_pool, identity, value), value)


@any_case
@given(args=st.lists(values, max_size=6), kwargs=st.dictionaries(st.text(), values, max_size=6))
def test_any_arguments(shared_pool, args, kwargs):
    back_args, back_kwargs = call(shared_pool, capture, *args, **kwargs)
    assert same(back_args, tuple(args))
    assert same(back_kwargs, kwargs)


@any_case
@given(items=st.lists(values, max_size=30), chunksize=st.none() | st.integers(1, 40))
def test_any_map(shared_pool, items, chunksize):
    assert same(list(shared_pool.map(identity, items, chunksize=chunksize)), items)


@any_case
@given(data=st.data())
def test_any_memoryview(shared_pool, data):
    block = bytearray(data.draw(st.binary(max_size=300)))
    view = memoryview(block)
    start, stop = data.draw(st.integers(0, 300)), data.draw(st.integers(0, 300))
    step = data.draw(st.integers(-5, 5).filter(bool))
    view = view[start:stop:step]
    back = call(shared_pool, identity, view)
    assert back.tobytes() == view.tobytes() and back.shape == view.shape


# SharedBuffer ----------------------------------------------------------------------------------


def test_shared_buffer_is_a_buffer():
    buf = SharedBuffer(100)
    view = memoryview(buf)
    assert view.nbytes == 100 and view.format == "B" and view.shape == (100,)
    assert view.c_contiguous and not view.readonly
    assert bytes(buf) == bytes(100)
    view[3] = 7
    assert memoryview(buf)[3] == 7
    assert len(buf) == 100


def test_shared_buffer_is_the_same_memory(pool):
    buf = SharedBuffer(1000)
    pool.submit(poke, buf, 5, 77).result(LONG)
    assert memoryview(buf)[5] == 77
    memoryview(buf)[6] = 88
    assert call(pool, peek, buf, 6) == 88
    assert pool.broadcast(peek, buf, 5) == [77, 77]
    call(pool, fill, buf, 9)
    assert bytes(buf) == bytes([9]) * 1000


def test_shared_buffer_comes_back_as_the_same_memory(pool):
    buf = SharedBuffer(10)
    back = call(pool, identity, buf)
    assert isinstance(back, SharedBuffer)
    memoryview(back)[1] = 5
    assert memoryview(buf)[1] == 5


def test_shared_buffer_made_by_a_worker_outlives_it():
    def make():
        from subinterp import SharedBuffer

        buf = SharedBuffer(1_000_000)
        memoryview(buf)[999_999] = 42
        return buf

    with subinterp.InterpreterPool(1) as pool:
        buf = call(pool, make)
    del pool
    gc.collect()
    assert len(buf) == 1_000_000
    assert memoryview(buf)[999_999] == 42
    memoryview(buf)[0] = 1


def test_shared_buffer_outlives_its_maker_in_a_worker(pool):
    buf = SharedBuffer(1000)
    memoryview(buf)[0] = 5
    pool.broadcast(keep, buf)
    del buf
    gc.collect()
    assert pool.broadcast(peek_kept) == [5, 5]
    pool.broadcast(drop_kept)


def test_view_of_a_shared_buffer_is_not_copied(pool):
    buf = SharedBuffer(1000)
    view = memoryview(buf)[100:200]
    assert call(pool, fill, view, 3) == 100
    assert bytes(buf) == bytes(100) + bytes([3]) * 100 + bytes(800)
    back = call(pool, identity, view)
    back[0] = 9
    assert memoryview(buf)[100] == 9
    view = back = None


@pytest.mark.parametrize(
    "derive",
    [
        lambda m: m[8:],
        lambda m: m[8:800],
        lambda m: m.cast("d"),
        lambda m: m.cast("i")[10:20],
        lambda m: m.cast("B", (10, 80)),
        lambda m: m.cast("B", (2, 4, 100)),
        lambda m: m.cast("d", (10, 10)),
        lambda m: m[::2],
        lambda m: m[::-1],
        lambda m: m.cast("q")[::-3],
        lambda m: m.toreadonly(),
        lambda m: m[10:10],
        lambda m: m[100:500][100:200],
    ],
)
def test_derived_views_of_a_shared_buffer(pool, derive):
    buf = SharedBuffer(800)
    for index in range(800):
        memoryview(buf)[index] = index % 251
    view = derive(memoryview(buf))
    facts = buffer_facts(view)
    assert call(pool, buffer_facts, view) == facts
    back = call(pool, identity, view)
    assert buffer_facts(back) == facts
    # It is a view of the same memory and not a copy.
    memoryview(buf)[:] = bytes(reversed(bytes(buf)))
    assert back.tobytes() == view.tobytes()


def test_shared_buffer_in_containers(pool):
    buf = SharedBuffer(10)
    back = call(pool, identity, {"a": [buf, memoryview(buf)[2:4], buf]})
    assert back["a"][0] is back["a"][2]
    back["a"][1][0] = 6
    assert memoryview(buf)[2] == 6
    back = None


def test_shared_buffer_bounds():
    buf = SharedBuffer(10)
    view = memoryview(buf)
    with pytest.raises(IndexError):
        view[10]
    with pytest.raises(IndexError):
        view[10] = 1
    with pytest.raises(ValueError):
        view[5:] = bytes(6)
    with pytest.raises(ValueError):
        view[0] = 256
    with pytest.raises(TypeError):
        view.cast("d")  # 10 bytes are no whole number of doubles


@pytest.mark.parametrize("size", [-1, -(2**63)])
def test_shared_buffer_of_negative_size(size):
    with pytest.raises(ValueError):
        SharedBuffer(size)


@pytest.mark.parametrize("size", [1.5, "10", None])
def test_shared_buffer_of_a_size_that_is_none(size):
    with pytest.raises(TypeError):
        SharedBuffer(size)


def test_shared_buffer_too_large():
    with pytest.raises((MemoryError, OverflowError, ValueError)):
        SharedBuffer(2**62)
    with pytest.raises((MemoryError, OverflowError, ValueError)):
        SharedBuffer(2**80)


def test_shared_buffer_of_size_zero(pool):
    buf = SharedBuffer(0)
    assert len(buf) == 0 and bytes(buf) == b""
    assert call(pool, len, buf) == 0


def test_shared_buffer_cannot_be_resized():
    buf = SharedBuffer(10)
    for name in ("append", "extend", "resize", "pop", "clear"):
        with pytest.raises((AttributeError, TypeError, BufferError, ValueError)):
            getattr(buf, name)(5)
    with pytest.raises((AttributeError, TypeError)):
        buf.nbytes = 20
    with pytest.raises((TypeError, ValueError)):
        memoryview(buf)[0:2] = b"abc"
    assert len(buf) == 10


def test_shared_buffer_is_zeroed_and_aligned():
    for size in (1, 100, 4096, 1_000_000):
        buf = SharedBuffer(size)
        assert not any(buf.__buffer__(0))
        address = ctypes.addressof((ctypes.c_char * size).from_buffer(buf))
        assert address % 16 == 0
        gc.collect()


def test_view_keeps_the_memory():
    view = memoryview(SharedBuffer(1000))
    gc.collect()
    view[999] = 1
    assert view[999] == 1


def test_shared_buffer_in_a_closure(pool):
    buf = SharedBuffer(10)

    def task():
        memoryview(buf)[0] = 11

    call(pool, task)
    assert memoryview(buf)[0] == 11


def test_pickle_of_a_shared_buffer_holds_nothing():
    """Outside of our messages the memory cannot be shared safely."""
    buf = SharedBuffer(10)
    try:
        data = pickle.dumps(buf)
    except (TypeError, pickle.PicklingError):
        return  # refused: as good
    memoryview(pickle.loads(data))[0] = 5
    assert memoryview(buf)[0] == 5
    del buf
    gc.collect()
    with pytest.raises((pickle.UnpicklingError, ValueError, LookupError)):
        pickle.loads(data)


def test_many_shared_buffers(pool):
    buffers = [SharedBuffer(1000) for _ in range(100)]
    list(pool.map(fill, buffers, itertools.cycle([7])))
    assert all(bytes(buf) == bytes([7]) * 1000 for buf in buffers)


def test_workers_write_at_the_same_time(pool):
    """Neighbouring parts of one buffer, written by all workers at once."""
    size = 64_000
    buf = SharedBuffer(size)
    view = memoryview(buf)
    parts = [(view[n * 1000 : (n + 1) * 1000], n + 1) for n in range(64)]
    assert list(pool.starmap(fill, parts)) == [1000] * 64
    assert all(bytes(view[n * 1000 : (n + 1) * 1000]) == bytes([n + 1]) * 1000 for n in range(64))
    parts = view = None


def test_shared_buffer_lost_in_a_dropped_task(pool1, flag):
    from _work import pass_gate

    gate, started = flag(), flag()
    pool1.submit(pass_gate, gate, None, started)
    assert started.wait(LONG)
    futures = [pool1.submit(identity, SharedBuffer(1000)) for _ in range(20)]
    for future in futures:
        assert future.cancel()
    gate.set()
    # The fixture sees a buffer that is left over.


def test_shared_buffer_script():
    result = run_script(
        """
        from subinterp import InterpreterPool, SharedBuffer

        buf = SharedBuffer(8)

        def write(n):
            memoryview(buf)[n] = n + 1

        with InterpreterPool(2) as pool:
            list(pool.map(write, range(8)))
        print(bytes(buf).hex())
        """
    ).clean()
    assert result.stdout == "0102030405060708\n"
