"""Methods at the input: virtual tokens before the embeddings, and a low-rank change of the embeddings by position.

They act by hooks on the module that embeds the tokens and runs the layers: the base model, or the encoder of a model
with two stacks (whose decoder then sees a longer mask). On its way in, token numbers become embeddings, and masks,
segments and positions grow with them; on its way out, what stands at virtual tokens is taken away again, so that heads,
losses and metrics see as many positions as the batch has. Positions count from the first virtual token, as in peft.

An encoder's heads read the first position for the whole sequence. With virtual tokens that is the first of them, as in
peft: their last one's successor, which was the first token, gives way to it.

Shapes: B sequences, T tokens, P virtual tokens, E embedding width, R rank, n positions.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, cast, final

import torch
from peft import PromptEmbedding, PromptEncoder, PromptEncoderConfig, PromptTuningConfig
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from autopeft.errors import ModelError
from autopeft.spaces.methods.inputs import check_input, embedding_width
from autopeft.trainers.adapters.adapter import AbstractAdapter, Handle, Placement

Arguments = dict[str, Any]
"""What a model's forward is called with, by name."""
_GROWN: Final = {"token_type_ids": 0}
"""Integer inputs that a virtual token has a value in."""


class AbstractInputAdapter(AbstractAdapter, ABC):
    """One method at the input of a model."""

    suppressible = False

    def attach(self, model: PreTrainedModel, layer: nn.Module) -> list[Handle]:
        stack = self._stack(model)
        embedding = stack.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise ModelError(f"{type(self).__name__}: {type(stack).__name__} embeds no tokens", hint="use a text model")
        self.derive(embedding)
        names = inspect.signature(stack.forward)

        def before(_: nn.Module, args: tuple[object, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
            bound = names.bind_partial(*args, **kwargs)
            given = {**bound.arguments, **bound.arguments.pop("kwargs", {})}
            return (), self.enter(given, embedding)

        handles: list[Handle] = [stack.register_forward_pre_hook(before, with_kwargs=True)]
        return handles + self.leave(model, stack)

    def derive(self, embedding: nn.Embedding) -> None:
        """Take what is needed from the frozen embedding."""
        del embedding

    @abstractmethod
    def enter(self, given: Arguments, embedding: nn.Embedding) -> Arguments:
        """The arguments with this method's part in them."""

    def leave(self, model: PreTrainedModel, stack: PreTrainedModel) -> list[Handle]:
        """Hooks on what comes out."""
        del model, stack
        return []

    @staticmethod
    def _stack(model: PreTrainedModel) -> PreTrainedModel:
        """The module that embeds the input and runs the layers over it."""
        return cast(PreTrainedModel, model.get_encoder() if model.config.is_encoder_decoder else model.base_model)


@final
class PromptAdapter(AbstractInputAdapter):
    """P virtual tokens that `encoder`, one of peft's prompt encoders, makes."""

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

    @torch.no_grad()
    def derive(self, embedding: nn.Embedding) -> None:
        """Start from the embeddings of tokens drawn from the vocabulary, the first time."""
        if not self._from_vocabulary or self.started or embedding.weight.is_meta:
            return
        chance = torch.Generator().manual_seed(self._seed)
        chosen = torch.randint(embedding.num_embeddings, (self.length,), generator=chance)
        rows_PE = embedding(chosen.to(embedding.weight.device))
        self.encoder.get_parameter("embedding.weight").copy_(rows_PE)
        self.started.fill_(1)

    def rows(self) -> torch.Tensor:
        """[P, E], the virtual tokens."""
        weight = self.encoder.get_parameter("embedding.weight")
        return self.encoder(torch.arange(self.length, device=weight.device)[None])[0]

    def enter(self, given: Arguments, embedding: nn.Embedding) -> Arguments:
        past = _past_length(given)
        self._added = not past
        embeds_BTE = _embeds(given, embedding)
        n, length = len(embeds_BTE), embeds_BTE.shape[1]
        rows_PE = self.rows().to(embeds_BTE.dtype)
        given = {name: value for name, value in given.items() if name not in ("input_ids", "cache_position")}
        given["inputs_embeds"] = embeds_BTE if past else torch.cat((rows_PE.expand(n, -1, -1), embeds_BTE), dim=1)
        mask = given.get("attention_mask")
        if isinstance(mask, torch.Tensor):
            given["attention_mask"] = torch.cat((mask.new_ones(n, self.length), mask), dim=1)
        positions = given.get("position_ids")
        if isinstance(positions, torch.Tensor):
            own = torch.arange(0 if past else self.length, device=positions.device).expand(len(positions), -1)
            given["position_ids"] = torch.cat((own, positions + self.length), dim=1)
        for name, value in _GROWN.items():
            if isinstance(given.get(name), torch.Tensor) and self._added:
                given[name] = functional.pad(given[name], (self.length, 0), value=value)
        assert given["inputs_embeds"].shape[1] == length + self.length * self._added
        return given

    def leave(self, model: PreTrainedModel, stack: PreTrainedModel) -> list[Handle]:
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
class DeptAdapter(AbstractInputAdapter):
    """s (A B)[:T] added to the embeddings of the first n tokens; B starts at zero."""

    def __init__(self, *, rank: int, positions: int, width: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(positions, rank))
        self.b = nn.Parameter(torch.zeros(rank, width))
        self.scale = scale
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5), generator=generator)

    def enter(self, given: Arguments, embedding: nn.Embedding) -> Arguments:
        embeds_BTE = _embeds(given, embedding)
        places_BT = _places(given, embeds_BTE)
        known_BT = places_BT < len(self.a)
        rows_BTR = functional.embedding(places_BT.clamp(max=len(self.a) - 1), self.a)
        change_BTE = self.scale * (rows_BTR @ self.b) * known_BT[..., None]
        given = {name: value for name, value in given.items() if name != "input_ids"}
        return given | {"inputs_embeds": embeds_BTE + change_BTE.to(embeds_BTE.dtype)}


def _embeds(given: Arguments, embedding: nn.Embedding) -> torch.Tensor:
    """[B, T, E] of the call: those given, or those of the token numbers given."""
    embeds = given.get("inputs_embeds")
    return embedding(given["input_ids"]) if embeds is None else embeds


def _past_length(given: Arguments) -> int:
    """Positions that the call's key/value cache holds already."""
    cache = given.get("past_key_values")
    length = cast("Callable[[], int] | None", getattr(cache, "get_seq_length", None))
    return int(length()) if length is not None else 0


def _places(given: Arguments, embeds_BTE: torch.Tensor) -> torch.Tensor:
    """[B, T] number of each token in its sequence, padding on either side not counted."""
    n, length = embeds_BTE.shape[:2]
    mask = given.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
    positions = given.get("position_ids")
    if isinstance(positions, torch.Tensor):
        return positions.expand(n, -1)  # generation gives them, where its cache may hold virtual tokens too
    return torch.arange(length, device=embeds_BTE.device).expand(n, -1) + _past_length(given)


def build_prompt_tuning(placement: Placement) -> PromptAdapter:
    """Peft's prompt embedding at the input.

    Raises:
        ConfigurationError: The model embeds no tokens, or this is not its first layer.
    """
    check_input(placement.method, placement.shape, layer=placement.layer)
    length, seed = placement.size("length"), _seed(placement)
    config = PromptTuningConfig(
        num_virtual_tokens=length, token_dim=embedding_width(placement.shape), num_transformer_submodules=1
    )
    encoder = _made(lambda: PromptEmbedding(config, None), seed)
    from_vocabulary = placement.values["init"] == "vocabulary"
    return PromptAdapter(
        encoder, length=length, causal=placement.shape.causal, from_vocabulary=from_vocabulary, seed=seed
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


def build_dept(placement: Placement) -> DeptAdapter:
    """The low-rank change of the embeddings.

    Raises:
        ConfigurationError: The model embeds no tokens, or this is not its first layer.
    """
    check_input(placement.method, placement.shape, layer=placement.layer)
    rank = placement.size("rank")
    return DeptAdapter(
        rank=rank,
        positions=placement.size("positions"),
        width=embedding_width(placement.shape),
        scale=placement.real("alpha") / math.sqrt(rank),
        generator=placement.generator,
    )


def _seed(placement: Placement) -> int:
    return int(torch.randint(2**62, (1,), generator=placement.generator))


def _made(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `make` makes with torch's chance at `seed`, which is put back."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return make()
