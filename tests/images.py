"""Small pictures that are easily told apart, and the ways in which data sets hold them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("disc", "square")


def drawn(index: int, *, seed: int = 0) -> Image.Image:
    """A red square (odd) or a blue disc (even) on a dark ground, somewhere, 20 x 16 pixels."""
    chance = np.random.default_rng([seed, index])
    image = Image.new("RGB", (20, 16), tuple(chance.integers(0, 90, 3).tolist()))
    x, y = chance.integers(1, 7, 2).tolist()
    pen, box = ImageDraw.Draw(image), (x, y, x + 8, y + 8)
    if index % 2:
        pen.rectangle(box, fill=(220, 40, 40))
    else:
        pen.ellipse(box, fill=(40, 40, 220))
    return image


def write_folder(folder: Path, n: int, *, seed: int = 0) -> Path:
    """`disc/000.png`, `square/001.png` and so on; returns `folder`."""
    for index in range(n):
        file = folder / CLASSES[index % 2] / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn(index, seed=seed).save(file)
    return folder


def rows_of(folder: Path, *, below: Path) -> list[tuple[str, str]]:
    """(path from `below`, class) of what `write_folder` wrote."""
    files = sorted(folder.rglob("*.png"), key=lambda file: file.name)
    return [(file.relative_to(below).as_posix(), file.parent.name) for file in files]


def write_table(file: Path, rows: Sequence[tuple[str, str]]) -> str:
    """`rows` under the header `image,label`, as the ending of `file` says; returns its path."""
    records = [{"image": path, "label": label} for path, label in rows]
    if file.suffix == ".json":
        file.write_text(json.dumps(records))
    else:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["image", "label"], delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return str(file)
