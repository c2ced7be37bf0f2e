"""Methods at the input: virtual tokens before the embeddings, and a low-rank change of the embeddings by position.

They act by hooks on the module that embeds the tokens and runs the layers: the base model, or the encoder of a model
with two stacks (whose decoder then sees a longer mask). On its way in, token numbers become embeddings, and masks,
segments and positions grow with them; on its way out, what stands at virtual tokens is taken away again, so that heads,
losses and metrics see as many positions as the batch has. Positions count from the first virtual token, as in peft;
a decoder's leave padding out, so that padding on the left (which is then between the prompt and the tokens) is as if it
were not there.

An encoder's heads read the first position for the whole sequence. With virtual tokens that is the first of them, as in
peft: what stood at the first token gives way to it.

Shapes: B sequences, T tokens, P virtual tokens, E embedding width, R rank, n positions.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, Final, cast, final

import torch
from peft import MultitaskPromptTuningConfig, PromptEmbedding, PromptEncoder, PromptEncoderConfig, PromptTuningConfig
from peft.tuners.multitask_prompt_tuning import MultitaskPromptEmbedding
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.errors import ModelError
from autopeft.spaces.methods.inputs import READ_TWICE, VOCABULARY, check_input, embedding_width
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement

Arguments = dict[str, Any]
"""What a model's forward is called with, by name."""
_GROWN: Final = {"token_type_ids": 0}
"""Integer inputs that a virtual token has a value in."""


class PromptAdapter(AbstractAdapter):
    """P virtual tokens that `encoder`, one of peft's prompt encoders, makes."""

    suppressible = False
    started: torch.Tensor

    def __init__(self, encoder: nn.Module, *, length: int, causal: bool, from_vocabulary: bool, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.length = length
        self._causal = causal
        self._from_vocabulary, self._seed = from_vocabulary, seed
        self._added = False
        """Whether the pass at hand has virtual tokens in its sequence."""
        if from_vocabulary:
            self.register_buffer("started", torch.zeros((), dtype=torch.uint8))

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        stack = cast(PreTrainedModel, model.get_encoder() if model.config.is_encoder_decoder else model.base_model)
        embedding = stack.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise ModelError(f"{type(self).__name__}: {type(stack).__name__} embeds no tokens", hint="use a text model")
        if any(name.endswith(READ_TWICE) for name, _ in stack.named_modules()):
            raise ModelError(
                f"{type(self).__name__}: layers of {type(stack).__name__} read the tokens' numbers again, and virtual"
                " tokens have none",
                hint="leave prompt_tuning, p_tuning and dept out of the space for this model",
            )
        self._start(embedding)
        names, first = inspect.signature(stack.forward), _first_position(stack)
        counted = self._causal and "position_ids" in names.parameters

        def before(_: nn.Module, args: tuple[object, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
            bound = names.bind_partial(*args, **kwargs)
            given = {**bound.arguments, **bound.arguments.pop("kwargs", {})}
            given = _embedded(given, embedding, first=first)
            if counted and given.get("position_ids") is None and given.get("attention_mask") is not None:
                given["position_ids"] = _places(given)
            return (), self._enter(given, first=first)

        return [stack.register_forward_pre_hook(before, with_kwargs=True), *self._leave(model, stack)]

    def rows(self) -> torch.Tensor:
        """[P, E], the virtual tokens."""
        weight = self.encoder.get_parameter("embedding.weight")
        return self.encoder(torch.arange(self.length, device=weight.device)[None])[0]

    def changed(self, embeds_BTE: torch.Tensor, given: Arguments) -> torch.Tensor:
        """What the embeddings of the tokens become."""
        del given
        return embeds_BTE

    @torch.no_grad()
    def _start(self, embedding: nn.Embedding) -> None:
        """Start from the embeddings of tokens drawn from the vocabulary, the first time."""
        if not self._from_vocabulary or self.started or embedding.weight.is_meta:
            return
        chance = torch.Generator().manual_seed(self._seed)
        chosen = torch.randint(embedding.num_embeddings, (self.length,), generator=chance)
        rows_PE = embedding(chosen.to(embedding.weight.device))
        self.encoder.get_parameter("embedding.weight").copy_(rows_PE)
        self.started.fill_(1)

    def _enter(self, given: Arguments, *, first: int) -> Arguments:
        """The arguments with the virtual tokens in them; later passes of a generation only have their positions."""
        self._added = not _past_length(given)
        embeds_BTE = self.changed(given["inputs_embeds"], given)
        n = len(embeds_BTE)
        rows_PE = self.rows().to(embeds_BTE.dtype)
        given = {name: value for name, value in given.items() if name != "cache_position"}
        given["inputs_embeds"] = (
            torch.cat((rows_PE.expand(n, -1, -1), embeds_BTE), dim=1) if self._added else embeds_BTE
        )
        mask = given.get("attention_mask")
        if isinstance(mask, torch.Tensor):
            given["attention_mask"] = torch.cat((mask.new_ones(n, self.length), mask), dim=1)
        positions = given.get("position_ids")
        if isinstance(positions, torch.Tensor):
            own = torch.arange(first, first + self.length * self._added, device=positions.device)
            given["position_ids"] = torch.cat((own.expand(len(positions), -1), positions + self.length), dim=1)
        for name, value in _GROWN.items():
            if isinstance(given.get(name), torch.Tensor) and self._added:
                given[name] = functional.pad(given[name], (self.length, 0), value=value)
        return given

    def _leave(self, model: PreTrainedModel, stack: PreTrainedModel) -> list[Handle]:
        """Hooks that take the virtual tokens out of what the stack gives, or let a decoder see them."""
        if model.config.is_encoder_decoder:
            return [model.get_decoder().register_forward_pre_hook(self._lengthen_source, with_kwargs=True)]
        keeps_first = not self._causal and not type(model).__name__.endswith("ForTokenClassification")

        def after(_: nn.Module, __: object, ___: object, output: Any) -> Any:
            if not self._added:
                return output
            if isinstance(output, tuple):
                return (self._shortened(output[0], keeps_first=keeps_first), *output[1:])
            output["last_hidden_state"] = self._shortened(output["last_hidden_state"], keeps_first=keeps_first)
            if output.get("hidden_states") is not None:
                states = output["hidden_states"]
                output["hidden_states"] = tuple(self._shortened(row, keeps_first=keeps_first) for row in states)
            return output

        return [stack.register_forward_hook(after, with_kwargs=True)]

    def _shortened(self, hidden: torch.Tensor, *, keeps_first: bool) -> torch.Tensor:
        if not keeps_first:
            return hidden[:, self.length :]
        return torch.cat((hidden[:, :1], hidden[:, self.length + 1 :]), dim=1)

    def _lengthen_source(
        self, _: nn.Module, args: tuple[object, ...], kwargs: Arguments
    ) -> tuple[tuple[object, ...], Arguments]:
        mask = kwargs.get("encoder_attention_mask")
        if isinstance(mask, torch.Tensor):
            kwargs = {**kwargs, "encoder_attention_mask": functional.pad(mask, (self.length, 0), value=1)}
        return args, kwargs


@final
class _OneTask(MultitaskPromptEmbedding):
    """Peft's multitask prompt for rows that are all of task 0."""

    def forward(self, indices: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # peft's asks for tasks too
        return super().forward(indices, torch.zeros(len(indices), dtype=torch.long, device=indices.device))


@final
class DeptAdapter(PromptAdapter):
    """P virtual tokens before embeddings to which s (A B)[:T] is added; B starts at zero.

    A is called `by_position` and B `by_width`: they are no low-rank pair of a map, whose factors the optimizer treats
    by their names.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        length: int,
        causal: bool,
        from_vocabulary: bool,
        seed: int,
        pair: tuple[nn.Parameter, nn.Parameter],
        scale: float,
    ) -> None:
        super().__init__(encoder, length=length, causal=causal, from_vocabulary=from_vocabulary, seed=seed)
        self.by_position, self.by_width = pair
        self.scale = scale

    def changed(self, embeds_BTE: torch.Tensor, given: Arguments) -> torch.Tensor:
        places_BT, n = _places(given), len(self.by_position)
        rows_BTR = functional.embedding(places_BT.clamp(max=n - 1), self.by_position)
        change_BTE = self.scale * (rows_BTR @ self.by_width) * (places_BT < n)[..., None]
        return embeds_BTE + change_BTE.to(embeds_BTE.dtype)


def _first_position(stack: nn.Module) -> int:
    """The number of the first position: 0, but where positions begin after that of padding, as RoBERTa's do."""
    for module in stack.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding) and table.padding_idx is not None:
            return table.padding_idx + 1
    return 0


def _embedded(given: Arguments, embedding: nn.Embedding, *, first: int) -> Arguments:
    """The arguments with the embeddings of the tokens in the place of their numbers.

    Models whose positions begin after that of padding read off the numbers which tokens are padding: they are told.

    Raises:
        ModelError: The mask says more than which tokens are padding.
    """
    mask = given.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() != 2:
        raise ModelError(
            f"attention_mask: got {mask.dim()} dimensions; virtual tokens have a place in [batch, tokens]",
            hint="give the mask of the padding alone",
        )
    ids = given.get("input_ids")
    given = {name: value for name, value in given.items() if name != "input_ids"}
    if ids is None:
        return given
    if first and given.get("position_ids") is None:
        real = ids.ne(first - 1).long()
        given["position_ids"] = real.cumsum(dim=1) * real + first - 1
    return given | {"inputs_embeds": embedding(ids)}


def _past_length(given: Arguments) -> int:
    """Positions that the call's key/value cache holds already."""
    cache = given.get("past_key_values")
    length = cast("Callable[[], int] | None", getattr(cache, "get_seq_length", None))
    return int(length()) if length is not None else 0


def _places(given: Arguments) -> torch.Tensor:
    """[B, T] number of each token in its sequence, padding on either side not counted."""
    n, length = given["inputs_embeds"].shape[:2]
    mask = given.get("attention_mask")
    if isinstance(mask, torch.Tensor):
        return (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
    positions = given.get("position_ids")
    if isinstance(positions, torch.Tensor):
        return positions.expand(n, -1)  # generation gives them, where its cache may hold virtual tokens too
    return torch.arange(length, device=given["inputs_embeds"].device).expand(n, -1) + _past_length(given)


def build_prompt_tuning(placement: Placement) -> PromptAdapter:
    """Peft's prompt embedding at the input.

    Raises:
        ConfigurationError: The model embeds no tokens, or this is not its first layer.
    """
    check_input(placement.method, placement.shape, layer=placement.layer)
    seed = _seed(placement)
    return PromptAdapter(
        _embedding(placement, seed),
        length=placement.size("length"),
        causal=placement.shape.causal,
        from_vocabulary=placement.values["init"] == VOCABULARY,
        seed=seed,
    )


def build_p_tuning(placement: Placement) -> PromptAdapter:
    """Peft's prompt encoder at the input.

    Raises:
        ConfigurationError: The model embeds no tokens, or this is not its first layer.
    """
    check_input(placement.method, placement.shape, layer=placement.layer)
    length, seed = placement.size("length"), _seed(placement)
    config = PromptEncoderConfig(
        num_virtual_tokens=length,
        token_dim=embedding_width(placement.shape),
        num_transformer_submodules=1,
        encoder_reparameterization_type=str(placement.values["encoder"]).upper(),
        encoder_hidden_size=placement.size("width"),
    )
    encoder = _made(lambda: PromptEncoder(config), seed)
    return PromptAdapter(encoder, length=length, causal=placement.shape.causal, from_vocabulary=False, seed=seed)


def build_multitask_prompt_tuning(placement: Placement) -> PromptAdapter:
    """Peft's multitask prompt of one task at the input.

    Raises:
        ConfigurationError: The model embeds no tokens, or this is not its first layer.
    """
    check_input(placement.method, placement.shape, layer=placement.layer)
    length, seed = placement.size("length"), _seed(placement)
    config = MultitaskPromptTuningConfig(
        num_virtual_tokens=length,
        token_dim=embedding_width(placement.shape),
        num_transformer_submodules=1,
        num_ranks=placement.size("ranks"),
        num_tasks=1,
    )
    return PromptAdapter(
        _made(lambda: _OneTask(config, None), seed),
        length=length,
        causal=placement.shape.causal,
        from_vocabulary=placement.values["init"] == VOCABULARY,
        seed=seed,
    )


def build_dept(placement: Placement) -> DeptAdapter:
    """Peft's prompt embedding, and the low-rank change of the tokens' embeddings.

    Raises:
        ConfigurationError: The model embeds no tokens, or this is not its first layer.
    """
    check_input(placement.method, placement.shape, layer=placement.layer)
    rank, seed = placement.size("rank"), _seed(placement)
    by_position = torch.empty(placement.size("positions"), rank)
    nn.init.kaiming_uniform_(by_position, a=math.sqrt(5), generator=placement.generator)
    by_width = torch.zeros(rank, embedding_width(placement.shape))
    return DeptAdapter(
        _embedding(placement, seed),
        length=placement.size("length"),
        causal=placement.shape.causal,
        from_vocabulary=placement.values["init"] == VOCABULARY,
        seed=seed,
        pair=(nn.Parameter(by_position), nn.Parameter(by_width)),
        scale=placement.real("alpha") / math.sqrt(rank),
    )


def _embedding(placement: Placement, seed: int) -> nn.Module:
    """Peft's prompt embedding, N(0, 1)."""
    config = PromptTuningConfig(
        num_virtual_tokens=placement.size("length"),
        token_dim=embedding_width(placement.shape),
        num_transformer_submodules=1,
    )
    return _made(lambda: PromptEmbedding(config, None), seed)


def _seed(placement: Placement) -> int:
    return int(torch.randint(2**62, (1,), generator=placement.generator))


def _made(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `make` makes with torch's chance at `seed`, which is put back."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return make()
