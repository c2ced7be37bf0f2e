"""What makes a study the study it is, and how two definitions differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from autopeft.objectives.objective import Direction, Knowledge, Objective
from autopeft.studies.records import plain

HARMLESS = ("search.trials", "resources", "tracking", "confirm")
"""Parts of a study's specification that may change between two runs of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyDefinition:
    """A study's identity, as JSON documents; one that is resumed must have the one it was begun with."""

    objectives: tuple[Objective, ...]
    spec: Mapping[str, object]
    """The study file, complete."""
    space: Mapping[str, object]
    """The search space as bound to the model: definition, constraints, model shape."""

    def to_attrs(self) -> dict[str, object]:
        return {
            "objectives": [asdict(objective) for objective in self.objectives],
            "spec": dict(self.spec),
            "space": dict(self.space),
        }

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, object]) -> "StudyDefinition":
        """What `to_attrs` wrote; other keys are ignored."""
        rows: list[dict[str, str]] = attrs["objectives"]  # type: ignore[assignment]  # written by to_attrs
        objectives = tuple(
            Objective(
                name=row["name"],
                direction=Direction(row["direction"]),
                unit=row["unit"],
                knowledge=Knowledge(row["knowledge"]),
                label=row["label"],
            )
            for row in rows
        )
        return cls(objectives=objectives, spec=attrs["spec"], space=attrs["space"])  # type: ignore[arg-type]  # same

    def differences(self, other: "StudyDefinition", *, harmless: Sequence[str] = HARMLESS) -> list[str]:
        """What `other` has otherwise, one line each: `training.epochs: 5 there, 3 here`.

        Args:
            other: The definition that is `here`; this one is `there`.
            harmless: Dotted paths in the specification that are not looked at, with all below them.
        """
        there, here = (dict(_leaves(plain(definition.to_attrs()))) for definition in (self, other))
        found: dict[str, str] = {}
        for path in [*there, *(path for path in here if path not in there)]:
            short = path.removeprefix("spec.")
            if there.get(path, _ABSENT) != here.get(path, _ABSENT) and not _within(short, harmless):
                found.setdefault(short, f"{short}: {_show(there, path)} there, {_show(here, path)} here")
        return list(found.values())


_ABSENT = object()


def _leaves(document: object, path: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(document, dict) and document:
        for key, value in document.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, document


def _within(path: str, roots: Sequence[str]) -> bool:
    return any(path == root or path.startswith(root + ".") for root in roots)


def _show(leaves: Mapping[str, object], path: str) -> str:
    if path not in leaves:
        return "absent"
    text = repr(leaves[path])
    return text if len(text) <= 80 else text[:77] + "..."
