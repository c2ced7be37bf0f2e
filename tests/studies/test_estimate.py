"""What a configuration costs, told from a model's configuration alone."""

import json
from pathlib import Path

import pytest

from autopeft import cli
from autopeft.errors import NotFoundError, SpecError
from autopeft.spaces.methods import METHODS
from autopeft.studies.estimate import estimate, read_configuration_file
from autopeft.studies.method_list import method_row, method_rows
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import read_shape
from tests.models import MODELS


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a configuration and no weights."""
    MODELS["llama"].config().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_parameters_are_exact_and_memory_adds_up(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "configuration.yaml"
    file.write_text("lora: {rank: [4, 0, 2], targets: [q_proj]}\n")
    found = estimate(str(model), file, batch_size=8, sequence_length=16)
    sites = read_shape(ModelSpec(name=str(model))).layers[0]
    site = next(site for site in sites if site.name.endswith("q_proj"))
    assert found.parameters == 6 * (site.d_in + site.d_out)
    assert "lora q" in found.described
    parts = found.memory.to_json()
    assert parts["total"] == sum(value for name, value in parts.items() if name != "total")


def test_a_longer_batch_and_a_wider_dtype_cost_more(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "configuration.json"
    file.write_text(json.dumps({"lora": {"rank": 4}}))
    small = estimate(str(model), file, batch_size=8, sequence_length=16, dtype="bfloat16").memory
    assert estimate(str(model), file, batch_size=8, sequence_length=32, dtype="bfloat16").memory.total > small.total
    assert estimate(str(model), file, batch_size=8, sequence_length=16, dtype="float32").memory.total > small.total


def test_an_unknown_dtype_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--dtype: got 'int3'; allowed: float32"):
        estimate(str(model), tmp_path / "a.yaml", batch_size=8, sequence_length=16, dtype="int3")


def test_json_files_hold_a_mapping_or_an_exported_one(tmp_path: Path) -> None:
    file = tmp_path / "export.json"
    file.write_text(json.dumps({"study": "a", "configuration": {"lora": {"rank": 4}}}))
    assert read_configuration_file(file) == {"lora": {"rank": 4}}
    file.write_text("[1]")
    with pytest.raises(SpecError, match="a configuration is a mapping"):
        read_configuration_file(file)
    file.write_text("{")
    with pytest.raises(SpecError, match="not valid JSON"):
        read_configuration_file(file)


def test_a_configuration_of_peft_counts_as_the_same_one_of_ours(model: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.yaml", tmp_path / "adapter_config.json"
    ours.write_text("lora: {rank: 4, targets: [q_proj, v_proj]}\n")
    theirs.write_text(json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}))
    first, second = (estimate(str(model), file, batch_size=8, sequence_length=16) for file in (ours, theirs))
    assert first.to_json() == second.to_json()


def test_a_prompt_of_peft_is_counted_exactly(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}))
    found = estimate(str(model), file, batch_size=8, sequence_length=16)
    assert found.parameters == 5 * read_shape(ModelSpec(name=str(model))).hidden_size
    assert found.described.startswith("PROMPT_TUNING, its activations as those of prefix")


def test_every_method_is_listed_with_its_fields() -> None:
    rows = method_rows()
    assert [row["method"] for row in rows] == sorted(METHODS)
    assert all(row["summary"] and row["source"] and row["fields"] for row in rows)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'prefix_tuning'"):
        method_row("prefix_tunning")


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "lora"], ["methods", "lora", "--json"]])
def test_the_verb_prints_methods(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["autopeft", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    assert "lora" in capsys.readouterr().out


def test_the_verb_prints_an_estimate(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lora: {rank: 4}\n")
    monkeypatch.setattr("sys.argv", ["autopeft", "estimate", "--model", str(model), "--config", str(file), "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    assert set(json.loads(capsys.readouterr().out)) == {"parameters", "base_parameters", "memory"}
