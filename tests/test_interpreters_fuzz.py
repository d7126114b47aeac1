"""Random use of interpreters, queues and channels from several threads: see _interpfuzz.py.

SUBINTERP_STRESS scales the number of operations; 20 is some minutes.
"""

from __future__ import annotations

import os
import random

import pytest

from _support import run_script

SCALE = float(os.environ.get("SUBINTERP_STRESS", "1.0"))
SEED = int(os.environ.get("SUBINTERP_STRESS_SEED", "0")) or random.SystemRandom().getrandbits(20)


@pytest.mark.stress
@pytest.mark.hard_timeout(120 + 120 * max(SCALE, 1))
@pytest.mark.parametrize("threads", [1, 6])
def test_random_operations(threads):
    print("SUBINTERP_STRESS_SEED", SEED)  # shown when the test fails
    operations = max(100, int(1500 * SCALE))
    result = run_script(
        f"import _interpfuzz; _interpfuzz.main({SEED}, {operations}, {threads})",
        timeout=60 + 100 * max(SCALE, 1),
    ).check()
    assert result.stdout.splitlines()[-1] == "well", result
