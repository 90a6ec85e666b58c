"""Turned videos, seeking, and files that lie: by both decoders, pixel by pixel."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from contrastive_i2v.data import decoding
from contrastive_i2v.data.video import VideoError, VideoInfo, probe, read_frames, write_video
from contrastive_i2v.errors import InputError

DECODERS = ["pyav", *(["decord"] if find_spec("decord") else [])]
ONE = 1 << 16
TURNS = {  # a, b, c, d of the display matrix, and the picture that is to be seen, from the stored one
    "none": ((ONE, 0, 0, ONE), lambda stored: stored),
    "90": ((0, ONE, -ONE, 0), lambda stored: torch.rot90(stored, -1, (-2, -1))),  # clockwise
    "180": ((-ONE, 0, 0, -ONE), lambda stored: torch.rot90(stored, 2, (-2, -1))),
    "270": ((0, -ONE, ONE, 0), lambda stored: torch.rot90(stored, 1, (-2, -1))),
    "mirrored": ((-ONE, 0, 0, ONE), lambda stored: stored.flip(-1)),
    "transposed": ((0, ONE, ONE, 0), lambda stored: stored.transpose(-2, -1)),
}


@pytest.fixture(params=DECODERS)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CI2V_DECODER", request.param)
    return str(request.param)


def asymmetric(frames: int) -> Tensor:
    """Red, green, blue and black quarters, and a white spot that moves: uint8 `[F, 3, 48, 96]`."""
    pixels = torch.zeros(frames, 3, 48, 96, dtype=torch.uint8)
    pixels[:, 0, :24, :48] = pixels[:, 1, :24, 48:] = pixels[:, 2, 24:, :48] = 220
    for index in range(frames):
        pixels[index, :, 4:12, 2 * index : 2 * index + 8] = 255
    return pixels


def patch(path: Path, box: bytes, old: bytes, new: bytes) -> Path:
    """`path` with `old` behind the name of the box `box` overwritten by as many bytes."""
    content = path.read_bytes()
    start = content.index(old, content.index(box))
    assert len(old) == len(new)
    path.write_bytes(content[:start] + new + content[start + len(old) :])
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    a, b, c, d = matrix
    same = struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
    return patch(path, b"tkhd", same, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))


@pytest.mark.fault("a video is stored turned or mirrored", "its frames come upright")
@pytest.mark.parametrize("name", TURNS)
def test_turned_videos_come_upright(tmp_path: Path, decoder: str, name: str) -> None:
    matrix, upright = TURNS[name]
    path = tmp_path / "a.mp4"
    write_video(path, asymmetric(12), 10.0)
    stored = read_frames(path, [0, 5, 11])
    assert (stored.float() - asymmetric(12)[[0, 5, 11]].float()).abs().mean() < 4
    expected = upright(stored)
    turn(path, matrix)
    frames = read_frames(path, [0, 5, 11])
    assert torch.equal(frames, expected)
    assert probe(path) == VideoInfo(12, 10.0, *expected.shape[-2:])


def claim_frames(path: Path, frames: int, claimed: int, delta: int = 1024) -> Path:
    """The count of `stts` (frames of equal duration) is what the header says the file holds."""
    return patch(path, b"stts", struct.pack(">III", 1, frames, delta), struct.pack(">III", 1, claimed, delta))


def write_liar(path: Path) -> Path:
    """15 frames whose header claims 2^32 - 1 of them: decord 0.6 ends the process over it."""
    write_video(path, asymmetric(15), 12.5)
    return claim_frames(path, 15, 2**32 - 1)


@pytest.mark.fault(
    "a header claims 4 billion frames, over which decord ends the process", "those that are there are read"
)
def test_a_header_that_claims_billions_of_frames_is_not_believed(tmp_path: Path, decoder: str) -> None:
    """In a process of its own, which must live to tell."""
    path = write_liar(tmp_path / "liar.mp4")
    code = (
        "import sys; from pathlib import Path; from contrastive_i2v.data.video import probe, read_frames\n"
        "path = Path(sys.argv[1]); print(probe(path).frames, tuple(read_frames(path, [0, 14]).shape))"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-500:]
    assert ran.stdout.split("\n")[0] == "15 (2, 3, 48, 96)"


def write_groups(path: Path, frames: Tensor, group: int, bframes: int = 2) -> Path:
    """H.264 with a keyframe every `group` frames."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[-2:], "yuv420p"
        stream.options = {"x264-params": f"keyint={group}:min-keyint={group}:scenecut=0:bframes={bframes}:open-gop=0"}
        for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
@pytest.mark.parametrize("group", [1, 2, 10])
def test_seeking_gives_the_frames_of_decoding_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, group: int
) -> None:
    noise = torch.randint(256, (45, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = write_groups(tmp_path / f"a.{suffix}", noise, group)
    every = read_frames(path, range(45))
    assert len(every) == 45
    decoded = 0
    original = decoding.PyavVideo._upright

    def count(self: decoding.PyavVideo, frame: object) -> Tensor:
        nonlocal decoded
        decoded += 1
        return original(self, frame)

    monkeypatch.setattr(decoding, "SEEK_PIXELS", 0)
    monkeypatch.setattr(decoding, "SEEK_FRAMES", 1)
    monkeypatch.setattr(decoding.PyavVideo, "_upright", count)
    for indices in ([44], [0, 44], [12, 33], [19, 20, 21, 40], [9, 10, 11, 29, 30], [30, 3, 30]):
        decoded = 0
        assert torch.equal(read_frames(path, indices), every[indices])
        assert decoded == len(set(indices))  # at once, without falling back
    with pytest.raises(VideoError, match="has no frame 45"):
        read_frames(path, [3, 45])


def test_a_seek_decodes_from_the_keyframe_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_groups(tmp_path / "a.mp4", asymmetric(40), 10)
    monkeypatch.setattr(decoding, "SEEK_PIXELS", 0)
    monkeypatch.setattr(decoding, "SEEK_FRAMES", 1)

    def no(*_: object) -> None:
        raise AssertionError("decoded from the start")

    monkeypatch.setattr(decoding.PyavVideo, "read_in_order", no)
    original = decoding.PyavVideo._check_time
    steps = []
    monkeypatch.setattr(decoding.PyavVideo, "_check_time", lambda self: steps.append(1) or original(self))
    assert read_frames(path, [0, 15, 38]).shape == (3, 3, 48, 96)
    assert len(steps) <= 80  # 40 packets looked at, and those of 16 frames and of the few that the decoder holds back


@pytest.mark.fault("decoding a video takes too long", "it is refused after `CI2V_DECODE_SECONDS`, by name")
def test_decoding_stops_at_its_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "slow.mp4"
    write_video(path, asymmetric(12), 10.0)
    monkeypatch.setattr(decoding.PyavVideo, "_check_time", lambda self: None)  # then reading is what takes long
    monkeypatch.setenv("CI2V_DECODE_SECONDS", "1e-9")
    with pytest.raises(VideoError, match=r"slow\.mp4: decoding took longer"):
        probe(path)
    monkeypatch.undo()
    clock = iter(range(10**6))
    monkeypatch.setattr(decoding, "time", SimpleNamespace(monotonic=lambda: next(clock)))  # a second a look
    monkeypatch.setenv("CI2V_DECODE_SECONDS", "1.5")
    for call in (lambda: probe(path), lambda: read_frames(path, [3])):
        with pytest.raises(VideoError, match=r"slow\.mp4: decoding took longer than 1\.5 s; CI2V_DECODE_SECONDS"):
            call()
    monkeypatch.undo()
    monkeypatch.setenv("CI2V_DECODE_SECONDS", "60")
    assert probe(path).frames == 12
    for bad in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("CI2V_DECODE_SECONDS", bad)
        with pytest.raises(InputError, match=f"CI2V_DECODE_SECONDS={bad}: expected a number") as error:
            probe(path)
        assert not isinstance(error.value, VideoError)


def test_another_decoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI2V_DECODER", "ffmpeg")
    with pytest.raises(InputError, match="CI2V_DECODER=ffmpeg: expected pyav or decord"):
        probe(tmp_path / "a.mp4")


@pytest.mark.fault("a video is a script that names other files or addresses", "it is not followed")
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_script_is_no_video(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / "other.mp4", asymmetric(2), 10.0)
    path = tmp_path / f"a.{suffix}"
    path.write_text("ffconcat version 1.0\nfile 'other.mp4'\n")
    with pytest.raises(VideoError, match=rf"a\.{suffix}: can't be decoded"):
        probe(path)
    with pytest.raises(VideoError, match=rf"a\.{suffix}: can't be decoded"):
        read_frames(path, [0])


@pytest.mark.fault(
    "a video claims frames of billions of pixels", "one line that names it, before their memory is taken"
)
def test_a_header_that_claims_billions_of_pixels_is_refused(tmp_path: Path) -> None:
    import av

    path = tmp_path / "bomb.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 96, "bgr24"
        container.mux(stream.encode(av.VideoFrame(96, 48, "bgr24")))
    patch(path, b"strf", struct.pack("<ii", 96, -48), struct.pack("<ii", 100_000, 100_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for call in (lambda: probe(path), lambda: read_frames(path, [0])):
        with pytest.raises(VideoError, match=r"bomb\.avi: can't be decoded"):
            call()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.fault("a video claims frames of an absurd size", "it is refused by name, before they are held")
def test_frames_of_an_absurd_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wide.mp4"
    write_video(path, asymmetric(2), 10.0)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 48 * 96 - 1)
    with pytest.raises(VideoError, match=r"wide\.mp4: .*claims 96x48 pixels"):
        probe(path)
