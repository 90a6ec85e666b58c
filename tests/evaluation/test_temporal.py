"""Metrics over time on clips made by hand: still, flickering, moving by k pixels, and shuffled in time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contrastive_i2v.evaluation.frames import motion
from contrastive_i2v.evaluation.results import Extractor
from contrastive_i2v.evaluation.temporal import (
    consistency,
    cosine_by_lag,
    drift,
    feature_coherence,
    flicker_by_frame,
    image_to_video_consistency,
    is_dynamic,
    later_frames_consistency,
    pixel_coherence,
)

SIZE, FRAMES = 32, 16


class KnownFlow:
    """Says what it is told: one displacement (x, y) for each pair, on a share of the pixels; 0 elsewhere."""

    about = Extractor(name="known", dimension=2, weights="", resize="")

    def __init__(self, displacements: list[tuple[float, float]], pixels: int) -> None:
        self.displacements, self.pixels = displacements, pixels
        self.seen: list[Tensor] = []

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        self.seen = [first, second]
        flow = torch.zeros(len(first), 2, *first.shape[-2:])
        for pair, (dx, dy) in zip(flow.flatten(2), self.displacements, strict=True):
            pair[:, : self.pixels] = torch.tensor([[dx], [dy]])
        return flow


class ShiftFlow:
    """Block matching for whole-pixel shifts with wrap-around: the roll in x that fits best, for every pixel."""

    about = Extractor(name="shift", dimension=2, weights="", resize="")

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        rolls = range(-SIZE // 2, SIZE // 2)
        errors = torch.stack([(first.roll(k, dims=-1) - second).square().mean(dim=(1, 2, 3)) for k in rolls])
        best = errors.argmin(dim=0) - SIZE // 2  # [P]
        errors_still = (first - second).square().mean(dim=(1, 2, 3))
        best = torch.where(errors_still <= errors.amin(dim=0), 0, best)
        flow = torch.zeros(len(first), 2, SIZE, SIZE)
        flow[:, 0] = best[:, None, None]
        return flow


def colours_and_layout(videos: Tensor) -> Tensor:
    """A dummy network: 1 and the mean colour (blind to where things are), beside a blurred layout."""
    frames = videos.flatten(0, 1)
    layout = F.avg_pool2d(frames, SIZE // 4).flatten(1)
    return torch.cat([torch.ones(len(frames), 1), frames.mean(dim=(2, 3)), layout], dim=1).unflatten(
        0, videos.shape[:2]
    )


def textured() -> Tensor:
    """A picture `[3, SIZE, SIZE]` within [-0.7, 0.7] in which no two columns are alike."""
    noise = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return 0.7 * noise


def still() -> Tensor:
    return textured().expand(1, FRAMES, 3, SIZE, SIZE).clone()


def flickering() -> Tensor:
    """Brighter by 0.2 in every other frame."""
    return still() + 0.2 * (torch.arange(FRAMES) % 2)[None, :, None, None, None]


def shifted(k: int) -> Tensor:
    """To the right by k pixels a frame, coming back on the left."""
    return torch.stack([textured().roll(k * frame, dims=-1) for frame in range(FRAMES)])[None]


def shuffled(video: Tensor) -> Tensor:
    """The same frames; the given one stays in front."""
    order = 1 + torch.randperm(FRAMES - 1, generator=torch.Generator().manual_seed(1))
    return video[:, torch.cat([torch.tensor([0]), order])]


def numbers(video: Tensor) -> dict[str, float]:
    features = colours_and_layout(video)
    return {
        "flickering": float(flicker_by_frame(video).mean()),
        "pixels": float(pixel_coherence(video).mean()),
        "coherence": float(feature_coherence(features).mean()),
        "consistency": float(consistency(features).mean()),
        "to the image": float(later_frames_consistency(features, features[:, 0])),
        "dynamic": float(is_dynamic(video[0], ShiftFlow(), 8).dynamic),
    }


# --- which metric moves on which clip


def test_a_still_clip_is_perfect_in_all_but_the_dynamic_degree() -> None:
    assert numbers(still()) == pytest.approx(
        {"flickering": 1, "pixels": 0, "coherence": 1, "consistency": 1, "to the image": 1, "dynamic": 0}, abs=1e-12
    )


def test_flicker_moves_flickering_and_features_but_is_no_motion() -> None:
    found = numbers(flickering())
    assert found["flickering"] == pytest.approx(1 - 0.2 / 2, abs=1e-7)
    assert found["pixels"] == pytest.approx(0.04, abs=1e-7)
    assert found["dynamic"] == 0
    assert found["coherence"] < 0.999 and found["consistency"] < 0.999
    # frames 2, 4, .. are the input again, which the metric's first term is content with
    assert found["to the image"] == pytest.approx(0.4 + 0.6 * found["coherence"], rel=1e-9)


@pytest.mark.parametrize(("k", "dynamic"), [(0, 0.0), (1, 1.0), (4, 1.0)])
def test_a_shift_by_k_pixels_is_motion(k: int, dynamic: float) -> None:
    """The threshold of 32 pixels is 6 * 32 / 256 = 0.75 pixels a pair."""
    found, picture = numbers(shifted(k)), textured().double()
    step = picture.roll(k, dims=-1) - picture
    assert found["flickering"] == pytest.approx(1 - float(step.abs().mean()) / 2, rel=1e-12)
    assert found["pixels"] == pytest.approx(float(step.square().mean()), rel=1e-12, abs=1e-12)
    assert found["dynamic"] == dynamic
    assert is_dynamic(shifted(k)[0], ShiftFlow(), 8).magnitudes == [float(k)] * (FRAMES - 1)


def test_features_blind_to_place_do_not_see_the_shift() -> None:
    colours = colours_and_layout(shifted(3))[..., :4]
    assert consistency(colours).tolist() == [pytest.approx([1.0] * (FRAMES - 1), abs=1e-9)]
    assert float(image_to_video_consistency(colours, colours[:, 0])) == pytest.approx(1, abs=1e-9)


def test_shuffling_moves_what_is_between_frames_and_nothing_of_single_frames() -> None:
    ordered = shifted(1)
    # a shift of smooth content, so that neighbours in time are alike
    ordered = F.avg_pool2d(F.pad(ordered[0], (4, 4, 4, 4), mode="circular"), 9, stride=1)[None]
    mixed = shuffled(ordered)
    before, after = numbers(ordered), numbers(mixed)
    assert after["flickering"] < before["flickering"]
    assert after["pixels"] > 2 * before["pixels"]
    for name in ("coherence", "consistency", "to the image"):
        assert after[name] < before[name]
    to_first = colours_and_layout(ordered)[0], colours_and_layout(mixed)[0]
    sims = [F.cosine_similarity(one[:1], one[1:]).sort().values for one in to_first]
    torch.testing.assert_close(sims[0], sims[1])
    still_mixed = numbers(shuffled(still()))
    assert still_mixed == numbers(still())


# --- formulas by hand


def test_flickering_is_in_parts_of_255() -> None:
    """From pixel 100 to 151 everywhere: (255 - 51) / 255."""
    values = torch.tensor([100.0, 151.0, 151.0]) / 127.5 - 1
    video = values[None, :, None, None, None].expand(1, 3, 3, 4, 4)
    assert flicker_by_frame(video).tolist() == [pytest.approx([204 / 255, 1.0], abs=1e-7)]
    assert flicker_by_frame(video).mean(dim=1).tolist() == pytest.approx([(204 / 255 + 1) / 2], abs=1e-7)
    assert flicker_by_frame(video).mean(dim=1).tolist() == pytest.approx((1 - motion(video) / 2).tolist(), rel=1e-12)


def test_pixel_coherence_keeps_clips_and_pairs_apart() -> None:
    values = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, -1.0]])
    video = values[:, :, None, None, None].expand(2, 3, 3, 4, 5)
    assert pixel_coherence(video).tolist() == [[0.25, 0.0], [1.0, 1.0]]


def directions(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)[None] * torch.arange(1, len(degrees) + 1)[None, :, None]


def test_consistency_by_hand() -> None:
    """At 0, 60, 180 and 180 degrees: cosines to the one before 1/2, -1/2 -> 0, 1; to the first 1/2, -1 -> 0, 0."""
    features = directions(0, 60, 180, 180)
    assert feature_coherence(features).tolist() == [pytest.approx([0.5, -0.5, 1.0])]
    assert consistency(features).tolist() == [pytest.approx([0.5, 0.0, 0.5], abs=1e-12)]


def test_image_to_video_consistency_takes_the_best_of_all_frames_by_hand() -> None:
    """The given frame itself is the best: 1; from frame 1 on it is 1/2. Consecutive, negative ones as 0: 1/2, 0, 1."""
    features = directions(0, 60, 180, 180)
    image = features[:, 0]
    rest = 0.3 * 0.5 + 0.3 * 0
    assert image_to_video_consistency(features, image).tolist() == pytest.approx([0.4 * 1 + rest])
    assert later_frames_consistency(features, image).tolist() == pytest.approx([0.4 * 0.5 + rest])
    old = (0.5, 0.5, 0.0)
    assert image_to_video_consistency(features, image, weights=old).tolist() == pytest.approx([0.75])
    assert later_frames_consistency(features, image, weights=old).tolist() == pytest.approx([0.5])


def test_frame_0_is_compared_with_the_input_image_where_it_is_another() -> None:
    """Frame 0 is 60 degrees off, the others more."""
    features, image = directions(60, 90, 90), directions(0)[:, 0]
    found = image_to_video_consistency(features, image)
    assert found.tolist() == pytest.approx([0.4 * 0.5 + 0.3 * (math.cos(math.pi / 6) + 1) / 2 + 0.3 * 3**0.5 / 2])


def i2v_by_loop(features: np.ndarray, image: np.ndarray, first: int) -> float:
    """One video `[F, d]`, a frame at a time."""

    def similarity(a: np.ndarray, b: np.ndarray) -> float:
        return max(0.0, float(a @ b / np.sqrt((a @ a) * (b @ b))))

    to_image, consecutive = [], []
    for t in range(len(features)):
        if t > 0:
            consecutive.append(similarity(features[t - 1], features[t]))
        if t >= first:
            to_image.append(similarity(image, features[t]))
    return 0.4 * max(to_image) + 0.3 * sum(consecutive) / len(consecutive) + 0.3 * min(consecutive)


def test_image_to_video_consistency_equals_a_loop_over_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 7, 6, generator=generator, dtype=torch.float64) + 0.5
    image = torch.randn(5, 6, generator=generator, dtype=torch.float64) + 0.5
    for metric, first in ((image_to_video_consistency, 0), (later_frames_consistency, 1)):
        expected = [i2v_by_loop(x.numpy(), y.numpy(), first) for x, y in zip(features, image, strict=True)]
        assert metric(features, image).tolist() == pytest.approx(expected, rel=1e-12)
    assert bool((later_frames_consistency(features, image) <= image_to_video_consistency(features, image)).all())


def test_an_image_for_each_video_is_asked_for() -> None:
    features = directions(0, 60, 180)
    with pytest.raises(ValueError, match=r"image: expected finite \[1, 2\], a row a video, got \[3, 2\]"):
        image_to_video_consistency(features, features[0])
    with pytest.raises(ValueError, match="image: expected finite"):
        image_to_video_consistency(features, features[:, 0] * math.nan)


# --- dynamic degree


def test_a_pair_moves_by_its_fastest_twentieth() -> None:
    """32 x 32: the top 5 % are 51 pixels. Displacement (3, 4) on 30 of them: 5 * 30 / 51 pixels."""
    flow = KnownFlow([(3, 4)] * 3, pixels=30)
    found = is_dynamic(still()[0, :4], flow, fps=8)
    assert found.magnitudes == pytest.approx([150 / 51] * 3)
    assert found.dynamic


@pytest.mark.parametrize(("moving", "dynamic"), [(3, False), (4, True)])
def test_sixteen_frames_move_if_four_pairs_do(moving: int, dynamic: bool) -> None:
    pairs = [(0.76, 0.0)] * moving + [(0.75, 0.0)] * (15 - moving)  # the threshold itself is not beyond it
    found = is_dynamic(still()[0], KnownFlow(pairs, SIZE * SIZE), fps=8)
    assert (found.dynamic, len(found.magnitudes)) == (dynamic, 15)


def test_frames_are_taken_eight_a_second() -> None:
    video = torch.arange(16.0)[:, None, None, None].expand(16, 3, SIZE, SIZE) / 16
    flow = KnownFlow([(9, 0)] * 5, SIZE * SIZE)
    assert len(is_dynamic(video, flow, fps=25).magnitudes) == 5  # every third
    assert [float(frame[0, 0, 0]) * 16 for frame in flow.seen[0]] == [0, 3, 6, 9, 12]
    assert [float(frame[0, 0, 0]) * 16 for frame in flow.seen[1]] == [3, 6, 9, 12, 15]
    assert is_dynamic(video[:2], KnownFlow([(0, 0)], 1), fps=2).dynamic is False  # 4 * 2 / 16 rounds to 0 pairs


def test_the_threshold_goes_by_the_shorter_side() -> None:
    wide = torch.zeros(2, 3, 64, 256)
    assert is_dynamic(wide, KnownFlow([(0, 1.6)], 64 * 256), fps=8).dynamic  # beyond 6 * 64 / 256 = 1.5
    assert not is_dynamic(wide, KnownFlow([(0, 1.4)], 64 * 256), fps=8).dynamic


# --- bad input


def test_bad_input_is_named() -> None:
    video, features = still(), torch.ones(2, 4, 3)
    with pytest.raises(ValueError, match="videos: expected .* F >= 2"):
        flicker_by_frame(video[:, :1])
    video[0, 3, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="videos: expected finite pixels, got NaN or infinity in clip 0"):
        pixel_coherence(video)
    features[1, 2, 0] = math.inf
    for metric in (feature_coherence, consistency, lambda x: image_to_video_consistency(x, x[:, 0])):
        with pytest.raises(ValueError, match="features: NaN or infinity in 1 frames, the first is frame 2 of clip 1"):
            metric(features)
        with pytest.raises(ValueError, match=r"features: expected .* got \[2, 1, 3\]"):
            metric(features[:, :1])
    with pytest.raises(ValueError, match="every 3.; expected 2 or more"):
        is_dynamic(still()[0, :3], ShiftFlow(), fps=25)
    with pytest.raises(ValueError, match="fps > 0"):
        is_dynamic(still()[0], ShiftFlow(), fps=0)
    with pytest.raises(ValueError, match="flow: expected finite"):
        is_dynamic(still()[0, :2], KnownFlow([(math.nan, 0)], 5), fps=8)


def test_drift_is_the_beginning_minus_the_end() -> None:
    values = torch.arange(20.0).flip(0)[None].expand(2, -1).clone()
    values[1] = 5
    assert drift(values).tolist() == [18 - 1, 0]  # three of 20 frames: 19, 18, 17 against 2, 1, 0
    assert drift(values[:, :4]).tolist() == [19 - 16, 0]  # one at least
    assert drift(values[:, :1]).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"\[N, F\]"):
        drift(values[0])


def test_cosine_by_lag_of_a_vector_that_turns() -> None:
    angle = torch.arange(7, dtype=torch.float64) * 0.2
    features = torch.stack([angle.cos(), angle.sin()], dim=-1)[None]
    found = cosine_by_lag(torch.cat([features, 3 * features[:, :1].expand(-1, 7, -1)]))
    assert found[0].tolist() == pytest.approx(angle.cos().tolist())
    assert found[1].tolist() == pytest.approx([1] * 7)
    with pytest.raises(ValueError, match=r"\[N, F, d\]"):
        cosine_by_lag(features[0])
