"""What a user asks of an export: the format, and what is done to the weights on the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from autopeft.errors import SpecError
from autopeft.spaces.suggest import nearest
from autopeft.trainers.job import COMPEFT, ONE_BIT, CompressionSpec

FORMATS: Final[Mapping[str, str]] = {
    "auto": "peft where plain peft loads it and computes the same, else autopeft",
    "peft": "a folder (or one a method) that plain peft loads",
    "autopeft": "safetensors and JSON, read by autopeft.load; holds everything",
    "merged": "base, adapter and head as one model that plain transformers loads",
    "mlflow": "an MLflow model that answers texts with labels",
    "config": "no weights: the configuration as YAML, and as a peft snippet",
}
"""Format to what it is."""
PER_CENT: Final = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Checked by `resolve`; field by field as on the command line."""

    format: str = "auto"
    merge: bool = False
    """Fold the adapter into the base weights."""
    train: bool = False
    """Train the chosen point again instead of taking the weights that the search kept."""
    compress: str | None = None
    """`compeft`, `compeft:k=10`, `compeft:k=10,alpha=2` or `1bit`."""
    push_to_hub: str | None = None
    """Repository of the Hugging Face hub, `owner/name`."""

    def resolve(self) -> "ResolvedOptions":
        """The same with its text parsed and its contradictions refused.

        Raises:
            SpecError: An unknown format or compression, or two options that exclude each other.
        """
        if self.format not in FORMATS:
            raise SpecError(
                f"--format: got {self.format!r}; allowed: {', '.join(FORMATS)}", hint=nearest(self.format, FORMATS)
            )
        compression = None if self.compress is None else parse_compression(self.compress)
        if self.merge and self.format in ("peft", "autopeft", "config"):
            raise SpecError(
                f"--merge: the format {self.format} keeps the adapter apart from the base",
                hint="use --merge with --format merged or mlflow, or alone",
            )
        if compression is not None and (self.merge or self.format not in ("auto", "autopeft")):
            where = "a merged model" if self.merge else f"the format {self.format}"
            raise SpecError(
                f"--compress: {where} cannot hold compressed weights", hint="use --format autopeft, or leave it out"
            )
        if self.train and self.format == "config":
            raise SpecError("--train: the format config has no weights", hint="leave --train out")
        merge = self.merge or self.format == "merged"
        chosen = self.format
        if chosen == "auto" and (merge or compression is not None):
            chosen = "merged" if merge else "autopeft"
        return ResolvedOptions(
            format=chosen, merge=merge, train=self.train, compression=compression, repository=self.push_to_hub
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedOptions:
    """Options that do not contradict each other."""

    format: str
    """A key of `FORMATS`; `auto` is left to be decided by what was trained."""
    merge: bool
    train: bool
    compression: CompressionSpec | None
    repository: str | None


def parse_compression(text: str) -> CompressionSpec:
    """The compression that `text` spells; k is in per cent.

    Raises:
        SpecError: Another word, an unknown setting, a number out of range.
    """
    method, _, rest = (part.strip() for part in text.partition(":"))
    if method not in (COMPEFT, ONE_BIT):
        raise SpecError(
            f"--compress: got {method!r}; allowed: {COMPEFT}, {ONE_BIT}", hint=nearest(method, (COMPEFT, ONE_BIT))
        )
    known = {"k": PER_CENT, "alpha": 1e6} if method == COMPEFT else {}
    values: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in rest.split(","))):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name not in known:
            raise SpecError(
                f"--compress: got {part!r}; {method} takes {', '.join(known) or 'no settings'}",
                hint="e.g. compeft:k=10,alpha=2",
            )
        values[name] = _number(part, number, high=known[name])
    density = values["k"] / PER_CENT if "k" in values else None
    return CompressionSpec(method=method, density=density, alpha=values.get("alpha"))


def _number(part: str, text: str, *, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= high:
        raise SpecError(f"--compress: got {part!r}; a number above 0 up to {high:g} is needed", hint="e.g. k=10")
    return value
