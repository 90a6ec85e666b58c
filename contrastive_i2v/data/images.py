"""Pictures as people have them: any file or PIL image that Pillow reads, as upright 8-bit RGB."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from contrastive_i2v.data.decoding import MAX_PIXELS
from contrastive_i2v.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL import Image

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
INTEGER_RANGES = (255, 65535, 2**31 - 1)
"""White in a picture of 32-bit integers is the smallest of these that no pixel is above."""
FLOAT_RANGES = (1.0, 255.0, 65535.0)
"""The same for a picture of floats."""


def read_image(path: Path, content: bytes | None = None) -> Tensor:
    """An image file as `image_pixels` gives it, uint8 `[1, 3, H, W]`. Raises InputError naming the file.

    Args:
        content: the file's bytes, where they are no file of their own; `path` is what messages call it.
    """
    from PIL import Image

    if content is None and not path.is_file():
        raise InputError(f"{path}: no such file; expected an image (PNG, JPEG, ...)")
    try:
        opened = Image.open(path if content is None else io.BytesIO(content))
    except Exception as error:
        raise _unreadable(str(path), error) from error
    with opened as image:
        return image_pixels(image, str(path))


def image_pixels(image: Image.Image, name: str = "") -> Tensor:
    """A PIL image as uint8 `[1, 3, H, W]`, RGB.

    It is turned upright as its EXIF orientation says. Transparent pixels lie on white. 16-bit grey is scaled from
    0 to 65535; 32-bit integers and floats, which name no range, are scaled from 0 to the smallest of INTEGER_RANGES
    and FLOAT_RANGES that holds them. Other modes (CMYK, palettes, grey, ...) are converted as Pillow does.

    Args:
        name: what messages call the image; "" = the file it was opened from, if any.

    Raises:
        InputError: the file is truncated, corrupt or a decompression bomb, or floats aren't finite.
    """
    import numpy as np

    name = name or str(getattr(image, "filename", "")) or "image"
    try:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"holds {image.width}x{image.height} pixels, at most {MAX_PIXELS} are read: scale it down")
        array = np.array(_upright_rgb(image))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except Exception as error:
        raise _unreadable(name, error) from error
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def _unreadable(name: str, error: Exception) -> InputError:
    """Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, DecompressionBombError and others."""
    return InputError(f"{name}: not a readable image ({one_line(error)})")


def _upright_rgb(image: Image.Image) -> Image.Image:
    from PIL import ExifTags, Image, ImageOps

    image.load()  # a PNG's orientation may come after its pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied all the same
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _from_deep(image)
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits -> RGB, scaled and rounded; what is below 0 is black."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)  # [H, W]
    if not np.isfinite(values).all():
        raise InputError("its pixels hold NaN or infinity")
    ranges: tuple[float, ...] = FLOAT_RANGES if image.mode == "F" else INTEGER_RANGES
    highest = float(values.max(initial=0))
    white = 65535 if image.mode.startswith("I;16") else next((one for one in ranges if highest <= one), highest)
    grey = np.empty(values.shape, np.uint8)
    for row, deep in zip(grey, values, strict=True):  # row by row: in float64 the whole takes gigabytes
        row[:] = (deep.astype(np.float64) / white * 255).round().clip(0, 255)
    return Image.fromarray(grey).convert("RGB")
