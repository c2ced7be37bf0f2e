from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import (
    BeitImageProcessorPil,
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    DeiTImageProcessorPil,
    ViTImageProcessorPil,
)

from autopeft.errors import ModelError
from autopeft.trainers.checkpoint import load_image_reader
from autopeft.trainers.image_reader import ImageReader
from autopeft.trainers.job import ModelSpec
from tests.images import drawn
from tests.models import save_model

PROCESSORS = (
    ViTImageProcessorPil(size={"height": 12, "width": 10}),
    ViTImageProcessorPil(do_normalize=False),
    ViTImageProcessorPil(do_rescale=False, image_mean=[100, 120, 140], image_std=[50, 60, 70]),
    DeiTImageProcessorPil(size={"height": 20, "width": 20}, crop_size={"height": 16, "width": 16}),
    BeitImageProcessorPil(),
    BitImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 16, "width": 16}),
    ConvNextImageProcessorPil(size={"shortest_edge": 32}),
)


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: type(one).__name__)
def test_bytes_and_arithmetic_give_what_the_models_processor_gives(processor: object) -> None:
    reader = ImageReader(processor, n_channels=3)
    for index in range(2):
        image = drawn(index).resize((50, 30))
        expected = processor(image, return_tensors="np")["pixel_values"][0]  # type: ignore[operator]
        pixels = reader.pixels(image)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (3, *reader.size) == expected.shape
        np.testing.assert_allclose(reader.numbers(pixels[None])[0], expected, atol=1e-5)


def test_grey_models_are_given_grey_images() -> None:
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.25])
    reader = ImageReader(processor, n_channels=1)
    assert reader.mode == "L"
    assert reader.pixels(Image.new("L", (9, 9), 255)).shape == (1, 8, 8)
    assert reader.numbers(np.full((1, 1, 8, 8), 255, dtype=np.uint8)).max() == pytest.approx(2.0)


def test_other_settings_are_told_apart() -> None:
    one, other = (ImageReader(processor, n_channels=3).settings for processor in PROCESSORS[3:5])
    assert one != other


class Sharpening(ViTImageProcessorPil):
    """Does something of its own to the numbers."""

    def normalize(self, image: np.ndarray, *args: object, **options: object) -> np.ndarray:
        return np.tanh(super().normalize(image, *args, **options))


@pytest.mark.parametrize(
    ("processor", "n_channels", "message"),
    [
        (ViTImageProcessorPil(size={"shortest_edge": 16}), 3, "gives images of several sizes.*set do_center_crop"),
        (Sharpening(), 3, "Sharpening does more than resize, crop, rescale and normalise"),
        (ViTImageProcessorPil(), 7, "7 channels"),
    ],
)
def test_a_processor_that_does_not_suit_is_refused(processor: object, n_channels: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ImageReader(processor, n_channels=n_channels)


def test_a_folder_without_image_processor_is_refused(tmp_path: Path) -> None:
    folder = save_model("vit", tmp_path / "vit")
    spec = ModelSpec(name=str(folder))
    assert load_image_reader(spec).size == (12, 12)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"model '.*vit': image processor: .*needs preprocessor_config\.json beside"):
        load_image_reader(spec)
