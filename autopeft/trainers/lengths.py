"""How long a row may be."""

from autopeft.errors import SpecError
from autopeft.trainers.job import ModelSpec


def refuse_length(model: ModelSpec, max_length: int, *, virtual: int, limit: int | None, place: str) -> None:
    """Refuse rows of `max_length` tokens, after `virtual` ones of adapters, where that is more than `limit`.

    Args:
        model: For the message.
        max_length: Tokens of a row.
        virtual: Tokens that adapters put before it.
        limit: Positions of the model; None sets none.
        place: Where the length is written.

    Raises:
        SpecError: With what there is room for.
    """
    if limit is None or max_length + virtual <= limit:
        return
    beside = f" and {virtual} virtual tokens" if virtual else ""
    raise SpecError(
        f"{place}: got {max_length}{beside}; {model.name!r} takes at most {limit} tokens",
        hint=f"set {place} to {limit - virtual} or less" if limit > virtual else "use fewer virtual tokens",
    )
