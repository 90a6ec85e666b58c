"""Calibration: the truth's own denoiser needs no scale, a shrunken one needs the inverse, and nothing is done twice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from toy import NOISE, Toy

from contrastive_i2v.data.video import write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation import calibration
from contrastive_i2v.evaluation.calibration import (
    Calibration,
    CalibrationConfig,
    Clips,
    Search,
    calibrate,
    frame_features,
    pareto,
    read_default,
)
from contrastive_i2v.evaluation.report.calibration import write_page
from contrastive_i2v.evaluation.videos import ReferenceSet, read_reference_set
from contrastive_i2v.randomness import draw
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import rollout
from contrastive_i2v.system import Window

KEEP, SPREAD = 0.9, 0.3
"""The truth of these tests: z_{t+1} = KEEP z_t + SPREAD e."""
FRAMES, SHAPE, COUNT = 6, (3, 8, 8), 48


class GaussianDenoiser(nn.Module):
    """The exact prediction of a Gaussian around KEEP times the given frame, times `factor`; and, where it is told a
    stride, of the frame so far after the last one, between that and the frame ahead if there is one, its mean
    too far out by a share of `excess` in every window."""

    def __init__(self, scheduler: Any, factor: float, excess: float = 0.0) -> None:
        super().__init__()
        self.factor, self.excess = nn.Parameter(torch.tensor(factor)), excess
        self.table = getattr(scheduler, "alphas_cumprod", None)
        self.kind = scheduler.config.get("prediction_type", "flow")

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        given: Tensor,
        stride: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        share = timesteps.view(-1, 1, 1, 1, 1) / 1000
        if self.table is None:
            alpha, sigma = 1 - share, share
        else:
            abar = self.table[timesteps.long()].view(-1, 1, 1, 1, 1)
            alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        mean, variance = KEEP * given[:, -1:] * 0.5, torch.tensor(SPREAD**2)  # the codec's scale
        if stride is not None and known is not None:
            k = KEEP ** stride.view(-1, 1, 1, 1, 1)
            past, ahead = (frame * 0.5 for frame in given.split(1, dim=1))
            after = SPREAD**2 * (1 - k**2) / (1 - KEEP**2)
            there = known.view(-1, 1, 1, 1, 1)
            mean = torch.where(there, k * (past + ahead) / (1 + k**2), k * past) * (1 + self.excess)
            variance = torch.where(there, after / (1 + k**2), after)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        clean = mean + gain * (noisy - alpha * mean)
        noise = (noisy - alpha * clean) / sigma
        prediction = {
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * clean,
            "sample": clean,
            "flow": noise - clean,
        }[self.kind]
        return self.factor * prediction


class Gaussian(Toy):
    """One past frame, no text, independent noise."""

    def __init__(self, scheduler: Any, factor: float = 1.0) -> None:
        super().__init__(Window(2))
        self.scheduler, self.network = scheduler, GaussianDenoiser(scheduler, factor)
        self.sampler = Sampler(steps=125, guidance_scale=1.0, image_guidance_scale=1.0)

    def condition(self, given: Tensor, text: Any, **more: Any) -> dict[str, Tensor]:
        return {"given": given}

    def noise(self, shape: Sequence[int], generator: Any, **more: Any) -> Tensor:
        return draw(shape, generator)


class Keyed(Gaussian):
    """Told the stride, with a frame ahead where it is known."""

    def __init__(self, scheduler: Any, excess: float = 0.0) -> None:
        super().__init__(scheduler)
        self.window, self.max_stride = Window(2, ahead=True), 4
        self.network = GaussianDenoiser(scheduler, 1.0, excess)

    def condition(
        self, given: Tensor, text: Any, *, present: Tensor | None = None, fps: Tensor | None = None, **more: Any
    ) -> dict[str, Tensor]:
        assert present is not None
        return {"given": given, "stride": self.strides(given, fps), "known": present[:, -1]}


class TrueClips(Clips):
    """Clips drawn from the truth itself; counts the rollouts."""

    def __init__(self, system: Gaussian, config: CalibrationConfig) -> None:
        self.system, self.config, self.fps, self.made = system, config, system.fps, 0
        self.names, self.captions = [f"{i}" for i in range(COUNT)], [""] * COUNT
        self.text = system.encode_text(self.captions)
        generator = torch.Generator().manual_seed(3)
        frames = [SPREAD * torch.randn(COUNT, *SHAPE, generator=generator)]
        for _ in range(FRAMES - 1):
            frames.append(KEEP * frames[-1] + SPREAD * torch.randn(COUNT, *SHAPE, generator=generator))
        self.truth = torch.stack(frames, dim=1)
        self.own, self.first = self.truth / 0.5, torch.zeros(COUNT, 3, *SHAPE[1:])

    def generate(self, sampler: Sampler) -> Tensor:
        self.made += 1
        return super().generate(sampler)


SCHEDULERS = {
    "epsilon": DDIMScheduler(**NOISE, clip_sample=False, timestep_spacing="trailing"),
    "v": DDIMScheduler(**NOISE, clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"),
    "sample": DDIMScheduler(**NOISE, clip_sample=False, timestep_spacing="trailing", prediction_type="sample"),
    "flow": FlowMatchEulerDiscreteScheduler(),
}


def search(kind: str, factor: float, folder: Path, **options: Any) -> tuple[Search, TrueClips]:
    clips = TrueClips(Gaussian(SCHEDULERS[kind], factor), CalibrationConfig(steps=(125,), **options))
    return Search(clips, clips.config, folder, "stamp"), clips


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_truths_own_denoiser_needs_no_scale(kind: str, tmp_path: Path) -> None:
    found, _ = search(kind, 1.0, tmp_path)
    chosen = found.run()
    assert chosen.sampler == found.base and len(found.trials) >= 5


@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_a_prediction_that_is_too_small_is_made_as_large_as_it_should_be(kind: str, tmp_path: Path) -> None:
    found, _ = search(kind, 1 / 1.08, tmp_path)
    chosen = found.run()
    assert chosen.sampler.prediction_scale == pytest.approx(1.08, abs=0.021)
    assert chosen.objective < 0.9


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_keyframes_from_the_exact_conditionals_have_the_truths_distribution(stride: int) -> None:
    """Those of z_{t+1} = KEEP z_t + SPREAD e after a first frame: KEEP^|i - j| times the earlier one's variance."""
    system, count = Keyed(SCHEDULERS["flow"]), 60
    first = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(steps=100, guidance_scale=1.0, image_guidance_scale=1.0, keyframe_stride=stride)
    text = system.encode_text([""] * count)
    video = rollout(system, first / 0.5, text, frames=7, seeds=list(range(count)), sampler=sampler)
    places = torch.arange(7)
    noise = (video - KEEP ** places.view(-1, 1, 1, 1) * first[:, None]).transpose(0, 1).flatten(1).double()
    found = noise @ noise.T / noise.shape[1]  # of 60 x 192 numbers
    earlier = torch.minimum(places[:, None], places)
    variance = SPREAD**2 * (1 - KEEP ** (2.0 * earlier)) / (1 - KEEP**2)
    expected = KEEP ** (places[:, None] - places).abs() * variance
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=0.04 * float(expected.max()))


def test_keyframes_are_chosen_where_every_window_adds_an_error_alone(tmp_path: Path) -> None:
    for excess, strides in ((0.0, {1}), (0.15, {2, 4})):
        system, config = Keyed(SCHEDULERS["flow"], excess), CalibrationConfig(steps=(125,))
        found = Search(TrueClips(system, config), config, tmp_path / f"{excess}", "stamp")
        assert found.run().sampler.keyframe_stride in strides
        assert {trial.sampler.keyframe_stride for trial in found.trials.values()} >= {1, 2, 4}
    plain, _ = search("flow", 1.0, tmp_path / "plain")
    plain.run()
    assert {trial.sampler.keyframe_stride for trial in plain.trials.values()} == {1}


def test_the_objective_by_hand(tmp_path: Path) -> None:
    found, clips = search("v", 0.95, tmp_path, error_share=0.3)
    base, other = found.base, replace(found.base, prediction_scale=1.04)
    found.default = found.at(base)
    trial = found.at(other)
    ours, theirs = clips.generate(other).double(), clips.generate(base).double()
    truth = clips.truth.double()
    errors = [float((one - truth)[:, 1:].square().mean()) for one in (ours, theirs)]
    assert trial.error == pytest.approx(errors[0], rel=1e-5)
    ratio = found.at(other).frechet / found.at(base).frechet
    assert trial.objective == pytest.approx(0.3 * errors[0] / errors[1] + 0.7 * ratio, rel=1e-5)
    motions = [float(one.diff(dim=1).abs().mean()) for one in (ours, truth)]
    assert trial.motion == pytest.approx(motions[0] / motions[1], rel=1e-5)


def test_what_moves_too_much_or_isnt_finite_never_wins(tmp_path: Path) -> None:
    found, clips = search("v", 1.0, tmp_path)
    found.default = found.at(found.base)
    wild = replace(found.base, prediction_scale=0.2)
    assert found.at(wild).motion > 1.15 and found.at(wild).objective == math.inf
    assert found.told_apart(found.at(wild), found.default)
    clips.system.network.factor.data.fill_(math.nan)
    assert found.at(replace(found.base, steps=3)).objective == math.inf
    with pytest.raises(InputError, match="own rollouts hold NaN"):
        Search(clips, clips.config, tmp_path / "nan", "stamp").run()


def test_features_are_pooled_frames_and_changes() -> None:
    video = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = frame_features(video)
    assert found.shape == (2, 2, 2 * 4 * 16)
    corner = video[1, 2, 3, :2, :2].mean()
    change = (video[1, 2] - video[1, 1])[3, :2, :2].abs().mean()
    torch.testing.assert_close(found[1, 1, [48, 64 + 48]].float(), torch.stack([corner, change]))


def test_the_front_is_what_no_other_trial_beats() -> None:
    def trial(error: float, frechet: float) -> calibration.Trial:
        return calibration.Trial(sampler=Sampler(), error=error, frechet=frechet, motion=1, objective=1, calls=1)

    one, two, three = trial(1, 5), trial(2, 3), trial(4, 1)
    trials = [trial(3, 4), three, one, trial(2, 6), two, trial(math.inf, 0)]
    assert pareto(trials) == [one, two, three]


@pytest.fixture
def reference(tmp_path: Path) -> ReferenceSet:
    """Four clips of six frames at five a second."""
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        pixels = torch.randint(256, (6, 3, 16, 16), generator=generator, dtype=torch.uint8)
        write_video(tmp_path / "clips" / f"{number}.mp4", pixels, 5.0)
        (tmp_path / "clips" / f"{number}.txt").write_text(f"clip {number}")
    return read_reference_set(tmp_path / "clips", frames=6, resolution=16, frame_rate=5.0)


CONFIG = CalibrationConfig(steps=(1,), batch_size=3)


def test_it_goes_on_where_it_was_stopped_and_gives_the_same(
    reference: ReferenceSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Sampler] = []
    generate = Clips.generate

    def counted(self: Clips, sampler: Sampler) -> Tensor:
        made.append(sampler)
        if len(made) == 4:
            raise KeyboardInterrupt
        return generate(self, sampler)

    whole, clips = calibrate(Toy(), reference, CONFIG, folder=tmp_path / "whole", progress=False)
    assert len(whole.trials) >= 4
    monkeypatch.setattr(Clips, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        calibrate(Toy(), reference, CONFIG, folder=tmp_path / "parts", progress=False)
    again, _ = calibrate(Toy(), reference, CONFIG, folder=tmp_path / "parts", progress=False)
    assert again.to_json() == whole.to_json() and len(made) == 1 + len(whole.trials)
    made.clear()
    calibrate(Toy(), reference, replace(CONFIG, error_share=0.9), folder=tmp_path / "parts", progress=False)
    known = {trial.sampler for trial in whole.trials}
    assert not known & set(made)  # another objective makes nothing twice
    json.loads(whole.to_json())
    page = write_page(whole, clips, tmp_path / "whole", title="A <title>", command="a & b")
    text = page.read_text()
    assert "A &lt;title&gt;" in text and "a &amp; b" in text and str(whole.chosen.sampler) in text


def test_other_weights_or_clips_are_measured_anew(reference: ReferenceSet, tmp_path: Path) -> None:
    system = Toy()
    stamp = calibration.stamp_of(system, reference, CONFIG)
    assert stamp == calibration.stamp_of(Toy(), reference, replace(CONFIG, error_share=0.1))
    assert stamp != calibration.stamp_of(system, replace(reference, clips=reference.clips[:3]), CONFIG)
    assert stamp != calibration.stamp_of(system, reference, replace(CONFIG, seed=1))
    system.network.weight.data[0, 0] += 1
    assert stamp != calibration.stamp_of(system, reference, CONFIG)


def test_a_clips_rollout_is_the_same_in_any_batch(reference: ReferenceSet) -> None:
    clips = Clips(Toy(), reference, CONFIG)
    few = clips.pick([2, 0])
    assert few.captions == ["clip 2", "clip 0"] and len(few.text["length"]) == 2
    sampler = Sampler(steps=2)
    torch.testing.assert_close(few.generate(sampler), clips.generate(sampler)[[2, 0]])


def test_processes_share_whole_batches(tmp_path: Path) -> None:
    _, clips = search("v", 1.0, tmp_path, batch_size=10)
    shares = [clips.share(process, 3) for process in range(3)]
    assert shares == [[*range(10), *range(30, 40)], [*range(10, 20), *range(40, 48)], [*range(20, 30)]]
    few = clips.pick(range(4))
    assert [few.share(process, 3) for process in range(3)] == [[0, 1], [2, 3], []]


@pytest.mark.parametrize("window", [Window(4), Window(6, given=(2, 4), regenerates=True)], ids=["windows", "between"])
def test_every_kind_of_window_is_calibrated(window: Window, reference: ReferenceSet, tmp_path: Path) -> None:
    if not window.rolls:
        window = Window(7, given=(2, 4), regenerates=True)
        reference = replace(reference, frames=7)
        reference = replace(reference, clips=[replace(c, indices=(*c.indices, 5)) for c in reference.clips])
    found, _ = calibrate(Toy(window), reference, CONFIG, folder=tmp_path, progress=False)
    assert isinstance(found, Calibration) and len(found.error_by_frame["chosen"]) == 5
    assert found.default.calls == 3 * 3  # three branches, three steps


def test_what_cant_be_calibrated_is_said(reference: ReferenceSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="makes images from text"):
        calibrate(Toy(Window(1, given=())), reference, CONFIG, folder=tmp_path)
    few = replace(reference, clips=reference.clips[:2])
    with pytest.raises(InputError, match="2 clips to calibrate with; expected at least 3"):
        calibrate(Toy(), few, CONFIG, folder=tmp_path)
    pairs = replace(reference, frames=2, clips=(reference.clips * 4)[:4])
    with pytest.raises(InputError, match="4 clips to calibrate with; expected at least 5"):
        calibrate(Toy(), pairs, CONFIG, folder=tmp_path)
    for options, said in (
        ({"error_share": 1.5}, "error_share: expected 0 to 1"),
        ({"steps": (4, 4)}, "steps: expected numbers from 1 on, none twice"),
    ):
        with pytest.raises(InputError, match=said):
            CalibrationConfig(**options)  # type: ignore[arg-type]


def test_the_sampler_before_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    assert read_default(file) is None
    sampler = Sampler(steps=7, guidance_interval=(0.1, 0.9))
    file.write_text(json.dumps({"default": {"sampler": asdict(sampler)}}))
    assert read_default(file) == sampler
    damages: list[Callable[[], object]] = [
        lambda: file.write_text("{"),
        lambda: file.write_text("[]"),
        lambda: file.write_text('{"default": {"sampler": {"steps": "x"}}}'),
    ]
    for damage in damages:
        damage()
        with pytest.raises(InputError, match="can't be read"):
            read_default(file)
