from dataclasses import replace

import pytest

from autopeft.search.trial import History, TrialState
from autopeft.spaces.configuration import Configuration
from autopeft.studies.notes import (
    REFERENCE_TRIALS,
    StudyInfo,
    configuration_parameters,
    flag_notes,
    front_markdown,
    progress_notes,
    trial_note,
)
from tests.studies.synthetic import OBJECTIVES, completed, front_of, history, lora, setting, stopped

INFO = StudyInfo(name="rte", objectives=OBJECTIVES, model="m", task="text-classification", data="d")


def test_a_configuration_is_flat_short_parameters() -> None:
    serial = setting("serial_adapter", (0, 1, 2), bottleneck=24, activation="relu", scale=1.0)
    config = Configuration(methods=(lora((0, 2), [8, 4]), serial), training=(("learning_rate", 1e-3),))
    assert configuration_parameters(config, 4) == {
        "methods": "lora+serial",
        "n_adapted_layers": 3,
        "lora.layers": "0,2",
        "lora.alpha": 16.0,
        "lora.dropout": 0.0,
        "lora.rank": "8 0 4 0",
        "lora.targets": "q,v",
        "serial_adapter.layers": "0-2",
        "serial_adapter.activation": "relu",
        "serial_adapter.bottleneck": 24,
        "serial_adapter.scale": 1.0,
        "learning_rate": 1e-3,
    }


def test_a_methods_own_rate_is_a_parameter_beside_its_fields() -> None:
    own = replace(lora((0, 2), 8), learning_rate=3e-4)
    flat = configuration_parameters(Configuration(methods=(own,), training=(("learning_rate", 1e-3),)), 4)
    assert flat["lora.learning_rate"] == 3e-4
    assert flat["learning_rate"] == 1e-3


def test_words_that_change_with_depth_have_a_dash_where_the_method_is_absent() -> None:
    one = setting("serial_adapter", (0, 2), bottleneck=6, activation=["relu", "gelu"], scale=1.0)
    assert configuration_parameters(Configuration(methods=(one,), training=()), 3)["serial_adapter.activation"] == (
        "relu - gelu"
    )


def test_a_stopped_trial_says_at_which_rung_and_why() -> None:
    one = history(2).trials[0]
    note = trial_note(stopped(one), INFO)
    assert note["status"] == "KILLED"
    tags = note["tags"]
    assert isinstance(tags, dict)
    assert (tags["rung"], tags["pruned_because"]) == ("1", "after epoch 1: place 4 of 9, the best 3 go on")
    assert "pruned_because" not in trial_note(one, INFO)["tags"]  # type: ignore[operator]  # a dict, as above


def test_equal_trials_have_equal_notes() -> None:
    assert [trial_note(trial, INFO) for trial in history(5)] == [trial_note(trial, INFO) for trial in history(5)]


def test_the_curve_waits_for_trials_that_still_run_and_never_changes_afterwards() -> None:
    whole = history(14)
    running = replace(whole.trials[10], state=TrialState.RUNNING)
    early = History(trials=(*whole.trials[:10], running, *whole.trials[11:]))
    before, after = progress_notes(early, OBJECTIVES), progress_notes(whole, OBJECTIVES)
    assert [key for key, _ in before] == [f"curve/{n}" for n in range(10) if n != 3]
    assert after[: len(before)] == before


def test_the_curve_begins_when_the_reference_can_be_fixed() -> None:
    assert progress_notes(history(REFERENCE_TRIALS), OBJECTIVES) == []
    assert len(progress_notes(history(REFERENCE_TRIALS + 1), OBJECTIVES)) == REFERENCE_TRIALS


def test_every_completed_trial_is_flagged() -> None:
    told = history(8)
    flags = {note["number"]: note["on_front"] for _, note in flag_notes(told, front_of(told))}
    assert set(flags) == {n for n in range(8) if n != 3}
    assert {n for n, flag in flags.items() if flag} == {point.trial for point in front_of(told)}


@pytest.mark.parametrize("evil", ["<script>x</script>", "a|b", "![x](http://e/x.png)", "`<b>`", "# title\n\n| a |"])
def test_user_text_cannot_break_out_of_the_description(evil: str) -> None:
    config = Configuration(methods=(setting(evil, (0,), note="x"),), training=())
    told = History(trials=(completed(0, config, accuracy=0.9),))
    text = front_markdown(front_of(told), told, info=replace(INFO, name=evil))
    row = next(line for line in text.splitlines() if line.startswith("| 0"))
    assert row.replace("\\|", "").count("|") == 6
    assert "<" not in text
    assert "![" not in text
    assert "`" not in text.replace("\\`", "").replace("`front/front.html`", "")


def test_a_long_description_ends_with_where_the_rest_is() -> None:
    configs = [Configuration(methods=(lora(tuple(range(0, 80, 2)), 2),), training=(("n", n),)) for n in range(60)]
    trials = [completed(n, one, accuracy=0.5 + n / 200, memory=10**8 + n) for n, one in enumerate(configs)]
    told = History(trials=tuple(trials))
    text = front_markdown(front_of(told), told, info=INFO)
    assert len(text) <= 8000
    assert "front/front.json" in text


def test_an_empty_front_says_so() -> None:
    assert "No trial has completed yet." in front_markdown(front_of(History()), History(), info=INFO)
