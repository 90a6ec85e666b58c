"""Latent space analysis against closed forms, scikit-learn, and loops that follow the definitions literally."""

from __future__ import annotations

import math
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from contrastive_i2v.evaluation.latent_space import cluster_metrics, clusters, latent_maps, maps, trajectory_smoothness
from contrastive_i2v.evaluation.latent_space.maps import principal_axes

SEEDED = torch.Generator


def trajectories(clips: int, frames: int, size: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Clips around random centres: `[N, F + 1, D]`, the source first."""
    generator = SEEDED().manual_seed(seed)
    centres = torch.randn(clips, 1, size, generator=generator)
    return centres + spread * torch.randn(clips, frames + 1, size, generator=generator)


def turn(radians: float) -> list[float]:
    return [math.cos(radians), math.sin(radians)]


def test_tight_clusters_score_at_the_top() -> None:
    latents = trajectories(7, 4, 64, spread=0.01)
    found = cluster_metrics(latents[:, 1:], latents[:, 0])
    assert found.neighbour_purity.eq(1).all()
    assert (found.rank == 1).all()
    assert found.silhouette.min() > 0.99
    assert found.alignment.max() < 1e-3
    # distances are those between random directions, about sqrt(2): log exp(-2 * 2) = -4
    assert found.uniformity == pytest.approx(found.source_uniformity, abs=0.05)
    assert found.source_uniformity == pytest.approx(-4, abs=0.3)


def test_predictions_around_another_source_are_told_by_rank_and_alignment() -> None:
    latents = trajectories(6, 3, 64, spread=0.01)
    found = cluster_metrics(latents[:, 1:].roll(1, dims=0), latents[:, 0])
    assert not (found.rank == 1).any()
    assert found.alignment.mean().item() == pytest.approx(2, abs=0.2)  # right angles
    # the three nearest are the two predictions beside it and another clip's source
    assert found.neighbour_purity.tolist() == [[pytest.approx(2 / 3)] * 3] * 6


def test_a_collapsed_model_scores_by_chance() -> None:
    """Every latent the same: no neighbour is nearer than another."""
    same = torch.randn(1, 1, 10, generator=SEEDED().manual_seed(0)).expand(5, 4, 10)
    found = cluster_metrics(same[:, 1:], same[:, 0])
    assert found.neighbour_purity.tolist() == [[pytest.approx(3 / 19)] * 3] * 5  # F / (N F + N - 1)
    assert found.rank.eq(3).all()  # the mean of the places 1 to 5
    assert found.silhouette.eq(0).all()
    assert found.alignment.abs().max() < 1e-12
    assert found.uniformity.abs().max() < 1e-12


def test_values_worked_out_by_hand() -> None:
    """Two clips in the plane: sources at 0 and 90 degrees, predictions at 30 and 50, and at 70."""
    angles = torch.tensor([[30.0, 50.0], [70.0, 70.0]], dtype=torch.float64).deg2rad()
    predicted = torch.stack([angles.cos(), angles.sin()], dim=2) * torch.tensor([[1.0], [7.0]])  # lengths don't count
    found = cluster_metrics(predicted, torch.tensor([[3.0, 0.0], [0.0, 0.5]]), k=1)

    def cos(degrees: float) -> float:
        return math.cos(math.radians(degrees))

    assert found.rank.tolist() == [[1, 2], [1, 1]]
    assert (found.rank == 1).tolist() == [[True, False], [True, True]]
    assert found.reciprocal_rank.mean().item() == 0.875
    assert found.alignment[0].tolist() == pytest.approx([2 - 2 * cos(30), 2 - 2 * cos(50)], abs=1e-6)
    # nearest: 30 -> 50 (same clip); 50 -> 30, or either of the 70s, a tie of three; 70 -> 70
    assert found.neighbour_purity[0, 0].item() == 1
    assert found.neighbour_purity[0, 1].item() == pytest.approx(1 / 3)
    assert found.neighbour_purity[1].tolist() == [1, 1]
    within = 1 - (cos(20) + cos(30)) / 2
    between = 1 - (2 * cos(40) + cos(60)) / 3
    assert found.silhouette[0, 0].item() == pytest.approx((between - within) / max(within, between), abs=1e-6)
    expected = [-2 * (2 - 2 * cos(40)), -2 * (2 - 2 * cos(20))]  # one pair a frame
    assert found.uniformity.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.source_uniformity == pytest.approx(-4)


@pytest.mark.parametrize("slab", [2**22, 50])  # in one piece; a row and a block of a few at a time
def test_agrees_with_scikit_learn_and_with_literal_loops(monkeypatch: pytest.MonkeyPatch, slab: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    monkeypatch.setattr(clusters, "SLAB", slab)
    latents = trajectories(5, 3, 12, spread=1.0)
    predicted, source = latents[:, 1:], latents[:, 0]
    found = cluster_metrics(predicted.reshape(5, 3, 3, 2, 2), source.reshape(5, 3, 2, 2))

    pool = torch.cat([predicted.reshape(15, 12), source]).double()
    labels = [n for n in range(5) for _ in range(3)] + list(range(5))
    silhouette = metrics.silhouette_samples(pool.numpy(), labels, metric="cosine")[:15]
    assert found.silhouette.flatten().tolist() == pytest.approx(silhouette.tolist(), abs=1e-12)

    x = pool / pool.norm(dim=1, keepdim=True)
    for n in range(5):
        for f in range(3):
            i = 3 * n + f
            nearest = sorted((j for j in range(20) if j != i), key=lambda j: (x[i] - x[j]).norm().item())[:3]
            assert found.neighbour_purity[n, f].item() == pytest.approx(sum(labels[j] == n for j in nearest) / 3)
            distances = [(x[i] - x[15 + m]).norm().item() for m in range(5)]
            assert found.rank[n, f].item() == 1 + sum(d < distances[n] for d in distances)
            assert found.alignment[n, f].item() == pytest.approx(distances[n] ** 2, abs=1e-12)
    assert not (found.rank == 1).all()  # the case is hard enough to tell
    for f in range(3):
        pairs = [math.exp(-2 * (x[3 * n + f] - x[3 * m + f]).norm().item() ** 2) for n in range(5) for m in range(n)]
        assert found.uniformity[f].item() == pytest.approx(math.log(sum(pairs) / 10), abs=1e-12)
    pairs = [math.exp(-2 * (x[15 + n] - x[15 + m]).norm().item() ** 2) for n in range(5) for m in range(n)]
    assert found.source_uniformity == pytest.approx(math.log(sum(pairs) / 10), abs=1e-12)


def test_clips_that_drift_lose_rank_frame_by_frame() -> None:
    latents = trajectories(20, 5, 32, spread=0.0)
    drift = torch.randn(20, 5, 32, generator=SEEDED().manual_seed(3)) * torch.arange(5)[:, None]
    found = cluster_metrics(latents[:, 1:] + drift, latents[:, 0])
    alignment, rank = found.alignment.mean(0), found.reciprocal_rank.mean(0)
    assert (alignment.diff() > 0).all()
    assert rank[0] == 1 and rank[-1] < 0.8


def test_one_clip_has_no_others_to_compare_with() -> None:
    latents = trajectories(1, 3, 8, spread=0.1)
    found = cluster_metrics(latents[:, 1:], latents[:, 0])
    assert found.neighbour_purity.eq(1).all() and found.rank.eq(1).all()
    assert found.silhouette.isnan().all() and found.uniformity.isnan().all() and math.isnan(found.source_uniformity)


def test_cluster_arguments_are_checked() -> None:
    latents = trajectories(3, 2, 8, spread=0.1)
    predicted, source = latents[:, 1:], latents[:, 0]
    with pytest.raises(ValueError, match=re.escape("source: expected [N, D] or [N, C, h, w] with N 3 and D 8")):
        cluster_metrics(predicted, source[:2])
    with pytest.raises(ValueError, match="k: expected 1 to 2, the predictions a clip, got 3"):
        cluster_metrics(predicted, source, k=3)
    bad = predicted.clone()
    bad[1, 0, 3] = torch.nan
    with pytest.raises(ValueError, match="predicted: clip 1 holds NaN or infinity"):
        cluster_metrics(bad, source)
    with pytest.raises(ValueError, match="source: holds a latent that is all zeros"):
        cluster_metrics(predicted, source * torch.tensor([[1.0], [0.0], [1.0]]))


def test_a_straight_line_does_not_turn() -> None:
    direction = torch.randn(1, 1, 4, 2, 3, generator=SEEDED().manual_seed(1), dtype=torch.float64)
    latents = 5 + direction * torch.arange(6).view(1, 6, 1, 1, 1)
    found = trajectory_smoothness(latents)
    length = direction.norm().item()
    assert found.speed[0].tolist() == pytest.approx([length] * 5)
    assert found.curvature.abs().max() < 1e-12
    assert found.straightness.item() == pytest.approx(1, abs=1e-14)


def test_a_circle_turns_by_the_same_angle_at_each_step() -> None:
    radius, step = 3.0, 2 * math.pi / 12
    points = torch.tensor([turn(step * f) for f in range(13)], dtype=torch.float64) * radius
    found = trajectory_smoothness(points[None])
    chord = 2 * radius * math.sin(step / 2)
    assert found.curvature[0].tolist() == pytest.approx([step] * 11)
    assert found.speed[0].tolist() == pytest.approx([chord] * 12)
    assert found.straightness.item() == pytest.approx(0, abs=1e-15)
    half = trajectory_smoothness(points[None, :7])
    assert half.straightness.item() == pytest.approx(2 * radius / (6 * chord))


def test_going_back_turns_by_pi_and_a_corner_by_half_of_it() -> None:
    path = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [1.0, 1.0]]])
    found = trajectory_smoothness(path)
    assert found.curvature[0].tolist() == pytest.approx([math.pi / 2, math.pi])
    assert found.speed[0].tolist() == [1, 2, 1]
    assert found.straightness.item() == pytest.approx(math.sqrt(2) / 4)


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_standstill_has_no_direction(noise: float) -> None:
    """Also when rounding moves it."""
    generator = SEEDED().manual_seed(2)
    still = torch.randn(1, 1, 4, 2, 2, generator=generator).expand(1, 5, 4, 2, 2)
    moving = torch.randn(1, 5, 4, 2, 2, generator=generator)
    latents = torch.cat([still + noise * torch.randn(1, 5, 4, 2, 2, generator=generator), moving])
    found = trajectory_smoothness(latents)
    assert found.speed[0].max() <= 10 * noise
    assert found.curvature[0].isnan().all() and found.straightness[0].isnan()
    assert found.curvature[1].isfinite().all() and found.straightness[1].isfinite()


def test_a_pause_hides_only_the_turns_beside_it() -> None:
    path = torch.tensor([[[1.0, 1.0], [2.0, 1.0], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0]]])
    assert trajectory_smoothness(path).curvature[0].tolist() == pytest.approx([math.nan, math.nan, 0], nan_ok=True)
    assert trajectory_smoothness(path).straightness.item() == 1


def test_independent_noise_turns_by_two_thirds_of_pi() -> None:
    latents = torch.randn(20, 8, 2000, generator=SEEDED().manual_seed(4))
    assert trajectory_smoothness(latents).curvature.mean().item() == pytest.approx(2 * math.pi / 3, abs=0.01)


def test_two_frames_have_speed_alone() -> None:
    found = trajectory_smoothness(torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]))
    assert found.speed.tolist() == [[5]] and found.straightness.tolist() == [1]
    assert found.curvature.shape == (1, 0)
    with pytest.raises(ValueError, match=re.escape("expected at least 2 frames, got [1, 1, 4]")):
        trajectory_smoothness(torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match="clip 2 holds NaN"):
        trajectory_smoothness(torch.tensor([0.0, 1.0, torch.inf]).view(3, 1, 1).expand(3, 2, 4))


@pytest.mark.parametrize("shape", [(40, 6), (9, 25)])  # the larger side of the matrix is the other one
def test_principal_axes_are_scikit_learns(shape: tuple[int, int]) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    points = torch.randn(*shape, generator=SEEDED().manual_seed(5), dtype=torch.float64) * torch.arange(1, shape[1] + 1)
    mean, axes, shares = principal_axes(points, 2)
    theirs = decomposition.PCA(2, svd_solver="full").fit(points.numpy())
    expected = torch.from_numpy(theirs.components_)
    expected = expected * expected.gather(1, expected.abs().argmax(1, keepdim=True)).sign()
    torch.testing.assert_close(axes, expected, atol=1e-8, rtol=0)
    assert shares.tolist() == pytest.approx(theirs.explained_variance_ratio_.tolist())
    assert mean.tolist() == pytest.approx(points.mean(0).tolist())


def test_the_pca_map_is_the_plane_of_the_truth() -> None:
    """The truth moves in the first two of 20 dimensions, the generated clips beside it in a third too."""
    generator = SEEDED().manual_seed(6)
    flat = torch.randn(8, 5, 2, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 1.0])
    truth = torch.cat([flat, torch.zeros(8, 5, 18)], dim=2)
    generated = truth.clone()
    generated[..., 7] = 100.0
    generated[:, :, 0] += 2.0
    (found,) = latent_maps(generated, truth, seed=0, umap=False)
    assert found.method == "PCA"
    assert sum(found.explained) == pytest.approx(1)
    points, true = torch.tensor(found.points), torch.tensor(found.truth)
    shift = points - true
    torch.testing.assert_close(shift, shift[:1, :1].expand_as(shift), atol=1e-5, rtol=0)
    assert shift[0, 0].norm().item() == pytest.approx(2, abs=1e-5)
    torch.testing.assert_close(torch.cdist(true[0], true[0]), torch.cdist(flat[0], flat[0]).float(), atol=1e-5, rtol=0)


def test_many_latents_are_fitted_on_some_and_all_are_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = trajectories(30, 3, 6, spread=0.5) * torch.tensor([9.0, 4.0, 1.0, 1.0, 1.0, 1.0])
    whole = latent_maps(truth, truth, seed=0, umap=False)[0]
    monkeypatch.setattr(maps, "FIT_LATENTS", 40)  # ten clips of four
    seen: list[int] = []
    fit = principal_axes
    monkeypatch.setattr(maps, "principal_axes", lambda points, count: (seen.append(len(points)), fit(points, count))[1])
    part = latent_maps(truth, truth, seed=0, umap=False)[0]
    assert seen[0] == 40
    assert len(part.points) == 30 and part.points == part.truth
    assert part.points != latent_maps(truth, truth, seed=1, umap=False)[0].points
    first = torch.tensor([[clip[0][0] for clip in found.points] for found in (whole, part)])
    assert torch.corrcoef(first)[0, 1].abs() > 0.95


def test_a_truth_that_stands_still_has_no_directions() -> None:
    (found,) = latent_maps(torch.randn(2, 3, 5), torch.ones(2, 3, 5), seed=0, umap=False)
    assert found.explained == [0, 0]
    assert found.truth == [[[0, 0]] * 3] * 2


def test_map_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=re.escape("the same shape, got [2, 3, 5] and [2, 4, 5]")):
        latent_maps(torch.ones(2, 3, 5), torch.ones(2, 4, 5), seed=0)
    with pytest.raises(ValueError, match="truth: clip 0 holds NaN"):
        latent_maps(torch.ones(2, 3, 5), torch.full((2, 3, 5), torch.nan), seed=0)


class RecordingUMAP:
    """In umap-learn's place: leaves the points at their start, and notes what it was given."""

    made: list[RecordingUMAP]

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.made.append(self)

    def fit_transform(self, points: Any) -> Any:
        self.points = torch.from_numpy(points)
        return self.options["init"]


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[RecordingUMAP]:
    RecordingUMAP.made = []
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=RecordingUMAP))
    return RecordingUMAP.made


def test_umap_is_fitted_on_both_sets_from_their_principal_components(recording: list[RecordingUMAP]) -> None:
    latents = trajectories(5, 3, 70, spread=0.5)
    generated, truth = latents + 0.3, latents
    _, found = latent_maps(generated, truth, seed=3)
    both = torch.cat([generated, truth]).flatten(0, 1).double()  # [40, 70]
    used = recording[0].points
    torch.testing.assert_close(torch.cdist(used, used), torch.cdist(both, both), atol=1e-6, rtol=0)  # 39 of 50 suffice
    points = torch.tensor([found.points, found.truth]).flatten(0, 2)
    torch.testing.assert_close(points, (used[:, :2] * (10 / used[:, :2].abs().max())).float())
    options = recording[0].options
    assert (options["random_state"], options["n_jobs"], options["n_neighbors"]) == (3, 1, 15)
    indices, distances, _ = options["precomputed_knn"]
    assert indices[:, 0].tolist() == list(range(40)) and not distances[:, 0].any()
    for i in (0, 17, 39):
        order = sorted(range(40), key=lambda j, i=i: (both[i] - both[j]).norm().item())
        assert indices[i].tolist() == order[:15]
        assert distances[i, 1] == pytest.approx((both[i] - both[order[1]]).norm().item(), rel=1e-6)


def test_umap_of_many_latents_is_fitted_on_some_and_places_the_others_beside_them(
    recording: list[RecordingUMAP], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "FIT_LATENTS", 60)  # six clips of ten
    truth = trajectories(3, 9, 30, spread=0.01).repeat(3, 1, 1)  # nine clips around three centres
    _, found = latent_maps(truth, truth, seed=0)
    assert len(recording[0].points) == 2 * 60
    points = torch.tensor(found.points)  # [9, 10, 2]
    assert (points[:3] - points[3:6]).norm(dim=-1).max() < 1
    assert (points[0] - points[1]).norm(dim=-1).min() > 3


def test_umap_is_left_out_where_it_cannot_be(recording: list[RecordingUMAP], monkeypatch: pytest.MonkeyPatch) -> None:
    two, eight = torch.randn(1, 2, 5), torch.randn(2, 2, 5)
    assert [found.method for found in latent_maps(two, two, seed=0)] == ["PCA"]  # 4 latents in all
    assert [found.method for found in latent_maps(eight, eight, seed=0)] == ["PCA", "UMAP"]
    assert recording[0].options["n_neighbors"] == 7
    _, still = latent_maps(torch.ones(2, 3, 5), torch.ones(2, 3, 5), seed=0)
    assert still.points == still.truth == [[[0, 0]] * 3] * 2
    monkeypatch.setitem(sys.modules, "umap", None)  # not installed
    assert [found.method for found in latent_maps(eight, eight, seed=0)] == ["PCA"]


@pytest.mark.umap
@pytest.mark.timeout(900)  # numba compiles for 13 s, longer on a busy machine
def test_the_real_umap_keeps_clips_apart_and_repeats_itself() -> None:
    pytest.importorskip("umap", reason="umap-learn is not installed")
    truth = trajectories(4, 9, 30, spread=0.05)
    generated = truth + 0.01 * torch.randn(truth.shape, generator=SEEDED().manual_seed(7))
    _, first = latent_maps(generated, truth, seed=3)
    points = torch.tensor([first.points, first.truth])  # [2, N, F, 2]
    centres = points.mean(dim=(0, 2))
    extent = (points - centres[:, None]).norm(dim=-1).amax(dim=(0, 2))
    gaps = torch.cdist(centres, centres) + 1e9 * torch.eye(4)
    assert (gaps.amin(dim=1) > extent).all()  # each clip apart, its truth and its prediction together
    assert latent_maps(generated, truth, seed=3)[1] == first
