"""Model shapes and spaces for the tests of this package."""

from collections.abc import Mapping, Sequence

from autopeft.spaces.definition import SpaceDefinition
from autopeft.spaces.model_shape import ModelShape, Part, Role, Site
from autopeft.spaces.space import SearchSpace

ENCODER = (
    ("attention.self.query", Role.QUERY),
    ("attention.self.key", Role.KEY),
    ("attention.self.value", Role.VALUE),
    ("attention.output.dense", Role.ATTENTION_OUTPUT),
    ("intermediate.dense", Role.MLP_UP),
    ("output.dense", Role.MLP_DOWN),
)
FUSED = (
    ("attn.c_attn", Role.QUERY_KEY_VALUE),
    ("attn.c_proj", Role.ATTENTION_OUTPUT),
    ("mlp.c_fc", Role.MLP_UP),
    ("mlp.c_proj", Role.MLP_DOWN),
)
GATED = (
    ("self_attn.q_proj", Role.QUERY),
    ("self_attn.k_proj", Role.KEY),
    ("self_attn.v_proj", Role.VALUE),
    ("self_attn.o_proj", Role.ATTENTION_OUTPUT),
    ("mlp.gate_proj", Role.MLP_GATE),
    ("mlp.up_proj", Role.MLP_UP),
    ("mlp.down_proj", Role.MLP_DOWN),
)


def shape(
    n_layers: int = 12,
    *,
    hidden: int = 768,
    sites: Sequence[tuple[str, Role]] = ENCODER,
    heads: int = 12,
    kv_heads: int | None = None,
    family: str = "bert",
) -> ModelShape:
    """A model of equal layers with a feed-forward block four times as wide."""
    kv_heads = kv_heads or heads
    kv_size = kv_heads * (hidden // heads)
    widths = {
        Role.KEY: (hidden, kv_size),
        Role.VALUE: (hidden, kv_size),
        Role.QUERY_KEY_VALUE: (hidden, 3 * hidden),
        Role.MLP_GATE: (hidden, 4 * hidden),
        Role.MLP_UP: (hidden, 4 * hidden),
        Role.MLP_DOWN: (4 * hidden, hidden),
    }
    row = tuple(
        Site(
            name=name,
            d_in=widths.get(role, (hidden, hidden))[0],
            d_out=widths.get(role, (hidden, hidden))[1],
            bias=True,
            role=role,
        )
        for name, role in sites
    )
    return ModelShape(
        family=family,
        layer_path="encoder.layer",
        layers=(row,) * n_layers,
        hidden_size=hidden,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocabulary_size=1000,
        base_parameters=110_000_000,
        embedding_parameters=24_000_000,
        causal=False,
        parts=(
            Part(name="embeddings.word_embeddings", kind="Embedding", sizes=(("weight", (1000, hidden)),)),
            *(
                Part(name=f"encoder.layer.{layer}.output.LayerNorm", kind="LayerNorm", sizes=_norm(hidden))
                for layer in range(n_layers)
            ),
        ),
    )


def _norm(hidden: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return ("weight", (hidden,)), ("bias", (hidden,))


def bind(
    mapping: str | Mapping[str, object], n_layers: int = 3, *, hidden: int = 24, constraints: Sequence[str] = ()
) -> SearchSpace:
    """The space of `mapping` on a small encoder."""
    model = shape(n_layers, hidden=hidden, heads=2)
    return SearchSpace.bind(SpaceDefinition.from_mapping(mapping), model, constraints=constraints)
