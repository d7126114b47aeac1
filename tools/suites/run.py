"""One process of tools/test-packages: runs a suite in main or in a worker."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import recorder

if __name__ == "__main__":
    where, order = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    sys.argv[1:] = []
    if where == "main":
        recorder.run(**order)
    else:
        from subinterp import InterpreterPool

        with InterpreterPool(1) as pool:
            pool.submit(recorder.run, **order).result()
