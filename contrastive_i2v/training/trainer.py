"""The training loop. Every draw is a function of (seed, step, rank), so a run that is killed and resumed ends with
bitwise the weights of one that wasn't (on the CPU, and wherever the kernels are deterministic)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from contrastive_i2v.data.latents import LatentPair, LatentPairDataset, collate, encode_clips, report_skipped
from contrastive_i2v.data.sources.folder import read_folder
from contrastive_i2v.errors import InputError
from contrastive_i2v.losses import ContrastiveDiffusionLoss
from contrastive_i2v.models import InstructPix2Pix
from contrastive_i2v.training.candidates import CandidateBanks
from contrastive_i2v.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from contrastive_i2v.training.config import LossConfig, TrainConfig, differences, load_config, save_config
from contrastive_i2v.training.inputs import Inputs, batch_indices, make_inputs, seeded
from contrastive_i2v.training.interrupt import stop_requests
from contrastive_i2v.training.logs import RunLog
from contrastive_i2v.training.preview import Preview, load_held_out

T = TypeVar("T")


def build_loss(scheduler_config: Any, config: LossConfig) -> ContrastiveDiffusionLoss:
    """The loss module a config asks for; a bank of weight 0 is left out."""
    weights = {"target": config.target_weight, "input": config.input_weight}
    return ContrastiveDiffusionLoss(
        scheduler_config,
        banks={name: weight for name, weight in weights.items() if weight != 0},
        temperature=config.temperature,
        normalize=config.normalize,
        gate=config.gate,
        min_snr_gamma=config.min_snr_gamma,
    )


class Trainer:
    """Fine-tune a model on a folder of captioned videos: `Trainer(config).run()`.

    Raises InputError for bad input: no data, an output folder that holds another run, a size the model can't take.
    """

    def __init__(self, config: TrainConfig, model: InstructPix2Pix | None = None) -> None:
        self.config = config
        checkpoint = _find_checkpoint(config)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.gradient_accumulation
        )
        self.main = self.accelerator.is_main_process
        self.model = (model or InstructPix2Pix.from_pretrained(config.model)).to(self.accelerator.device)
        if config.data.resolution % self.model.downscale:
            raise InputError(
                f"data.resolution={config.data.resolution}; expected a multiple of {self.model.downscale}, the "
                "image pixels of one latent pixel"
            )
        self.loss = build_loss(self.model.scheduler.config, config.loss)
        side = config.data.resolution // self.model.downscale
        self.candidates = CandidateBanks(
            config.loss,
            self.loss.banks,
            latent_shape=(self.model.latent_channels, side, side),
            device=self.accelerator.device,
            batch_size=config.batch_size,
            processes=self.accelerator.num_processes,
        )
        self.dataset = self._encode()
        self.null_embeds = self.model.encode_prompts([""])  # [1, L, E]
        if config.gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()
        self.unet, self.optimizer = self.accelerator.prepare(self.model.unet, self._build_optimizer())
        self.lr_factor = get_scheduler(
            "constant_with_warmup" if config.optimizer.schedule == "constant" else "cosine",
            self.optimizer,
            num_warmup_steps=config.optimizer.warmup_steps,
            num_training_steps=config.steps,
        ).lr_lambdas[0]
        self.ema = EMAModel(self.model.unet.parameters(), decay=config.ema_decay) if config.ema_decay else None
        self.step = self.nonfinite_steps = self.nonfinite_in_a_row = 0
        self.unlogged: list[dict[str, float]] = []  # the figures of each step since the last log line
        if checkpoint:
            self._restore(checkpoint)
        self.preview = self._build_preview() if self.main else None
        self.log = RunLog(config.output, from_step=self.step) if self.main else None
        if self.main:
            save_config(config, config.output / "config.yaml")

    def run(self) -> Path:
        """Train to `config.steps` and write the model to `output/model`; returns that folder.

        Ctrl-C or SIGTERM saves a checkpoint after the step under way and raises KeyboardInterrupt (with several
        processes, which may get the signal at different steps, there is only the last checkpoint).
        """
        config = self.config
        batches = iter(self._loader())
        bar = tqdm(total=config.steps, initial=self.step, desc=config.output.name, unit="step", disable=not self.main)
        began = time.perf_counter()
        with bar, stop_requests(enabled=self.accelerator.num_processes == 1) as stop_requested:
            while self.step < config.steps:
                self.unlogged.append(self._train_step([next(batches) for _ in range(config.gradient_accumulation)]))
                self.step += 1
                bar.update()
                if self.step % config.log_every == 0 or self.step == config.steps:
                    row = self._summary(time.perf_counter() - began)
                    bar.set_postfix({k: f"{row[k]:.4g}" for k in ("loss", "mse", "grad_norm") if k in row})
                    self._write_log(row)
                    self.unlogged, began = [], time.perf_counter()
                self._stop_if_nonfinite()
                if self.preview and self.preview.due(self.step):
                    paused = time.perf_counter()
                    self._write_log(self._with_ema(partial(self.preview.make, self.step)))
                    began += time.perf_counter() - paused
                if self.step % config.checkpoint_every == 0 or self.step == config.steps or stop_requested():
                    self._save()
                if stop_requested():
                    raise KeyboardInterrupt
        return self._finish()

    def _train_step(self, batches: list[LatentPair]) -> dict[str, float]:
        """One optimizer step over the micro-batches; skipped when the gradient isn't finite."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.optimizer.learning_rate * self.lr_factor(self.step)
        self.unet.train()
        metrics = []
        for number, batch in enumerate(batches):
            inputs = self._inputs(batch, number)
            with self.accelerator.accumulate(self.unet):
                with self.accelerator.autocast():
                    prediction = self.unet(
                        torch.cat([inputs.noisy_latents, inputs.image_latents], dim=1),
                        inputs.timesteps,
                        encoder_hidden_states=inputs.prompt_embeds,
                        return_dict=False,
                    )[0]
                loss, values = self._loss(prediction, inputs)
                self.accelerator.backward(loss)
            metrics.append(values)
        norm = self.accelerator.clip_grad_norm_(self.unet.parameters(), self.config.optimizer.max_grad_norm)
        finite = bool(torch.isfinite(norm))
        if finite or self.accelerator.scaler is not None:  # the scaler must see the infinity, and skips by itself
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema and finite:
            self.ema.step(self.model.unet.parameters())
        self.nonfinite_in_a_row = 0 if finite else self.nonfinite_in_a_row + 1
        self.nonfinite_steps += not finite
        return _mean(metrics) | ({"grad_norm": float(norm)} if finite else {})

    def _stop_if_nonfinite(self) -> None:
        if self.nonfinite_in_a_row >= self.config.max_nonfinite_steps:
            raise InputError(
                f"{self.nonfinite_in_a_row} steps in a row, up to step {self.step}, had a NaN or infinite gradient and "
                "were skipped. Start again in a new --output with a lower --optimizer.learning-rate, "
                "--mixed-precision bf16 or no, --loss.min-snr-gamma 5, or a smaller contrastive weight"
            )

    def _inputs(self, batch: LatentPair, micro_batch: int) -> Inputs:
        rank = self.accelerator.process_index
        return make_inputs(
            batch.to(self.accelerator.device),
            schedule=self.loss.schedule,
            scaling_factor=self.model.scaling_factor,
            null_embeds=self.null_embeds,
            conditioning_dropout=self.config.conditioning_dropout,
            condition_noise=self.config.condition_noise,
            generator=seeded(self.config.seed, "step", self.step, micro_batch, rank),
        )

    def _loss(self, prediction: Tensor, inputs: Inputs) -> tuple[Tensor, dict[str, float]]:
        candidates = {**self.candidates(inputs), "has_condition": inputs.has_condition}
        output = self.loss(
            prediction,
            inputs.noisy_latents,
            inputs.timesteps,
            inputs.clean_latents,
            inputs.noise,
            **candidates,
        )
        values = {"loss": output.loss, "mse": output.mse}
        values |= {f"contrastive/{name}": value for name, value in output.contrastive.items()}
        if (self.step + 1) % self.config.log_every == 0:
            accuracy = self.loss.retrieval_accuracy(prediction, inputs.noisy_latents, inputs.timesteps, **candidates)
            values |= {f"retrieval/{name}": value for name, value in accuracy.items()}
        return output.loss, {name: float(value.detach()) for name, value in values.items()}

    def _summary(self, seconds: float) -> dict[str, float]:
        config = self.config
        pairs = config.batch_size * config.gradient_accumulation * self.accelerator.num_processes
        return _mean(self.unlogged) | {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "nonfinite_steps": float(self.nonfinite_steps),
            "samples_per_second": len(self.unlogged) * pairs / seconds,
        }

    def _write_log(self, row: dict[str, float]) -> None:
        if self.log:
            self.log.write(self.step, row)

    def _loader(self) -> DataLoader[LatentPair]:
        """This rank's micro-batches from the current step on."""
        config, ranks = self.config, self.accelerator.num_processes
        per_step = config.gradient_accumulation * ranks
        everyones = batch_indices(
            len(self.dataset),
            config.batch_size,
            start=self.step * per_step,
            stop=config.steps * per_step,
            seed=config.seed,
        )
        mine = [rows for n, rows in enumerate(everyones) if n % ranks == self.accelerator.process_index]
        return DataLoader(self.dataset, batch_sampler=mine, num_workers=config.workers, collate_fn=collate)

    def _encode(self) -> LatentPairDataset:
        """The training pairs; the main process fills the cache first, the others find it filled."""
        data = self.config.data
        clips, uncaptioned = read_folder(data.path)

        def encode() -> LatentPairDataset:
            dataset, skipped = encode_clips(
                clips,
                self.model,
                cache_dir=data.cache_dir.expanduser(),
                resolution=data.resolution,
                pairs=data.pairs,
                seed=self.config.seed,
                progress=self.main,
            )
            if self.main and (left_out := report_skipped([*uncaptioned, *skipped])):
                print(left_out)
            return dataset

        with self.accelerator.main_process_first():
            return encode()

    def _build_optimizer(self) -> torch.optim.Optimizer:
        config = self.config.optimizer
        kind: Any = partial(torch.optim.AdamW, fused=self.accelerator.device.type in ("cpu", "cuda"))
        if config.eight_bit:
            try:
                kind = importlib.import_module("bitsandbytes.optim").AdamW8bit
            except ImportError as error:
                raise InputError(
                    "optimizer.eight_bit needs bitsandbytes: pip install bitsandbytes, or leave it off"
                ) from error
        optimizer: torch.optim.Optimizer = kind(
            self.model.unet.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
        return optimizer

    def _build_preview(self) -> Preview | None:
        config = self.config
        if config.data.validation_path is None or config.preview.every == 0:
            return None
        clips, _ = read_folder(config.data.validation_path)
        held_out = load_held_out(
            clips[: config.preview.clips],
            self.model,
            resolution=config.data.resolution,
            frames=config.preview.frames,
            pairs=config.data.pairs,
        )
        return Preview(held_out, self.model, config.preview, folder=config.output / "previews", seed=config.seed)

    def _save(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.main:
            moments, groups = pack_optimizer(self.optimizer)
            tensors = {"unet": self.model.unet.state_dict(), "optimizer": moments}
            state: dict[str, Any] = {"groups": groups, "nonfinite_steps": self.nonfinite_steps}
            state |= {"nonfinite_in_a_row": self.nonfinite_in_a_row, "unlogged": self.unlogged}
            if self.candidates.memory:
                tensors["memory_bank"] = self.candidates.memory.state_dict()
            if self.ema:
                tensors["ema"] = {str(i): p for i, p in enumerate(self.ema.shadow_params)}
                state["ema_step"] = self.ema.optimization_step
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            folder = self.config.output / "checkpoints"
            save_checkpoint(folder, self.step, tensors, state, keep=self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _restore(self, checkpoint: Path) -> None:
        tensors, state = load_checkpoint(checkpoint)
        self.model.unet.load_state_dict(tensors["unet"])
        unpack_optimizer(self.optimizer, tensors["optimizer"], state["groups"])
        self.step = state["step"]
        self.nonfinite_steps, self.nonfinite_in_a_row = state["nonfinite_steps"], state["nonfinite_in_a_row"]
        self.unlogged = state["unlogged"]
        if self.candidates.memory:
            self.candidates.memory.load_state_dict(tensors["memory_bank"])
        if self.ema:
            shadow = [tensors["ema"][str(i)] for i in range(len(tensors["ema"]))]
            for mine, saved in zip(self.ema.shadow_params, shadow, strict=True):
                mine.copy_(saved)
            self.ema.optimization_step = state["ema_step"]
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _with_ema(self, act: Callable[[], T]) -> T:
        """Run `act` with the averaged weights in the UNet, in eval mode."""
        parameters = list(self.model.unet.parameters())
        self.model.unet.eval()
        if self.ema is None:
            return act()
        self.ema.store(parameters)
        self.ema.copy_to(parameters)
        try:
            return act()
        finally:
            self.ema.restore(parameters)

    def _finish(self) -> Path:
        folder = self.config.output / "model"
        if self.main:
            self._with_ema(lambda: self.model.save_pretrained(folder))
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return folder


def is_trained(config: TrainConfig) -> bool:
    """Whether the folder holds the model that this config ends with. Raises InputError for a config it can't read."""
    finished = (config.output / "model" / "model_index.json").exists()  # written last
    return finished and not differences(load_config(TrainConfig, config.output / "config.yaml"), config)


def _find_checkpoint(config: TrainConfig) -> Path | None:
    """The checkpoint to go on from. Raises InputError where the folder holds another run, or one not asked for."""
    saved = list_checkpoints(config.output / "checkpoints")
    if not saved:
        if config.resume and not (config.output / "config.yaml").exists():
            raise InputError(f"{config.output}: holds no run to resume; leave out --resume to start one")
        return None
    if not config.resume:
        raise InputError(
            f"{config.output}: holds a run at {saved[-1].name}; add --resume to go on, or give another --output"
        )
    if changed := differences(load_config(TrainConfig, config.output / "config.yaml"), config):
        raise InputError(
            f"{config.output}: was run with another config ({'; '.join(changed)}); resume with "
            f"--config {config.output / 'config.yaml'}, or give another --output"
        )
    return saved[-1]


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each name over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}
