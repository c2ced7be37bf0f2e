"""Splits of images as arrays of bytes, made once and kept on disk, from where they are mapped into memory.

Letters: N images of a split, B of a batch, C channels, H height, W width, T tokens of an image.
"""

import hashlib
import os
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from autopeft.trainers.image_reader import FloatArray, ImageReader, Pixels
from autopeft.trainers.pictures import Picture, in_threads

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

CACHE_BYTES: Final = 64 << 30
"""Bytes that the cache of images may hold; the files that were not used for longest go first."""
_FORMAT: Final = "1"
_CHECKSUM: Final = 4
_CHUNK: Final = 1 << 24
_DAY: Final = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Images of one size, as bytes; the model is given `scale_C * byte + shift_C`."""

    pixels_BCHW: Pixels
    scale_C: FloatArray
    shift_C: FloatArray
    targets: IntArray
    """`[B]` classes."""
    n_tokens: int
    """Tokens of an image."""

    @property
    def items(self) -> IntArray:
        """How many scored items each row has."""
        return np.ones(len(self.targets), dtype=np.int64)

    @property
    def tokens(self) -> int:
        """Tokens of the batch; none is padding."""
        return len(self.pixels_BCHW) * self.n_tokens

    @property
    def mask_BT(self) -> IntArray:
        """1 for every token."""
        return np.ones((len(self.pixels_BCHW), self.n_tokens), dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelSplit:
    """The images of a split and their classes."""

    pixels: Pixels
    """`[N, C, H, W]`; mapped from a file where there is a cache, so that only what is used is read."""
    scale_C: FloatArray
    shift_C: FloatArray
    n_tokens: int
    labels: IntArray
    """`[N]` classes."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> IntArray:
        """Tokens of each image, all the same."""
        return np.full(len(self), self.n_tokens, dtype=np.int64)

    @property
    def widths(self) -> IntArray:
        """As `lengths`."""
        return self.lengths

    def batch(self, rows: IntArray) -> ImageBatch:
        """The images at `rows`."""
        return ImageBatch(
            pixels_BCHW=np.asarray(self.pixels[rows]),
            scale_C=self.scale_C,
            shift_C=self.shift_C,
            targets=self.labels[rows],
            n_tokens=self.n_tokens,
        )


def read_pixels(
    pictures: Sequence[Picture], digests: Sequence[str], reader: ImageReader, *, cache: Path | None
) -> Pixels:
    """`[N, C, H, W]`, from the cache where it has them.

    A cache file is found by the SHA-256 of the images' digests and of the image processor's settings, ends with a
    checksum, and is written beside its place and renamed into it: a reader sees a whole file or none, and one that is
    damaged is made anew. A cache that cannot be written costs a warning, and the memory to hold the images.

    Args:
        pictures: At least one.
        digests: Of each picture's bytes.
        reader: Of the model.
        cache: Folder of the cache; None keeps nothing.

    Raises:
        DataError: A picture that cannot be decoded.
    """
    shape = (len(pictures), len(reader.scale_C), *reader.size)
    if cache is None:
        return _in_memory(pictures, reader, shape)
    key = hashlib.sha256("\0".join((_FORMAT, reader.settings, *digests)).encode()).hexdigest()[:32]
    file = cache / "images" / f"{key}.npy"
    found = _open(file, shape)
    if found is not None:
        return found
    try:
        _write(file, _images(pictures, reader), shape)
    except OSError as error:
        warnings.warn(f"{file.parent}: images are not cached ({error}); set AUTOPEFT_CACHE to a folder", stacklevel=2)
        return _in_memory(pictures, reader, shape)
    _tidy(file)
    made = _open(file, shape)
    return _in_memory(pictures, reader, shape) if made is None else made


def _images(pictures: Sequence[Picture], reader: ImageReader) -> Iterator[Pixels]:
    """Each image `[C, H, W]`."""
    return in_threads(lambda picture: reader.pixels(picture.decoded(reader.mode)), pictures)


def _in_memory(pictures: Sequence[Picture], reader: ImageReader, shape: tuple[int, ...]) -> Pixels:
    out: Pixels = np.empty(shape, dtype=np.uint8)
    for index, pixels in enumerate(_images(pictures, reader)):
        out[index] = pixels
    return out


def _open(file: Path, shape: tuple[int, ...]) -> Pixels | None:
    """The images in `file`, mapped; None when there is none or it is damaged. Notes that it was used."""
    try:
        with file.open("rb") as stream:
            if not _is_whole(stream):
                return None
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        os.utime(file)
    except (OSError, ValueError, EOFError):
        return None
    return mapped if mapped.shape == shape and mapped.dtype == np.uint8 else None


def _is_whole(stream: BinaryIO) -> bool:
    """Whether the last four bytes are the CRC-32 of those before."""
    left = os.fstat(stream.fileno()).st_size - _CHECKSUM
    checksum = 0
    while left > 0:
        block = stream.read(min(_CHUNK, left))
        if not block:
            return False
        checksum = zlib.crc32(block, checksum)
        left -= len(block)
    return stream.read() == checksum.to_bytes(_CHECKSUM, "little")


def _write(file: Path, images: Iterator[Pixels], shape: tuple[int, ...]) -> None:
    """Write as they come: a split may be larger than memory. A full disk raises OSError, as mapped pages would not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem[:8]}-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.lib.format.write_array_header_2_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            stream.flush()
            checksum = zlib.crc32(Path(temporary).read_bytes())
            for pixels in images:
                data = np.ascontiguousarray(pixels).data
                checksum = zlib.crc32(data, checksum)
                stream.write(data)
            stream.write(checksum.to_bytes(_CHECKSUM, "little"))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _tidy(newest: Path) -> None:
    """Delete what was not used for longest while the folder holds more than `CACHE_BYTES`, but never `newest`.

    What a process that was killed left half-written goes after a day. A file that another process has mapped stays
    readable there.
    """
    found: list[tuple[float, int, Path]] = []
    for file in newest.parent.iterdir():
        with suppress(FileNotFoundError):
            entry = file.stat()
            found.append((entry.st_mtime, entry.st_size, file))
    held = sum(size for _, size, _ in found)
    for used, size, file in sorted(found):
        abandoned = file.suffix == ".part" and used < time.time() - _DAY
        if abandoned or (held > CACHE_BYTES and file.suffix == ".npy" and file != newest):
            file.unlink(missing_ok=True)
            held -= size
