"""Fixtures shared by the suite: a complete, tiny, randomly initialised InstructPix2Pix; no download."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Without a GPU Triton's kernels run in its interpreter, which has to be chosen before triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

WORDS = ("a", "red", "ball", "rolls", "to", "the", "left", "right", "make", "it", "snow")


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    vocab = ["<|startoftext|>", "<|endoftext|>"]
    vocab += [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    merges = []
    for word in WORDS:
        head = word[0] if len(word) > 1 else ""
        for letter in word[1:]:
            tail = letter + ("</w>" if len(head) == len(word) - 1 else "")
            if (head, tail) not in merges:
                merges.append((head, tail))
                vocab.append(head + tail)
            head += letter
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocab))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=12)


def _parts(in_channels: int, seed: int) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.5,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    parts = {
        "vae": vae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": scheduler,
    }
    for module in (vae, text_encoder, unet):
        module.eval()
    return parts


@pytest.fixture(scope="session")
def build_pipeline() -> Callable[..., Any]:
    """build_pipeline(in_channels=8, seed=0) -> StableDiffusionInstructPix2PixPipeline with random weights."""

    def build(in_channels: int = 8, seed: int = 0) -> Any:
        from diffusers import StableDiffusionInstructPix2PixPipeline

        pipeline = StableDiffusionInstructPix2PixPipeline(
            **_parts(in_channels, seed),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.fixture(scope="session")
def pipeline_folder(build_pipeline: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted (8-channel) model in diffusers' folder layout."""
    folder = tmp_path_factory.mktemp("pipeline")
    build_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_folder(build_pipeline: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image (4-channel) model in diffusers' folder layout, with Stable Diffusion 1.5's PNDM."""
    from diffusers import PNDMScheduler

    folder = tmp_path_factory.mktemp("base")
    pipeline = build_pipeline(in_channels=4)
    pipeline.register_modules(
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            skip_prk_steps=True,
            steps_offset=1,
        )
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(pipeline_folder: Path) -> Any:
    """The same model through the package's own loader. Shared by the session: don't train it in place."""
    from contrastive_i2v.models import load_system

    return load_system(pipeline_folder)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` (6 clips) and `test` (2) of 16x16 moving shapes, one second each."""
    from contrastive_i2v.data.shapes import ShapesConfig, make_shapes

    folder = tmp_path_factory.mktemp("clips")
    make_shapes(folder, ShapesConfig(train_clips=6, test_clips=2, size=16, frames=25), progress=False)
    return folder


@pytest.fixture
def train_config(pipeline_folder: Path, clips: Path, tmp_path: Path) -> Any:
    """A run of 8 steps on those clips with the random model; seconds on a CPU."""
    from contrastive_i2v.data.frames import FramesConfig
    from contrastive_i2v.training.config import DataConfig, OptimizerConfig, PreviewConfig, TrainConfig

    return TrainConfig(
        output=tmp_path / "run",
        model=str(pipeline_folder),
        steps=8,
        batch_size=4,
        ema_decay=0.9,
        log_every=2,
        checkpoint_every=2,
        data=DataConfig(
            path=clips / "train",
            cache_dir=tmp_path / "latents",
            resolution=16,
            frames=FramesConfig(offset_std=1.0, windows_per_clip=3),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        preview=PreviewConfig(every=0),
    )
