"""What a configuration costs, told from a model's configuration alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft import cli
from autopeft.errors import ConfigurationError, NotFoundError, SpaceError, SpecError
from autopeft.objectives.memory import MemoryBreakdown
from autopeft.spaces.methods import METHODS
from autopeft.studies.estimate import KINDS, Conditions, estimate, largest_batch, read_configuration_file
from autopeft.studies.method_list import method_row, method_rows
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.model import read_shape
from autopeft.trainers.task import TASKS
from tests.models import MODELS


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration and no weights; nothing is known of it."""
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    MODELS["llama"].config().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_parameters_are_exact_and_memory_adds_up(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "configuration.yaml"
    file.write_text("lora: {rank: [4, 0, 2], targets: [q_proj]}\n")
    found = estimate(str(model), file, Conditions(batch_size=8, sequence_length=16))
    sites = read_shape(ModelSpec(name=str(model))).layers[0]
    site = next(site for site in sites if site.name.endswith("q_proj"))
    assert found.parameters == 6 * (site.d_in + site.d_out)
    assert "lora q" in found.described
    parts = found.memory.to_json()
    assert parts["total"] == sum(value for name, value in parts.items() if name != "total")


def test_a_longer_batch_and_a_wider_dtype_cost_more(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "configuration.json"
    file.write_text(json.dumps({"lora": {"rank": 4}}))

    def total(**changes: object) -> int:
        conditions = replace(Conditions(batch_size=8, sequence_length=16, dtype="bfloat16"), **changes)
        return estimate(str(model), file, conditions).memory.total

    assert total(sequence_length=32) > total()
    assert total(dtype="float32") > total()
    assert total(checkpointing=True) < total()
    assert total(device="cpu") < total()
    assert total(attention="eager", sequence_length=64) > total(attention="sdpa", sequence_length=64)


def test_trials_on_one_base_share_its_weights_and_nothing_else(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "configuration.json"
    file.write_text(json.dumps({"lora": {"rank": 4}}))
    one, three = (
        estimate(str(model), file, Conditions(batch_size=8, sequence_length=16, trials_per_job=count))
        for count in (1, 3)
    )
    own, all_three = one.memory, three.memory
    assert (all_three.weights, all_three.context) == (own.weights, own.context)
    assert all_three.total - own.total == 2 * (own.total - own.weights - own.context)
    assert three.parameters == one.parameters, "of one of them"


def test_an_unknown_dtype_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--device: got 'tpu'; allowed: cuda, cpu"):
        estimate(str(model), tmp_path / "a.yaml", Conditions(device="tpu"))
    with pytest.raises(SpecError, match="--dtype: got 'int3'; allowed: float32"):
        estimate(str(model), tmp_path / "a.yaml", Conditions(dtype="int3"))


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


def test_an_adapter_of_peft_is_traced_as_peft_builds_it(model: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.yaml", tmp_path / "adapter_config.json"
    ours.write_text("lora: {rank: 4, targets: [q_proj, v_proj]}\n")
    theirs.write_text(json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}))
    conditions = Conditions(batch_size=8, sequence_length=16, dtype="bfloat16", device="cpu")
    first, second = (estimate(str(model), file, conditions) for file in (ours, theirs))
    assert first.parameters == second.parameters
    assert first.memory.weights == second.memory.weights
    assert first.memory.adapters == second.memory.adapters
    shape = read_shape(ModelSpec(name=str(model)))
    copies = shape.n_layers * 2 * 4 * 8 * 16 * shape.hidden_size
    more = second.memory.activations - first.memory.activations
    assert 0.5 * copies < more < 1.5 * copies, "peft keeps a float32 copy of the input for each map"
    assert second.described == "LORA"


def test_a_prompt_of_peft_is_traced_with_its_tokens(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 5, "task_type": "CAUSAL_LM"}))
    found = estimate(str(model), file, Conditions(batch_size=8, sequence_length=16))
    longer = estimate(str(model), file, Conditions(batch_size=8, sequence_length=21))
    assert found.parameters == 5 * read_shape(ModelSpec(name=str(model))).hidden_size
    assert longer.memory.activations / found.memory.activations == pytest.approx(26 / 21, rel=0.1)


def test_an_adapter_that_peft_cannot_put_on_the_model_is_one_message(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LORA", "r": 0, "target_modules": ["q_proj"]}))
    with pytest.raises(ConfigurationError, match="peft_type LORA: its memory cannot be told: `r` should be a positive"):
        estimate(str(model), file, Conditions(batch_size=8, sequence_length=16))


def test_the_largest_batch_that_fits_is_found(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lora: {rank: 4, targets: [q_proj]}\n")

    def upper(rows: int) -> float:
        memory = estimate(str(model), file, Conditions(batch_size=rows, sequence_length=16, device="cpu")).memory
        return memory.context + 1.05 * memory.measurable

    conditions = Conditions(sequence_length=16, device="cpu")
    fit = estimate(str(model), file, conditions, fit="3 MiB").fit
    assert fit is not None
    assert upper(fit.batch_size) <= 3 * 2**20 < upper(fit.batch_size + 1)
    assert fit.to_json() == {"capacity": 3 * 2**20, "batch_size": fit.batch_size}
    with pytest.raises(SpaceError, match="--fit: got '3'; an amount of memory"):
        estimate(str(model), file, conditions, fit="3")


@pytest.mark.parametrize("bend", [0, 3, 50, 10**6])
def test_the_search_for_a_batch_is_exact_on_a_bent_line(bend: int) -> None:
    def price(rows: int | None) -> MemoryBreakdown:
        assert rows is not None
        kept = 100 * rows + 900 * max(0, rows - bend)
        return MemoryBreakdown(
            weights=1000, adapters=0, gradients=0, optimizer=0, activations=kept, logits=0, workspace=0, context=10
        )

    def upper(rows: int) -> float:
        return 10 + 1.05 * price(rows).measurable

    assert largest_batch(price, upper(1) - 1) == 0
    for rows in (1, 2, 3, 47, 60, 999):
        assert largest_batch(price, upper(rows)) == rows
        assert largest_batch(price, upper(rows) + 50) == rows


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


def test_every_kind_of_task_can_be_named() -> None:
    assert set(KINDS) == set(TASKS)


@pytest.mark.parametrize(
    ("written", "length", "message"),
    [
        ({"lora": {"rank": 4}}, 65, r"--sequence-length: got 65; .* takes at most 64 tokens"),
        ({"prompt_tuning": {"length": 5}}, 60, r"--sequence-length: got 60 and 5 virtual tokens; .* at most 64"),
        ({"peft_type": "P_TUNING", "num_virtual_tokens": 9}, 60, r"got 60 and 9 virtual tokens"),
        ({"peft_type": "PEFT.PROMPT_TUNING", "num_virtual_tokens": 90}, 1, r"got 1 and 90 virtual tokens"),
    ],
)
def test_rows_longer_than_the_model_are_refused(
    written: dict[str, object], length: int, message: str, model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "configuration.json"
    file.write_text(json.dumps(written))
    with pytest.raises(SpecError, match=message):
        estimate(str(model), file, Conditions(batch_size=2, sequence_length=length))


def test_the_count_is_told_before_the_memory_is_predicted(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("lora: {rank: 4}\n")

    def never(*_: object) -> None:
        raise AssertionError(capsys.readouterr().out)

    monkeypatch.setattr("autopeft.studies.estimate._own", never)
    monkeypatch.setattr("sys.argv", ["autopeft", "estimate", "--model", str(model), "--config", str(file)])
    with pytest.raises(AssertionError, match=r"lora .*\n1,344 trainable parameters, [0-9.]+ % of [0-9,]+\n"):
        cli.main()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"r": 8, "target_modules": ["q_proj"]}', r"a\.json: peft_type: missing"),
        ("a.yaml", " \n", r"a\.yaml: is empty; a configuration is a mapping"),
        (
            "a.json",
            '{"peft_type": "LORA", "target_modules": ["q_proj"], "layers_to_transform": [7]}',
            r"layers_to_transform: \[7\] leaves no module 'q_proj' of this llama model, whose layers are 0 to 2",
        ),
        (
            "a.json",
            '{"peft_type": "TRAINABLE_TOKENS", "token_indices": [1, 99]}',
            r"token_indices: this llama model has no token 99, it has 55",
        ),
    ],
)
def test_what_is_wrong_in_a_configuration_file_is_named(
    name: str, content: str, message: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises((ConfigurationError, SpecError), match=message):
        estimate(str(model), tmp_path / name, Conditions(sequence_length=16))
