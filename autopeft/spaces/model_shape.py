"""What a search must know of a base model without its weights."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

Json = Mapping[str, object]


class Role(StrEnum):
    """What a linear site does inside a transformer layer, whatever the architecture calls it."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    QUERY_KEY_VALUE = "query_key_value"
    ATTENTION_OUTPUT = "attention_output"
    MLP_GATE = "mlp_gate"
    MLP_UP = "mlp_up"
    MLP_DOWN = "mlp_down"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One linear map inside a layer."""

    name: str
    """Dotted path from the layer to the module, e.g. `attention.self.query`."""
    d_in: int
    d_out: int
    bias: bool
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A module with parameters of its own that is no linear site of a layer: an embedding, a norm, a pooler."""

    name: str
    """Dotted path in the bare base model, e.g. `embed_tokens` or `layers.0.input_layernorm`."""
    kind: str
    """Its class, e.g. `Embedding`, `LlamaRMSNorm`, `Linear`."""
    sizes: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of each parameter."""

    @property
    def n_parameters(self) -> int:
        return sum(math.prod(size) for _, size in self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """What a model that reads images is given, and what it makes of one."""

    n_channels: int
    height: int
    """Pixels, as its image processor makes them."""
    width: int
    n_tokens: int
    """Rows of the hidden states of one image: its patches and the special tokens before them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A base model as the search sees it; picklable, hashable, JSON both ways."""

    family: str
    """`model_type` of the Hugging Face config: `bert`, `llama`, ..."""
    layer_path: str
    """Dotted path of the layer list inside the bare base model, e.g. `encoder.layer` or `layers`."""
    layers: tuple[tuple[Site, ...], ...]
    """The linear sites of each layer, in module order; one row a layer."""
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocabulary_size: int
    """0 for a model that reads no text."""
    base_parameters: int
    """Parameters of the bare base model (no task head), tied tensors counted once."""
    embedding_parameters: int
    causal: bool
    dtype: str = "float32"
    attention: str = "sdpa"
    """Attention implementation the model runs with: `eager` stores the probabilities, `sdpa` does not."""
    decoder_layers: int = 0
    """How many of `layers`, the last ones, are those of a decoder beside an encoder; `layer_path` then holds the paths
    of both lists, the encoder's first, with `+` between them."""
    parts: tuple[Part, ...] = ()
    """Everything with parameters that `layers` does not list, in module order; empty in shapes of an old version."""
    image: ImageInput | None = None
    """For a model that reads images; None for one that reads text."""
    closed_attention: tuple[int, ...] = ()
    """Layers whose attention takes no rows beside those of the sequence: it is computed in a way of its own, or with a
    bias by position."""

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    def path_of(self, layer: int) -> str:
        """Dotted path of a layer inside the bare base model."""
        first, _, second = self.layer_path.partition("+")
        n_first = self.n_layers - self.decoder_layers
        return f"{first}.{layer}" if layer < n_first else f"{second}.{layer - n_first}"

    def kind_of(self, layer: int) -> tuple[object, ...]:
        """What a method may ask of a layer; equal for layers that are alike: sites, other parts, attention."""
        inside = f"{self.path_of(layer)}."
        parts = [(part.name.removeprefix(inside), part) for part in self.parts if part.name.startswith(inside)]
        others = tuple((name, part.kind, part.sizes) for name, part in parts)
        return self.layers[layer], others, layer in self.closed_attention

    @property
    def kv_size(self) -> int:
        """Width of one key (or value) row: heads for keys and values times head width."""
        return self.n_kv_heads * self.head_dim

    def site(self, layer: int, name: str) -> Site:
        """The site called `name` in `layer`; KeyError when there is none."""
        for site in self.layers[layer]:
            if site.name == name:
                return site
        raise KeyError(name)

    def to_json(self) -> dict[str, object]:
        absent = {"image": None, "closed_attention": ()}
        return {key: value for key, value in asdict(self).items() if key not in absent or value != absent[key]}

    @classmethod
    def from_json(cls, data: Json) -> "ModelShape":
        fields = dict(data)
        rows = fields.pop("layers")
        parts = fields.pop("parts", ())
        image, closed = fields.pop("image", None), fields.pop("closed_attention", ())
        assert isinstance(closed, (list, tuple))
        assert isinstance(rows, (list, tuple))
        assert isinstance(parts, (list, tuple))
        layers = tuple(tuple(Site(**{**site, "role": Role(site["role"])}) for site in row) for row in rows)
        read = None if image is None else ImageInput(**image)  # type: ignore[arg-type]  # as `to_json` wrote it
        rest = {"parts": tuple(_read_part(row) for row in parts), "closed_attention": tuple(closed)}
        return cls(layers=layers, image=read, **rest, **fields)  # type: ignore[arg-type]  # JSON values checked by the dataclass users


def _read_part(row: Json) -> Part:
    sizes = row["sizes"]
    assert isinstance(sizes, (list, tuple))
    return Part(
        name=str(row["name"]), kind=str(row["kind"]), sizes=tuple((str(name), tuple(size)) for name, size in sizes)
    )
