"""Cross-entropy of rows of logits, and its gradient where they stood.

Shapes: M rows of a chunk, V vocabulary.
"""

import torch

IGNORED = -100


def softmax_cross_entropy(logits_MV: torch.Tensor, labels_M: torch.Tensor) -> torch.Tensor:
    """Each row's loss, fp32 [M]; the logits become its gradient, softmax less one at the label.

    A row whose label is `IGNORED` has loss and gradient zero.
    """
    dtype = logits_MV.dtype if logits_MV.dtype == torch.float64 else torch.float32
    counted = labels_M != IGNORED
    at = labels_M.where(counted, 0).unsqueeze(-1)
    logs = torch.log_softmax(logits_MV.to(dtype), dim=-1)
    losses = -logs.gather(-1, at).squeeze(-1) * counted
    gradient = logs.exp_().scatter_add_(-1, at, -torch.ones_like(at, dtype=dtype)) * counted.unsqueeze(-1)
    logits_MV.copy_(gradient)
    return losses
