"""Routed LoRA experts beside frozen linear maps (Gao et al. 2024, MoLA, arXiv 2402.08562).

All experts of a map are one pair of stacked factors; a token's gate weights multiply the hidden vector between them,
so one matrix product each way computes every expert, and those a token does not go through are multiplied by zero.

Shapes: I and O the map's input and output width, E experts, K experts a token goes through, R rank, T tokens,
N sequences, S positions.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Final, final

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.kernels.dispatch import takes
from autopeft.kernels.low_rank import BRANCH
from autopeft.kernels.routed import ROUTING, balance_loss, routed_lora
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement
from autopeft.trainers.adapters.passes import OfPass
from autopeft.trainers.sites import reads_encoder

_MASKS: Final = ("attention_mask", "decoder_attention_mask")


@final
class RoutedExperts(OfPass):
    """The experts at one site: y += (alpha / R) * sum over a token's K experts e of w_e B_e A_e dropout(x).

    w are the K largest of softmax(router x) over all E, divided by their sum; which is the softmax of the K largest
    logits. Dropout is drawn once for all experts.
    """

    def __init__(
        self,
        *,
        d_in: int,
        d_out: int,
        experts: int,
        rank: int,
        alpha: float,
        dropout: float,
        top_k: int,
        stream: int = 0,
    ) -> None:
        super().__init__(stream=stream)
        self.a = nn.Parameter(torch.zeros(experts * rank, d_in))  # [E R, I]
        self.b = nn.Parameter(torch.zeros(d_out, experts * rank))  # [O, E R]
        self.router = nn.Parameter(torch.zeros(experts, d_in))  # [E, I]
        self.rank = rank
        self.scale = alpha / rank
        self.dropout = dropout
        self.top_k = top_k

    def forward(self, x: torch.Tensor, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`output` [..., O] plus the experts' update for `x` [..., I]; router logits [..., E] and choices [..., K].

        The factors are cast to the activations' dtype; logits and gate weights are fp32 as in the authors' code.
        """
        logits = functional.linear(x, self.router.to(x.dtype)).float()
        best, chosen = logits.topk(self.top_k, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, chosen, best.softmax(dim=-1))
        dropped = functional.dropout(x, self.dropout, training=self.training) if self.dropout else x
        hidden = functional.linear(dropped, self.a.to(x.dtype))
        hidden = hidden.unflatten(-1, (-1, self.rank)) * gates.unsqueeze(-1).to(hidden.dtype)
        flat = hidden.flatten(-2).flatten(0, -2).to(output.dtype)
        b = self.b.to(output.dtype).t()
        updated = torch.addmm(output.flatten(0, -2), flat, b, alpha=self.scale).view(output.shape)
        return updated, logits, chosen

    def by_kernels(
        self, x: torch.Tensor, output: torch.Tensor, real: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same `output`; choices [E] and summed probabilities [E] over the tokens that are `real` [T] (None: all).

        Computed by the kernels, which `fits_kernels` says whether they can.
        """
        slots = self.passing.slots(x, scale=self.scale, dropout=self.dropout if self.training else 0.0)
        n_experts = len(self.router)
        updated, choices, probabilities = routed_lora(
            x.flatten(0, -2),
            output.flatten(0, -2).clone(),
            self.router[None],
            self.a.unflatten(0, (n_experts, self.rank))[None],
            self.b.unflatten(1, (n_experts, self.rank))[None],
            slots,
            experts_K=torch.full((1,), n_experts, dtype=torch.int32, device=x.device),
            top_k_K=torch.full((1,), self.top_k, dtype=torch.int32, device=x.device),
            real_N=torch.ones(slots.n_rows, dtype=torch.bool, device=x.device) if real is None else real,
            stream=self.stream,
        )
        return updated.view(output.shape), choices[0], probabilities[0]

    def fits_kernels(self, x: torch.Tensor) -> bool:
        """Whether kernels compute the experts for `x` [..., I]; not where A is frozen and B is not (`lora_fa`)."""
        trains = x.dim() > 1 and self.a.requires_grad >= self.b.requires_grad
        return trains and takes(BRANCH, x, rank=len(self.a)) and takes(ROUTING, x, rank=self.rank)


@final
class MolaAdapter(AbstractAdapter):
    """Routed experts on the target sites of one layer; exactly zero at initialisation.

    The load-balance loss of the layer is `balance * E * sum over e of f_e P_e`: f_e is the share of all choices that
    fell on expert e, P_e the mean probability of e over the tokens of all targets (Fedus et al. 2022, arXiv
    2101.03961, equations 4 to 6). Padding, which the authors' code counts, is left out. The loss is `balance` at
    perfect balance and `balance * E` when all tokens go to one expert.
    """

    def __init__(self, sites: Mapping[str, RoutedExperts], *, balance: float, in_decoder: bool = False) -> None:
        super().__init__()
        self.targets = tuple(sites)
        self.balance = balance
        self.in_decoder = in_decoder
        self._masks: dict[str, object] = {}
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for name, site in sites.items():
            self.add_module(name.replace(".", "_"), site)

    def experts(self, target: str) -> RoutedExperts:
        """The experts at the site called `target`."""
        site = self.get_submodule(target.replace(".", "_"))
        assert isinstance(site, RoutedExperts)
        return site

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        base = model.base_model
        names = list(inspect.signature(base.forward).parameters)

        def begin(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            given = dict(zip(names, args, strict=False)) | kwargs
            self._masks = {name: given.get(name) for name in _MASKS}
            self._seen.clear()

        handles: list[Handle] = [base.register_forward_pre_hook(begin, with_kwargs=True)]
        for target in self.targets:
            site, mask = self.experts(target), self._mask_name(target)

            def hook(
                _: nn.Module,
                args: tuple[torch.Tensor, ...],
                output: torch.Tensor,
                site: RoutedExperts = site,
                mask: str = mask,
            ) -> torch.Tensor:
                x, counts = args[0], self.training and bool(self.balance)
                real = _real(x, self._masks.get(mask)) if counts else None
                if site.fits_kernels(x):
                    updated, *seen = site.by_kernels(x, output, real)
                else:
                    updated, logits, chosen = site(x, output)
                    seen = [*_routed(logits, chosen, real)] if counts else []
                if counts:
                    self._seen.append((seen[0], seen[1]))
                return updated

            handles.append(layer.get_submodule(target).register_forward_hook(hook))
        return handles

    def _mask_name(self, target: str) -> str:
        """The model's argument that says which of the tokens at `target` are real."""
        return _MASKS[self.in_decoder and not reads_encoder(target)]

    def penalty(self) -> torch.Tensor | None:
        """The load-balance loss of the last forward pass in training mode; None when there was none or it is off."""
        if not self._seen:
            return None
        choices = torch.stack([row for row, _ in self._seen]).sum(dim=0)  # [E]
        probability = torch.stack([row for _, row in self._seen]).sum(dim=0)  # [E], summed over tokens
        self._seen.clear()
        n_experts = choices.new_full((1,), len(choices))
        return self.balance * balance_loss(choices[None], probability[None], n_experts)[0]


def _real(x: torch.Tensor, mask: object) -> torch.Tensor | None:
    """Which of the tokens [T] of `x` are real by `mask` [N, S], bool; None, all, where it does not fit.

    Virtual tokens, which stand before those that the mask knows, are left out.
    """
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    if x.dim() == 3 and x.shape[1] > mask.shape[1]:
        mask = functional.pad(mask, (x.shape[1] - mask.shape[1], 0))
    return mask.flatten() != 0 if mask.numel() == x.shape[:-1].numel() else None


def _routed(logits: torch.Tensor, chosen: torch.Tensor, real: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Choices [E] and summed probabilities [E] over the tokens that are `real` [T], None for all.

    A token's probabilities sum to one, so the summed ones, divided by their sum, are the mean.
    """
    logits, chosen = logits.flatten(0, -2), chosen.flatten(0, -2)  # [T, E], [T, K]
    weights = logits.new_ones(len(logits)) if real is None else real.to(logits)
    ones = weights.unsqueeze(-1).expand(chosen.shape)
    choices = logits.new_zeros(logits.shape[-1]).index_add(0, chosen.flatten(), ones.flatten())
    return choices, weights @ logits.softmax(dim=-1)


def build_mola(placement: Placement) -> MolaAdapter:
    """Kaiming-uniform routers and A (a = sqrt(5)), zero B, at every target of the layer.

    Raises:
        ConfigurationError: A target is no linear site of the layer.
    """
    rows: dict[str, RoutedExperts] = {}
    for site in placement.target_sites():
        experts = RoutedExperts(
            d_in=site.d_in,
            d_out=site.d_out,
            experts=placement.size("experts"),
            rank=placement.size("rank"),
            alpha=placement.real("alpha"),
            dropout=placement.real("dropout"),
            top_k=placement.size("top_k"),
            stream=placement.stream(site, kind=2),
        )
        for tensor in (experts.router, experts.a):
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5), generator=placement.generator)
        rows[site.name] = experts
    in_decoder = placement.layer >= placement.shape.n_layers - placement.shape.decoder_layers
    return MolaAdapter(rows, balance=placement.real("balance"), in_decoder=in_decoder)
