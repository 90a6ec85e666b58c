"""Whether captions hold, modes and drift, end to end on generated clips of 64 pixels with the packaged classifier."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from evaluating import Colours, Pooled, changed, metrics, run, values
from torch import Tensor

from contrastive_i2v.data.shapes import DIRECTIONS, ShapeScene, ShapesConfig, render_scene, sample_scene
from contrastive_i2v.data.video import write_video
from contrastive_i2v.evaluation.captions import expected_entropy
from contrastive_i2v.evaluation.generators import Batch, Method
from contrastive_i2v.evaluation.results import Report
from contrastive_i2v.evaluation.suite import Networks
from contrastive_i2v.evaluation.videos import ReferenceSet, read_reference_set

CLIPS, FRAMES = 12, 6
NETWORKS = Networks(image=Colours(), video=Pooled())


def scenes() -> list[ShapeScene]:
    """Slow shapes, so that half of a clip shows the same half of the frame; the first six over plain walls."""
    found = [sample_scene(ShapesConfig(seed=55, occlusion=0, background_motion=0), "test", n) for n in range(CLIPS)]
    return [
        replace(one, background="a plain wall" if n < 6 else "stripes", speed="slowly") for n, one in enumerate(found)
    ]


def draw(scene: ShapeScene) -> Tensor:
    """uint8 `[F, 3, 64, 64]` at 5 a second."""
    return render_scene(scene, frames=5 * FRAMES, size=64)[::5]


def write(folder: Path, captions: list[str]) -> ReferenceSet:
    folder.mkdir()
    rows = []
    for number, (scene, caption) in enumerate(zip(scenes(), captions, strict=True)):
        write_video(folder / f"{number:02d}.mp4", render_scene(scene, frames=5 * FRAMES, size=64), 25.0)
        rows.append(json.dumps({"file_name": f"{number:02d}.mp4", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return read_reference_set(folder, frames=FRAMES, resolution=64)


def answers(name: str, change: dict[str, str]) -> Method:
    """A method that draws every scene with something else in it from frame 3 on."""

    def generate(batch: Batch) -> Tensor:
        found = []
        for clip in batch.clips:
            scene = scenes()[int(clip.name)]
            found.append(torch.cat([draw(scene)[:3], draw(replace(scene, **change))[3:]]))
        return torch.stack(found)

    return Method(name, "videos", {"change": name}, lambda: generate)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> ReferenceSet:
    return write(tmp_path_factory.mktemp("shapes") / "clips", [scene.caption for scene in scenes()])


@pytest.fixture(scope="module")
def report(reference: ReferenceSet, tmp_path_factory: pytest.TempPathFactory) -> Report:
    methods = [
        changed("same", lambda video: video),
        changed("still", lambda video: video[[0] * FRAMES]),
        changed("backwards", lambda video: video.flip(0)),
        changed("blurred", blur),
        answers("shape", {"shape": "cross"}),
        answers("colour", {"colour": "white"}),
    ]
    return run(reference, methods, tmp_path_factory.mktemp("out"), networks=NETWORKS)


def blur(video: Tensor) -> Tensor:
    """The later, the more."""
    frames = [
        torch.nn.functional.avg_pool2d(frame.float(), 2 * n + 1, stride=1, padding=n, count_include_pad=False)
        for n, frame in enumerate(video)
    ]
    return torch.stack(frames).round().to(torch.uint8)


def share(wrong: str, of: str) -> float:
    return sum(getattr(scene, of) == wrong for scene in scenes()) / CLIPS


def test_the_truth_holds(report: Report) -> None:
    found = metrics(report, "same")
    for name in ("caption_shape", "caption_colour", "caption_direction", "caption_holds", "caption_shape_plain_last"):
        assert found[name].group == "Caption" and found[name].extractor == "shapes-reader"
        assert found[name].estimate.value == found[name].truth > 0.9, name
    assert found["caption_shape_plain_last"].samples == 6
    assert [math.isnan(one) for one in found["caption_direction"].per_frame] == [True] + [False] * 5
    assert "mode_coverage" not in found
    assert "shapes-reader" in report.extractors


def test_each_reading_sees_what_it_is_of(report: Report) -> None:
    same, shape, colour = (values(report, name) for name in ("same", "shape", "colour"))
    # frames 1 and 2 of 1 to 5 are right, and clips that had it anyway
    assert shape["caption_shape"] == pytest.approx(0.4 + 0.6 * share("cross", "shape"), abs=0.08)
    assert colour["caption_colour"] == pytest.approx(0.4 + 0.6 * share("white", "colour"), abs=0.08)
    assert shape["caption_colour"] > 0.9 and colour["caption_shape"] > 0.9
    assert shape["caption_shape_plain_last"] <= 1 / 6 < same["caption_shape_plain_last"]
    curve = metrics(report, "shape")["caption_holds"].per_frame
    assert min(curve[1:3]) > 0.8 and max(curve[3:]) < 0.4


def test_still_and_backward_videos_don_t_move_as_captioned(report: Report) -> None:
    for name in ("still", "backwards"):
        found = values(report, name)
        assert found["caption_direction"] < 0.1 and found["caption_holds"] < 0.1
        assert found["caption_shape"] > 0.9


def test_neighbours_drift_and_frequencies(report: Report) -> None:
    same, still, blurred = (values(report, name) for name in ("same", "still", "blurred"))
    for name in ("precision", "recall", "coverage"):
        assert same[name] == same[f"{name}_frames"] == 1
    found = metrics(report, "same")
    assert found["density"].estimate.value >= 1
    assert len(found["coverage_frames"].per_frame) == FRAMES and not found["coverage"].per_frame
    assert same["drift_psnr"] == 0 == pytest.approx(same["drift_features"], abs=1e-12)
    assert same["spatial_high_frequencies"] == same["temporal_high_frequencies"] == 1
    assert still["temporal_high_frequencies"] == 0
    assert blurred["drift_psnr"] > 2
    curve = metrics(report, "blurred")["spatial_high_frequencies"].per_frame
    assert curve[0] == pytest.approx(1) and max(curve[1:]) < 0.2
    lags = found["feature_cosine_by_lag"]
    assert lags.per_frame[0] == pytest.approx(1) and lags.per_frame == pytest.approx(lags.per_frame_truth)
    assert metrics(report, "still")["feature_cosine_by_lag"].per_frame == pytest.approx([1] * FRAMES)


def samples(name: str, directions: dict[int, str]) -> Method:
    """Seeds that each go their own way."""

    def generate(batch: Batch) -> Tensor:
        return torch.stack(
            [draw(replace(scenes()[int(clip.name)], direction=directions[batch.seed])) for clip in batch.clips]
        )

    return Method(name, "videos", {"change": name}, lambda: generate, seeds=tuple(directions))


def test_modes_of_captions_that_leave_the_future_open(tmp_path: Path) -> None:
    captions = [
        f"{'an' if one.colour == 'orange' else 'a'} {one.colour} {one.shape} moves over {one.background}"
        for one in scenes()
    ]
    captions[-1] = "a dog"
    reference = write(tmp_path / "open", captions)
    methods = [
        samples("each", dict(enumerate(DIRECTIONS))),
        samples("one", dict.fromkeys(range(4), "up")),
        replace(changed("still", lambda video: video[[0] * FRAMES]), seeds=(0, 1)),
        changed("single", lambda video: video),
    ]
    report = run(reference, methods, tmp_path / "out", networks=Networks())
    each, one, still, single = (metrics(report, method.name) for method in methods)
    most = math.log(4) / expected_entropy(4, 4)
    assert each["mode_coverage"].estimate.value == pytest.approx(most, rel=0.05)
    assert each["distinct_directions"].estimate.value == pytest.approx(4, abs=0.2)
    assert each["distinct_directions"].truth == pytest.approx(4 * (1 - 0.75**4))
    assert one["mode_coverage"].estimate.value < 0.1
    assert one["distinct_directions"].estimate.value == pytest.approx(1, abs=0.1)
    assert still["mode_coverage"].estimate.value == still["distinct_directions"].estimate.value == 0
    assert each["mode_coverage"].samples == CLIPS - 1  # without the dog
    assert "caption_direction" not in each and each["caption_holds"].estimate.value > 0.9
    assert "mode_coverage" not in single


def test_other_footage_has_no_captions_group(tmp_path: Path) -> None:
    reference = write(tmp_path / "dogs", ["a dog"] * CLIPS)
    report = run(reference, [changed("same", lambda video: video)], tmp_path / "out", networks=Networks())
    assert not [name for name in values(report, "same") if name.startswith("caption")]
    assert not report.extractors


def test_videos_too_short_for_a_direction_have_none(reference: ReferenceSet, tmp_path: Path) -> None:
    short = read_reference_set(reference.folder, frames=3, resolution=64, frame_rate=25.0, limit=3)
    methods = [replace(changed("same", lambda video: video), seeds=(0, 1))]
    found = metrics(run(short, methods, tmp_path, networks=Networks()), "same")
    assert math.isnan(found["caption_direction"].estimate.value) and found["caption_direction"].samples == 0
    assert math.isnan(found["caption_holds"].estimate.value)
    assert found["caption_shape"].estimate.value > 0.9
