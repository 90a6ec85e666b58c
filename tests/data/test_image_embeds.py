"""What a system that sees pixels makes of given frames: encoded once a window, cached, checked, read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoding import encode
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy import BlockMeans, Toy

from contrastive_i2v.data.cache import load_clip
from contrastive_i2v.data.examples import WindowReader, encode_clips
from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.shard_encoding import encode_shards
from contrastive_i2v.data.shards import Shard, read_manifest
from contrastive_i2v.data.types import Clip
from contrastive_i2v.errors import InputError
from contrastive_i2v.system import Window


class Seeing(Toy):
    sees_pixels = True

    def __init__(self, window: Window = Window(3)) -> None:  # noqa: B008
        super().__init__(window, BlockMeans(2))
        self.seen: list[Tensor] = []

    def encode_image(self, pixels: Tensor, length: int) -> dict[str, Tensor]:
        self.seen.append(pixels)
        return {"mean": pixels.mean(dim=(3, 4)), "length": torch.full((len(pixels),), length)}


def test_each_window_has_its_own(clips: list[Clip], tmp_path: Path) -> None:
    system = Seeing()
    dataset, _ = encode(clips, system, tmp_path)
    assert len(system.seen) == len(dataset) and all(one.shape == (1, 1, 3, 16, 16) for one in system.seen)
    for example, pixels in zip(dataset, system.seen, strict=True):  # type: ignore[call-overload]
        assert torch.equal(example.image["mean"], pixels.mean(dim=(3, 4))[0]) and example.image["length"] == 3
    again = Seeing()
    encode(clips, again, tmp_path)
    assert again.seen == []  # cached


def test_several_given_frames_are_seen_together(clips: list[Clip], tmp_path: Path) -> None:
    system = Seeing(Window(4, (0, 1), anchor=True))
    dataset, _ = encode(clips[:1], system, tmp_path, frames=FramesConfig(windows_per_clip=1))
    assert system.seen[0].shape == (1, 3, 3, 16, 16)  # two latents are of three frames; the anchor is none of these
    assert dataset[0].image["mean"].shape == (3, 3)


def test_windows_of_several_lengths_differ(clips: list[Clip], tmp_path: Path) -> None:
    options = {"cache_dir": tmp_path, "resolution": 16, "frames": FramesConfig(), "seed": 0, "progress": False}
    for length in (2, 3):
        dataset, _ = encode_clips(clips[:1], Seeing(), lengths=[length], **options)  # type: ignore[arg-type]
        assert dataset[0].image["length"] == length


def test_damage_is_encoded_again(clips: list[Clip], tmp_path: Path) -> None:
    dataset, _ = encode(clips[:1], Seeing(), tmp_path)
    file, rows = dataset.files[0], dataset.examples[0].rows
    content, whole = file.read_bytes(), load_clip(file, rows)
    assert whole is not None and list(whole.images) == [rows[-1]]
    tensors = load_file(file)
    header = _header(file)
    name = f"image/{rows[-1]}/mean"
    for changed in (tensors | {name: tensors[name] + 1}, {key: tensors[key] for key in tensors if key != name}):
        save_file(changed, file, header)
        assert load_clip(file, rows) is None and load_clip(file) is None
        with pytest.raises(InputError, match="gone or damaged"):
            dataset[0]
        again, _ = encode(clips[:1], Seeing(), tmp_path)
        assert torch.equal(again[0].image["mean"], whole.images[rows[-1]]["mean"])
    file.write_bytes(content)
    assert load_clip(file, rows) is not None


def _header(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        found: dict[str, str] = handle.metadata()
    return found


def test_what_is_no_number_is_refused_by_name(clips: list[Clip], tmp_path: Path) -> None:
    class Broken(Seeing):
        def encode_image(self, pixels: Tensor, length: int) -> dict[str, Tensor]:
            return {"mean": torch.full((1, 2), torch.nan)}

    with pytest.raises(InputError, match="mean hold NaN or infinity"):
        encode(clips[:1], Broken(), tmp_path)


def test_shards_hold_it(clips: list[Clip], tmp_path: Path) -> None:
    system, frames = Seeing(), FramesConfig(windows_per_clip=2)
    dataset, _ = encode(clips, Seeing(), tmp_path / "cache", frames=frames)
    encode_shards(clips, system, tmp_path / "shards", WindowReader.of(system, 16, frames, seed=0), progress=False)
    manifest = read_manifest(str(tmp_path / "shards"))
    shard = Shard(str(tmp_path / "shards" / manifest.shards[0].name), manifest.shards[0])
    assert len(shard.examples) == len(dataset)
    expected = {tuple(dataset[i].image["mean"].flatten().tolist()) for i in range(len(dataset))}
    assert {tuple(shard[i].image["mean"].flatten().tolist()) for i in range(len(dataset))} == expected
