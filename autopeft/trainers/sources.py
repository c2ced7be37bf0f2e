"""The sources of a task's rows: local files, folders of images and hub data sets; the latter two through `datasets`."""

import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from autopeft.errors import DataError, MissingExtraError
from autopeft.trainers.job import DataSpec
from autopeft.trainers.tables import Table, read_table
from autopeft.trainers.tokens import cache_folder

_VALIDATION_NAMES: Final = ("validation", "valid", "dev", "val", "validation_matched")
_SPLIT_FOLDERS: Final = {"train": "train", **dict.fromkeys(_VALIDATION_NAMES, "validation"), "test": "test"}
"""Names of folders that hold a split, and what we call it."""


def read_sources(spec: DataSpec, *, images: bool = False) -> dict[str, Table]:
    """The tables of `spec` by split: `train` always, `validation` and `test` where there are any.

    Args:
        spec: Where they are.
        images: A folder may stand for a file (see `read_image_folder`).

    Raises:
        DataError: Neither a train file nor a hub id is given, or what `read_table`, `read_image_folder` and the hub
            raise.
    """
    if spec.hub is not None:
        return _read_hub(spec, spec.hub)
    if spec.train is None:
        raise DataError("task.data: no train file", hint="give task.data.train a file, or task.data.hub a data set id")
    files = {"train": spec.train, "validation": spec.validation, "test": spec.test}
    return {
        split: read_image_folder(Path(file)) if images and Path(file).is_dir() else read_table(file)
        for split, file in files.items()
        if file is not None
    }


def read_image_folder(folder: Path) -> Table:
    """The images in a folder of class folders (`cat/1.png`, `dog/7.jpg`), columns `image` and `label`.

    A `metadata.csv` in it, with a column `file_name`, gives the columns instead, as `datasets`' imagefolder reads it.

    Raises:
        DataError: No images, images that lie in no class folder or all in one, or a folder of splits.
        MissingExtraError: `datasets` is not there.
    """
    _check_image_folder(folder)
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtraError(f"{folder}: a folder of images needs datasets", hint="pip install datasets") from error
    files = f"{glob.escape(str(folder.absolute()))}/**"
    try:
        with _quiet():
            loaded = datasets.load_dataset(
                "imagefolder", data_files={"rows": files}, split="rows", cache_dir=str(cache_folder() / "datasets")
            )
    except (OSError, ValueError, DatasetsError) as error:
        first_line = str(error).partition("\n")[0]
        raise DataError(
            f"{folder}: no images could be read: {first_line}",
            hint="a folder of images has a folder for each class, with the class's image files in it",
        ) from error
    table = _dataset_table(str(folder), loaded)
    if set(table.columns) == {"image"}:
        raise DataError(
            f"{folder}: its folders give no classes: every image must be in the folder of its class, of two or more",
            hint=f"move them to {folder}/CLASS/FILE",
        )
    return table


def _check_image_folder(folder: Path) -> None:
    splits = [name for name in _SPLIT_FOLDERS if (folder / name).is_dir()]
    if "train" in splits:
        named = ", ".join(f"{_SPLIT_FOLDERS[name]}: {folder / name}" for name in splits)
        raise DataError(
            f"{folder}: holds splits ({', '.join(splits)}), not classes", hint=f"name each split: data: {{{named}}}"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of `datasets`, for the length of a `with` block."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _read_hub(spec: DataSpec, hub: str) -> dict[str, Table]:
    """Hub splits by our names; `train`, `validation` and `test` of the spec name the hub's splits, when given."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtraError(f"task.data.hub: {hub!r} needs datasets", hint="pip install datasets") from error
    try:
        loaded = datasets.load_dataset(hub, spec.name, revision=spec.revision)
    except (OSError, ValueError, DatasetsError) as error:
        first_line = str(error).partition("\n")[0]
        raise DataError(
            f"task.data.hub: cannot load {hub!r} (name: {spec.name!r}): {first_line}",
            hint="check the id, its configuration name and the network; local files go under task.data.train",
        ) from error
    known = [str(name) for name in loaded]
    tables: dict[str, Table] = {}
    wanted = {
        "train": (spec.train, ("train",)),
        "validation": (spec.validation, _VALIDATION_NAMES),
        "test": (spec.test, ("test",)),
    }
    for split, (given, defaults) in wanted.items():
        name = given or next((default for default in defaults if default in known), None)
        if (name is not None and name not in known) or (name is None and split == "train"):
            raise DataError(
                f"task.data.{split}: {hub!r} has no split {name or 'train'!r}; it has {', '.join(known) or 'none'}",
                hint=f"set task.data.{split} to one of them",
            )
        if name is not None:
            tables[split] = _dataset_table(f"{hub} [{name}]", loaded[name])
    return tables


def _dataset_table(place: str, rows: object) -> Table:
    """`rows` is a `datasets.Dataset`; images in it stay undecoded and in their file until they are asked for."""
    names: list[str] = list(rows.column_names)  # type: ignore[attr-defined]  # datasets is not imported for typing
    features: Mapping[str, object] = rows.features  # type: ignore[attr-defined]  # as above
    columns: dict[str, Sequence[object]] = {}
    for name in names:
        if getattr(features[name], "decode", False):
            raw = replace(features[name], decode=False)  # type: ignore[type-var]  # a dataclass, as all its features are
            columns[name] = rows.cast_column(name, raw)[name]  # type: ignore[attr-defined]  # as above
        else:
            columns[name] = list(rows[name])  # type: ignore[index]  # as above
    class_names = {name: _class_names(features[name]) for name in names}
    return Table(
        place=place, columns=columns, class_names={name: found for name, found in class_names.items() if found}
    )


def _class_names(feature: object) -> list[str]:
    """Of a label column, or of a column of lists of labels."""
    return list(getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None) or ())
