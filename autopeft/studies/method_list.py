"""What `autopeft methods` says: every method, its fields with defaults and ranges, its source."""

from dataclasses import asdict

from autopeft.errors import NotFoundError
from autopeft.spaces.methods import METHODS
from autopeft.spaces.methods.method import AbstractMethod, Field
from autopeft.spaces.suggest import nearest


def method_rows() -> list[dict[str, object]]:
    """One row a method, by name."""
    return [method_row(name) for name in sorted(METHODS)]


def method_row(name: str) -> dict[str, object]:
    """A method with its fields.

    Raises:
        NotFoundError: No such method; names the nearest.
    """
    if name not in METHODS:
        raise NotFoundError(f"no method {name!r}; there are {', '.join(sorted(METHODS))}", hint=nearest(name, METHODS))
    method = METHODS[name]
    return {
        "method": name,
        "summary": _summary(method),
        "source": method.source,
        "fields": [_field_row(field) for field in method.settings],
        "learning_rates": asdict(method.learning_rates),
    }


def _summary(method: AbstractMethod) -> str:
    return (type(method).__doc__ or "").strip().partition("\n")[0]


def _field_row(field: Field) -> dict[str, object]:
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return {
        "field": field.name,
        "kind": field.kind.value,
        "default": default,
        "allowed": _allowed(field),
        "help": field.help,
    }


def _allowed(field: Field) -> str:
    if field.choices:
        return ", ".join(field.choices)
    match field.low, field.high:
        case None, None:
            return ""
        case low, None:
            return f"{low:g} or more"
        case None, high:
            return f"{high:g} or less"
        case low, high:
            return f"{low:g} to {high:g}"
