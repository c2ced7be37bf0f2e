"""A class for every image.

Letters: B images, C classes (of pixels: channels), H height, W width.
"""

from typing import TYPE_CHECKING

import numpy as np

from autopeft.trainers import metrics
from autopeft.trainers.batches import AnyBatch
from autopeft.trainers.pixels import ImageBatch
from autopeft.trainers.rows import LabelKind
from autopeft.trainers.task_kind import Task, cross_entropy

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    Outputs = tuple[torch.Tensor, torch.Tensor]


def pixel_values(batch: ImageBatch, device: "torch.device") -> "torch.Tensor":
    """What the model's image processor gives, float32 `[B, C, H, W]`; bytes travel, the arithmetic is done there."""
    import torch

    bytes_BCHW = torch.from_numpy(batch.pixels_BCHW).to(device, non_blocking=True)
    scale_C, shift_C = (torch.from_numpy(row).to(device) for row in (batch.scale_C, batch.shift_C))
    return torch.addcmul(shift_C[:, None, None], bytes_BCHW.float(), scale_C[:, None, None])


def _image_outputs(model: "PreTrainedModel", batch: AnyBatch, device: "torch.device") -> "Outputs":
    """Logits `[B, C]` and classes `[B]`."""
    import torch

    assert isinstance(batch, ImageBatch), "this task reads images"
    logits_BC = model(pixel_values=pixel_values(batch, device).to(model.dtype)).logits
    return logits_BC.float(), torch.from_numpy(batch.targets).to(device, non_blocking=True)


IMAGES = Task(
    metrics=tuple(metrics.CLASS_METRICS),
    label=LabelKind.CLASS,
    encoding="images",
    encode=None,
    outputs=_image_outputs,
    loss=cross_entropy,
    statistics=lambda logits_BC, _: logits_BC,
    score=lambda names, logits_BC, target_B: metrics.class_metrics(names, logits_BC, target_B.astype(np.int64)),
)
