"""What a user waits for before anything happens."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "ray", "mlflow", "botorch", "optuna", "pandas", "plotly", "datasets", "sklearn")


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_but_itself() -> None:
    loaded = {name for name in modules_after("import autopeft") if name.startswith("autopeft")}
    assert loaded == {"autopeft", "autopeft.search"}


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    assert not modules_after("import autopeft.cli") & set(HEAVY)


def test_validating_a_study_file_loads_nothing_heavy() -> None:
    assert not modules_after("import autopeft.studies.load") & set(HEAVY)


def needs_triton(path: Path) -> bool:
    """Whether the file is of the kernels themselves, which nothing imports where Triton is missing."""
    return path.stem == "language" or "autopeft.kernels.language import" in path.read_text(encoding="utf-8")


def test_trainers_and_kernels_load_without_the_libraries_of_the_study() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("trainers", "kernels")
        for path in sorted((ROOT / "autopeft" / package).rglob("*.py"))
        if path.name != "__init__.py" and (find_spec("triton") or not needs_triton(path))
    ]
    blocked = ("ray", "optuna", "mlflow", "datasets", "botorch", "pydantic", "typer", "rich")
    code = f"import sys, importlib\nfor name in {blocked}: sys.modules[name] = None\n"
    modules = modules_after(code + f"for name in {names}: importlib.import_module(name)")
    assert set(names) <= modules


def test_spaces_and_objectives_need_numpy_at_most() -> None:
    loaded = modules_after("import autopeft.spaces.space, autopeft.objectives.front")
    assert not loaded & {*HEAVY, "scipy", "pydantic"}
