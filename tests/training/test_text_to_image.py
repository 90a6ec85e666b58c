"""The text-to-image base: it learns frames from captions, and an image-to-video model starts as it ends."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from contrastive_i2v.models import load_system
from contrastive_i2v.models.instruct_pix2pix import InstructPix2Pix, InstructPix2PixConfig
from contrastive_i2v.training.text_to_image import TextToImageConfig, train_text_to_image, untrained


def test_the_base_opens_as_both_and_its_new_inputs_have_no_say(clips: Path, tmp_path: Path) -> None:
    config = TextToImageConfig(
        output=tmp_path / "base",
        data=clips / "train",
        cache_dir=tmp_path / "latents",
        widths=(16, 32),
        steps=2,
        batch_size=4,
        frames_per_clip=2,
    )
    folder = train_text_to_image(config)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert pipeline.unet.config.in_channels == 4 and list(pipeline.unet.config.block_out_channels) == [16, 32]
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    start = untrained(config).unet.state_dict()
    moved = [name for name, value in pipeline.unet.state_dict().items() if not torch.equal(value, start[name])]
    assert {"conv_in.weight", "conv_out.weight"} <= set(moved)

    grown = load_system(folder, InstructPix2PixConfig(), device="cpu")
    assert isinstance(grown, InstructPix2Pix) and grown.unet.config.in_channels == 8
    assert torch.equal(grown.unet.conv_in.weight[:, :4], pipeline.unet.conv_in.weight)
    noisy, image = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text = grown.encode_text(["a red star moves up slowly"] * 2)["prompt_embeds"]
    steps = torch.tensor([10, 900])
    with torch.no_grad():
        expected = pipeline.unet(noisy, steps, encoder_hidden_states=text).sample
        for given in (image, 10 * image):
            torch.testing.assert_close(grown.network(noisy[:, None], steps, given, text)[:, 0], expected)

    log = (config.output / "unet" / "log.jsonl").read_text()
    assert "contrastive" not in json.loads(log.splitlines()[-1])
    weights = (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert train_text_to_image(config) == folder  # trained already
    assert (config.output / "unet" / "log.jsonl").read_text() == log
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
