"""The loss on held-out clips while training, at fixed timesteps and noise: two values differ by the weights alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import default_collate

from contrastive_i2v.data.examples import Example, encode_clips, report_skipped
from contrastive_i2v.data.sources import read
from contrastive_i2v.data.types import Clip, NoClipLeft
from contrastive_i2v.errors import InputError
from contrastive_i2v.losses import ContrastiveDiffusionLoss
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import System, split_noise
from contrastive_i2v.training.config import TrainConfig
from contrastive_i2v.training.inputs import Inputs, loss_rows, true_frames


def fixed_timesteps(loss: ContrastiveDiffusionLoss, count: int) -> list[float]:
    """t_i = (i + 1/2) T / count, rounded down where the schedule has whole timesteps."""
    steps, flow = loss.schedule.num_train_timesteps, loss.schedule.prediction_type == "flow"
    middles = [(i + 0.5) * steps / count for i in range(count)]
    return middles if flow else [int(middle) for middle in middles]


class Validation:
    """The training's own terms, their means over N held-out windows and timesteps t_1 .. t_T; of the noise loss

        mse = 1 / (N T) sum_n sum_i w(t_i) mean_d (F(x_n,i, t_i) - target_n,i)^2,    x_n,i = add_noise(x0_n, e_n, t_i)

    with x0_n the posterior's mode, e_n a function of the seed and the clip, w the min-SNR weight (or 1). Nothing of the
    condition is dropped, and it gets no noise. Contrastive terms are among `batch_size` windows, however many processes
    share the batches.

    Raises InputError where no held-out clip gives a window.
    """

    def __init__(
        self, config: TrainConfig, system: System, loss: ContrastiveDiffusionLoss, accelerator: Accelerator
    ) -> None:
        assert config.data.validation_path is not None
        self.every, self.rows = config.validation.every, config.loss.rows
        self.system, self.loss, self.accelerator = system, loss, accelerator
        self.timesteps = fixed_timesteps(loss, config.validation.timesteps)
        flow = ["flow_contrast"] if loss.flow_contrast_weight else []
        self.names = ["mse", *(f"contrastive/{name}" for name in loss.banks), *flow]
        source = config.data.validation_source
        clips = read(config.data.validation_path, source, seed=config.seed, purpose="validation").clips
        count, rank, ranks = config.validation.clips, accelerator.process_index, accelerator.num_processes
        clips = [clips[i * len(clips) // count] for i in range(count)] if count < len(clips) else clips
        try:
            dataset, skipped = encode_clips(
                clips,
                system,
                cache_dir=config.data.cache_dir,
                resolution=config.data.resolution,
                frames=replace(config.data.frames, windows_per_clip=1),
                seed=config.seed,
                first=rank * len(clips) // ranks,
                progress=accelerator.is_main_process,
            )
        except NoClipLeft as error:
            raise InputError(
                f"{config.data.validation_path}: gives no window for the validation loss ({error}); expected other "
                "clips, or --validation.every 0"
            ) from error
        if skipped and accelerator.is_main_process:
            print(f"validation: {report_skipped(skipped)}")
        self.groups = config.loss.false_negatives
        self.mine: list[tuple[Example, list[tuple[object, ...]], bool]] = []
        """This process's batches, each with its clips' names for `seeded` and whether it counts: every process has as
        many, so that those of a sharded network meet."""
        size, names = config.batch_size, [(config.seed, "validation", *_identity(clip)) for clip in dataset.clips]
        batches = [range(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
        for number in range(rank, -(-len(batches) // ranks) * ranks, ranks):
            some = batches[number % len(batches)]
            batch: Example = default_collate([dataset[i] for i in some])
            self.mine.append((batch, [names[i] for i in some], number < len(batches)))

    def due(self, step: int) -> bool:
        """Whether this step ends with a measurement."""
        return step % self.every == 0

    @torch.no_grad()
    def make(self, step: int) -> dict[str, float]:
        """The means over windows and timesteps, by name, and the noise loss by timestep; every process calls it."""
        totals, windows = torch.zeros(len(self.timesteps), len(self.names), device=self.accelerator.device), 0
        for batch, names, counts in self.mine:
            inputs = self._inputs(send_to_device(batch, self.accelerator.device), names)
            terms = torch.stack([self._terms(inputs, timestep) for timestep in self.timesteps])
            totals, windows = totals + len(names) * counts * terms, windows + len(names) * counts
        sums = torch.cat([totals.flatten(), totals.new_tensor([windows])])
        *sums, everyones = self.accelerator.reduce(sums, "sum").tolist()
        means = torch.tensor(sums).view(totals.shape) / everyones
        found = dict(zip(self.names, means.mean(0).tolist(), strict=True))
        found |= {f"mse_at_{t:g}": value for t, value in zip(self.timesteps, means[:, 0].tolist(), strict=True)}
        return {f"validation/{name}": value for name, value in found.items()}

    def _inputs(self, batch: Example, names: list[tuple[object, ...]]) -> Inputs:
        """Of a batch, without noise on the latents yet."""
        system, frames = self.system, true_frames(batch, self.system)
        clean, given = frames.generated, frames.given
        generators = [seeded(*name) for name in names]
        every_noise = system.noise(clean.shape, generators, given=given, sampling=False).to(clean.device)
        given_noise, noise = split_noise(every_noise, clean.shape[1])
        whole = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
        return Inputs(
            noisy_latents=clean,
            timesteps=torch.zeros(len(clean), device=clean.device),
            clean_latents=clean,
            noise=noise,
            condition=system.condition(
                given, batch.text, present=frames.present, fps=batch.fps, noise=given_noise, image=batch.image
            ),
            has_condition=whole,
            source_latents=system.codec.normalize(given[:, -1]) if given.shape[1] else torch.zeros_like(clean[:, 0]),
            groups=batch.group,
            has_text=whole,
        )

    def _terms(self, inputs: Inputs, timestep: float) -> Tensor:
        """Of one batch at one timestep, in the order of `names`."""
        timesteps = torch.full((len(inputs.groups),), timestep, device=inputs.groups.device)
        noisy = self.loss.schedule.add_noise(inputs.clean_latents, inputs.noise, timesteps)
        rows = loss_rows(replace(inputs, timesteps=timesteps, noisy_latents=noisy), self.rows)
        with self.accelerator.autocast():
            prediction = self.system.network(noisy, timesteps, **inputs.condition)
        out = self.loss(
            prediction.reshape(rows.clean_latents.shape),
            rows.noisy_latents,
            rows.timesteps,
            rows.clean_latents,
            rows.noise,
            rows.banks,
            groups=rows.groups if self.groups else None,
            has_condition=rows.has_condition,
        )
        flow = [] if out.flow_contrast is None else [out.flow_contrast]
        return torch.stack([out.mse, *out.contrastive.values(), *flow])


def _identity(clip: Clip) -> tuple[object, ...]:
    """What names a clip wherever its folder lies."""
    return clip.where.name, clip.caption, clip.start, clip.end


def build_validation(
    config: TrainConfig, system: System, loss: ContrastiveDiffusionLoss, accelerator: Accelerator
) -> Validation | None:
    """The validation loss that a run asks for; None where it has no held-out clips, or ends before the first one."""
    if config.data.validation_path is None or not 0 < config.validation.every <= config.steps:
        return None
    return Validation(config, system, loss, accelerator)
