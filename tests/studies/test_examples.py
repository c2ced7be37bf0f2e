"""The study files that users copy: each is read whole, and its space fits the model that it names."""

from pathlib import Path

import pytest
from transformers import BertConfig, LlamaConfig, PretrainedConfig, T5Config, ViTConfig

from autopeft.objectives.memory import Setup
from autopeft.spaces.space import SearchSpace
from autopeft.studies.bind import PredictedMemory
from autopeft.studies.load import load_spec
from autopeft.trainers.job import ModelSpec
from autopeft.trainers.kinds import check_kind
from autopeft.trainers.model import read_shape
from autopeft.trainers.task import resolve_task

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
CONFIGS: dict[str, PretrainedConfig] = {
    "sentence-transformers/all-MiniLM-L6-v2": BertConfig(
        hidden_size=384, num_hidden_layers=6, intermediate_size=1536, num_attention_heads=12
    ),
    "google-bert/bert-base-uncased": BertConfig(),
    "google-bert/bert-base-cased": BertConfig(vocab_size=28996),
    "google-t5/t5-small": T5Config(decoder_start_token_id=0),  # type: ignore[call-arg]  # a base class keeps it
    "google/vit-base-patch16-224-in21k": ViTConfig(),
    "meta-llama/Llama-3.2-1B": LlamaConfig(
        hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, intermediate_size=8192
    ),
}
"""The published sizes of the models that the examples name."""


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_a_study_of_the_model_it_names(file: Path, tmp_path: Path) -> None:
    spec = load_spec(file)
    assert spec.study == file.stem
    resolve_task(spec.task)
    CONFIGS[spec.model.name].save_pretrained(tmp_path)
    shape = read_shape(ModelSpec(name=str(tmp_path)))
    check_kind(spec.task.kind, shape, place=spec.model.name)
    memory = PredictedMemory(
        model=ModelSpec(name=str(tmp_path)),
        task=spec.task,
        n_labels=2,
        setup=Setup(
            batch_size=spec.training.batch_size,
            length=shape.image.n_tokens if shape.image else spec.training.max_length,
        ),
        device="cpu",
    )
    space = SearchSpace.bind(spec.space, shape, constraints=spec.constraints, quantities={"memory": memory})
    assert space.size().configurations >= spec.search.trials


def test_every_kind_of_task_has_an_example() -> None:
    from autopeft.trainers.task import TASKS

    assert {load_spec(file).task.kind for file in EXAMPLES} == set(TASKS)
