"""The front as a file: an interactive page, or a picture for a paper or a README."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from autopeft.errors import SpecError
from autopeft.objectives.front import Front, FrontPoint, hypervolume_curve
from autopeft.objectives.objective import Direction, Objective
from autopeft.search.trial import History
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.charts import Confirmed, completed_points, counts_line, front_page, knee_number
from autopeft.studies.describe import human_bytes, human_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SUFFIXES = (".html", ".png", ".svg")
_INK, _SOFT, _GRID = "#1c2330", "#5c6675", "#e4e8ee"
_FRONT, _DOMINATED, _KNEE = "#1f6feb", "#b7bec9", "#d9480f"
_RAMP = "viridis"


def plot_front(
    front: Front,
    history: History,
    path: Path,
    *,
    study: str = "study",
    shape: ModelShape | None = None,
    confirmed: Confirmed = MappingProxyType({}),
    sections: str = "",
) -> Path:
    """Write the front to `path` in the format its suffix names; overwrites.

    `sections` is markup that an HTML page has below (`report.insight_sections`).

    Raises:
        SpecError: Another suffix, or the folder is not there.
    """
    suffix = check_plot_path(path)
    if suffix == ".html":
        page = front_page(front, history, study=study, shape=shape, confirmed=confirmed, sections=sections)
        path.write_text(page, "utf-8")
    else:
        path.write_bytes(front_picture(front, history, suffix=suffix, study=study, confirmed=confirmed))
    return path


def plot_hypervolume(front: Front, history: History, path: Path, *, study: str = "study") -> Path:
    """Write the hypervolume over trials to `path`, a PNG or SVG; overwrites.

    Raises:
        SpecError: Another suffix, or the folder is not there.
    """
    suffix = check_plot_path(path, suffixes=SUFFIXES[1:])
    figure = _figure(width=6.4, height=3.6)
    axes = figure.add_subplot()
    curve = hypervolume_curve(completed_points(history, front.objectives), front.objectives)
    last = curve[-1][1] if curve else 0.0
    if last > 0:
        axes.step([n for n, _ in curve], [100 * v / last for _, v in curve], where="post", color=_FRONT, linewidth=2)
    _dress(axes, title=f"Hypervolume of {study} over trials", x="trial number", y="hypervolume, % of now")
    axes.set_ylim(bottom=0)
    path.write_bytes(_render(figure, suffix))
    return path


def check_plot_path(path: Path, *, suffixes: Sequence[str] = SUFFIXES, place: str = "plot") -> str:
    """The suffix of `path`, in lower case.

    Raises:
        SpecError: It is none of `suffixes`, or the folder is not there.
    """
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        raise SpecError(
            f"{place}: got {str(path)!r}; the name must end in {', '.join(suffixes)}", hint="rename the file"
        )
    if not path.parent.is_dir():
        raise SpecError(f"{place}: the folder {str(path.parent)!r} is not there", hint="make it first")
    return suffix


def front_picture(
    front: Front,
    history: History,
    *,
    suffix: str,
    study: str,
    confirmed: Confirmed = MappingProxyType({}),
) -> bytes:
    """The front as PNG or SVG bytes: one panel for each objective after the first, across from the first.

    Scores on the held-out split are crosses with a bar of one standard deviation over seeds.
    """
    objectives = front.objectives
    across = objectives[1:4] or objectives[:1]
    figure = _figure(width=max(6.4, 5.6 * len(across)), height=4.8)
    points = completed_points(history, objectives)
    axes = figure.subplots(1, len(across), sharey=True, squeeze=False)[0]
    for index, (panel, objective) in enumerate(zip(axes, across, strict=True)):
        others = [other for other in objectives[1:] if other is not objective]
        _panel(figure, panel, front, points, x=objective, y=objectives[0], colour=others[0] if others else None)
        _draw_confirmed(panel, points, confirmed, x=objective, y=objectives[0])
        if index:
            panel.set_ylabel("")
    figure.suptitle(f"Pareto front of {study}", color=_INK, fontsize=14, fontweight="bold", x=0.01, ha="left")
    axes[0].set_title(counts_line(history, front), color=_SOFT, fontsize=10, loc="left")
    return _render(figure, suffix)


def _panel(
    figure: "Figure",
    axes: "Axes",
    front: Front,
    points: Sequence[FrontPoint],
    *,
    x: Objective,
    y: Objective,
    colour: Objective | None,
) -> None:
    on_front = {point.trial for point in front}
    rest = [point for point in points if point.trial not in on_front]
    _dress(axes, title="", x=_axis_label(x), y=_axis_label(y))
    if x.unit == "parameters" and points and all(point.values[x.name] > 0 for point in points):
        axes.set_xscale("log")
    axes.scatter(*_columns(rest, x, y), s=22, color=_DOMINATED, zorder=2, label="dominated", linewidths=0)
    if len(front):
        _draw_front(figure, axes, front, x=x, y=y, colour=colour)
    _format(axes.xaxis, x)
    _format(axes.yaxis, y)


def _draw_front(
    figure: "Figure", axes: "Axes", front: Front, *, x: Objective, y: Objective, colour: Objective | None
) -> None:
    steps = _staircase(front.points, x, y)
    axes.step(*_columns(steps, x, y), where="post", color=_FRONT, alpha=0.55, linewidth=1.5, zorder=1)
    shades = [point.values[colour.name] for point in front] if colour else _FRONT
    dots = axes.scatter(
        *_columns(front.points, x, y),
        c=shades,
        cmap=_RAMP if colour else None,
        s=62,
        edgecolors=_INK,
        linewidths=0.9,
        zorder=3,
    )
    if colour is not None:
        bar = figure.colorbar(dots, ax=axes, shrink=0.75, pad=0.02, aspect=24)
        bar.set_label(colour.label or colour.name, color=_SOFT)
        bar.outline.set_visible(False)  # type: ignore[operator]  # a Spine, typed as a callable in the stubs
        bar.ax.tick_params(colors=_SOFT, length=0)
        _format(bar.ax.yaxis, colour)
    _mark_knee(axes, front, x, y)


def _draw_confirmed(
    axes: "Axes", points: Sequence[FrontPoint], confirmed: Confirmed, *, x: Objective, y: Objective
) -> None:
    rows = [(point, confirmed[point.trial].get(y.name)) for point in points if point.trial in confirmed]
    scores = [(point.values[x.name], row) for point, row in rows if isinstance(row, Mapping)]
    if scores and x is not y:
        axes.errorbar(
            [at for at, _ in scores],
            [float(row["mean"]) for _, row in scores],
            yerr=[float(row["std"]) for _, row in scores],
            fmt="x",
            color=_INK,
            ecolor=_INK,
            elinewidth=1.0,
            capsize=3,
            markersize=5,
            zorder=6,
            label=f"{scores[0][1]['split']} split, mean and deviation over seeds",
        )
        axes.legend(loc="lower right", fontsize=8, frameon=False, labelcolor=_SOFT)


def _mark_knee(axes: "Axes", front: Front, x: Objective, y: Objective) -> None:
    number = knee_number(front)
    at = next((point.values[x.name], point.values[y.name]) for point in front if point.trial == number)
    axes.scatter(*[[value] for value in at], s=210, facecolors="none", edgecolors=_KNEE, linewidths=1.8, zorder=4)
    axes.annotate(
        f"knee: trial {number}",
        at,
        xytext=(12, -16),
        textcoords="offset points",
        color=_KNEE,
        fontsize=9,
        fontweight="bold",
        zorder=5,
    )


def _columns(points: Sequence[FrontPoint], x: Objective, y: Objective) -> tuple[list[float], list[float]]:
    return [point.values[x.name] for point in points], [point.values[y.name] for point in points]


def _staircase(points: Sequence[FrontPoint], x: Objective, y: Objective) -> list[FrontPoint]:
    """The points that no other beats in these two objectives, from the best `x` on."""
    steps: list[FrontPoint] = []
    best = float("inf")
    for point in sorted(points, key=lambda p: (x.to_loss(p.values[x.name]), y.to_loss(p.values[y.name]))):
        if y.to_loss(point.values[y.name]) < best:
            best = y.to_loss(point.values[y.name])
            steps.append(point)
    return steps


def _axis_label(objective: Objective) -> str:
    better = "higher" if objective.direction is Direction.MAXIMIZE else "lower"
    return f"{objective.label or objective.name} ({better} is better)"


def _format(axis: "Axis", objective: Objective) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    words = {"bytes": human_bytes, "seconds": human_seconds, "parameters": _compact_count}
    if objective.unit in words:
        axis.set_major_formatter(FuncFormatter(lambda value, _: words[objective.unit](value)))
    if axis.get_scale() == "log":
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        axis.set_minor_formatter(NullFormatter())
    elif objective.unit == "bytes":
        low, high = sorted(axis.get_view_interval())
        unit = next(unit for unit in (2**30, 2**20, 2**10, 1) if high >= unit or unit == 1)
        ticks = [tick * unit for tick in MaxNLocator(6).tick_values(low / unit, high / unit)]
        axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))


def _compact_count(value: float) -> str:
    """A tick's count: `5,000`, `20k`, `1.5M`."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.4g}k" if abs(value) >= 1e4 else f"{value:,.0f}"


def _dress(axes: "Axes", *, title: str, x: str, y: str) -> None:
    axes.set_title(title, color=_INK, fontsize=12, fontweight="bold", loc="left")
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_SOFT, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _figure(*, width: float, height: float) -> "Figure":
    """A figure of its own, outside matplotlib's global state, so that a thread may draw one."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _render(figure: "Figure", suffix: str) -> bytes:
    buffer = BytesIO()
    metadata = {"Date": None} if suffix == ".svg" else {}
    figure.savefig(buffer, format=suffix.removeprefix("."), dpi=140, metadata=metadata)
    return buffer.getvalue()
