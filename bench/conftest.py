"""What pytest and pytest-benchmark need to know about the races."""

import os
import platform
import sys
from importlib import metadata

import pytest

from bench.race import Races

races_key = pytest.StashKey[Races]()


def pytest_addoption(parser):
    group = parser.getgroup("bench", "benchmarks of subinterp")
    group.addoption("--short", action="store_true", help="measure with less effort (two minutes)")
    group.addoption("--rivals-only", action="store_true", help="leave subinterp out of the races")


def pytest_collection_finish(session):
    selected = {}
    for item in session.items:
        case = getattr(item.function, "case", None)
        if case is not None:
            contender = item.callspec.params["contender"]
            selected.setdefault(case.name, []).append(contender)
    session.config.stash[races_key] = Races(
        selected,
        short=session.config.getoption("short"),
        without_ours=session.config.getoption("rivals_only"),
    )


@pytest.fixture(scope="session")
def races(pytestconfig):
    """The races of this session."""
    return pytestconfig.stash[races_key]


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["cores"] = len(os.sched_getaffinity(0))
    machine_info["load"] = os.getloadavg()
    machine_info["libc"] = " ".join(platform.libc_ver())
    machine_info["python_build"] = sys.version
    machine_info["packages"] = {
        name: _version(name) for name in ("subinterp", "cloudpickle", "loky", "pytest-benchmark")
    }


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def pytest_benchmark_update_json(config, benchmarks, output_json):
    races = config.stash[races_key]
    output_json["races"] = {
        "short": races.short,
        "unavailable": races.unavailable,
        "failed": races.failed,
    }
