"""The page of a study: what it says, and that it is one file."""

import re
from dataclasses import replace
from html import escape

from autopeft.objectives.objective import METRICS
from autopeft.search.sensitivity import Effect, Group, Sensitivity
from autopeft.search.trial import Failure, FailureKind
from autopeft.studies.comparison import Score
from autopeft.studies.confirm_tables import confirm_json, sentences
from autopeft.studies.confirmation import Arm, Confirmation
from autopeft.studies.insight import layer_use
from autopeft.studies.report import StudyReport, insight_sections, report_page
from tests.spaces.builders import shape
from tests.studies.synthetic import N_LAYERS, front_of, history, lora

ACCURACY = METRICS["accuracy"]


def arm(kind: str, trial: int, scores: list[float], **changes: object) -> Arm:
    told = history(8)
    made = Arm(
        kind=kind,
        trial=trial,
        configuration=told.trials[trial].configuration,
        searched=0.75,
        believed=sum(scores) / max(1, len(scores)),
        held_out={seed: Score(value=value) for seed, value in enumerate(scores)},
        validation=dict(enumerate(scores)),
        failures={},
        costs={"parameters": 1000.0 * (trial + 1), "memory": 2.0**20},
        tuned=None if kind == "front" else 12,
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # fields of Arm


def confirmation(*arms: Arm) -> Confirmation:
    told = history(8)
    front = front_of(told)
    numbers = {one.trial for one in arms if one.kind == "front"}
    kept = replace(front, points=tuple(point for point in front if point.trial in numbers))
    return Confirmation(study="s", objective=ACCURACY, arms=arms, seeds=3, rows=500, trainings=20, front=kept)


def first() -> int:
    return front_of(history(8)).points[0].trial


def test_a_real_gain_and_noise_are_told_apart_in_words() -> None:
    good = confirmation(arm("front", first(), [0.80, 0.81, 0.82]), arm("lora", 1, [0.70, 0.71, 0.72]))
    text = "\n".join(sentences(good))
    assert "beats the tuned LoRA: +0.1000 accuracy" in text
    assert "chance above 99.9 %" in text
    even = confirmation(arm("front", first(), [0.80, 0.71, 0.76]), arm("lora", 1, [0.74, 0.78, 0.74]))
    text = "\n".join(sentences(even))
    assert "against the tuned LoRA the difference is noise" in text
    assert re.search(r"3 seeds and 500 rows could show 0\.\d{4} or more", text)
    worse = confirmation(arm("front", first(), [0.70, 0.71, 0.72]), arm("lora", 1, [0.80, 0.81, 0.82]))
    assert "is worse than the tuned LoRA: -0.1000 accuracy" in "\n".join(sentences(worse))


def test_the_points_to_take_are_chosen_by_what_is_believed_not_by_the_held_out_split() -> None:
    numbers = [point.trial for point in front_of(history(8))][:2]
    lucky = arm("front", numbers[0], [0.9, 0.9, 0.9], believed=0.7)
    solid = arm("front", numbers[1], [0.8, 0.8, 0.8], believed=0.85)
    assert confirmation(lucky, solid).chosen()["best"] is solid


def test_the_winners_curse_and_failed_seeds_are_said() -> None:
    failed = arm("front", 2, [], failures={0: Failure(kind=FailureKind.DIVERGED, message="nan")})
    found = confirmation(arm("front", first(), [0.70, 0.70, 0.70]), failed)
    text = "\n".join(sentences(found))
    assert "the search's accuracy of these points was 0.0500 above what new seeds gave" in text
    assert "trial 2: 1 of 3 seeds failed (diverged); it is not compared" in text
    assert "not compared with baselines" in text
    rows = confirm_json(found)["arms"]
    assert isinstance(rows, list)
    assert rows[1]["estimate"] is None
    assert rows[1]["failed_seeds"] == {"0": "diverged"}


def report(**changes: object) -> StudyReport:
    told = history(8)
    groups = tuple(Group(label=label, mean=mean, share=0.5) for label, mean in (("0", 0.6), ("8", 0.8)))
    effects = [Effect(dimension=f"lora.rank[{layer}]", index=0.1 * (layer + 1), groups=groups) for layer in (0, 1, 10)]
    plain = StudyReport(
        study="rte",
        front=front_of(told),
        history=told,
        shape=shape(N_LAYERS, hidden=48, heads=4),
        spec={"study": "rte", "model": "<m>"},
        confirmed={},
        confirmation=confirmation(arm("front", first(), [0.8, 0.81, 0.82]), arm("lora", 1, [0.7, 0.71, 0.72])),
        sensitivity=Sensitivity(objective=ACCURACY, effects=tuple(effects), explained=0.2, trials=7),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # fields of StudyReport


def test_the_page_holds_everything_and_asks_nothing_of_any_network() -> None:
    text = report_page(report())
    for words in ("Confirmation", "What mattered", "Layers that the front uses", "Values by layer", "The study file"):
        assert f"<h2>{words}</h2>" in text
    assert escape("<m>") in text
    assert "beats the tuned LoRA" in text
    assert "do not build on these shares" in text, "the surrogate predicts a fifth of the variance"
    assert text.index('<th class="n">1</th>') < text.index('<th class="n">10</th>')
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<>]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=", text)


def test_verdicts_stand_below_the_point_they_are_about() -> None:
    arms = [arm("front", first(), [0.8, 0.81, 0.82]), arm("lora", 1, [0.7, 0.71, 0.72]), arm("random", 2, [0.9] * 3)]
    text = insight_sections(report(confirmation=confirmation(*arms)))
    assert text.count("<ul>") == text.count("</ul>") == 2
    assert text.count("<li>") == text.count("</li>")
    assert re.search(r"after confirmation: [^<]*<ul><li>beats [^<]*</li><li>is worse [^<]*</li></ul></li>", text)
    assert re.search(r", &gt;99 %<", text)


def test_dimensions_without_layers_have_their_values_too() -> None:
    groups = tuple(Group(label=label, mean=mean, share=0.5) for label, mean in (("1e-3", 0.6), ("0.01", 0.8)))
    found = report().sensitivity
    assert found is not None
    rate = Effect(dimension="learning_rate", index=0.5, groups=groups)
    text = insight_sections(report(sensitivity=replace(found, effects=(rate, *found.effects))))
    section = text[text.index("<h2>Values by dimension</h2>") :]
    assert "<h3>learning_rate</h3>" in section
    assert 'title="50 % of the space">0.8000</td>' in section
    assert "lora.rank[0]" not in section
    assert "Values by dimension" not in insight_sections(report())


def test_what_is_not_known_yet_is_said() -> None:
    text = insight_sections(report(confirmation=None, sensitivity=None))
    assert "Nothing is confirmed yet" in text
    assert "Too few trials" in text


def test_the_front_uses_the_layers_its_points_adapt() -> None:
    front = front_of(history(8))
    uses = {use.method: use for use in layer_use(front, N_LAYERS)}
    for layer in range(N_LAYERS):
        expected = sum(
            setting.method == "lora" and layer in setting.layers for point in front for setting in point.configuration
        )
        assert uses["lora"].points[layer] == expected
    assert lora((0,), 8).method in uses
