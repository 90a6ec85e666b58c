"""What a training run is made of. The command line is generated from these classes; a run writes its config as
`config.yaml`, which starts the same run again."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import dacite
import yaml

from contrastive_i2v.data.frames import FramesConfig
from contrastive_i2v.data.sources import SourceConfig
from contrastive_i2v.diffusion import TimestepDistribution
from contrastive_i2v.errors import InputError, check_fields, one_line
from contrastive_i2v.files import write_whole
from contrastive_i2v.models import parse_config
from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.models.lora import AdapterConfig
from contrastive_i2v.sampler import SamplerOptions
from contrastive_i2v.system import SystemConfig
from contrastive_i2v.training.scores import Condition

T = TypeVar("T")

PROJECT = "contrastive-i2v"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Captioned videos and how frames become training windows."""

    path: Path = Path("clips/train")
    """Folder of videos with captions: NAME.txt beside each, or one metadata.csv / metadata.jsonl; or a dataset in any
    form of docs/data.md."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """How it is read."""
    shards: str | None = None
    """Folder or URL of latents that `contrastive-i2v encode --output` wrote; then `path` isn't read, and the other
    options are those that they were encoded with."""
    streams: int = 8
    """The shards are dealt to as many streams, of which each batch has one: a multiple of processes x workers lets each
    of those read shards of its own. Changes the order of the batches. With `buckets` a multiple of the processes, and
    as many batches in a row are of one bucket."""
    shuffle_shards: int = 2
    """Shards of a stream, and with `buckets` of each, that are shuffled together and held in memory."""
    validation_path: Path | None = None
    """Held-out folder of the same form, for previews and the validation loss; None = neither."""
    validation_split: str | None = None
    """Its split; None = the one for validation, where it has splits."""
    cache_dir: Path = Path("~/.cache/contrastive_i2v/latents")
    """Latents and prompt embeddings, encoded once; safe to delete."""
    resolution: int | tuple[int, int] = 256
    """Frames are centre-cropped and resized to this many pixels: a square's side, or height and width."""
    buckets: tuple[tuple[int, int], ...] = ()
    """Heights and widths, of which each clip is trained at the one that crops the least of it; none = all at
    `resolution`, which previews keep. A batch is of one of them and has the area of batch_size at `resolution`."""
    max_aspect_ratio: float = 1.0
    """Above 1: buckets are made, of at most `resolution`'s area, up to so many times as wide as high and as high as
    wide."""
    lengths: tuple[int, ...] = ()
    """Frames of a window, of which a clip's windows have the most that it holds; none = the system's, which previews
    keep. For systems whose weights take any (consisti2v); batches are as with buckets."""
    frames: FramesConfig = field(default_factory=FramesConfig)
    """Which frames of a clip make a window."""
    scores: Path | None = None
    """What `contrastive-i2v filter` wrote of the clips, for `where` and `keep`."""
    where: tuple[str, ...] = ()
    """Conditions on the scores, all of which a clip must meet, as "cuts==0" "motion>0.01"."""
    keep: float = 1.0
    """Share of the clips that is trained on: the best by the mean rank of motion, sharpness and, with `clip` or where
    `scores` have it, the similarity of caption and frames; 1 = all."""
    clip: str | None = None
    """CLIP's folder or hub id, for `keep`; None = motion and sharpness alone."""

    def __post_init__(self) -> None:
        check_fields(self, {"streams": 1, "shuffle_shards": 1})
        chosen = self.keep < 1 or self.scores is not None
        if self.shards is not None and (self.path != DataConfig.path or self.source != SourceConfig() or chosen):
            raise InputError("shards: path, source, scores and keep were for encoding them; expected shards alone")
        for one in self.where:
            Condition.parse(one)
        if self.where and self.scores is None:
            raise InputError("where: conditions on scores, of which there are none; expected them, or no where")
        if self.scores is not None and not (self.where or self.keep < 1):
            raise InputError("scores: nothing uses them; expected where or keep, or no scores")
        if self.scores is not None and self.clip is not None:
            raise InputError("clip: is for keep without scores; expected no clip: filter has one of its own")
        if not 1 <= self.max_aspect_ratio < math.inf:
            raise InputError(f"max_aspect_ratio: expected a number >= 1, got {self.max_aspect_ratio}")
        if self.buckets and self.max_aspect_ratio > 1:
            raise InputError("buckets and max_aspect_ratio: expected one of them, got both")
        if len(set(self.lengths)) < len(self.lengths) or min(self.lengths, default=1) < 1:
            raise InputError(f"lengths: expected numbers >= 1, none twice, got {' '.join(map(str, self.lengths))}")
        if not 0 < self.keep <= 1:
            raise InputError(f"keep: expected a share above 0, at most 1, got {self.keep}")
        if self.clip is not None and self.keep == 1:
            raise InputError("clip: it ranks clips for keep, which is 1 (all of them); expected a smaller keep")
        if self.validation_split is not None and self.validation_path is None:
            raise InputError("validation_split: there is no validation_path; expected one, or no split of it")

    @property
    def is_bucketed(self) -> bool:
        """Whether examples may have another size than `resolution`, or another length than the system's window."""
        return bool(self.buckets) or self.max_aspect_ratio > 1 or bool(self.lengths)

    @property
    def validation_source(self) -> SourceConfig:
        """How the held-out clips are read."""
        return replace(self.source, split=self.validation_split)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The contrastive terms beside the noise loss; see ContrastiveDiffusionLoss."""

    target_weight: float | None = 0.2
    """Weight of the bank of target latents; 0 = off, None = 1 / latent elements."""
    input_weight: float | None = 0.0
    """Weight of the bank of input-frame latents; 0 = off, None = 1 / latent elements."""
    balance: float | None = None
    """Multiply the two banks' terms so that their gradient to the prediction is at most this times the noise loss's
    (GradientBalance); target_weight and input_weight then only say their ratio. None = the weights as they are."""
    temperature: float = 0.07
    """Logits are divided by this."""
    normalize: bool = True
    """Cosine similarity instead of the dot product."""
    gate: Literal["none", "signal"] = "signal"
    """Weight of the contrastive terms by timestep: none = 1, signal = alphas_cumprod."""
    max_timestep: float | None = None
    """Noisier timesteps have no contrastive terms; None = no such limit."""
    min_snr_gamma: float | None = None
    """Min-SNR weights of the noise loss (arXiv 2303.09556); 5 is usual; None = unweighted."""
    false_negatives: bool = True
    """Leave other rows of the same video out of the negatives."""
    rows: Literal["frame", "clip"] = "frame"
    """What is contrasted: every generated frame of a window for itself, or all of them together."""
    gather: bool = True
    """With several processes, contrast with the latents of all of them (rounded to bfloat16)."""
    memory_bank: int = 0
    """Past latents that stay candidates, in each bank; 0 = none."""
    own_weight: float = 0.0
    """Weight of the contrast with own samples (OwnSampleContrast); needs own_samples.contrast_share or
    condition_share; 0 = off."""
    own_beta: float = 5.0
    """How fast that contrast saturates."""
    own_positive_only: bool = False
    """Its positive half alone: a control without a negative."""
    flow_contrast_weight: float = 0.0
    """Contrastive Flow Matching (arXiv 2506.05350): minus this times the distance to another row's target. It rescales
    the prediction by about 1 / (1 - weight); 0.05 is usual, 0 = off."""
    text_weight: float = 0.0
    """Weight of the bank of text frames, captions projected into the latent space by a learned layer (TextFrameLoss,
    with `temperature`); 0 = off."""
    dispersive_weight: float = 0.0
    """Dispersive loss (arXiv 2506.09027): features of a batch's rows repel each other; 0.5 is usual, 0 = off."""
    dispersive_temperature: float = 0.5
    """Of their squared distances."""
    dispersive_layer: str | None = None
    """Which module of the network has the features; None = the system's middle one."""
    alignment_weight: float = 0.0
    """Representation alignment (arXiv 2410.06940): features of the network, projected by a learned MLP, are pulled
    towards a frozen encoder's of the clean frames; 0.5 is usual, 0 = off."""
    alignment_encoder: str | None = None
    """Folder or hub id of a DINOv2 or DINOv3 (transformers), say facebook/dinov2-base."""
    alignment_layer: str | None = None
    """Which module of the network has those features; None = the system's middle one."""

    @property
    def contrasts_rows(self) -> bool:
        """Whether a term holds a batch's rows against each other."""
        banks = self.target_weight != 0 or self.input_weight != 0
        return banks or self.flow_contrast_weight != 0 or self.dispersive_weight != 0

    def __post_init__(self) -> None:
        weights = ("own_weight", "text_weight", "dispersive_weight", "alignment_weight")
        check_fields(
            self,
            dict.fromkeys(("memory_bank", *weights), 0.0),
            positive=("own_beta", "dispersive_temperature", "balance"),
        )
        if self.balance is not None and self.target_weight == self.input_weight == 0:
            raise InputError("balance: target_weight and input_weight are 0; expected one above 0 for it to multiply")
        if self.alignment_weight and self.alignment_encoder is None:
            raise InputError(
                f"alignment_weight={self.alignment_weight}: needs alignment_encoder, a DINOv2's folder or hub id"
            )
        if not self.alignment_weight and (self.alignment_encoder or self.alignment_layer):
            raise InputError(
                "alignment_encoder, alignment_layer: for alignment_weight, which is 0; expected one above 0"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning rate."""

    learning_rate: float = 1e-5
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    eight_bit: bool = False
    """AdamW with 8-bit state (needs bitsandbytes and a GPU)."""

    def __post_init__(self) -> None:
        least = {"learning_rate": 0, "warmup_steps": 0, "weight_decay": 0}
        check_fields(self, least, positive=("max_grad_norm",))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas: expected two numbers, 0 <= beta < 1, got {self.betas}")


@dataclass(frozen=True, kw_only=True)
class TimestepsConfig:
    """Which timesteps training sees; see NoiseSchedule.sample_timesteps."""

    distribution: TimestepDistribution = "uniform"
    """uniform, or logit-normal: fewer of the cleanest and the noisiest, as flow matching models are trained."""
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float | None = 1.0
    """Above 1 = noisier timesteps, as large images and long videos need; None = as the model's family trains, by the
    size and length of the window where it does so (wan, ltx-video)."""

    def __post_init__(self) -> None:
        check_fields(self, {}, positive=("logit_std", "shift"), finite=("logit_mean",))


@dataclass(frozen=True, kw_only=True)
class PreviewConfig(SamplerOptions):
    """Rollouts of held-out clips while training; how they are sampled, None = as the model was made for."""

    every: int = 500
    """Steps between previews; 0 = none."""
    clips: int = 4
    """Clips shown."""
    frames: int = 8
    """Frames of each rollout, the given first one included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {"every": 0, "clips": 1, "frames": 2})


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The loss on held-out clips while training, at fixed timesteps and noise. Once costs the forward passes of
    `clips` x `timesteps` windows, which the processes share; `equal_compute` doesn't count them."""

    every: int = 500
    """Steps between measurements; 0 = none."""
    clips: int = 64
    """Clips, evenly from the folder, a window of each; fewer where it has fewer."""
    timesteps: int = 4
    """Timesteps for each window, the middles of as many equal parts of the schedule."""

    def __post_init__(self) -> None:
        check_fields(self, {"every": 0, "clips": 1, "timesteps": 1})


@dataclass(frozen=True, kw_only=True)
class OwnSamplesConfig(SamplerOptions):
    """Rollouts of the model itself, made while it trains; how they are sampled, None = as the model was made for. All
    shares 0 = none are made. Their cost: docs/guide.md, "Training against drift"."""

    condition_share: float = 0.0
    """Share of a batch that is conditioned on the model's own frames instead of true ones; the target stays true."""
    error_share: float = 0.0
    """Chance that a row's given frames get an error of the model's own, its frame minus the true one, added."""
    contrast_share: float = 0.0
    """Share of a batch that loss.own_weight holds against own samples, from any window of a rollout, under true
    conditions; own_weight takes the rows of condition_share as well, under their own conditions."""
    depth: int = 5
    """Windows of a rollout: the first has true conditions, the later ones own. 1 = no own conditions."""
    clips: int = 32
    """Rollouts that are kept, from training windows drawn at random (those whose clip goes on for long enough)."""
    refresh: int = 60
    """Optimizer steps after which all are made anew, with the averaged weights if there are any."""
    at_once: int = 16
    """Rollouts that a process makes together; less needs less memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = ("condition_share", "error_share", "contrast_share")
        check_fields(self, dict.fromkeys(("depth", "clips", "refresh", "at_once"), 1), shares=shares)
        if self.condition_share + self.contrast_share > 1:
            raise InputError("own_samples: condition_share and contrast_share are more than a batch together")
        if self.condition_share and self.depth == 1:
            raise InputError("own_samples.condition_share: needs own_samples.depth 2 or more, got 1")
        if not self.on and any(getattr(self, item.name) != item.default for item in fields(self)):
            raise InputError(
                "own_samples: no share of a batch uses them; expected a share above 0, or none of their options"
            )

    @property
    def on(self) -> bool:
        """Whether any are made."""
        return self.condition_share + self.error_share + self.contrast_share > 0

    def rows(self, batch_size: int) -> tuple[int, int]:
        """Rows of a batch with own conditions, and rows drawn for the contrast alone."""
        conditions = round(self.condition_share * batch_size)
        return conditions, min(round(self.contrast_share * batch_size), batch_size - conditions)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    output: Path = Path("runs/contrastive")
    """Folder of everything the run writes."""
    resume: bool = False
    """Go on from the last checkpoint in `output`."""
    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """"tiny", a diffusers folder (Stable Diffusion 1.x or InstructPix2Pix), or a hub id."""
    system: SystemConfig = field(default_factory=InstructPix2PixConfig)
    """What is made of the model."""
    steps: int = 4500
    """Optimizer steps."""
    equal_compute: bool = False
    """Let `steps` count compute instead: forward and backward of a plain step are 1, a forward pass of its rows alone
    0.3. What own samples and a reference cost then comes off the optimizer steps, so forms compare at equal compute."""
    batch_size: int = 16
    """Windows a step on each device; the negatives come from these."""
    gradient_accumulation: int = 1
    """Batches a step."""
    gradient_cache: bool = False
    """Contrast the batches of a step with each other, as one large batch (losses.cached_backward): the memory of one of
    them, for a forward pass more of each."""
    timesteps: TimestepsConfig = field(default_factory=TimestepsConfig)
    conditioning_dropout: float = 0.05
    """p: the prompt is dropped with probability 2p, the image with 2p, both with p."""
    condition_noise: float = 0.0
    """Noise on the conditioning latents, its standard deviation uniform between 0 and this (latents have about 1): the
    model then forgives its own errors in a rollout; 0 = none."""
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Autocast; auto = bf16 on a GPU that has it, else no. What it came to is in the run's config.yaml."""
    tf32: bool = False
    """Let a CUDA device round the factors of float32 products and convolutions to TF32 (10 bits): faster. Off = both in
    full float32, which torch alone wouldn't do for convolutions."""
    compile: bool = False
    """Compile the network by torch.compile: a minute or more at the start, then faster steps."""
    channels_last: bool = False
    """Keep the weights of convolutions, and so what they compute, with channels last in memory: faster in half
    precision on a GPU."""
    shard: bool = False
    """Share the network's parameters, gradients, moments and averages among the processes (FSDP2): less memory, and
    more between them. Without previews, own samples, adapters, fp16, compile, channels_last, ema_on_cpu and
    gradient_cache."""
    gradient_checkpointing: bool = False
    """Less memory for more time."""
    offload_blocks: bool = False
    """Keep the frozen weights of the network's repeated blocks in the host's memory, but for those of the block that
    computes. For LoRA with gradient_checkpointing, in one process."""
    offload_encoders: bool = False
    """Bring the weights of the autoencoder and the text encoder to the GPU a layer at a time while they encode, and for
    previews: much less memory for more copying."""
    ema_decay: float = 0.0
    """Moving average of the weights, used for previews and the saved model; 0 = off."""
    ema_on_cpu: bool = False
    """Keep that average in the host's memory; the weights go there while the next step runs."""
    seed: int = 0
    """Of everything random; draws are functions of (seed, step), so a resumed run repeats them."""
    workers: int = 0
    """Processes that read batches ahead."""
    log_every: int = 10
    """Steps between log lines."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = 2
    max_nonfinite_steps: int = 20
    """Steps in a row with a NaN or infinite gradient (each is skipped) before the run stops."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    """Who is told the figures and shown the previews, beside `log.jsonl` and `run.html`."""
    project: str = PROJECT
    """Of wandb and trackio."""
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    own_samples: OwnSamplesConfig = field(default_factory=OwnSamplesConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: AdapterConfig = field(default_factory=AdapterConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        counts = (
            *("steps", "batch_size", "gradient_accumulation", "log_every"),
            *("checkpoint_every", "keep_checkpoints", "max_nonfinite_steps"),
        )
        check_fields(self, dict.fromkeys(counts, 1) | {"condition_noise": 0, "workers": 0})
        if not 0 <= self.conditioning_dropout <= 1 / 3:
            raise InputError(f"conditioning_dropout: expected 0 to 1/3, got {self.conditioning_dropout}")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay: expected 0 <= decay < 1, got {self.ema_decay}")
        if self.trackers:
            check_fields(self, {}, distinct=("trackers",))
        if self.project != PROJECT and not {"wandb", "trackio"} & set(self.trackers):
            raise InputError(f"project={self.project}: of wandb and trackio; expected one of them in trackers")
        if self.ema_on_cpu and not self.ema_decay:
            raise InputError("ema_on_cpu: is of the average of ema_decay, which is 0; expected one above 0")
        if self.gradient_cache:
            _check_gradient_cache(self)
        if self.offload_blocks:
            for reason, holds in {
                "is of frozen weights, and lora.rank 0 trains all of them; expected a rank above 0": not self.lora.rank,
                "brings a block's weights where it is computed again; expected gradient_checkpointing": (
                    not self.gradient_checkpointing
                ),
                "compiled code brings no weights; expected no compile": self.compile,
            }.items():
                if holds:
                    raise InputError(f"offload_blocks: {reason}")
        if self.data.is_bucketed:
            for name, used in {
                "loss.memory_bank": self.loss.memory_bank,
                "loss.text_weight": self.loss.text_weight,
                "own_samples": self.own_samples.on,
                "gradient_cache": self.gradient_cache,
            }.items():
                if used:
                    raise InputError(f"{name}: holds latents of one size; expected none with data.buckets or lengths")
        if self.data.lengths and self.loss.alignment_weight:
            raise InputError("loss.alignment_weight: takes windows of one length; expected 0 with data.lengths")
        own, weight = self.own_samples, self.loss.own_weight
        if weight and not sum(own.rows(self.batch_size)):
            raise InputError(
                f"loss.own_weight={weight}: no row of a batch of {self.batch_size} has an own sample; expected a "
                "larger own_samples.contrast_share or condition_share"
            )
        if own.contrast_share and not weight:
            raise InputError(
                "own_samples.contrast_share: rows for loss.own_weight, which is 0; expected one, or no share"
            )
        if own.condition_share and not own.rows(self.batch_size)[0]:
            raise InputError(
                f"own_samples.condition_share={own.condition_share} is no row of a batch of {self.batch_size}; "
                f"expected at least {0.5 / self.batch_size:.2g}"
            )


def _check_gradient_cache(config: TrainConfig) -> None:
    if config.gradient_accumulation == 1:
        raise InputError("gradient_cache: joins the batches of gradient_accumulation, which is 1; expected 2 or more")
    for name in ("own_weight", "dispersive_weight", "alignment_weight"):
        if getattr(config.loss, name):
            raise InputError(
                f"gradient_cache: is for losses of the prediction alone, and loss.{name} needs more of the network; "
                "expected 0, or no gradient_cache"
            )


# Fields that may differ when a run is resumed: none changes the weights.
_FREE = {
    "output",
    "resume",
    "workers",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "trackers",
    "project",
    "preview",
    "validation",
    "data.cache_dir",
    "offload_encoders",
}


def as_plain(config: Any) -> Any:
    """A config dataclass as the mappings, lists, numbers and texts that YAML and JSON have."""
    return _plain(asdict(config))


def save_config(config: Any, path: Path) -> None:
    """Write a config dataclass as YAML."""
    text = yaml.safe_dump(as_plain(config), sort_keys=False)
    write_whole(path, lambda part: part.write_text(text))


class _Loader(yaml.SafeLoader):
    """Without aliases: ten lines of them stand for billions of values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("holds an alias, which no config needs")
        return super().compose_node(parent, index)


def load_config(cls: type[T], path: Path) -> T:
    """Read a config that `save_config` wrote. Raises InputError naming the file and the field."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a safe loader
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: can't be read ({one_line(error)}); expected a run's config.yaml") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that isn't in the calendar
        raise InputError(f"{path}: not YAML ({one_line(error)})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds a {type(values).__name__}; expected a mapping, as a run's config.yaml is")
    rules = dacite.Config(strict=True, cast=[Path, tuple, float], type_hooks={SystemConfig: parse_config})
    try:
        return dacite.from_dict(cls, values, rules)
    except (dacite.DaciteError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: {one_line(error)}; was it written by another version?") from error


def differences(old: Any, new: Any, prefix: str = "", *, free: Collection[str] = _FREE) -> list[str]:
    """The fields that differ between two configs, as `name: old -> new`, but for those that may differ: by default
    the fields that don't matter to the weights."""
    found = []
    for item in fields(old):
        name = prefix + item.name
        a, b = getattr(old, item.name), getattr(new, item.name)
        if name in free or a == b:
            continue
        nested = is_dataclass(a) and type(a) is type(b)
        found += differences(a, b, f"{name}.", free=free) if nested else [f"{name}: {a} -> {b}"]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
