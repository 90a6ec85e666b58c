"""The tiny preset: Stable Diffusion 1.x in miniature, small enough to train on a laptop's CPU.

Images are 64x64, latents 4x16x16 (each latent pixel is 4x4 image pixels), prompts 32 tokens of 64 features.
`contrastive-i2v train --recipe tiny-base` trains what these functions build; the result ships in `tiny/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTokenizer

from contrastive_i2v.models.instruct_pix2pix import PLAIN, InstructPix2Pix
from contrastive_i2v.models.loading import TINY
from contrastive_i2v.models.stable_diffusion import Parts
from contrastive_i2v.sampler import Sampler

RESOLUTION = 64
PROMPT_LENGTH = 32
PROMPT_FEATURES = 64
SAMPLER = Sampler(steps=8, guidance_scale=1.0, image_guidance_scale=1.0)
"""What the packaged model wants: with guidance its rollouts fall apart."""


def build_vae() -> Any:
    """AutoencoderKL, 0.8 M parameters: [F, 3, 64, 64] <-> [F, 4, 16, 16].

    Initialised to learn from scratch in minutes: the first biases have unit scale, so that the group norms see
    absolute colour and not only contrast, and the posterior starts narrow, so that its noise doesn't drown it.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=RESOLUTION,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        nn.init.normal_(vae.encoder.conv_in.bias)
        nn.init.normal_(vae.decoder.conv_in.bias)
        nn.init.zeros_(vae.quant_conv.weight[4:])
        nn.init.constant_(vae.quant_conv.bias[4:], -5.0)
    return vae


def build_tokenizer(captions: Iterable[str], vocabulary: int = 700) -> Any:
    """CLIP's byte-level BPE tokenizer with merges learned from `captions`: any text has tokens, none is unknown."""
    alphabet = _byte_alphabet()
    letters = [*alphabet, *(f"{c}</w>" for c in alphabet)]
    learner = CLIPTokenizer(vocab=_vocabulary(letters), merges=[])
    learner = learner.train_new_from_iterator(captions, vocabulary)
    merges = json.loads(learner.backend_tokenizer.to_str())["model"]["merges"]
    words = [*letters, *dict.fromkeys("".join(pair) for pair in merges)]
    return CLIPTokenizer(
        vocab=_vocabulary(words), merges=[tuple(pair) for pair in merges], model_max_length=PROMPT_LENGTH
    )


def text_config(tokenizer: Any) -> Any:
    """CLIPTextConfig of the tiny text encoder, 0.1 M parameters."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=PROMPT_FEATURES,
        intermediate_size=2 * PROMPT_FEATURES,
        projection_dim=PROMPT_FEATURES,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=PROMPT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_unet(widths: Sequence[int] = (64, 96, 128), attention: Sequence[bool] = (False, True, True)) -> Any:
    """UNet2DConditionModel in InstructPix2Pix form (8 input channels); by default 5.5 M parameters.

    Args:
        widths: channels of each level, the finest first, multiples of 16.
        attention: whether a level attends to the prompt.
    """
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 4,
        in_channels=8,
        out_channels=4,
        block_out_channels=tuple(widths),
        down_block_types=tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(attention)),
        layers_per_block=1,
        cross_attention_dim=PROMPT_FEATURES,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def untrained_system(widths: Sequence[int], attention: Sequence[bool]) -> InstructPix2Pix:
    """The packaged model with a random UNet in place of its own; see `build_unet`."""
    base = InstructPix2Pix.load(str(TINY), PLAIN, PLAIN)
    parts = Parts(base.vae, base.text_encoder, base.tokenizer, build_unet(widths, attention))
    return InstructPix2Pix(parts, base.scheduler, sampler=SAMPLER)


def build_scheduler() -> Any:
    """Stable Diffusion's noise schedule with v prediction, which keeps x0 well determined at every timestep."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
    )


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}


def _byte_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())
