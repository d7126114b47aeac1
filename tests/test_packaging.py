"""What is shipped, that it installs, and what an unsuitable Python is told.

The tests marked `packaging` build in isolation and install in clean environments, as a user's
pip does; they need the package index.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import subinterp

ROOT = Path(__file__).parents[1]

SUITABLE = {
    "platform": "linux",
    "glibc": True,
    "implementation": "cpython",
    "version": (3, 14, 1),
    "free_threaded": False,
}

# What an installation has to be able to do, away from the checkout.
SMOKE_TEST = ROOT / "tools/smoke-test"


@pytest.fixture(scope="module")
def setup_file():
    """Return the names that setup.py defines; it does nothing unless run as the main file."""
    return runpy.run_path(str(ROOT / "setup.py"))


class TestRefusal:
    def test_this_python_will_do(self, setup_file):
        assert setup_file["refusal"]() is None
        assert setup_file["missing_headers"]() is None

    @pytest.mark.parametrize(
        ("difference", "needed", "found"),
        [
            ({"version": (3, 12, 1)}, "CPython 3.13 or newer", "CPython 3.12.1"),
            ({"version": (2, 7, 18)}, "CPython 3.13 or newer", "CPython 2.7.18"),
            ({"free_threaded": True}, "with the GIL", "free-threaded build of 3.14.1"),
            ({"platform": "darwin"}, "Linux with glibc", "darwin"),
            ({"platform": "win32", "glibc": False}, "Linux with glibc", "win32"),
            ({"glibc": False}, "Linux with glibc", "musl"),
            ({"implementation": "pypy"}, "CPython 3.13 or newer", "pypy"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_unsuitable_pythons_are_told_what_is_needed(
        self, setup_file, difference, needed, found
    ):
        assert setup_file["refusal"](SUITABLE) is None
        sentence = setup_file["refusal"](SUITABLE | difference)
        assert sentence.startswith("subinterp needs ")
        assert needed in sentence
        assert found in sentence
        assert sentence.endswith(".")
        assert "\n" not in sentence
        # One sentence: no full stop but the last, and those in version numbers.
        assert len(re.findall(r"\.(?!\d)", sentence)) == 1

    @pytest.mark.parametrize(
        ("pretend", "found"),
        [
            ("sys.version_info = (3, 12, 1, 'final', 0)", "this is CPython 3.12.1"),
            ("sysconfig.get_config_var = lambda name: 1", "free-threaded"),
            ("sysconfig.get_config_var('CC'); sys.platform = 'darwin'", "this is darwin"),
            ("os.confstr = lambda name: None", "musl"),
            ("sys.implementation.name = 'graalpy'", "this is graalpy"),
        ],
    )
    def test_setup_ends_with_one_line(self, tmp_path, pretend, found):
        script = f"import os, runpy, sys, sysconfig; {pretend}; "
        script += f"runpy.run_path({str(ROOT / 'setup.py')!r}, run_name='__main__')"
        done = run([sys.executable, "-c", script], cwd=tmp_path)
        assert done.returncode == 1
        assert done.stdout == ""
        assert found in done.stderr
        assert done.stderr.count("\n") == 1

    def test_missing_headers_are_named(self, setup_file, monkeypatch, tmp_path):
        monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
        sentence = setup_file["missing_headers"]()
        assert str(tmp_path) in sentence
        assert "-dev" in sentence

    @pytest.mark.parametrize(
        ("environ", "flavour", "has"),
        [
            ({}, "", "-O3"),
            ({"SUBINTERP_DEBUG": "0"}, "", "-O3"),
            ({"SUBINTERP_DEBUG": "1"}, "debug", "-UNDEBUG"),
            ({"SUBINTERP_SANITIZE": "thread"}, "thread", "-fsanitize=thread"),
            ({"SUBINTERP_SANITIZE": "address"}, "address", "-fsanitize=address"),
            (
                {"SUBINTERP_SANITIZE": "thread", "SUBINTERP_DEBUG": "1"},
                "thread-debug",
                "-fsanitize=thread",
            ),
        ],
    )
    def test_builds_for_developers(self, setup_file, environ, flavour, has):
        name, _macros, compile_args, _link_args = setup_file["build_options"](environ)
        assert name == flavour
        assert has in compile_args

    def test_unknown_sanitizer_is_refused(self, setup_file):
        with pytest.raises(SystemExit, match="'memory'; it can be thread or address"):
            setup_file["build_options"]({"SUBINTERP_SANITIZE": "memory"})


class TestMetadata:
    def test_old_pythons_are_excluded(self):
        project = read_project()
        assert project["requires-python"] == ">=3.13"

    def test_cloudpickle_is_the_only_dependency(self):
        (dependency,) = read_project()["dependencies"]
        assert re.match(r"cloudpickle>=\d", dependency)

    def test_the_version_is_semantic_and_stands_in_one_place(self):
        version = read_project()["version"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()
        for path in [ROOT / "setup.py", ROOT / "setup.cfg", *(ROOT / "subinterp").glob("**/*.py*")]:
            if path.suffix in (".py", ".pyi", ".pyx", ".cfg"):
                assert f'"{version}"' not in path.read_text()

    def test_a_checkout_that_is_not_installed_has_an_unknown_version(self, monkeypatch):
        def version(name):
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "version", version)
        assert subinterp.__version__ == "unknown"


class TestFindPython:
    """tools/find-python, which chooses the Python for the Makefile."""

    def test_takes_the_one_named(self, tmp_path):
        done = self.find(tmp_path, PYTHON=sys.executable)
        assert done.returncode == 0, done.stderr
        assert self.version_of(done.stdout.strip()) == sys.version

    def test_refuses_the_one_named_and_says_why(self, tmp_path):
        fake = self.make_python(tmp_path / "python3", "sys.version_info = (3, 12, 1)")
        done = self.find(tmp_path, PYTHON=str(fake))
        assert done.returncode == 1
        assert done.stdout == ""
        assert "this is CPython 3.12.1" in done.stderr

    def test_says_that_the_one_named_is_no_command(self, tmp_path):
        done = self.find(tmp_path, PYTHON=str(tmp_path / "nothing"))
        assert done.returncode == 1
        assert "not a command" in done.stderr

    def test_prefers_the_newest_name_on_the_path(self, tmp_path):
        self.make_python(tmp_path / "bin/python3.13")
        newer = self.make_python(tmp_path / "bin/python3.14")
        done = self.find(tmp_path, report_itself=True)
        assert done.stdout.strip() == str(newer)

    def test_passes_by_what_is_broken_or_unsuitable(self, tmp_path):
        self.make_python(tmp_path / "bin/python3.15", "raise SystemExit(127)")
        self.make_python(tmp_path / "bin/python3.14", "sysconfig.get_config_var = lambda name: 1")
        good = self.make_python(tmp_path / "bin/python3.13")
        done = self.find(tmp_path, report_itself=True)
        assert done.stdout.strip() == str(good)

    def test_takes_the_version_asked_for(self, tmp_path):
        self.make_python(tmp_path / "bin/python3.14")
        self.make_python(tmp_path / "bin/python3")
        asked = self.make_python(tmp_path / "bin/python3.13")
        assert self.find(tmp_path, "3.13", report_itself=True).stdout.strip() == str(asked)
        pyenv = self.make_python(tmp_path / ".pyenv/versions/3.15.0/bin/python3")
        assert self.find(tmp_path, "3.15", report_itself=True).stdout.strip() == str(pyenv)
        assert self.find(tmp_path, "3.1", report_itself=True).returncode == 1

    def test_falls_back_to_pyenv_then_uv(self, tmp_path):
        uv = self.make_python(
            tmp_path / ".local/share/uv/python/cpython-3.14.1-linux-x86_64-gnu/bin/python3"
        )
        assert self.find(tmp_path, report_itself=True).stdout.strip() == str(uv)
        pyenv = self.make_python(tmp_path / ".pyenv/versions/3.13.2/bin/python3")
        assert self.find(tmp_path, report_itself=True).stdout.strip() == str(pyenv)

    def test_takes_the_newest_of_pyenv(self, tmp_path):
        for minor, micro in ((13, 9), (13, 10), (14, 2)):
            number = 0x030000F0 | minor << 16 | micro << 8
            last = self.make_python(
                tmp_path / f".pyenv/versions/3.{minor}.{micro}/bin/python3",
                f"sys.hexversion = {number}",
            )
        assert self.find(tmp_path, report_itself=True).stdout.strip() == str(last)

    def test_says_what_to_install_and_what_it_turned_down(self, tmp_path):
        self.make_python(tmp_path / "bin/python3", "sys.version_info = (3, 11, 2)")
        done = self.find(tmp_path)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "sudo apt install" in done.stderr
        assert "uv python install" in done.stderr
        assert "make PYTHON=" in done.stderr
        assert str(tmp_path / "bin/python3") in done.stderr
        assert "this is CPython 3.11.2" in done.stderr

    def test_a_missing_compiler_is_named(self, tmp_path):
        done = self.find(tmp_path, PYTHON=sys.executable, CC="no-such-compiler -O2")
        assert done.returncode == 1
        assert "no-such-compiler, is missing" in done.stderr

    def find(self, home, *version, report_itself=False, **environ):
        """Run find-python with a PATH that has the shell's tools and `home/bin` alone."""
        tools = home / "tools"
        tools.mkdir(exist_ok=True)
        for name in ("cat", "dirname"):
            if not (tools / name).exists():
                (tools / name).symlink_to(shutil.which(name))
        # A compiler that is surely there: whichever name sysconfig has, nobody runs it.
        environ = {
            "HOME": str(home),
            "PATH": f"{home / 'bin'}:{tools}",
            "CC": "cat",
            "REPORT_ITSELF": "1" if report_itself else "",
            **environ,
        }
        return run(["/bin/sh", ROOT / "tools/find-python", *version], cwd=home, env=environ)

    def make_python(self, path, pretend="pass"):
        """Make a command that is this Python but for a lie or two, and for its own path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lies = path.with_name(path.name + "-lies.py")
        lies.write_text(
            "import os, sys, sysconfig\n"
            "if os.environ['REPORT_ITSELF']:\n"
            f"    sys._base_executable = {str(path)!r}\n"
            f"{pretend}\n"
            "sys.argv = sys.argv[1:]\n"
            "exec(sys.stdin.read())\n"
        )
        path.write_text(
            "#!/bin/sh\n"
            'while [ "$1" != - ]; do shift; done\n'
            f'exec "{sys.executable}" -I -B "{lies}" "$@"\n'
        )
        path.chmod(0o755)
        return path

    def version_of(self, python):
        return run([python, "-c", "import sys; print(sys.version)"]).stdout.rstrip("\n")


class TestBuildWheels:
    """tools/build-wheels, as far as it goes without building."""

    @pytest.fixture
    def tool(self):
        return runpy.run_path(str(ROOT / "tools/build-wheels"))

    def test_pythons_of_a_version_share_a_wheel(self, tool):
        base = getattr(sys, "_base_executable", sys.executable)
        pythons = tool["by_version"]([sys.executable, base])
        assert pythons == {sys.version_info[:2]: {sys.version_info[:3]: base}}

    def test_a_python_that_will_not_do_is_named(self, tool):
        with pytest.raises(SystemExit, match="PYTHON=no-such-python is not a command"):
            tool["by_version"](["no-such-python"])

    def test_a_command_that_fails_shows_what_it_printed(self, tool):
        script = "print('it printed this'); raise SystemExit(3)"
        with pytest.raises(SystemExit, match=r"it printed this\n[^$]*exit status 3"):
            tool["run"](sys.executable, "-c", script)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Return a copy of the sources without anything that was made in the checkout."""
    copy = tmp_path_factory.mktemp("checkout") / "subinterp"
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(
            ".git", ".venv*", ".*_cache", "__pycache__", "build", "dist", "results",
            "*.so", "*.egg-info", "_core.c",
        ),
    )  # fmt: skip
    return copy


@pytest.fixture(scope="module")
def sdist(checkout, tmp_path_factory):
    """Return the path of an sdist of the checkout."""
    folder = tmp_path_factory.mktemp("sdist")
    check(run([sys.executable, "-m", "build", "--sdist", "--outdir", folder, checkout]))
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Return the path of a wheel that was built from the sdist alone, in isolation."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, sdist]
    check(run(pip, cwd=folder))
    (path,) = folder.iterdir()
    return path


@pytest.mark.slow
@pytest.mark.packaging
@pytest.mark.hard_timeout(900)
class TestPackages:
    def test_sdist_has_the_sources_and_nothing_generated(self, sdist, checkout):
        version = read_project()["version"]
        assert sdist.name == f"subinterp-{version}.tar.gz"
        with tarfile.open(sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        for path in checkout.glob("subinterp/**/*"):
            if path.is_file():
                assert str(path.relative_to(checkout)) in names
        for name in (
            "Makefile",
            "setup.py",
            "tests/test_packaging.py",
            "demo/analysis.py",
            "examples/notebook.ipynb",
        ):
            assert name in names
        generated = [name for name in names if name.endswith((".so", ".o", ".pyc", "_core.c"))]
        assert generated == []

    def test_wheel_has_the_module_and_types_and_no_sources(self, wheel):
        assert f"-cp{sys.version_info[0]}{sys.version_info[1]}-" in wheel.name
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        extension = "subinterp/_core" + sysconfig.get_config_var("EXT_SUFFIX")
        for name in (extension, "subinterp/_core.pyi", "subinterp/py.typed"):
            assert name in names
        sources = [name for name in names if name.endswith((".pyx", ".pxd", ".c", ".h"))]
        assert sources == []
        tops = {name.partition("/")[0] for name in names}
        assert tops == {"subinterp", f"subinterp-{read_project()['version']}.dist-info"}

    def test_wheel_carries_metadata_and_the_licence(self, wheel):
        project = read_project()
        with zipfile.ZipFile(wheel) as archive:
            folder = f"subinterp-{project['version']}.dist-info"
            found = metadata.PathDistribution(zipfile.Path(archive, folder + "/")).metadata
            licence = archive.read(f"{folder}/licenses/LICENSE")
        assert licence == (ROOT / "LICENSE").read_bytes()
        assert found["License-Expression"] == "MIT"
        assert found["Requires-Python"] == ">=3.13"
        assert found["Description-Content-Type"] == "text/markdown"
        extras = project["optional-dependencies"]
        assert {"joblib", "dask", "progress"} <= set(extras)
        assert sorted(found.get_all("Provides-Extra")) == sorted(extras)
        required = found.get_all("Requires-Dist")
        for extra, packages in extras.items():
            for package in packages:
                assert f'{package}; extra == "{extra}"' in required

    def test_wheel_works_in_a_clean_environment(self, wheel, tmp_path):
        python = make_environment(tmp_path)
        check(run([python, "-m", "pip", "install", wheel], cwd=tmp_path))
        done = check(run([python, "-P", SMOKE_TEST], cwd=tmp_path))
        assert str(tmp_path / "environment") in done.stdout
        check(run([python, "-m", "pip", "check"], cwd=tmp_path))

    def test_editable_install_works(self, checkout, tmp_path):
        copy = tmp_path / "checkout"
        shutil.copytree(checkout, copy)
        python = make_environment(tmp_path)
        check(run([python, "-m", "pip", "install", "--editable", copy], cwd=tmp_path))
        done = check(run([python, "-P", SMOKE_TEST], cwd=tmp_path))
        assert f": {copy}/subinterp/" in done.stdout
        # One plain line in a .pth file: every new interpreter reads it.
        (site_packages,) = (tmp_path / "environment/lib").glob("python*/site-packages")
        lines = [path.read_text().strip() for path in site_packages.glob("*subinterp*.pth")]
        assert lines == [str(copy)]
        # The sources stay as they were.
        assert not (copy / "subinterp/_core.c").exists()


def read_project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def make_environment(folder):
    """Make a clean virtual environment and return its Python."""
    venv.create(folder / "environment", with_pip=True, symlinks=True)
    return folder / "environment/bin/python"


def run(command, cwd=None, env=None):
    """Run a command without the settings that would tell of this checkout."""
    if env is None:
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "PYTHONHOME", "LD_PRELOAD")
            and not name.startswith(("SUBINTERP_", "COV_"))
        }
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )


def check(done):
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done
