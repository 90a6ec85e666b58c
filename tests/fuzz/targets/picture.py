"""Pictures: `read_image` gives upright RGB or an InputError."""

from __future__ import annotations

import io
import random
from pathlib import Path

import torch
from fuzzing import mutate
from PIL import Image

from contrastive_i2v.data.images import read_image
from contrastive_i2v.errors import InputError

WORDS = (
    b"IHDR", b"IDAT", b"iCCP", b"zTXt", b"acTL", b"\xff\xd8", b"\xff\xe1", b"\xff\xc0", b"Exif\0\0", b"GIF89a",
    b"II*\0", b"MM\0*",
)  # fmt: skip


class Target:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(256, (12, 20, 4), generator=generator, dtype=torch.uint8).numpy()
        rgba = Image.fromarray(noise)
        rgb = rgba.convert("RGB")
        turned = Image.Exif()
        turned[0x0112] = 6  # orientation: a quarter turn
        self.seeds = [
            _file(rgba, "PNG"),
            _file(Image.fromarray(noise[..., 0].astype("uint16") * 257), "PNG"),
            _file(rgb.quantize(16), "PNG", transparency=3),
            _file(rgb, "JPEG", exif=turned),
            _file(rgb.convert("CMYK"), "JPEG"),
            _file(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
            _file(rgba, "WEBP", lossless=True),
            _file(rgba, "TIFF", compression="tiff_deflate"),
            _file(Image.fromarray(noise[..., 0].astype("float32")), "TIFF"),
            _file(rgb, "BMP"),
        ]

    def draw(self, rng: random.Random) -> bytes:
        return mutate(rng, rng.choice(self.seeds), *self.seeds, words=WORDS)

    def check(self, case: bytes) -> None:
        path = self.folder / "picture.png"
        path.write_bytes(case)
        try:
            pixels = read_image(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error), str(error)
            return
        assert pixels.dtype == torch.uint8 and pixels.shape[:2] == (1, 3) and pixels.numel() > 0, pixels.shape


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
