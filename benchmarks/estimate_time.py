"""How long `autopeft estimate` takes on a model that is only described, from the command line and inside a process.

    python benchmarks/estimate_time.py                      writes benchmarks/results/estimate_time.jsonl

The models are Llamas of 3B and 70B parameters, each a folder with a `config.json`. Every question is asked of a new
process, with an empty cache (`first`) and again with what that left (`again`). The judgement is processor seconds on
one thread (`cpu_seconds`, user and system of the process and its children): wall time depends on what else runs.
`import torch, transformers` is timed beside it, which no answer that traces can be faster than.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, spread, write_rows
from memory import SEVENTY_B

CONFIGURATIONS = {
    "autopeft": ("lora.json", {"lora": {"rank": 8, "targets": ["q_proj", "v_proj"]}}),
    "peft": ("adapter_config.json", {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"]}),
}
LIBRARIES = "import torch\nfrom transformers import AutoModel, PreTrainedModel"
CAPACITIES = {"llama-3b": "24GiB", "llama-70b": "400GiB"}
"""What `--fit` is asked for."""
IN_PROCESS = 300
"""Configurations that are asked for inside a process."""


def models(folder: Path) -> dict[str, Path]:
    """A folder with a configuration for each model."""
    three = {**SEVENTY_B, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24}
    configs = {"llama-3b": {**three, "num_hidden_layers": 28}, "llama-70b": SEVENTY_B}
    for name, config in configs.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return {name: folder / name for name in configs}


def timed(command: list[str], cache: Path) -> tuple[dict[str, float], str]:
    """Seconds of a new process and its output; `count_seconds` until its first line."""
    environment = os.environ | {"AUTOPEFT_CACHE": str(cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        counted, cpu = time.perf_counter() - began, _cpu_of(process.pid)
        rest = process.stdout.read()
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": used, "count_wall": counted, "count_cpu": cpu}, first + rest


def _cpu_of(pid: int) -> float:
    """Processor seconds of a running process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def asked(model: str, folder: Path, kind: str, *, fit: str | None, repeats: int) -> list[dict[str, object]]:
    """Rows of one question, with an empty cache and with a full one."""
    times: dict[str, list[dict[str, float]]] = {"first": [], "again": []}
    answers: set[str] = set()
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / CONFIGURATIONS[kind][0]
            file.write_text(json.dumps(CONFIGURATIONS[kind][1]))
            command = [sys.executable, "-m", "autopeft", "estimate", "--model", str(folder), "--config", str(file)]
            command += [*["--batch-size", "4", "--sequence-length", "768", "--dtype", "bfloat16"]]
            for rows in times.values():
                found, text = timed([*command, *(("--fit", fit) if fit else ())], Path(name) / "cache")
                rows.append(found)
                answers.add(text)
    assert len(answers) == 1, "a kept answer is the answer"
    question = {"model": model, "configuration": kind, "fit": fit, "repeats": repeats}
    return [
        {"benchmark": "estimate-command", **question, "cache": when}
        | {f"{name}_seconds": spread([row[name] for row in rows]) for name in rows[0]}
        for when, rows in times.items()
    ]


def in_process(model: str, folder: Path) -> dict[str, object]:
    """Milliseconds of each of many configurations, with a rank for each layer, once the model is traced."""
    from autopeft.objectives.memory import Setup
    from autopeft.spaces.canonical import configuration
    from autopeft.trainers.described import describe_model
    from autopeft.trainers.forecast import MemoryForecast
    from autopeft.trainers.job import ModelSpec
    from autopeft.trainers.task import TASKS

    described = describe_model(ModelSpec(name=str(folder), dtype="bfloat16"), kind="causal-lm", n_labels=None)
    forecast = MemoryForecast(described, TASKS["causal-lm"][0], device="cuda")
    chance, milliseconds = random.Random(0), list[float]()
    setup = Setup(batch_size=4, length=768)
    for at in range(IN_PROCESS + 1):
        ranks = [chance.randint(0, 64) for _ in range(described.shape.n_layers)]
        one = configuration({"lora": {"rank": ranks, "targets": ["q_proj", "v_proj"]}}, described.shape)
        began = time.process_time()
        forecast.predict(one, setup)
        if at:
            milliseconds.append(1000 * (time.process_time() - began))
    row = {"benchmark": "estimate-in-process", "model": model, "configurations": IN_PROCESS}
    return row | {"cpu_milliseconds": spread(milliseconds)}


def main() -> None:
    """Time every question; print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="new processes a question")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        floor = [timed([sys.executable, "-c", LIBRARIES], Path(name))[0] for _ in range(repeats)]
        about = {"benchmark": "estimate-imports", "statement": LIBRARIES, "repeats": repeats}
        written([about | {f"{key}_seconds": spread([row[key] for row in floor]) for key in ("wall", "cpu")}])
        folders = models(Path(name))
        for model, folder in folders.items():
            for kind in CONFIGURATIONS:
                written(asked(model, folder, kind, fit=None, repeats=repeats))
        for model, folder in folders.items():
            written([in_process(model, folder)])
        for model, folder in folders.items():
            for kind in CONFIGURATIONS:
                written(asked(model, folder, kind, fit=CAPACITIES[model], repeats=repeats))


def written(rows: list[dict[str, object]]) -> None:
    """Print and keep rows as soon as they are there."""
    for row in rows:
        print(json.dumps(row), flush=True)
    write_rows("estimate_time", rows)


if __name__ == "__main__":
    main()
