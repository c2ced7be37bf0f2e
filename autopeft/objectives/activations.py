"""What one training step keeps for its backward pass, by a symbolic walk through the layers.

The walk follows one fact per value, whether a gradient must flow back to it, and notes what each operation then keeps:

- a frozen linear map keeps nothing but its own weight; it only passes the gradient on;
- a trained one keeps its input, and its weight's copy where the weight was cast to the activations' dtype;
- a normalisation keeps its input (root-mean-square norms compute in float32 and keep that copy);
- an activation keeps its input or output, composite ones several tensors of that size;
- a product keeps each factor that the other one's gradient needs;
- fused attention keeps queries, keys, values, output, a number a row and head, and its mask in the activations' dtype;
  eager attention keeps the probabilities, which fused attention computes again.

Values in one storage are kept once, so everything is noted under a name. Below the lowest adapted layer no value needs
a gradient and nothing is kept.

Letters: N tokens of the batch, b bytes of one activation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autopeft.objectives.effects import OWN_EFFECTS, Effect, Use, branch
from autopeft.objectives.families import Block, Family, family_of, fused_gate, site_of
from autopeft.objectives.peft_effects import PEFT_EFFECTS
from autopeft.spaces.configuration import Configuration, FieldValue
from autopeft.spaces.methods import METHODS
from autopeft.spaces.model_shape import ModelShape, Role, Site

FLOAT32 = 4
_INDEX = 8
_EFFECTS: Mapping[str, Effect] = {**OWN_EFFECTS, **PEFT_EFFECTS}
_OTHERWISE = {
    "serial_adapter",
    "parallel_adapter",
    "binary_adapter",
    "prefix_tuning",
    "dept",
    "p_tuning",
    "prompt_tuning",
}
"""Methods that act on a block, not on linear maps."""


@dataclass(slots=True, kw_only=True)
class _Walk:
    """State of the walk: sizes, what is kept so far, and the adapters of the layer at hand."""

    shape: ModelShape
    family: Family
    batch_size: int
    length: int
    b: int
    frozen_a: bool = False
    """The first factors of low-rank pairs are not trained, so that their inputs need not be kept."""
    positions_by_row: bool = False
    """Every row has a rotation of its own, since virtual tokens number a decoder's positions by its mask."""
    kept: dict[str, int] = field(default_factory=dict)
    layer: int = 0
    settings: dict[str, dict[str, FieldValue]] = field(default_factory=dict)
    visited: set[str] = field(default_factory=set)
    """Sites of the layer at hand that the walk has come by."""

    @property
    def n_tokens(self) -> int:
        return self.batch_size * self.length

    def keep(self, name: str, n_values: float, *, bytes_each: int | None = None, shared: bool = False) -> None:
        """Note a tensor of `n_values`; the same name in one layer (or anywhere, when shared) is one storage."""
        key = name if shared else f"{self.layer}.{name}"
        self.kept[key] = int(n_values * (self.b if bytes_each is None else bytes_each))

    def keep_cast(self, name: str, n_values: float) -> None:
        """A trained weight's copy in the activations' dtype; a float32 one is used as it is."""
        if self.b != FLOAT32:
            self.keep(name, n_values)

    def keep_float(self, name: str, n_values: float) -> None:
        """A tensor kept in float32: the value itself where that is its dtype, else a copy beside it."""
        self.keep(name if self.b == FLOAT32 else f"{name}.float", n_values, bytes_each=FLOAT32)

    def norm(self, name: str, *, grad: bool) -> None:
        """A norm of the residual stream's width that reads the value called `name`."""
        if not grad:
            return
        width = self.shape.hidden_size
        if self.family.rms:
            self.keep_float(name, self.n_tokens * width)
            self.keep(f"{name}.scale", self.n_tokens, bytes_each=FLOAT32)
        else:
            self.keep(name, self.n_tokens * width)
            self.keep(f"{name}.scale", 2 * self.n_tokens)

    def linear(self, site: Site, x: str, *, grad: bool) -> bool:
        """A map of the base that reads the value called `x`; whether its output needs a gradient."""
        changed = grad
        for method, values in self.settings.items():
            if self._acts(method, values, site):
                self._site(method, values, site, x, grad=grad)
                changed = True
        self.visited.add(site.name)
        return changed

    def _acts(self, method: str, values: Mapping[str, FieldValue], site: Site) -> bool:
        """Whether `method` is on `site`; one without targets that is not known, on the feed-forward maps."""
        if method in _OTHERWISE:
            return False
        targets = values.get("targets")
        return site.name in targets if isinstance(targets, tuple) else site.role in (Role.MLP_UP, Role.MLP_DOWN)

    def _site(self, method: str, values: Mapping[str, FieldValue], site: Site, x: str, *, grad: bool) -> None:
        """Note what `method` keeps at `site`, which reads the value called `x`."""
        use = Use(
            site=site,
            values=values,
            size=METHODS[method].size_field.name if method in METHODS else "rank",
            n=self.n_tokens,
            grad=grad,
            low=self.b != FLOAT32,
            frozen_a=self.frozen_a,
        )
        keeps = _EFFECTS.get(method, branch)(use)
        place, width = f"{method}.{site.name}", self.n_tokens * site.d_in
        size = FLOAT32 if keeps.wide else self.b
        dropout = keeps.dropped and bool(use.number("dropout"))
        if dropout and grad:
            self.keep(f"mask.{place}", width, bytes_each=size)
        if keeps.x:
            apart = dropout or (keeps.wide and use.low)
            self.keep(f"{x}.apart.{place}" if apart else x, width, bytes_each=size)
        self.keep(f"own.{place}", keeps.own)
        self.keep(f"floats.{place}", keeps.floats, bytes_each=FLOAT32)

    def bottleneck(self, method: str, x: str, *, grad: bool) -> bool:
        """A bottleneck adapter that reads the value called `x`; whether it is there."""
        setting = self.settings.get(method)
        if setting is None:
            return False
        width, hidden = self.shape.hidden_size, _number(setting["bottleneck"])
        twice = str(setting.get("activation", "relu")) in ("gelu", "silu")
        self.keep(x, self.n_tokens * width)
        self.keep(f"hidden.{method}", self.n_tokens * hidden * (2 if twice else 1))
        if grad:
            self.keep_cast(f"down.{method}", hidden * width)
        self.keep_cast(f"up.{method}", hidden * width)
        if method == "binary_adapter":
            self.keep("rounding", 4 * hidden * width + 4, bytes_each=FLOAT32)
            self.keep(f"up.{method}", hidden * width)
            if grad:
                self.keep(f"down.{method}", hidden * width)
        return True


def _number(value: FieldValue) -> float:
    assert isinstance(value, (int, float))
    return float(value)


def saved_bytes(
    shape: ModelShape,
    configuration: Configuration,
    *,
    batch_size: int,
    length: int,
    bytes_each: int,
    frozen_a: bool = False,
) -> int:
    """Bytes that the layers keep for the backward pass of one step.

    Args:
        shape: The base model.
        configuration: Adapters of a configuration that is valid for it.
        batch_size: Rows of the batch.
        length: Tokens of its longest row, to which all are padded.
        bytes_each: Bytes of one activation: 4 in float32, 2 in bf16.
        frozen_a: The first factors of low-rank pairs are not trained.
    """
    grad = any(METHODS[setting.method].at_input for setting in configuration if setting.method in METHODS)
    walk = _Walk(
        shape=shape,
        family=family_of(shape),
        batch_size=batch_size,
        length=length,
        b=bytes_each,
        frozen_a=frozen_a,
        positions_by_row=grad and shape.causal,
    )
    for layer in range(shape.n_layers):
        walk.layer = layer
        walk.visited = set()
        walk.settings = {
            setting.method: values for setting in configuration if (values := setting.at(layer)) is not None
        }
        grad = _layer(walk, shape.layers[layer], grad=grad)
        for site in shape.layers[layer]:
            if site.name not in walk.visited:
                grad = walk.linear(site, f"input.{site.name}", grad=grad)
    if grad and walk.family.block is not Block.POST_NORM:
        walk.layer = shape.n_layers
        walk.norm("x", grad=True)
    return sum(walk.kept.values())


def _layer(walk: _Walk, sites: tuple[Site, ...], *, grad: bool) -> bool:
    """One layer whose input needs a gradient if `grad`; whether its output does."""
    block = walk.family.block
    if block is Block.POST_NORM:
        after = _attention(walk, sites, "input", grad=grad) or grad
        walk.norm("sum.attention", grad=after)
        last = _mlp(walk, sites, "middle", grad=after) or after
        walk.norm("sum.mlp", grad=last)
        return last
    walk.norm("x", grad=grad)
    after = _attention(walk, sites, "normed.attention", grad=grad) or grad
    if walk.family.double_norms:
        walk.norm("attention.out", grad=after)
    if block is Block.PARALLEL:
        if not walk.family.shared_norm:
            walk.norm("x", grad=grad)
        name = "normed.attention" if walk.family.shared_norm else "normed.mlp"
        return _mlp(walk, sites, name, grad=grad) or after
    walk.norm("middle", grad=after)
    last = _mlp(walk, sites, "normed.mlp", grad=after) or after
    if walk.family.double_norms:
        walk.norm("mlp.out", grad=last)
    return last


def _attention(walk: _Walk, sites: tuple[Site, ...], x: str, *, grad: bool) -> bool:
    """Attention that reads the value called `x`; whether its output needs a gradient."""
    fused = site_of(sites, Role.QUERY_KEY_VALUE)
    flags: dict[Role, bool]
    if fused is not None:
        flags = dict.fromkeys((Role.QUERY, Role.KEY, Role.VALUE), walk.linear(fused, x, grad=grad))
    else:
        found = {role: site_of(sites, role) for role in (Role.QUERY, Role.KEY, Role.VALUE)}
        flags = {role: site is not None and walk.linear(site, x, grad=grad) for role, site in found.items()}
    prefix = walk.settings.get("prefix_tuning")
    n_prefix = int(_number(prefix["length"])) if prefix else 0
    if prefix:
        flags[Role.KEY] = flags[Role.VALUE] = True
    grad_out = any(flags.values())
    if grad_out and (walk.shape.attention == "eager" or walk.family.plain_fused):
        _keep_eager(walk, flags, n_prefix=n_prefix)
    elif grad_out:
        _keep_fused(walk, flags, n_prefix=n_prefix, one_map=fused is not None)
    if walk.family.rotary and grad_out:
        rows = walk.batch_size if walk.positions_by_row else 1
        walk.keep("rotation", 2 * rows * walk.length * walk.shape.head_dim, shared=True)
    output = site_of(sites, Role.ATTENTION_OUTPUT)
    return walk.linear(output, "context", grad=grad_out) if output is not None else grad_out


def _keep_eager(walk: _Walk, flags: Mapping[Role, bool], *, n_prefix: int) -> None:
    """What two matrix products and a softmax between them keep; each product keeps the factor the other needs."""
    shape, family = walk.shape, walk.family
    width, n_keys = shape.n_heads * shape.head_dim, walk.length + n_prefix
    keys, scores = walk.batch_size * n_keys * width, walk.n_tokens * shape.n_heads * n_keys
    in_float = family.plain_fused and shape.attention != "eager"
    keep = walk.keep_float if in_float else walk.keep
    keep_scored = walk.keep_float if in_float or family.float_scores else walk.keep
    keep_softmax = walk.keep_float if in_float or family.float_softmax else walk.keep
    if flags[Role.QUERY]:
        keep_scored("key", keys)
    if flags[Role.KEY]:
        keep_scored("query", walk.n_tokens * width)
    if flags[Role.QUERY] or flags[Role.KEY]:
        keep("value", keys)
        keep_softmax("probabilities", scores)
        _keep_query_norm(walk, flags)
        if family.capped:
            walk.keep("capped", scores)
    if flags[Role.VALUE]:
        keep("probabilities", scores)


def _keep_fused(walk: _Walk, flags: Mapping[Role, bool], *, n_prefix: int, one_map: bool) -> None:
    """What fused attention keeps: it takes all of its gradients together, whichever of them are needed.

    Queries, keys and values from one map are views of one tensor until rotation, repetition or a prefix copies them.
    Grouped keys and values are repeated for every query head; a single one is only viewed so.
    """
    shape = walk.shape
    query, n_keys = walk.n_tokens * shape.n_heads * shape.head_dim, walk.length + n_prefix
    n_heads = 1 if shape.n_kv_heads == 1 else shape.n_heads
    keys = walk.batch_size * n_keys * n_heads * shape.head_dim
    copied = bool(n_prefix) or 1 < shape.n_kv_heads < shape.n_heads
    if one_map and not (walk.family.rotary and copied):
        walk.keep("query.key.value", walk.n_tokens * (shape.n_heads * shape.head_dim + 2 * shape.kv_size))
    if not one_map or walk.family.rotary:
        walk.keep("query", query)
    if not one_map or walk.family.rotary or copied:
        walk.keep("key", keys)
    if not one_map or copied:
        walk.keep("value", keys)
    _keep_query_norm(walk, flags)
    if walk.family.masked:
        walk.keep("mask", walk.n_tokens * n_keys)
    walk.keep("context", query)
    walk.keep("log.sum", walk.n_tokens * shape.n_heads, bytes_each=FLOAT32)


def _keep_query_norm(walk: _Walk, flags: Mapping[Role, bool]) -> None:
    if not walk.family.query_norm:
        return
    for role, n_heads in ((Role.QUERY, walk.shape.n_heads), (Role.KEY, walk.shape.n_kv_heads)):
        if flags[role]:
            walk.keep_float(f"{role}.raw", walk.n_tokens * n_heads * walk.shape.head_dim)
            walk.keep(f"{role}.scale", walk.n_tokens * n_heads, bytes_each=FLOAT32)


def _mlp(walk: _Walk, sites: tuple[Site, ...], x: str, *, grad: bool) -> bool:
    """A feed-forward block that reads the value called `x`; whether its output needs a gradient."""
    up, down, gate = (site_of(sites, role) for role in (Role.MLP_UP, Role.MLP_DOWN, Role.MLP_GATE))
    if up is None or down is None:
        return grad
    width = walk.n_tokens * down.d_in
    grad_up = walk.linear(up, x, grad=grad)
    grad_gate = walk.linear(gate, x, grad=grad) if gate is not None else grad_up
    if gate is not None or fused_gate(sites):
        if grad_gate:
            walk.keep("gate", width)
            walk.keep("up", width)
        if grad_up:
            walk.keep("gate.active", width)
    elif grad_up:
        if walk.family.output_kept:
            walk.keep("active", width)
        else:
            walk.keep("up", walk.family.kept * width)
    grad_down = walk.linear(down, "active", grad=grad_up or grad_gate)
    serial = walk.bottleneck("serial_adapter", "mlp.out", grad=grad_down)
    parallel = walk.bottleneck("parallel_adapter", x, grad=grad)
    binary = walk.bottleneck("binary_adapter", x, grad=grad)
    return grad_down or serial or parallel or binary


def head_bytes(shape: ModelShape, *, batch_size: int, length: int, n_labels: int | None, bytes_each: int) -> int:
    """Bytes that the task head and the loss keep.

    Language modelling keeps the log-probabilities of every target in float32, by far the largest tensor with a large
    vocabulary. A decoder's classification head reads every token, an encoder's the first of each row.
    """
    family, n_tokens = family_of(shape), batch_size * length
    if n_labels is None:
        targets = batch_size * (length - 1)
        capped = bytes_each * shape.vocabulary_size if family.capped else 0
        return targets * (FLOAT32 * shape.vocabulary_size + capped + 2 * _INDEX)
    rows = FLOAT32 * batch_size * (2 * shape.hidden_size + n_labels)
    if shape.causal or (family.head_keeps_all and bytes_each == FLOAT32):
        return FLOAT32 * n_tokens * shape.hidden_size + rows
    return rows
