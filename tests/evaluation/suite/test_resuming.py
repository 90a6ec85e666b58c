"""What is finished is kept and taken up again, and nothing stale is; the memory that takes."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluating import NETWORKS, Colours, F, changed, flicker, run, still, values
from torch import Tensor

from contrastive_i2v.data.video import read_frames
from contrastive_i2v.evaluation.generators import Method, first_frame
from contrastive_i2v.evaluation.results import Metric
from contrastive_i2v.evaluation.suite import Known, Networks, evaluate
from contrastive_i2v.evaluation.suite import run as suite_run
from contrastive_i2v.evaluation.suite.measured import MeasuredVideos
from contrastive_i2v.evaluation.suite.measures import Measure
from contrastive_i2v.evaluation.suite.work import Work
from contrastive_i2v.evaluation.videos import ReferenceClip, ReferenceSet


def test_a_finished_run_makes_and_measures_nothing(reference: ReferenceSet, tmp_path: Path) -> None:
    calls: list[list[str]] = []
    first = run(reference, [changed("ours", flicker, calls)], tmp_path)
    assert calls == [["00000", "00001", "00002", "00003"], ["00004", "00005"]]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = run(reference, [changed("ours", flicker, calls)], tmp_path)
    assert len(calls) == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == files
    scores = [str([m.per_clip for m in one.methods[0].metrics]) for one in (again, first)]  # a NaN isn't itself
    assert scores[0] == scores[1]


@pytest.mark.fault("an evaluation is interrupted", "the same command goes on where it was")
def test_interrupted_it_goes_on(reference: ReferenceSet, tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def interrupted(video: Tensor) -> Tensor:
        if sum(map(len, calls)) > 2:
            raise KeyboardInterrupt
        return flicker(video)

    with pytest.raises(KeyboardInterrupt):
        run(reference, [changed("ours", interrupted, calls)], tmp_path, batch_size=2)
    finished = run(reference, [changed("ours", flicker, calls)], tmp_path, batch_size=2)
    assert calls == [["00000", "00001"], ["00002", "00003"], ["00002", "00003"], ["00004", "00005"]]
    [path] = (tmp_path / "features" / "ours").glob("*/image-colours-*/00003.safetensors")
    path.write_bytes(b"half a file")  # as a machine that lost power may leave it
    whole = run(reference, [changed("ours", flicker, calls)], tmp_path, batch_size=2)
    assert len(calls) == 4
    assert values(whole, "ours") == pytest.approx(values(finished, "ours"), nan_ok=True)


KILLED = """
import sys, time
import torch
sys.modules["umap"] = None
from pathlib import Path
from contrastive_i2v.evaluation.generators import Method
from contrastive_i2v.evaluation.suite import Networks, evaluate
from contrastive_i2v.evaluation.videos import read_reference_set
def generate(batch):
    if batch.clips[0].name == "00002":
        print("there", flush=True)
        time.sleep(100)
    return torch.stack([batch.read(clip)[[0, 0, 0, 0]] for clip in batch.clips])
reference = read_reference_set(Path(sys.argv[1]), frames=4, resolution=16)
method = Method("ours", "videos", {"change": "ours"}, lambda: generate)
evaluate(reference, [method], Networks(), Path(sys.argv[2]), title="t", command="c", batch_size=2)
"""


@pytest.mark.fault("`kill -9` while an evaluation runs", "the same command goes on with the batch it was killed in")
def test_killed_it_goes_on(reference: ReferenceSet, tmp_path: Path) -> None:
    """A process of its own, by SIGKILL in its second batch."""
    command = [sys.executable, "-c", KILLED, str(reference.folder), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"there"
        process.kill()
    assert not (tmp_path / "report.json").exists()
    calls: list[list[str]] = []
    finished = run(reference, [changed("ours", still, calls)], tmp_path, networks=Networks())
    assert calls == [["00002", "00003", "00004", "00005"]]
    assert values(finished, "ours")["motion_ratio"] == 0


def test_another_identity_is_made_anew_beside_the_old(reference: ReferenceSet, tmp_path: Path) -> None:
    calls: list[list[str]] = []
    before = values(run(reference, [changed("ours", flicker, calls)], tmp_path), "ours")
    other = replace(changed("ours", still, calls), identity={"change": "other"})
    after = values(run(reference, [other], tmp_path), "ours")
    assert len(calls) == 4
    assert after["motion_ratio"] == 0 != before["motion_ratio"]
    assert len(list((tmp_path / "frames" / "ours").iterdir())) == 2
    shown = read_frames(tmp_path / "videos" / "ours" / "00000.mp4", range(F))
    assert torch.equal(shown[0], shown[3])  # the mp4 is of the new ones
    again = run(reference, [changed("ours", flicker, calls)], tmp_path)
    assert values(again, "ours") == pytest.approx(before, nan_ok=True)
    assert len(calls) == 4  # the first ones were kept


def test_a_changed_clip_alone_is_made_anew(reference: ReferenceSet, tmp_path: Path) -> None:
    calls: list[list[str]] = []
    run(reference, [changed("ours", flicker, calls)], tmp_path)
    clips = list(reference.clips)
    clips[4] = replace(clips[4], clip=replace(clips[4].clip, caption="another"))
    run(replace(reference, clips=clips), [changed("ours", flicker, calls)], tmp_path)
    assert calls[2:] == [["00004"]]


def test_another_network_measures_anew_without_making(reference: ReferenceSet, tmp_path: Path) -> None:
    calls: list[list[str]] = []
    run(reference, [changed("ours", flicker, calls)], tmp_path)
    other = Colours()
    other.about = replace(Colours.about, weights="others")
    run(reference, [changed("ours", flicker, calls)], tmp_path, networks=replace(NETWORKS, image=other))
    assert len(calls) == 2
    assert len(list((tmp_path / "features" / "ours").glob("*/image-colours-*"))) == 2


def test_what_is_known_is_not_scored_again(
    reference: ReferenceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    score = suite_run._score
    monkeypatch.setattr(suite_run, "_score", lambda ours, truth: names.append(ours.name) or score(ours, truth))
    known: Known = {}

    def evaluated(clips: Sequence[ReferenceClip], networks: Networks, *methods: Method) -> dict[str, list[Metric]]:
        options = {"title": "t", "command": "c", "progress": False, "known": known}
        report = evaluate(replace(reference, clips=list(clips)), methods, networks, tmp_path, **options)
        return {method.name: method.metrics for method in report.methods}

    ours, more = changed("ours", flicker), changed("more", still)
    first = evaluated(reference.clips, NETWORKS, ours)
    assert repr(evaluated(reference.clips, NETWORKS, ours, more)["ours"]) == repr(first["ours"])
    assert names == ["ours", "more"]
    evaluated(reference.clips, NETWORKS, replace(ours, identity={"change": "other"}))
    evaluated(reference.clips[:4], NETWORKS, ours)
    evaluated(reference.clips, Networks(image=Colours()), ours)
    assert names == ["ours", "more", "ours", "ours", "ours"]


def test_memory_does_not_grow_with_the_number_of_clips(reference: ReferenceSet, tmp_path: Path) -> None:
    """Bytes of the live tensors, looked at whenever a batch is measured and while features are read back."""
    peaks = []
    for count in (6, 24):
        clips = [replace(reference.clips[i % 6], name=f"{i:03d}") for i in range(count)]
        many = replace(reference, clips=clips)
        seen: list[int] = []

        def measure(videos: Tensor, _: Tensor, __: Sequence[str], seen: list[int] = seen) -> dict[str, Tensor]:
            seen.append(_live_bytes())
            return {"features": videos.mean(dim=(3, 4))}

        work = Work(tmp_path / str(count), many, [first_frame()], {"image": Measure("m", measure)}, 3, progress=False)
        work.run()
        samples = MeasuredVideos(work.jobs["first-frame"], clips)
        moments = samples.moments("image", "features", slice(1, None))
        assert moments.count == count * (F - 1)
        peaks.append(max([*seen, _live_bytes()]))
    assert peaks[1] <= peaks[0] + 4096


def _live_bytes() -> int:
    tensors = [one for one in gc.get_objects() if type(one) is Tensor and one.layout == torch.strided]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
