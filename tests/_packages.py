"""Real work with compiled packages, for workers and for main alike.

Each function imports what it needs, checks what it computes, and returns plain values, which
must be the same wherever it ran. `NEEDS` names the modules that it needs.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import threading

NEEDS: dict[str, tuple[str, ...]] = {}


def work(*needs):
    """Register a function with the modules it needs."""

    def register(function):
        NEEDS[function.__name__] = needs
        return function

    return register


def missing(names):
    """Return the modules that these functions need and that are not installed, sorted."""
    needed = {need for name in names for need in NEEDS[name]}
    return sorted(need for need in needed if importlib.util.find_spec(need) is None)


def do(name, rounds=1):
    """Run a function of this module by its name; return its last result."""
    return [globals()[name]() for _ in range(rounds)][-1]


def same(one, other):
    """Tell whether two results are the same; floats may differ in their last digits."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def loaded():
    """Return how this interpreter has loaded its extension modules: name -> way."""
    extensions = sys.modules.get("subinterp._extensions")
    return {} if extensions is None else dict(extensions.loaded())


def here():
    import _interpreters

    current = _interpreters.get_current()
    return current[0] if isinstance(current, tuple) else current


# NumPy, SciPy, scikit-learn -----------------------------------------------------------


@work("numpy")
def numpy_linear_algebra():
    import numpy as np

    x = np.random.default_rng(1).normal(size=(200, 200))
    u, s, v = np.linalg.svd(x)
    assert np.allclose((u * s) @ v, x)
    symmetric = x + x.T
    values, vectors = np.linalg.eigh(symmetric)
    assert np.allclose(symmetric @ vectors, vectors * values)
    solved = np.linalg.solve(x, np.ones(200))
    assert np.allclose(x @ solved, 1)
    assert np.allclose(np.einsum("ij,jk->ik", x, x), x @ x)
    return s[:5].tolist(), values[:5].tolist(), float(np.linalg.slogdet(x)[1])


@work("numpy")
def numpy_arrays():
    import pickle

    import numpy as np

    x = np.random.default_rng(2).normal(size=10_000)
    assert np.arange(1000).reshape(10, 100).T.copy().sum() == 499500
    records = np.rec.array([(1, "a"), (2, "b")], dtype=[("x", "i4"), ("y", "U1")])
    assert records.x.sum() == 3 and list(records.y) == ["a", "b"]
    days = np.array(["2020-01-01", "2020-02-01"], dtype="M8[D]")
    assert (days[1] - days[0]).astype(int) == 31
    assert (pickle.loads(pickle.dumps(x)) == x).all()
    assert np.allclose(np.fft.ifft(np.fft.fft(x)), x)
    assert (np.sort(x)[np.searchsorted(np.sort(x), x)] == x).all()
    assert np.vectorize(lambda a: a + 1)(np.arange(10)).sum() == 55
    assert np.array([1, "a", None], dtype=object)[1] == "a"
    assert str(np.float64(3)) == "3.0" and repr(np.arange(3)) == "array([0, 1, 2])"
    masked = np.ma.masked_less(x, 0)
    with np.errstate(all="raise"):
        try:
            np.array([1.0]) / 0
        except FloatingPointError:
            pass
        else:
            raise AssertionError("did not raise")
    subclass = type("Marked", (np.ndarray,), {"mark": 5})
    assert (np.arange(4).view(subclass) + 1).mark == 5
    text = np.char.upper(np.array(["ab", "cd"])).tolist()
    return float(masked.sum()), np.unique((x * 3).astype(int)).tolist(), text


@work("numpy")
def numpy_in_threads():
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    def residual(seed):
        a = np.random.default_rng(seed).normal(size=(60, 60))
        return float(np.linalg.norm(a @ np.linalg.inv(a) - np.eye(60)))

    with ThreadPoolExecutor(4) as pool:
        worst = max(pool.map(residual, range(24)))
    assert worst < 1e-6
    return True


@work("numpy")
def numpy_blas():
    """Products large enough for the threads of the BLAS library."""
    import numpy as np

    a = np.random.default_rng(0).normal(size=(400, 400))
    first = a @ a
    for _ in range(4):
        assert np.allclose(a @ a, first)
    return float(np.trace(first)), float(np.linalg.norm(first))


@work("numpy", "scipy")
def scipy_numerics():
    import numpy as np
    import scipy.fft
    import scipy.integrate
    import scipy.interpolate
    import scipy.linalg
    import scipy.optimize
    import scipy.signal
    import scipy.special

    a = np.random.default_rng(0).normal(size=(60, 60))
    solved = scipy.linalg.lu_solve(scipy.linalg.lu_factor(a), a)
    assert np.allclose(solved, np.eye(60))
    # Python callbacks through Fortran and C.
    found = scipy.optimize.minimize(scipy.optimize.rosen, [1.3, 0.7, 0.8, 1.9, 1.2])
    assert np.allclose(found.x, 1, atol=1e-3)
    root = scipy.optimize.fsolve(lambda x: x**2 - 2, 1.0)
    assert np.allclose(root, 2**0.5)
    area, _ = scipy.integrate.quad(lambda x: x**2, 0, 3)
    assert abs(area - 9) < 1e-9
    way = scipy.integrate.solve_ivp(lambda t, y: -y, (0, 1), [1.0], rtol=1e-8)
    program = scipy.optimize.linprog(
        [-1, 4], A_ub=[[-3, 1], [1, 2]], b_ub=[6, 4], bounds=[(None, None), (-3, None)]
    )
    assert program.status == 0
    spline = float(scipy.interpolate.CubicSpline(range(60), a[0])(3.3))
    filtered = scipy.signal.lfilter([1.0], [1.0, 0.5], a[0])
    assert np.allclose(scipy.fft.irfft(scipy.fft.rfft(a[0])), a[0])
    return (
        spline,
        float(filtered.sum()),
        float(scipy.special.gammaln(a**2).sum()),
        way.y[0].tolist(),
    )


@work("numpy", "scipy")
def scipy_structures():
    import numpy as np
    import scipy.cluster.vq
    import scipy.ndimage
    import scipy.sparse
    import scipy.sparse.linalg
    import scipy.spatial
    import scipy.stats

    a = np.random.default_rng(0).normal(size=(60, 60))
    sparse = scipy.sparse.random(100, 100, density=0.1, format="csc", random_state=0)
    sparse = (sparse + scipy.sparse.eye(100) * 10).tocsc()
    assert np.allclose(sparse @ scipy.sparse.linalg.spsolve(sparse, np.ones(100)), 1)
    largest = scipy.sparse.linalg.eigsh(sparse + sparse.T, k=2, v0=np.ones(100))[0]
    distances, _ = scipy.spatial.cKDTree(a).query(a[0], k=3)
    hull = scipy.spatial.ConvexHull(a[:, :2])
    smooth = scipy.ndimage.gaussian_filter(a, 2)
    test = scipy.stats.ttest_ind(a[0], a[1])
    fitted = scipy.stats.norm.fit(a[2])
    return (
        largest.tolist(),
        distances.tolist(),
        float(hull.area),
        float(smooth.sum()),
        float(test.pvalue),
        [float(value) for value in fitted],
    )


@work("numpy", "scipy", "sklearn")
def sklearn_models():
    import numpy as np
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_digits, make_classification
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.svm import SVC

    features, classes = make_classification(300, 10, random_state=0)
    logistic = LogisticRegression().fit(features, classes)
    assert logistic.score(features, classes) > 0.7
    forest = RandomForestClassifier(20, random_state=0).fit(features, classes)
    assert forest.score(features, classes) > 0.9
    clusters = KMeans(3, n_init=2, random_state=0).fit(features)
    line = LinearRegression().fit(features, classes)
    digits = load_digits()
    machine = SVC(gamma=0.001).fit(digits.data[:900], digits.target[:900])
    score = machine.score(digits.data[900:], digits.target[900:])
    assert score > 0.9
    parts = PCA(3).fit(digits.data).explained_variance_ratio_
    return (
        np.round(logistic.coef_, 5).tolist(),
        forest.predict(features).tolist(),
        round(float(clusters.inertia_), 5),
        np.round(line.coef_, 8).tolist(),
        float(score),
        np.round(parts, 8).tolist(),
    )


# pandas, pyarrow, polars ---------------------------------------------------------------


@work("numpy", "pandas")
def pandas_frames():
    import io

    import numpy as np
    import pandas as pd

    frame = pd.DataFrame(
        {
            "a": np.arange(1000) % 7,
            "b": np.random.default_rng(0).normal(size=1000),
            "s": list("abcde") * 200,
            "t": pd.date_range("2020-01-01", periods=1000, freq="h"),
        }
    )
    grouped = frame.groupby("a").b.agg(["mean", "sum"])
    assert len(grouped) == 7
    means = frame.groupby("s").b.mean().rename("m").reset_index()
    merged = frame.merge(means, on="s")
    assert len(merged) == 1000
    text = frame.to_csv(index=False)
    back = pd.read_csv(io.StringIO(text), parse_dates=["t"])
    assert (back.t == frame.t).all() and np.allclose(back.b, frame.b)
    again = pd.read_json(io.StringIO(frame.to_json()))
    assert (again.a == frame.a).all()
    daily = frame.set_index("t").resample("D").b.mean()
    pivot = frame.pivot_table(index="a", columns="s", values="b")
    applied = frame.groupby("s")[["a", "b"]].apply(lambda g: float((g.a * g.b).sum()))
    rolled = frame.b.rolling(5).mean()
    local = frame.t.dt.tz_localize("Europe/Berlin", nonexistent="NaT", ambiguous="NaT")
    return (
        grouped["sum"].tolist(),
        daily.tolist(),
        pivot.to_numpy().ravel().tolist(),
        applied.tolist(),
        float(rolled.sum()),
        frame.s.str.upper().unique().tolist(),
        str(local.iloc[5]),
        frame.t.dt.day_name().value_counts().to_dict(),
        merged.sort_values(["m", "b"]).b.head().tolist(),
    )


@work("numpy", "pandas", "pyarrow")
def pandas_with_arrow():
    import io

    import numpy as np
    import pandas as pd

    frame = pd.DataFrame({"x": np.arange(100), "s": ["a", "b"] * 50}).astype(
        {"x": "int64[pyarrow]", "s": "string[pyarrow]"}
    )
    file = io.BytesIO()
    frame.to_parquet(file)
    back = pd.read_parquet(file, dtype_backend="pyarrow")
    assert back.x.sum() == 4950
    return back.groupby("s").x.sum().astype(int).to_dict()


@work("numpy", "pyarrow")
def pyarrow_compute():
    import datetime
    import decimal
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv

    table = pa.table(
        {
            "a": list(range(1000)),
            "s": [f"x{i % 5}" for i in range(1000)],
            "d": [decimal.Decimal("1.5")] * 1000,
            "t": [datetime.datetime(2020, 1, 1)] * 1000,
        }
    )
    assert pc.sum(table["a"]).as_py() == 499500
    assert table["d"][0].as_py() == decimal.Decimal("1.5")
    assert table["t"][0].as_py() == datetime.datetime(2020, 1, 1)
    grouped = table.group_by("s").aggregate([("a", "sum")]).sort_by("s")
    file = io.BytesIO()
    pyarrow.csv.write_csv(table.select(["a", "s"]), file)
    file.seek(0)
    back = pyarrow.csv.read_csv(file, read_options=pyarrow.csv.ReadOptions(block_size=1000))
    assert back.combine_chunks().equals(table.select(["a", "s"]).combine_chunks())
    output = pa.BufferOutputStream()
    with pa.ipc.new_file(output, table.schema) as writer:
        writer.write_table(table)
    assert pa.ipc.open_file(output.getvalue()).read_all().equals(table)
    assert pa.array(np.arange(10)).to_numpy().sum() == 45
    try:
        pa.array(["a", 1])
    except pa.ArrowException:
        pass
    else:
        raise AssertionError("did not raise")
    return grouped.to_pydict()


@work("numpy", "pyarrow")
def pyarrow_parquet():
    """Its threads read and write Python's file objects."""
    import io
    import os
    import tempfile

    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"a": list(range(2000)), "s": ["q", "r"] * 1000})
    for _ in range(5):
        file = io.BytesIO()
        pq.write_table(table, file, row_group_size=100)
        file.seek(0)
        assert pq.read_table(file, use_threads=True).equals(table)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "table.parquet")
        for compression in ("snappy", "zstd", "gzip", None):
            pq.write_table(table, path, compression=compression)
            assert pq.read_table(path).equals(table)
        read = pq.read_table(path, filters=[("a", "<", 5)])
    return read.to_pydict()


@work("polars")
def polars_frames():
    import io

    import polars as pl

    frame = pl.DataFrame({"a": list(range(1000)), "s": [f"x{i % 5}" for i in range(1000)]})
    grouped = frame.group_by("s").agg(pl.col("a").sum()).sort("s")
    assert grouped["a"].sum() == 499500
    assert frame.lazy().filter(pl.col("a") > 500).select(pl.len()).collect().item() == 499
    joined = frame.join(grouped, on="s").sort("a")
    text = frame.write_csv()
    assert pl.read_csv(io.StringIO(text)).equals(frame)
    assert pl.DataFrame({"x": [1.5, None]})["x"].null_count() == 1
    return grouped.to_dict(as_series=False), joined["a_right"].head(7).to_list()


@work("polars")
def polars_python_functions():
    """Threads of its Rust pool call back into Python."""
    import polars as pl

    seen = set()

    def more(x):
        seen.add(here())
        return x + 1

    frame = pl.DataFrame({"a": list(range(2000)), "g": [i % 20 for i in range(2000)]})
    added = frame.with_columns(pl.col("a").map_elements(more, return_dtype=pl.Int64))
    assert added["a"].sum() == sum(range(1, 2001))
    groups = frame.group_by("g").agg(
        pl.col("a").map_batches(lambda s: s * 2, return_dtype=pl.Int64).sum()
    )
    lazy = frame.lazy().map_batches(lambda d: d.filter(pl.col("a") < 10)).collect()
    assert seen == {here()}, seen
    return groups.sort("g")["a"].to_list(), lazy["a"].to_list()


# Text, data, pictures ---------------------------------------------------------------------


@work("lxml")
def lxml_trees():
    from lxml import etree, html

    root = etree.fromstring(b'<a><b x="1">t</b><b x="2"/></a>')
    found = [(node.tag, node.get("x")) for node in root.xpath("//b")]
    try:
        etree.fromstring(b"<a>")
    except etree.XMLSyntaxError as error:
        assert error.lineno == 1
    else:
        raise AssertionError("did not raise")
    sheet = (
        b'<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">'
        b'<xsl:template match="/"><o><xsl:value-of select="count(//b)"/></o></xsl:template>'
        b"</xsl:stylesheet>"
    )
    changed = str(etree.XSLT(etree.fromstring(sheet))(root)).strip()
    assert changed.endswith("<o>2</o>")

    class Resolver(etree.Resolver):
        def resolve(self, url, id, context):
            return self.resolve_string("<!ENTITY name 'resolved'>", context)

    parser = etree.XMLParser(load_dtd=True, resolve_entities=True)
    parser.resolvers.add(Resolver())
    resolved = etree.fromstring(b'<!DOCTYPE r SYSTEM "x.dtd"><r>&name;</r>', parser).text
    names = etree.FunctionNamespace("urn:test")
    names.prefix = "t"
    names["twice"] = lambda context, value: value * 2
    twice = root.xpath("t:twice(4)")
    for number in range(300):  # its table of names is shared by all documents
        etree.fromstring(b"<q%d><z%d/></q%d>" % (number, number, number))
    links = [link for _, _, link, _ in html.fromstring("<a href='x'>y</a>").iterlinks()]
    return found, etree.tostring(root), resolved, twice, links


@work("pydantic")
def pydantic_models():
    import datetime

    import pydantic

    class Item(pydantic.BaseModel):
        number: int
        names: list[str]
        when: datetime.datetime
        parent: Item | None = None

        @pydantic.field_validator("number")
        @classmethod
        def check(cls, value):
            if value == 13:
                raise ValueError("unlucky")
            return value

    Item.model_rebuild(_types_namespace={"Item": Item, "datetime": datetime})
    item = Item(number="3", names=["a"], when="2020-01-01T00:00:00")
    assert item.number == 3 and item.when == datetime.datetime(2020, 1, 1)
    child = Item(number=4, names=[], when=0, parent=item)
    assert Item.model_validate_json(child.model_dump_json()) == child
    errors = []
    for bad in ({"number": "q", "names": 1, "when": 0}, {"number": 13, "names": [], "when": 0}):
        try:
            Item(**bad)
        except pydantic.ValidationError as error:
            errors.append([(e["type"], e["loc"]) for e in error.errors()])
    adapter = pydantic.TypeAdapter(dict[str, tuple[int, float]])
    return errors, child.model_dump_json(), adapter.validate_json('{"a": [1, "2.5"]}')


@work("orjson")
def orjson_texts():
    import datetime

    import orjson

    data = {"a": [1, 2.5, None, "grün"], "d": datetime.datetime(2020, 1, 1), "k": {"x": {}}}
    text = orjson.dumps(data, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2)
    assert orjson.loads(text)["a"] == data["a"]
    for _ in range(200):
        assert orjson.loads(orjson.dumps([{"key": n} for n in range(50)]))[49] == {"key": 49}
    default = orjson.dumps({1, 2}, default=sorted)
    try:
        orjson.loads(b"{")
    except orjson.JSONDecodeError as error:
        return text, default, error.pos
    raise AssertionError("did not raise")


@work("cryptography")
def cryptography_keys():
    from cryptography.exceptions import InvalidSignature
    from cryptography.fernet import Fernet, InvalidToken
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

    box = Fernet(Fernet.generate_key())
    assert box.decrypt(box.encrypt(b"hi")) == b"hi"
    key = ec.derive_private_key(123456789, ec.SECP256R1())
    signature = key.sign(b"x", ec.ECDSA(hashes.SHA256()))
    key.public_key().verify(signature, b"x", ec.ECDSA(hashes.SHA256()))
    caught = []
    for fails in (
        lambda: key.public_key().verify(signature, b"y", ec.ECDSA(hashes.SHA256())),
        lambda: box.decrypt(b"nonsense"),
    ):
        try:
            fails()
        except (InvalidSignature, InvalidToken) as error:
            caught.append(type(error).__name__)
    derived = PBKDF2HMAC(hashes.SHA256(), 32, b"salt", 1000).derive(b"word")
    sealed = AESGCM(derived).encrypt(b"n" * 12, b"data", None)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return caught, derived, sealed, public


@work("PIL")
def pillow_pictures():
    import io

    from PIL import Image, ImageDraw, ImageFilter

    picture = Image.new("RGB", (64, 64), (10, 20, 30))
    ImageDraw.Draw(picture).ellipse((10, 10, 50, 50), fill=(200, 100, 50))
    turned = picture.rotate(20).resize((32, 32)).filter(ImageFilter.GaussianBlur(1))
    sizes = []
    for kind in ("JPEG", "PNG", "GIF", "BMP"):
        file = io.BytesIO()
        turned.save(file, kind)
        file.seek(0)
        sizes.append((kind, Image.open(file).convert("L").size, Image.open(file).mode))
    return sizes, turned.convert("L").histogram(), picture.getpixel((30, 30))


@work("matplotlib", "numpy")
def matplotlib_figures():
    import hashlib
    import io

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    digests = []
    for kind in ("png", "svg"):
        figure, (left, right) = plt.subplots(1, 2, figsize=(4, 2))
        left.plot(np.sin(np.arange(50) / 5))
        left.set_title("a title with $x^2$")
        right.contourf(np.outer(np.arange(10), np.arange(10)))
        right.hist([1, 1, 2, 3], bins=3)
        file = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "fixed"}):
            figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
        plt.close(figure)
        digests.append(hashlib.sha256(file.getvalue()).hexdigest())
    return digests


@work("regex")
def regex_patterns():
    import regex

    assert regex.findall(r"(?<x>\w)\d", "a1b2") == ["a", "b"]
    fuzzy = regex.search(r"(?:hello){e<=1}", "say helo").group()
    nested = regex.search(r"\((?:[^()]|(?R))*\)", "f(a(b)c)d").group()
    words = regex.findall(r"\p{Lu}\p{Ll}+", "Ärger und Übel, Straße")
    return fuzzy, nested, words, regex.sub(r"(\w+) (\w+)", lambda m: m[2] + m[1], "a b c d")


@work("msgpack")
def msgpack_messages():
    import msgpack

    data = [1, b"x", {"a": 1.5, "b": [None, True]}, "grün", 2**63]
    packed = msgpack.packb(data)
    assert msgpack.unpackb(packed) == data
    stream = msgpack.Unpacker()
    for part in (packed[:3], packed[3:], packed):
        stream.feed(part)
    assert list(stream) == [data, data]
    special = msgpack.packb(
        {1j}, default=lambda s: msgpack.ExtType(5, repr(sorted(s, key=abs)).encode())
    )
    try:
        msgpack.unpackb(b"\xc1")
    except ValueError as error:
        return packed, special, type(error).__name__
    raise AssertionError("did not raise")


# Callbacks from C -------------------------------------------------------------------------


@work("ctypes")
def ctypes_callbacks():
    import ctypes

    libc = ctypes.CDLL(None)
    compare = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int)
    )
    values = (ctypes.c_int * 6)(5, 1, 4, 2, 6, 3)
    seen = set()

    def by_size(a, b):
        seen.add(here())
        return a[0] - b[0]

    libc.qsort(values, 6, ctypes.sizeof(ctypes.c_int), compare(by_size))
    assert seen == {here()}
    return list(values)


@work("ctypes")
def ctypes_foreign_threads():
    """Threads that the C library starts call Python functions."""
    import ctypes

    libc = ctypes.CDLL(None)
    start, join = libc.pthread_create, libc.pthread_join
    join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]
    routine = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
    seen, idents = set(), set()

    @routine
    def call(argument):
        seen.add(here())
        idents.add(threading.get_native_id())
        return len([[] for _ in range(argument)])

    total = 0
    for _ in range(10):
        ids = [ctypes.c_ulong() for _ in range(4)]
        for thread in ids:
            assert start(ctypes.byref(thread), None, call, ctypes.c_void_p(10)) == 0
        for thread in ids:
            result = ctypes.c_void_p()
            assert join(thread, ctypes.byref(result)) == 0
            total += result.value
    assert seen == {here()}, (seen, here())
    assert threading.get_native_id() not in idents
    return total


@work("cffi")
def cffi_callbacks():
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(
        "int abs(int); typedef int (*cb)(const void *, const void *);"
        "void qsort(void *, size_t, size_t, cb);"
    )
    libc = ffi.dlopen(None)
    assert libc.abs(-3) == 3
    values = ffi.new("int[]", [3, 1, 2])
    seen = set()

    def by_size(a, b):
        seen.add(here())
        return ffi.cast("int *", a)[0] - ffi.cast("int *", b)[0]

    callback = ffi.callback("int(const void *, const void *)", by_size)
    libc.qsort(values, 3, 4, ffi.cast("cb", callback))
    assert seen == {here()}
    return list(values)


@work("cffi")
def cffi_foreign_threads():
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(
        "int pthread_create(unsigned long *, void *, void *(*)(void *), void *);"
        "int pthread_join(unsigned long, void **);"
    )
    libc = ffi.dlopen(None)
    seen = set()

    @ffi.callback("void *(void *)")
    def call(argument):
        seen.add(here())
        return ffi.cast("void *", len([[] for _ in range(int(ffi.cast("long", argument)))]))

    total = 0
    for _ in range(10):
        ids = ffi.new("unsigned long[4]")
        for number in range(4):
            assert libc.pthread_create(ids + number, ffi.NULL, call, ffi.cast("void *", 10)) == 0
        for number in range(4):
            result = ffi.new("void **")
            assert libc.pthread_join(ids[number], result) == 0
            total += int(ffi.cast("long", result[0]))
    assert seen == {here()}, (seen, here())
    return total
