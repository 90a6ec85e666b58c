"""Writing and reading real H.264: the round trip, decord against PyAV, and files that can't be read."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from contrastive_i2v.data import decoding, video
from contrastive_i2v.data.images import read_image
from contrastive_i2v.data.shapes import ShapesConfig, render_scene, sample_scene
from contrastive_i2v.data.video import VideoError, VideoInfo, probe, read_frames, resize_frames, write_video
from contrastive_i2v.errors import InputError

decord_only = pytest.mark.skipif(find_spec("decord") is None, reason="decord has no wheel here")


def _gradient(frames: int, height: int, width: int) -> Tensor:
    """Smooth frames that differ from each other: uint8 `[F, 3, H, W]`."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    t = torch.linspace(0, 1, frames)[:, None, None]
    red, green = (40 + 160 * t).expand(frames, height, width), 40 + 160 * x * torch.ones_like(t)
    return torch.stack([red, green, 40 + 160 * y * torch.ones_like(t)], 1).round().byte()


def _noise(frames: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (frames, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "noisy.mp4"
    write_video(path, _noise(40, 48, 64), 25.0)
    return path


@pytest.mark.parametrize(("height", "width"), [(48, 64), (33, 47), (16, 31), (66, 36)])
def test_round_trip(tmp_path: Path, height: int, width: int) -> None:
    frames = _gradient(20, height, width)
    path = tmp_path / "new" / "a.mp4"
    write_video(path, frames, 12.5)
    padded = (height + height % 2, width + width % 2)
    assert probe(path) == VideoInfo(20, 12.5, *padded)
    back = read_frames(path, range(20))
    assert back.dtype == torch.uint8 and back.shape == (20, 3, *padded)
    error = (back[..., :height, :width].float() - frames.float()).abs()
    assert error.mean() < 3 and error.flatten(1).mean(1).max() < 4
    assert [p.name for p in path.parent.iterdir()] == ["a.mp4"]


def test_the_same_frames_make_the_same_file(tmp_path: Path) -> None:
    """Every time, though x264 decides differently from run to run where its macroblock tree is on."""
    scene = sample_scene(ShapesConfig(train_clips=24, test_clips=2, seed=3), "train", 10)
    frames = render_scene(scene, frames=80, size=64)
    found = set()
    for _ in range(20):
        write_video(tmp_path / "a.mp4", frames, 25.0)
        found.add((tmp_path / "a.mp4").read_bytes())
    assert len(found) == 1


@pytest.mark.parametrize("fps", [10.0, 25.0, 30000 / 1001])
def test_frame_rate_survives(tmp_path: Path, fps: float) -> None:
    write_video(tmp_path / "a.mp4", _gradient(12, 16, 16), fps)
    assert probe(tmp_path / "a.mp4").fps == pytest.approx(fps, rel=1e-6)


def test_frames_come_in_the_order_asked_for(noisy: Path) -> None:
    every = read_frames(noisy, list(range(40)))
    order = [31, 0, 39, 7, 7, 8]
    assert torch.equal(read_frames(noisy, order), every[order])


@decord_only
def test_pyav_reads_what_decord_reads(noisy: Path) -> None:
    indices = [0, 39, 13, 14, 13]
    assert torch.equal(decoding.read_decord(noisy, indices), decoding.read_pyav(noisy, indices))
    assert decoding.probe_decord(noisy) == decoding.probe_pyav(noisy) == VideoInfo(40, 25.0, 48, 64)


def test_pyav_stands_in_where_decord_is_asked_for_and_absent(noisy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_frames(noisy, [5, 20])

    def absent(path: Path) -> None:
        raise ModuleNotFoundError("No module named 'decord'", name="decord")

    monkeypatch.setattr(decoding, "open_decord", absent)
    monkeypatch.setenv("CI2V_DECODER", "decord")
    assert torch.equal(read_frames(noisy, [5, 20]), expected)
    assert probe(noisy).frames == 40
    with pytest.raises(VideoError, match="decord is not installed"):
        read_frames(noisy, [40])


def test_no_such_file_and_no_such_frame(noisy: Path, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"gone\.mp4: no such file"):
        probe(tmp_path / "gone.mp4")
    with pytest.raises(VideoError, match=r"noisy\.mp4: .*has no frame 40"):
        read_frames(noisy, [3, 40])
    for indices in ([], [-1]):
        with pytest.raises(ValueError, match="indices: expected at least one frame index >= 0"):
            read_frames(noisy, indices)


@pytest.mark.fault("a file that is no video", "an error that names it")
@pytest.mark.parametrize("content", [b"", b"not a video" * 100, b"\0" * 4096])
def test_a_file_that_is_no_video_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    for call in (lambda: probe(path), lambda: read_frames(path, [0])):
        with pytest.raises(VideoError, match=r"bad\.mp4: can't be decoded, the file is corrupt") as error:
            call()
        assert isinstance(error.value, InputError) and "\n" not in str(error.value)


@pytest.mark.fault("a video is cut off", "an error that names it")
@pytest.mark.parametrize("share", [0.3, 0.9, None])
def test_a_truncated_file_is_named(noisy: Path, tmp_path: Path, share: float | None) -> None:
    content = noisy.read_bytes()
    index = content.rindex(b"moov")  # at the end; None cuts inside it
    path = tmp_path / "cut.mp4"
    path.write_bytes(content[: int(share * index) if share else index + 200])
    with pytest.raises(VideoError, match=r"cut\.mp4: can't be decoded"):
        probe(path)


def test_a_truncated_file_with_its_index_in_front(noisy: Path, tmp_path: Path) -> None:
    """The header promises 40 frames; what is there reads exactly, what is cut off is an error."""
    import av

    whole, path = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    with av.open(str(noisy)) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    content = whole.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert probe(path).frames == 40
    assert torch.equal(read_frames(path, [0, 5]), read_frames(noisy, [0, 5]))
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        read_frames(path, [0, 38])


@pytest.mark.fault("writing a video fails", "no file, nor part of one")
def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"the old file")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match=r"a\.mp4: could not be written \(No space left on device\)"):
        write_video(path, _gradient(3, 16, 16), 5.0)
    assert path.read_bytes() == b"the old file" and list(tmp_path.iterdir()) == [path]


def test_resize_crops_the_centre() -> None:
    frames = torch.zeros(1, 3, 4, 8, dtype=torch.uint8)
    frames[..., 2:6] = 255
    assert torch.equal(resize_frames(frames, 4), torch.ones(1, 3, 4, 4))
    assert torch.equal(resize_frames(frames.mT, 4), torch.ones(1, 3, 4, 4))
    assert resize_frames(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 4).unique().tolist() == [-1.0]


def test_resize_to_a_rectangle_crops_the_centre() -> None:
    frames = torch.zeros(1, 3, 6, 12, dtype=torch.uint8)
    frames[..., 3:9] = 255  # the middle 6 columns of 6 rows
    assert torch.equal(resize_frames(frames, (6, 6)), resize_frames(frames, 6))
    assert torch.equal(resize_frames(frames, (6, 12)), frames.float() / 127.5 - 1)  # its own size

    def is_white(pixels: Tensor, size: tuple[int, int]) -> bool:
        return torch.allclose(resize_frames(pixels, size), torch.ones(1, 3, *size), atol=1e-6)

    assert is_white(frames, (12, 6)) and is_white(frames.mT, (6, 12))  # of the middle 3 columns, and rows
    assert is_white(frames, (6, 6)) and not is_white(frames, (6, 7))
    rows = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    rows[..., 2:6, :] = 255
    assert is_white(rows, (4, 8)) and is_white(rows.mT, (8, 4))  # cropped, not squashed
    assert not is_white(rows, (8, 4))


@pytest.mark.parametrize("size", [(7, 31), (48, 20), (16, 24)])
def test_a_rectangle_keeps_the_proportions_and_the_range(size: tuple[int, int]) -> None:
    height, width = 40, 60
    down = torch.linspace(0, 255, height)[:, None].expand(height, width)
    across = torch.linspace(0, 255, width).expand(height, width)
    pixels = resize_frames(torch.stack([down, across, down])[None].round().byte(), size)[0]
    assert pixels.shape == (3, *size) and pixels.abs().max() <= 1
    step_down = pixels[0].diff(dim=0)[1:-1].mean() * height  # of brightness, in pixels of the source
    step_across = pixels[1].diff(dim=1)[1:-1].mean() * width
    assert step_down / step_across == pytest.approx(1, rel=0.08)  # square pixels stay square


@pytest.mark.parametrize(("side", "size"), [(64, 16), (48, 7), (5, 32)])
def test_resize_keeps_the_range_and_antialiases(side: int, size: int) -> None:
    checker = ((torch.arange(side)[:, None] + torch.arange(side)) % 2 * 255).byte().expand(2, 3, side, side)
    small = resize_frames(checker, size)
    assert small.shape == (2, 3, size, size) and small.abs().max() <= 1
    if size < side:
        assert small.abs().max() < 0.2  # a checkerboard averages to grey; without antialiasing it aliases
    constant = resize_frames(torch.full((1, 3, side, side), 51, dtype=torch.uint8), size)
    torch.testing.assert_close(constant, torch.full((1, 3, size, size), 51 / 127.5 - 1), atol=1e-6, rtol=0)


def test_bytes_survive_the_way_to_floats_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    assert torch.equal(video.to_uint8(resize_frames(every, 16)), every)
    assert video.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_gif_and_strip(tmp_path: Path) -> None:
    from PIL import Image

    frames = torch.zeros(3, 3, 6, 9, dtype=torch.uint8)
    for index in range(3):
        frames[index, index] = 255  # red, green, blue
    video.write_gif(tmp_path / "a.gif", frames, 10.0)
    with Image.open(tmp_path / "a.gif") as gif:
        colours = []
        for index in range(gif.n_frames):
            gif.seek(index)
            colours.append(gif.convert("RGB").getpixel((4, 3)))
        assert colours == [(255, 0, 0), (0, 255, 0), (0, 0, 255)] and gif.info["duration"] == 100
    video.write_strip(tmp_path / "a.png", frames)
    strip = read_image(tmp_path / "a.png")
    assert torch.equal(strip, torch.cat(list(frames), -1)[None])
