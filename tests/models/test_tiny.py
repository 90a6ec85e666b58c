"""The tiny preset: its architecture, and the weights that ship."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline

from contrastive_i2v.data.shapes import ShapesConfig, render_scene, sample_scene
from contrastive_i2v.models import load_system, tiny
from contrastive_i2v.models.loading import TINY
from contrastive_i2v.sampler import Sampler
from contrastive_i2v.sampling import rollout


@pytest.fixture(scope="module")
def shipped() -> Any:
    return load_system("tiny")


@pytest.fixture(scope="module")
def scenes() -> tuple[list[str], torch.Tensor]:
    """16 unseen clips: captions, and their first 4 valid frames `[16, 4, 3, 64, 64]` in [-1, 1]."""
    config = ShapesConfig(seed=77)
    picked = [sample_scene(config, "test", index) for index in range(16)]
    frames = [render_scene(scene, frames=16, size=64)[::5] for scene in picked]
    return [scene.caption for scene in picked], torch.stack(frames).float() / 127.5 - 1


def test_any_text_has_tokens() -> None:
    tokenizer = tiny.build_tokenizer(["a red circle moves up"] * 5)
    text = "naïve Ünïcode 你好, 42 %!"
    assert "".join(tokenizer.decode(tokenizer(text).input_ids[1:-1]).split()) == "".join(text.lower().split())
    assert len(tokenizer("a red circle moves up").input_ids) == 7  # a token a word, and the two ends


def test_the_weights_are_small_and_have_a_card() -> None:
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) <= 20e6
    card = (TINY / "README.md").read_text()
    assert all(word in card for word in ("apache-2.0", "tiny-base", "Data.", "Recipe."))
    assert not [path for path in TINY.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt")]


def test_diffusers_opens_the_folder() -> None:
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    assert pipeline.unet.config.in_channels == 8


def test_the_autoencoder_keeps_what_a_person_sees(shipped: Any, scenes: tuple[list[str], torch.Tensor]) -> None:
    images = scenes[1][:, 0]
    latents = shipped.codec.normalize(shipped.codec.sample(shipped.codec.encode(images[:, None])))[:, 0]
    assert latents.shape[1:] == (4, 16, 16)
    assert 0.7 < float(latents.std()) < 1.4  # the scaling factor is right
    error = (shipped.codec.decode(latents[:, None])[:, 0] - images).square().mean()
    assert float(10 * torch.log10(4 / error)) > 24  # PSNR in dB


@pytest.mark.slow
def test_a_person_sees_the_caption_obeyed(shipped: Any, scenes: tuple[list[str], torch.Tensor]) -> None:
    """Rolled out 3 frames, the video is nearer to the truth than the first frame repeated, and than under a caption
    with the opposite direction."""
    captions, frames = scenes
    swap = {"to the left": "to the right", "to the right": "to the left", "moves up": "moves down"}
    swap["moves down"] = "moves up"
    wrong = [next((c.replace(a, b) for a, b in swap.items() if a in c), c) for c in captions]
    assert all(a != b for a, b in zip(captions, wrong, strict=True))

    def last_frame_error(prompts: list[str]) -> float:
        latents = rollout(
            shipped,
            shipped.codec.sample(shipped.codec.encode(frames[:, :1]))[:, 0],
            shipped.encode_text(prompts),
            frames=4,
            sampler=Sampler(steps=8, guidance_scale=1.0, image_guidance_scale=1.0),
            seeds=range(len(prompts)),
        )
        return float((shipped.codec.decode(latents[:, -1:])[:, 0] - frames[:, -1]).square().mean())

    right = last_frame_error(captions)
    repeated = float((frames[:, 0] - frames[:, -1]).square().mean())
    assert right < 0.7 * repeated
    assert right < 0.7 * last_frame_error(wrong)
