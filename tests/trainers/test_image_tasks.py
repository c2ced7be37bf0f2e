"""Images, learned by tiny vision transformers on pictures drawn here."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from autopeft.errors import DataError, ModelError, SpecError
from autopeft.objectives.memory import Setup
from autopeft.spaces.configuration import Configuration
from autopeft.spaces.model_shape import ModelShape
from autopeft.trainers.image_tasks import IMAGES, pixel_values
from autopeft.trainers.job import DataSpec, ModelSpec, TaskSpec, TrainingSettings, TrainJob
from autopeft.trainers.model import load_model, read_shape
from autopeft.trainers.pixels import PixelSplit
from autopeft.trainers.rows import Splits
from autopeft.trainers.task import check_task, load_task, resolve_task
from autopeft.trainers.trainer import Trainer
from tests.configurations import configuration, setting
from tests.images import CLASSES, rows_of, write_folder, write_table
from tests.models import EVERY, IMAGE_MODELS, IMAGE_SIZE, save_model
from tests.trainers.measured_memory import forecast_of, image_batch

SETTINGS = TrainingSettings(batch_size=16, evaluation_batch_size=32, learning_rate=1e-2, precision="float32")
LORA = configuration(setting("lora", (0, 1, 2), rank=4, targets=EVERY["vit"].query_value, alpha=16.0))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def task(train: str, **changes: object) -> TaskSpec:
    spec = TaskSpec(
        kind="image-classification",
        data=DataSpec(train=train),
        image="image",
        label="label",
        metric="accuracy",
        extra_metrics=("f1", "matthews"),
    )
    return replace(spec, **changes)  # type: ignore[arg-type]  # fields by name


def trainer(folder: Path, spec: TaskSpec, *, family: str = "vit", settings: TrainingSettings = SETTINGS) -> Trainer:
    return Trainer(ModelSpec(name=str(save_model(family, folder / family))), spec, settings, device="cpu")


def train(one: Trainer, config: Configuration = LORA, *, epochs: int = 4, out: Path | None = None) -> dict[str, float]:
    job = TrainJob(configurations=(config,), seeds=(1,), epochs=epochs, output_dirs=(out,), evaluate_test=True)
    *_, last = one.run(job)
    assert last.measurement is not None, last.failure
    found = dict(last.measurement.metrics) | {"peak": last.measurement.peak_bytes, "tokens": last.measurement.tokens}
    return found | {f"test_{name}": value for name, value in last.test_metrics.items()}


@pytest.mark.parametrize("family", IMAGE_MODELS)
def test_shapes_are_told_apart(family: str, tmp_path: Path) -> None:
    one = trainer(tmp_path, task(str(write_folder(tmp_path / "shapes", 100))), family=family)
    found = train(one, out=tmp_path / "best")
    assert one.splits.classes == CLASSES
    assert found["accuracy"] > 0.9 < found["test_accuracy"]
    assert found["f1"] > 0.8 < found["matthews"] + 0.1
    again = one.evaluate(tmp_path / "best", "test")
    assert again["loss"] == pytest.approx(found["test_loss"])


def test_tokens_and_memory_are_those_of_the_patches(tmp_path: Path) -> None:
    one = trainer(tmp_path, task(str(write_folder(tmp_path / "shapes", 100))))
    found = train(one, epochs=2)
    split = one.tokens("train")
    assert isinstance(split, PixelSplit)
    n_tokens = (IMAGE_SIZE // 4) ** 2 + 1
    assert found["tokens"] == 2 * n_tokens * len(one.splits.train)
    forecast = forecast_of(one.loaded)
    assert forecast.predict(LORA, Setup(batch_size=16, length=n_tokens)).total == found["peak"]


def test_what_the_model_is_given_is_what_its_processor_gives(tmp_path: Path) -> None:
    one = trainer(tmp_path, task(str(write_folder(tmp_path / "shapes", 20))))
    split = one.tokens("train")
    assert isinstance(split, PixelSplit)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "vit", backend="pil")
    shown = [picture.decoded("RGB") for picture in one.splits.train.images]
    expected = processor(shown, return_tensors="pt")["pixel_values"]
    batch = split.batch(np.arange(len(split)))
    given = pixel_values(batch, torch.device("cpu"))
    torch.testing.assert_close(given, expected, atol=1e-6, rtol=0)
    logits, targets = IMAGES.outputs(one.loaded.model, batch, torch.device("cpu"))
    assert torch.equal(logits, one.loaded.model(pixel_values=given).logits)
    assert targets.tolist() == [CLASSES.index(label) for label in one.splits.train.labels]


@pytest.mark.parametrize("family", IMAGE_MODELS)
def test_a_bf16_model_takes_images(family: str, tmp_path: Path) -> None:
    spec = ModelSpec(name=str(save_model(family, tmp_path)), dtype="bfloat16")
    loaded = load_model(spec, kind="image-classification", n_labels=3)
    assert loaded.shape.image is not None
    batch = image_batch(loaded.shape.image, 2)
    logits, _ = IMAGES.outputs(loaded.model, batch, torch.device("cpu"))
    assert logits.shape == (2, 3)
    assert logits.dtype == torch.float32


def as_parquet(folder: Path) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    rows = rows_of(folder / "shapes", below=folder)
    images = [{"bytes": (folder / path).read_bytes(), "path": path} for path, _ in rows]
    parquet.write_table(pa.table({"image": images, "label": [label for _, label in rows]}), folder / "t.parquet")
    return str(folder / "t.parquet")


FORMS: dict[str, Callable[[Path], str]] = {
    "csv": lambda folder: write_table(folder / "t.csv", rows_of(folder / "shapes", below=folder)),
    "tsv": lambda folder: write_table(folder / "t.tsv", rows_of(folder / "shapes", below=folder)),
    "json": lambda folder: write_table(folder / "t.json", rows_of(folder / "shapes", below=folder)),
    "parquet": as_parquet,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_of_paths_or_images_is_what_the_folder_is(form: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "shapes", 20)
    _, listed = load_task(task(FORMS[form](tmp_path)), seed=0)
    _, filed = load_task(task(str(folder)), seed=0)
    assert listed.classes == filed.classes == CLASSES
    assert labelled(listed) == labelled(filed)
    assert len(labelled(listed)) == 20
    assert all(len(split) == len(split.images) for split in (listed.train, listed.validation, listed.test))


def labelled(splits: Splits) -> set[tuple[str, str]]:
    """(digest, label) of every row."""
    parts = (splits.train, splits.validation, splits.test)
    return {(text, label) for part in parts for (text,), label in zip(part.texts, part.labels, strict=True)}


def test_copies_of_an_image_stay_in_one_split(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "shapes", 20)
    for file in list(folder.rglob("*.png")):
        file.with_name(f"copy of {file.name}").write_bytes(file.read_bytes())
    _, splits = load_task(task(str(folder), data=DataSpec(train=str(folder), test_fraction=0.3)), seed=0)
    digests = {name: {text for (text,) in splits.split(name).texts} for name in ("train", "validation", "test")}
    assert not digests["train"] & digests["test"]
    assert not digests["train"] & digests["validation"]
    assert len(splits.test) == 2 * len(digests["test"])
    given = DataSpec(train=str(folder), validation=str(folder), test=str(folder))
    summary = check_task(task(str(folder), data=given))
    assert summary.shared_with_train == {"validation": 40, "test": 40}
    assert summary.classes == {"disc": 20, "square": 20}


def test_a_damaged_image_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "shapes", 20)
    file = folder / "disc" / "004.png"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"shapes row 3: .*disc/004\.png: a damaged image"):
        check_task(task(str(folder)))


def test_one_class_is_too_few(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "shapes", 10)
    rows = [(path, "shape") for path, _ in rows_of(folder, below=tmp_path)]
    with pytest.raises(DataError, match=r"every row has the label 'shape'; two classes are needed"):
        load_task(task(write_table(tmp_path / "t.csv", rows)), seed=0)
    with pytest.raises(DataError, match=r"the train split is empty \(the file needs at least one row with an image"):
        load_task(task(write_table(tmp_path / "t.csv", [])), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, r"task\.image: got nothing; image-classification needs a column of images"),
        ({"text": ("image",)}, r"task\.text: got \['image'\]; image-classification reads images .*`image: image`"),
        ({"label": None}, r"task\.label: got nothing; image-classification needs a label column"),
        ({"metric": "perplexity"}, r"image-classification measures accuracy, f1, matthews"),
        (
            {"kind": "text-classification", "text": ("text",), "metric": "accuracy", "extra_metrics": ()},
            r"task\.image: got 'image'; text-classification reads texts \(leave it out",
        ),
    ],
)
def test_columns_out_of_place_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve_task(task("t.csv", **changes))


def test_checking_images_loads_no_model_library(tmp_path: Path) -> None:
    file = write_table(tmp_path / "t.csv", rows_of(write_folder(tmp_path / "shapes", 20), below=tmp_path))
    code = (
        "import sys\n"
        "from autopeft.trainers.job import DataSpec, TaskSpec\n"
        "from autopeft.trainers.task import check_task\n"
        f"check_task(TaskSpec(kind='image-classification', data=DataSpec(train={file!r}), image='image', "
        "label='label', metric='accuracy'))\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def shape_of(config: transformers.PretrainedConfig, folder: Path) -> ModelShape:
    config.save_pretrained(folder)
    return read_shape(ModelSpec(name=str(folder)))


def test_a_vit_base_has_the_published_size_without_its_pooler(tmp_path: Path) -> None:
    shape = shape_of(transformers.ViTConfig(), tmp_path)
    assert shape.base_parameters == 85_798_656
    assert shape.embedding_parameters == 768 * (16 * 16 * 3 + 1) + 768 * (1 + 197)
    assert (shape.vocabulary_size, shape.causal, shape.n_layers) == (0, False, 12)
    assert shape.image is not None
    assert (shape.image.height, shape.image.n_tokens) == (224, 197)
    assert ModelShape.from_json(json.loads(json.dumps(shape.to_json()))) == shape


@pytest.mark.parametrize(
    ("name", "n_tokens"),
    [
        ("ViTConfig", 1 + 9),
        ("DeiTConfig", 2 + 9),
        ("BeitConfig", 1 + 9),
        ("Dinov2Config", 1 + 9),
        ("Dinov2WithRegistersConfig", 1 + 4 + 9),
        ("Data2VecVisionConfig", 1 + 9),
        ("ViTMSNConfig", 1 + 9),
        ("IJepaConfig", 9),
    ],
)
def test_every_kind_of_vision_transformer_is_measured(name: str, n_tokens: int, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    shape = shape_of(getattr(transformers, name)(**sizes, image_size=12, patch_size=4), tmp_path)
    assert shape.image is not None
    assert shape.image.n_tokens == n_tokens
    config = transformers.AutoConfig.from_pretrained(tmp_path, architectures=[])
    model = transformers.AutoModelForImageClassification.from_config(config)
    assert shape.base_parameters == sum(parameter.numel() for parameter in model.base_model.parameters())


def test_a_model_that_takes_other_sizes_is_measured_with_those_of_its_processor(tmp_path: Path) -> None:
    save_model("dinov2", tmp_path)
    transformers.BitImageProcessorPil(size={"shortest_edge": 10}, crop_size={"height": 8, "width": 8}).save_pretrained(
        tmp_path
    )
    shape = read_shape(ModelSpec(name=str(tmp_path)))
    assert shape.image is not None
    assert (shape.image.height, shape.image.n_tokens) == (8, 1 + 4)


def test_a_processor_of_another_size_than_the_model_takes_is_refused(tmp_path: Path) -> None:
    save_model("vit", tmp_path)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"a vit model does not take images of 16 x 16 pixels"):
        read_shape(ModelSpec(name=str(tmp_path)))


@pytest.mark.parametrize("name", ["SwinConfig", "ConvNextConfig", "ResNetConfig"])
def test_pyramids_and_convolutions_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model has no single width and number of attention heads .*ViT, DeiT, BEiT"):
        shape_of(getattr(transformers, name)(), tmp_path)


def test_images_need_a_model_of_images_and_texts_one_of_texts(tmp_path: Path) -> None:
    bert, vit = (ModelSpec(name=str(save_model(name, tmp_path / name))) for name in ("bert", "vit"))
    with pytest.raises(ModelError, match=r"a bert model is no vision transformer, which image-classification needs"):
        load_model(bert, kind="image-classification", n_labels=2)
    with pytest.raises(ModelError, match=r"a vit model reads images, text-classification needs a model of text"):
        load_model(vit, kind="text-classification", n_labels=2)


def test_a_family_without_a_classification_head_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    transformers.SiglipVisionConfig(**sizes, image_size=12, patch_size=4).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"transformers has no siglip_vision_model model for image-classification"):
        load_model(ModelSpec(name=str(tmp_path)), kind="image-classification", n_labels=2)


def test_weights_without_patch_embeddings_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_model("vit", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "patch_embeddings" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="no tensors for part or all of embeddings"):
        load_model(ModelSpec(name=str(tmp_path)), kind="image-classification", n_labels=2)


def test_every_part_of_training_takes_images(tmp_path: Path) -> None:
    """Layer sampling, regularisers, a mixture's load balance and the density of activations see no padding."""
    settings = replace(
        SETTINGS,
        layer_sampling="importance",
        sampling_interval=2,
        ba_consistency=0.1,
        ba_diversity=0.1,
        ba_spectrum=0.1,
        density=0.01,
        measure_density=True,
    )
    one = trainer(tmp_path, task(str(write_folder(tmp_path / "shapes", 60))), settings=settings)
    targets = EVERY["vit"].query_value
    config = configuration(
        setting("lora", (0, 1, 2), rank=2, targets=targets, alpha=4.0),
        setting("serial_adapter", (1, 2), bottleneck=4),
    )
    found = train(one, config, epochs=1)
    assert 0 < found["activation_density"] <= 1
    mixture = configuration(setting("mola", (1, 2), experts=2, rank=2, top_k=1, targets=targets))
    plain = Trainer(ModelSpec(name=str(tmp_path / "vit")), task(str(tmp_path / "shapes")), SETTINGS, device="cpu")
    assert np.isfinite(train(plain, mixture, epochs=1)["loss"])


def test_an_image_that_is_lost_after_the_check_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "shapes", 20)
    one = trainer(tmp_path, task(str(folder)))
    lost = one.splits.train.images[0]
    for file in folder.rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=rf"row {lost.index + 1}: .*\.png: no such file"):
        one.tokens("train")


def test_a_model_of_videos_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.VideoMAEConfig(**sizes, image_size=16, patch_size=4)
    with pytest.raises(ModelError, match=r"a videomae model does not take images of 16 x 16 pixels: .*single images"):
        shape_of(config, tmp_path)
