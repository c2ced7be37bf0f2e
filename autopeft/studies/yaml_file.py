"""Study files as plain data: a strict subset of YAML that cannot surprise, with the line of every value.

Built on PyYAML's event stream, so nothing is constructed but dictionaries, lists and scalars. Tags, anchors, aliases,
duplicate keys, several documents, deep nesting and huge files are refused. Scalars follow YAML 1.2's core schema:
`1e-4` is a number, `off` and `no` are words.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autopeft.errors import SpecError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 20_000

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
Path_ = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?((\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)\Z")
_WORDS: dict[str, Plain] = {"": None, "~": None, "null": None, "true": True, "false": False}
_QUOTE_HINT = 'inside braces a call must be quoted, e.g. {rank: "choice(2, 8)"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A parsed file and where each value stands in it."""

    data: dict[str, Plain]
    lines: Mapping[Path_, int] = field(default_factory=dict)
    source: str = ""

    def place(self, path: Path_) -> str:
        """`file:line: a.b[2]` of the value at `path`, or of its nearest parent that the file holds."""
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = f":{self.lines[known]}" if known else ""
        return f"{self.source}{line}: {dotted(path)}" if path else f"{self.source}{line}"


def dotted(path: Path_) -> str:
    """`("task", "text", 0)` as `task.text[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else (f".{step}" if text else step)
    return text


def read_yaml(path: Path) -> Document:
    """The mapping in the file at `path`.

    Raises:
        SpecError: No such file, not UTF-8, too large, or anything the module's docstring refuses.
    """
    if not path.is_file():
        near = ", ".join(sorted(entry.name for entry in path.parent.glob("*.y*ml"))[:5]) if path.parent.is_dir() else ""
        raise SpecError(f"{path}: no such file", hint=f"study files in that folder: {near}" if near else "")
    if path.stat().st_size > MAX_BYTES:
        raise SpecError(f"{path}: {path.stat().st_size} bytes; a study file has at most {MAX_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text (byte {error.start})") from error
    return parse_yaml(text, source=path.name)


def parse_yaml(text: str, *, source: str) -> Document:
    """The mapping that `text` holds; see `read_yaml`."""
    import yaml

    builder = _Builder(source=source)
    try:
        for event in _bounded(yaml.parse(text, Loader=yaml.SafeLoader), source):
            builder.take(event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise SpecError(
            f"{source}{line}: not valid YAML: {problem}", hint=_QUOTE_HINT if "'," in problem else ""
        ) from error
    if not isinstance(builder.root, dict):
        raise SpecError(f"{source}: a study file is a mapping of keys to values", hint="start with `study: NAME`")
    return Document(data=builder.root, lines=builder.lines, source=source)


def parse_scalar(text: str) -> Plain:
    """A plain (unquoted) scalar by YAML 1.2's core schema."""
    lowered = text.lower() if text in (text.lower(), text.upper(), text.capitalize()) else text
    if lowered in _WORDS:
        return _WORDS[lowered]
    if _INTEGER.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text)
    return text


def _bounded(events: Iterator[object], source: str) -> Iterator[object]:
    """The same events, refused as soon as there are too many or they nest too deep."""
    import yaml

    depth = 0
    for count, event in enumerate(events):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise SpecError(f"{source}: nested deeper than {MAX_DEPTH} levels")
        if count > MAX_NODES:
            raise SpecError(f"{source}: more than {MAX_NODES} values")
        yield event


@dataclass(slots=True)
class _Frame:
    """A collection being filled, where it stands, and the key that waits for its value."""

    holder: dict[str, Plain] | list[Plain]
    path: Path_
    key: str | None = None


class _Builder:
    """Turns events into plain data, one `take` an event; keeps its own stack, so depth costs no recursion."""

    def __init__(self, *, source: str) -> None:
        self.source = source
        self.root: Plain = None
        self.lines: dict[Path_, int] = {}
        self._stack: list[_Frame] = []
        self._documents = 0

    def take(self, event: object) -> None:
        import yaml

        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise self._error(event, "a second document (---)", hint="keep one study in a file")
            case yaml.AliasEvent():
                raise self._error(event, "an alias (*)", hint="write the value out")
            case yaml.ScalarEvent():
                self._refuse_decorated(event)
                self._scalar(event)
            case yaml.CollectionStartEvent():
                self._refuse_decorated(event)
                holder: dict[str, Plain] | list[Plain] = {} if isinstance(event, yaml.MappingStartEvent) else []
                self._stack.append(_Frame(holder, self._place(holder, event)))
            case yaml.CollectionEndEvent():
                self._stack.pop()
            case _:
                pass

    def _refuse_decorated(self, event: object) -> None:
        if getattr(event, "anchor", None):
            raise self._error(event, "an anchor (&)", hint="write the value out where it is used")
        if tag := getattr(event, "tag", None):
            raise self._error(event, f"a tag ({tag})", hint="study files hold plain values only")

    def _scalar(self, event: object) -> None:
        text, plain = str(getattr(event, "value", "")), not getattr(event, "style", None)
        frame = self._stack[-1] if self._stack else None
        if frame is not None and isinstance(frame.holder, dict) and frame.key is None:
            self._key(frame, frame.holder, text, event)
        else:
            self._place(parse_scalar(text) if plain else text, event)

    def _key(self, frame: _Frame, holder: dict[str, Plain], text: str, event: object) -> None:
        if text in holder:
            first = self.lines[(*frame.path, text)]
            raise self._error(event, f"the key {text!r} a second time", hint=f"line {first} has it already")
        if "(" in text or ")" in text:
            raise self._error(event, f"the key {text!r}", hint=_QUOTE_HINT)
        frame.key = text
        self.lines[(*frame.path, text)] = _line(event)

    def _place(self, value: Plain, event: object) -> Path_:
        """Put `value` where the stream stands; its path."""
        if not self._stack:
            self.root = value
            return ()
        frame = self._stack[-1]
        if isinstance(frame.holder, list):
            frame.holder.append(value)
            path = (*frame.path, len(frame.holder) - 1)
            self.lines[path] = _line(event)
            return path
        if frame.key is None:
            raise self._error(event, "a key that is not a plain word", hint="keys are words such as `rank`")
        path = (*frame.path, frame.key)
        frame.holder[frame.key] = value
        frame.key = None
        return path

    def _error(self, event: object, what: str, *, hint: str) -> SpecError:
        return SpecError(f"{self.source}:{_line(event)}: {what} is not allowed in a study file", hint=hint)


def _line(event: object) -> int:
    mark = getattr(event, "start_mark", None)
    return mark.line + 1 if mark else 0
