import ast
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_cell(source: str, names: dict[str, object]) -> object:
    """Execute a cell; the value of its last expression, as a notebook shows it."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body=body, type_ignores=[]), "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_goes_from_a_study_file_to_an_adapter_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = json.loads((EXAMPLES / "front.ipynb").read_text(encoding="utf-8"))["cells"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    names: dict[str, object] = {}
    shown = [run_cell("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]
    frame, page = shown[2], shown[3]
    assert {"trial", "accuracy", "parameters", "memory"} <= set(frame.columns)  # type: ignore[union-attr]
    assert "Pareto front of docstrings" in page._repr_html_()  # type: ignore[union-attr]
    assert "# docstrings, trial" in capsys.readouterr().out
    assert shown[-1] == "asyncio"
