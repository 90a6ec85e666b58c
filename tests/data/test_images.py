"""Pictures in every mode and orientation, by their pixels, through files and through the pipeline's front door."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from contrastive_i2v.data.images import image_pixels, read_image
from contrastive_i2v.errors import InputError
from contrastive_i2v.pipeline import as_frame

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255], [255, 255, 0]]], np.uint8)


def both(path: Path) -> Tensor:
    """uint8 `[3, H, W]`, equal from the file and from the PIL image a user opens."""
    pixels = read_image(path)
    with Image.open(path) as image:
        assert torch.equal(as_frame(image), pixels)
    assert pixels.dtype == torch.uint8 and pixels.shape[:2] == (1, 3)
    return pixels[0]


@pytest.mark.fault("a picture is turned or mirrored by EXIF", "it is read upright")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_that_exif_gives_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = torch.from_numpy(COLOURS)
    stored = {  # what a camera held that way stores, by the standard's places of row 0 and column 0
        1: upright,
        2: upright.flip(1),
        3: upright.flip(0, 1),
        4: upright.flip(0),
        5: upright.transpose(0, 1),
        6: torch.rot90(upright, 1),  # to be turned clockwise
        7: upright.transpose(0, 1).flip(0, 1),
        8: torch.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored.contiguous().numpy()).save(tmp_path / "a.png", exif=exif)
    assert torch.equal(both(tmp_path / "a.png"), upright.permute(2, 0, 1))


GREY16 = [[0, 257, 128 * 257], [65535, 300, 200 * 257 + 100]]
GREY8 = [[0, 1, 128], [255, 1, 200]]


@pytest.mark.fault("a PNG of 16 bits", "scaled, not clipped")
def test_16_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array(GREY16, np.uint16)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "I;16"
    assert both(tmp_path / "a.png").tolist() == [GREY8] * 3
    assert image_pixels(Image.fromarray(np.array(GREY16, np.int32)))[0].tolist() == [GREY8] * 3
    dark = Image.fromarray(np.array([[200, 0]], np.uint16))  # its range is 16 bits though no pixel needs them
    assert image_pixels(dark)[0, 0].tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 7, 255]], [[0, 7, 255]]),
        ([[-5, 1 << 30, 2**31 - 1]], [[0, 128, 255]]),
        ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),
        ([[-0.5, 100.0, 255.0]], [[0, 100, 255]]),
        ([[0.0, 32768.0, 65535.0]], [[0, 128, 255]]),
        ([[0.0, 5e8, 1e9]], [[0, 128, 255]]),
        ([[0.0, 0.0, 0.0]], [[0, 0, 0]]),
    ],
)
def test_wide_integers_and_floats_are_scaled_by_the_range_that_holds_them(
    tmp_path: Path, values: list[list[float]], expected: list[list[int]]
) -> None:
    whole = all(isinstance(value, int) for value in values[0])
    Image.fromarray(np.array(values, np.int32 if whole else np.float32)).save(tmp_path / "a.tiff")
    assert both(tmp_path / "a.tiff").tolist() == [expected] * 3


def test_floats_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"a\.tiff: its pixels hold NaN"):
        read_image(tmp_path / "a.tiff")


def test_cmyk_palettes_and_grey(tmp_path: Path) -> None:
    colours = torch.from_numpy(COLOURS).permute(2, 0, 1)
    Image.fromarray(COLOURS).convert("CMYK").save(tmp_path / "cmyk.tiff")
    assert torch.equal(both(tmp_path / "cmyk.tiff"), colours)
    Image.fromarray(COLOURS).quantize(6).save(tmp_path / "palette.png")
    assert torch.equal(both(tmp_path / "palette.png"), colours)
    grey = np.array([[0, 60], [255, 3], [9, 8]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert both(tmp_path / "grey.png").tolist() == [grey.tolist()] * 3
    Image.fromarray(grey > 50).save(tmp_path / "bits.png")
    assert both(tmp_path / "bits.png")[0].tolist() == [[0, 255], [255, 0], [0, 0]]


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 255, 51]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    expected = [[255, 0, 0], [255, 255, 255], [204, 204, 255]]
    assert both(tmp_path / "rgba.png").permute(1, 2, 0)[0].tolist() == expected
    Image.fromarray(rgba[..., 2:]).save(tmp_path / "la.png")
    assert both(tmp_path / "la.png")[0, 0].tolist() == [0, 255, 255]
    palette = Image.fromarray(COLOURS).quantize(6)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    shown = both(tmp_path / "palette.png").permute(1, 2, 0)
    assert shown[0].tolist() == [[255, 255, 255], [0, 255, 0], [0, 0, 255]]
    assert image_pixels(Image.fromarray(rgba).convert("RGBa"))[0, :, 0, 1].tolist() == [255, 255, 255]


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png: no such file"):
        read_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png: not a readable image"):
        read_image(tmp_path / "a.png")


@pytest.mark.fault("a picture is cut off", "an error that names it")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=rf"cut\.{suffix}: not a readable image") as error:
            read_image(path)
        assert "\n" not in str(error.value)
        try:
            opened = Image.open(path)
        except Exception:
            continue
        with opened, pytest.raises(InputError, match=rf"cut\.{suffix}: not a readable image"):
            as_frame(opened)


@pytest.mark.fault("a picture claims more pixels than are read", "one line that names it, before its memory is taken")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_more_pixels_than_are_read_is_named(tmp_path: Path) -> None:
    Image.new("1", (11600, 11600)).save(tmp_path / "bomb.png")  # 17 kB that Pillow only warns of
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"bomb\.png: holds 11600x11600 pixels, at most 134217728 are read: scale it"):
        read_image(tmp_path / "bomb.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.fault("a decompression bomb", "refused by name, before it is unpacked")
def test_a_decompression_bomb_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"bomb\.png: not a readable image .*decompression bomb"):
        read_image(tmp_path / "bomb.png")
