"""Shards hold what the cache would, go on after a stop, find damage, and are read in an order that needs no state."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from encoding import FRAMES, encode, write_noise
from fsspec.implementations.memory import MemoryFileSystem
from toy import BlockMeans, Toy

from contrastive_i2v.data import shards
from contrastive_i2v.data.buckets import Bucket
from contrastive_i2v.data.examples import ExampleDataset, WindowReader, encode_clips
from contrastive_i2v.data.shard_encoding import _Journal, encode_shards
from contrastive_i2v.data.shard_order import Place, ShardOrder
from contrastive_i2v.data.shards import MANIFEST, ShardDataset, read_manifest
from contrastive_i2v.data.types import Clip, NoClipLeft
from contrastive_i2v.data.video import read_frames, write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import Window


@pytest.fixture
def many(tmp_path: Path) -> list[Clip]:
    """Seven clips, the fourth not a video."""
    clips = [Clip(write_noise(tmp_path / f"{i}.mp4", seed=i), f"caption {i}") for i in range(7)]
    clips[3].path.write_bytes(b"not a video")
    return clips


def reader(system: Toy, **changes: Any) -> WindowReader:
    return replace(WindowReader.of(system, 16, FRAMES, seed=0), **changes)


def write(clips: list[Clip], output: Path, system: Toy | None = None, **options: Any) -> Any:
    system = system or Toy()
    read = options.pop("read", reader(system))
    options = {"shard_bytes": 6000, "frames_at_once": 8, "progress": False} | options
    return encode_shards(clips, system, output, read, **options)


def by_raw(example: Any) -> list[float]:
    return example.raw.flatten().tolist()  # type: ignore[no-any-return]


def every_example(output: Path, system: Toy | None = None, **changes: Any) -> list[Any]:
    system = system or Toy()
    dataset = ShardDataset(str(output), system, reader(system, **changes), held=2)
    places = [Place(s, n) for s, one in enumerate(dataset.manifest.shards) for n in range(one.examples)]
    return sorted((dataset[[place]] for place in places), key=by_raw)


def same(one: Any, other: Any) -> bool:
    parts = zip(one[:2] + one[3:4], other[:2] + other[3:4], strict=True)
    return all(torch.equal(a, b) for a, b in parts) and all(torch.equal(one.text[k], other.text[k]) for k in one.text)


BUCKETS = ((16, 24), (24, 16))


def turn(clips: list[Clip]) -> None:
    """Make wide videos tall; what isn't a video stays."""
    for clip in clips:
        if clip.path.stat().st_size > 100:
            write_video(clip.path, read_frames(clip.path, range(60)).mT, 25.0)


def test_a_shard_is_of_one_bucket_and_holds_what_the_cache_would(many: list[Clip], tmp_path: Path) -> None:
    turn(many[1::2])
    write_noise(many[4].path, frames=30)  # 6 valid frames
    options: dict[str, Any] = {"buckets": BUCKETS, "lengths": (8, 4)}
    manifest = write(many, tmp_path / "shards", read=reader(Toy(), **options))
    dataset, _ = encode_clips(
        many, Toy(), cache_dir=tmp_path / "cache", resolution=16, frames=FRAMES, seed=0, progress=False, **options
    )
    expected = {bucket: [dataset[n] for n in numbers] for bucket, numbers in dataset.buckets().items()}
    sharded = ShardDataset(str(tmp_path / "shards"), Toy(), reader(Toy(), **options), held=1)
    assert list(expected) == list(sharded.buckets()) == [Bucket(16, 24, 4), Bucket(16, 24, 8), Bucket(24, 16, 8)]
    assert sum(map(len, sharded.buckets().values())) == len(manifest.shards) > 3
    for bucket, shards_of in sharded.buckets().items():
        assert bucket is not None
        places = [Place(s, n) for s in shards_of for n in range(manifest.shards[s].examples)]
        found = sharded[places]  # one batch
        assert sorted(one.flatten().tolist() for one in found.raw) == sorted(map(by_raw, expected[bucket]))
        assert found.raw.shape[1:] == (bucket.frames, 6, bucket.height // 8, bucket.width // 8)
    with pytest.raises(InputError, match=r"was encoded with other options .buckets: \(\(16, 24\).*asked for \(\)"):
        ShardDataset(str(tmp_path / "shards"), Toy(), reader(Toy(), lengths=(8, 4)), held=1)


def test_windows_that_follow_each_other_are_kept(many: list[Clip], tmp_path: Path) -> None:
    frames = replace(FRAMES, offset_std=0.0, windows_per_clip=3)
    clips = many[:3] + many[4:]
    write_noise(clips[0].path, frames=15)  # 3 valid frames
    manifest = write(clips, tmp_path / "shards", read=reader(Toy(), config=frames, following=3))
    options: dict[str, Any] = {"resolution": 16, "frames": frames, "seed": 0, "following": 3, "progress": False}
    cached: ExampleDataset = encode_clips(clips, Toy(), cache_dir=tmp_path / "cache", **options)[0]
    dataset = ShardDataset(str(tmp_path / "shards"), Toy(), reader(Toy(), config=frames, following=2), held=1)
    assert dataset.deepest == cached.deepest == 4
    for depth in (1, 2, 3, 4, 5, 9):
        starts = [example for example in cached.examples if len(example.following) >= depth - 1]
        assert sum(shard.rollouts(depth) for shard in manifest.shards) == len(starts)

    def rollouts(of: Any, numbers: Any, depth: int) -> set[tuple[Any, ...]]:
        return {tuple(tuple(of.window(n, after).raw.flatten().tolist()) for after in range(depth)) for n in numbers}

    drawn = {n for seed in range(20) for n in dataset.draw_rollouts(8, 4, torch.Generator().manual_seed(seed))}
    expected = [n for n, example in enumerate(cached.examples) if len(example.following) == 3]
    assert rollouts(dataset, drawn, 4) == rollouts(cached, expected, 4)
    some = dataset.draw_rollouts(8, 4, torch.Generator().manual_seed(0))
    assert some == dataset.draw_rollouts(8, 4, torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="following: 3, asked for 4"):
        ShardDataset(str(tmp_path / "shards"), Toy(), reader(Toy(), config=frames, following=4), held=1)


def test_shards_from_before_an_option_was_there_have_its_default(many: list[Clip], tmp_path: Path) -> None:
    write(many, tmp_path, read=reader(Toy()))
    file = tmp_path / "manifest.json"
    said = json.loads(file.read_text())
    del said["windows"]["window"]["ahead"], said["windows"]["config"]["offsets"]
    file.write_text(json.dumps(said))
    assert ShardDataset(str(tmp_path), Toy(), reader(Toy()), held=1).windows == reader(Toy())
    with pytest.raises(InputError, match=r"window: Window\(length=2.*ahead=False.*asked for .*ahead=True"):
        ShardDataset(str(tmp_path), Toy(), reader(Toy(Window(2, ahead=True))), held=1)


@pytest.mark.parametrize("window, downscale", [(Window(2), 1), (Window(3, (0, 1), anchor=True), 1), (Window(2), 2)])
def test_shards_hold_what_the_cache_would(many: list[Clip], tmp_path: Path, window: Window, downscale: int) -> None:
    def system() -> Toy:
        return Toy(window, BlockMeans(downscale))

    manifest = write(many, tmp_path / "shards", system())
    cached, skipped = encode(many, system(), tmp_path / "cache")
    assert manifest.examples == len(cached) and manifest.clips == 6 and len(manifest.shards) > 1
    assert [path for path, _ in manifest.skipped] == [str(one.path) for one in skipped] == [str(many[3].path)]
    assert manifest.rates == cached.rates
    found = every_example(tmp_path / "shards", system())
    expected = sorted((cached[i] for i in range(len(cached))), key=by_raw)
    for one, other in zip(found, expected, strict=True):
        assert same(
            one, type(one)(*(v[None] if torch.is_tensor(v) else {k: t[None] for k, t in v.items()} for v in other))
        )
    groups = Counter(one.group.item() for one in found)
    assert sorted(groups.values()) == sorted(Counter(other.group.item() for other in expected).values())


def test_batches_across_clips_reach_the_encoder(many: list[Clip], tmp_path: Path) -> None:
    calls: list[int] = []

    class Counting(BlockMeans):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            calls.append(pixels.shape[1])
            return super().encode(pixels)

    write(many, tmp_path / "shards", Toy(Window(2), Counting()), frames_at_once=6)
    assert max(calls) == 6 and sum(calls) > 12  # a clip has 4


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tar", ".json")}


@pytest.mark.fault(
    "a process that encodes shards is killed between the shard and its journal",
    "started again it loses one batch of clips of each bucket, and the shards are bit for bit those of an undisturbed "
    "run",
)
@pytest.mark.parametrize("buckets", [(), BUCKETS])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_stopped_process_goes_on_and_loses_a_batch_at_most(
    many: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, buckets: Any
) -> None:
    if buckets:
        turn(many[1::2])
    options = {"read": reader(Toy(), buckets=buckets)}
    write(many, tmp_path / "whole", **options)
    journal_note, batches = _Journal.note, []

    def dies(self: Any, clips: Any, **where: Any) -> None:
        if where and len(batches) == stop:  # members without their line in the journal
            with self.path.open("a") as file:
                file.write('{"shard": 0, "en')
            raise KeyboardInterrupt
        batches.extend([clips] if where else [])
        journal_note(self, clips, **where)

    with monkeypatch.context() as patch:
        patch.setattr(_Journal, "note", dies)
        with pytest.raises(KeyboardInterrupt):
            write(many, tmp_path / "stopped", **options)
    assert not (tmp_path / "stopped" / MANIFEST).exists()
    system = Toy()
    write(many, tmp_path / "stopped", system, **options)
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    seen = {one["clip"] for batch in batches for one in batch}
    assert not any(f"caption {number}" in system.prompts for number in seen)


def test_processes_share_the_clips_and_may_be_another_number_the_next_time(many: list[Clip], tmp_path: Path) -> None:
    output = tmp_path / "shards"
    assert write(many, output, rank=2, ranks=3) is None
    assert write(many, output, rank=0, ranks=3) is None
    systems = [Toy(), Toy()]
    assert write(many, output, systems[0], rank=0, ranks=2) is None
    manifest = write(many, output, systems[1], rank=1, ranks=2)
    assert manifest.clips == 6
    prompts = [text for system in systems for text in system.prompts]
    assert sorted(prompts) == ["caption 1", "caption 4"]  # of process 1 of 3
    write(many, tmp_path / "one")
    for one, other in zip(every_example(output), every_example(tmp_path / "one"), strict=True):
        assert same(one, other)
    system = Toy()
    assert write(many, output, system) == manifest and not system.prompts  # all is there


@pytest.mark.fault(
    "the disk is full while shards are encoded",
    "one line; what is encoded stays, and the shards are bit for bit the same",
)
@pytest.mark.parametrize("room", [300, 2500, 6500])
def test_a_full_disk_while_encoding(many: list[Clip], tmp_path: Path, room: int) -> None:
    write(many, tmp_path / "whole")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # a real write that fails half-way
    try:
        with pytest.raises(InputError, match="shards: can't be written .*free some space .* run again") as raised:
            write(many, tmp_path / "shards")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    system = Toy()
    write(many, tmp_path / "shards", system)
    assert files(tmp_path / "shards") == files(tmp_path / "whole")
    assert len(system.prompts) < 6 or room < 6000


@pytest.mark.fault(
    "a process that encodes shards is killed, and fewer processes go on",
    "the last one to finish closes what it left; nothing is encoded twice",
)
def test_shards_under_way_of_a_process_that_is_gone_are_closed(
    many: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, journal_close = tmp_path / "shards", _Journal.close_shards

    def dies(self: _Journal) -> None:
        if self.rank == 2:
            raise KeyboardInterrupt
        journal_close(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Journal, "close_shards", dies)
        write(many, output, rank=2, ranks=3, shard_bytes=10**6)
    assert len(list(output.glob("*.part"))) == 1
    with (output / ".00002" / ".lock").open("w") as lock:  # as another process that is still there
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert write(many, output) is None
    system = Toy()
    manifest = write(many, output, system)
    assert manifest.clips == 6 and not system.prompts and not list(output.glob("*.part"))
    write(many, tmp_path / "one")
    for one, other in zip(every_example(output), every_example(tmp_path / "one"), strict=True):
        assert same(one, other)


@pytest.mark.processes
@pytest.mark.fault(
    "kill -9 of a process that decodes clips for shards", "one line; run again, what was encoded isn't encoded anew"
)
def test_a_worker_that_dies_is_one_line(many: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, read = os.getpid(), WindowReader.__call__

    def dies(self: WindowReader, clip: Clip, cached: Any = None) -> Any:
        if os.getpid() != main and clip.caption == "caption 6":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, clip, cached)

    with monkeypatch.context() as patch:
        patch.setattr(WindowReader, "__call__", dies)
        with pytest.raises(InputError, match="a process that reads batches ahead died") as raised:
            write(many, tmp_path / "shards", workers=1)
    assert "\n" not in str(raised.value)
    system = Toy()
    assert write(many, tmp_path / "shards", system).clips == 6
    assert 0 < len(system.prompts) < 6


@pytest.mark.fault(
    "a shard of latents is gone", "training names it; encode makes it again, bit for bit, and nothing else"
)
@pytest.mark.parametrize("buckets", [(), BUCKETS])
def test_a_shard_that_was_deleted_is_encoded_again(
    many: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buckets: Any
) -> None:
    if buckets:
        turn(many[2:])
    options = {"read": reader(Toy(), buckets=buckets), "shard_bytes": 2000}
    first = write(many, tmp_path / "shards", **options)
    whole = files(tmp_path / "shards")
    assert len(first.shards) > 2
    for number in (0, len(first.shards) - 2):
        (tmp_path / "shards" / first.shards[number].name).unlink()
    with pytest.raises(InputError, match="isn't there; copy it anew, or encode again"):
        every_example(tmp_path / "shards", buckets=buckets)
    systems = [Toy(), Toy()]
    with monkeypatch.context() as patch, pytest.raises(InputError, match="stopped"):  # right after the first of the two
        patch.setattr(_Journal, "close_shards", lambda self: (_ for _ in ()).throw(InputError("stopped")))
        write(many, tmp_path / "shards", systems[0], **options)
    assert write(many, tmp_path / "shards", systems[1], **options) == first
    assert files(tmp_path / "shards") == whole
    prompts = [prompt for system in systems for prompt in system.prompts]
    assert 0 < len(prompts) == len(set(prompts)) < 6


def test_other_clips_or_settings_are_refused(many: list[Clip], tmp_path: Path) -> None:
    output = tmp_path / "shards"
    write(many, output)
    with pytest.raises(InputError, match="other clips, or encoded otherwise"):
        write(many[:-1], output)
    other = Toy(Window(3))
    with pytest.raises(InputError, match="other options .window"):
        ShardDataset(str(output), other, reader(other), held=1)
    system = Toy()
    system.fingerprint = "another"
    with pytest.raises(InputError, match="another autoencoder"):
        ShardDataset(str(output), system, reader(system), held=1)
    with pytest.raises(InputError, match=r"size: \(16, 16\), asked for \(32, 32\)"):
        ShardDataset(str(output), Toy(), reader(Toy(), size=(32, 32)), held=1)
    with pytest.raises(InputError, match="isn't there; expected latents"):
        read_manifest(str(tmp_path))


def test_no_clip_left(many: list[Clip], tmp_path: Path) -> None:
    with pytest.raises(NoClipLeft) as raised:
        write([many[3]], tmp_path / "shards")
    assert [one.path for one in raised.value.skipped] == [many[3].path]


@pytest.mark.fault(
    "a shard of latents is cut off, has a flipped bit, or is another's", "training names the shard and the clip"
)
@pytest.mark.parametrize("damage", ["cut", "byte", "swapped"])
def test_damage_is_named(many: list[Clip], tmp_path: Path, damage: str) -> None:
    manifest = write(many, tmp_path / "shards")
    file, other = (tmp_path / "shards" / one.name for one in manifest.shards[:2])
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-600])
    elif damage == "byte":
        with tarfile.open(file) as tar:
            member = tar.getmembers()[1]
        data[member.offset_data + member.size - 3] ^= 1
        file.write_bytes(data)
    else:
        shutil.copy(other, file)
    expected = {"cut": "bytes of", "byte": rf"is damaged at {'0' * 8}\d.safetensors .the (latents|text) "}
    with pytest.raises(InputError, match=expected.get(damage, "bytes of|not of one encoding")) as raised:
        every_example(tmp_path / "shards")
    assert file.name in str(raised.value)


@pytest.mark.fault("a manifest of latents names a file outside its folder", "it is refused")
def test_a_manifest_names_no_file_outside_its_folder(many: list[Clip], tmp_path: Path) -> None:
    write(many, tmp_path / "shards")
    path = tmp_path / "shards" / MANIFEST
    values = json.loads(path.read_text())
    values["shards"][0]["name"] = "../elsewhere.tar"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="names a shard"):
        read_manifest(str(tmp_path / "shards"))


@pytest.mark.fault(
    "an object store doesn't answer for a while", "reading is tried for half a minute, and then one line"
)
def test_a_store_that_is_away_for_a_while(many: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(many, tmp_path / "shards")
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "shards"), "/away", recursive=True)
    waits: list[float] = []
    monkeypatch.setattr(shards.time, "sleep", waits.append)
    whole, failures = MemoryFileSystem._open, [0]

    def sometimes(self: Any, *args: Any, **kwargs: Any) -> Any:
        failures[0] += 1
        if failures[0] % 3:
            raise TimeoutError("no answer")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "_open", sometimes)
    system = Toy()
    dataset = ShardDataset("memory://away", system, reader(system), held=1)
    assert dataset[[Place(1, 0)]].raw.shape[0] == 1 and waits == [1, 2, 1, 2]
    monkeypatch.setattr(MemoryFileSystem, "_open", lambda *args, **kwargs: (_ for _ in ()).throw(TimeoutError("gone")))
    with pytest.raises(InputError, match=r"can't be read after 6 tries \(gone\)"):
        dataset[[Place(0, 0)]]
    assert waits[4:] == [1, 2, 4, 8, 16]


ORDER = ShardOrder((3, 5, 2, 7, 1, 4), batch_size=2, streams=2, buffer=2, seed=0)


def taken(order: ShardOrder, numbers: range) -> list[list[Place]]:
    return list(order.batches(numbers))


def test_a_stream_has_every_example_of_its_shards_once_an_epoch() -> None:
    order = replace(ORDER, batch_size=1)
    for epoch in range(3):
        first = torch.randperm(6, generator=seeded(0, "shards", epoch)).tolist()
        dealt = [sum(order.examples[shard] for shard in first[stream::2]) for stream in (0, 1)]
        if epoch == 0:
            begins = [0, 0]
        batches = [
            [batch[0] for batch in taken(order, range(2 * begins[s] + s, 2 * (begins[s] + dealt[s]) + s, 2))]
            for s in (0, 1)
        ]
        for stream in (0, 1):
            expected = [Place(shard, n) for shard in first[stream::2] for n in range(order.examples[shard])]
            assert sorted(batches[stream]) == sorted(expected) and batches[stream] != expected
            buffered = {shard for place in batches[stream][: dealt[stream]] for shard in [place.shard]}
            assert buffered == set(first[stream::2])
        begins = [begin + count for begin, count in zip(begins, dealt, strict=True)]


def test_batches_are_a_function_of_their_number() -> None:
    all_of_them = taken(ORDER, range(40))
    assert all(len(batch) == 2 for batch in all_of_them)
    for start in (0, 1, 7, 23):
        assert taken(ORDER, range(start, 40)) == all_of_them[start:]
    for ranks in (2, 3, 4):  # whatever the number of processes, together they make the same batches
        for rank in range(ranks):
            assert taken(ORDER, range(rank, 40, ranks)) == all_of_them[rank::ranks]
    assert taken(replace(ORDER, seed=1), range(40)) != all_of_them


def test_a_thousand_processes_read_shards_of_their_own_and_start_anywhere_at_once() -> None:
    """A million examples in 1,000 shards: each of 1,000 processes of 2 workers reads half a thousandth of them."""
    order = ShardOrder((1000,) * 4000, batch_size=4, streams=2000, buffer=2, seed=0)
    for worker in (0, 999, 1234):
        batches = taken(order, range(worker, worker + 2000 * 250, 2000))
        assert len({place.shard for batch in batches for place in batch}) == 2  # an epoch has 500 batches a stream
    late = next(iter(order.batches([2000 * 12_345 + 7])))
    assert late == taken(order, range(2000 * 12_000 + 7, 2000 * 12_346 + 7, 2000))[-1]
