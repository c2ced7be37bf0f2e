"""A study as one self-contained page: its front, what was confirmed, what mattered, what was run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import yaml

from autopeft.objectives.front import Front
from autopeft.search.sensitivity import Effect, Sensitivity, by_part
from autopeft.search.trial import History, TrialState
from autopeft.spaces.layer_prior import LayerScores
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.charts import Confirmed, front_page
from autopeft.studies.confirm_tables import confirm_rows, sentences
from autopeft.studies.confirmation import Confirmation
from autopeft.studies.describe import depth, human_seconds, human_value
from autopeft.studies.insight import LayerUse, layer_use
from autopeft.studies.layer_prior import LayerPrior, prior_words

MOST_BARS = 15
TRUSTED = 0.3
"""Share of the variance between trials from which on a surrogate is called one that says something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyReport:
    """Everything that the page shows."""

    study: str
    front: Front
    history: History
    shape: ModelShape
    spec: Mapping[str, object]
    """The study file."""
    confirmed: Confirmed
    confirmation: Confirmation | None
    sensitivity: Sensitivity | None
    layers: LayerPrior | LayerScores | None = None
    """What was known of layers before the first trial."""


def report_page(report: StudyReport) -> str:
    """The page; asks nothing of any network, and is readable without JavaScript."""
    return front_page(
        report.front,
        report.history,
        study=report.study,
        shape=report.shape,
        confirmed=report.confirmed,
        sections=insight_sections(report) + _run_section(report) + _file_section(report),
    )


def insight_sections(report: StudyReport) -> str:
    """What was confirmed and what mattered, as sections of a page."""
    n_layers = depth((trial.configuration for trial in report.history), report.shape)
    parts = [
        _confirmation_section(report.confirmation, report.shape),
        _sensitivity_section(report.sensitivity),
        _use_section(layer_use(report.front, n_layers), n_layers, len(report.front)),
        _part_section(report.sensitivity),
        _value_section(report.sensitivity),
        _layers_section(report.layers, report.shape.n_layers),
    ]
    return "".join(parts)


def _section(title: str, note: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n<p>{escape(note)}</p>{body}</section>\n"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, bold: Sequence[bool] = ()) -> str:
    """A table of text cells; all but the first and last column are numbers."""
    top = "".join(f"<th{_number(at, len(heads))}>{escape(head)}</th>" for at, head in enumerate(heads))
    body = ""
    for index, row in enumerate(rows):
        cells = "".join(f"<td{_number(at, len(heads))}>{escape(cell)}</td>" for at, cell in enumerate(row))
        body += f"<tr{' class=chosen' if bold and bold[index] else ''}>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(at: int, n: int) -> str:
    return ' class="n"' if 0 < at < n - 1 else ""


def _confirmation_section(found: Confirmation | None, shape: ModelShape) -> str:
    if found is None:
        note = "Nothing is confirmed yet: these are scores of single runs on the rows that the search chose by."
        return _section("Confirmation", note, "")
    heads, rows, chosen = confirm_rows(found, shape=shape)
    note = "Trained again from new seeds and scored on rows the search never saw; how, is in docs/confirm.md."
    return _section("Confirmation", note, _table(heads, rows, bold=chosen) + _list(sentences(found)))


def _list(lines: Sequence[str]) -> str:
    """A list; lines that are indented are a list below the one before them."""
    text = ""
    for at, line in enumerate(lines):
        inner = line.startswith(" ")
        before, after = (at + step in range(len(lines)) and lines[at + step].startswith(" ") for step in (-1, 1))
        opened = "<ul>" if inner and not before else ""
        text += f"{opened}<li>{escape(line.strip())}"
        text += ("</li>" if after else "</li></ul></li>") if inner else ("" if after else "</li>")
    return f"<ul>{text}</ul>"


def _sensitivity_section(found: Sensitivity | None) -> str:
    if found is None:
        return _section("What mattered", "Too few trials, or too equal ones, to say.", "")
    rows = "".join(
        f'<tr><td>{escape(effect.dimension)}</td><td class="n">{100 * effect.index:.1f} %</td>'
        f'<td class="bar"><i style="width:{100 * effect.index:.1f}%"></i></td></tr>'
        for effect in found.effects[:MOST_BARS]
    )
    name = found.objective.name
    trust = (
        f"It predicts {100 * max(found.explained, 0):.0f} % of the variance between the trials, each from the others."
    )
    if found.explained < TRUSTED:
        trust += " That is little: do not build on these shares."
    note = (
        f"Share of the variance of {name} over the space that each dimension explains alone (first-order index of the"
        f" surrogate of {found.trials} trials, a correlation ratio over uniform draws). {trust}"
    )
    rest = f"<p>{100 * found.together:.0f} % is left to dimensions together.</p>"
    table = f'<div class="scroll"><table class="bars"><tbody>{rows}</tbody></table></div>'
    return _section("What mattered", note, table + rest)


def _use_section(uses: Sequence[LayerUse], n_layers: int, n_points: int) -> str:
    if not uses:
        return ""
    rows = "".join(
        f"<tr><td>{escape(use.method)}</td>"
        + "".join(
            _heat(
                count / n_points, str(count) if count else "", f"sizes {', '.join(sizes)}" if count else "not adapted"
            )
            for count, sizes in zip(use.points, use.sizes, strict=True)
        )
        + "</tr>"
        for use in uses
    )
    note = f"How many of the {n_points} points adapt each layer; hold the pointer over a cell for the sizes."
    return _section("Layers that the front uses", note, _grid("layer", [str(layer) for layer in range(n_layers)], rows))


def _layers_section(prior: LayerPrior | LayerScores | None, n_layers: int) -> str:
    """Chances of the layers in the first trials, and the scores that they come from, of layers and sites."""
    if prior is None:
        return ""
    chances = [prior.weights.get(layer) for layer in range(n_layers)]
    rows = _layer_row("chance", chances, shown=lambda value: f"{100 * value:.0f} %", top=1.0)
    if isinstance(prior, LayerScores):
        rows += _layer_row(prior.score, prior.layers)
        for site in dict.fromkeys(site for row in prior.sites for site in row):
            rows += _layer_row(site, [row.get(site) for row in prior.sites])
    note = (
        f"The first trials were led by {prior_words(prior, n_layers=n_layers)}. The chance is that of a layer to be"
        " adapted in what they were chosen from; later trials follow the study's own results."
    )
    return _section("What was known of the layers before", note, _grid("layer", list(map(str, range(n_layers))), rows))


def _layer_row(
    name: str,
    values: Sequence[float | None],
    *,
    shown: Callable[[float], str] = lambda value: f"{value:.3g}",
    top: float | None = None,
) -> str:
    most = top or max((value for value in values if value), default=1.0)
    cells = "".join("<td></td>" if value is None else _heat(value / most, shown(value), name) for value in values)
    return f"<tr><td>{escape(name)}</td>{cells}</tr>"


def _part_section(found: Sensitivity | None) -> str:
    """Mean metric by value of what a space has for every layer, group or target."""
    if found is None:
        return ""
    body = ""
    for name, parts in by_part(found).items():
        labels = list(dict.fromkeys(group.label for effect in parts.values() for group in effect.groups))
        rows = "".join(
            f"<tr><td>{escape(label)}</td>"
            + "".join(_marginal(effect, label, found) for effect in parts.values())
            + "</tr>"
            for label in labels
        )
        body += f"<h3>{escape(name)}</h3>" + _grid("", list(parts), rows)
    if not body:
        return ""
    note = (
        f"Mean {found.objective.name} over the space with one part at one value, as the surrogate has it; darker is"
        " better. Columns are layers, groups of layers or targets."
    )
    return _section("Values by layer", note, body)


def _value_section(found: Sensitivity | None) -> str:
    """Mean metric by value of the dimensions that a space has once, those that matter most first."""
    if found is None:
        return ""
    parts = {effect.dimension for rows in by_part(found).values() for effect in rows.values()}
    body = ""
    for effect in found.effects:
        if effect.dimension not in parts:
            labels = [group.label for group in effect.groups]
            cells = "".join(_marginal(effect, label, found) for label in labels)
            body += f"<h3>{escape(effect.dimension)}</h3>" + _grid("", labels, f"<tr><td></td>{cells}</tr>")
    if not body:
        return ""
    note = (
        f"Mean {found.objective.name} over the space with one dimension at one value or in one range; darker is better."
    )
    return _section("Values by dimension", note, body)


def _span(found: Sensitivity) -> tuple[float, float]:
    losses = [found.objective.to_loss(group.mean) for effect in found.effects for group in effect.groups]
    return min(losses), max(losses)


def _marginal(effect: Effect, label: str, found: Sensitivity) -> str:
    low, high = _span(found)
    group = next((group for group in effect.groups if group.label == label), None)
    if group is None:
        return "<td></td>"
    good = (high - found.objective.to_loss(group.mean)) / (high - low) if high > low else 0.5
    return _heat(good, human_value(found.objective, group.mean), f"{100 * group.share:.0f} % of the space")


def _grid(corner: str, columns: Sequence[str], rows: str) -> str:
    heads = "".join(f'<th class="n">{escape(column)}</th>' for column in columns)
    return (
        f'<div class="scroll"><table class="heat"><thead><tr><th>{escape(corner)}</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _heat(strength: float, text: str, title: str) -> str:
    share = round(70 * min(max(strength, 0.0), 1.0))
    style = f"background:color-mix(in srgb, var(--front) {share}%, transparent)"
    return f'<td class="n" style="{style}" title="{escape(title, quote=True)}">{escape(text)}</td>'


def _run_section(report: StudyReport) -> str:
    counts = [f"{n} {state.value}" for state in TrialState if (n := len(report.history.in_state(state)))]
    kinds: dict[str, int] = {}
    for trial in report.history:
        if trial.failure is not None:
            kinds[trial.failure.kind.value] = kinds.get(trial.failure.kind.value, 0) + 1
    failures = f" ({', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items()))})" if kinds else ""
    took = human_seconds(sum(trial.seconds for trial in report.history))
    shape = report.shape
    model = f"{shape.family}, {shape.n_layers} layers, {shape.base_parameters:,} parameters"
    note = (
        f"{len(report.history)} trials: {', '.join(counts)}{failures}; {took} of training in all. Base model: {model}."
    )
    return _section("The run", note, "")


def _file_section(report: StudyReport) -> str:
    text = yaml.safe_dump(dict(report.spec), sort_keys=False, allow_unicode=True)
    body = f"<details><summary>show</summary><pre>{escape(text)}</pre></details>"
    return f"<section><h2>The study file</h2>{body}</section>\n"
