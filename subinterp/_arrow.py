"""How Arrow data travels: the frames of polars, and slices of pyarrow's tables.

pyarrow pickles its data out of band, one copy in all, and needs no help; except
that the pickle of a slice has all the memory that the slice is a part of.
polars pickles into bytes, which costs several copies. Both hand their memory
out through the Arrow C data interface: it is copied from there, once, and used
in place by the receiver.

Neither library is imported by this module: the sender has it, and the receiver
imports it when data arrives.
"""

from __future__ import annotations

import sys
from typing import Any

from subinterp import _core

# What a slice may drag along before it is copied apart from it.
_SMALL = 1 << 16


def _known(module: str, *names: str) -> tuple[type, ...]:
    """Return the types, as far as this interpreter has loaded their module."""
    found = sys.modules.get(module)
    types = (getattr(found, name, None) for name in names)
    return tuple(cls for cls in types if isinstance(cls, type))


def types() -> tuple[type, ...]:
    """Return the types that `reduce` takes, of the modules that are loaded."""
    return (
        *_known("polars", "DataFrame", "Series"),
        *_known("pyarrow", "Table", "RecordBatch", "ChunkedArray", "Array"),
    )


def reduce(obj: Any) -> Any:
    """Reduce an object of one of these types, as `__reduce_ex__` would."""
    cls = type(obj)
    made: Any = None
    if cls.__module__.partition(".")[0] == "polars":
        made = _reduce_polars(obj, cls)
    elif cls.__module__.partition(".")[0] == "pyarrow" and _drags_along(obj):
        made = _reduce_pyarrow(obj)
    return obj.__reduce_ex__(5) if made is None else made


def _plan(streams: list[Any]) -> Any:
    """Return the arguments of `_core.arrow_data`, or None."""
    try:
        copy = _core.ArrowCopy(streams)
    except NotImplementedError:
        return None  # a type that came with a later version of Arrow
    return copy.schema, copy.chunks, _core.beside(copy), copy.shared


# ---- polars ---------------------------------------------------------------------------


def _reduce_polars(obj: Any, cls: type) -> Any:
    polars = sys.modules["polars"]
    if cls is polars.Series:
        plan = _plan_series(obj)
        return None if plan is None else (series_from, (obj.name, *plan))
    if cls is not polars.DataFrame or not obj.width:
        return None
    return frame_from, (obj.get_columns(),)


def _plan_series(series: Any) -> Any:
    if _has_objects(series.dtype):
        return None
    # As a whole, several chunks would be copied into one first.
    chunks = series.get_chunks() if series.n_chunks() > 1 else [series]
    return _plan([chunk.__arrow_c_stream__() for chunk in chunks])


def _has_objects(dtype: Any) -> bool:
    """Return True for columns of Python objects, whose addresses mean nothing elsewhere."""
    polars: Any = sys.modules["polars"]
    if dtype == polars.Object:
        return True
    inner = getattr(dtype, "inner", None)
    if inner is not None:
        return _has_objects(inner)
    return any(_has_objects(field.dtype) for field in getattr(dtype, "fields", None) or ())


def series_from(name: str, *data: Any) -> Any:
    """Return a series over received memory."""
    import polars

    return polars.Series(name, _core.arrow_data(*data))


def frame_from(columns: list[Any]) -> Any:
    """Return a frame of received series."""
    import polars

    return polars.DataFrame(columns)


# ---- pyarrow --------------------------------------------------------------------------


def _drags_along(obj: Any) -> bool:
    """Return True if the pickle would have much more memory than the object."""
    try:
        total = obj.get_total_buffer_size()
        return bool(total > _SMALL and obj.nbytes < total // 2)
    except Exception:
        return False  # not known for this type


def _reduce_pyarrow(obj: Any) -> Any:
    pyarrow: Any = sys.modules["pyarrow"]
    cls = type(obj)
    fields = obj.schema.types if hasattr(obj, "schema") else [obj.type]
    if any(_is_extended(pyarrow, type_) for type_ in fields):
        return None  # the receiver may not have registered it; its pickle needs no registry
    if isinstance(obj, pyarrow.RecordBatch):
        streamed = pyarrow.Table.from_batches([obj])
    elif isinstance(obj, pyarrow.Array):
        streamed = pyarrow.chunked_array([obj], obj.type)
    else:
        streamed = obj
    plan = _plan([streamed.__arrow_c_stream__()])
    if plan is None:
        return None
    for kind in ("Table", "RecordBatch", "ChunkedArray"):
        if cls is getattr(pyarrow, kind):
            return pyarrow_from, (kind, *plan)
    return pyarrow_from, ("Array", *plan)


def _is_extended(pyarrow: Any, type_: Any) -> bool:
    if isinstance(type_, pyarrow.BaseExtensionType):
        return True
    if isinstance(type_, pyarrow.DictionaryType):
        return _is_extended(pyarrow, type_.value_type)
    return any(_is_extended(pyarrow, type_.field(i).type) for i in range(type_.num_fields))


def pyarrow_from(kind: str, *data: Any) -> Any:
    """Return pyarrow's object of that kind over received memory."""
    import pyarrow

    read = _core.arrow_data(*data)
    if kind == "Table":
        return pyarrow.table(read)
    if kind == "RecordBatch":
        table = pyarrow.table(read)
        # Without rows there may be no batch.
        return table.to_batches()[0] if table.num_rows else _empty_batch(table.schema)
    chunked = pyarrow.chunked_array(read)
    if kind == "ChunkedArray":
        return chunked
    return chunked.chunk(0) if chunked.num_chunks else pyarrow.array([], chunked.type)


def _empty_batch(schema: Any) -> Any:
    import pyarrow

    columns = [pyarrow.array([], field.type) for field in schema]
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema)
