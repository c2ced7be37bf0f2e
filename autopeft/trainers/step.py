"""One training step of a described model, as a device would run it."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from autopeft.trainers.batches import AnyBatch
from autopeft.trainers.checkpointing import Chain, CheckpointedLayers
from autopeft.trainers.described import DescribedModel
from autopeft.trainers.device_paths import CudaPaths
from autopeft.trainers.fake import faking
from autopeft.trainers.inject import AdapterSet
from autopeft.trainers.meter import distinct_tensors
from autopeft.trainers.model import set_training
from autopeft.trainers.sites import layers_of
from autopeft.trainers.storages import storage_key
from autopeft.trainers.task_kind import Task
from autopeft.trainers.training_loss import training_loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is run: a model on a batch, as a device would."""

    described: DescribedModel
    task: Task
    batch: AnyBatch
    device: str
    checkpointing: bool = False

    def permanent(self, adapters: AdapterSet | None = None) -> set[int]:
        """Storages of the model's and the adapters' parameters and buffers."""
        modules: list[nn.Module] = [self.described.model, *([] if adapters is None else [adapters])]
        return {storage_key(tensor) for tensor in distinct_tensors(modules)}

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(layers_of(self.described.model.base_model, self.described.shape))

    def loss(self) -> torch.Tensor:
        """The task's loss of the model on the batch."""
        return training_loss(self.task, self.described.model).loss(self.batch, torch.device("cpu"))

    @contextmanager
    def running(self, *, watched: Chain | None = None) -> Iterator[None]:
        """Inside, the model is in training mode and operations take the device's paths.

        Args:
            watched: Layers save only their inputs where the step says so; wraps the hooks of their second pass.
        """
        with ExitStack() as stack:
            stack.enter_context(faking(self.described.mode))
            paths = CudaPaths if self.device == "cuda" else nullcontext
            if self.checkpointing and watched is not None:
                checkpoints = CheckpointedLayers(self.layers, same_chance=False, again=paths)
                checkpoints.watched = watched
                stack.callback(checkpoints.remove)
            stack.enter_context(paths())
            set_training(self.described, training=True)
            yield
