"""Kernels compiled for cards that are not there: nothing spills, and shared memory is there on all from 8.0 on."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SHARED_BYTES = 99 * 1024
"""Of a program on capabilities 8.6 and 8.9, the least of those that the dispatch lets through."""
compiles = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def compiled(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    out = folder / "rows.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels_aot.py"), *arguments, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in out.read_text().splitlines()]


def assert_fits(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["spill_store_bytes"] == row["spill_load_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_BYTES, row


@compiles
def test_a_kernel_compiles_for_a_card_that_is_not_there(tmp_path: Path) -> None:
    rows = compiled(tmp_path, "--targets", "80", "--operations", "softmax_cross_entropy")
    assert {row["dtype"] for row in rows} == {"bfloat16", "float16", "float32"}
    assert_fits(rows)


@compiles
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kernel_fits_at_every_size_that_the_dispatch_gives_it(tmp_path: Path) -> None:
    assert_fits(compiled(tmp_path))
