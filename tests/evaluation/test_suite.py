"""The suite end to end on small real clips with small fixed networks: numbers, resuming, memory, bad input."""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_i2v.data.types import Skipped
from contrastive_i2v.data.video import read_frames
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.preparation import (
    CENTRE_SQUARE,
    VBENCH_BACKGROUND,
    VBENCH_I2V_BACKGROUND,
    VBENCH_I2V_SUBJECT,
    VBENCH_SUBJECT,
    ResizableNetwork,
)
from contrastive_i2v.evaluation.generators import Batch, Method, first_frame
from contrastive_i2v.evaluation.results import Extractor, Metric, Report, load_report
from contrastive_i2v.evaluation.suite import Networks, evaluate, measures
from contrastive_i2v.evaluation.suite.background import Background
from contrastive_i2v.evaluation.suite.jackknife import interval, leave_out
from contrastive_i2v.evaluation.suite.measured import MeasuredVideos, spread
from contrastive_i2v.evaluation.suite.measures import Measure
from contrastive_i2v.evaluation.suite.scored import About, Scored, difference, score_clips, score_set
from contrastive_i2v.evaluation.suite.store import load_tensors, metadata_of
from contrastive_i2v.evaluation.suite.work import Work
from contrastive_i2v.evaluation.temporal import (
    consistency,
    feature_coherence,
    image_to_video_consistency,
    later_frames_consistency,
)
from contrastive_i2v.evaluation.videos import ReferenceSet, read_reference_set, read_true_frames

F = 4


def extractor(name: str, dimension: int) -> Extractor:
    return Extractor(name=name, dimension=dimension, weights="fixed", resize="none")


class Colours:
    """Mean colour and its square: what a shift or another order of the frames leaves as it is. Two classes."""

    about = extractor("colours", 6)

    def __call__(self, frames: Tensor) -> Tensor:
        mean = frames.mean(dim=(2, 3))
        return torch.cat([mean, mean.square()], dim=1)

    def classify(self, features: Tensor) -> Tensor:
        red = features[:, :1].sigmoid()
        return torch.cat([red, 1 - red], dim=1)


class Pooled:
    """A video as the mean and the spread over time of its pixels, pooled to 2 x 2."""

    about = extractor("pooled", 24)

    def __call__(self, videos: Tensor) -> Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(videos.flatten(0, 1), 2).unflatten(0, videos.shape[:2])
        return torch.cat([pooled.mean(dim=1).flatten(1), pooled.std(dim=1).flatten(1)], dim=1)


class Jump:
    """Flow: 10 pixels wherever a pixel changed at all."""

    about = extractor("jump", 2)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        moved = ((first - second).abs().amax(dim=1, keepdim=True) > 0.02).float()
        return torch.cat([10 * moved, 0 * moved], dim=1)


class Shrunk:
    """Latents: the frame at a quarter of the size."""

    about = extractor("shrunk", 3)

    def __call__(self, frames: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(frames, 4) + 0.01


class Words:
    """A CLIP whose images are their colour, and whose texts are all the same."""

    about = extractor("words", 3)

    def __call__(self, frames: Tensor) -> Tensor:
        return frames.mean(dim=(2, 3)) + 2

    def text(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(prompts), -1)


NETWORKS = Networks(image=Colours(), video=Pooled(), clip=Words(), flow=Jump(), latents=Shrunk())


@pytest.fixture(scope="module", autouse=True)
def _no_umap() -> Iterator[None]:
    """It compiles for longer than the rest of this file takes; its own tests are those of the maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "umap", None)
        yield


@pytest.fixture(scope="module")
def reference(clips: Path) -> ReferenceSet:
    return read_reference_set(clips / "train", frames=F, resolution=16)


def changed(name: str, change: Callable[[Tensor], Tensor], calls: list[list[str]] | None = None) -> Method:
    """A method that sees the true videos, uint8 `[F, 3, H, W]`, and changes them."""

    def generate(batch: Batch) -> Tensor:
        if calls is not None:
            calls.append([clip.name for clip in batch.clips])
        return torch.stack([change(batch.read(clip)) for clip in batch.clips])

    return Method(name, "videos", {"change": name}, lambda: generate)


def shift(video: Tensor) -> Tensor:
    return video.roll(3, dims=-1)


def shuffle(video: Tensor) -> Tensor:
    return video[[0, 2, 3, 1]]


def flicker(video: Tensor) -> Tensor:
    return (video.int() + torch.tensor([0, 30, -30, 30])[:, None, None, None]).clamp(0, 255).to(torch.uint8)


def still(video: Tensor) -> Tensor:
    return video[[0, 0, 0, 0]]


def run(
    reference: ReferenceSet,
    methods: Sequence[Method],
    output: Path,
    *,
    networks: Networks = NETWORKS,
    batch_size: int = 4,
) -> Report:
    return evaluate(reference, methods, networks, output, title="t", command="c", batch_size=batch_size, progress=False)


@pytest.fixture(scope="module")
def report(reference: ReferenceSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    output = tmp_path_factory.mktemp("suite") / "out"
    changes = {"same": lambda v: v, "shifted": shift, "shuffled": shuffle, "flickering": flicker, "still": still}
    return run(reference, [changed(name, change) for name, change in changes.items()], output), output


def metrics(report: Report, method: str) -> dict[str, Metric]:
    return {metric.name: metric for one in report.methods if one.name == method for metric in one.metrics}


def values(report: Report, method: str) -> dict[str, float]:
    return {name: metric.estimate.value for name, metric in metrics(report, method).items()}


def test_true_videos_have_perfect_scores(report: tuple[Report, Path]) -> None:
    found = metrics(report[0], "same")
    assert found["fid"].estimate.value == pytest.approx(0, abs=1e-9)
    assert found["fvd"].estimate.value == pytest.approx(0, abs=1e-9)
    assert found["frame_mse"].estimate.value == 0
    assert found["psnr"].estimate.value == 100
    assert found["ssim"].estimate.value == pytest.approx(1)
    assert found["motion_ratio"].estimate.value == 1
    for metric in found.values():
        if math.isfinite(metric.truth):
            assert metric.estimate.value == pytest.approx(metric.truth), metric.name


@pytest.mark.parametrize(
    ("method", "moved"),
    [
        # the whole frame shifted: nothing changes in colour or from frame to frame
        ("shifted", {"fvd", "kvd", "frame_mse", "psnr", "ssim"}),
        # generated frames in another order: as a set they are the same
        ("shuffled", {"temporal_flickering", "pixel_coherence", "frame_mse", "psnr", "ssim", "motion_ratio"}),
        ("flickering", {"fid", "kid", "temporal_flickering", "pixel_coherence", "frame_mse", "motion_ratio"}),
        ("still", {"temporal_flickering", "pixel_coherence", "dynamic_degree", "flow_magnitude", "motion_ratio"}),
    ],
)
def test_changes_move_the_metrics_that_see_them(report: tuple[Report, Path], method: str, moved: set[str]) -> None:
    same, other = values(report[0], "same"), values(report[0], method)
    unchanged = {name for name in same if other[name] == pytest.approx(same[name], abs=1e-7, nan_ok=True)}
    assert moved & unchanged == set()
    if method == "shifted":
        assert {"fid", "kid", "inception_score", "temporal_flickering", "pixel_coherence", "motion_ratio"} <= unchanged
        assert {"dynamic_degree", "subject_consistency", "clip_score_generated"} <= unchanged
    if method == "shuffled":
        assert {"fid", "kid", "fvd", "clip_score_generated"} <= unchanged
    if method == "still":
        assert other["dynamic_degree"] == other["motion_ratio"] == other["flow_magnitude"] == 0
        assert other["temporal_flickering"] == other["subject_consistency"] == 1


def test_numbers_agree_with_the_kept_frames(report: tuple[Report, Path]) -> None:
    kept = report[1] / "frames"
    names = sorted(path.name for path in (kept / "truth").glob("*/*.safetensors"))

    def frames(method: str) -> Tensor:
        stacked = []
        for name in names:
            [path] = (kept / method).glob(f"*/{name}")
            stacked.append(load_tensors(path, metadata_of(path)["stamp"])["frames"])  # type: ignore[index]
        return torch.stack(stacked).double() / 127.5 - 1

    truth, ours = frames("truth"), frames("flickering")
    found = metrics(report[0], "flickering")
    error = (truth - ours).square().mean(dim=(2, 3, 4))
    assert found["frame_mse"].per_clip == pytest.approx(error[:, 1:].mean(dim=1).tolist())
    assert found["frame_mse"].per_frame == pytest.approx(error.mean(dim=0).tolist())
    assert found["frame_mse"].estimate.low < found["frame_mse"].estimate.value < found["frame_mse"].estimate.high
    step = (ours[:, 1:] - ours[:, :-1]).abs().mean(dim=(1, 2, 3, 4)) * 127.5
    assert found["temporal_flickering"].per_clip == pytest.approx(((255 - step) / 255).tolist())
    true_step = (truth[:, 1:] - truth[:, :-1]).abs().mean(dim=(1, 2, 3, 4)) * 127.5
    assert found["motion_ratio"].estimate.value == pytest.approx(float(step.sum() / true_step.sum()))
    x, y = (Colours()(one[:, 1:].flatten(0, 1).float()).double() for one in (ours, truth))
    assert found["fid"].estimate.value == pytest.approx(_frechet(x, y), rel=1e-6)
    x, y = (Colours()(one[:, 2].float()).double() for one in (ours, truth))
    assert found["fid"].per_frame[2] == pytest.approx(_frechet(x, y), rel=1e-5)
    cosines = (ours.mean(dim=(3, 4)) + 2)[..., 0] / (ours.mean(dim=(3, 4)) + 2).norm(dim=-1)
    assert found["clipsim"].per_clip == pytest.approx(cosines.mean(dim=1).tolist(), rel=1e-6)
    assert found["clip_score_generated"].per_clip == pytest.approx(cosines[:, 1:].mean(dim=1).tolist(), rel=1e-6)


def _frechet(x: Tensor, y: Tensor) -> float:
    """By the eigenvalues of the product, another way than the package's."""
    covariances = torch.cov(x.T), torch.cov(y.T)
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    mean = (x.mean(dim=0) - y.mean(dim=0)).square().sum()
    return float(mean + covariances[0].trace() + covariances[1].trace() - 2 * roots)


def test_output_folder(report: tuple[Report, Path]) -> None:
    found, output = report
    assert load_report(output / "report.json").methods[0].clips == found.methods[0].clips
    page = (output / "report.html").read_text()
    assert "shuffled" in page
    for method in found.methods:
        for clip in method.clips:
            assert read_frames(output / clip.video, range(F)).shape == (F, 3, 16, 16)
            assert (output / clip.truth).is_file()
    assert found.provenance["clips"] == "6"
    assert len(found.provenance["data hash"]) == 16
    assert {"truth", "same"} <= {path.name for path in (output / "videos").iterdir()}
    every = {metric.extractor for metric in found.methods[0].metrics} - {""}
    assert every == {"colours", "pooled", "jump", "shrunk", "words"} == set(found.extractors)
    assert any("LPIPS is left out" in text for text in found.warnings)
    assert any("6 clips: too few" in text for text in found.warnings)


def test_every_promised_metric_is_there(report: tuple[Report, Path]) -> None:
    expected = """fid fid_extrapolated kid inception_score fvd fvd_extrapolated kvd clip_score_source
    clip_score_generated clip_score_target clipsim temporal_flickering subject_consistency
    background_consistency i2v_subject i2v_subject_later i2v_background i2v_background_later feature_coherence
    pixel_coherence dynamic_degree flow_magnitude motion_ratio frame_mse psnr ssim retrieval_accuracy
    neighbour_purity silhouette alignment uniformity source_rank latent_speed latent_curvature latent_straightness"""
    assert list(values(report[0], "same")) == [*dict.fromkeys(values(report[0], "same"))]
    assert set(values(report[0], "same")) == set(expected.split())
    assert "biased upwards" in metrics(report[0], "same")["fvd"].warning  # 6 clips, 24 dimensions
    assert report[0].methods[0].maps[0].method == "PCA"


class Edges(ResizableNetwork):
    """Pixels at a few places of the resized frame, which another resize rule puts elsewhere."""

    about = extractor("edges", 12)
    device = torch.device("cpu")
    size = 14

    def _features(self, frames: Tensor) -> Tensor:
        return self.resize(frames, self.size)[..., [0, 9], :][..., [3, 13]].flatten(1) + 1.1


class EdgesWithText(Edges):
    about = extractor("edges with text", 12)

    def text(self, prompts: Sequence[str]) -> Tensor:
        return torch.ones(len(prompts), 12)


def test_each_consistency_has_its_resize_rule(reference: ReferenceSet, tmp_path: Path) -> None:
    networks = Networks(image=Colours(), subject=Edges(), clip=EdgesWithText())
    found = run(reference, [changed("ours", shuffle)], tmp_path, networks=networks)
    rules = {
        "subject_consistency": ("edges", VBENCH_SUBJECT),
        "i2v_subject": ("edges", VBENCH_I2V_SUBJECT),
        "background_consistency": ("edges with text", VBENCH_BACKGROUND),
        "i2v_background": ("edges with text", VBENCH_I2V_BACKGROUND),
        "feature_coherence": ("edges with text", CENTRE_SQUARE),
    }
    truth = torch.stack([read_true_frames(clip, (16, 16)) for clip in reference.clips])
    videos = torch.stack([shuffle(video) for video in truth]).float() / 127.5 - 1
    scored = metrics(found, "ours")
    for metric, (network, rule) in rules.items():
        features = Edges().resized(rule)(videos.flatten(0, 1)).unflatten(0, videos.shape[:2]).double()
        expected = {
            "subject_consistency": consistency,
            "background_consistency": consistency,
            "feature_coherence": feature_coherence,
        }.get(metric, lambda x: image_to_video_consistency(x, x[:, 0])[:, None])(features)
        assert scored[metric].per_clip == pytest.approx(expected.mean(dim=1).tolist(), rel=1e-6), metric
        about = found.extractors[scored[metric].extractor]
        assert about.name == (f"{network}, {rule.name}" if rule.name else network)
        assert about.resize == (rule.describe(14) if rule.name else "none")
    folders = {path.name for path in (tmp_path / "features" / "ours").glob("*/*")}
    assert len([name for name in folders if "edges" in name]) == 5
    assert "not on DreamSim" in scored["i2v_background"].warning


def test_i2v_compares_with_the_given_image_not_with_a_frame_0_of_its_own(
    reference: ReferenceSet, tmp_path: Path
) -> None:
    """Frame 0 as an autoencoder may leave it."""

    def own_start(video: Tensor) -> Tensor:
        return torch.cat([255 - video[:1], video[1:]])

    networks = Networks(image=Edges())
    found = metrics(run(reference, [changed("ours", own_start)], tmp_path, networks=networks), "ours")
    truth = torch.stack([read_true_frames(clip, (16, 16)) for clip in reference.clips])
    ours = torch.stack([own_start(video) for video in truth])
    network = Edges().resized(VBENCH_I2V_SUBJECT)
    x, y = (
        network(one.flatten(0, 1).float() / 127.5 - 1).unflatten(0, one.shape[:2]).double() for one in (ours, truth)
    )
    expected = image_to_video_consistency(x, y[:, 0]).tolist()
    assert found["i2v_subject"].per_clip == pytest.approx(expected, rel=1e-6)
    expected = later_frames_consistency(x, y[:, 0]).tolist()
    assert found["i2v_subject_later"].per_clip == pytest.approx(expected, rel=1e-6)


def test_differences_are_paired(report: tuple[Report, Path]) -> None:
    found = {(d.metric, d.a, d.b): d for d in report[0].differences}
    worse = found["frame_mse", "same", "flickering"]
    assert worse.better == "a"
    assert worse.estimate.value == -metrics(report[0], "flickering")["frame_mse"].estimate.value
    assert found["psnr", "same", "still"].better == "a"
    assert found["motion_ratio", "same", "still"].better == "a"  # 1 against 0, where the truth's is 1
    assert found["dynamic_degree", "same", "still"].better == "a"
    assert found["fid", "same", "shuffled"].better == "neither"
    assert found["clip_score_source", "same", "still"].better == ""


def test_a_finished_run_makes_and_measures_nothing(reference: ReferenceSet, tmp_path: Path) -> None:
    calls: list[list[str]] = []
    first = run(reference, [changed("ours", flicker, calls)], tmp_path)
    assert calls == [["00000", "00001", "00002", "00003"], ["00004", "00005"]]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    again = run(reference, [changed("ours", flicker, calls)], tmp_path)
    assert len(calls) == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == files
    assert [m.per_clip for m in again.methods[0].metrics] == [m.per_clip for m in first.methods[0].metrics]


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


def test_seeds_are_averaged_a_clip(reference: ReferenceSet, tmp_path: Path) -> None:
    def generate(batch: Batch) -> Tensor:
        change = flicker if batch.seed == 7 else still
        return torch.stack([change(batch.read(clip)) for clip in batch.clips])

    method = Method("ours", "checkpoint", {}, lambda: generate, seeds=(7, 8))
    report = run(reference, [method, changed("a", flicker), changed("b", still)], tmp_path)
    both, a, b = (metrics(report, name) for name in ("ours", "a", "b"))
    for name in ("frame_mse", "temporal_flickering", "clipsim"):
        mean = [(x + y) / 2 for x, y in zip(a[name].per_clip, b[name].per_clip, strict=True)]
        assert both[name].per_clip == pytest.approx(mean)
    assert both["fid"].samples == 2 * a["fid"].samples == 2 * 6 * (F - 1)
    assert {p.name for p in (tmp_path / "videos" / "ours").glob("00000*")} == {"00000.mp4", "00000.seed8.mp4"}


def test_one_clip(reference: ReferenceSet, tmp_path: Path) -> None:
    report = run(replace(reference, clips=reference.clips[:1]), [changed("ours", flicker), first_frame()], tmp_path)
    found = metrics(report, "ours")
    assert math.isnan(found["frame_mse"].estimate.low)
    assert found["frame_mse"].estimate.value > 0
    assert math.isnan(found["fvd"].estimate.value)
    assert "1 clip: too few" in found["frame_mse"].warning
    assert {d.better for d in report.differences} == {""}
    json.loads((tmp_path / "report.json").read_text())


def test_nan_features_name_the_video(reference: ReferenceSet, tmp_path: Path) -> None:
    class Broken(Colours):
        def __call__(self, frames: Tensor) -> Tensor:
            features = super().__call__(frames)
            return torch.where(torch.arange(len(features))[:, None] == 5, torch.nan, features)

    with pytest.raises(
        InputError, match=r"truth/00001\.mp4: 6 of the 24 features that image-colours-\w+ finds in it are NaN"
    ):
        run(reference, [changed("ours", flicker)], tmp_path, networks=replace(NETWORKS, image=Broken()))
    assert list((tmp_path / "features" / "truth").glob("*/image-colours-*/00000.safetensors"))  # what was good is kept


def test_what_a_network_cannot_take_names_the_videos(reference: ReferenceSet, tmp_path: Path) -> None:
    class Refuses(Pooled):
        def __call__(self, videos: Tensor) -> Tensor:
            raise ValueError("expected at least 9 frames")

    with pytest.raises(
        InputError, match=r"00000\.mp4, .*video-pooled-\w+ can't take a measure of them: expected at least 9"
    ):
        run(reference, [changed("ours", flicker)], tmp_path, networks=replace(NETWORKS, video=Refuses()))


def test_a_full_disk_is_one_error_and_loses_nothing(
    reference: ReferenceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if "00003" in path.name and "ours" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    calls: list[list[str]] = []
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"ours/.*/00003\.safetensors: could not be written \(No space left"):
        run(reference, [changed("ours", flicker, calls)], tmp_path)
    monkeypatch.undo()
    run(reference, [changed("ours", flicker, calls)], tmp_path)
    assert calls == [["00000", "00001", "00002", "00003"], ["00003"], ["00004", "00005"]]


def test_names_are_taken_once(reference: ReferenceSet, tmp_path: Path) -> None:
    for names in (("a", "a"), ("truth", "b")):
        with pytest.raises(InputError, match="is taken already; name them apart with NAME="):
            run(reference, [changed(name, still) for name in names], tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "a/b", "/tmp", "a\\b", "a\0", "x" * 201])
def test_a_name_is_a_plain_folder_name(name: str) -> None:
    with pytest.raises(InputError, match="method name .*: expected a plain folder name"):
        changed(name, still)


def test_a_name_does_not_lead_out_of_the_output(reference: ReferenceSet, tmp_path: Path) -> None:
    (tmp_path / "out" / "videos").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "00000.mp4").write_bytes(b"mine")
    (tmp_path / "out" / "videos" / "ours").symlink_to(tmp_path / "own")
    with pytest.raises(InputError, match="ours: leads to .*own, outside of .*out; expected a folder inside"):
        run(reference, [changed("ours", still)], tmp_path / "out")
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["00000.mp4"]


@pytest.mark.parametrize("marker", [None, "0123456789abcdef", "[]", '{"key": "k", "files": ["../../mine.mp4"]}'])
def test_other_files_in_the_output_survive(reference: ReferenceSet, tmp_path: Path, marker: str | None) -> None:
    own = [tmp_path / "mine.mp4", *(tmp_path / "videos" / m / "mine.mp4" for m in ("ours", "truth", "other"))]
    for path in own:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
        if marker is not None:
            (path.parent / ".key").write_text(marker)
    for change in ("first", "second", "second", "first"):
        run(reference, [replace(changed("ours", still), identity={"change": change})], tmp_path)
    assert [path.read_bytes() for path in own] == [b"mine"] * 4
    assert len(list((tmp_path / "videos" / "ours").glob("*.mp4"))) == 7


def test_clips_left_out_are_all_in_a_file(reference: ReferenceSet, tmp_path: Path) -> None:
    skipped = [Skipped(Path(f"{n}.mp4"), "too short") for n in range(5)]
    found = run(replace(reference, skipped=skipped), [changed("ours", still)], tmp_path)
    assert any("2.mp4: too short and 2 more, all of them in skipped.csv" in text for text in found.warnings)
    assert (tmp_path / "skipped.csv").read_text().splitlines()[1:] == [f"{n}.mp4,too short" for n in range(5)]


def test_a_file_in_a_videos_place_is_refused_before_any_work(reference: ReferenceSet, tmp_path: Path) -> None:
    own = tmp_path / "videos" / "ours" / "00003.mp4"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    calls: list[list[str]] = []
    with pytest.raises(InputError, match="00003.mp4: is there already and isn't listed in .*ours/.key.*move it away"):
        run(reference, [changed("ours", still, calls)], tmp_path)
    assert own.read_bytes() == b"mine"
    assert calls == []


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
    tensors = [one for one in gc.get_objects() if type(one) is Tensor]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_spread() -> None:
    assert spread(3, 5) == [0, 1, 2]
    assert spread(10, 5) == [0, 2, 4, 6, 8]


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    data = torch.tensor([1.0, 4.0, 2.0, 9.0, 3.0, 7.0], dtype=torch.float64)
    left_out = leave_out(6, lambda kept: float(data[kept].mean()))
    assert left_out[0] == 5.0  # without the first
    found = interval(float(data.mean()), left_out)
    half = 2.571 * float(data.std()) / math.sqrt(6)  # Student's t with 5 degrees of freedom
    assert (found.low, found.high) == (pytest.approx(found.value - half), pytest.approx(found.value + half))
    assert math.isnan(interval(1.0, leave_out(2, lambda kept: 0.0)).low)
    assert interval(float(data.mean()), left_out, least=4.0).low == 4


def test_jackknife_leaves_out_a_tenth() -> None:
    sizes = leave_out(25, lambda kept: float(len(kept)))
    assert sizes.tolist() == [22.0] * 5 + [23.0] * 5


ABOUT = About(name="m", title="M", group="G", better="lower", definition="")


def test_clips_without_a_value_are_left_out_and_said() -> None:
    scored = score_clips(ABOUT, torch.tensor([1.0, math.nan, 3.0]).double())
    assert scored.metric.estimate.value == 2
    assert scored.metric.samples == 2
    assert "undefined for 1 of 3 clips" in scored.metric.warning
    assert math.isnan(score_clips(ABOUT, torch.full((3,), math.nan)).metric.estimate.value)


def test_slopes() -> None:
    curves = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 2.0, 5.0, 8.0]]).double()  # frame 0 is given
    assert score_clips(ABOUT, curves[:, 1:].mean(1), curves=curves).metric.slope.value == 2  # type: ignore[union-attr]
    empty = torch.zeros(0)
    of_set = score_set(ABOUT, 1.0, empty, samples=2, sample="clip", curve=curves[0])
    assert of_set.metric.slope.value == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("better", "a", "b", "verdict"),
    [
        ("lower", [1.0, 2.0, 3.0], [2.0, 3.1, 4.2], "a"),
        ("higher", [1.0, 2.0, 3.0], [2.0, 3.1, 4.2], "b"),
        ("lower", [1.0, 5.0, 3.0], [2.0, 3.1, 4.2], "neither"),
        ("truth", [5.0, 6.0, 7.0], [2.0, 3.0, 4.5], "b"),  # the truth is 1, 2, 3
        ("none", [1.0, 2.0, 3.0], [2.0, 3.1, 4.2], ""),
    ],
)
def test_verdicts(better: Any, a: list[float], b: list[float], verdict: str) -> None:
    about = replace(ABOUT, better=better)
    truth = torch.tensor([1.0, 2.0, 3.0]).double()
    few = [score_clips(about, torch.tensor(one).double(), truth=truth) for one in (a, b)]
    x, y = (score_clips(about, torch.tensor(one * 2).double(), truth=truth.repeat(2)) for one in (a, b))
    found = difference("m", ("x", x), ("y", y))
    assert found.estimate.value == pytest.approx(sum(a) / 3 - sum(b) / 3)
    assert found.better == verdict
    assert difference("m", ("x", few[0]), ("y", few[1])).better == ""  # three clips agree by chance


def test_verdict_of_a_set_is_by_the_same_clips_left_out() -> None:
    def of(value: float, left_out: list[float]) -> Scored:
        return score_set(ABOUT, value, torch.tensor(left_out * 2).double(), samples=6, sample="clip")

    shared = of(5.0, [4.0, 5.0, 6.0]), of(6.0, [5.0, 6.0, 7.01])  # both move with the clips, their gap doesn't
    assert difference("m", ("x", shared[0]), ("y", shared[1])).better == "a"
    apart = of(5.0, [4.0, 5.0, 6.0]), of(6.0, [7.0, 6.0, 5.0])
    assert difference("m", ("x", apart[0]), ("y", apart[1])).better == "neither"


def test_equal_frames_and_pairs_go_through_a_network_once() -> None:
    seen: list[int] = []

    def brightness(*frames: Tensor) -> Tensor:
        seen.append(len(frames[0]))
        return torch.stack([one.mean(dim=(1, 2, 3)) for one in frames], dim=1)  # [N, 1 or 2]

    frames = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    video = torch.stack([frames[[0, 0, 1, 0]], frames[[1, 2, 2, 2]]])
    means = frames.mean(dim=(1, 2, 3))
    expected = torch.stack([means[[0, 0, 1, 0]], means[[1, 2, 2, 2]]])
    assert torch.equal(measures._by_frame(brightness, video)[..., 0], expected)
    pairs = measures._distinct(brightness, frames[[0, 0, 1, 0]], frames[[1, 1, 0, 2]])
    assert torch.equal(pairs, torch.stack([means[[0, 0, 1, 0]], means[[1, 1, 0, 2]]], dim=1))
    assert seen == [3, 3]  # frames 0, 1, 2; pairs (0, 1), (1, 0), (0, 2)


def test_background_gives_the_result_or_the_error() -> None:
    assert Background(divmod, 17, 5).result() == (3, 2)
    with pytest.raises(ZeroDivisionError):
        Background(divmod, 17, 0).result()
