import os
import time
from pathlib import Path

import numpy as np
import pytest

from autopeft.errors import DataError
from autopeft.trainers import pixels
from autopeft.trainers.batches import batches_of, evaluation_batches, training_batches
from autopeft.trainers.image_reader import ImageReader
from autopeft.trainers.pictures import Picture, read_pictures
from autopeft.trainers.pixels import PixelSplit, read_pixels
from autopeft.trainers.sources import read_image_folder
from tests.images import drawn, write_folder
from tests.models import image_processor

READER = ImageReader(image_processor(), n_channels=3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shown(tmp_path: Path) -> tuple[tuple[Picture, ...], list[str]]:
    table = read_image_folder(write_folder(tmp_path / "shapes", 6))
    found = read_pictures(table, "image")
    return found, [picture.digest() for picture in found]


def expected(order: list[int]) -> np.ndarray:
    return np.stack([READER.pixels(drawn(index)) for index in order])


def test_images_are_processed_once_and_mapped_from_the_cache_afterwards(
    shown: tuple[tuple[Picture, ...], list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = read_pixels(*shown, READER, cache=cache)
    np.testing.assert_array_equal(made, expected([0, 2, 4, 1, 3, 5]))
    np.testing.assert_array_equal(made, read_pixels(*shown, READER, cache=None))
    monkeypatch.setattr(pixels, "_images", lambda *_: pytest.fail("processed again"))
    again = read_pixels(*shown, READER, cache=cache)
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(again, made)
    assert [file.suffix for file in (cache / "images").iterdir()] == [".npy"]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_made_anew(damage: str, shown: tuple[tuple[Picture, ...], list[str]], cache: Path) -> None:
    made = np.array(read_pixels(*shown, READER, cache=cache))
    (file,) = (cache / "images").iterdir()
    whole = file.read_bytes()
    data = bytearray(whole)
    data[-50] ^= 255
    file.write_bytes({"cut": bytes(data[:-9]), "changed": bytes(data), "empty": b""}[damage])
    np.testing.assert_array_equal(read_pixels(*shown, READER, cache=cache), made)
    assert file.read_bytes() == whole


def test_other_images_and_another_processor_have_files_of_their_own(
    shown: tuple[tuple[Picture, ...], list[str]], cache: Path
) -> None:
    found, digests = shown
    other = ImageReader(type(image_processor())(size={"height": 6, "width": 6}), n_channels=3)
    read_pixels(found, digests, READER, cache=cache)
    read_pixels(found[1:], digests[1:], READER, cache=cache)
    assert read_pixels(found, digests, other, cache=cache).shape == (6, 3, 6, 6)
    assert len(list((cache / "images").iterdir())) == 3


def test_a_cache_that_cannot_be_written_costs_a_warning(
    shown: tuple[tuple[Picture, ...], list[str]], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.warns(UserWarning, match="images are not cached .*set AUTOPEFT_CACHE to a folder"):
        made = read_pixels(*shown, READER, cache=blocked)
    np.testing.assert_array_equal(made, expected([0, 2, 4, 1, 3, 5]))


def test_a_picture_that_cannot_be_decoded_leaves_nothing_in_the_cache(
    shown: tuple[tuple[Picture, ...], list[str]], tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "shapes" / "square" / "003.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"row 5: .*003\.png: not an image file"):
        read_pixels(*shown, READER, cache=cache)
    assert list((cache / "images").iterdir()) == []


def test_the_cache_forgets_what_was_not_used_for_longest(
    shown: tuple[tuple[Picture, ...], list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, digests = shown
    names: list[str] = []
    for n in (4, 5):
        read_pixels(found[:n], digests[:n], READER, cache=cache)
        names += [file.name for file in (cache / "images").iterdir() if file.name not in names]
    for age, name in enumerate(reversed(names), start=1):
        os.utime(cache / "images" / name, (time.time() - 100 * age,) * 2)
    abandoned, fresh = (cache / "images" / f".{name}.part" for name in ("old", "new"))
    abandoned.write_bytes(b"x")
    fresh.write_bytes(b"x")
    os.utime(abandoned, (time.time() - 2 * 86400,) * 2)
    read_pixels(found[:4], digests[:4], READER, cache=cache)
    held = sum(file.stat().st_size for file in (cache / "images").iterdir())
    monkeypatch.setattr(pixels, "CACHE_BYTES", held + expected([0]).nbytes)
    read_pixels(found, digests, READER, cache=cache)
    left = {file.name for file in (cache / "images").iterdir()}
    assert names[0] in left, "it was used a moment ago"
    assert names[1] not in left
    assert fresh.name in left
    assert abandoned.name not in left
    assert len(left) == 3


def test_a_split_gives_batches_of_whole_images() -> None:
    chance = np.random.default_rng(0)
    split = PixelSplit(
        pixels=chance.integers(0, 256, (7, 3, 4, 4), dtype=np.uint8),
        scale_C=np.ones(3, dtype=np.float32),
        shift_C=np.zeros(3, dtype=np.float32),
        n_tokens=5,
        labels=np.arange(7),
    )
    assert split.lengths.tolist() == [5] * 7 == split.widths.tolist()
    rows = training_batches(split.widths, 3, seed=0, epoch=1)
    batches = list(batches_of(split, rows, pad_id=0))
    assert sorted(label for batch in batches for label in batch.targets) == list(range(7))
    assert [batch.tokens for batch in batches] == [5 * len(batch.targets) for batch in batches]
    assert all(batch.mask_BT.shape == (len(batch.targets), 5) and batch.mask_BT.all() for batch in batches)
    (whole,) = batches_of(split, evaluation_batches(split.widths, 9), pad_id=0)
    np.testing.assert_array_equal(whole.pixels_BCHW, split.pixels)  # type: ignore[union-attr]
