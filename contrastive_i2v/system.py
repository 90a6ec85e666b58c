"""The wall between a video model and everything that trains, samples and measures it.

A `System` is four things: a codec (pixels <-> latents), a network (noisy latents, timesteps, condition -> prediction),
a condition (what the network is told, and may be left without), and a window (how many latent frames the network sees
at once, and which of them are given). Training, previews, sampling and evaluation know a model through these alone, so
a new model is one file in `models/` and one recipe. Needs torch alone.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError, check_fields, one_line
from contrastive_i2v.files import write_whole
from contrastive_i2v.randomness import draw
from contrastive_i2v.sampler import Sampler, SamplerOptions

S = TypeVar("S", bound="System")
C = TypeVar("C", bound="SystemConfig")

Text: TypeAlias = dict[str, Tensor]
"""What a text encoder says of N prompts: tensors `[N, *]` by name, as prompt_embeds, masks, pooled embeddings."""
ImageEmbeds: TypeAlias = dict[str, Tensor]
"""What a system makes of given frames' pixels beside their latents: tensors `[B, *]` by name; most make none."""
Condition: TypeAlias = dict[str, Tensor]
"""What a network is told, batched: tensors `[B, *]` by name. Only the system knows the names."""
Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""
Dtype: TypeAlias = Literal["float32", "float16", "bfloat16"]
"""Names of what a model computes in."""

Dtypes: TypeAlias = torch.dtype | Mapping[str, torch.dtype]
"""One for a whole system, or by the names of `System.parts()`, with "default" for the others, as diffusers has it."""

DESCRIPTION = "system.json"
"""Beside the weights: which system they are, its options, and how it is sampled."""


@dataclass(frozen=True)
class Window:
    """The latent frames that a network sees at once.

    A pair is `Window(2)`; k past frames are `Window(k + 1, given=range(k))`; ConsistI2V is `Window(16)`; a model that
    fills in between keyframes has some given frames after generated ones.
    """

    length: int
    given: tuple[int, ...] = (0,)
    """Positions of the frames that are known, rising; the network generates the others."""
    anchor: bool = False
    """Whether the video's first frame is given beside the window, before its other frames."""
    ahead: bool = False
    """Whether the frame after the window's last, as far from it as all its frames are apart, may be given as well: a
    keyframe. It comes last; where there is none it is marked as absent."""
    regenerates: bool = False
    """Whether the network makes the given frames as well, which it is then told by the condition alone."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "given", tuple(self.given))
        if list(self.given) != sorted(set(self.given) & set(range(self.length))) or len(self.given) >= self.length:
            raise InputError(
                f"window: {self.length} frames of which {self.given} are given; expected rising positions below "
                f"{self.length}, and at least one that is generated"
            )

    @property
    def generated(self) -> tuple[int, ...]:
        """Positions of the frames that the network makes."""
        return tuple(i for i in range(self.length) if self.regenerates or i not in self.given)

    @property
    def frames(self) -> int:
        """Latent frames of an example: the anchor and the frame ahead, if the window has them, and the window."""
        return self.anchor + self.length + self.ahead

    @property
    def past(self) -> int:
        """How many given frames come before the first one that isn't."""
        return next(i for i in range(self.length) if i not in self.given)

    def after(self, frames: int) -> Window:
        """The window where a video has so many frames before it: fewer given frames, and more generated ones, where
        these are fewer than `past`."""
        return replace(self, given=tuple(range(min(frames, self.past)))) if self.rolls else self

    @property
    def rolls(self) -> bool:
        """Whether windows can follow each other: every given frame lies before the generated ones."""
        return 0 < self.past == len(self.given)


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """The options of a system; every system has a subclass with a `kind` and options of its own."""

    kind: str = ""

    def over(self: C, saved: C) -> C:
        """These options, and the saved ones where they are None."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(saved, **{name: value for name, value in own.items() if value is not None})


class Codec(Protocol):
    """Pixels to latents and back. It moves its inputs to its own device and dtype.

    An image autoencoder takes every frame for itself; a video autoencoder makes `1 + (F - 1) / temporal_downscale`
    latent frames of F frames, each from the frames up to its own alone (a causal one), so that latents can be cached.
    """

    channels: int
    """C, of a latent."""
    downscale: int
    """Pixels to a latent pixel, along each side."""
    temporal_downscale: int
    """Frames to a latent frame after the first; 1 for image autoencoders."""
    scale: float | Tensor
    """Latents are (the autoencoder's own - its shift) times this: a number, or `[C, 1, 1]`."""

    def encode(self, pixels: Tensor) -> Tensor:
        """`[B, F, 3, H, W]` in [-1, 1] -> what the cache keeps, `[B, f, R, h, w]`: say the posterior's moments."""

    def sample(self, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """`[..., R, h, w]` -> the autoencoder's own latents `[..., C, h, w]`: with noise a posterior sample, else its
        mode."""

    def normalize(self, own: Tensor) -> Tensor:
        """The autoencoder's own latents -> latents, which diffusion is about: of about unit scale."""

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents `[B, f, C, h, w]` -> pixels `[B, F, 3, H, W]`, clamped to [-1, 1]."""


class System(ABC):
    """A model, as training, sampling and evaluation see it.

    Given frames cross this wall as the autoencoder's own latents, not normalised: some networks are conditioned on
    these, and dividing by a scale does not undo multiplying by it to the bit.
    """

    Config: ClassVar[type[SystemConfig]] = SystemConfig
    """The class of the system's options."""
    starts_from: ClassVar[tuple[str, ...]] = ()
    """Kinds of other systems whose weights `load` takes as a start."""
    config: SystemConfig
    network: nn.Module
    """All that is trained, averaged, compiled or sharded: `network(noisy, timesteps, **condition) -> prediction`, noisy
    and prediction `[B, G, C, h, w]` of the window's G generated frames, timesteps `[B]`, or `[B, G]` where the system
    has `frame_timesteps`."""
    codec: Codec
    scheduler: Any
    """A diffusers scheduler; its config says the noise schedule and the prediction type."""
    window: Window
    sampler: Sampler
    """What the model is sampled with unless somebody says otherwise."""
    size: Size
    """Pixels the model was trained at."""
    fps: float = 5.0
    """Frames a second the model was trained at."""
    max_stride: int | None = None
    """The network is told the stride of a window, `fps` over the window's own frames a second, and was trained with 1
    to this; None = it isn't told."""
    frame_timesteps: bool = False
    """Whether every frame of a window, given or generated, has a timestep of its own: training draws all of them
    independently, and `noise_history` says those of the given frames, the cleanest otherwise."""
    any_length: ClassVar[bool] = False
    """Whether the weights take windows of other lengths than `window`'s."""
    sees_pixels: bool = False
    """Whether the condition holds what `encode_image` makes of the given frames' pixels."""
    drops_absent: ClassVar[bool] = False
    """Whether a window has fewer given frames, and more generated ones, where a video has not so many yet; otherwise
    those before its first are stood in for by repeated ones."""
    middle: str | None = None
    """A module in the middle of the network, by its name there, for losses on its features; None = say one."""
    lora_targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers that LoRA adapts unless somebody says otherwise, by the ends of their names."""
    lora_module: ClassVar[str] = "unet"
    """The network's module, by name, whose adapters diffusers' pipelines load."""
    lora_loader: ClassVar[str] = "StableDiffusionLoraLoaderMixin"
    """The class of `diffusers.loaders` by which these pipelines load and save them."""
    quantized: str | None = None
    """What the weights were rounded to after they were opened (`models.quantization`): they are to be sampled with, and
    neither trained nor saved. None = they are as the files hold them."""
    offloaded: str | None = None
    """The level at which weights come to the device and go (`models.offloading`), for sampling; None = they stay."""
    precisions: Mapping[str, torch.dtype] = {}
    """Parts, by name, that `to` keeps in a dtype of their own unless it is told theirs."""
    added: tuple[str, ...] = ()
    """Modules of the network, by name, that the weights which `load` read don't have: LoRA trains them in full."""

    @classmethod
    @abstractmethod
    def opens(cls, folder: Path) -> bool:
        """Whether a model folder without a `system.json` is one for this system."""

    @classmethod
    @abstractmethod
    def load(cls: type[S], source: str, config: SystemConfig, saved: SystemConfig | None) -> S:
        """The system of a folder or hub id, in float32 on the CPU.

        Args:
            source: what `from_pretrained` of diffusers takes.
            config: the options asked for.
            saved: the options that the weights were saved with; None for weights that no system saved.

        Raises:
            InputError: missing parts or weights, or options that these weights can't have.
        """

    @classmethod
    def random(cls: type[S], config: SystemConfig) -> S:
        """A tiny system with random weights, of PyTorch's default generator: to try a family's every path on, without
        meaning. Raises InputError where there is none."""
        raise InputError(f"{config.kind}: has no tiny random form; expected a family that has, or the model 'tiny'")

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of what makes latents and texts. Equal = interchangeable; the key of every cache."""

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Every module by name, in the order in which sampling uses them; the network is one of them."""

    @abstractmethod
    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Tensors `[N, *]` of N prompts; "" is no prompt."""

    def encode_image(self, pixels: Tensor, length: int) -> ImageEmbeds:
        """What the network is told of given frames beside their latents, of a system that `sees_pixels`.

        Args:
            pixels: `[B, F, 3, H, W]` in [-1, 1], of the window's given frames; the codec makes as many latents of them.
            length: latent frames of the whole window.
        """
        return {}

    @abstractmethod
    def condition(
        self,
        given: Tensor,
        text: Text,
        *,
        present: Tensor | None = None,
        fps: Tensor | None = None,
        noise_level: Tensor | None = None,
        noise: Tensor | None = None,
        image: ImageEmbeds | None = None,
    ) -> Condition:
        """What the network is told.

        Args:
            given: `[B, n, C, h, w]`, the autoencoder's own latents of the anchor, if the window has one, of the
                window's given frames, in order of time, and of the frame ahead, if it takes one.
            text: `[B, *]` each.
            present: bool `[B, n]`; False where a frame that isn't there is stood in for by another one.
                None = all are there.
            fps: `[B]` frames a second of the window; None = `self.fps`.
            noise_level: `[B]`, standard deviation of the noise that was added to the given frames, in units of
                normalised latents. None = no noise.
            noise: `[B, n, C, h, w]`, what `self.noise` drew for the given frames; None where it draws none for them.
            image: what `encode_image` made of the given frames; None or empty for a system that doesn't see pixels.
        """

    @abstractmethod
    def drop(self, condition: Condition, *, image: Tensor, text: Tensor, negative: Text | None = None) -> Condition:
        """The condition without the image or the text of some samples: training's dropout, guidance's null branches.

        Args:
            image, text: bool `[B]`; True drops it.
            negative: `[B, *]` each, the negative prompts that stand in for the text; None = "".
        """

    def noise_history(self, condition: Condition, timesteps: Tensor | float) -> Condition:
        """The condition with its given frames noised to these timesteps, those that are noisier already left so; of
        systems with `frame_timesteps`.

        Args:
            timesteps: `[B, n]`, or one for all.
        """
        raise NotImplementedError

    @abstractmethod
    def save_weights(self, folder: Path) -> None:
        """Write every part to a folder that `load` opens: safetensors, in diffusers' layout where it has one."""

    def caption_features(self, text: Text) -> Tensor:
        """`[B, E]`, one vector a prompt, equal for equal prompts alone: for losses on captions.

        Raises InputError where the system has none.
        """
        raise InputError(f"{self.config.kind} has no caption features; expected a system that has")

    @property
    def size_step(self) -> int:
        """Pixels that each side of an image is a multiple of: of a latent pixel, or of a patch of them."""
        return self.codec.downscale

    def check_size(self, size: Size, name: str = "resolution") -> Size:
        """The size. Raises InputError, with the nearest one that fits, where a side is no multiple of `size_step`."""
        step = self.size_step
        if any(side < step or side % step for side in size):
            fits = [max(step, round(side / step) * step) for side in size]
            raise InputError(
                f"{name}: got {size[0]}x{size[1]} pixels (height x width); {self.config.kind} takes multiples of {step}"
                f", the nearest is {fits[0]}x{fits[1]}"
            )
        return size

    def still(self) -> System | None:
        """The system that makes a still frame from text alone, its window without given frames; None = there's none."""
        return None

    def trainable(self) -> list[nn.Parameter]:
        """The network's parameters that training moves."""
        return list(self.network.parameters())

    def constrain(self) -> None:
        """Put parameters back inside their bounds; training calls it after every optimizer step."""
        return

    def check_fps(self, fps: float) -> None:
        """Raises InputError for a stride, `self.fps / fps`, that the network was not trained to be told."""
        most = self.max_stride
        if most is not None and not 0.99 <= (stride := self.fps / fps) <= 1.01 * most:
            rates = ", ".join(f"{self.fps / k:g}" for k in range(1, most + 1))
            raise InputError(
                f"fps={fps:g} is a stride of {stride:.3g} frames, and the model was trained with 1 to {most}; expected "
                f"fps of {rates}, or between them"
            )

    def strides(self, given: Tensor, fps: Tensor | None) -> Tensor:
        """`[B]`, the windows' strides at `fps [B]` frames a second; None = 1."""
        return given.new_ones(len(given)) if fps is None else self.fps / fps.to(given.dtype)

    def check_sampler(self, sampler: Sampler | SamplerOptions) -> None:
        """Raises InputError for a history level of a system without `frame_timesteps`, or keyframes of one whose
        windows take no frame ahead."""
        if (sampler.keyframe_stride or 1) > 1 and not self.window.ahead:
            raise InputError(
                f"keyframe_stride={sampler.keyframe_stride}: the model takes no frame ahead; expected 1, or a model "
                "trained with --system.max-stride above 1 (instruct-pix2pix)"
            )
        if sampler.history_level and not self.frame_timesteps:
            raise InputError(
                f"history_level={sampler.history_level:g}: {self.config.kind} isn't told how noisy a given frame is; "
                "expected 0, or a model trained with --system.frame-timesteps True (consisti2v)"
            )

    def noise(
        self,
        shape: Sequence[int],
        generator: torch.Generator | Sequence[torch.Generator],
        *,
        given: Tensor,
        sampling: bool,
        layout: Tensor | None = None,
    ) -> Tensor:
        """The noise that training adds, or that sampling starts from (float32, CPU): independent.

        Args:
            shape: `[B, G, C, h, w]`, of the generated frames.
            generator: one for the batch, or one a sample.
            given: as for `condition`.
            sampling: whether sampling starts from it.
            layout: `[B, n + G, C, h, w]`, normalised latents of a coarse video that the noise is to follow.

        Returns:
            `[B, G, C, h, w]`; or `[B, n + G, C, h, w]`, the given frames' first, from a system whose network puts
            noise in place of a dropped image.

        Raises:
            InputError: a layout for a system whose noise follows none.
        """
        if layout is not None:
            raise InputError(f"layout: the noise of {self.config.kind} follows none; expected None")
        return draw(shape, generator)

    def set_timesteps(self, scheduler: Any, steps: int, latent: Sequence[int], *, device: Any = None) -> None:
        """Let a scheduler take so many steps, in place, for windows of latents `[length, h, w]`.

        Raises InputError for one that wants more than a number of steps.
        """
        if scheduler.config.get("use_dynamic_shifting"):
            raise InputError(
                f"the scheduler's use_dynamic_shifting is True, and {self.config.kind} has no mu to give it; expected "
                "False: use type(scheduler).from_config(scheduler.config, use_dynamic_shifting=False, shift=...)"
            )
        scheduler.set_timesteps(steps, device=device)

    def timestep_shift(self, latent: Sequence[int]) -> float:
        """The shift of training's timesteps (`NoiseSchedule.sample_timesteps`) for windows of latents `[length, h, w]`
        that the model's family trains with."""
        return 1.0

    @property
    def schedule(self) -> NoiseSchedule:
        """What the scheduler's config says about noise and prediction."""
        return NoiseSchedule.from_config(self.scheduler.config)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self: S, device: str | torch.device | None = None, dtype: Dtypes | None = None) -> S:
        """Move every part in place, put it in eval mode, and return self. Raises InputError for a dtype of no part."""
        by_part = dtype if isinstance(dtype, Mapping) else {"default": dtype}
        if unknown := by_part.keys() - self.parts().keys() - {"default"}:
            raise InputError(f"dtype of {min(unknown)}: {self.config.kind} has {', '.join(self.parts())}")
        for name, module in self.parts().items():
            own = by_part.get(name, self.precisions.get(name, by_part.get("default")))
            nn.Module.to(module, device=device, dtype=own).eval()  # diffusers' own warns of a cast that is meant
        return self

    def compile(self: S) -> S:
        """Compile the network in place, by torch.compile, for faster sampling after some tens of seconds at its first
        call, and again for batches of another size; returns self.

        Raises InputError where no code can be built.
        """
        if self.offloaded:
            raise InputError(f"offload={self.offloaded}: compiled code brings no weights; expected no compile")
        check_compiler(self.device)
        self.network.compile()
        return self

    def save(self, folder: str | Path) -> None:
        """Write the weights and, last, `system.json`: a folder that `load_system` opens.

        Everything is written beside the folder first, so a full disk leaves the folder as it was; files in it that are
        none of the model's stay.

        Raises InputError naming the folder when the disk refuses, and for rounded weights.
        """
        if self.quantized:
            raise InputError(
                f"{folder}: the weights were rounded to {self.quantized} when they were opened; save a "
                "model that was opened without quantize"
            )
        write_model(Path(folder), self.save_weights)
        self.save_description(Path(folder))

    def save_description(self, folder: Path, adapter: Adapter | None = None) -> None:
        """Write `system.json` alone: what is said of the weights that are there. Raises InputError."""
        said = asdict(Description(system=self.config, sampler=self.sampler, size=self.size, fps=self.fps))
        said["adapter"] = adapter and asdict(adapter)
        text = json.dumps({name: value for name, value in said.items() if value is not None}, indent=2) + "\n"
        write_whole(folder / DESCRIPTION, lambda part: part.write_text(text, encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What `system.json` says of weights that are an adapter (LoRA): what they are added to."""

    base: str
    """"tiny", a folder or a hub id."""
    base_hash: str
    """Of the base's weights in float32."""
    rank: int
    alpha: int
    """Each adapted layer's weights are W + alpha / rank B A."""
    files: dict[str, str]
    """The sha256 of each file of weights, by its name."""

    def __post_init__(self) -> None:
        check_fields(self, {"rank": 1}, positive=("alpha",))


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `system.json` says of the weights beside it."""

    system: SystemConfig
    sampler: Sampler = field(default_factory=Sampler)
    size: Size | None = None
    fps: float | None = None
    adapter: Adapter | None = None
    """None = the weights are a whole model."""


def write_model(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write(part)` write a model's files into a folder beside `folder`, then move them into it.

    A full disk leaves the folder as it was. Without `system.json`, which is to be written next, it is no model yet.
    Raises InputError naming the folder.
    """
    folder = folder.absolute()
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        write(part)
        folder.mkdir(exist_ok=True)
        (folder / DESCRIPTION).unlink(missing_ok=True)
        for file in [path for path in part.rglob("*") if path.is_file()]:
            target = folder / file.relative_to(part)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
    except Exception as error:  # the libraries that write have errors of their own
        raise InputError(f"{folder}: the model could not be written ({one_line(error)})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_compiler(device: torch.device) -> None:
    """Raises InputError where torch.compile can build no code: no C++ compiler for the CPU, no Triton for a GPU."""
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
    except Exception as error:  # of whichever part of the compiler
        raise InputError(
            f"compile: torch.compile builds nothing here ({one_line(error)}); install a C++ compiler (for a CPU) "
            "or Triton (for a GPU), or leave it off"
        ) from error


def split_noise(noise: Tensor, generated: int) -> tuple[Tensor | None, Tensor]:
    """What `System.noise` returned, as that of the given frames, if it drew any for them, and of the generated ones."""
    given = noise.shape[1] - generated
    return (noise[:, :given] if given else None), noise[:, given:]


def dropped(values: Tensor, where: Tensor, null: Tensor | float = 0.0) -> Tensor:
    """`values [B, *]` with the rows at which `where [B]` is True replaced by `null` (`[1, *]`, or a number)."""
    mask = where.view(-1, *[1] * (values.dim() - 1))
    if isinstance(null, Tensor):
        return torch.where(mask, null.to(values), values)
    return values.masked_fill(mask, null)  # a number made a tensor would wait for the device


def default_device() -> torch.device:
    """The device that commands run on where nobody says: CUDA, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
