"""The suite end to end on small real clips with small fixed networks: what the numbers are."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluating import Colours, F, Words, changed, extractor, flicker, metrics, run, shift, shuffle, still, values
from torch import Tensor

from contrastive_i2v.data.video import read_frames
from contrastive_i2v.evaluation.extractors.preparation import (
    CENTRE_SQUARE,
    VBENCH_BACKGROUND,
    VBENCH_I2V_BACKGROUND,
    VBENCH_I2V_SUBJECT,
    VBENCH_SUBJECT,
    ResizableNetwork,
)
from contrastive_i2v.evaluation.generators import Batch, Method, first_frame
from contrastive_i2v.evaluation.results import Report, load_report
from contrastive_i2v.evaluation.suite import Networks
from contrastive_i2v.evaluation.suite.store import load_tensors, metadata_of
from contrastive_i2v.evaluation.temporal import (
    consistency,
    feature_coherence,
    image_to_video_consistency,
    later_frames_consistency,
)
from contrastive_i2v.evaluation.videos import ReferenceSet, read_true_frames


@pytest.fixture(scope="module")
def report(reference: ReferenceSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    output = tmp_path_factory.mktemp("suite") / "out"
    changes = {"same": lambda v: v, "shifted": shift, "shuffled": shuffle, "flickering": flicker, "still": still}
    return run(reference, [changed(name, change) for name, change in changes.items()], output), output


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
    assert every == {"colours", "pooled", "jump", "shrunk", "words", "shapes-reader"} == set(found.extractors)
    assert any("LPIPS is left out" in text for text in found.warnings)
    assert any("6 clips: too few" in text for text in found.warnings)


def test_every_promised_metric_is_there(report: tuple[Report, Path]) -> None:
    expected = """fid fid_extrapolated kid inception_score fvd fvd_extrapolated kvd clip_score_source
    clip_score_generated clip_score_target clipsim temporal_flickering subject_consistency
    background_consistency i2v_subject i2v_subject_later i2v_background i2v_background_later feature_coherence
    pixel_coherence dynamic_degree flow_magnitude motion_ratio frame_mse psnr ssim retrieval_accuracy
    neighbour_purity silhouette alignment uniformity source_rank latent_speed latent_curvature latent_straightness
    precision recall density coverage precision_frames recall_frames density_frames coverage_frames
    caption_shape caption_colour caption_direction caption_holds caption_shape_plain_last drift_features drift_psnr
    feature_cosine_by_lag spatial_high_frequencies temporal_high_frequencies"""
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


def test_the_i2v_background_has_a_network_of_its_own(reference: ReferenceSet, tmp_path: Path) -> None:
    class Dream(Colours):
        about = extractor("dreamsim, VBench I2V background", 6)

    networks = Networks(image=Colours(), clip=Words(), i2v_background=Dream())
    scored = metrics(run(reference, [changed("ours", flicker)], tmp_path, networks=networks), "ours")
    for name in ("i2v_background", "i2v_background_later"):
        assert scored[name].extractor == Dream.about.name
        assert "DreamSim" not in scored[name].warning and "network" not in scored[name].warning
        assert scored[name].per_clip == pytest.approx(scored[name.replace("background", "subject")].per_clip)
    assert scored["background_consistency"].extractor == "words"


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
