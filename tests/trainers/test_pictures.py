import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autopeft.errors import DataError
from autopeft.trainers.pictures import Picture, in_threads, read_pictures
from autopeft.trainers.tables import Table
from tests.images import drawn


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pictures(folder: Path, *cells: object) -> tuple[Picture, ...]:
    return read_pictures(Table(place="t.csv", columns={"image": cells}, folder=folder), "image")


def test_a_path_bytes_and_both_are_one_image(tmp_path: Path) -> None:
    data = encoded(drawn(1))
    (tmp_path / "a.png").write_bytes(data)
    outside = str((tmp_path / "a.png").absolute())
    forms = ["a.png", f" {outside} ", data, {"bytes": data, "path": "gone.png"}, {"bytes": None, "path": outside}]
    found = pictures(tmp_path, *forms)
    assert {picture.digest() for picture in found} == {found[0].digest()}
    assert all(picture.decoded("RGB").tobytes() == drawn(1).tobytes() for picture in found)


def test_a_picture_is_turned_upright_and_brought_to_the_models_mode(tmp_path: Path) -> None:
    wide = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, grey, pale = pictures(
        tmp_path,
        encoded(wide, exif=exif),
        encoded(Image.new("L", (3, 3), 7)),
        encoded(Image.new("P", (3, 3), 1)),
    )
    assert turned.decoded("RGB").size == (2, 4)
    assert grey.decoded("RGB").getpixel((0, 0)) == (7, 7, 7)
    assert pale.decoded("RGB").mode == "RGB"
    assert turned.decoded("L").mode == "L"


BROKEN = {
    "no image": (b"no image", "not an image file of a known format"),
    "empty": (b"", "not an image file of a known format"),
    "cut PNG": (encoded(drawn(0))[:-40], "a damaged image: "),
    "cut JPEG": (encoded(drawn(0).resize((200, 200)), "JPEG")[:-200], "a damaged image: image file is truncated"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_image_that_cannot_be_decoded_is_named(name: str, tmp_path: Path) -> None:
    data, message = BROKEN[name]
    (tmp_path / "b.jpg").write_bytes(data)
    _, picture = pictures(tmp_path, encoded(drawn(0)), "b.jpg")
    for look in (picture.check, lambda: picture.decoded("RGB")):
        with pytest.raises(DataError, match=rf"t\.csv row 2: .*b\.jpg: {message}.*replace the file, or take its row"):
            look()


def test_a_sound_image_passes_the_check(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP"):
        (picture,) = pictures(tmp_path, encoded(drawn(0).resize((90, 70)), kind))
        picture.check()


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("a.png", r"t\.csv row 1: .*a\.png: no such file \(a path is taken from the folder of the file"),
        (".", r"t\.csv row 1: .*: cannot be read: "),
        ("", r"row 1: column 'image' holds nothing; an image or its path is needed"),
        (None, r"row 1: column 'image' holds nothing"),
        (7, r"row 1: column 'image' holds 7; .*choose a column of file paths, or of images, for task\.image"),
        ([1], r"row 1: column 'image' holds a list"),
    ],
)
def test_a_cell_that_gives_no_image_is_named(cell: object, message: str, tmp_path: Path) -> None:
    (picture,) = pictures(tmp_path, cell)
    with pytest.raises(DataError, match=message):
        picture.data()


def test_threads_keep_the_order_and_pass_the_first_error_on(tmp_path: Path) -> None:
    data = [encoded(Image.new("L", (1, 1), index)) for index in range(200)]
    found = list(in_threads(lambda picture: picture.decoded("L").getpixel((0, 0)), pictures(tmp_path, *data)))
    assert found == list(range(200))
    with pytest.raises(DataError, match="row 3"):
        list(in_threads(Picture.digest, pictures(tmp_path, data[0], data[1], "x.png", "y.png")))


def test_a_missing_column_of_images_is_named(tmp_path: Path) -> None:
    table = Table(place="t.csv", columns={"picture": ("a.png",)}, folder=tmp_path)
    with pytest.raises(DataError, match=r"no column 'image' \(task\.image\); the columns are 'picture'"):
        read_pictures(table, "image")
