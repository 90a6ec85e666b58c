"""Temporal layers for an image UNet: they see all frames of a clip where the UNet's own layers see one.

A `TemporalLayers` is attached to an untouched UNet2DConditionModel by forward hooks, so the UNet stays what diffusers
knows and saves, and the temporal layers are saved beside it. Frames are rows of the batch, clip after clip: `[B T, *]`.

Sources: Blattmann et al., "Align your Latents" (arXiv 2304.08818), section 3.1, for layers that mix with the image
model's; Ren et al., "ConsistI2V" (arXiv 2402.04324), section 4, for attention to the first frame; Girdhar et al.,
"Emu Video" (arXiv 2311.10709), section 3.2, for layers that start as the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal, cast

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import FeedForward
from torch import Tensor, nn, unflatten
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from contrastive_i2v.errors import InputError
from contrastive_i2v.models.autoencoder import like

Rope = Literal["all", "reference"]
Kind = Literal["resnet", "transformer", "convolution", "attention"]
ROPE_BASE = 10000.0
HEADS = 8
"""Of the temporal attention."""


class Clip:
    """How many frames the rows of a batch make a clip; 0 = they are images, and temporal layers let them pass."""

    frames = 0


class RotaryFrequencies(nn.Module):
    """The angles a position turns the channels' pairs by, `freqs [pairs]`; kept in float32 whatever the module's dtype.

    Args:
        channels: of all heads together.
        heads: of the attention.
        rope: "all" turns every pair of every head, pair i of d / 2 by 10000^(-2i / d), d = channels / heads.
            "reference" is what ConsistI2V's published weights were trained with: one bank over the first half of the
            joined channels, 10000^(-2i / (channels / 2)), so half of the heads turn, each in a band of its own.

    Source: Su et al., RoFormer (arXiv 2104.09864), equation 15.
    """

    def __init__(self, channels: int, heads: int, rope: Rope) -> None:
        super().__init__()
        width = channels // heads if rope == "all" else channels // 2
        bank = ROPE_BASE ** (-torch.arange(0, width, 2).double() / width)
        self.register_buffer("freqs", (bank.repeat(heads) if rope == "all" else bank).float())
        self.freqs: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryFrequencies:
        kept = self.freqs
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.freqs = kept.to(self.freqs.device)  # a half-precision angle is off by 0.03 at position 15
        return self

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn the pairs (x_2i, x_2i+1) of `x [*, P, channels]` by `positions [P]` times freqs_i; channels after the
        last pair stay."""
        angle = positions.to(self.freqs)[:, None] * self.freqs  # [P, pairs]
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        turn = torch.complex(angle.cos().to(wide.dtype), angle.sin().to(wide.dtype))
        last = 2 * self.freqs.shape[0]
        # a product of complex numbers is one pass; four products of even and odd channels are several, all strided
        pairs = torch.view_as_complex(unflatten(wide[..., :last], -1, (-1, 2)))
        turned = torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
        return turned if last == x.shape[-1] else torch.cat([turned, x[..., last:]], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, [N, *, channels] each, the heads side by side in the channels."""
    q, k, v = (unflatten(part, -1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class RotaryAttention(nn.Module):
    """Multi-head attention whose queries, and keys where these have positions, are turned by them."""

    def __init__(self, channels: int, heads: int, rope: Rope, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context or channels, channels, bias=False)
        self.to_v = nn.Linear(context or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.rotary_emb = RotaryFrequencies(channels, heads, rope)

    def over_time(self, x: Tensor, around: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """softmax(R q (R k)^T / sqrt(d)) v for every spatial position.

        Args:
            x: [B, P, T, channels]: P spatial positions, T times.
            around: [B, P, channels], keys or values of time 0, -> [B, P, n, channels], more of them for each position.
        """
        times = torch.arange(x.shape[2], device=x.device)
        q, k, v = self.rotary_emb(self.to_q(x), times), self.rotary_emb(self.to_k(x), times), self.to_v(x)
        if around is not None:  # picks from keys and values, not from x: nothing is projected twice
            k, v = (torch.cat([part, around(part[:, :, 0])], dim=2) for part in (k, v))  # time 0 turns by nothing
        out = self.to_out[0](attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), self.heads))
        return unflatten(out, 0, x.shape[:2])

    def to_text(self, x: Tensor, text: Tensor) -> Tensor:
        """softmax(R q k^T / sqrt(d)) v of x [B, P, T, channels] over text [B, L, context], which has no times."""
        q = self.rotary_emb(self.to_q(x), torch.arange(x.shape[2], device=x.device))
        out = self.to_out[0](attend(q.flatten(1, 2), self.to_k(text), self.to_v(text), self.heads))
        return unflatten(out, 1, x.shape[1:3])


class TemporalConv(nn.Conv3d):
    """A convolution of three frames at every pixel, zeros before the first and after the last frame."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def over(self, x: Tensor, frames: int) -> Tensor:
        """[B T, channels, h, w] -> the same shape. As a 2-D convolution over time and pixels, which needs no copy of
        channels-last input."""
        video = unflatten(x, 0, (-1, frames)).transpose(1, 2).flatten(3)  # [B, channels, T, h w]
        out = F.conv2d(video, self.weight.squeeze(-1), self.bias, padding=(1, 0))
        return unflatten(out.transpose(1, 2).flatten(0, 1), -1, x.shape[-2:])


class TemporalLayer(nn.Module):
    """One temporal layer; `after` is the forward hook of the spatial layer that it follows."""

    clip: Clip
    gradient_checkpointing = False

    def after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """The spatial layer's output with what this layer makes of it."""
        if self.clip.frames == 0:
            return None  # leaves the output
        text = kwargs.get("encoder_hidden_states")
        first = output[0] if isinstance(output, tuple) else output
        if self.gradient_checkpointing and torch.is_grad_enabled():
            changed = checkpoint(self, first, text, use_reentrant=False)
        else:
            changed = self(first, text)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


def blend(x: Tensor, change: Tensor, alpha: Tensor) -> Tensor:
    """x + (1 - alpha) change, in x's dtype: a float32 alpha would make half-precision features float32."""
    return torch.addcmul(x, (1 - alpha).to(x.dtype), change.to(x.dtype))


class TemporalResnet(TemporalLayer):
    """x + (1 - alpha) conv2(silu(norm2(conv1(silu(norm1(x)))))), the norms over each frame for itself.

    alpha = 1 is the image model; alpha is the share of it that is kept.
    """

    def __init__(self, channels: int, *, groups: int, alpha: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(groups, channels, eps=1e-6) for _ in range(2))
        self.conv1, self.conv2 = TemporalConv(channels), TemporalConv(channels)
        self.alpha = nn.Parameter(torch.full((1,), alpha))

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        """[B T, channels, h, w] -> the same."""
        h = self.conv1.over(F.silu(self.norm1(x)), self.clip.frames)
        h = self.conv2.over(F.silu(self.norm2(h)), self.clip.frames)
        return blend(x, h, self.alpha)


class TemporalTransformer(TemporalLayer):
    """x + (1 - alpha) f(x), f one transformer block over time: attention to all frames and to a window of the first
    one, attention to the text, and a feed-forward layer, between projections.

    Args:
        window: K, odd: every position also attends to its K x K - 1 neighbours in the first frame (edges repeat).
    """

    def __init__(
        self, channels: int, *, heads: int, text_width: int, groups: int, rope: Rope, window: int, alpha: float
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in, self.proj_out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(channels, heads, text_width, rope, window)])
        self.alpha = nn.Parameter(torch.full((1,), alpha))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """[B T, channels, h, w] and the text of every frame [B T, L, text_width] -> as x."""
        frames, (height, width) = self.clip.frames, x.shape[-2:]
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # [B T, h w, channels]
        h = unflatten(h, 0, (-1, frames)).transpose(1, 2)  # [B, h w, T, channels]
        h = self.transformer_blocks[0](h, text[::frames], (height, width))
        h = self.proj_out(h).transpose(1, 2).flatten(0, 1)  # [B T, h w, channels]
        return blend(x, unflatten(h.transpose(1, 2), -1, (height, width)), self.alpha)


class TemporalBlock(nn.Module):
    """The transformer block of `TemporalTransformer`."""

    def __init__(self, channels: int, heads: int, text_width: int, rope: Rope, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.attn1 = RotaryAttention(channels, heads, rope)
        self.attn2 = RotaryAttention(channels, heads, rope, context=text_width)
        self.ff = FeedForward(channels, activation_fn="geglu")

    def forward(self, x: Tensor, text: Tensor, size: tuple[int, int]) -> Tensor:
        """x [B, h w, T, channels], text [B, L, text_width]."""
        around = partial(first_frame_window, size=size, window=self.window)
        x = x + self.attn1.over_time(self.norm1(x), around)
        x = x + self.attn2.to_text(self.norm2(x), text)
        return cast(Tensor, x + self.ff(self.norm3(x)))


def first_frame_window(first: Tensor, size: tuple[int, int], window: int) -> Tensor:
    """The K x K - 1 neighbours of every position in the first frame, edges repeated; none for K = 1.

    `first [B, h w, channels]` -> `[B, h w, K K - 1, channels]`.
    """
    if window == 1:
        return first[:, :, None][:, :, :0]
    side, (height, width) = window // 2, size
    image = unflatten(first, 1, size)  # [B, h, w, channels]
    for dim in (1, 2):
        before, after = image.narrow(dim, 0, 1), image.narrow(dim, -1, 1)
        image = torch.cat([before] * side + [image] + [after] * side, dim)
    places = [(down, right) for down in range(window) for right in range(window) if (down, right) != (side, side)]
    around = [image[:, down : down + height, right : right + width] for down, right in places]
    return torch.stack(around, dim=3).flatten(1, 2)


class ResidualTemporalConv(TemporalLayer):
    """x + conv(x), conv of three frames and zero at the start: exactly the image model, in any precision."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = TemporalConv(channels)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        """[B T, channels, h, w] -> the same."""
        return x + self.conv.over(x, self.clip.frames)


class ResidualTemporalAttention(TemporalLayer):
    """x + attention(norm(x)) over the frames, at every position; its last projection is zero at the start."""

    def __init__(self, channels: int, *, heads: int, rope: Rope) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attn = RotaryAttention(channels, heads, rope)
        for parameter in self.attn.to_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, text: Tensor | None = None) -> Tensor:
        """[B T, h w, channels] -> the same."""
        video = unflatten(self.norm(x), 0, (-1, self.clip.frames)).transpose(1, 2)  # [B, h w, T, channels]
        return x + self.attn.over_time(video).transpose(1, 2).flatten(0, 1)


class TemporalLayers(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The temporal layers of a UNet2DConditionModel, by the names of the spatial layers that they follow.

    Args:
        follows: name of the spatial layer -> (kind, channels). A "resnet" or "convolution" follows a layer whose output
            is [B T, channels, h, w]; a "transformer" one that also gets the text, as `encoder_hidden_states`; an
            "attention" one whose output is [B T, h w, channels].
        text_width: of the text's tokens.
        groups: of the group norms.
        heads: of every attention.
        rope, window: as RotaryFrequencies and TemporalTransformer have them.
        alpha: the share of the image model that layers with an alpha start with.
        inputs: channels of the condition that is convolved 3 x 3 and added to the UNet's first convolution, from zero
            weights: what more input channels of that convolution would do. 0 = none.
        first_channels: of the UNet's first convolution.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        follows: dict[str, tuple[Kind, int]],
        text_width: int = 768,
        groups: int = 32,
        heads: int = HEADS,
        rope: Rope = "all",
        window: int = 3,
        alpha: float = 1.0,
        inputs: int = 0,
        first_channels: int = 320,
    ) -> None:
        super().__init__()
        make: dict[str, Callable[[int], TemporalLayer]] = {
            "resnet": lambda width: TemporalResnet(width, groups=groups, alpha=alpha),
            "transformer": lambda width: TemporalTransformer(
                width, heads=heads, text_width=text_width, groups=groups, rope=rope, window=window, alpha=alpha
            ),
            "convolution": ResidualTemporalConv,
            "attention": lambda width: ResidualTemporalAttention(width, heads=heads, rope=rope),
        }
        self.names = list(follows)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)  # new layers are the same ones every time, as a folder's are
            self.layers = nn.ModuleDict({_key(name): make[kind](width) for name, (kind, width) in follows.items()})
            self.conv_condition = nn.Conv2d(inputs, first_channels, 3, padding=1, bias=False) if inputs else None
        if self.conv_condition is not None:
            nn.init.zeros_(self.conv_condition.weight)
        self.condition: Tensor | None = None
        self.clip = Clip()
        for layer in self.each():
            layer.clip = self.clip

    def each(self) -> Iterator[TemporalLayer]:
        """The layers, in the order of their names."""
        return cast(Iterator[TemporalLayer], iter(self.layers.values()))

    def attach(self, unet: nn.Module) -> None:
        """Let the layers follow those of `unet`, whose class and weights stay. Raises InputError for another UNet."""
        modules = dict(unet.named_modules())
        self._check_fit(unet, modules)
        for name in self.names:
            layer = cast(TemporalLayer, self.layers[_key(name)])
            modules[name].register_forward_hook(layer.after, with_kwargs=True)
        if self.conv_condition is not None:
            # before the layer that follows the same convolution
            modules["conv_in"].register_forward_hook(self._add_condition, prepend=True)

    def _check_fit(self, unet: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        own = "; expected the UNet that they were made for: take unet/ and temporal/ from one model"
        for name, (kind, width) in self.config.follows.items():
            if name not in modules:
                raise InputError(f"the temporal layers follow {name} of a UNet, and this one has none{own}")
            has = getattr(modules[name], "out_dim" if kind == "attention" else "out_channels", width)
            if has != width:
                raise InputError(
                    f"the temporal layers follow {name} of {width} channels, and this UNet's has {has}{own}"
                )
        text = getattr(getattr(unet, "config", None), "cross_attention_dim", self.config.text_width)
        if text != self.config.text_width:
            raise InputError(
                f"the temporal layers read text of width {self.config.text_width}, and this UNet {text}{own}"
            )

    def _add_condition(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self.condition is None or self.conv_condition is None:
            return None
        return output + cast(Tensor, self.conv_condition(like(self.conv_condition, self.condition)))

    def alphas(self) -> dict[str, nn.Parameter]:
        """The alphas by the name of the spatial layer."""
        found = {name: getattr(self.layers[_key(name)], "alpha", None) for name in self.names}
        return {name: alpha for name, alpha in found.items() if isinstance(alpha, nn.Parameter)}


def _key(name: str) -> str:
    return name.replace(".", "-")


class FirstFrameAttention:
    """An attention processor of diffusers: every frame attends to itself and to the clip's first frame.

    softmax(q_i [k_i, k_1]^T / sqrt(d)) [v_i, v_1], the tokens of both frames side by side.

    Source: ConsistI2V (arXiv 2402.04324), equation 4.
    """

    def __init__(self, clip: Clip) -> None:
        self.clip = clip

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> Tensor:
        """[B T, h w, channels] -> the same."""
        q, k, v = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        if self.clip.frames:
            k, v = (self._with_first(part) for part in (k, v))
        return cast(Tensor, attn.to_out[1](attn.to_out[0](attend(q, k, v, attn.heads))))

    def _with_first(self, tokens: Tensor) -> Tensor:
        video = unflatten(tokens, 0, (-1, self.clip.frames))  # [B, T, h w, channels]
        return torch.cat([video, video[:, :1].expand_as(video)], dim=2).flatten(0, 1)


class VideoUNet(nn.Module):
    """An image UNet and the temporal layers attached to it."""

    def __init__(self, unet: Any, temporal: TemporalLayers) -> None:
        super().__init__()
        self.unet, self.temporal = unet, temporal
        temporal.attach(unet)

    def predict(
        self,
        latents: Tensor,
        timesteps: Tensor,
        prompt_embeds: Tensor,
        *,
        label: Tensor | None = None,
        condition: Tensor | None = None,
        as_images: bool = False,
    ) -> Tensor:
        """The UNet's prediction for clips.

        Args:
            latents: [B, T, C, h, w].
            timesteps: [B], or [B, T], a frame's own.
            prompt_embeds: [B, L, E].
            label: [B], a number that the UNet embeds.
            condition: [B, T, c, h, w], for the convolution beside the UNet's first one.
            as_images: whether the frames are images: the temporal layers let them pass.

        Returns:
            [B, T, C, h, w]
        """
        frames = latents.shape[1]
        self.temporal.clip.frames = 0 if as_images else frames
        self.temporal.condition = None if condition is None else condition.flatten(0, 1)
        out: Tensor = self.unet(
            like(self.unet, latents.flatten(0, 1)),
            timesteps.reshape(len(timesteps), -1).expand(-1, frames).flatten(),
            encoder_hidden_states=like(self.unet, prompt_embeds).repeat_interleave(frames, dim=0),
            class_labels=None if label is None else label.repeat_interleave(frames),
            return_dict=False,
        )[0]
        self.temporal.condition = None  # the layers don't keep it
        return unflatten(out, 0, (-1, frames))

    def enable_gradient_checkpointing(self) -> None:
        """Less memory for more time; the gradients stay."""
        self.unet.enable_gradient_checkpointing()
        for layer in self.temporal.each():
            if isinstance(layer, TemporalTransformer):  # the others lie inside the UNet's own checkpoints
                layer.gradient_checkpointing = True


def spatial_layers(unet: nn.Module, *classes: str) -> dict[str, Any]:
    """The layers of a UNet whose class has one of these names, by their own names."""
    return {name: module for name, module in unet.named_modules() if type(module).__name__ in classes}


def check_heads(widths: Mapping[str, int], heads: int = HEADS) -> None:
    """Raises InputError where a layer's channels don't split into heads of an even width, as RoPE needs."""
    for name, width in widths.items():
        if width % (2 * heads):
            raise InputError(f"heads={heads}: {name} has {width} channels; expected a multiple of {2 * heads}")
