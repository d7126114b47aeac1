"""What `help` and editors show of the public classes: a description and a signature."""

import inspect

import pytest

import subinterp

CLASSES = [
    value
    for value in (getattr(subinterp, name) for name in subinterp.__all__)
    if isinstance(value, type) and not issubclass(value, BaseException)
]


def public_methods():
    for cls in CLASSES:
        for name in dir(cls):
            if not name.startswith("_") and inspect.isroutine(getattr(cls, name)):
                yield pytest.param(cls, name, id=f"{cls.__name__}.{name}")


@pytest.mark.parametrize(("cls", "name"), list(public_methods()))
def test_methods_say_what_they_do_and_take(cls, name):
    method = getattr(cls, name)
    assert inspect.getdoc(method)
    assert inspect.signature(method)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        (subinterp.InterpreterPool.submit, "(self, fn, /, *args, **kwargs)"),
        (
            subinterp.InterpreterPool.schedule,
            "(self, /, fn, args=(), kwargs=None, *, timeout=None)",
        ),
        (subinterp.Future.result, "(self, /, timeout=None)"),
        (subinterp.set_spin_time, "(seconds)"),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_compiled_ones_have_those_of_their_sources(method, parameters):
    assert str(inspect.signature(method)) == parameters
    # The docstring is free of it.
    assert not inspect.getdoc(method).startswith(method.__name__)
