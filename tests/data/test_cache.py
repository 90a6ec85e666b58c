"""The latent cache on disk: its keys, the files that are there already, and disks that refuse."""

from __future__ import annotations

import hashlib
import json
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from encoding import encode, encoded, files_in, write_noise
from safetensors.torch import load_file, save_file
from toy import Toy

from contrastive_i2v.data import cache as caching
from contrastive_i2v.data.cache import cache_folder, load_clip, row_keys
from contrastive_i2v.data.types import Clip
from contrastive_i2v.errors import InputError
from contrastive_i2v.system import Text


def test_what_changes_the_result_changes_the_key(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    one = clips[:1]
    encode(one, Toy(), cache)

    def encodes(clip: Clip, system: Toy | None = None, resolution: int = 16) -> bool:
        system = system or Toy()
        encode([clip], system, cache, resolution=resolution)
        return system.codec.frames > 0

    assert not encodes(one[0])
    other = Toy()
    other.fingerprint = "other weights"
    assert encodes(one[0], other)
    assert encodes(one[0], resolution=24)
    assert encodes(replace(one[0], caption="another"))
    assert encodes(replace(one[0], start=0.2))
    assert encodes(replace(one[0], end=2.0))
    os.utime(one[0].path, ns=(0, 0))
    assert encodes(one[0])
    write_noise(one[0].path, seed=9)
    assert encodes(one[0])
    dataset, _ = encode(one, Toy(), cache)
    assert torch.equal(dataset[0].raw, encoded(one[0], dataset.examples[0].rows))


def test_preprocessing_version_is_in_the_key(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(clips[:1], Toy(), tmp_path)
    monkeypatch.setattr(caching, "PREPROCESSING", caching.PREPROCESSING + 1)
    system = Toy()
    encode(clips[:1], system, tmp_path)
    assert system.codec.frames > 0


def test_the_keys_of_squares_are_as_before_there_were_rectangles() -> None:
    assert cache_folder(Path("c"), "toy", (16, 16)) == Path("c/16px-a642ec9311d25afc50de62b56841b8be")


@pytest.mark.fault("a cache of an earlier version", "encoded again, and said")
def test_a_cache_without_checksums_is_encoded_again_and_that_is_said(
    clips: list[Clip], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layout and keys as they were before there were checksums; the latents are made up, so that reading them shows."""
    clip = clips[0]
    expected = encode([clip], Toy(), tmp_path / "other")[0]
    stat = clip.path.stat()
    parts = [str(clip.path), stat.st_size, stat.st_mtime_ns, "caption 0", None, None]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    file = tmp_path / "cache" / "16px-a642ec9311d25afc50de62b56841b8be" / f"{key}.safetensors"
    file.parent.mkdir(parents=True)
    about = {"path": str(clip.path), "caption": "caption 0", "start": None, "end": None}
    info = {"frames": 60, "fps": 25.0, "height": 32, "width": 48}
    tensors = {"frames": torch.arange(0, 60, 5), "moments": torch.randn(12, 6, 2, 2)}
    save_file(
        tensors | {"prompt_embeds": torch.arange(6.0).view(3, 2)}, file, {"clip": json.dumps({**about, "info": info})}
    )

    capsys.readouterr()
    dataset, _ = encode([clip], Toy(), tmp_path / "cache", progress=True)
    assert dataset.files == [file]
    assert torch.equal(dataset[0].raw, expected[0].raw)
    assert "encoded 1 clips anew" in capsys.readouterr().out
    encode([clip], Toy(), tmp_path / "cache", progress=True)
    assert "anew" not in capsys.readouterr().out


@pytest.mark.fault("a bit flips anywhere in a cached clip", "the entry is encoded again; no other value is ever read")
def test_no_flipped_byte_is_read_as_if_it_were_written(clips: list[Clip], tmp_path: Path) -> None:
    """Every byte of the header and every 7th of the rest: what is read is what was written, or nothing."""
    dataset, _ = encode(clips[:1], Toy(), tmp_path / "cache")
    file = dataset.files[0]
    content, whole = file.read_bytes(), load_clip(file)
    assert whole is not None
    header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for place in [*range(header), *range(header, len(content), 7)]:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        found = load_clip(file)
        refused += found is None
        if found is not None:
            assert found.rows == whole.rows and found.info == whole.info and torch.equal(found.raw, whole.raw)
            assert found.text.keys() == whole.text.keys()
            assert all(torch.equal(found.text[name], whole.text[name]) for name in whole.text)
    assert refused > len(content) // 8


@pytest.mark.fault("the header of a cached clip is damaged in any way", "the entry is encoded again")
@pytest.mark.parametrize(
    "said", ["[" * 3000, '"text"', "{}", '{"sums": []}', "null", '{"sums": {"clip": "", "text": []}}']
)
def test_a_header_of_any_kind_is_damage(clips: list[Clip], tmp_path: Path, said: str) -> None:
    file = encode(clips[:1], Toy(), tmp_path)[0].files[0]
    whole = load_clip(file)
    assert whole is not None
    save_file(load_file(file), file, {"clip": said})
    assert load_clip(file) is None and load_clip(file, whole.rows[:1]) is None


def test_a_changed_header_is_not_read_with_single_rows_either(clips: list[Clip], tmp_path: Path) -> None:
    file = encode(clips[:1], Toy(), tmp_path)[0].files[0]
    whole, content = load_clip(file), file.read_bytes()
    assert whole is not None
    old = rb"\"frames\": 60"
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, rb"\"frames\": 61"))
    assert load_clip(file, whole.rows[:1]) is None


@pytest.mark.fault("a cached clip claims a header or tensors of exabytes", "the entry is encoded again")
@pytest.mark.parametrize(
    "damage", ["truncate", "empty", "noise", "other tensors", "rows missing", "huge header", "huge tensor"]
)
def test_a_damaged_cache_file_is_encoded_again(clips: list[Clip], tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    before, _ = encode(clips[:1], Toy(), cache)
    file = before.files[0]
    content = file.read_bytes()
    expected = before[0]
    if damage == "truncate":
        file.write_bytes(content[:-5])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "noise":
        file.write_bytes(bytes(range(256)) * 8)
    elif damage == "huge header":
        file.write_bytes((1 << 60).to_bytes(8, "little") + content[8:])
    elif damage == "huge tensor":
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        header["moments"] |= {"shape": [1 << 40, 6, 2, 2], "data_offsets": [0, 1 << 60]}
        claimed = json.dumps(header).encode()
        file.write_bytes(len(claimed).to_bytes(8, "little") + claimed + content[8 + size :])
    elif damage == "other tensors":
        save_file({"x": torch.zeros(2)}, file)
    else:
        tensors = load_file(file)
        tensors["moments"] = tensors["moments"][:-1].contiguous()
        info = '{"info": {"frames": 60, "fps": 25.0, "height": 32, "width": 48}}'
        save_file(tensors, file, {"clip": info})
    with pytest.raises(InputError, match=r"\.safetensors: this cached latent is gone or damaged"):
        [before[i] for i in range(len(before))]
    system = Toy()
    after, _ = encode(clips[:1], system, cache)
    assert system.codec.frames > 0 and torch.equal(after[0].raw, expected.raw)
    assert file.read_bytes() == content


@pytest.mark.fault("the disk is full while latents are cached", "one line; what is encoded stays")
def test_a_full_disk_keeps_what_is_there_and_says_so(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    encode(clips[:1], Toy(), cache)
    held = files_in(cache)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))  # a real write that fails half-way
    try:
        with pytest.raises(InputError) as error:
            encode(clips, Toy(), cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(error.value)
    assert f"cache_dir {cache}: can't write the latents of 1.mp4" in message and "free some space" in message
    assert files_in(cache) == held


def test_a_cache_dir_that_is_a_file(clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cache_dir .*can't write the latents of 0.mp4 .*another cache_dir"):
        encode(clips, Toy(), tmp_path / "cache")


@pytest.mark.fault("two processes add frames to one cached clip", "the entry has both")
def test_another_process_adding_frames_meanwhile_loses_nothing(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    class Raced(Toy):
        def encode_text(self, prompts: list[str]) -> Text:  # type: ignore[override]
            encode(clips[:1], Toy(), cache, seed=1)  # the other process, between our read and our write
            return super().encode_text(prompts)

    ours, _ = encode(clips[:1], Raced(), cache, seed=0)
    system = Toy()
    theirs, _ = encode(clips[:1], system, cache, seed=1)
    assert system.codec.frames == 0 and ours.examples != theirs.examples
    for dataset in (ours, theirs):
        assert torch.equal(dataset[0].raw, encoded(clips[0], dataset.examples[0].rows))


def test_rows_of_an_image_codec_are_frames_and_of_a_video_codec_what_they_depend_on() -> None:
    assert row_keys([10, 15, 15], 1) == [10, 15, 15]
    keys = row_keys([0, 5, 10, 15, 20], 2)
    assert len(set(keys)) == 3 and all(0 <= key < 2**63 for key in keys)
    assert row_keys([0, 5, 10], 2) == keys[:2] and row_keys([0], 4) == keys[:1]
    assert row_keys([0, 7, 10], 2)[0] == keys[0] and row_keys([0, 7, 10], 2)[1] != keys[1]
    assert row_keys([0, 5, 10, 15, 20], 4) == [keys[0], keys[2]]
    assert row_keys([1, 5], 2) == row_keys([1], 2)


def test_a_file_is_read_row_by_row_in_the_order_asked_for(clips: list[Clip], tmp_path: Path) -> None:
    dataset, _ = encode(clips[:1], Toy(), tmp_path)
    whole = load_clip(dataset.files[0])
    assert whole is not None and whole.rows == sorted(whole.rows) and len(whole.rows) > 2
    order = [2, 0, 2]
    part = load_clip(dataset.files[0], [whole.rows[i] for i in order])
    assert part is not None and torch.equal(part.raw, whole.raw[order]) and part.info == whole.info
    assert load_clip(dataset.files[0], [whole.rows[0], 59]) is None and load_clip(tmp_path / "none") is None
