"""The model's own rollouts as training data: a bank that is made anew every so many steps.

A record is one window of a rollout from the given frames of a training window: what the window was conditioned on (true
frames for the first window, own ones after it), what the network made of it, and the true window. What a rollout does
to its conditions can so be trained on (own conditions, as in Self Forcing, arXiv 2506.08009, without its gradient), its
errors added to true conditions (Stable Video Infinity, arXiv 2510.09212), and the generated windows held against the
true ones (`losses.OwnSampleContrast`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import default_collate

from contrastive_i2v.data.examples import Example, ExampleDataset
from contrastive_i2v.data.shards import ShardDataset
from contrastive_i2v.errors import InputError
from contrastive_i2v.randomness import seeded
from contrastive_i2v.sampling import roll_windows
from contrastive_i2v.system import System
from contrastive_i2v.training.config import OwnSamplesConfig, TrainConfig
from contrastive_i2v.training.inputs import OwnConditions, send, true_frames


class Records(NamedTuple):
    """Windows of rollouts."""

    sources: Tensor
    """int64 `[N]`, the example that the rollout began with."""
    numbers: Tensor
    """int64 `[N]`, windows before this one in the rollout; 0 = its condition holds true frames alone."""
    given: Tensor
    """`[N, n, C, h, w]`, the autoencoder's own latents of what it was conditioned on."""
    generated: Tensor
    """`[N, G, C, h, w]`, normalised."""


class OwnSamples:
    """The bank: the same records in every process, a function of the seed, the step and the weights.

    Each process rolls out its share of the windows, and all gather them, so several processes hold what one would (to
    the rounding of other batch sizes). A window with a NaN or infinity is left out and counted; where no window is left
    the records of the last refresh stay.

    Raises InputError where no clip goes on for as many windows as are asked for, or the system can't.
    """

    def __init__(
        self, config: TrainConfig, dataset: ExampleDataset | ShardDataset, system: System, accelerator: Accelerator
    ) -> None:
        self.config, self.seed, self.dataset = config.own_samples, config.seed, dataset
        self.system, self.accelerator = system, accelerator
        self.counts = self.config.rows(config.batch_size)
        if dataset.deepest < self.config.depth:
            raise InputError(
                f"own_samples.depth={self.config.depth}: no clip goes on for so many windows; expected at most "
                f"{dataset.deepest}, or longer clips, or windows of nearer frames (--data.frames)"
            )
        if self.config.clips % accelerator.num_processes:
            raise InputError(
                f"own_samples.clips={self.config.clips} for {accelerator.num_processes} processes; expected a multiple"
            )
        if self.config.error_share and not system.window.given:
            raise InputError("own_samples.error_share: the model is given no frame to add errors to; expected 0")
        self.records: Records | None = None
        self.nonfinite = 0
        """Windows that were left out so far."""

    @torch.no_grad()
    def refresh(self, number: int) -> None:
        """Roll out anew with the weights that the network has; every process calls it. `number` counts the calls."""
        generator, config = seeded(self.seed, "own samples", number), self.config
        starts = torch.tensor(self.dataset.draw_rollouts(config.clips, config.depth, generator))
        seeds = torch.randint(2**62, (config.clips,), generator=generator)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        given, generated = self._roll_out(starts[rank::ranks], seeds[rank::ranks])
        device = self.accelerator.device
        everyones = Records(
            starts.repeat_interleave(config.depth).to(device),
            torch.arange(config.depth).repeat(config.clips).to(device),
            self._gather(given).flatten(0, 1),
            self._gather(generated).flatten(0, 1),
        )
        finite = torch.stack([part.flatten(1).isfinite().all(1) for part in everyones[2:]]).all(0)
        self.nonfinite += int((~finite).sum())
        if bool(finite.any()):
            self._take(Records(*(part[finite] for part in everyones)))

    def draw(self, batch: Example, step: int, micro_batch: int) -> tuple[Example, OwnConditions | None]:
        """A batch whose last rows are records, and what the rows are conditioned on; None where there is no record.

        Rows for the contrast alone have the true frames of their record as conditions, those after them its own ones.
        """
        records, config, size = self.records, self.config, len(batch.raw)
        if records is None:
            return batch, None
        generator = seeded(self.seed, "own rows", step, micro_batch, self.accelerator.process_index)
        device = batch.raw.device
        every, (conditions, others) = torch.arange(len(records.given)), self.counts
        deep = _pick(self.deep, conditions, generator)
        rows = send(torch.cat([_pick(every, others, generator), deep]), device)
        errors = None
        if config.error_share:
            hit = torch.rand(size, generator=generator) < config.error_share
            hit[size - len(rows) :] = False
            which = send(_pick(every, size, generator), device)
            errors = self.errors[which] * send(hit, device).view(-1, 1, 1, 1)
        own = OwnConditions(records.given[rows[len(rows) - len(deep) :]], records.generated[rows], errors)
        truth = self.truth
        return Example(
            raw=_replace_last(batch.raw, truth.raw[rows]),
            present=_replace_last(batch.present, truth.present[rows]),
            text={name: _replace_last(value, truth.text[name][rows]) for name, value in batch.text.items()},
            fps=_replace_last(batch.fps, truth.fps[rows]),
            group=_replace_last(batch.group, truth.group[rows]),
        ), own

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that training goes on from."""
        records = self.records._asdict() if self.records else {}
        return {"nonfinite": torch.tensor(self.nonfinite), **records}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        self.nonfinite = int(state["nonfinite"])
        if len(state) > 1:
            self._take(Records(*(state[name].to(self.accelerator.device) for name in Records._fields)))

    def _roll_out(self, starts: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Given `[m, depth, n, C, h, w]` and generated `[m, depth, G, C, h, w]` frames of m rollouts."""
        parts = []
        at_once = self.config.at_once
        for some, their in zip(torch.split(starts, at_once), torch.split(seeds, at_once), strict=True):
            batch = self._load([self.dataset.window(int(start), 0) for start in some])
            frames = true_frames(batch, self.system)
            rolled = roll_windows(
                self.system,
                frames.given,
                batch.text,
                windows=self.config.depth,
                seeds=their.tolist(),
                sampler=self.config.over(self.system.sampler),
                present=frames.present,
                fps=batch.fps,
            )
            parts.append([torch.stack(part, dim=1) for part in zip(*rolled, strict=True)])
        given, generated = (torch.cat(part) for part in zip(*parts, strict=True))
        return given.float(), generated.float()

    def _gather(self, mine: Tensor) -> Tensor:
        """Every process's rows, in the order of the windows that were dealt to them."""
        ranks = self.accelerator.num_processes
        everyones: Tensor = self.accelerator.gather(mine.contiguous())
        return everyones.view(ranks, -1, *everyones.shape[1:]).transpose(0, 1).flatten(0, 1)

    def _take(self, records: Records) -> None:
        """Hold these records; their truth comes from the data set."""
        self.records = records
        self.deep = records.numbers.cpu().nonzero().flatten()
        """Rows whose condition holds own frames."""
        windows = zip(records.sources.tolist(), records.numbers.tolist(), strict=True)
        self.truth = self._load([self.dataset.window(source, number) for source, number in windows])
        clean = true_frames(self.truth, self.system).generated
        self.errors = records.generated[:, -1] - clean[:, -1]
        """`[N, C, h, w]`, normalised: of the frame that the next window is given last."""

    def _load(self, examples: list[Example]) -> Example:
        batch: Example = send_to_device(default_collate(examples), self.accelerator.device)
        return batch


def _pick(among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` of these rows, with repeats; none where there are none."""
    return among[torch.randint(len(among), (count,), generator=generator)] if len(among) else among


def _replace_last(old: Tensor, new: Tensor) -> Tensor:
    return torch.cat([old[: len(old) - len(new)], new])


def windows_after(config: OwnSamplesConfig, system: System) -> int:
    """How many windows after each training window the bank needs. Raises InputError where a system has none."""
    if not config.on:
        return 0
    if system.sees_pixels:
        raise InputError(f"own_samples: {system.config.kind} is told of given frames by their pixels; expected none")
    if config.depth > 1 and not (system.window.rolls and system.codec.temporal_downscale == 1):
        raise InputError(
            f"own_samples.depth={config.depth}: the cached windows of {system.config.kind} don't follow each other; "
            "expected 1, and no condition_share"
        )
    return config.depth - 1
