"""Parameters and peak memory of one configuration, before any weight is loaded."""

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from autopeft.errors import SpecError
from autopeft.objectives.memory import MemoryBreakdown, Setup
from autopeft.objectives.parameters import count_parameters
from autopeft.objectives.residual import MARGIN
from autopeft.spaces.canonical import configuration
from autopeft.spaces.constraints import read_amount
from autopeft.spaces.model_shape import ModelShape
from autopeft.spaces.peft_config import count_peft_config
from autopeft.spaces.training import OPTIMIZERS
from autopeft.spaces.virtual_tokens import virtual_tokens
from autopeft.studies.capacity import CONTEXT_BYTES
from autopeft.studies.describe import describe
from autopeft.studies.estimate_cache import EstimateCache
from autopeft.studies.paths import resolve_path
from autopeft.studies.yaml_file import read_yaml
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.lengths import refuse_length

DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager")
DEVICES = ("cuda", "cpu")
MOST_ROWS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """How the configuration is trained; a configuration's own settings go first."""

    batch_size: int = 32
    sequence_length: int | None = None
    """None takes 128 tokens, or as many as the model has positions for."""
    optimizer: str = "adamw"
    dtype: str | None = None
    """Of the frozen weights; None takes the checkpoint's."""
    attention: str | None = None
    """`sdpa` or `eager`; None takes the library's default."""
    checkpointing: bool = False
    task: str | None = None
    """A task kind; None takes language modelling for a decoder, classification in two classes for an encoder."""
    trials_per_job: int = 1
    """Such trials that train at once on one base."""
    device: str = "cuda"
    """`cuda`: everything that is alive at the peak, and the driver's context. `cpu`: as a trial is measured there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The largest batch for a device."""

    capacity: int
    batch_size: int
    """0 where not even one row fits."""

    def to_json(self) -> dict[str, int]:
        return {"capacity": self.capacity, "batch_size": self.batch_size}


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """How many numbers a configuration trains."""

    parameters: int
    base_parameters: int
    described: str
    """The configuration in a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate(Counted):
    """What a configuration costs."""

    memory: MemoryBreakdown
    fit: Fit | None = None

    def to_json(self) -> dict[str, object]:
        found = {} if self.fit is None else {"fit": self.fit.to_json()}
        return {
            "parameters": self.parameters,
            "base_parameters": self.base_parameters,
            "memory": self.memory.to_json(),
            **found,
        }


def estimate(
    model: str,
    file: Path,
    conditions: Conditions,
    *,
    fit: str | None = None,
    counted: Callable[[Counted], None] = lambda count: None,
    prepare: Callable[[], None] = lambda: None,
    cache: Path | None = None,
) -> Estimate:
    """What the configuration in `file` costs on `model`; reads the model's `config.json` only.

    Args:
        model: Hub id or folder.
        file: An AutoPEFT configuration (YAML or JSON; exported folders hold one), or a Hugging Face
            `adapter_config.json`, which is traced as PEFT itself trains it.
        conditions: How it is trained.
        fit: Memory of a device, such as `24GiB`: also find the largest batch whose peak fits, with a margin.
        counted: Told the count before the memory is predicted, which takes longer.
        prepare: Called before anything heavy is imported, which is where the answer is not known yet.
        cache: Folder of what earlier estimates found; None keeps nothing.

    Raises:
        InputError: A file, model or setting that is not usable.
    """
    _check(conditions)
    capacity = None if fit is None else read_amount(fit, place="--fit")
    spec = ModelSpec(name=resolve_path(model, folder=None), dtype=conditions.dtype, attention=conditions.attention)
    known = EstimateCache(cache, model=spec.name) if cache is not None else None
    shape, most_tokens = _shape(spec, known, prepare)
    spec = replace(spec, dtype=shape.dtype, attention=shape.attention)
    written = read_configuration_file(file)
    conditions = _with_length(conditions, written, spec, shape, most_tokens)
    foreign = "peft_type" in written
    count = _counted_foreign(written, shape, conditions) if foreign else _counted(written, shape)
    counted(count)

    @functools.cache
    def found() -> Price:
        prepare()
        return (_foreign if foreign else _own)(written, spec, shape, conditions)

    def price(rows: int | None) -> MemoryBreakdown:
        def find() -> MemoryBreakdown:
            return found()(rows)

        question = [written, asdict(conditions), rows]
        alone = find() if known is None else known.memory(question, find)
        return alone.packed(conditions.trials_per_job)

    return Estimate(
        parameters=count.parameters,
        base_parameters=count.base_parameters,
        described=count.described,
        memory=price(None),
        fit=None if capacity is None else Fit(capacity=capacity, batch_size=largest_batch(price, capacity)),
    )


def _shape(spec: ModelSpec, known: EstimateCache | None, prepare: Callable[[], None]) -> tuple[ModelShape, int | None]:
    """The model's shape, and how many tokens it takes."""

    def find() -> tuple[ModelShape, int | None]:
        prepare()
        from autopeft.trainers.checkpoint import most_tokens
        from autopeft.trainers.model import read_shape

        shape = read_shape(spec)
        return shape, None if shape.image is not None else most_tokens(spec)

    return find() if known is None else known.shape([spec.dtype, spec.attention], find)


def _counted(written: Mapping[str, object], shape: ModelShape) -> Counted:
    chosen = configuration(written, shape)
    return Counted(
        parameters=count_parameters(chosen, shape).total,
        base_parameters=shape.base_parameters,
        described=describe(chosen, shape),
    )


def _counted_foreign(written: Mapping[str, object], shape: ModelShape, conditions: Conditions) -> Counted:
    kind, _ = _task(shape, conditions)
    classifies = kind in ("text-classification", "multiple-choice") and not written.get("task_type")
    return Counted(
        parameters=count_peft_config({**written, "task_type": "SEQ_CLS"} if classifies else written, shape),
        base_parameters=shape.base_parameters,
        described=str(written["peft_type"]),
    )


Price = Callable[[int | None], MemoryBreakdown]
"""The peak with a batch of that many rows; None takes what the configuration or the conditions say."""


def _own(written: Mapping[str, object], spec: ModelSpec, shape: ModelShape, conditions: Conditions) -> Price:
    from autopeft.trainers.described import describe_model
    from autopeft.trainers.forecast import MemoryForecast
    from autopeft.trainers.task import TASKS

    kind, n_labels = _task(shape, conditions)
    chosen = configuration(written, shape)
    described = describe_model(spec, kind=kind, n_labels=n_labels, shape=shape)
    forecast = MemoryForecast(described, TASKS[kind][0], device=conditions.device)

    def price(rows: int | None) -> MemoryBreakdown:
        setup = _setup(conditions)
        if rows is None:
            return forecast.predict(chosen, setup, context=_context(conditions))
        others = tuple((name, value) for name, value in chosen.training if name != "batch_size")
        fixed = replace(chosen, training=(*others, ("batch_size", rows)))
        return forecast.predict(fixed, setup, context=_context(conditions))

    return price


def _foreign(written: Mapping[str, object], spec: ModelSpec, shape: ModelShape, conditions: Conditions) -> Price:
    from autopeft.trainers.foreign import PeftForecast

    kind, n_labels = _task(shape, conditions)
    forecast = PeftForecast(written, spec, kind=kind, n_labels=n_labels, device=conditions.device)

    def price(rows: int | None) -> MemoryBreakdown:
        setup = _setup(conditions if rows is None else replace(conditions, batch_size=rows))
        return forecast.predict(setup, context=_context(conditions))

    return price


def largest_batch(price: Price, capacity: float) -> int:
    """The most rows whose peak, with `MARGIN` on what is not the driver's, is within `capacity`; 0 where none are.

    The peak rises with the rows, in pieces that are straight, so a straight line through two known batches says where
    to look; every answer is a batch that was priced.
    """

    def excess(rows: int) -> float:
        memory = price(rows)
        return memory.context + (1.0 + MARGIN) * memory.measurable - capacity

    known = {1: excess(1)}
    if known[1] > 0:
        return 0
    low, high = 1, 2
    while high <= MOST_ROWS:
        known[high] = excess(high)
        if known[high] > 0:
            break
        low, high = high, _next(low, high, known)
    while high - low > 1:
        share = -known[low] / (known[high] - known[low])
        middle = min(max(low + math.floor(share * (high - low)), low + 1), high - 1)
        for rows in (middle, middle + 1):
            if low < rows < high:
                known[rows] = excess(rows)
                low, high = (rows, high) if known[rows] <= 0 else (low, rows)
    return low


def _next(low: int, high: int, known: Mapping[int, float]) -> int:
    """A batch somewhat beyond where the line through two that fit reaches the limit."""
    slope = (known[high] - known[low]) / (high - low)
    reach = math.ceil(-known[high] / slope * 1.05) + 1 if slope > 0 else high
    return min(high + max(reach, 1), max(MOST_ROWS, high + 1))


def _with_length(
    conditions: Conditions,
    written: Mapping[str, object],
    spec: ModelSpec,
    shape: ModelShape,
    most_tokens: int | None,
) -> Conditions:
    """`conditions` with a length that the model has positions for, virtual tokens before it included."""
    length = conditions.sequence_length
    if shape.image is not None:
        return replace(conditions, sequence_length=length or LENGTH)
    virtual = written.get("num_virtual_tokens") if str(written.get("peft_type", "")).endswith(_PROMPTS) else 0
    if "peft_type" not in written:
        virtual = virtual_tokens(configuration(written, shape))
    virtual = virtual if isinstance(virtual, int) else 0
    length = length or max(1, min(LENGTH, (most_tokens or LENGTH + virtual) - virtual))
    refuse_length(spec, length, virtual=virtual, limit=most_tokens, place="--sequence-length")
    return replace(conditions, sequence_length=length)


LENGTH = 128
_PROMPTS = ("PROMPT_TUNING", "P_TUNING")
"""What the names of PEFT's types end in that put virtual tokens before a sequence."""
KINDS = (
    *("text-classification", "token-classification", "multiple-choice", "causal-lm", "seq2seq"),
    "image-classification",
)
"""Task kinds, spelled out so that nothing heavy is loaded before the options are checked."""


def _task(shape: ModelShape, conditions: Conditions) -> tuple[str, int | None]:
    """Task kind and outputs of its head."""
    kind = conditions.task
    if kind is None and shape.image is not None:
        kind = "image-classification"
    elif kind is None:
        kind = "seq2seq" if shape.decoder_layers else "causal-lm" if shape.causal else "text-classification"
    return kind, {"causal-lm": None, "seq2seq": None, "multiple-choice": 1}.get(kind, 2)


def _setup(conditions: Conditions) -> Setup:
    return Setup(
        batch_size=conditions.batch_size,
        length=conditions.sequence_length or LENGTH,
        optimizer=conditions.optimizer,
        checkpointing=conditions.checkpointing,
    )


def _context(conditions: Conditions) -> int:
    return CONTEXT_BYTES if conditions.device == "cuda" else 0


def _check(conditions: Conditions) -> None:
    allowed = {
        "dtype": (None, *DTYPES),
        "attention": (None, *ATTENTIONS),
        "optimizer": OPTIMIZERS,
        "task": (None, *KINDS),
        "device": DEVICES,
    }
    for name, values in allowed.items():
        value = getattr(conditions, name)
        if value not in values:
            raise SpecError(f"--{name}: got {value!r}; allowed: {', '.join(one for one in values if one)}")


def read_configuration_file(file: Path) -> Mapping[str, object]:
    """The mapping in a YAML or JSON file; of an exported folder's `export.json` its configuration."""
    if file.suffix == ".json" and file.is_file():
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise SpecError(f"{file}: not valid JSON: {error}") from None
        if not isinstance(data, dict):
            raise SpecError(f"{file}: a configuration is a mapping of methods to their fields")
        if "target_modules" in data and "peft_type" not in data:
            raise SpecError(f"{file}: peft_type: missing", hint="give an adapter_config.json that peft wrote")
        inner = data.get("configuration")
        return inner if isinstance(inner, dict) else data
    if file.is_file() and not file.read_bytes().strip():
        raise SpecError(f"{file}: is empty; a configuration is a mapping of methods", hint="e.g. lora: {rank: 8}")
    return read_yaml(file).data
