"""Compiled packages in workers: real work, in one, in two at once, and in main meanwhile."""

from __future__ import annotations

import pytest

import _packages
from _support import run_script

# Groups that a process loads together; what stands in one line shares memory and imports.
GROUPS = {
    "numpy": ["numpy_linear_algebra", "numpy_arrays", "numpy_blas", "numpy_in_threads"],
    "scipy": ["scipy_numerics", "scipy_structures"],
    "sklearn": ["sklearn_models"],
    "pandas": ["pandas_frames", "pandas_with_arrow"],
    "pyarrow": ["pyarrow_compute", "pyarrow_parquet"],
    "polars": ["polars_frames", "polars_python_functions"],
    "text": ["lxml_trees", "regex_patterns", "orjson_texts", "msgpack_messages"],
    "rust": ["pydantic_models", "cryptography_keys"],
    "pictures": ["pillow_pictures", "matplotlib_figures"],
    "callbacks": [
        "ctypes_callbacks",
        "cffi_callbacks",
        "ctypes_foreign_threads",
        "cffi_foreign_threads",
    ],
}

SCRIPT = """\
import sys
import _packages as p
from subinterp import InterpreterPool

rounds, *names = sys.argv[1:]
rounds, limit = int(rounds), 120

def check(name, results):
    expected = p.do(name)
    for result in results:
        assert p.same(result, expected), (name, result, expected)
    print(name, flush=True)
"""

# Main imports nothing before the worker has.
IN_ONE = """
with InterpreterPool(1) as pool:
    results = {name: pool.submit(p.do, name).result(limit) for name in names}
    ways = pool.submit(p.loaded).result()
assert "copy" in ways.values(), ways
for name, result in results.items():
    check(name, [result])
"""

IN_TWO = """
with InterpreterPool(2) as pool:
    for name in names:
        running = [pool.submit(p.do, name, rounds) for _ in range(4)]
        check(name, [task.result(limit) for task in running])
    # Each of them on its own, whatever the other has loaded.
    for name in names:
        check(name, pool.broadcast(p.do, name))
"""

# Main imports first; then all three work at once.
WITH_MAIN = """
for name in names:
    p.do(name)
with InterpreterPool(2) as pool:
    for name in names:
        running = [pool.submit(p.do, name, rounds) for _ in range(2)]
        here = p.do(name, rounds)
        check(name, [here, *(task.result(limit) for task in running)])
for name in names:
    check(name, [p.do(name)])
"""

# The next pool's workers load the same once more, or take over what is there.
IN_THE_NEXT_POOL = """
for _ in range(2):
    with InterpreterPool(2) as pool:
        results = [pool.broadcast(p.do, name) for name in names]
for name, both in zip(names, results):
    check(name, both)
"""


@pytest.mark.packages
@pytest.mark.parametrize(
    "way",
    [
        pytest.param(IN_ONE, id="in_one"),
        pytest.param(IN_TWO, id="in_two"),
        pytest.param(WITH_MAIN, id="with_main"),
        pytest.param(IN_THE_NEXT_POOL, id="in_the_next_pool"),
    ],
)
@pytest.mark.parametrize("group", GROUPS)
def test_package(group, way):
    names = GROUPS[group]
    missing = _packages.missing(names)
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (a version without wheels?)")
    result = run_script(SCRIPT + way, args=["2", *names], timeout=180).clean()
    assert set(result.stdout.split()) == set(names)


@pytest.mark.packages
def test_all_packages_in_the_same_workers():
    names = [name for names in GROUPS.values() for name in names if not _packages.missing([name])]
    assert names
    result = run_script(SCRIPT + WITH_MAIN, args=["1", *names], timeout=220).clean()
    assert set(result.stdout.split()) == set(names)


def test_every_piece_of_work_is_tested():
    assert {name for names in GROUPS.values() for name in names} == set(_packages.NEEDS)
