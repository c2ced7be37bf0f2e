"""One real training step on a tiny model, metered."""

from pathlib import Path

import numpy as np
import torch

from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ImageInput
from autopeft.trainers.batches import Batch
from autopeft.trainers.checkpointing import CheckpointedLayers
from autopeft.trainers.described import describe_model
from autopeft.trainers.forecast import MemoryForecast
from autopeft.trainers.inject import inject
from autopeft.trainers.job import ModelSpec, TrainingSettings
from autopeft.trainers.kinds import CLASSIFICATION, IMAGES
from autopeft.trainers.meter import MemoryMeter
from autopeft.trainers.model import LoadedModel, head_parameters, load_model, set_training
from autopeft.trainers.optimizers import make_optimizer
from autopeft.trainers.pixels import ImageBatch
from autopeft.trainers.sites import layers_of, without_cache
from autopeft.trainers.task import TASKS
from tests.models import IMAGE_MODELS, save_model


def open_model(family: str, folder: Path, *, attention: str, dtype: str) -> LoadedModel:
    """A tiny model with a head of two classes."""
    spec = ModelSpec(name=str(save_model(family, folder)), attention=attention, dtype=dtype)
    loaded = load_model(spec, kind=IMAGES if family in IMAGE_MODELS else CLASSIFICATION, n_labels=2)
    without_cache(loaded.model)
    return loaded


def forecast_of(loaded: LoadedModel, *, device: str = "cpu") -> MemoryForecast:
    """Predicts for the model that `open_model` gave, from its configuration alone."""
    described = describe_model(loaded.spec, kind=loaded.kind, n_labels=2)
    return MemoryForecast(described, TASKS[loaded.kind][0], device=device)


def text_batch(loaded: LoadedModel, batch_size: int, length: int) -> Batch:
    """Random words, one row two tokens shorter."""
    chance = np.random.default_rng(0)
    mask = np.ones((batch_size, length), dtype=np.int64)
    mask[1, -2:] = 0
    return Batch(
        ids_BT=chance.integers(5, loaded.shape.vocabulary_size, mask.shape),
        mask_BT=mask,
        types_BT=None,
        targets=chance.integers(0, 2, batch_size),
        tokens=int(mask.sum()),
    )


def image_batch(image: ImageInput, batch_size: int) -> ImageBatch:
    """Random pixels."""
    chance = np.random.default_rng(0)
    return ImageBatch(
        pixels_BCHW=chance.integers(0, 256, (batch_size, image.n_channels, image.height, image.width), dtype=np.uint8),
        scale_C=np.full(image.n_channels, 2 / 255, dtype=np.float32),
        shift_C=np.full(image.n_channels, -1.0, dtype=np.float32),
        targets=chance.integers(0, 2, batch_size),
        n_tokens=image.n_tokens,
    )


def measure_peak(
    loaded: LoadedModel,
    configuration: Configuration,
    *,
    batch_size: int,
    length: int,
    settings: TrainingSettings | None = None,
) -> int:
    """Peak bytes of one step."""
    batch = (
        image_batch(loaded.shape.image, batch_size) if loaded.shape.image else text_batch(loaded, batch_size, length)
    )
    adapters = inject(loaded.model, loaded.shape, configuration, seed=0)
    head = head_parameters(loaded)
    settings = settings or TrainingSettings()
    optimizer = make_optimizer([*adapters.named_parameters(), *head.items()], settings)
    layers = list(layers_of(loaded.model.base_model, loaded.shape))
    checkpoints = CheckpointedLayers(layers) if settings.checkpointing else None
    meter = MemoryMeter(device=torch.device("cpu"), modules=(loaded.model, adapters), checkpoints=checkpoints)
    meter.start()
    set_training(loaded, training=True)
    adapters.train()
    task = TASKS[loaded.kind][0]
    try:
        with meter.step(optimizer):
            loss = task.loss(*task.outputs(loaded.model, batch, torch.device("cpu")))
            penalty = adapters.penalty()
            (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        peak = meter.peak_bytes(optimizer)
        optimizer.zero_grad()
    finally:
        if checkpoints is not None:
            checkpoints.remove()
        adapters.remove()
    return peak
