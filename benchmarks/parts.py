"""Which part of a trial takes its time, for every trainer the same way: calls of torch and transformers are timed."""

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import trainer_peer
from torch.utils.data import dataloader
from transformers import PreTrainedModel
from transformers import Trainer as PeerTrainer

from autopeft.trainers import batches, loop, trainer

PARTS = ("set-up", "data", "forward", "backward", "optimizer", "evaluation", "the rest")


class Parts:
    """Seconds by part; time inside an inner part does not count for the outer one, evaluation counts as a whole.

    On a CPU they are the processor's, which others on the machine do not lengthen.
    """

    def __init__(self, device: str) -> None:
        self.seconds: Counter[str] = Counter()
        self._inside = ["the rest"]
        self._cuda = device.startswith("cuda")
        self._clock = time.perf_counter if self._cuda else time.process_time
        self._since = self._clock()

    def shares(self) -> dict[str, float]:
        """Share of each part in the whole."""
        whole = sum(self.seconds.values())
        return {part: round(self.seconds[part] / whole, 4) for part in PARTS}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if "evaluation" in self._inside:
            yield
            return
        self._turn()
        self._inside.append(name)
        try:
            yield
        finally:
            self._turn()
            self._inside.pop()

    @contextmanager
    def watching(self, model: type[PreTrainedModel]) -> Iterator[None]:
        """Inside, the calls of a trainer on a model of this class are timed."""
        places: tuple[tuple[Any, str, str], ...] = (
            (trainer, "inject", "set-up"),
            (trainer_peer, "adapted_model", "set-up"),
            (PeerTrainer, "__init__", "set-up"),
            (batches, "collate", "data"),
            (dataloader._BaseDataLoaderIter, "__next__", "data"),
            (model, "forward", "forward"),
            (torch.Tensor, "backward", "backward"),
            (torch.optim.AdamW, "step", "optimizer"),
            (torch.optim.Optimizer, "zero_grad", "optimizer"),
            (torch.nn.utils, "clip_grad_norm_", "optimizer"),
            (loop, "predict", "evaluation"),
            (PeerTrainer, "evaluate", "evaluation"),
        )
        with ExitStack() as stack:
            for owner, name, part in places:
                original = getattr(owner, name)
                setattr(owner, name, self._timed(original, part))
                stack.callback(setattr, owner, name, original)
            self._since = self._clock()
            yield
            self._turn()

    def _timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return call(*args, **kwargs)

        return timed

    def _turn(self) -> None:
        """What has passed since the last turn goes to the part that we are in; a device finishes first."""
        if self._cuda:
            torch.cuda.synchronize()
        now = self._clock()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now
