"""Which linear sites of a layer a target word names.

A word is, in this order: a site's full name, a group (`attention`, `mlp`, `all-linear`, ...), a dotted ending
of site names (`query`, `q_proj`), or a role (`query`, `mlp_up`), which works on every architecture. A word `re:...`
is a regular expression over full names instead (see `pattern`).
"""

from collections.abc import Sequence

from autopeft.errors import SpaceError
from autopeft.spaces.model_shape import ModelShape, Role, Site
from autopeft.spaces.pattern import pattern
from autopeft.spaces.suggest import nearest

GROUPS: dict[str, frozenset[Role]] = {
    "attention": frozenset({Role.QUERY, Role.KEY, Role.VALUE, Role.QUERY_KEY_VALUE, Role.ATTENTION_OUTPUT}),
    "mlp": frozenset({Role.MLP_GATE, Role.MLP_UP, Role.MLP_DOWN}),
    "gate-up": frozenset({Role.MLP_GATE, Role.MLP_UP}),
    "all-linear": frozenset(Role),
    "query-key-value": frozenset({Role.QUERY, Role.KEY, Role.VALUE, Role.QUERY_KEY_VALUE}),
    "query-value": frozenset({Role.QUERY, Role.VALUE, Role.QUERY_KEY_VALUE}),
    "key-value-down": frozenset({Role.KEY, Role.VALUE, Role.QUERY_KEY_VALUE, Role.MLP_DOWN}),
}
"""Words for several roles at once. The two with `query` are the fused projection where there is one; `gate-up` is
the feed-forward block's input side."""


REGEX = "re:"
"""What a word begins with that is a regular expression."""


def sites_of(word: str, sites: Sequence[Site]) -> tuple[str, ...]:
    """Names of the sites that `word` means among `sites`, in their order; empty when there is none.

    Raises:
        SpaceError: A regular expression that cannot be read.
    """
    if word.startswith(REGEX):
        wanted = pattern(word.removeprefix(REGEX))
        return tuple(site.name for site in sites if wanted.matches(site.name))
    exact = tuple(site.name for site in sites if site.name == word)
    if exact:
        return exact
    if word in GROUPS:
        return tuple(site.name for site in sites if site.role in GROUPS[word])
    ending = tuple(site.name for site in sites if site.name.endswith(f".{word}"))
    return ending or tuple(site.name for site in sites if site.role == word)


def resolve(words: Sequence[str], shape: ModelShape, layer: int) -> tuple[str, ...]:
    """Names of all sites that `words` mean in `layer`, in module order.

    Raises:
        SpaceError: A word that means none there; the message lists the sites of the layer. Also what `sites_of`
            raises.
    """
    sites = shape.layers[layer]
    named: set[str] = set()
    for word in words:
        found = sites_of(word, sites)
        if not found:
            raise _unknown(word, shape, layer)
        named.update(found)
    return tuple(site.name for site in sites if site.name in named)


def _unknown(word: str, shape: ModelShape, layer: int) -> SpaceError:
    names = [site.name for site in shape.layers[layer]]
    roles = sorted({site.role.value for site in shape.layers[layer]})
    if Role.QUERY_KEY_VALUE in roles and word in (Role.QUERY, Role.KEY, Role.VALUE):
        hint = "query, key and value are one map here: write query_key_value, or query-value, which every model has"
    elif word.startswith(REGEX):
        hint = "a pattern matches a site's whole name within its layer, for example re:.*proj"
    else:
        hint = ""
    known = [*names, *(name.rsplit(".", maxsplit=1)[-1] for name in names), *roles, *GROUPS]
    return SpaceError(
        f"{word!r} is no target in layer {layer} of this {shape.family} model; its linear sites are "
        f"{', '.join(names)}; words for them are {', '.join([*roles, *GROUPS])}",
        hint=hint or nearest(word, known) or "name a site, its last part, a role or a group",
    )
