"""Where evaluated videos come from: rollouts, diffusers pipelines, finished files, and the two baselines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import BlockMeans, Toy

from contrastive_i2v.data.video import read_frames, to_uint8, write_video
from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.generators import (
    Batch,
    call_pipeline,
    finished_videos,
    first_frame,
    parse_arguments,
    retrieval,
    roll_out,
    true_videos,
)
from contrastive_i2v.evaluation.results import Extractor
from contrastive_i2v.evaluation.videos import ReferenceSet, read_reference_set, read_true_frames
from contrastive_i2v.files import folder_hash
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.system import Window

SAMPLER = Sampler(steps=2, guidance_scale=1.0, image_guidance_scale=1.0)
SIZE = (16, 16)


class Letters:
    """Texts as counts of their letters: "ball red" is nearest to "red ball"."""

    about = Extractor(name="letters", dimension=26, weights="none", resize="")

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(text.count(chr(97 + i))) for i in range(26)] for text in texts])


@pytest.fixture(scope="module")
def reference(clips: Path) -> ReferenceSet:
    return read_reference_set(clips / "test", frames=4, resolution=16)


@pytest.fixture
def batch(reference: ReferenceSet) -> Batch:
    return Batch(reference.clips, lambda clip: read_true_frames(clip, SIZE), 4, seed=3)


def truth(reference: ReferenceSet) -> Tensor:
    return torch.stack([read_true_frames(clip, SIZE) for clip in reference.clips])


def test_truth_and_first_frame(reference: ReferenceSet, batch: Batch) -> None:
    true = truth(reference)
    assert torch.equal(true_videos(reference).load()(batch), true)
    still = first_frame().load()(batch)
    assert torch.equal(still, true[:, [0, 0, 0, 0]])
    assert not torch.equal(still, true)


def test_seeds_are_the_clips_own(reference: ReferenceSet, batch: Batch) -> None:
    alone = Batch(reference.clips[1:], batch.read, 4, seed=3)
    assert batch.seeds[1:] == alone.seeds
    assert batch.seeds[0] != batch.seeds[1]
    assert Batch(reference.clips, batch.read, 4, seed=4).seeds[0] != batch.seeds[0]


def test_a_rollout_starts_at_the_decoded_first_frame_and_repeats(model: Any, batch: Batch) -> None:
    told: list[str] = []
    videos = roll_out(model, SAMPLER)(Batch(batch.clips, batch.read, 4, 3, told.append))
    codec = model.codec
    latents = codec.normalize(codec.sample(codec.encode((batch.first.float() / 127.5 - 1)[:, None])))
    assert torch.equal(videos[:, :1], to_uint8(codec.decode(latents)))
    assert told == ["frame 2/4", "frame 3/4", "frame 4/4"]
    alone = roll_out(model, SAMPLER)(Batch(batch.clips[1:], batch.read, 4, 3))
    assert (alone[0].int() - videos[1].int()).abs().max() <= 1  # rounding of batched sums
    other = roll_out(model, SAMPLER)(Batch(batch.clips, batch.read, 4, 4))
    assert torch.equal(other[:, 0], videos[:, 0])
    assert not torch.equal(other[:, 1:], videos[:, 1:])


def test_latents_that_hold_several_frames_are_cut_to_the_frames_asked_for(batch: Batch) -> None:
    told: list[str] = []
    system = Toy(Window(2), BlockMeans(2))
    for frames, latents in ((4, 3), (5, 3), (6, 4)):
        made = roll_out(system, system.sampler)(Batch(batch.clips, batch.read, frames, 3, told.append))
        assert made.shape == (2, frames, 3, 16, 16) and len(system.told) == latents - 1
        assert told[-1] == f"frame {latents}/{latents}"
        system.told.clear()
    longest = roll_out(system, system.sampler)(Batch(batch.clips, batch.read, 7, 3))
    assert torch.equal(made, longest[:, :6])


def test_nan_frames_name_the_clip(model: Any, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = model.codec.decode
    monkeypatch.setattr(model.codec, "decode", lambda latents: decode(latents) * torch.nan)
    with pytest.raises(InputError, match="00000: the model's frames hold NaN"):
        roll_out(model, SAMPLER)(batch)


def test_retrieval_takes_the_nearest_caption_that_is_long_enough(
    clips: Path, reference: ReferenceSet, batch: Batch, tmp_path: Path
) -> None:
    prompts = batch.prompts
    for name, text in (("near", prompts[0][::-1]), ("far", "zzz"), ("short", prompts[0]), ("other", prompts[1] + "s")):
        (tmp_path / f"{name}.txt").write_text(text)
    for source, name in (("00000", "near"), ("00001", "far"), ("00002", "other")):
        shutil.copy(clips / "train" / f"{source}.mp4", tmp_path / f"{name}.mp4")
    write_video(tmp_path / "short.mp4", torch.zeros(3, 3, 16, 16, dtype=torch.uint8), 5)
    videos = retrieval(tmp_path, Letters(), reference).load()(batch)
    assert torch.equal(videos[0], read_frames(tmp_path / "near.mp4", [0, 5, 10, 15]))
    assert torch.equal(videos[1], read_frames(tmp_path / "other.mp4", [0, 5, 10, 15]))


@pytest.mark.fault("a clip that retrieval would answer with can't be decoded", "it is named, and the next one answers")
def test_retrieval_passes_over_clips_that_break(
    clips: Path,
    reference: ReferenceSet,
    batch: Batch,
    tmp_path: Path,
    break_later: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in (("near", batch.prompts[0]), ("next", batch.prompts[0] + "s"), ("gone", batch.prompts[0][::-1])):
        shutil.copy(clips / "train" / "00000.mp4", tmp_path / f"{name}.mp4")
        (tmp_path / f"{name}.txt").write_text(text)
    break_later(tmp_path / "near.mp4")
    (tmp_path / "gone.mp4").write_bytes(b"no video")
    videos = retrieval(tmp_path, Letters(), reference).load()(batch)
    assert torch.equal(videos[0], read_frames(tmp_path / "next.mp4", [0, 5, 10, 15]))
    said = capsys.readouterr().out
    for name in ("near", "gone"):
        assert said.count(f"left out of the retrieval: {tmp_path / name}.mp4: can't be decoded") == 1


def test_retrieval_does_not_answer_with_the_evaluated_clips(clips: Path, reference: ReferenceSet) -> None:
    with pytest.raises(InputError, match="every clip is one of those evaluated"):
        retrieval(clips / "test", Letters(), reference)
    before = retrieval(clips / "train", Letters(), reference).identity
    assert before == retrieval(clips / "train", Letters(), reference).identity


def test_finished_videos_are_read_and_stamped(reference: ReferenceSet, batch: Batch, tmp_path: Path) -> None:
    made = truth(reference).flip(1)
    for clip, video in zip(reference.clips, made, strict=True):
        write_video(tmp_path / f"{clip.name}.mp4", video, 5)
    method, extra = finished_videos("theirs", tmp_path, reference)
    assert extra == []
    read = [read_frames(tmp_path / f"{clip.name}.mp4", range(4)) for clip in reference.clips]
    assert torch.equal(method.load()(batch), torch.stack(read))
    stamp = method.stamp(reference.clips[0])
    write_video(tmp_path / "00000.mp4", made[1], 5)
    assert method.stamp(reference.clips[0]) != stamp


class FakePipeline:
    """Takes what image-to-video pipelines take; the image brightens by 1/255 a frame."""

    def __init__(self, **output: Any) -> None:
        self.calls: list[dict[str, Any]] = []
        self.extra = 0
        self.__dict__.update(output)

    def __call__(
        self,
        image: Any,
        prompt: str,
        num_frames: int = 14,
        generator: Any = None,
        fps: int = 7,
        output_type: str = "pil",
    ) -> Any:
        self.calls.append({"prompt": prompt, "fps": fps, "seed": generator.initial_seed(), "type": output_type})
        first = np.asarray(image, dtype=np.float32) / 255
        return SimpleNamespace(frames=[np.stack([first + i / 255 for i in range(num_frames + self.extra)])])


def test_a_pipeline_gets_what_its_signature_takes(batch: Batch) -> None:
    pipeline = FakePipeline(extra=2)  # more frames than asked for: the first are taken
    videos = call_pipeline(pipeline, name="theirs", arguments={"fps": 5})(batch)
    expected = batch.first[:, None].int() + torch.arange(4)[None, :, None, None, None]
    assert torch.equal(videos.int(), expected.clamp(max=255))
    assert [call["prompt"] for call in pipeline.calls] == batch.prompts
    assert [call["seed"] for call in pipeline.calls] == batch.seeds
    assert {(call["fps"], call["type"]) for call in pipeline.calls} == {(5, "np")}


def test_pipelines_that_do_not_fit_are_refused(batch: Batch) -> None:
    class NoImage:
        def __call__(self, prompt: str) -> None: ...

    class NoFrames:
        def __call__(self, image: Any) -> Any:
            return SimpleNamespace(images=[image])

    class Fails:
        def __call__(self, image: Any) -> Any:
            raise RuntimeError("height must be a multiple of 64")

    class Nan:
        def __call__(self, image: Any) -> Any:
            return SimpleNamespace(frames=[np.full((4, 16, 16, 3), np.nan)])

    with pytest.raises(InputError, match="theirs: NoImage takes no image; supported are pipelines that take image"):
        call_pipeline(NoImage(), name="theirs")
    with pytest.raises(InputError, match="FakePipeline takes no strength; check --pipeline-arguments"):
        call_pipeline(FakePipeline(), name="theirs", arguments={"strength": 1})
    with pytest.raises(InputError, match="NoFrames returns no .frames"):
        call_pipeline(NoFrames(), name="theirs")(batch)
    with pytest.raises(InputError, match="Fails failed on 00000 at 16x16, 4 frames: height must be a multiple of 64"):
        call_pipeline(Fails(), name="theirs")(batch)
    with pytest.raises(InputError, match="returned 2 frames; expected at least 4: give --frames 2"):
        call_pipeline(FakePipeline(extra=-2), name="theirs")(batch)
    with pytest.raises(InputError, match="00000: Nan's frames hold NaN"):
        call_pipeline(Nan(), name="theirs")(batch)


def test_stable_video_diffusion_runs(batch: Batch) -> None:
    videos = call_pipeline(_tiny_svd(), name="svd", arguments={"num_inference_steps": 2})(batch)
    again = call_pipeline(_tiny_svd(), name="svd", arguments={"num_inference_steps": 2})(batch)
    assert videos.shape == (2, 4, 3, 16, 16)
    assert torch.equal(videos, again)
    assert not torch.equal(videos[0], videos[1])


def _tiny_svd() -> Any:
    diffusers = pytest.importorskip("diffusers")
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        sample_size=8,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=32,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
    )
    config = CLIPVisionConfig(
        hidden_size=32, projection_dim=32, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=56
    )
    pipeline = diffusers.StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=CLIPVisionModelWithProjection(config),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous"),
        feature_extractor=CLIPImageProcessor(crop_size=16, size=16),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_folder_hash_follows_weights_and_configs(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"a")
    before = folder_hash(tmp_path)
    (tmp_path / "notes.md").write_text("not a weight")
    assert folder_hash(tmp_path) == before
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"b")
    assert folder_hash(tmp_path) != before


def test_arguments_are_json() -> None:
    assert parse_arguments("") == {}
    assert parse_arguments(json.dumps({"fps": 7})) == {"fps": 7}
    for wrong in ("fps=7", "[7]"):
        with pytest.raises(InputError, match="pipeline-arguments"):
            parse_arguments(wrong)
