"""Tokenised splits, made once and kept on disk as plain arrays (safetensors, no pickle)."""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMAT = "1"
CHUNK = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizedSplit:
    """Rows of token ids end to end; row i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    offsets: np.ndarray[tuple[int], np.dtype[np.int64]]
    starts: np.ndarray[tuple[int], np.dtype[np.int64]]
    """First position of each row that is a target (language modelling); 0 elsewhere."""
    types: np.ndarray[tuple[int], np.dtype[np.uint8]] | None = None
    """Segment of each token, for models that have segments."""
    labels: np.ndarray[tuple[int], np.dtype[np.int64]] | np.ndarray[tuple[int], np.dtype[np.float32]] | None = None
    """One a row: int64 classes or float32 numbers; None where the tokens themselves are the targets."""
    words: np.ndarray[tuple[int], np.dtype[np.int32]] | None = None
    """Which word of its row each token begins, -1 where it begins none; only for rows that are labelled by word."""
    tags: np.ndarray[tuple[int], np.dtype[np.int64]] | None = None
    """The class of each token that begins a word, else -100."""
    parts: np.ndarray[tuple[int, int], np.dtype[np.int64]] | None = None
    """Tokens of each part, where a row is several sequences one after the other: `[N, C]` alternatives of which
    `labels` says the right one, or, without labels, `[N, 2]` source and target."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def widths(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Tokens of each row when its parts are padded to its own longest; equal to `lengths` where it has none."""
        return self.lengths if self.parts is None else self.parts.max(axis=1) * self.parts.shape[1]

    @property
    def learnable(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Whether each row holds something to learn from: a token, a target, a tagged word."""
        if self.parts is not None:
            return np.asarray((self.parts > 0).all(axis=1))
        if self.tags is not None:
            known = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.tags >= 0)])
            return np.asarray(known[self.offsets[1:]] > known[self.offsets[:-1]])
        return self.lengths > self.starts

    def cells(self, rows: np.ndarray) -> np.ndarray:
        """Positions in `ids` of the tokens of `rows`, row after row."""
        bounds = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist()
        return np.concatenate([np.arange(first, last) for first, last in zip(*bounds, strict=True)])

    def take(self, rows: np.ndarray) -> "TokenizedSplit":
        """The rows at `rows`, in that order."""
        cells = self.cells(rows)
        return replace(
            self,
            ids=self.ids[cells],
            offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.lengths[rows])]),
            starts=self.starts[rows],
            types=None if self.types is None else self.types[cells],
            labels=None if self.labels is None else self.labels[rows],
            words=None if self.words is None else self.words[cells],
            tags=None if self.tags is None else self.tags[cells],
            parts=None if self.parts is None else self.parts[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Tokens of one row before they are laid end to end."""

    ids: Sequence[int]
    types: Sequence[int] | None = None
    start: int = 0
    words: Sequence[int] | None = None
    """Which word each token begins, -1 for none."""
    parts: Sequence[int] | None = None
    """Tokens of each part of a row of several sequences."""


Encoder = Callable[["PreTrainedTokenizerBase", Sequence[tuple[str, ...]], int], list[Row]]
"""(tokenizer, texts, longest row) to rows."""


def cache_folder() -> Path:
    """`AUTOPEFT_CACHE`, else `~/.cache/autopeft`."""
    named = os.environ.get("AUTOPEFT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "autopeft"


def tokenize(
    texts: Sequence[tuple[str, ...]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    encoder: Encoder,
    encoding: str,
    max_length: int,
    cache: Path | None,
) -> TokenizedSplit:
    """`texts` as token ids, from the cache where it has them.

    A cache file is found by the SHA-256 of everything that decides its content (texts, tokenizer, `encoding`,
    `max_length`), holds a checksum of its arrays, and is written beside its place and renamed into it: a reader sees a
    whole file or none, and one that is damaged is made anew. A cache that cannot be written costs a warning, no more.

    Args:
        texts: One tuple of cells a row.
        tokenizer: Of the base model.
        encoder: Tokenises a block of rows.
        encoding: Names what `encoder` does; part of the key.
        max_length: Longest row, in tokens.
        cache: Folder of the cache; None keeps nothing.
    """
    if cache is None:
        return _encode(texts, tokenizer, encoder, max_length)
    file = cache / "tokens" / f"{cache_key(texts, tokenizer, encoding=encoding, max_length=max_length)}.safetensors"
    found = _read(file)
    if found is not None:
        return found
    split = _encode(texts, tokenizer, encoder, max_length)
    _write(file, split)
    return split


def cache_key(
    texts: Sequence[tuple[str, ...]], tokenizer: "PreTrainedTokenizerBase", *, encoding: str, max_length: int
) -> str:
    """32 hexadecimal digits that change with anything that changes the tokens."""
    digest = hashlib.sha256()
    for part in (_FORMAT, encoding, str(max_length), _fingerprint(tokenizer)):
        digest.update(part.encode() + b"\0")
    for cells in texts:
        for cell in cells:
            data = cell.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def _fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Identity of a tokenizer by content: its class, special tokens and vocabulary.

    Of a fast tokenizer the whole state, but for truncation and padding, which a call changes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    else:
        state = {"vocabulary": sorted(tokenizer.get_vocab().items()), "arguments": repr(sorted(tokenizer.init_kwargs))}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    text = json.dumps([type(tokenizer).__name__, special, state], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _encode(
    texts: Sequence[tuple[str, ...]], tokenizer: "PreTrainedTokenizerBase", encoder: Encoder, max_length: int
) -> TokenizedSplit:
    rows: list[Row] = []
    for first in range(0, len(texts), CHUNK):
        rows += encoder(tokenizer, texts[first : first + CHUNK], max_length)
    lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
    types = None
    if rows and rows[0].types is not None:
        types = np.fromiter(chain.from_iterable(row.types or () for row in rows), dtype=np.uint8)
    words = parts = None
    if rows and rows[0].words is not None:
        words = np.fromiter(chain.from_iterable(row.words or () for row in rows), dtype=np.int32)
    if rows and rows[0].parts is not None:
        parts = np.array([row.parts for row in rows], dtype=np.int64)
    return TokenizedSplit(
        ids=np.fromiter(chain.from_iterable(row.ids for row in rows), dtype=np.int32),
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
        starts=np.array([row.start for row in rows], dtype=np.int64),
        types=types,
        words=words,
        parts=parts,
    )


def _arrays(split: TokenizedSplit) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {"ids": split.ids, "offsets": split.offsets, "starts": split.starts}
    extra = {"types": split.types, "words": split.words, "parts": split.parts}
    return arrays | {name: array for name, array in extra.items() if array is not None}


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\0".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _read(file: Path) -> TokenizedSplit | None:
    """The split in `file`; None when there is none or it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="numpy") as stored:
            arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # not a mapping
            checksum = (stored.metadata() or {}).get("checksum")
    except (SafetensorError, OSError):
        return None
    if checksum != _checksum(arrays):
        return None
    return TokenizedSplit(**arrays)  # type: ignore[arg-type]  # as `_arrays` names them, checked by the sum


def _write(file: Path, split: TokenizedSplit) -> None:
    from safetensors.numpy import save

    arrays = _arrays(split)
    data = save(arrays, metadata={"checksum": _checksum(arrays)})
    temporary = ""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem[:8]}-", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        warnings.warn(f"{file.parent}: tokens are not cached ({error}); set AUTOPEFT_CACHE to a folder", stacklevel=3)
        if temporary:
            Path(temporary).unlink(missing_ok=True)
