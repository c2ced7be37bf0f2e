"""Studies of every kind of task: checked, searched and exported from the command line's own functions."""

import json
import random
from pathlib import Path

import pytest
import transformers

from autopeft import cli
from autopeft.errors import ModelError, SpecError
from autopeft.objectives.memory import predict_memory
from autopeft.studies.bind import bind_study
from autopeft.studies.load import load_spec
from tests.models import WORDS, save_model, tokenizer
from tests.studies.projects import study_data, write_study
from tests.trainers.test_data import write
from tests.trainers.test_kinds import CONFIGS, lines, questions, tagged

LORA = {"lora": {"rank": "choice(0, 2, 4)"}, "lora_plus_ratio": "choice(1, 4)"}


def task(kind: str, folder: Path) -> dict[str, object]:
    """The `task` section of a study on data written to `folder`."""
    if kind == "token-classification":
        write(folder / "train.csv", [(" ".join(words), " ".join(tags)) for words, tags in tagged(60)])
        return {"kind": kind, "data": {"train": "train.csv"}, "text": "text", "label": "label", "metric": "micro_f1"}
    if kind == "multiple-choice":
        rows = [{"question": q, "choices": choices, "answer": right} for q, choices, right in questions(60)]
        lines(folder / "train.jsonl", rows)
        text = ["question", "choices"]
        return {"kind": kind, "data": {"train": "train.jsonl"}, "text": text, "label": "answer", "metric": "accuracy"}
    chance = random.Random(0)
    pairs = [(" ".join(chance.choices(WORDS, k=5)), WORDS[0]) for _ in range(60)]
    write(folder / "train.csv", pairs, header=("source", "target"))
    return {"kind": kind, "data": {"train": "train.csv"}, "text": ["source", "target"], "metric": "perplexity"}


def project(kind: str, folder: Path, **changes: object) -> Path:
    if kind == "seq2seq":
        transformers.AutoModelForSeq2SeqLM.from_config(CONFIGS["t5"]).save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
    else:
        save_model("bert", folder / "model")
    return write_study(folder, study_data(task=task(kind, folder), space=LORA, **changes))


def test_a_common_rate_that_nothing_takes_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    both = ["space.lora.learning_rate=auto", "space.learning_rate=log(1e-4, 1e-2)"]
    path = project("seq2seq", tmp_path)
    with pytest.raises(SpecError, match=r"space\.learning_rate: every method has a rate of its own, and seq2seq"):
        bind_study(load_spec(path, settings=both))
    for fine in (both[:1], both[1:], [both[0], "space.learning_rate=1e-3"]):
        bind_study(load_spec(path, settings=fine))
    (tmp_path / "classes").mkdir()
    monkeypatch.chdir(tmp_path / "classes")
    bind_study(load_spec(project("token-classification", tmp_path / "classes"), settings=both))


@pytest.mark.parametrize("kind", ["token-classification", "multiple-choice", "seq2seq"])
def test_a_study_of_each_kind_is_searched_and_exported(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(kind, tmp_path, objectives=None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    for words in (["check", "study.yaml"], ["search", "study.yaml", "-q"], ["export", "study.yaml", "--out", "best"]):
        monkeypatch.setattr("sys.argv", ["autopeft", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code, capsys.readouterr().err
    config = json.loads((tmp_path / "best" / "adapter_config.json").read_text())
    assert config["task_type"] == {"token-classification": "TOKEN_CLS", "seq2seq": "SEQ_2_SEQ_LM"}.get(kind)


def test_choices_take_memory_each(tmp_path: Path) -> None:
    project("multiple-choice", tmp_path, objectives=["accuracy", "memory"])
    bound = bind_study(load_spec(tmp_path / "study.yaml"))
    space = bound.space
    one = next(iter(space.configurations()))
    assert len(bound.data.classes) == 3
    as_rows = predict_memory(space.shape, one, batch_size=3 * 16, length=16, n_labels=1)
    assert space.predicted(one)["memory"] == as_rows.total


def test_density_is_measured_when_it_is_an_objective(tmp_path: Path) -> None:
    project("token-classification", tmp_path, objectives=["micro_f1", "activation_density"])
    spec = load_spec(tmp_path / "study.yaml")
    assert spec.training.measure_density
    assert [objective.name for objective in spec.objectives] == ["micro_f1", "activation_density"]


def test_a_model_that_a_kind_cannot_use_is_refused_before_a_search(tmp_path: Path) -> None:
    write_study(tmp_path, study_data(task=task("seq2seq", tmp_path), space=LORA))
    save_model("bert", tmp_path / "model")
    with pytest.raises(ModelError, match="a bert model has no encoder beside a decoder, which seq2seq needs"):
        bind_study(load_spec(tmp_path / "study.yaml"))
