"""What the layers below the lowest adapted one make of rows: the same for every trial and epoch, so computed once.

The frozen base drops nothing out, so a row's states at a layer below which nothing is adapted depend on the row alone.
They are kept row by row, without padding, for whole splits, as long as they fit a budget of bytes; batches of any order
are put together from them. Rows that several slots read in one pass are computed once even where nothing fits.

Whether a model can be entered at a layer is tried, on a few rows: where its output is not that of the whole model, it
is run whole.

Letters: N rows, T tokens of the longest, H hidden width.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, final

import numpy as np
import torch
from torch import nn

from autopeft.spaces.configuration import Configuration
from autopeft.spaces.methods import METHODS
from autopeft.trainers.batches import EncodedSplit, IntArray, batches_of, evaluation_batches
from autopeft.trainers.job import TrainingSettings
from autopeft.trainers.model import LoadedModel, set_training
from autopeft.trainers.sites import layers_of
from autopeft.trainers.task_kind import Task
from autopeft.trainers.tokens import TokenizedSplit

FILL_ROWS: Final = 64
"""Rows of a pass that fills the cache."""
TRIED_ROWS: Final = 4
TOLERANCE: Final = 2e-2
"""Relative difference of outputs: bf16 gives 4e-3, a model that is entered wrongly something near one."""
SHARED: Final = 0.75
"""Distinct rows of a pass are computed apart where they are no more than this share of all."""
_CALL: Final = "_call_impl"


def lowest_layer(configuration: Configuration, settings: TrainingSettings, *, n_layers: int) -> int:
    """The layers below it compute what they compute for everyone; 0 where all are needed, or looked into.

    Args:
        configuration: Whose methods are asked.
        settings: With the configuration's own entries applied.
        n_layers: Of the model, which is the answer for a configuration that adapts none.
    """
    if settings.density or settings.measure_density or settings.checkpointing:
        return 0
    if any(METHODS[row.method].at_input for row in configuration):
        return 0
    return min([n_layers, *(min(row.layers) for row in configuration)])


@final
class FrozenPrefix:
    """The states of rows at layers of one base model.

    Args:
        loaded: The base with its head.
        task: Says how it is called.
        budget: Bytes that may be kept on its device.
        pad_id: Of the tokenizer.
    """

    def __init__(self, loaded: LoadedModel, task: Task, *, budget: int, pad_id: int) -> None:
        self._loaded, self._task = loaded, task
        self._budget, self._pad_id = budget, pad_id
        self._layers = list(layers_of(loaded.model.base_model, loaded.shape))
        self._kept: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()
        self._splits: dict[int, EncodedSplit] = {}
        self._tried: dict[int, bool] = {}
        self._form: Callable[[torch.Tensor], Any] = _as_it_is

    @property
    def n_bytes(self) -> int:
        """Bytes that are kept now."""
        return sum(states.nbytes for states in self._kept.values())

    def prepare(self, cut: int, splits: Sequence[EncodedSplit], *, keep: bool = True) -> int:
        """Where rows of `splits` may enter the model: `cut`, or 0 where it has to be run whole.

        Their states are kept as far as the budget goes, the first split first; what was not used for longest goes.

        Args:
            cut: A layer below which nothing is adapted.
            splits: Whose rows will be read.
            keep: Whether their states will be needed often enough.
        """
        if not cut or self._loaded.shape.decoder_layers or not all(map(_is_plain, splits)):
            return 0
        if cut not in self._tried:
            self._tried[cut] = self._works(cut, splits[0])
        if not self._tried[cut]:
            return 0
        for split in splits if keep else ():
            self._keep(cut, split)
        return cut

    @contextmanager
    def entering(self, cut: int, split: EncodedSplit, rows: IntArray) -> Iterator[None]:
        """Inside, a call of the model on the batch of these rows of `split` begins at a layer up to `cut`.

        Where neither their states are kept nor rows repeat, it begins at the first.
        """
        found = self._states(cut, split, rows) if cut else None
        if found is None:
            yield
            return
        below, states_NTH = found
        with self._standing_in(below, states_NTH):
            yield

    def _states(self, cut: int, split: EncodedSplit, rows: IntArray) -> tuple[int, torch.Tensor] | None:
        """A layer and the states there, padded with the last token's."""
        below = max((at for at, whose in self._kept if whose == id(split) and at <= cut), default=0)
        if below:
            self._kept.move_to_end((below, id(split)))
            flat = self._kept[below, id(split)]
            cells_NT = _cells(split.lengths, rows)
            return below, flat[torch.from_numpy(cells_NT).to(flat.device, non_blocking=True)]
        distinct, places = np.unique(rows, return_inverse=True)
        if len(distinct) > SHARED * len(rows):
            return None
        states = self._computed(cut, split, distinct)
        return cut, states.index_select(0, torch.from_numpy(places).to(states.device, non_blocking=True))

    @contextmanager
    def _standing_in(self, cut: int, states_NTH: torch.Tensor) -> Iterator[None]:
        """Layers below `cut` are not run: each gives the states."""
        given = self._form(states_NTH)
        try:
            for layer in self._layers[:cut]:
                layer.__dict__[_CALL] = lambda *_, **__: given
            yield
        finally:
            for layer in self._layers[:cut]:
                layer.__dict__.pop(_CALL, None)

    def _computed(self, cut: int, split: EncodedSplit, rows: IntArray) -> torch.Tensor:
        """States `[N, T, H]` of rows of `split` at `cut`."""
        (batch,) = batches_of(split, [rows], pad_id=self._pad_id)
        seen: list[Any] = []

        def reached(_: nn.Module, __: object, output: Any) -> None:
            seen.append(output)
            raise _ReachedError

        handle = self._layers[cut - 1].register_forward_hook(reached)
        try:
            with torch.no_grad():
                self._task.outputs(self._loaded.model, batch, self._loaded.model.device)
        except _ReachedError:
            pass
        finally:
            handle.remove()
        self._form = _form_of(seen[0])
        return seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]

    def _works(self, cut: int, split: EncodedSplit) -> bool:
        """Whether the bare model, entered at `cut`, gives what it gives whole."""
        set_training(self._loaded, training=False)
        rows = np.arange(min(TRIED_ROWS, len(split)))
        (batch,) = batches_of(split, [rows], pad_id=self._pad_id)
        ask = partial(self._task.outputs, self._loaded.model, batch, self._loaded.model.device)
        with torch.no_grad():
            whole, _ = ask()
            states = self._computed(cut, split, rows)
            if states.dim() != 3 or tuple(states.shape[:2]) != batch.mask_BT.shape:
                return False
            with self._standing_in(cut, states):
                entered, _ = ask()
        return bool((entered - whole).norm() <= TOLERANCE * whole.norm())

    def _keep(self, cut: int, split: EncodedSplit) -> None:
        key = cut, id(split)
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        model = self._loaded.model
        n_tokens = int(split.lengths.sum())
        n_bytes = n_tokens * self._loaded.shape.hidden_size * model.dtype.itemsize
        current = sum(self._kept[other].nbytes for other in self._kept if other[0] == cut)
        if current + n_bytes > self._budget:
            return
        while self.n_bytes + n_bytes > self._budget:
            self._kept.popitem(last=False)
        self._splits[id(split)] = split
        self._kept[key] = self._filled(cut, split, n_tokens)

    def _filled(self, cut: int, split: EncodedSplit, n_tokens: int) -> torch.Tensor:
        """States `[tokens, H]` of all rows of `split`, row after row."""
        flat: torch.Tensor | None = None
        for rows in evaluation_batches(split.widths, FILL_ROWS):
            states_NTH = self._computed(cut, split, rows)
            if flat is None:
                flat = states_NTH.new_empty(n_tokens, states_NTH.shape[2])
            real_NT = np.arange(states_NTH.shape[1]) < split.lengths[rows][:, None]
            cells = torch.from_numpy(_cells(split.lengths, rows)[real_NT]).to(flat.device)
            flat[cells] = states_NTH[torch.from_numpy(real_NT).to(flat.device)]
        assert flat is not None, "a split has rows"
        return flat


class _ReachedError(Exception):
    """Ends a pass of the model at the layer whose output is wanted."""


def _as_it_is(states: torch.Tensor) -> Any:
    return states


def _form_of(output: Any) -> Callable[[torch.Tensor], Any]:
    """What makes a layer's output of its states: the tensor itself, or a tuple of it and nothing."""
    if isinstance(output, torch.Tensor):
        return _as_it_is
    return lambda states: (states, *(None for _ in output[1:]))


def _is_plain(split: EncodedSplit) -> bool:
    """Whether every row is one sequence."""
    return not isinstance(split, TokenizedSplit) or split.parts is None


def _cells(lengths: IntArray, rows: IntArray) -> IntArray:
    """`[N, T]` places of the rows' tokens among those of all rows; beyond its end a row's last token's."""
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])[rows]
    own = lengths[rows]
    return starts[:, None] + np.minimum(np.arange(int(own.max())), own[:, None] - 1)
