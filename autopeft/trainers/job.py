"""What a worker is told: which model and task, how to train, and one job."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from autopeft.objectives.measurement import Measurement
from autopeft.spaces.configuration import Configuration

COMPEFT: Final = "compeft"
ONE_BIT: Final = "1bit"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A base model: hub id or local folder."""

    name: str
    revision: str | None = None
    dtype: str | None = None
    """Weights' dtype (`float32`, `bfloat16`, `float16`); None takes the checkpoint's."""
    attention: str | None = None
    """`sdpa` or `eager`; None takes the library's default."""
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Where the rows come from: local files (or folders of class folders) by split, or a hub data set."""

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    hub: str | None = None
    name: str | None = None
    """Configuration name of a hub data set, e.g. `rte`."""
    revision: str | None = None
    validation_fraction: float = 0.1
    """Share of train that becomes validation where the data has none."""
    test_fraction: float = 0.1
    """Share of train that becomes the held-out split where the data has none."""
    max_train_rows: int | None = None
    """Use only this many training rows (a seeded sample, the same for every trial)."""
    max_validation_rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What is learned and how it is scored."""

    kind: str
    """A key of `autopeft.trainers.task.TASKS`: `text-classification`, `token-classification`, `multiple-choice`,
    `causal-lm`, `seq2seq`, `image-classification`."""
    data: DataSpec
    text: tuple[str, ...] = ()
    """One or two text columns; for multiple-choice a question and a column of lists, or one column a choice; none for
    images."""
    image: str | None = None
    """Column of images or of their paths; None for tasks that read texts."""
    label: str | None
    """Label column; None for tasks without one."""
    metric: str
    extra_metrics: tuple[str, ...] = ()
    """Measured and stored too, not searched by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How one configuration is trained; a configuration's own `training` entries override these by name."""

    epochs: int = 3
    batch_size: int = 32
    accumulation: int = 1
    """Parts that a batch is run in, one after the other, before a step: less memory, the same gradient."""
    checkpointing: bool = False
    """Layers keep only their inputs and compute the rest again for the backward pass."""
    evaluation_batch_size: int = 128
    max_length: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup_ratio: float = 0.06
    schedule: str = "linear"
    """`linear` (to zero), `cosine` or `constant`, each after the warm-up."""
    clip_norm: float | None = 1.0
    precision: str = "auto"
    """`auto` (bf16 where the hardware is faster with it), `float32`, `bfloat16`."""
    optimizer: str = "adamw"
    """`adamw`, `lora_fa` (the first factors A of low-rank pairs stay at their initial values) or `galore`."""
    lora_plus_ratio: float = 1.0
    """Learning rate of the second factors B over `learning_rate` (LoRA+)."""
    weight_decay_b: float | None = None
    """Of the second factors B; None takes `weight_decay`."""
    ba_consistency: float = 0.0
    """Weight of `regularizers.Consistency` in the loss; 0, here and below, is off."""
    ba_diversity: float = 0.0
    ba_spectrum: float = 0.0
    density: float = 0.0
    density_epsilon: float = 1e-7
    ggpo_sigma: float = 0.0
    """Of `perturbation.WeightNoise`, as is `ggpo_beta`; both 0 is off."""
    ggpo_beta: float = 0.0
    measure_density: bool = False
    """Measure `activation_density` on the validation rows (`regularizers.DensityMeter`)."""
    galore_rank: int = 8
    """Directions that `galore` projects a matrix's gradient to; smaller matrices are left whole."""
    layer_sampling: str = "none"
    """Which adapted layers a step trains: `none` samples none (all train), `importance` (IST) or `random`."""
    layers_kept: float = 0.25
    """Share of the adapted layers that a step trains, where layers are sampled."""
    sampling_interval: int = 10
    """Steps between two updates of the layers' importance."""
    suppression: float = 0.25
    """Factor on the adapters' response in layers whose importance is probed."""
    prefix_bytes: int = 1 << 30
    """What of the layers below the lowest adapted one may be kept for all trials (`prefix.FrozenPrefix`); 0 is none."""
    seed: int = 0
    """Of the data split; each trial's own seed is in its job."""

    def to_mapping(self) -> dict[str, object]:
        """What of it decides what is learned, as in a study file's `training`."""
        return {name: value for name, value in asdict(self).items() if name != "prefix_bytes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """One or more configurations for one worker, that share the base model."""

    configurations: tuple[Configuration, ...]
    seeds: tuple[int, ...]
    """One a configuration: initialisation, data order, dropout."""
    epochs: int
    output_dirs: tuple[Path | None, ...] = ()
    """Where each trained adapter is written (None: not kept); empty keeps none."""
    checkpoints: tuple[Path | None, ...] = ()
    """Where each configuration's state is kept after every epoch but the last, and found again (None: not kept): a
    training goes on from there, and first reports again what was measured before. Empty keeps none."""
    at_once: int = 1
    """Configurations that train at once on the one base; the others wait until a slot is free."""
    evaluate_test: bool = False
    """Also score the held-out split at the end (never during a search)."""
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressionSpec:
    """How a trained adapter is to be compressed."""

    method: str
    """`compeft` or `1bit`."""
    density: float | None = None
    """Share of the numbers that ComPEFT keeps, in (0, 1]; None chooses it on the validation rows."""
    alpha: float | None = None
    """ComPEFT's level as a multiple of the standard deviation; None chooses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One configuration of a job finished an epoch, or failed."""

    slot: int
    """Index into the job's configurations; beyond them, the refills in the order in which they were given."""
    measurement: Measurement | None
    failure: tuple[str, str] | None = None
    """(kind, message) when this configuration failed; it reports nothing more."""
    done: bool = False
    """True on the last report of this configuration."""
    test_metrics: Mapping[str, float] = field(default_factory=dict)
    test_draws: tuple[float, ...] = ()
    """The task's metric on rows of the held-out split drawn again with replacement, the same rows for every report."""


class AbstractSlots(ABC):
    """What the study says of a job while it is trained; called in the process that trains, between two reports."""

    @abstractmethod
    def stopped(self, slot: int) -> bool:
        """Whether the study has stopped this configuration; asked after each of its reports but the last."""

    @abstractmethod
    def refill(self) -> TrainJob | None:
        """A job of one configuration for a slot that is free now, None for nothing (a later free slot asks again).

        Its slot is the next number: the configurations of the job, then the earlier refills.
        """


class AbstractTrainer(ABC):
    """Trains jobs in one process; long-lived: base model and tokenised data are loaded once.

    Pickle-free: a worker builds its own from (ModelSpec, TaskSpec, TrainingSettings).
    """

    @abstractmethod
    def run(self, job: TrainJob, slots: AbstractSlots | None = None) -> Iterator[Report]:
        """Train, yielding a report for every configuration and epoch. Closing the iterator stops training.

        `slots` may stop configurations early, and gives others for the slots that become free; the reports of
        several configurations may come in any order, those of one by epoch.

        A configuration that diverges or runs out of memory yields one report with its failure; only a bug raises.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the model and the device memory."""


TrainerFactory = type[AbstractTrainer]
Reports = Sequence[Report]
