"""The front as one self-contained HTML page: scatter with hover, staircase, hypervolume, per-layer picture.

The page carries its own few kilobytes of script and style (a bundled plotting library is 4.8 MB), asks nothing of
any network, and says so in a content security policy. Without JavaScript its table is still there.
"""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from types import MappingProxyType

from autopeft.objectives.front import Front, FrontPoint, hypervolume_curve
from autopeft.objectives.objective import Objective
from autopeft.search.trial import History, Trial, TrialState
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.describe import depth, describe, human_seconds, human_value, layer_sizes

Confirmed = Mapping[int, Mapping[str, object]]
"""By trial number: `seeds`, and for a metric's name its `mean`, `std` and `split`, as `front --json` has it."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def completed_points(history: History, objectives: Sequence[Objective]) -> list[FrontPoint]:
    """Every completed trial whose objectives were all measured and finite, by number."""
    points: list[FrontPoint] = []
    for trial in history.completed:
        point = point_of(trial, objectives)
        if point is not None:
            points.append(point)
    return points


def point_of(trial: Trial, objectives: Sequence[Objective]) -> FrontPoint | None:
    """The trial as the front sees it; None when it did not complete or lacks a finite objective."""
    if trial.final is None:
        return None
    try:
        point = FrontPoint.of(trial.number, trial.configuration, measurement=trial.final, objectives=objectives)
    except KeyError:
        return None
    return point if all(math.isfinite(value) for value in point.values.values()) else None


def counts_line(history: History, front: Front) -> str:
    """How the trials ended, e.g. `30 trials: 27 completed, 1 pruned, 2 failed; 8 on the front`."""
    ends = [(state, len(history.in_state(state))) for state in TrialState]
    parts = ", ".join(f"{n} {state.value}" for state, n in ends if n)
    noun = "trial" if len(history) == 1 else "trials"
    return f"{len(history)} {noun}" + (f": {parts}" if parts else "") + f"; {len(front)} on the front"


def knee_number(front: Front) -> int | None:
    """The trial number of the knee; None for an empty front."""
    return front.knee().trial if len(front) else None


def front_page(
    front: Front,
    history: History,
    *,
    study: str,
    shape: ModelShape | None = None,
    confirmed: Confirmed = MappingProxyType({}),
    sections: str = "",
) -> str:
    """The HTML page of a front.

    Args:
        front: The points to connect and colour.
        history: All trials; dominated completed ones are drawn grey.
        study: The study's name, for the title.
        shape: The base model, when known; decides how many layers the per-layer picture has.
        confirmed: Scores over further seeds, drawn as error bars of one standard deviation.
        sections: Markup of further sections, below the others.
    """
    title = f"Pareto front of {study}"
    assets = files("autopeft.studies") / "assets"
    data = json.dumps(front_data(front, history, shape=shape, confirmed=confirmed), allow_nan=False).replace(
        "<", "\\u003c"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
{(assets / "front.css").read_text("utf-8")}</style></head>
<body><main>
<h1>{escape(title)}</h1>
<p>{escape(counts_line(history, front))}. Hover a point for its configuration, click to keep the card.</p>
<div class="controls" hidden>
<label>across <select id="x"></select></label><label>up <select id="y"></select></label>
<label>colour <select id="colour"></select></label>
<label><input type="checkbox" id="log"> logarithmic</label>
</div>
<div class="chart"><div class="tip"></div></div>
<div class="panels">
{_table(front, history, shape)}
<section><h2>Hypervolume over trials</h2>
<p>Share of what the front dominates now, all with one reference point.</p>
<div class="curve-holder"></div></section>
{sections}</div></main>
<script type="application/json" id="data">{data}</script>
<script>
{(assets / "front.js").read_text("utf-8")}</script></body></html>
"""


def front_data(
    front: Front,
    history: History,
    *,
    shape: ModelShape | None = None,
    confirmed: Confirmed = MappingProxyType({}),
) -> dict[str, object]:
    """What the page's script draws, as JSON-ready values; no markup, everything in the objectives' own units."""
    objectives = front.objectives
    points = completed_points(history, objectives)
    n_layers = depth((trial.configuration for trial in history), shape)
    on_front = {point.trial for point in front}
    knee = knee_number(front)
    largest: dict[str, float] = {}
    rows: list[dict[str, object]] = []
    for point in points:
        trial = next(trial for trial in history if trial.number == point.trial)
        sizes = {setting.method: layer_sizes(setting, n_layers) for setting in point.configuration}
        for method, column in sizes.items():
            largest[method] = max(largest.get(method, 0), *(float(size) for size in column))
        rows.append(
            {
                "number": point.trial,
                "front": point.trial in on_front,
                "knee": point.trial == knee,
                "values": [point.values[objective.name] for objective in objectives],
                "shown": [human_value(objective, point.values[objective.name]) for objective in objectives],
                "more": _more(trial, objectives) + _confirmed_rows(confirmed.get(point.trial, {}), objectives),
                "confirmed": confirmed.get(point.trial),
                "text": describe(point.configuration, shape),
                "layers": sizes,
            }
        )
    return {
        "objectives": [_objective(objective) for objective in objectives],
        "trials": rows,
        "methods": sorted(largest),
        "largest": largest,
        "n_layers": n_layers,
        "hypervolumes": _shares(hypervolume_curve(points, objectives)),
    }


def _objective(objective: Objective) -> dict[str, str]:
    label = objective.label or objective.name
    return objective.to_json() | {"label": label, "axis": label}


def _more(trial: Trial, objectives: Sequence[Objective]) -> list[tuple[str, str]]:
    names = {objective.name for objective in objectives}
    final = trial.final
    assert final is not None
    rows = [("epochs", str(final.epoch))]
    if "train_seconds" not in names:
        rows.append(("training time", human_seconds(final.train_seconds)))
    return rows


def _confirmed_rows(scores: Mapping[str, object], objectives: Sequence[Objective]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for objective in objectives:
        score = scores.get(objective.name)
        if isinstance(score, Mapping):
            mean, spread = (human_value(objective, float(score[key])) for key in ("mean", "std"))
            rows.append((f"{objective.name}, {scores['seeds']} seeds, {score['split']}", f"{mean} ± {spread}"))
    return rows


def _shares(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    last = curve[-1][1] if curve else 0.0
    return [(number, 100 * value / last) for number, value in curve] if last > 0 else []


def _table(front: Front, history: History, shape: ModelShape | None) -> str:
    knee = knee_number(front)
    heads = "".join(f'<th class="n">{escape(objective.label or objective.name)}</th>' for objective in front.objectives)
    rows: list[str] = []
    for point in front:
        cells = "".join(f'<td class="n">{escape(human_value(o, point.values[o.name]))}</td>' for o in front.objectives)
        badge = '<span class="badge">knee</span>' if point.trial == knee else ""
        parts = describe(point.configuration, shape).split(" · ")
        text = " ".join(f"<span>{escape(part)}</span>" for part in parts)
        rows.append(
            f'<tr data-trial="{point.trial}"><td class="n">{point.trial}</td>{cells}'
            f'<td class="text">{text}{badge}</td><td class="strip"></td></tr>'
        )
    note = "One row a method, one cell a layer, first layer left; darker is larger."
    n_layers = depth((trial.configuration for trial in history), shape)
    return f"""<section><h2>On the front, and what each point adapts</h2>
<p>{note}</p><div class="legend"></div>
<div class="scroll"><table><thead><tr><th class="n">trial</th>{heads}<th>configuration</th>
<th>layers{f" 0-{n_layers - 1}" if n_layers else ""}</th></tr></thead>
<tbody>{"".join(rows)}</tbody></table></div></section>"""
