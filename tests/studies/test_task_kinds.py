"""Studies of every kind of task: checked, searched and exported from the command line's own functions."""

import json
import random
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

import autopeft
from autopeft import cli
from autopeft.errors import ModelError, SpecError
from autopeft.studies.bind import bind_study
from autopeft.studies.content import content_of
from autopeft.studies.estimate import Conditions, estimate
from autopeft.studies.load import load_spec
from autopeft.studies.notes import study_note
from autopeft.studies.session import study_info
from tests.images import drawn, write_folder
from tests.models import WORDS, image_processor, save_model, tokenizer
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
    if kind == "image-classification":
        data = {"train": "shapes/train", "test": "shapes/test"}
        write_folder(folder / "shapes" / "train", 60)
        write_folder(folder / "shapes" / "test", 20, seed=1)
        return {"kind": kind, "data": data, "image": "image", "label": "label", "metric": "accuracy"}
    chance = random.Random(0)
    pairs = [(" ".join(chance.choices(WORDS, k=5)), WORDS[0]) for _ in range(60)]
    write(folder / "train.csv", pairs, header=("source", "target"))
    return {"kind": kind, "data": {"train": "train.csv"}, "text": ["source", "target"], "metric": "perplexity"}


def project(kind: str, folder: Path, **changes: object) -> Path:
    if kind == "seq2seq":
        transformers.AutoModelForSeq2SeqLM.from_config(CONFIGS["t5"]).save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
    else:
        save_model("vit" if kind == "image-classification" else "bert", folder / "model")
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


@pytest.mark.parametrize("kind", ["token-classification", "multiple-choice", "seq2seq", "image-classification"])
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
    memory = space.predicted(one)["memory"]
    half = space.predicted(replace(one, training=(*one.training, ("batch_size", 8))))["memory"]
    tokens, width = 8 * 3 * 16, space.shape.hidden_size
    assert memory - half > 4 * tokens * width, "three sequences of 16 tokens a row"


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


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["autopeft", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_a_study_of_images_is_handed_over_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(
        "image-classification",
        tmp_path,
        objectives=None,
        training={"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "precision": "float32"},
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    assert run(monkeypatch, "search", "study.yaml", "-q") == 0
    assert run(monkeypatch, "search", "study.yaml", "-q") == 0, "the written study is the one in the storage"
    assert run(monkeypatch, "export", "tiny", "--pick", "best:accuracy", "--out", "best") == 0
    capsys.readouterr()
    card = (tmp_path / "best" / "README.md").read_text()
    assert "**Data**: shapes/train" in card
    assert "; images from `image`, labels from `label`" in card
    facts = json.loads((tmp_path / "best" / "export.json").read_text())
    assert facts["task"]["image"] == "image"
    assert facts["task"]["labels"] == ["disc", "square"]
    assert "max_length" not in facts["task"]
    assert facts["held_out"]["accuracy"] > 0.9

    shown = image_processor()([drawn(index, seed=1) for index in range(20)], return_tensors="pt")
    right = torch.arange(20) % 2
    with torch.inference_mode():
        ours = autopeft.load(tmp_path / "best")(**shown).logits
        assert (ours.argmax(-1) == right).float().mean() == pytest.approx(facts["held_out"]["accuracy"])
        snippet = card.partition("## Load it")[2].partition("**Versions**")[0]
        scope: dict[str, object] = {}
        exec(textwrap.dedent(snippet.replace("this-folder", "best")), scope)  # the card's own lines
        plain = scope["model"].eval()(**shown).logits  # type: ignore[attr-defined]
    torch.testing.assert_close(plain, ours)


def test_the_tracking_mirror_is_told_of_images(tmp_path: Path) -> None:
    project("image-classification", tmp_path, objectives=None)
    bound = bind_study(load_spec(tmp_path / "study.yaml"))
    told = study_note(study_info(bound.spec, bound.space.shape))["params"]
    assert isinstance(told, dict)
    assert (told["task"], told["data"]) == ("image-classification", "shapes/train, shapes/test")
    assert told["tokens"] == "10"
    assert "max_length" not in told


def test_a_base_with_a_head_of_its_own_loads_by_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project("image-classification", tmp_path, objectives=None)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model", num_labels=7)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    assert run(monkeypatch, "search", "study.yaml", "-q") == 0
    assert run(monkeypatch, "export", "tiny", "--out", "best") == 0
    snippet = (tmp_path / "best" / "README.md").read_text().partition("## Load it")[2].partition("**Versions**")[0]
    scope: dict[str, object] = {}
    exec(textwrap.dedent(snippet.replace("this-folder", "best")), scope)
    assert scope["base"].config.num_labels == 2  # type: ignore[attr-defined]


def test_images_that_changed_make_another_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project("image-classification", tmp_path, objectives=None)
    spec = load_spec(tmp_path / "study.yaml")
    before = content_of(spec)
    assert content_of(spec) == before
    drawn(3).resize((40, 40)).save(tmp_path / "shapes" / "test" / "disc" / "000.png")
    after = content_of(spec)
    assert after["task.data.train"] == before["task.data.train"]
    assert after["task.data.test"] != before["task.data.test"]


def test_the_memory_of_images_goes_by_their_patches(tmp_path: Path) -> None:
    project("image-classification", tmp_path, objectives=["accuracy", "memory"])
    space = bind_study(load_spec(tmp_path / "study.yaml")).space
    one = next(iter(space.configurations()))
    assert space.shape.image is not None
    memory = space.predicted(one)["memory"]
    half = space.predicted(replace(one, training=(*one.training, ("batch_size", 8))))["memory"]
    tokens, width = 8 * space.shape.image.n_tokens, space.shape.hidden_size
    assert memory - half > 4 * tokens * width, "a patch is a token"


def test_an_estimate_for_images_goes_by_their_patches(tmp_path: Path) -> None:
    save_model("vit", tmp_path / "model")
    for file in (tmp_path / "model").iterdir():
        if file.name != "config.json":
            file.unlink()
    (tmp_path / "c.yaml").write_text("lora: {rank: 4}\n")
    found = [
        estimate(str(tmp_path / "model"), tmp_path / "c.yaml", Conditions(batch_size=4, sequence_length=length))
        for length in (10, 500)
    ]
    assert found[0] == found[1]
    assert found[0].parameters == 3 * 2 * 4 * (32 + 32)
