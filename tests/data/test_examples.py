"""Clips become examples, with a toy system whose codec averages 8x8 blocks: what is encoded, read, and left out."""

from __future__ import annotations

import csv
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoding import FRAMES, encode, encoded, files_in, write_noise
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from toy import BlockMeans, Toy

from contrastive_i2v.data import examples
from contrastive_i2v.data.examples import (
    SKIPPED,
    Example,
    encode_clip_frames,
    report_skipped,
    write_skipped,
)
from contrastive_i2v.data.frames import FramesConfig, clip_rng, sample_windows, valid_frames
from contrastive_i2v.data.types import Clip, NoClipLeft, Skipped
from contrastive_i2v.data.video import probe, read_frames, resize_frames
from contrastive_i2v.errors import InputError
from contrastive_i2v.system import Text, Window

EVERY = FramesConfig(offset_std=0, windows_per_clip=200)
"""Neighbouring frames from every source."""


def test_pairs_are_the_sampled_frames_encoded(clips: list[Clip], tmp_path: Path) -> None:
    system = Toy()
    dataset, skipped = encode(clips, system, tmp_path / "cache")
    assert not skipped and dataset.clips == clips
    expected = []
    for index, clip in enumerate(clips):
        drawn = sample_windows(valid_frames(probe(clip.path), clip, FRAMES), Window(2), FRAMES, clip_rng(clip, 0))
        expected += [(index, window.frames, (True, True), 5.0 / window.offset, ()) for window in drawn]
    assert dataset.examples == expected and len(dataset) == len(expected)
    for item, (index, frames, _, fps, _) in zip((dataset[i] for i in range(len(dataset))), expected, strict=True):
        assert torch.equal(item.raw, encoded(clips[index], frames))  # [2, 6, 2, 2]
        assert torch.equal(item.text["prompt_embeds"], Toy().encode_text([clips[index].caption])["prompt_embeds"][0])
        assert item.group.item() == index
        assert item.present.dtype == torch.bool and item.present.tolist() == [True, True]
        assert item.fps.dtype == torch.float32 and item.fps.item() == pytest.approx(fps)


def test_only_the_needed_frames_are_encoded_once(clips: list[Clip], tmp_path: Path) -> None:
    system = Toy()
    dataset, _ = encode(clips, system, tmp_path / "cache")
    needed = {(one.clip, frame) for one in dataset.examples for frame in one.rows}
    assert system.codec.frames == len(needed) and system.prompts == [c.caption for c in clips]


def test_a_full_cache_opens_no_video_and_encodes_nothing(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = encode(clips, Toy(), tmp_path / "cache")
    before = files_in(tmp_path / "cache")
    monkeypatch.setattr(examples.ClipReader, "probe", None)
    monkeypatch.setattr(examples.ClipReader, "read", None)
    system = Toy()
    again, _ = encode(clips, system, tmp_path / "cache")
    assert system.codec.frames == 0 and not system.prompts and files_in(tmp_path / "cache") == before
    assert again.examples == first.examples
    assert torch.equal(again[0].raw, first[0].raw)


def test_other_pairs_encode_only_the_missing_frames(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, _ = encode(clips[:1], Toy(), cache)
    held = {frame for one in first.examples for frame in one.rows}
    system, more = Toy(), replace(FRAMES, windows_per_clip=5)
    second, _ = encode(clips[:1], system, cache, frames=more, seed=1)
    needed = {frame for one in second.examples for frame in one.rows}
    assert needed - held and needed & held  # else this tests nothing
    assert system.codec.frames == len(needed - held) and not system.prompts
    fresh, _ = encode(clips[:1], Toy(), tmp_path / "b", frames=more, seed=1)
    assert fresh.examples == second.examples
    for i in range(len(fresh)):
        assert torch.equal(fresh[i].raw, second[i].raw)
    assert torch.equal(first[0].raw, encode(clips[:1], Toy(), cache)[0][0].raw)


def test_windows_of_every_kind_share_a_cache(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    pairs, _ = encode(clips[:1], Toy(), cache)
    held = {frame for one in pairs.examples for frame in one.rows}
    system = Toy(Window(4, given=(0, 1, 2), anchor=True))
    dataset, _ = encode(clips[:1], system, cache, seed=2)
    needed = {frame for one in dataset.examples for frame in one.rows}
    assert needed - held and needed & held  # else this tests nothing
    assert system.codec.frames == len(needed - held) and not system.prompts
    assert {False} < {there for one in dataset.examples for there in one.present}  # some frame is missing
    for i, one in enumerate(dataset.examples):
        assert torch.equal(dataset[i].raw, encoded(clips[0], one.rows))  # [anchor and 4 frames, 6, 2, 2]
        assert dataset[i].raw.shape == (5, 6, 2, 2) and one.rows[0] == 0
        assert dataset[i].present.tolist() == list(one.present)
    again = Toy()
    assert encode(clips[:1], again, cache)[0].examples == pairs.examples and again.codec.frames == 0
    assert len(files_in(cache)) == 1


def test_a_codec_that_compresses_time_is_cached_by_what_its_latents_depend_on(
    clips: list[Clip], tmp_path: Path
) -> None:
    """Every latent frame but the first is made of two more frames, and depends on all before it in the window."""
    cache, clip = tmp_path / "cache", clips[0]

    def windows(window: Window, frames: FramesConfig) -> list[tuple[int, ...]]:
        valid = valid_frames(probe(clip.path), clip, frames)
        drawn = sample_windows(valid, window, frames, clip_rng(clip, 0), temporal_downscale=2)
        return [one.frames for one in drawn]

    system = Toy(Window(3), BlockMeans(2))
    dataset, _ = encode([clip], system, cache, frames=EVERY)
    drawn = windows(Window(3), EVERY)
    assert sorted(drawn) == [tuple(range(5 * i, 5 * i + 25, 5)) for i in range(8)]  # of 12 valid frames
    assert system.codec.frames == 8 * 5
    for i, frames in enumerate(drawn):
        assert torch.equal(dataset[i].raw, encoded(clip, frames, temporal_downscale=2))  # [3, 6, 2, 2]
        assert dataset[i].present.tolist() == [True] * 3
    for latent in (1, 2):  # the same frame at the end of other windows is another latent
        assert len({one.rows[latent] for one in dataset.examples}) == 8

    shorter = Toy(Window(2), BlockMeans(2))
    shorter_set, _ = encode([clip], shorter, cache, frames=EVERY)
    drawn = windows(Window(2), EVERY)
    assert len(drawn) == 10 and shorter.codec.frames == 2 * 3  # eight of them begin a longer one
    for i, frames in enumerate(drawn):
        assert torch.equal(shorter_set[i].raw, encoded(clip, frames, temporal_downscale=2))

    anchored = Toy(Window(3, anchor=True), BlockMeans(2))
    wider = FramesConfig(offset_std=3, windows_per_clip=6)
    anchored_set, _ = encode([clip], anchored, cache, frames=wider)
    drawn = windows(Window(3, anchor=True), wider)
    assert {frames[2] - frames[1] for frames in drawn} == {5, 10}
    for i, frames in enumerate(drawn):
        alone, window = encoded(clip, frames[:1]), encoded(clip, frames[1:], temporal_downscale=2)
        torch.testing.assert_close(anchored_set[i].raw, torch.cat([alone, window]), rtol=0, atol=0)
    again = Toy(Window(3), BlockMeans(2))
    assert encode([clip], again, cache, frames=EVERY)[0].examples == dataset.examples
    assert again.codec.frames == 0
    assert torch.equal(dataset[0].raw, encoded(clip, windows(Window(3), EVERY)[0], temporal_downscale=2))


def test_a_codec_with_other_latents_than_it_says_is_refused(clips: list[Clip], tmp_path: Path) -> None:
    class Short(BlockMeans):
        def encode(self, pixels: Tensor) -> Tensor:
            return super().encode(pixels)[:, :-1]

    with pytest.raises(ValueError, match=r"codec.encode: expected \[1, 5, R, h, w\] of pixels .*got \[1, 4, 6, 2, 2\]"):
        encode(clips, Toy(Window(5), Short()), tmp_path / "cache", frames=replace(EVERY, windows_per_clip=1))
    with pytest.raises(ValueError, match=r"codec.encode: expected \[2, 3, R, h, w\] of pixels .*got \[2, 2, 6, 2, 2\]"):
        encode(clips, Toy(Window(3), Short(2)), tmp_path / "cache")


def test_texts_keep_their_masks_and_indices(clips: list[Clip], tmp_path: Path) -> None:
    clips = [clips[0], replace(clips[1], caption="ab")]
    dataset, _ = encode(clips, Toy(codec=BlockMeans(dtype=torch.bfloat16)), tmp_path / "cache")
    for i, one in enumerate(dataset.examples):
        text = dataset[i].text
        expected = Toy(codec=BlockMeans(dtype=torch.bfloat16)).encode_text([clips[one.clip].caption])
        assert text.keys() == expected.keys() == {"prompt_embeds", "mask", "length"}
        assert text["prompt_embeds"].dtype == torch.float32
        assert text["mask"].dtype == torch.bool and text["length"].dtype == torch.int64
        assert all(torch.equal(text[name], expected[name][0].to(text[name].dtype)) for name in text)
    assert dataset[3].text["mask"].tolist() == [True, True, False] and dataset[3].text["length"].item() == 2
    batch = default_collate([dataset[i] for i in range(len(dataset))])
    assert batch.text["mask"].dtype == torch.bool and batch.text["mask"].shape == (4, 3)
    assert batch.text["length"].tolist() == [9, 9, 2, 2]


def test_rectangles(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    encode(clips[:1], Toy(), cache, resolution=16)
    system = Toy()
    dataset, _ = encode(clips[:1], system, cache, resolution=(16, 24))
    assert system.codec.frames > 0  # nothing of the square's
    for i, one in enumerate(dataset.examples):
        assert dataset[i].raw.shape == (2, 6, 2, 3)
        assert torch.equal(dataset[i].raw, encoded(clips[0], one.rows, (16, 24)))
    for resolution, encodes in (((16, 24), False), ((16, 16), False), ((24, 16), True)):
        again = Toy()
        encode(clips[:1], again, cache, resolution=resolution)
        assert (again.codec.frames > 0) == encodes
    names = sorted(folder.name.split("-")[0] for folder in cache.iterdir())
    assert names == ["16px", "16x24px", "24x16px"]


def test_half_precision_is_stored_as_it_is_and_read_as_float32(clips: list[Clip], tmp_path: Path) -> None:
    half, _ = encode(clips, Toy(codec=BlockMeans(dtype=torch.bfloat16)), tmp_path / "half")
    full, _ = encode(clips, Toy(), tmp_path / "full")
    assert half[0].raw.dtype == half[0].text["prompt_embeds"].dtype == torch.float32
    assert torch.equal(half[0].raw, full[0].raw.bfloat16().float())
    assert half.files[0].stat().st_size < full.files[0].stat().st_size


def test_bad_clips_are_left_out_with_their_reasons(clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    bad = [
        Clip(tmp_path / "bad.mp4", "x"),
        Clip(tmp_path / "gone.mp4", "x"),
        Clip(write_noise(tmp_path / "short.mp4", frames=4), "x"),
        Clip(clips[0].path, "x", start=9.0),
    ]
    mixed = [bad[0], clips[0], *bad[1:], clips[1]]
    dataset, skipped = encode(mixed, Toy(), tmp_path / "cache")
    assert dataset.clips == clips[:2] and {one.clip for one in dataset.examples} == {0, 1}
    assert [s.path for s in skipped] == [c.path for c in bad]
    assert "can't be decoded" in skipped[0].reason and "bad.mp4: " not in skipped[0].reason[:12]
    assert "No such file" in skipped[1].reason and "too short" in skipped[2].reason
    assert "no frame from 9 s" in skipped[3].reason
    text = report_skipped(skipped, show=2)
    assert text.splitlines()[0] == "left out 4 clips:" and text.splitlines()[-1] == "  and 2 more"
    assert f"  {bad[0].path}: can't be decoded" in text and not report_skipped([])

    with pytest.raises(InputError, match=r"none of the 4 clips can be used: .*bad\.mp4: can't.*; .*short\.mp4: too"):
        encode(bad, Toy(), tmp_path / "cache")
    with pytest.raises(InputError, match=r"^none of the 3 clips can be used: .*too long: 2\.4 s, at most 1 s"):
        encode(clips, Toy(), tmp_path / "cache", frames=FramesConfig(max_seconds=1))
    with pytest.raises(InputError, match="at least one clip"):
        encode([], Toy(), tmp_path / "cache")


def test_everything_left_out_is_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cache" / SKIPPED
    write_skipped(file, [])
    assert not file.parent.exists()
    names = [*(f"{n:02}.mp4" for n in range(38)), 'a "b",\udcff.mp4']
    skipped = [Skipped(tmp_path / name, "no frames,\nsays it") for name in names]
    write_skipped(file, skipped)
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.reader(opened))
    assert rows[0] == ["path", "reason"] and len(rows) == 40
    assert rows[1] == [str(tmp_path / "00.mp4"), "no frames,\nsays it"]
    assert rows[-1][0] == str(tmp_path / 'a "b",\\udcff.mp4')
    text = report_skipped(skipped, file=file)
    assert text.splitlines()[-1] == f"  all of them: {file}"
    write_skipped(file, [])  # of a later run
    assert file.read_text() == "path,reason\n"


def test_when_no_clip_is_left_the_error_has_all(tmp_path: Path) -> None:
    bad = []
    for n in range(7):
        (tmp_path / f"{n}.mp4").write_bytes(b"none")
        bad.append(Clip(tmp_path / f"{n}.mp4", "a"))
    with pytest.raises(NoClipLeft, match=r"none of the 7 clips .*0\.mp4: .*4\.mp4: .*; and 2 more$") as raised:
        encode(bad, Toy(), tmp_path / "cache")
    assert [one.path for one in raised.value.skipped] == [clip.path for clip in bad]
    assert not list((tmp_path / "cache").rglob(SKIPPED))


def test_clips_too_short_for_the_systems_window_are_left_out(clips: list[Clip], tmp_path: Path) -> None:
    """12 valid frames: enough for 12 in a window, or for 6 latent frames of two frames each after the first."""
    for system, fits in (
        (Toy(Window(12)), True),
        (Toy(Window(13)), False),
        (Toy(Window(14, given=(0, 1, 2))), True),
        (Toy(Window(6), BlockMeans(2)), True),
        (Toy(Window(7), BlockMeans(2)), False),
    ):
        if fits:
            assert len(encode(clips, system, tmp_path / "cache")[0]) >= 3
        else:
            with pytest.raises(InputError, match=r"too short: 2\.40 s hold fewer than 13 frames at 5 a second"):
                encode(clips, system, tmp_path / "cache")


def test_a_container_that_overstates_its_length_by_one(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 frames, 61 by the header: frame 60 would be valid, and every source's next frame may be it."""
    monkeypatch.setattr(examples.ClipReader, "probe", lambda self: replace(probe(self.clip.path), frames=61))
    dataset, skipped = encode(clips[:1], Toy(), tmp_path / "cache", frames=EVERY)
    assert not skipped and sorted(one.rows for one in dataset.examples) == [(i, i + 5) for i in range(0, 55, 5)]

    video = Toy(Window(3), BlockMeans(2))
    dataset, skipped = encode(clips[2:], video, tmp_path / "cache", frames=EVERY)
    assert not skipped and len(dataset) == 8

    monkeypatch.setattr(examples.ClipReader, "probe", lambda self: replace(probe(self.clip.path), frames=81))
    with pytest.raises(InputError, match="none of the 1 clips can be used: .*can't be decoded"):
        encode(clips[1:2], Toy(), tmp_path / "cache", frames=EVERY)


@pytest.mark.fault("encoding is interrupted", "the same command encodes what is missing and nothing twice")
def test_an_interrupted_run_goes_on(clips: list[Clip], tmp_path: Path) -> None:
    interrupted = Toy()

    class Interrupted(BlockMeans):
        def encode(self, pixels: Tensor) -> Tensor:
            if len(interrupted.prompts) == 2:
                raise KeyboardInterrupt
            return super().encode(pixels)

    interrupted.codec = Interrupted()
    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        encode(clips, interrupted, cache)
    held = files_in(cache)
    assert len(held) == 2
    system = Toy()
    dataset, _ = encode(clips, system, cache)
    assert system.prompts == [clips[2].caption] and {one.clip for one in dataset.examples} == {0, 1, 2}
    assert held.items() <= files_in(cache).items()


@pytest.mark.fault("an autoencoder's latents are NaN", "an error that names the clip; none is cached")
def test_latents_that_are_not_finite_are_refused(clips: list[Clip], tmp_path: Path) -> None:
    class Broken(BlockMeans):
        def encode(self, pixels: Tensor) -> Tensor:
            return super().encode(pixels) / 0

    with pytest.raises(InputError, match=r"0\.mp4: the encoder's latents hold NaN or infinity in torch.float32"):
        encode(clips, Toy(codec=Broken()), tmp_path / "cache")

    class Speechless(Toy):
        def encode_text(self, prompts: list[str]) -> Text:  # type: ignore[override]
            text = super().encode_text(prompts)
            return text | {"prompt_embeds": text["prompt_embeds"] * torch.nan}

    with pytest.raises(InputError, match=r"0\.mp4: prompt_embeds of 'caption 0' hold NaN or infinity in torch.float32"):
        encode(clips, Speechless(), tmp_path / "cache")
    assert not files_in(tmp_path / "cache")


def test_clips_of_one_video_are_one_group(clips: list[Clip], tmp_path: Path) -> None:
    mixed = [clips[1], clips[0], replace(clips[1], caption="other words"), replace(clips[0], start=1.0)]
    dataset, _ = encode(mixed, Toy(), tmp_path / "cache")
    groups = {dataset.examples[i].clip: dataset[i].group.item() for i in range(len(dataset))}
    assert groups == {0: 0, 1: 1, 2: 0, 3: 1}


def test_batches_from_worker_processes(clips: list[Clip], tmp_path: Path) -> None:
    dataset, _ = encode(clips, Toy(), tmp_path / "cache")
    assert pickle.loads(pickle.dumps(dataset)).examples == dataset.examples
    loader = DataLoader(dataset, batch_size=4, num_workers=1)
    batches = list(loader)
    assert all(isinstance(batch, Example) for batch in batches)
    batch = batches[0]
    assert batch.raw.shape == (4, 2, 6, 2, 2) and batch.text["prompt_embeds"].shape == (4, 3, 2)
    assert batch.present.shape == (4, 2) and batch.fps.shape == (4,)
    assert batch.group.dtype == torch.int64 and batch.group.tolist() == [0, 0, 1, 1]
    for i in range(4):
        assert torch.equal(batch.raw[i], dataset[i].raw)
        assert torch.equal(batch.fps[i], dataset[i].fps)
        assert torch.equal(batch.text["prompt_embeds"][i], dataset[i].text["prompt_embeds"])


def test_encode_clip_frames_in_batches(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "FRAMES_AT_ONCE", 5)
    system = Toy()
    frames = list(range(0, 60, 5))
    given = [*range(12), 20]
    pixels, raw = encode_clip_frames(clips[0], system, (16, 16), frames, given=given)
    assert torch.equal(pixels, resize_frames(read_frames(clips[0].path, frames), 16))
    assert torch.equal(raw, encoded(clips[0], [*frames, 55])) and system.codec.frames == 13
    video = Toy(Window(6), BlockMeans(2))  # each for itself, whatever the length of the video
    _, raw = encode_clip_frames(clips[0], video, (16, 16), frames, given=[0, 3])
    assert torch.equal(raw, encoded(clips[0], [0, 15]))
    assert encode_clip_frames(clips[0], system, (16, 16), frames, given=[])[1].shape == (0, 6, 2, 2)


def test_resolution_is_checked(clips: list[Clip], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resolution: expected pixels >= 1, got 0"):
        encode(clips, Toy(), tmp_path, resolution=0)


def test_a_slow_video_says_its_own_rate(tmp_path: Path) -> None:
    """25 frames a second, of which 100 were asked for: windows of neighbours are 25 a second, of the next ones 12.5."""
    clip = Clip(write_noise(tmp_path / "a.mp4"), "noise")
    frames = FramesConfig(frame_rate=100.0, max_offset=2, windows_per_clip=8)
    rates = {example.fps for example in encode([clip], Toy(), tmp_path / "cache", frames=frames)[0].examples}
    assert rates == {25.0, 12.5}
