"""Facts about architectures that a model's shape does not tell, as far as they decide what a layer keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from autopeft.spaces.model_shape import ModelShape, Role, Site


class Block(Enum):
    """How a layer is put together."""

    POST_NORM = auto()
    """x = norm(x + attention(x)); x = norm(x + mlp(x)): BERT and its kin."""
    PRE_NORM = auto()
    """x = x + attention(norm(x)); x = x + mlp(norm(x)): GPT-2, Llama and their kin."""
    PARALLEL = auto()
    """x = x + attention(norm(x)) + mlp(norm(x)): GPT-NeoX, GPT-J, Phi, Falcon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Facts about an architecture that its shape does not tell."""

    block: Block
    rms: bool = False
    """Root-mean-square norms computed in float32, else layer norms in the activations' dtype."""
    rotary: bool = False
    kept: float = 1.0
    """Tensors of the feed-forward width that the activation keeps: 1 for one operation, 4 for a composite GELU."""
    output_kept: bool = False
    """The activation keeps its output (ReLU), not its input."""
    double_norms: bool = False
    """Attention and feed-forward are normalised before and after (Gemma 2)."""
    query_norm: bool = False
    """Queries and keys are normalised (Qwen 3)."""
    float_softmax: bool = False
    """Eager attention takes its softmax in float32."""
    float_scores: bool = False
    """Queries and keys are multiplied in float32 (GPT-J)."""
    capped: bool = False
    """Attention scores and logits pass a tanh (Gemma 2)."""
    plain_fused: bool = False
    """Fused attention falls back to separate products in float32 (Falcon's single key head)."""
    shared_norm: bool = False
    """Attention and feed-forward read one norm's output (GPT-J, Phi, Falcon)."""
    head_keeps_all: bool = False
    """The classification head reads a view of the last hidden states, which keeps all of them."""
    masked: bool = True
    """Fused attention is given a mask; images have no padding to hide."""


_POST = Family(block=Block.POST_NORM)
_PLAIN = Family(block=Block.PRE_NORM)
_LLAMA = Family(block=Block.PRE_NORM, rms=True, rotary=True, float_softmax=True)
_NEOX = Family(block=Block.PARALLEL, rotary=True, float_softmax=True)
_VIT = replace(_PLAIN, float_softmax=True, masked=False, head_keeps_all=True)
_FAMILIES: Mapping[str, Family] = {
    "beit": replace(_VIT, head_keeps_all=False),
    "deit": _VIT,
    "dinov2": replace(_VIT, head_keeps_all=False, float_softmax=False),
    "distilbert": replace(_POST, head_keeps_all=True),
    "falcon": Family(block=Block.PARALLEL, rotary=True, shared_norm=True, plain_fused=True),
    "gemma2": replace(_LLAMA, double_norms=True, capped=True),
    "gemma3_text": replace(_LLAMA, double_norms=True, query_norm=True),
    "gpt2": replace(_PLAIN, kept=4.0),
    "gpt_neox": _NEOX,
    "gptj": replace(_NEOX, kept=4.0, shared_norm=True, float_scores=True),
    "modernbert": replace(_PLAIN, rotary=True, float_softmax=True, head_keeps_all=True),
    "opt": replace(_PLAIN, output_kept=True, float_softmax=True),
    "phi": replace(_NEOX, kept=4.0, shared_norm=True),
    "qwen3": replace(_LLAMA, query_norm=True),
    "starcoder2": replace(_PLAIN, kept=1.0, rotary=True, float_softmax=True),
    "vit": _VIT,
}


def family_of(shape: ModelShape) -> Family:
    """The row of the architecture; an unknown one is a ViT when it reads images, a Llama when it is causal and gated, a
    GPT-2 with a plain activation when it is only causal, a BERT otherwise.
    """
    if shape.family in _FAMILIES:
        return _FAMILIES[shape.family]
    if shape.image is not None:
        return _VIT
    roles = {site.role for site in shape.layers[0]}
    if not shape.causal:
        return _POST
    return _LLAMA if Role.MLP_GATE in roles or fused_gate(shape.layers[0]) else _PLAIN


def fused_gate(sites: tuple[Site, ...]) -> bool:
    """Whether one map gives both the gate and the value (Phi-3, ModernBERT)."""
    up, down = site_of(sites, Role.MLP_UP), site_of(sites, Role.MLP_DOWN)
    return up is not None and down is not None and up.d_out == 2 * down.d_in


def site_of(sites: tuple[Site, ...], role: Role) -> Site | None:
    return next((site for site in sites if site.role is role), None)
