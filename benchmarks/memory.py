"""Predicted against measured peak training memory, on cases drawn at random; nothing of the prediction is fitted.

Usage:

    python benchmarks/memory.py                      # 240 cases on the CPU, then the timings
    python benchmarks/memory.py --device cuda        # the same against torch.cuda.max_memory_allocated
    python benchmarks/memory.py --device watched     # the CUDA prediction against a step on the CPU whose storages are
                                                     # followed; shows that the CUDA part runs where there is no GPU
    python benchmarks/memory.py --published FOLDER   # runs.csv and config.json of published peaks on one model

A case is a model family, one to three methods, sizes, layers, batch, length, dtype, attention and checkpointing. Models
are small and random. Appends a row a case and a row a summary to `benchmarks/results/memory.jsonl`.
"""

import argparse
import csv
import gc
import json
import random
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from common import write_rows

from autopeft.errors import AutoPeftError
from autopeft.objectives.memory import Setup
from autopeft.objectives.residual import MARGIN
from autopeft.spaces.canonical import configuration
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import FieldKind
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.checkpointing import CheckpointedLayers
from autopeft.trainers.described import describe_model
from autopeft.trainers.device_paths import CudaPaths
from autopeft.trainers.example import example_batch
from autopeft.trainers.forecast import MemoryForecast
from autopeft.trainers.foreign import forecast_peft
from autopeft.trainers.inject import inject
from autopeft.trainers.job import ModelSpec, TrainingSettings
from autopeft.trainers.kinds import AUTO_CLASSES, LANGUAGE
from autopeft.trainers.meter import MemoryMeter, distinct_tensors
from autopeft.trainers.model import LoadedModel, head_modules, head_parameters, make_trainable, set_training
from autopeft.trainers.optimizers import make_optimizer
from autopeft.trainers.sites import layers_of, measure, without_cache
from autopeft.trainers.storages import StorageWatch, storage_key
from autopeft.trainers.task import TASKS
from autopeft.trainers.training_loss import training_loss

CASES = 240
FAMILIES: Mapping[str, tuple[str, str]] = {
    "albert": ("AlbertConfig", "text-classification"),
    "bert": ("BertConfig", "text-classification"),
    "deberta-v2": ("DebertaV2Config", "text-classification"),
    "electra": ("ElectraConfig", "token-classification"),
    "gemma": ("GemmaConfig", "causal-lm"),
    "gpt_neox": ("GPTNeoXConfig", "causal-lm"),
    "llama": ("LlamaConfig", "causal-lm"),
    "mistral": ("MistralConfig", "text-classification"),
    "modernbert": ("ModernBertConfig", "text-classification"),
    "mpnet": ("MPNetConfig", "text-classification"),
    "olmo": ("OlmoConfig", "causal-lm"),
    "phi": ("PhiConfig", "causal-lm"),
    "phi3": ("Phi3Config", "causal-lm"),
    "qwen2": ("Qwen2Config", "causal-lm"),
    "qwen3": ("Qwen3Config", "causal-lm"),
    "roberta": ("RobertaConfig", "text-classification"),
    "stablelm": ("StableLmConfig", "causal-lm"),
    "starcoder2": ("Starcoder2Config", "causal-lm"),
    "vit": ("ViTConfig", "image-classification"),
}
"""Class of the configuration and task, by family."""
EAGER_ONLY = ("deberta-v2", "mpnet")
SEVENTY_B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One random way to train."""

    family: str
    spec: ModelSpec
    kind: str
    setup: Setup

    @property
    def n_labels(self) -> int | None:
        return None if self.kind in LANGUAGE else 3


def draw_case(chance: random.Random, folder: Path, device: str) -> Case:
    """A model's configuration in `folder`, and how it is trained."""
    family = chance.choice(sorted(FAMILIES))
    name, kind = FAMILIES[family]
    heads = chance.choice((2, 4))
    sizes: dict[str, object] = {
        "vocab_size": chance.choice((97, 500, 2000)),
        "hidden_size": heads * chance.choice((16, 32)),
        "num_hidden_layers": chance.randint(2, 4),
        "num_attention_heads": heads,
        "intermediate_size": chance.choice((64, 96, 160)),
        "max_position_embeddings": 160,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family in ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "starcoder2", "stablelm", "olmo"):
        sizes["num_key_value_heads"] = chance.choice((1, heads))
    if family in ("qwen3", "gemma"):
        sizes["head_dim"] = 16
    if kind == "image-classification":
        sizes |= {"image_size": 32, "patch_size": chance.choice((4, 8))}
    getattr(transformers, name)(**sizes).save_pretrained(folder)
    eager = family in EAGER_ONLY or device == "watched" or chance.random() < 0.5
    dtype = chance.choice(("float32", "bfloat16"))
    spec = ModelSpec(name=str(folder), dtype=dtype, attention="eager" if eager else "sdpa")
    setup = Setup(
        batch_size=chance.choice((1, 2, 3, 8, 12)),
        length=chance.choice((7, 16, 40, 96)),
        checkpointing=chance.random() < 0.25,
        optimizer="lora_fa" if chance.random() < 0.1 else "adamw",
    )
    return Case(family=family, spec=spec, kind=kind, setup=setup)


def draw_configuration(chance: random.Random, shape: ModelShape) -> Configuration:
    """One to three methods on random layers, with sizes by layer."""
    names = chance.sample(sorted(METHODS), chance.choice((1, 1, 1, 2, 3)))
    rows: dict[str, object] = {}
    for name in names:
        size = METHODS[name].size_field
        layers = [layer for layer in range(shape.n_layers) if chance.random() < 0.6] or [shape.n_layers - 1]
        if METHODS[name].at_input:
            layers = [0]
        top = 1 if size.high == 1 else 8
        row: dict[str, object] = {"layers": layers, size.name: [chance.randint(1, top) for _ in layers]}
        if "dropout" in {field.name for field in METHODS[name].fields}:
            row["dropout"] = chance.choice((0.0, 0.1))
        if any(field.kind is FieldKind.TARGETS for field in METHODS[name].fields) and chance.random() < 0.5:
            linear = [site.name for site in shape.layers[0] if site.role.value != "other"]
            row["targets"] = chance.sample(linear, chance.randint(1, len(linear)))
        rows[name] = row
    return configuration(rows, shape)


def load(case: Case, device: str) -> LoadedModel:
    """The case's model with random weights."""
    config = transformers.AutoConfig.from_pretrained(case.spec.name, attn_implementation=case.spec.attention)
    if case.n_labels is not None:
        config.num_labels = case.n_labels
    model = AUTO_CLASSES[case.kind].from_config(config, dtype=getattr(torch, str(case.spec.dtype)))
    model.requires_grad_(False).eval()
    without_cache(model)
    names = () if case.kind in LANGUAGE else head_modules(model, set(), place=case.family)
    for name in names:
        make_trainable(model.get_submodule(name))
    model.to("cuda" if device == "cuda" else "cpu")
    shape = measure(model.base_model, model.config)
    return LoadedModel(
        spec=case.spec, kind=case.kind, model=model, tokenizer=None, reader=None, shape=shape, head_names=names
    )


def measured(case: Case, config: Configuration, device: str) -> int:
    """Peak of two steps of training, as the device measures it."""
    loaded = load(case, device)
    settings = TrainingSettings(optimizer=case.setup.optimizer, checkpointing=case.setup.checkpointing)
    adapters = inject(loaded.model, loaded.shape, config, seed=0)
    head = head_parameters(loaded)
    optimizer = make_optimizer([*adapters.named_parameters(), *head.items()], settings)
    checkpoints = None
    if settings.checkpointing:
        paths = CudaPaths if device == "watched" else nullcontext
        checkpoints = CheckpointedLayers(list(layers_of(loaded.model.base_model, loaded.shape)), again=paths)
    where = loaded.model.device
    meter = MemoryMeter(device=where, modules=(loaded.model, adapters), checkpoints=checkpoints)
    task = TASKS[case.kind][0]
    rows, length = case.setup.rows, case.setup.length
    batch = example_batch(task, rows=rows, sequences=1, length=length, image=loaded.shape.image)
    set_training(loaded, training=True)
    adapters.train()
    gc.collect()
    meter.start()
    watch = StorageWatch({storage_key(tensor) for tensor in distinct_tensors([loaded.model, adapters])})
    peak = 0
    for _ in range(2):
        with _watched(watch, device), meter.step(optimizer):
            loss = training_loss(task, loaded.model).loss(batch, where)
            penalty = adapters.penalty()
            whole = loss if penalty is None else loss + penalty
            if whole.requires_grad:
                whole.backward()
            del loss, penalty, whole
        optimizer.step()
        peak = max(peak, meter.peak_bytes(optimizer))
        optimizer.zero_grad()
    if device != "watched":
        return peak
    from autopeft.trainers.meter import held_bytes, state_bytes

    return held_bytes([loaded.model, adapters]) + state_bytes(optimizer) + watch.peak


@contextmanager
def _watched(watch: StorageWatch, device: str) -> Iterator[None]:
    if device != "watched":
        yield
        return
    with CudaPaths(), watch:
        yield


def run_case(seed: int, device: str) -> dict[str, object] | None:
    """One row; None where the draw does not fit the model."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        case = draw_case(chance, Path(name), device)
        described = describe_model(case.spec, kind=case.kind, n_labels=case.n_labels)
        try:
            config = draw_configuration(chance, described.shape)
            found = measured(case, config, device)
        except AutoPeftError:
            return None
        forecast = MemoryForecast(described, TASKS[case.kind][0], device="cpu" if device == "cpu" else "cuda")
        predicted = forecast.predict(config, case.setup).measurable
    return {
        "benchmark": "memory",
        "device": device,
        "seed": seed,
        "family": case.family,
        "kind": case.kind,
        "methods": [setting.method for setting in config],
        "dtype": case.spec.dtype,
        "attention": case.spec.attention,
        "batch_size": case.setup.batch_size,
        "length": case.setup.length,
        "checkpointing": case.setup.checkpointing,
        "optimizer": case.setup.optimizer,
        "measured_bytes": found,
        "predicted_bytes": predicted,
        "error": predicted / found - 1,
    }


def summary(rows: list[dict[str, object]], device: str) -> dict[str, object]:
    """Errors over all cases, and what the margin makes of them."""
    errors = np.array([row["error"] for row in rows], dtype=float)
    chance = np.random.default_rng(0)
    found = np.array([row["measured_bytes"] for row in rows], dtype=float)
    upper = np.array([row["predicted_bytes"] for row in rows], dtype=float) * (1.0 + MARGIN)
    capacity = found * chance.uniform(0.5, 1.5, len(found))
    fits = found <= capacity
    return {
        "benchmark": "memory-summary",
        "device": device,
        "cases": len(rows),
        "families": len({str(row["family"]) for row in rows}),
        "methods": len({method for row in rows for method in cast("list[str]", row["methods"])}),
        "mean_absolute_error": float(np.abs(errors).mean()),
        "absolute_error_p95": float(np.quantile(np.abs(errors), 0.95)),
        "worst_error": float(errors[np.abs(errors).argmax()]),
        "equal_to_the_byte": float((errors == 0).mean()),
        "margin": MARGIN,
        "under_estimates_with_margin": float((found > upper).mean()),
        "false_refusals": float((upper > capacity)[fits].mean()),
        "false_starts": float((upper <= capacity)[~fits].mean()),
    }


def timings() -> list[dict[str, object]]:
    """Seconds until the first prediction of a model, and of each of many configurations after it."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_text(json.dumps(SEVENTY_B))
        three = {**SEVENTY_B, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24}
        (Path(name) / "3b").mkdir()
        (Path(name) / "3b" / "config.json").write_text(json.dumps({**three, "num_hidden_layers": 28}))
        return [_timing("llama-3b", Path(name) / "3b"), _timing("llama-70b", Path(name))]


def _timing(name: str, folder: Path) -> dict[str, object]:
    began, cpu = time.perf_counter(), time.process_time()
    described = describe_model(ModelSpec(name=str(folder), attention="sdpa"), kind="causal-lm", n_labels=None)
    forecast = MemoryForecast(described, TASKS["causal-lm"][0], device="cuda")
    n, chance, setup = described.shape.n_layers, random.Random(0), Setup(batch_size=4, length=768)
    fixed = {"targets": ["self_attn.q_proj", "self_attn.v_proj"]}
    first = forecast.predict(configuration({"lora": {"rank": 32, **fixed}}, described.shape), setup)
    first_seconds, first_cpu = time.perf_counter() - began, time.process_time() - cpu
    seconds: list[float] = []
    for _ in range(300):
        ranks = [chance.randint(0, 64) for _ in range(n)]
        one = configuration({"lora": {"rank": ranks, **fixed}}, described.shape)
        began = time.perf_counter()
        forecast.predict(one, setup)
        seconds.append(time.perf_counter() - began)
    p20, p50, p80 = np.quantile(seconds, [0.2, 0.5, 0.8])
    return {
        "benchmark": "memory-time",
        "model": name,
        "base_parameters": described.shape.base_parameters,
        "predicted_bytes": first.total,
        "first_seconds": first_seconds,
        "first_cpu_seconds": first_cpu,
        "configuration_seconds": {"p20": p20, "p50": p50, "p80": p80, "mean": float(np.mean(seconds))},
    }


def published(folder: Path) -> list[dict[str, object]]:
    """Predicted against published peaks of PEFT runs: every run's, and the rank correlation."""
    rows: list[dict[str, object]] = []
    for run in csv.DictReader((folder / "runs.csv").open(encoding="utf-8")):
        config: dict[str, Any] | None = json.loads(run["peft_config"])
        train = json.loads(run["train_config"])
        if config is None:
            continue
        began = time.perf_counter()
        spec = ModelSpec(name=str(folder), dtype=train["dtype"], attention="sdpa")
        setup = Setup(batch_size=train["batch_size"], length=train["max_seq_length"], checkpointing=train["use_gc"])
        predicted = forecast_peft(config, spec, setup, kind="causal-lm", n_labels=None, device="cuda")
        rows.append(
            {
                "benchmark": "memory-published",
                "run": run["experiment"],
                "published_bytes": int(run["peak_reserved_bytes"]),
                "predicted": predicted.to_json(),
                "seconds": time.perf_counter() - began,
            }
        )
        print(run["experiment"], f"{predicted.total / 2**30:.2f} GiB", f"{int(run['peak_reserved_bytes']) / 2**30:.2f}")
    told = np.array([cast("dict[str, int]", row["predicted"])["total"] for row in rows], dtype=float)
    seen = np.array([row["published_bytes"] for row in rows], dtype=float)
    ranks = [values.argsort().argsort() for values in (told, seen)]
    spearman = float(np.corrcoef(*ranks)[0, 1])
    ratio = told / seen
    return [
        *rows,
        {
            "benchmark": "memory-published-summary",
            "runs": len(rows),
            "spearman": spearman,
            "ratio_median": float(np.median(ratio)),
            "ratio_low": float(ratio.min()),
            "ratio_high": float(ratio.max()),
        },
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda", "watched"), default="cpu")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--published", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.published is not None:
        rows = published(options.published)
        print(json.dumps(rows[-1], indent=2))
        print(write_rows("memory", rows))
        return
    rows = []
    seed = 0
    while len(rows) < options.cases:
        row = run_case(seed, options.device)
        seed += 1
        if row is not None:
            rows.append(row)
            if abs(cast("float", row["error"])) > 0.01:
                print(json.dumps(row), flush=True)
    total = summary(rows, options.device)
    print(json.dumps(total, indent=2))
    more = timings() if options.device == "cpu" else []
    print(json.dumps(more, indent=2))
    print(write_rows("memory", [*rows, total, *more]))


if __name__ == "__main__":
    main()
