"""What a confirmation says: in sentences, as a terminal table, and as JSON."""

from collections.abc import Mapping

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from autopeft.objectives.objective import COSTS
from autopeft.spaces.model_shape import ModelShape
from autopeft.studies.baselines import LORA
from autopeft.studies.comparison import Difference
from autopeft.studies.confirmation import SPLIT, WORDS, Arm, Confirmation
from autopeft.studies.describe import describe, human_value
from autopeft.studies.described_rows import DescribedRows, Row


def sentences(found: Confirmation) -> list[str]:
    """The findings, one a line: what was confirmed, which points to take, and whether they beat the baselines."""
    n_arms = len(found.points)
    head = f"{n_arms} point{'s' if n_arms != 1 else ''} of the front (found by {found.trainings} trainings)"
    tuned = [f"the {arm.label} (best of {arm.tuned})" for arm in found.arms if arm.kind in WORDS]
    scored = f"{found.seeds} new seeds each, scored on {found.rows} held-out rows the search never saw"
    lines = [f"trained again: {', '.join([head, *tuned])}; {scored}"]
    lines += _failures(found) + _optimism(found)
    chosen = found.chosen()
    words: dict[int, list[str]] = {}
    for word, arm in chosen.items():
        words.setdefault(arm.trial, []).append(word)
    arms = {arm.trial: arm for arm in chosen.values()}
    for trial, named in words.items():
        lines.append(f"{' and '.join(named)} after confirmation: trial {trial} (autopeft export --pick trial:{trial})")
        lines += [text for kind in WORDS if (text := _against(found, arms[trial], found.baseline(kind))) is not None]
    if chosen and not any(arm.kind in WORDS for arm in found.arms):
        lines.append("not compared with baselines: `autopeft confirm` tunes and trains them too")
    return lines


def _failures(found: Confirmation) -> list[str]:
    return [
        f"{arm.label}: {len(arm.failures)} of {found.seeds} seeds failed ({_kinds(arm)}); it is not compared"
        for arm in found.arms
        if arm.failures
    ]


def _kinds(arm: Arm) -> str:
    return ", ".join(sorted({failure.kind.value for failure in arm.failures.values()}))


def _optimism(found: Confirmation) -> list[str]:
    """How much better the front looked in the search than further seeds on the same rows: the winner's curse."""
    sign = -found.objective.to_loss(1.0)
    gaps = [sign * (arm.searched - np.mean(list(arm.validation.values()))) for arm in found.points if arm.validation]
    if not gaps or abs(mean := float(np.mean(gaps))) < 5e-5:
        return []
    way = "above" if mean > 0 else "below"
    return [
        f"the search's {found.objective.name} of these points was {abs(mean):.4f} {way} what new seeds gave on the same"
        " validation rows"
    ]


def _against(found: Confirmation, arm: Arm, baseline: Arm | None) -> str | None:
    difference = None if baseline is None else found.difference(arm, baseline)
    if baseline is None or difference is None:
        return None
    gap = f"{difference.mean:+.4f} {found.objective.name} ({difference.low:+.4f} to {difference.high:+.4f})"
    if difference.mean == 0 or found.objective.to_loss(1.0) > 0:
        gap = f"{found.objective.name} better by {difference.mean:.4f} ({difference.low:.4f} to {difference.high:.4f})"
    costs = f"; {_costs(arm, baseline)}"
    match difference.verdict:
        case "better":
            return f"  beats the {baseline.label}: {gap}, chance {_percent(difference)}{costs}"
        case "worse":
            return (
                f"  is worse than the {baseline.label}: {gap}, chance that it is better {_percent(difference)}{costs}"
            )
        case _:
            return (
                f"  against the {baseline.label} the difference is noise: {gap}, chance that it is better"
                f" {_percent(difference)}; {found.seeds} seeds and {found.rows} rows could show {difference.shown:.4f}"
                f" or more{costs}"
            )


def _percent(difference: Difference) -> str:
    chance = 100 * difference.chance
    return "above 99.9 %" if chance > 99.9 else "below 0.1 %" if chance < 0.1 else f"{chance:.1f} %"


def _costs(arm: Arm, baseline: Arm) -> str:
    return ", ".join(
        f"{human_value(COSTS[name], arm.costs[name])} against {human_value(COSTS[name], baseline.costs[name])}"
        + (" parameters" if name == "parameters" else "")
        for name in arm.costs
    )


def confirm_table(found: Confirmation, *, shape: ModelShape | None = None) -> RenderableType:
    """Every arm with its scores, and the findings below."""
    heads, rows, chosen = confirm_rows(found, shape=shape)
    right = {"justify": "right", "no_wrap": True}
    shown = [
        Row(cells=[Text(cell) for cell in cells], text=Text(text), style="bold" if bold else "")
        for (*cells, text), bold in zip(rows, chosen, strict=True)
    ]
    title = Text(f"Confirmation of {found.study}: {found.objective.name}", style="bold")
    columns = [("", {"no_wrap": True}), *((head, right) for head in heads[1:-1])]
    table = DescribedRows(columns=columns, text_head=heads[-1], rows=shown)
    over = "; over LoRA: difference, and the chance that it is above 0" if found.baseline(LORA) else ""
    foot = f"±: standard deviation over seeds{over}"
    return Group(title, table, Text(foot, style="dim"), *(Text(line) for line in sentences(found)))


def confirm_rows(
    found: Confirmation, *, shape: ModelShape | None = None
) -> tuple[list[str], list[list[str]], list[bool]]:
    """Heads, a row of texts for each arm (the last its configuration), and whether it is one of the points to take."""
    lora, marks = found.baseline(LORA), _marks(found)
    heads = ["", "search", f"{SPLIT}, {found.seeds} seeds", "95 % interval", *(["over LoRA"] if lora else [])]
    rows = [[*_cells(found, arm, lora, marks), describe(arm.configuration, shape)] for arm in found.arms]
    return [*heads, "configuration"], rows, [arm.kind not in WORDS and arm.trial in marks for arm in found.arms]


def _marks(found: Confirmation) -> Mapping[int, str]:
    marks: dict[int, str] = {}
    for word, arm in found.chosen().items():
        marks[arm.trial] = f"{marks[arm.trial]}, {word}" if arm.trial in marks else word
    return marks


def _cells(found: Confirmation, arm: Arm, lora: Arm | None, marks: Mapping[int, str]) -> list[str]:
    estimate = found.estimate(arm)
    mark = marks.get(arm.trial) if arm.kind not in WORDS else None
    score = span = "-"
    if estimate is not None:
        score = f"{human_value(found.objective, estimate.mean)} ± {estimate.std:.4f}"
        span = f"{estimate.low:.3f} to {estimate.high:.3f}"
    cells = [f"{arm.label}: {mark}" if mark else arm.label, human_value(found.objective, arm.searched), score, span]
    return [*cells, *([_over(found, arm, lora)] if lora else [])]


def _over(found: Confirmation, arm: Arm, baseline: Arm) -> str:
    difference = None if baseline is arm else found.difference(arm, baseline)
    if difference is None:
        return "-"
    chance = 100 * difference.chance
    share = "<1" if chance < 0.5 else ">99" if chance >= 99.5 else f"{chance:.0f}"
    return f"{difference.mean:+.4f}, {share} %"


def confirm_json(found: Confirmation) -> dict[str, object]:
    """What `autopeft confirm --json` prints."""
    return {
        "study": found.study,
        "metric": found.objective.to_json(),
        "split": SPLIT,
        "seeds": found.seeds,
        "rows": found.rows,
        "search_trials": found.trainings,
        "chosen": {word: arm.trial for word, arm in found.chosen().items()},
        "arms": [_arm_json(found, arm) for arm in found.arms],
        "findings": sentences(found),
    }


def _arm_json(found: Confirmation, arm: Arm) -> dict[str, object]:
    estimate = found.estimate(arm)
    over: dict[str, object] = {}
    for kind in WORDS:
        baseline = found.baseline(kind)
        difference = None if baseline is None or baseline is arm else found.difference(arm, baseline)
        if difference is not None:
            over[kind] = difference.to_json()
    return {
        "kind": arm.kind,
        "trial": arm.trial,
        "searched": arm.searched,
        "believed": arm.believed,
        "validation": [arm.validation[seed] for seed in sorted(arm.validation)],
        "held_out": [arm.held_out[seed].value for seed in sorted(arm.held_out)],
        "estimate": None if estimate is None else estimate.to_json(),
        "over": over,
        "failed_seeds": {str(seed): failure.kind.value for seed, failure in arm.failures.items()},
        "tuned_by": arm.tuned,
        "values": dict(arm.costs),
        "configuration_id": arm.configuration.id,
        "configuration": arm.configuration.to_json(),
    }
