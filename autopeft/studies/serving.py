"""An exported adapter as an MLflow model: what `mlflow.pyfunc.load_model` gives, and the file that makes one."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from mlflow.pyfunc import PythonModel

from autopeft.errors import DataError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.pyfunc import PythonModelContext

    from autopeft.trainers.predict import Predictor

ARTIFACT: Final = "adapter"
CODE: Final = """\
from autopeft.studies.serving import AdapterModel
from mlflow.models import set_model

set_model(AdapterModel())
"""
"""The model as code: nothing is pickled."""


with warnings.catch_warnings(record=True):
    # MLflow advises type hints on `predict`, by which it would turn a table into a list of objects.

    class AdapterModel(PythonModel):
        """Answers a table of texts with a row of labels, numbers or texts for each."""

        def __init__(self) -> None:
            self._predictor: Predictor | None = None

        def load_context(self, context: "PythonModelContext") -> None:
            """Load base, adapter and head."""
            from autopeft.studies.loading import load_predictor

            self._predictor = load_predictor(Path(context.artifacts[ARTIFACT]))

        def predict(  # type: ignore[override]  # MLflow reads type hints off this signature, so it has none of tables
            self, context: "PythonModelContext", model_input, params: Mapping[str, object] | None = None
        ):
            del context, params
            import pandas as pd

            assert self._predictor is not None
            answers = self._predictor.predict(rows_of(model_input, self._predictor.columns))
            return pd.DataFrame(answers)


def rows_of(table: object, columns: Sequence[str]) -> list[list[object]]:
    """The cells of `columns` row by row; where a single column is read, that of any name (or a list of cells).

    Raises:
        DataError: A column is missing.
    """
    if isinstance(table, list):
        return [[cell] for cell in cast("list[object]", table)]
    frame = cast("pd.DataFrame", table)
    if len(columns) == 1 and columns[0] not in frame.columns and len(frame.columns) == 1:
        return [[cell] for cell in frame.iloc[:, 0].tolist()]
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise DataError(
            f"input: no column {missing[0]!r}; the columns are {', '.join(map(str, frame.columns))}",
            hint=f"give {', '.join(columns)}",
        )
    return cast("list[list[object]]", frame[list(columns)].to_numpy().tolist())
