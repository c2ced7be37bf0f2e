"""A model's own image processor, split in two: what is done to an image once, and the arithmetic at every use.

Letters: C channels, H height, W width.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np

from autopeft.errors import ModelError

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode by number of channels."""
_NEAR: Final = 1e-4


@final
class ImageReader:
    """Images to bytes by resizing and cropping, bytes to a model's numbers by `scale_C * byte + shift_C`.

    The bytes are what is worth keeping: they are exact, for the processor rounds to them too, and a quarter of the
    floats. Pillow does the resizing whatever else is installed, so that every machine sees the same bytes.

    Args:
        processor: The image processor of the library.
        n_channels: That the model has.

    Raises:
        ModelError: It does more than resize, crop, rescale and normalise, or gives images of several sizes.
    """

    def __init__(self, processor: Any, *, n_channels: int) -> None:
        name = type(processor).__name__
        if n_channels not in MODES:
            raise ModelError(f"image processor: {n_channels} channels", hint="use a model of grey or colour images")
        self.mode = MODES[n_channels]
        self._processor = processor
        factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        mean_C, std_C = (np.broadcast_to(np.asarray(value, dtype=np.float64), n_channels) for value in (mean, std))
        self.scale_C: FloatArray = (factor / std_C).astype(np.float32)
        self.shift_C: FloatArray = (-mean_C / std_C).astype(np.float32)
        wide, tall = (self._probe(*size) for size in ((96, 64), (64, 96)))
        if self.pixels(wide).shape != self.pixels(tall).shape:
            raise ModelError(
                f"image processor: {name} gives images of several sizes",
                hint="set do_center_crop, or height and width in its size, in preprocessor_config.json",
            )
        whole = np.asarray(processor(wide, return_tensors="np")["pixel_values"][0])
        if np.abs(self.numbers(self.pixels(wide)[None])[0] - whole).max() > _NEAR:
            raise ModelError(
                f"image processor: {name} does more than resize, crop, rescale and normalise",
                hint="use a model whose image processor does only that",
            )

    def save(self, folder: Path) -> None:
        """Write the image processor's own file."""
        self._processor.save_pretrained(folder)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what it gives."""
        _, height, width = self.pixels(self._probe(64, 64)).shape
        return height, width

    @property
    def settings(self) -> str:
        """What decides its bytes, as text."""
        return f"{self.mode} {self._processor.to_json_string()}"

    def pixels(self, image: "Image") -> Pixels:
        """`image`, in `mode`, as bytes `[C, H, W]`."""
        found = self._processor(image, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"][0]
        return np.asarray(found).astype(np.uint8)

    def numbers(self, pixels: Pixels) -> FloatArray:
        """What the model is given for bytes `[..., C, H, W]`."""
        return pixels * self.scale_C[:, None, None] + self.shift_C[:, None, None]

    def _probe(self, width: int, height: int) -> "Image":
        """An image of many colours."""
        from PIL import Image

        ramp = np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3)
        return Image.fromarray((ramp * 7 % 256).astype(np.uint8)).convert(self.mode)


def open_image_reader(source: str, *, revision: str | None, trust_remote_code: bool, n_channels: int) -> ImageReader:
    """The reader of the model at `source`, hub id or folder.

    Raises:
        OSError: There is no preprocessor_config.json.
        ModelError: As `ImageReader`.
    """
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(
        source, revision=revision, trust_remote_code=trust_remote_code, backend="pil"
    )
    return ImageReader(processor, n_channels=n_channels)
