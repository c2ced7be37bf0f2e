"""Seconds that the quickstart takes, from the command to the front, without the installation.

Usage: `python benchmarks/quickstart.py`; appends a row to `benchmarks/results/quickstart.jsonl`.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, write_rows

from autopeft import Study


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, str(ROOT / "examples" / "quickstart.py"), "--folder", folder]
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - began
        front = Study.open("quickstart", storage=f"sqlite:///{Path(folder)}/autopeft.db").front()
        row = {
            "benchmark": "quickstart",
            "unit": "seconds",
            "value": round(seconds, 1),
            "trials": len(front.history),
            "front": [{"trial": point.trial, **point.values} for point in front],
        }
    print(f"{seconds:.0f} s, {len(front)} points on the front; {write_rows('quickstart', [row])}")


if __name__ == "__main__":
    main()
