"""Temporal layers against their equations in float64, where they are attached, and what they do to images."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from temporal_oracle import (
    attention,
    convolve_time,
    layer_norm,
    linear,
    over_time,
    part,
    temporal_resnet,
    temporal_transformer,
    weights_of,
)
from torch import Tensor
from video_models import randn, stir

from contrastive_i2v.errors import InputError
from contrastive_i2v.models import consisti2v, emu_video
from contrastive_i2v.models.temporal import (
    Clip,
    FirstFrameAttention,
    ResidualTemporalAttention,
    ResidualTemporalConv,
    Rope,
    RotaryAttention,
    RotaryFrequencies,
    TemporalLayers,
    TemporalResnet,
    TemporalTransformer,
    VideoUNet,
    first_frame_window,
)

CHANNELS, HEADS, GROUPS = 16, 2, 4
SIZES = [(3, 2, 3), (1, 3, 2), (5, 1, 1)]
"""Frames, height and width."""


def clip(frames: int) -> Clip:
    made = Clip()
    made.frames = frames
    return made


def videos(frames: int, height: int, width: int) -> Tensor:
    """Two videos, as rows of a batch."""
    return 2 * randn(2 * frames, CHANNELS, height, width)


def assert_close(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual.detach().double(), torch.as_tensor(np.asarray(expected)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("rope", ["all", "reference"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("window", [1, 3, 5])
def test_a_temporal_transformer_is_its_equation(rope: Rope, size: tuple[int, int, int], window: int) -> None:
    torch.manual_seed(1)
    options = {"heads": HEADS, "groups": GROUPS, "rope": rope, "window": window}
    layer = TemporalTransformer(CHANNELS, text_width=6, alpha=0.3, **options)  # type: ignore[arg-type]
    stir(layer)
    layer.clip = clip(size[0])
    x, text = videos(*size), randn(2, 4, 6, seed=1)
    actual = layer(x, text.repeat_interleave(size[0], dim=0)).unflatten(0, (2, -1))
    for number in range(2):
        video = x.double().numpy().reshape(2, size[0], *x.shape[1:])[number]
        expected = temporal_transformer(weights_of(layer), video, text[number].double().numpy(), **options)  # type: ignore[arg-type]
        assert_close(actual[number], expected)


@pytest.mark.parametrize("size", SIZES)
def test_a_temporal_resnet_is_its_equation(size: tuple[int, int, int]) -> None:
    torch.manual_seed(2)
    layer = TemporalResnet(CHANNELS, groups=GROUPS, alpha=0.3)
    stir(layer)
    layer.clip = clip(size[0])
    x = videos(*size)
    actual = layer(x).unflatten(0, (2, -1))
    for number, video in enumerate(x.double().numpy().reshape(2, size[0], *x.shape[1:])):
        assert_close(actual[number], temporal_resnet(weights_of(layer), video, GROUPS))


@pytest.mark.parametrize("size", SIZES)
def test_emus_convolution_is_its_equation(size: tuple[int, int, int]) -> None:
    layer = ResidualTemporalConv(CHANNELS)
    stir(layer)
    layer.clip = clip(size[0])
    x = videos(*size)
    actual = layer(x).unflatten(0, (2, -1))
    for number, video in enumerate(x.double().numpy().reshape(2, size[0], *x.shape[1:])):
        assert_close(actual[number], video + convolve_time(part(weights_of(layer), "conv"), video))


@pytest.mark.parametrize("rope", ["all", "reference"])
@pytest.mark.parametrize("size", SIZES)
def test_emus_attention_is_its_equation(rope: Rope, size: tuple[int, int, int]) -> None:
    layer = ResidualTemporalAttention(CHANNELS, heads=HEADS, rope=rope)
    stir(layer)
    layer.clip = clip(size[0])
    frames, height, width = size
    x = 2 * randn(2 * frames, height * width, CHANNELS)
    actual = layer(x).unflatten(0, (2, -1))
    weights = weights_of(layer)
    for number, video in enumerate(x.double().numpy().reshape(2, frames, height, width, CHANNELS)):
        normed = layer_norm(part(weights, "norm"), video)
        expected = video + over_time(part(weights, "attn"), normed, HEADS, rope, window=1)
        assert_close(actual[number], expected.reshape(frames, height * width, CHANNELS))


@pytest.mark.parametrize("frames", [1, 3])
def test_first_frame_attention_is_its_equation(frames: int) -> None:
    """softmax(q_i [k_i, k_1]^T / sqrt(d)) [v_i, v_1], the first frame's twice for itself."""
    torch.manual_seed(3)
    layer = Attention(query_dim=CHANNELS, heads=HEADS, dim_head=CHANNELS // HEADS)
    stir(layer)
    layer.set_processor(FirstFrameAttention(clip(frames)))
    x, weights = 2 * randn(2 * frames, 6, CHANNELS), weights_of(layer)
    actual = layer(x).unflatten(0, (2, -1))
    for number, video in enumerate(x.double().numpy().reshape(2, frames, 6, CHANNELS)):
        q, k, v = (linear(part(weights, name), video) for name in ("to_q", "to_k", "to_v"))
        for i, place in np.ndindex(frames, 6):
            out = attention(q[i, place], [*k[i], *k[0]], [*v[i], *v[0]], HEADS)
            assert_close(actual[number, i, place], linear(part(weights, "to_out.0"), out))


@pytest.mark.parametrize("frames", [0, 1])
def test_first_frame_attention_of_images_is_plain_attention(frames: int) -> None:
    """For images, and for a clip's only frame: attention to the same tokens twice is attention to them."""
    torch.manual_seed(3)
    layer = Attention(query_dim=CHANNELS, heads=HEADS, dim_head=CHANNELS // HEADS).eval()
    x = randn(4, 6, CHANNELS)
    expected = layer(x)
    layer.set_processor(FirstFrameAttention(clip(frames)))
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)


def test_the_window_repeats_edges_and_leaves_out_the_middle() -> None:
    image = torch.arange(6.0).view(1, 6, 1)  # [[0, 1, 2], [3, 4, 5]]
    around = first_frame_window(image, (2, 3), 3)
    assert around.shape == (1, 6, 8, 1)
    assert around[0, 0, :, 0].tolist() == [0, 0, 1, 0, 1, 3, 3, 4]
    assert around[0, 4, :, 0].tolist() == [0, 1, 2, 3, 5, 3, 4, 5]
    assert first_frame_window(image, (2, 3), 1).shape == (1, 6, 0, 1)


def test_attention_knows_distances_alone_but_for_the_first_frames_window() -> None:
    """RoPE: q_t and k_s meet by t - s, in every head ("all"); by "reference" half of the heads ignore time."""
    for rope, blind in (("all", []), ("reference", [1])):
        turned = RotaryFrequencies(CHANNELS, HEADS, rope)  # type: ignore[arg-type]
        q, k = randn(2, CHANNELS).unbind(0)

        def meet(t: int, s: int, turned: RotaryFrequencies = turned, q: Tensor = q, k: Tensor = k) -> Tensor:
            places = torch.tensor([t, s])
            a, b = turned(torch.stack([q, k]), places).unflatten(-1, (HEADS, -1)).unbind(0)
            return (a * b).sum(-1)  # a logit a head

        torch.testing.assert_close(meet(2, 5), meet(9, 12), rtol=1e-4, atol=1e-5)
        changes = (meet(2, 5) - meet(2, 2)).abs() > 1e-3
        assert [head for head in range(HEADS) if not changes[head]] == blind


def test_angles_stay_exact_in_half_precision() -> None:
    layer = RotaryAttention(CHANNELS, HEADS, "all").to(torch.bfloat16)
    assert layer.to_q.weight.dtype == torch.bfloat16 and layer.rotary_emb.freqs.dtype == torch.float32
    exact = RotaryFrequencies(CHANNELS, HEADS, "all").freqs
    assert torch.equal(layer.rotary_emb.freqs, exact)
    assert layer.float().rotary_emb.freqs.dtype == torch.float32


def unet(**changes: Any) -> Any:
    """Stable Diffusion's four levels, 16 times thinner."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "block_out_channels": (16, 32, 32, 32),
        "layers_per_block": 2,
        "cross_attention_dim": 8,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**options, **changes})


def test_the_layers_of_a_four_level_unet() -> None:
    """ConsistI2V: 22 temporal ResNets, 15 temporal transformers (none in the middle), 37 alphas. Emu Video: a
    convolution for each 3 x 3 one but the last, an attention for each of the 16 self-attentions."""
    with torch.device("meta"):
        image = unet()
        consist, emu = consisti2v.temporal_layers(image, "all"), emu_video.temporal_layers(image)
    kinds = [type(layer).__name__ for layer in consist.each()]
    assert (kinds.count("TemporalResnet"), kinds.count("TemporalTransformer"), len(kinds)) == (22, 15, 37)
    assert len(consist.alphas()) == 37
    assert [name for name in consist.names if name.startswith("mid_block")] == [
        "mid_block.resnets.0",
        "mid_block.resnets.1",
    ]
    kinds = [type(layer).__name__ for layer in emu.each()]
    # 44 in ResNets, the first, 3 that halve and 3 that double
    assert (kinds.count("ResidualTemporalConv"), kinds.count("ResidualTemporalAttention")) == (51, 16)
    assert "conv_in" in emu.names and "conv_out" not in emu.names


def small_unet() -> Any:
    return unet(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def layers_for(kind: str, image: Any) -> TemporalLayers:
    return (
        consisti2v.temporal_layers(image, "all", alpha=0.5)
        if kind == "consisti2v"
        else emu_video.temporal_layers(image)
    )


@pytest.mark.parametrize("kind", ["consisti2v", "emu-video"])
def test_clips_of_a_batch_do_not_see_each_other(kind: str) -> None:
    """Clips with timesteps and texts of their own give together what each gives alone."""
    image = small_unet()
    temporal = layers_for(kind, image)
    stir(temporal, by=0.1)
    network = VideoUNet(image, temporal)
    noisy, text, timesteps = randn(3, 3, 4, 8, 8), randn(3, 5, 8, seed=1), torch.tensor([3, 500, 999])
    together = network.predict(noisy, timesteps, text)
    for i in range(3):
        alone = network.predict(noisy[i : i + 1], timesteps[i : i + 1], text[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert (together[0, 0] - network.predict(noisy, timesteps, text.flip(0))[0, 0]).abs().max() > 1e-4
    assert (together[0, 0] - network.predict(noisy.flip(1), timesteps, text)[0, -1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["consisti2v", "emu-video"])
def test_images_pass_the_temporal_layers_by(kind: str) -> None:
    image = small_unet()
    temporal = layers_for(kind, image)
    stir(temporal)
    plain = copy.deepcopy(image)
    network = VideoUNet(image, temporal)
    noisy, text = randn(2, 3, 4, 8, 8), randn(2, 5, 8, seed=1)
    timesteps = torch.tensor([10, 900])
    expected = plain(noisy.flatten(0, 1), timesteps.repeat_interleave(3), text.repeat_interleave(3, 0)).sample
    as_images = network.predict(noisy, timesteps, text, as_images=True)
    assert torch.equal(as_images.flatten(0, 1), expected)
    assert not torch.allclose(network.predict(noisy, timesteps, text).flatten(0, 1), expected, atol=1e-3)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["consisti2v", "emu-video"])
def test_a_network_with_them_is_one_graph(kind: str, backend: str) -> None:
    """torch.compile captures the hooks, the window and the processors whole; slow tests compile the systems."""
    image = unet(
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
    )
    temporal = layers_for(kind, image)
    stir(temporal)
    network = VideoUNet(image, temporal)
    inputs = (randn(1, 2, 4, 4, 4), torch.tensor([5]), randn(1, 3, 8))
    torch._dynamo.reset()
    compiled = torch.compile(network.predict, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(*inputs), network.predict(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["consisti2v", "emu-video"])
def test_a_copy_has_layers_of_its_own(kind: str) -> None:
    image = small_unet()
    network = VideoUNet(image, layers_for(kind, image))
    network.predict(randn(1, 2, 4, 8, 8), torch.tensor([5]), randn(1, 5, 8))
    copied = copy.deepcopy(network)
    inputs = (randn(1, 3, 4, 8, 8), torch.tensor([5]), randn(1, 5, 8))
    before = network.predict(*inputs)
    stir(copied.temporal)
    changed = copied.predict(*inputs)
    assert torch.equal(network.predict(*inputs), before) and not torch.allclose(changed, before, atol=1e-3)
    copied.predict(randn(1, 2, 4, 8, 8), torch.tensor([5]), randn(1, 5, 8))
    assert network.temporal.clip.frames == 3 and copied.temporal.clip.frames == 2


@pytest.mark.parametrize("kind", ["consisti2v", "emu-video"])
def test_new_layers_are_the_same_ones_every_time(kind: str) -> None:
    """So a training repeats itself from its config, on every process; and nobody else's random numbers change."""
    image = small_unet()
    torch.manual_seed(5)
    first, drawn = layers_for(kind, image).state_dict(), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    second = layers_for(kind, image).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    weights = [value for name, value in first.items() if name.endswith("to_q.weight")]
    assert not torch.equal(weights[0].flatten()[:64], weights[1].flatten()[:64])


def test_layers_of_another_unet_are_refused() -> None:
    """By a name, a width, or the width of the text, in which alone Stable Diffusion 1 and 2 differ."""
    temporal = emu_video.temporal_layers(unet())
    with pytest.raises(InputError, match=r"the temporal layers follow .*resnets\.1.* this one has none; expected"):
        temporal.attach(small_unet())
    wide = emu_video.temporal_layers(small_unet())
    narrow = unet(
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    with pytest.raises(
        InputError, match=r"resnets\.0.* of 32 channels, and this UNet's has 16; expected.*from one model"
    ):
        wide.attach(narrow)
    with pytest.raises(InputError, match=r"text of width 8, and this UNet 12; expected"):
        emu_video.temporal_layers(unet()).attach(unet(cross_attention_dim=12))


def test_channels_that_do_not_split_into_heads_are_refused() -> None:
    image = unet(block_out_channels=(8, 16, 16, 16))
    with pytest.raises(InputError, match=r"heads=8: .* has 8 channels; expected a multiple of 16"):
        consisti2v.temporal_layers(image, "all")
    with pytest.raises(InputError, match=r"heads=8: .* has 8 channels; expected a multiple of 16"):
        emu_video.temporal_layers(image)
