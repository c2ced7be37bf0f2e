"""Images as a data set holds them: found by a table's cells, read when asked for, decoded in one way everywhere."""

import hashlib
import io
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from autopeft.errors import DataError
from autopeft.trainers.tables import Table

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

N_THREADS: Final = 8
"""Pillow decodes and resizes outside the interpreter's lock."""
_AHEAD: Final = 64
"""Images that are held at a time."""
_REPLACE: Final = "replace the file, or take its row out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image of a table; its bytes are read when they are asked for and not kept."""

    table: Table = field(repr=False, compare=False)
    column: str
    index: int

    def data(self) -> bytes:
        """The image file's bytes.

        Raises:
            DataError: No such file, or a cell that is neither an image nor a path.
        """
        cell = self.table.columns[self.column][self.index]
        held = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if isinstance(held, bytes):
            return held
        path = self._path()
        if path is None:
            raise DataError(
                f"{self._place()}: column {self.column!r} holds {_shown(cell)}; an image or its path is needed",
                hint="choose a column of file paths, or of images, for task.image",
            )
        try:
            return path.read_bytes()
        except (OSError, ValueError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
            raise DataError(
                f"{self._place()}: {reason}", hint="a path is taken from the folder of the file that it stands in"
            ) from None

    def digest(self) -> str:
        """Hexadecimal SHA-256 of the bytes: the same for copies of one image, whatever they are called."""
        return hashlib.sha256(self.data()).hexdigest()

    def decoded(self, mode: str) -> "Image":
        """The image, turned upright by its EXIF tag, in Pillow's `mode` (`RGB`, `L`).

        Raises:
            DataError: As `data`, or the bytes are no image, or a damaged one.
        """
        from PIL import ImageOps

        return self._opened(lambda image: ImageOps.exif_transpose(image).convert(mode))

    def check(self) -> None:
        """Raise DataError when `decoded` would; faster than that for a large JPEG, which is read at an eighth."""

        def read(image: "Image") -> None:
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
            image.getexif()

        self._opened(read)

    def _opened(self, use: "Callable[[Image], T]") -> T:
        from PIL import Image

        data = self.data()
        try:
            with Image.open(io.BytesIO(data)) as image:
                return use(image)
        except Image.UnidentifiedImageError:
            raise DataError(f"{self._place()}: not an image file of a known format", hint=_REPLACE) from None
        except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
            text = str(error).partition("\n")[0]
            raise DataError(f"{self._place()}: a damaged image: {text}", hint=_REPLACE) from None

    def _place(self) -> str:
        path = self._path()
        return f"{self.table.place} row {self.index + 1}" + ("" if path is None else f": {path}")

    def _path(self) -> Path | None:
        """Where the image is, as far as the cell says."""
        cell = self.table.columns[self.column][self.index]
        named = cell.get("path") if isinstance(cell, Mapping) else cell
        if not isinstance(named, str) or not named.strip():
            return None
        return (self.table.folder or Path()) / Path(named.strip()).expanduser()


def _shown(cell: object) -> str:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return "nothing"
    return repr(cell) if isinstance(cell, (int, float)) else f"a {type(cell).__name__}"


def read_pictures(table: Table, column: str) -> tuple[Picture, ...]:
    """The images of a column, none of them read yet.

    Raises:
        DataError: There is no such column.
    """
    n = len(table.column(column, setting="task.image"))
    return tuple(Picture(table=table, column=column, index=index) for index in range(n))


def in_threads(do: Callable[[Picture], T], pictures: Sequence[Picture]) -> Iterator[T]:
    """`do` of each picture, in order, a few ahead of the reader; raises what the first that fails raised."""
    with ThreadPoolExecutor(N_THREADS) as pool:
        for first in range(0, len(pictures), _AHEAD):
            yield from pool.map(do, pictures[first : first + _AHEAD])
