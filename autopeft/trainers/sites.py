"""The layers of a transformer, the linear sites in them, and what each site does, whatever its author called it."""

import inspect
import re
import sys
from collections.abc import Callable
from typing import Final

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from autopeft.errors import ModelError
from autopeft.spaces.methods.rules import OPEN_ATTENTION
from autopeft.spaces.model_shape import ImageInput, ModelShape, Part, Role, Site

LinearLike = nn.Linear | Conv1D

_ATTENTION = r"(?:.*\.)?\w*(?:attn|[aA]ttention)\w*\.(?:.*\.)?"
_ANY = r"(?:.*\.)?"

_CROSS = r".*(?:crossattention|cross_attn|encoder_attn|cross_attention|EncDecAttention)\..*"

ROLE_PATTERNS: Final[tuple[tuple[str, Role], ...]] = (
    (_CROSS, Role.OTHER),
    (_ANY + r"(?:c_attn|query_key_value|qkv_proj|qkv|Wqkv)", Role.QUERY_KEY_VALUE),
    (_ANY + r"(?:query|q_proj|q_lin|query_proj|q|wq|Wq)", Role.QUERY),
    (_ANY + r"(?:key|k_proj|k_lin|key_proj|k|wk|Wk)", Role.KEY),
    (_ANY + r"(?:value|v_proj|v_lin|value_proj|v|wv|Wv)", Role.VALUE),
    (_ATTENTION + r"(?:dense|o_proj|out_proj|c_proj|out_lin|o|wo|Wo)", Role.ATTENTION_OUTPUT),
    (_ATTENTION + r".*", Role.OTHER),
    (_ANY + r"(?:gate_proj|w1|wi_0)", Role.MLP_GATE),
    (
        _ANY + r"(?:intermediate\.dense|fc1|lin1|c_fc|up_proj|gate_up_proj|dense_h_to_4h|fc_in|Wi|wi|wi_1|w3|ffn)",
        Role.MLP_UP,
    ),
    (_ANY + r"(?:output\.dense|fc2|lin2|c_proj|down_proj|dense_4h_to_h|fc_out|Wo|wo|w2|ffn_output)", Role.MLP_DOWN),
)
"""Dotted site names, first full match wins; anything else is `Role.OTHER`."""


def role_of(name: str) -> Role:
    """What the linear site called `name` (dotted, from its layer) does."""
    return next((role for pattern, role in ROLE_PATTERNS if re.fullmatch(pattern, name)), Role.OTHER)


def reads_encoder(name: str) -> bool:
    """Whether the site called `name` in a decoder's layer makes keys or values of the encoder's output."""
    return re.fullmatch(_CROSS, name) is not None and role_of(name.rpartition(".")[2]) in (Role.KEY, Role.VALUE)


def linear_sizes(module: LinearLike) -> tuple[int, int]:
    """(d_in, d_out); `Conv1D` keeps its weight transposed, [d_in, d_out]."""
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def layer_list(base: nn.Module) -> tuple[str, nn.ModuleList]:
    """Dotted path and value of the layer list: the longest outermost `ModuleList` of one class.

    A list inside another one (the experts of a layer) is never the layer list, however long.

    Raises:
        ModelError: There is no such list.
    """
    found: dict[str, nn.ModuleList] = {}
    for path, module in base.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and len({type(layer) for layer in module}) == 1:
            found[path] = module
    if not found:
        raise ModelError(
            f"{type(base).__name__} has no list of transformer layers",
            hint="use a transformer encoder or decoder, such as a BERT, RoBERTa, GPT-2, Llama or Qwen model",
        )
    path = max(found, key=lambda name: len(found[name]))
    return path, found[path]


def linear_sites(layer: nn.Module) -> tuple[Site, ...]:
    """Every `nn.Linear` and `Conv1D` of `layer`, in module order."""
    rows: list[Site] = []
    for name, module in layer.named_modules():
        if isinstance(module, LinearLike):
            d_in, d_out = linear_sizes(module)
            rows.append(Site(name=name, d_in=d_in, d_out=d_out, bias=module.bias is not None, role=role_of(name)))
    return tuple(rows)


def other_parts(base: nn.Module, layer_paths: tuple[str, ...]) -> tuple[Part, ...]:
    """Every module with parameters of its own but the linear sites inside the layer lists, in module order."""
    rows: list[Part] = []
    for name, module in base.named_modules():
        sizes = tuple((key, tuple(value.shape)) for key, value in module.named_parameters(recurse=False))
        if sizes and not (isinstance(module, LinearLike) and name.startswith(layer_paths)):
            rows.append(Part(name=name, kind=type(module).__name__, sizes=sizes))
    return tuple(rows)


def measure(
    base: PreTrainedModel, config: PretrainedConfig, *, image_size: tuple[int, int] | None = None
) -> ModelShape:
    """The shape of a bare base model; its tensors may live on the meta device.

    Args:
        base: The model.
        config: Its configuration.
        image_size: Height and width of the images it is given; None takes the size that its configuration names.

    Raises:
        ModelError: It has no layer list, or an encoder or decoder without one, or no single width.
    """
    text = config.get_text_config()
    _check_width(text)
    n_decoder = 0
    if getattr(config, "is_encoder_decoder", False):
        lists = [(f"{part}.{path}", layers) for part in ("encoder", "decoder") for path, layers in [_part(base, part)]]
        path, layers = "+".join(name for name, _ in lists), [layer for _, part in lists for layer in part]
        n_decoder = len(lists[1][1])
    else:
        path, layers = layer_list(base)
    paths = tuple(f"{name}." for name in path.split("+"))
    sites = tuple(linear_sites(layer) for layer in layers)
    n_heads, n_kv_heads, head_dim = _heads(text, sites[0])
    image = _image_input(base, text, image_size) if reads_images(base) else None
    attention = str(text._attn_implementation or "eager")
    return ModelShape(
        family=str(config.model_type),
        layer_path=path,
        layers=sites,
        hidden_size=int(text.hidden_size),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        vocabulary_size=0 if image else int(text.vocab_size),
        base_parameters=sum(parameter.numel() for parameter in base.parameters()),
        embedding_parameters=_embedding_parameters(base, paths),
        causal=not n_decoder and _is_causal(config, layers[0]),
        dtype=str(next(base.parameters()).dtype).removeprefix("torch."),
        attention=attention,
        decoder_layers=n_decoder,
        parts=other_parts(base, paths),
        image=image,
        closed_attention=tuple(
            index for index, layer in enumerate(layers) if not takes_rows(layer, sites[index], implementation=attention)
        ),
    )


def reads_images(model: PreTrainedModel) -> bool:
    """Whether images are all that the model reads."""
    return model.main_input_name == "pixel_values"


def _check_width(config: PretrainedConfig) -> None:
    """Refuse models that are no stack of layers of one width: pyramids (Swin, PVT) and convolutions."""
    if not all(isinstance(getattr(config, name, None), int) for name in ("hidden_size", "num_attention_heads")):
        raise ModelError(
            f"a {config.model_type} model has no single width and number of attention heads",
            hint="use a model whose layers are all alike: BERT, GPT-2, Llama, T5, ViT, DeiT, BEiT, DINOv2 and such",
        )


def _image_input(base: PreTrainedModel, config: PretrainedConfig, size: tuple[int, int] | None) -> ImageInput:
    """What the model makes of an image, by giving it one."""
    stated = getattr(config, "image_size", None) or 224
    height, width = size or (stated if isinstance(stated, (tuple, list)) else (stated, stated))
    first, n_channels = next(base.parameters()), int(getattr(config, "num_channels", 3))
    blank = torch.zeros(1, n_channels, height, width, dtype=first.dtype, device=first.device)
    try:
        with torch.no_grad():
            _, n_tokens, _ = base(pixel_values=blank).last_hidden_state.shape
    except (ValueError, RuntimeError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"a {config.model_type} model does not take images of {height} x {width} pixels:"
            f" {str(error).partition(chr(10))[0]}",
            hint="preprocessor_config.json must give the size that config.json names as image_size, and the model must"
            " read single images",
        ) from None
    return ImageInput(n_channels=n_channels, height=height, width=width, n_tokens=n_tokens)


def _embedding_parameters(base: PreTrainedModel, layer_paths: tuple[str, ...]) -> int:
    """Of word and position tables; of a model that reads images, of all before its layers."""
    if reads_images(base):
        return sum(weight.numel() for name, weight in base.named_parameters() if name.startswith("embeddings."))
    modules = [
        m for name, m in base.named_modules() if isinstance(m, nn.Embedding) and not name.startswith(layer_paths)
    ]
    return sum({id(module.weight): module.weight.numel() for module in modules}.values())


def layers_of(base: nn.Module, shape: ModelShape) -> nn.ModuleList:
    """The layers of a bare base model whose shape is `shape`: its own list, or a new one of encoder and decoder."""
    if not shape.decoder_layers:
        layers = base.get_submodule(shape.layer_path)
        assert isinstance(layers, nn.ModuleList)
        return layers
    return nn.ModuleList(base.get_submodule(shape.path_of(layer)) for layer in range(shape.n_layers))


def _part(base: PreTrainedModel, name: str) -> tuple[str, nn.ModuleList]:
    """`layer_list` of the encoder or the decoder of a model that has both."""
    part = getattr(base, name, None)
    if not isinstance(part, nn.Module):
        raise ModelError(
            f"{type(base).__name__} has an encoder and a decoder, but no part called {name!r}",
            hint="use a model such as T5 or BART",
        )
    return layer_list(part)


def without_cache(model: PreTrainedModel) -> None:
    """Make every part of `model` keep no keys and values for generation: a training step has no use for them."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            config.use_cache = False


def attention_of(layer: nn.Module, sites: tuple[Site, ...]) -> nn.Module | None:
    """The module that runs attention in `layer`: the parent of its key (or fused) projection; None without one."""
    for site in sites:
        if site.role in (Role.KEY, Role.QUERY_KEY_VALUE):
            return layer.get_submodule(site.name.rpartition(".")[0])
    return None


def takes_rows(layer: nn.Module, sites: tuple[Site, ...], *, implementation: str) -> bool:
    """Whether the attention of `layer` can be given keys and values beside those of the sequence.

    Its forward has to look its attention function up in transformers' table, so that ours is called. One that hands
    over a bias by position beside the mask (T5) does not count: the bias has no room for a prefix.
    """
    attention = attention_of(layer, sites)
    if attention is None or implementation not in OPEN_ATTENTION:
        return False
    code = inspect.unwrap(type(attention).forward).__code__
    looked_up = "ALL_ATTENTION_FUNCTIONS" in code.co_names and "position_bias" not in code.co_varnames
    return looked_up and (implementation != "eager" or eager_attention(attention) is not None)


def eager_attention(attention: nn.Module) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]] | None:
    """The eager attention function of the model's own source file; None where it has none."""
    return getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)


def _heads(config: PretrainedConfig, sites: tuple[Site, ...]) -> tuple[int, int, int]:
    """(heads, key/value heads, head width), the latter two from the projections where the layer has them."""
    width = {site.role: site.d_out for site in reversed(sites)}
    n_heads = int(config.num_attention_heads)
    stated = getattr(config, "head_dim", None)
    head_dim = int(stated or width.get(Role.QUERY, int(config.hidden_size)) // n_heads)
    if Role.KEY in width:
        return n_heads, width[Role.KEY] // head_dim, head_dim
    if Role.QUERY_KEY_VALUE in width:
        return n_heads, (width[Role.QUERY_KEY_VALUE] // head_dim - n_heads) // 2, head_dim
    return n_heads, int(getattr(config, "num_key_value_heads", None) or n_heads), head_dim


def _is_causal(config: PretrainedConfig, layer: nn.Module) -> bool:
    for module in layer.modules():
        flag = getattr(module, "is_causal", None)
        if isinstance(flag, bool):
            return flag
    family = str(config.model_type)
    return family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
