"""The latent cache, with an encoder that averages 8x8 blocks: what is encoded, kept, and left out."""

from __future__ import annotations

import os
import pickle
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from contrastive_i2v.data.latents import (
    LatentPair,
    LatentPairDataset,
    collate,
    encode_clip_frames,
    encode_clips,
    report_skipped,
)
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from contrastive_i2v.data import latents
from contrastive_i2v.data.frames import FramePairConfig, clip_rng, sample_pairs, valid_frames
from contrastive_i2v.data.types import Clip, Skipped
from contrastive_i2v.data.video import probe, read_frames, resize_frames, write_video
from contrastive_i2v.errors import InputError

PAIRS = FramePairConfig(pairs_per_clip=2)


class Averaging:
    """Moments: the means of 8x8 blocks, and those negated. Counts what it is asked."""

    fingerprint = "averaging"

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.frames = 0
        self.prompts: list[str] = []

    def encode_images(self, pixels: Tensor) -> Tensor:
        assert pixels.dtype == torch.float32 and pixels.abs().max() <= 1
        self.frames += len(pixels)
        means = F.avg_pool2d(pixels, 8).to(self.dtype)
        return torch.cat([means, -means], 1)

    def encode_prompts(self, prompts: list[str]) -> Tensor:
        self.prompts += prompts
        values = [[len(p), sum(map(ord, p)) / 1000] for p in prompts]
        return torch.tensor(values, dtype=self.dtype)[:, None].expand(-1, 3, -1)


def _write(path: Path, frames: int = 60, seed: int = 0) -> Path:
    noise = torch.rand(frames, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    write_video(path, (F.interpolate(noise, scale_factor=8) * 255).byte(), 25.0)
    return path


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    return [Clip(_write(tmp_path / f"{i}.mp4", seed=i), f"caption {i}") for i in range(3)]


def _encode(
    clips: list[Clip],
    encoder: Averaging,
    cache: Path,
    *,
    resolution: int = 16,
    pairs: FramePairConfig = PAIRS,
    seed: int = 0,
) -> tuple[LatentPairDataset, list[Skipped]]:
    return encode_clips(clips, encoder, cache_dir=cache, resolution=resolution, pairs=pairs, seed=seed, progress=False)


def _files(cache: Path) -> dict[Path, int]:
    return {f: f.stat().st_mtime_ns for f in cache.rglob("*") if f.is_file()}


def test_pairs_are_the_sampled_frames_encoded(clips: list[Clip], tmp_path: Path) -> None:
    encoder = Averaging()
    dataset, skipped = _encode(clips, encoder, tmp_path / "cache")
    assert not skipped and dataset.clips == clips
    expected = []
    for index, clip in enumerate(clips):
        drawn = sample_pairs(valid_frames(probe(clip.path), clip, PAIRS), PAIRS, clip_rng(clip, 0))
        expected += [(index, *pair) for pair in drawn]
    assert dataset.pairs == expected and len(dataset) == len(expected)
    for item, (index, source, target) in zip((dataset[i] for i in range(len(dataset))), expected, strict=True):
        pixels = resize_frames(read_frames(clips[index].path, [source, target]), 16)
        moments = Averaging().encode_images(pixels)  # [2, 6, 2, 2]
        assert torch.equal(item.source_moments, moments[0]) and torch.equal(item.target_moments, moments[1])
        assert torch.equal(item.prompt_embeds, Averaging().encode_prompts([clips[index].caption])[0])
        assert item.group.item() == index


def test_only_the_needed_frames_are_encoded_once(clips: list[Clip], tmp_path: Path) -> None:
    encoder = Averaging()
    dataset, _ = _encode(clips, encoder, tmp_path / "cache")
    needed = {(clip, frame) for clip, *frames in dataset.pairs for frame in frames}
    assert encoder.frames == len(needed) and encoder.prompts == [c.caption for c in clips]


def test_a_full_cache_opens_no_video_and_encodes_nothing(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = _encode(clips, Averaging(), tmp_path / "cache")
    before = _files(tmp_path / "cache")
    monkeypatch.setattr(latents, "probe", None)
    monkeypatch.setattr(latents, "read_frames", None)
    encoder = Averaging()
    again, _ = _encode(clips, encoder, tmp_path / "cache")
    assert encoder.frames == 0 and not encoder.prompts and _files(tmp_path / "cache") == before
    assert again.pairs == first.pairs
    assert torch.equal(again[0].target_moments, first[0].target_moments)


def test_other_pairs_encode_only_the_missing_frames(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, _ = _encode(clips[:1], Averaging(), cache)
    held = {frame for _, *frames in first.pairs for frame in frames}
    encoder = Averaging()
    second, _ = _encode(clips[:1], encoder, cache, pairs=replace(PAIRS, pairs_per_clip=5), seed=1)
    needed = {frame for _, *frames in second.pairs for frame in frames}
    assert needed - held and needed & held  # else this tests nothing
    assert encoder.frames == len(needed - held) and not encoder.prompts
    fresh, _ = _encode(clips[:1], Averaging(), tmp_path / "b", pairs=replace(PAIRS, pairs_per_clip=5), seed=1)
    assert fresh.pairs == second.pairs
    for i in range(len(fresh)):
        assert torch.equal(fresh[i].source_moments, second[i].source_moments)
    assert torch.equal(first[0].source_moments, _encode(clips[:1], Averaging(), cache)[0][0].source_moments)


def test_what_changes_the_result_changes_the_key(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    one = clips[:1]
    _encode(one, Averaging(), cache)

    def encodes(clip: Clip, encoder: Averaging | None = None, resolution: int = 16) -> bool:
        encoder = encoder or Averaging()
        _encode([clip], encoder, cache, resolution=resolution)
        return encoder.frames > 0

    assert not encodes(one[0])
    other = Averaging()
    other.fingerprint = "other weights"
    assert encodes(one[0], other)
    assert encodes(one[0], resolution=24)
    assert encodes(replace(one[0], caption="another"))
    assert encodes(replace(one[0], start=0.2))
    assert encodes(replace(one[0], end=2.0))
    os.utime(one[0].path, ns=(0, 0))
    assert encodes(one[0])
    _write(one[0].path, seed=9)
    assert encodes(one[0])
    dataset, _ = _encode(one, Averaging(), cache)
    pixels = resize_frames(read_frames(one[0].path, [dataset.pairs[0].source]), 16)
    assert torch.equal(dataset[0].source_moments, Averaging().encode_images(pixels)[0])


def test_preprocessing_version_is_in_the_key(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _encode(clips[:1], Averaging(), tmp_path)
    monkeypatch.setattr(latents, "PREPROCESSING", latents.PREPROCESSING + 1)
    encoder = Averaging()
    _encode(clips[:1], encoder, tmp_path)
    assert encoder.frames > 0


@pytest.mark.parametrize("damage", ["truncate", "empty", "noise", "other tensors", "rows missing"])
def test_a_damaged_cache_file_is_encoded_again(clips: list[Clip], tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    cache = tmp_path / "cache"
    before, _ = _encode(clips[:1], Averaging(), cache)
    file = before.files[0]
    content = file.read_bytes()
    expected = before[0]
    if damage == "truncate":
        file.write_bytes(content[:-5])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "noise":
        file.write_bytes(bytes(range(256)) * 8)
    elif damage == "other tensors":
        save_file({"x": torch.zeros(2)}, file)
    else:
        tensors = load_file(file)
        tensors["moments"] = tensors["moments"][:-1].contiguous()
        info = '{"info": {"frames": 60, "fps": 25.0, "height": 32, "width": 48}}'
        save_file(tensors, file, {"clip": info})
    with pytest.raises(InputError, match=r"\.safetensors: this cached latent is gone or damaged"):
        [before[i] for i in range(len(before))]
    encoder = Averaging()
    after, _ = _encode(clips[:1], encoder, cache)
    assert encoder.frames > 0 and torch.equal(after[0].source_moments, expected.source_moments)
    assert file.read_bytes() == content


def test_half_precision_is_stored_as_it_is_and_read_as_float32(clips: list[Clip], tmp_path: Path) -> None:
    half, _ = _encode(clips, Averaging(torch.bfloat16), tmp_path / "half")
    full, _ = _encode(clips, Averaging(), tmp_path / "full")
    assert half[0].source_moments.dtype == half[0].prompt_embeds.dtype == torch.float32
    assert torch.equal(half[0].source_moments, full[0].source_moments.bfloat16().float())
    assert half.files[0].stat().st_size < full.files[0].stat().st_size


def test_bad_clips_are_left_out_with_their_reasons(clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    bad = [
        Clip(tmp_path / "bad.mp4", "x"),
        Clip(tmp_path / "gone.mp4", "x"),
        Clip(_write(tmp_path / "short.mp4", frames=4), "x"),
        Clip(clips[0].path, "x", start=9.0),
    ]
    mixed = [bad[0], clips[0], *bad[1:], clips[1]]
    dataset, skipped = _encode(mixed, Averaging(), tmp_path / "cache")
    assert dataset.clips == clips[:2] and {pair.clip for pair in dataset.pairs} == {0, 1}
    assert [s.path for s in skipped] == [c.path for c in bad]
    assert "can't be decoded" in skipped[0].reason and "bad.mp4: " not in skipped[0].reason[:12]
    assert "No such file" in skipped[1].reason and "too short" in skipped[2].reason
    assert "no frame from 9 s" in skipped[3].reason
    text = report_skipped(skipped, show=2)
    assert text.splitlines()[0] == "left out 4 clips:" and text.splitlines()[-1] == "  and 2 more"
    assert f"  {bad[0].path}: can't be decoded" in text and not report_skipped([])

    with pytest.raises(InputError, match=r"none of the 4 clips can be used: .*bad\.mp4: can't.*; .*short\.mp4: too"):
        _encode(bad, Averaging(), tmp_path / "cache")
    with pytest.raises(InputError, match=r"^none of the 3 clips can be used: .*too long: 2\.4 s, at most 1 s"):
        _encode(clips, Averaging(), tmp_path / "cache", pairs=FramePairConfig(max_seconds=1))
    with pytest.raises(InputError, match="at least one clip"):
        _encode([], Averaging(), tmp_path / "cache")


def test_a_container_that_overstates_its_length_by_one(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 frames, 61 by the header: frame 60 would be valid, and every source's next frame may be it."""
    monkeypatch.setattr(latents, "probe", lambda path: replace(probe(path), frames=61))
    every = FramePairConfig(offset_std=0, pairs_per_clip=200)
    dataset, skipped = _encode(clips[:1], Averaging(), tmp_path / "cache", pairs=every)
    assert not skipped and sorted(p[1:] for p in dataset.pairs) == [(i, i + 5) for i in range(0, 55, 5)]

    monkeypatch.setattr(latents, "probe", lambda path: replace(probe(path), frames=81))
    with pytest.raises(InputError, match="none of the 1 clips can be used: .*can't be decoded"):
        _encode(clips[1:2], Averaging(), tmp_path / "cache", pairs=every)


def test_an_interrupted_run_goes_on(clips: list[Clip], tmp_path: Path) -> None:
    class Interrupted(Averaging):
        def encode_images(self, pixels: Tensor) -> Tensor:
            if len(self.prompts) == 2:
                raise KeyboardInterrupt
            return super().encode_images(pixels)

    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        _encode(clips, Interrupted(), cache)
    held = _files(cache)
    assert len(held) == 2
    encoder = Averaging()
    dataset, _ = _encode(clips, encoder, cache)
    assert encoder.prompts == [clips[2].caption] and {pair.clip for pair in dataset.pairs} == {0, 1, 2}
    assert held.items() <= _files(cache).items()


def test_a_full_disk_keeps_what_is_there_and_says_so(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    _encode(clips[:1], Averaging(), cache)
    held = _files(cache)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))  # a real write that fails half-way
    try:
        with pytest.raises(InputError) as error:
            _encode(clips, Averaging(), cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(error.value)
    assert f"cache_dir {cache}: can't write the latents of 1.mp4" in message and "free some space" in message
    assert _files(cache) == held


def test_a_cache_dir_that_is_a_file(clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cache_dir .*can't write the latents of 0.mp4 .*another cache_dir"):
        _encode(clips, Averaging(), tmp_path / "cache")


def test_latents_that_are_not_finite_are_refused(clips: list[Clip], tmp_path: Path) -> None:
    class Broken(Averaging):
        def encode_images(self, pixels: Tensor) -> Tensor:
            return super().encode_images(pixels) / 0

    with pytest.raises(InputError, match=r"0\.mp4: the encoder's latents hold NaN or infinity in torch.float32"):
        _encode(clips, Broken(), tmp_path / "cache")
    assert not _files(tmp_path / "cache")


def test_another_process_adding_frames_meanwhile_loses_nothing(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    class Raced(Averaging):
        def encode_prompts(self, prompts: list[str]) -> Tensor:
            _encode(clips[:1], Averaging(), cache, seed=1)  # the other process, between our read and our write
            return super().encode_prompts(prompts)

    ours, _ = _encode(clips[:1], Raced(), cache, seed=0)
    encoder = Averaging()
    theirs, _ = _encode(clips[:1], encoder, cache, seed=1)
    assert encoder.frames == 0 and ours.pairs != theirs.pairs
    for dataset in (ours, theirs):
        source = dataset.pairs[0].source
        pixels = resize_frames(read_frames(clips[0].path, [source]), 16)
        assert torch.equal(dataset[0].source_moments, Averaging().encode_images(pixels)[0])


def test_clips_of_one_video_are_one_group(clips: list[Clip], tmp_path: Path) -> None:
    mixed = [clips[1], clips[0], replace(clips[1], caption="other words"), replace(clips[0], start=1.0)]
    dataset, _ = _encode(mixed, Averaging(), tmp_path / "cache")
    groups = {dataset.pairs[i].clip: dataset[i].group.item() for i in range(len(dataset))}
    assert groups == {0: 0, 1: 1, 2: 0, 3: 1}


def test_batches_from_worker_processes(clips: list[Clip], tmp_path: Path) -> None:
    dataset, _ = _encode(clips, Averaging(), tmp_path / "cache")
    assert pickle.loads(pickle.dumps(dataset)).pairs == dataset.pairs
    loader = DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=1)
    batches = list(loader)
    assert all(isinstance(batch, LatentPair) for batch in batches)
    batch = batches[0].to("cpu")
    assert batch.source_moments.shape == (4, 6, 2, 2) and batch.prompt_embeds.shape == (4, 3, 2)
    assert batch.group.dtype == torch.int64 and batch.group.tolist() == [0, 0, 1, 1]
    for i in range(4):
        assert torch.equal(batch.target_moments[i], dataset[i].target_moments)
        assert torch.equal(batch.prompt_embeds[i], dataset[i].prompt_embeds)


def test_encode_clip_frames_in_batches(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latents, "FRAMES_AT_ONCE", 5)
    encoder = Averaging()
    frames = list(range(0, 60, 5))
    pixels, moments = encode_clip_frames(clips[0], encoder, 16, frames)
    assert torch.equal(pixels, resize_frames(read_frames(clips[0].path, frames), 16))
    assert torch.equal(moments, Averaging().encode_images(pixels)) and encoder.frames == 12


def test_resolution_is_checked(clips: list[Clip], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resolution: expected pixels >= 1, got 0"):
        _encode(clips, Averaging(), tmp_path, resolution=0)
