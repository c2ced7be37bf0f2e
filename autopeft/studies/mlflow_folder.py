"""A folder that `mlflow.pyfunc.load_model` opens: texts in, labels out, with signature and input example.

Where base, adapter and head are one model for classes of texts, it is a pipeline of transformers (MLflow's own flavour,
no AutoPEFT needed to serve it). Anything else is a few lines of code that load the folder of another format through
`autopeft.load`; nothing is pickled. MLflow's transformers flavour would take a `PeftModel` too, but (3.17) loses the
trained head of a classifier: it saves the wrapped weights under names that no plain model has.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from autopeft.studies.serving import ARTIFACT, CODE
from autopeft.studies.tracking_settings import environment
from autopeft.trainers.checkpoint import quiet
from autopeft.trainers.saved import AdapterInfo

if TYPE_CHECKING:
    import pandas as pd
PIPELINE_COLUMNS: Final = ("text", "text_pair")
"""What a text-classification pipeline calls its texts."""
_LIBRARIES: Final = ("torch", "transformers", "safetensors")


def write_pipeline(
    folder: Path, merged: Path, *, columns: Sequence[str], cells: Sequence[str], info: AdapterInfo
) -> tuple[str, tuple[str, ...]]:
    """Write a merged model as a pipeline; the folder inside that holds its weights, and the columns it reads.

    Args:
        folder: Empty.
        merged: Of the format merged, with its `export.json`.
        columns: The task's text columns; how many there are decides whether the pipeline takes pairs.
        cells: Texts of a row, for the input example.
        info: Of the adapter that was merged.
    """
    import mlflow.transformers
    import pandas as pd
    from mlflow.models import Model, infer_signature
    from transformers import pipeline

    names = PIPELINE_COLUMNS[: len(columns)]
    example = _example(dict(zip(names, cells, strict=True)))
    answer = pd.DataFrame([{"label": "", "score": 0.5}])
    with _quiet():
        mlflow.transformers.save_model(
            pipeline("text-classification", model=str(merged), tokenizer=str(merged)),
            str(folder),
            signature=infer_signature(example, answer),
            input_example=example,
            model_config={"truncation": True, "max_length": info.task["max_length"]},
            pip_requirements=_requirements(*_LIBRARIES),
        )
        model = Model.load(str(folder))
        model.flavors["transformers"]["source_model_name"] = info.spec.name
        model.save(str(folder / "MLmodel"))
    inner = folder / "model"
    for file in merged.iterdir():
        if not (inner / file.name).exists():
            shutil.copy2(file, inner / file.name)
    return inner.name, names


def write_code(
    folder: Path, adapter: Path, *, columns: Sequence[str], cells: Sequence[str], info: AdapterInfo
) -> tuple[str, tuple[str, ...]]:
    """Write an exported folder as a model of code; the folder inside that holds the weights, and the columns it reads.

    Args:
        folder: Empty.
        adapter: Of another format, with its `export.json`.
        columns: The task's text columns.
        cells: Texts of a row, for the input example.
        info: Of the adapter.
    """
    del info
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import infer_signature

    from autopeft.studies.loading import load_predictor

    predictor = load_predictor(adapter)
    row = example_row(predictor.columns, cells, columns)
    example = _example(row)
    code = adapter.parent / "model.py"
    code.write_text(CODE, encoding="utf-8")
    with _quiet():
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(code),
            artifacts={ARTIFACT: str(adapter)},
            signature=infer_signature(example, pd.DataFrame(predictor.predict([list(row.values())]))),
            input_example=example,
            pip_requirements=_requirements("autopeft", *_LIBRARIES),
        )
    return f"artifacts/{adapter.name}", predictor.columns


def example_row(columns: Sequence[str], cells: Sequence[str], named: Sequence[str]) -> dict[str, object]:
    """The cells of one row of data under the columns that a predictor reads; choices of one column become a list."""
    if len(named) < len(cells):
        return {named[0]: cells[0], named[1]: list(cells[1:])}
    return {column: " ".join(cell.split("\x1e")) for column, cell in zip(columns, cells, strict=False)}


def _example(row: dict[str, object]) -> "pd.DataFrame | list[object]":
    """A list of texts where there is one column, whatever its name; else a table."""
    import pandas as pd

    return list(row.values()) if len(row) == 1 else pd.DataFrame([row])


def _requirements(*names: str) -> list[str]:
    return [f"{name}=={version(name)}" for name in names]


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow's advice about licences and requirements is not the user's business here; its errors are."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with environment(), quiet():
            yield
    finally:
        logger.setLevel(level)
