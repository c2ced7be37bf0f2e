"""One random state of torch a slot: what a slot draws does not depend on who draws beside it."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import final

import torch

States = tuple[torch.Tensor, ...]
"""Of the CPU, and of the device where that is another."""


@final
class Chances:
    """Keeps the random state of every slot while another one's is torch's.

    Args:
        device: On which slots draw, beside the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            torch.cuda.init()
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])
        self._states: dict[Hashable, States] = {}
        self._holder: Hashable = None
        self._open = False

    def start(self, slot: Hashable, seed: int) -> None:
        """Begin a slot's state at `seed`."""
        self._states[slot] = tuple(
            torch.Generator(device=generator.device).manual_seed(seed).get_state() for generator in self._generators
        )

    def end(self, slot: Hashable) -> None:
        """Forget a slot."""
        self._states.pop(slot, None)

    def kept(self) -> Mapping[Hashable, States]:
        """All states as they are now, for `put_back`."""
        return dict(self._states)

    def put_back(self, states: Mapping[Hashable, States]) -> None:
        """Make all states what `kept` gave."""
        self._states = dict(states)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside, `enter` says whose state is torch's; the process's own is put back afterwards."""
        before = self._now()
        self._open = True
        try:
            yield
        finally:
            self._leave()
            self._open = False
            self._set(before)

    def enter(self, slot: Hashable) -> None:
        """Let torch draw from a slot's state from now on; does nothing outside `drawing`."""
        if self._open and self._holder != slot:
            self._leave()
            self._set(self._states[slot])
            self._holder = slot

    def _leave(self) -> None:
        if self._holder is not None:
            self._states[self._holder] = self._now()
            self._holder = None

    def _now(self) -> States:
        return tuple(generator.get_state() for generator in self._generators)

    def _set(self, states: States) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)
