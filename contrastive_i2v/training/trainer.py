"""The training loop. Every draw is a function of (seed, step, rank), so a run that is killed and resumed ends with
bitwise the weights of one that wasn't (on the CPU, and wherever the kernels are deterministic)."""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from contrastive_i2v.data.ahead import WorkerDied, read_ahead
from contrastive_i2v.data.examples import Example
from contrastive_i2v.data.video import as_size
from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import DivergedError, InputError, Interrupted
from contrastive_i2v.files import lock_folder
from contrastive_i2v.losses import (
    ContrastiveDiffusionLoss,
    OwnSampleContrast,
    OwnSampleOutput,
    cached_backward,
    dispersive_loss,
)
from contrastive_i2v.models import load_system, read_description
from contrastive_i2v.models.loading import locate, split_options
from contrastive_i2v.models.lora import LoraTraining
from contrastive_i2v.models.offloading import OffloadedBlocks, offload_encoders
from contrastive_i2v.processes import process_state, restarted, watched_ranks
from contrastive_i2v.randomness import seeded
from contrastive_i2v.system import DESCRIPTION, System, check_compiler
from contrastive_i2v.training.average import HostAverage
from contrastive_i2v.training.batches import build_loader, open_dataset
from contrastive_i2v.training.candidates import CandidateBanks
from contrastive_i2v.training.checkpoint import list_checkpoints
from contrastive_i2v.training.compute import compute_of
from contrastive_i2v.training.config import LossConfig, TrainConfig, differences, load_config, save_config
from contrastive_i2v.training.features import Features
from contrastive_i2v.training.inputs import Inputs, blank_inputs, join, loss_rows, make_inputs
from contrastive_i2v.training.interrupt import stop_requests
from contrastive_i2v.training.logs import Row, RunLog, mean_rows, read_rows
from contrastive_i2v.training.own_contrast import OwnContrast
from contrastive_i2v.training.own_samples import OwnSamples
from contrastive_i2v.training.precision import float32_products, resolved
from contrastive_i2v.training.preview import build_preview
from contrastive_i2v.training.representation_alignment import RepresentationAlignment
from contrastive_i2v.training.run_page import open_log
from contrastive_i2v.training.sharding import check_sharding, make_whole, shard
from contrastive_i2v.training.state import RunState, Stateful
from contrastive_i2v.training.text_frames import TextFrames
from contrastive_i2v.training.trackers import check_trackers
from contrastive_i2v.training.validation import build_validation


class Trainer:
    """Fine-tune a system on a folder of captioned videos: `Trainer(config).run()`.

    Raises InputError for bad input: no data, an output folder that holds another run, a size the model can't take.
    """

    def __init__(self, config: TrainConfig, system: System | None = None) -> None:
        self.config = config = resolved(config, process_state().device)
        going_on = _goes_on(config)
        check_trackers(config.trackers)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            # the gradient cache makes one backward pass of a step's batches by itself
            gradient_accumulation_steps=1 if config.gradient_cache else config.gradient_accumulation,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=process_state().num_processes > 2)],
        )  # without it DDP's buckets change after a process's first step, and sums of three or more round otherwise
        self.main = self.accelerator.is_main_process
        if config.shard:
            check_sharding(config, self.accelerator.num_processes)
        if config.offload_blocks and self.accelerator.num_processes > 1:
            raise InputError("offload_blocks: is for one process; expected --shard to share weights among several")
        self.lock = lock_folder(config.output) if self.main else None
        device = self.accelerator.device
        if self.main:
            products = "TF32" if config.tf32 else "full"
            print(f"mixed precision {config.mixed_precision}, float32 products in {products}")
        if config.mixed_precision == "fp16" and not self.accelerator.native_amp:
            raise InputError(f"mixed_precision=fp16: there is none on {device.type}; expected bf16 or no")
        self.system = load_system(config.model, config.system, device="cpu") if system is None else system.to("cpu")
        if self.system.quantized:
            raise InputError(
                f"model {config.model!r}: its weights are rounded to {self.system.quantized} and can't be trained; "
                f"expected it without quantize, and --lora.base-dtype {self.system.quantized}"
            )
        self.offload_encoders = offload_encoders(self.system, device, layers=config.offload_encoders)
        self.system.size, self.system.fps = _check_size(config, self.system), config.data.frames.frame_rate
        self.loss = build_loss(self.system.schedule, config.loss).to(device)
        if "input" in self.loss.banks and not self.system.window.given:
            raise InputError("loss.input_weight: the model is given no frame to contrast with; expected 0")
        if config.loss.rows == "clip" and self.system.frame_timesteps:
            raise InputError("loss.rows=clip: a clip has no one timestep with system.frame_timesteps; expected frame")
        if config.loss.rows == "clip" and self.system.drops_absent and self.system.window.past > 1:
            raise InputError("loss.rows=clip: with system.past_frames above 1 windows differ in length; expected frame")
        if config.condition_noise and self.system.sees_pixels:
            raise InputError(
                f"condition_noise={config.condition_noise:g}: {self.system.config.kind} is told of given frames by "
                "their pixels, not by latents that noise could be added to; expected 0"
            )
        for options in (config.preview, config.own_samples):
            self.system.check_sampler(options)
        self.candidates = build_candidates(config, self.loss, self.system, self.accelerator)
        self.dataset = open_dataset(config, self.system, self.accelerator)
        for fps in self.dataset.rates:
            try:
                self.system.check_fps(fps)
            except InputError as error:
                raise InputError(f"data.frames: {error}; windows of those, with --data.frames.max-offset") from error
        self.preview = build_preview(config, self.system) if self.main else None
        self.validation = build_validation(config, self.system, self.loss, self.accelerator)
        self._keep_null()
        self.offload_encoders()
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(self.system)
        if config.channels_last:
            use_channels_last(self.system.network)
        if config.compile:
            check_compiler(device)
        self.own_contrast = build_own_contrast(self.system, config.loss, device)
        self.lora = build_lora(self.system, config)
        self.blocks = place_network(self.system.network, config, self.lora, device)
        self.alignment = (
            RepresentationAlignment(config, self.system, self.accelerator) if config.loss.alignment_weight else None
        )
        beside = self.alignment.units if self.alignment else 0.0
        self.compute = compute_of(config, self.system, self.accelerator.num_processes, beside=beside)
        self.steps = self.compute.steps_within(config.steps) if config.equal_compute else config.steps
        self.own_samples: OwnSamples | None = None
        if config.own_samples.on:
            self.own_samples = OwnSamples(config, self.dataset, self.system, self.accelerator)
        self.features = Features(self.system, config.loss.dispersive_layer) if config.loss.dispersive_weight else None
        self.text_frames = TextFrames(config, self.system, self.accelerator) if config.loss.text_weight else None
        if config.shard:
            shard(self.system.network, self.accelerator.device, self.accelerator.num_processes)
        trainable = self.lora.trainable() if self.lora else self.system.trainable()
        self.system.network.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)
        network, optimizer = self.system.network, build_optimizer(config, trainable, self.accelerator.device)
        if config.shard:
            optimizer = self.accelerator.prepare(optimizer)
        else:
            network, optimizer = self.accelerator.prepare(network, optimizer, device_placement=[False, None])
        # for training's batches alone, all of one shape: what previews and own samples ran must not change its code
        self.network = torch.compile(network, dynamic=False) if config.compile else network
        self.lr_factor = get_scheduler(
            "constant_with_warmup" if config.optimizer.schedule == "constant" else "cosine",
            optimizer,
            num_warmup_steps=config.optimizer.warmup_steps,
            num_training_steps=self.steps,
        ).lr_lambdas[0]
        self.state = RunState(
            accelerator=self.accelerator,
            network=network,
            trainable=trainable,
            optimizer=optimizer,
            ema=build_average(config, trainable),
            beside=self._beside(),
            base=self.lora.base_hash if self.lora else None,
        )
        if going_on:
            self.state.restore(config.output / "checkpoints")
        self.offload_encoders()
        self.log: RunLog | None = None
        if self.main:
            save_config(config, config.output / "config.yaml")
            captions = self.preview.captions if self.preview else []
            self.log = open_log(
                config, self.state.step, self.steps, processes=self.accelerator.num_processes, captions=captions
            )

    def _keep_null(self) -> None:
        """Let the system encode what stands for no prompt, which it keeps, while the text encoder has the device."""
        codec, size = self.system.codec, self.system.size
        shape = (1, len(self.system.window.generated), codec.channels, *(side // codec.downscale for side in size))
        _, condition = blank_inputs(self.system, torch.zeros(shape, device=self.accelerator.device))
        everything = torch.ones(1, dtype=torch.bool, device=self.accelerator.device)
        self.system.drop(condition, image=everything, text=everything)

    def run(self) -> Path:
        """Train to the last of `self.steps` and write the model to `output/model`; returns that folder.

        Ctrl-C, SIGTERM or SIGHUP, to any process, saves a checkpoint after the step under way and raises Interrupted, a
        KeyboardInterrupt, in all of them. Raises RankLostError in the others where a process dies.
        """
        with self.log.recorded() if self.log else nullcontext():
            self._train()
            return self._finish()

    def _train(self) -> None:
        config, state, ranks = self.config, self.state, self.accelerator.num_processes
        loader = build_loader(self.dataset, config, self.accelerator, step=state.step, stop=self.steps)
        batches = read_ahead(loader, go_on="go on with --resume")
        bar = tqdm(total=self.steps, initial=state.step, desc=config.output.name, unit="step", disable=not self.main)
        examples, began = 0, time.perf_counter()
        products = float32_products(config.tf32)
        with bar, products, watched_ranks(ranks), stop_requests(ranks) as stop_requested:
            while state.step < self.steps:
                step = self._read(batches)
                examples += sum(len(batch.group) for batch in step)
                state.unlogged.append(self._train_step(step))
                state.step += 1
                bar.update()
                if state.step % config.log_every == 0 or state.step == self.steps:
                    row = self._summary(examples / (time.perf_counter() - began))
                    bar.set_postfix({k: f"{row[k]:.4g}" for k in ("loss", "mse", "grad_norm") if k in row})
                    self._write_log(row)
                    state.unlogged, examples, began = [], 0, time.perf_counter()
                self._stop_if_diverged()
                paused = time.perf_counter()
                self._measure_held_out()
                began += time.perf_counter() - paused
                number = stop_requested()  # the others wait here for the main process's previews
                if state.step % config.checkpoint_every == 0 or state.step == self.steps or number:
                    state.save(config.output / "checkpoints", keep=config.keep_checkpoints)
                if number:
                    raise Interrupted(number)

    def _read(self, batches: Iterator[Example]) -> list[Example]:
        """A step's batches. Where a worker died, what is trained is saved before the error."""
        try:
            return [next(batches) for _ in range(self.config.gradient_accumulation)]
        except WorkerDied:
            if self.accelerator.num_processes == 1:
                self.state.save(self.config.output / "checkpoints", keep=self.config.keep_checkpoints)
            raise

    def _train_step(self, batches: list[Example]) -> list[Row]:
        """One optimizer step over the micro-batches; skipped when the gradient isn't finite."""
        state, optimizer = self.state, self.state.optimizer
        if self.own_samples and state.step % self.config.own_samples.refresh == 0:
            self.system.network.eval()
            state.with_average(partial(self.own_samples.refresh, state.step // self.config.own_samples.refresh))
        learning_rate = self.config.optimizer.learning_rate * self.lr_factor(state.step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        if not self.system.network.training:  # it walks all modules
            state.network.train()
        rows = self._backward_together(batches) if self.config.gradient_cache else self._backward(batches)
        norm = self.accelerator.clip_grad_norm_(state.trainable, self.config.optimizer.max_grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        finite = bool(torch.isfinite(norm))  # the step's one wait for the device
        if finite or self.accelerator.scaler is not None:  # the scaler must see the infinity, and skips by itself
            optimizer.step()
            self.system.constrain()
        optimizer.zero_grad(set_to_none=True)
        for projection in (self.text_frames, self.alignment):
            if projection:
                projection.step(learning_rate, finite=finite)
        self.candidates.remember()
        if state.ema and finite:
            state.ema.step(state.trainable)
        state.nonfinite_in_a_row = 0 if finite else state.nonfinite_in_a_row + 1
        state.nonfinite_steps += not finite
        return [*rows, {"grad_norm": norm}] if finite else rows

    def _backward(self, batches: list[Example]) -> list[Row]:
        """Add the gradient of the mean of the micro-batches' losses, one after the other."""
        rows: list[Row] = []
        for number, batch in enumerate(batches):
            inputs = self._inputs(batch, number)
            with self.accelerator.accumulate(self.state.network):
                prediction, extra = self._predict(inputs)
                loss, row = self._loss(prediction, inputs)
                if extra is not None:
                    loss, row = self._add_contrast(loss, row, extra)
                self.accelerator.backward(loss)
            rows.append(row)
        return rows

    def _backward_together(self, batches: list[Example]) -> list[Row]:
        """Add the gradient of the loss of all rows of the micro-batches, one graph of them at a time."""
        parts = [self._inputs(batch, number) for number, batch in enumerate(batches)]
        rows: list[Row] = []

        def loss(prediction: Tensor) -> Tensor:
            value, row = self._loss(prediction, join(parts))
            rows.append(row)
            return value

        cached_backward(
            lambda inputs: self._predict(inputs)[0],
            parts,
            loss,
            scaler=self.accelerator.scaler,
            no_sync=partial(self.accelerator.no_sync, self.state.network),
        )
        return rows

    def _inputs(self, batch: Example, micro_batch: int) -> Inputs:
        config, rank, own = self.config, self.accelerator.process_index, None
        batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
        if self.own_samples:
            batch, own = self.own_samples.draw(batch, self.state.step, micro_batch)
        return make_inputs(
            batch,
            self.system,
            schedule=self.loss.schedule,
            timesteps=config.timesteps,
            conditioning_dropout=config.conditioning_dropout,
            condition_noise=config.condition_noise,
            own=own,
            captions=self.text_frames is not None,
            generator=seeded(config.seed, "step", self.state.step, micro_batch, rank),
        )

    def _predict(self, inputs: Inputs) -> tuple[Tensor, OwnSampleOutput | None]:
        """The network's prediction, and the contrast with own samples where the batch has any."""
        own = inputs.own_samples
        if self.own_contrast is not None and own is not None and len(own):
            return self.own_contrast(self.network, inputs, own, self.accelerator.autocast)
        with self.accelerator.autocast():
            return self.network(inputs.noisy_latents, inputs.timesteps, **inputs.condition), None

    def _add_contrast(self, loss: Tensor, row: Row, extra: OwnSampleOutput) -> tuple[Tensor, Row]:
        loss = loss + extra.loss
        figures = {"loss": loss.detach(), "own_samples/real": extra.real}
        return loss, {**row, **figures, **({} if extra.own is None else {"own_samples/own": extra.own})}

    def _loss(self, prediction: Tensor, inputs: Inputs) -> tuple[Tensor, Row]:
        rows = loss_rows(inputs, self.config.loss.rows)
        prediction = prediction.reshape(rows.clean_latents.shape)
        candidates = {**self.candidates(rows), "has_condition": rows.has_condition}
        output = self.loss(prediction, rows.noisy_latents, rows.timesteps, rows.clean_latents, rows.noise, **candidates)
        figures = {"loss": output.loss, "mse": output.mse}
        figures |= {f"contrastive/{name}": value for name, value in output.contrastive.items()}
        if output.flow_contrast is not None:
            figures["flow_contrast"] = output.flow_contrast
        if output.balance_weight is not None:
            figures["balance/weight"] = output.balance_weight
        if (self.state.step + 1) % self.config.log_every == 0:
            accuracy = self.loss.retrieval_accuracy(prediction, rows.noisy_latents, rows.timesteps, **candidates)
            figures |= {f"retrieval/{name}": value for name, value in accuracy.items()}
        loss, config = output.loss, self.config.loss
        if self.features:
            groups = inputs.groups if config.false_negatives else None
            features = self.features.take(len(inputs.groups))
            figures["dispersive"] = dispersive_loss(features, config.dispersive_temperature, groups=groups)
            loss = figures["loss"] = loss + config.dispersive_weight * figures["dispersive"]
        if self.alignment:
            figures["alignment"] = self.alignment(inputs.clean_latents)
            loss = figures["loss"] = loss + config.alignment_weight * figures["alignment"]
        if self.text_frames:
            text = self.text_frames(prediction, inputs)
            loss = figures["loss"] = loss + text.loss
            figures["contrastive/text"] = text.contrastive
        return loss, {name: value.detach() for name, value in figures.items()}

    def _summary(self, examples_per_second: float) -> dict[str, float]:
        """`examples_per_second`: of this process; the others' batches have as many."""
        state = self.state
        return mean_rows([mean_rows(rows) for rows in read_rows(state.unlogged)]) | {
            "learning_rate": state.optimizer.param_groups[0]["lr"],
            "nonfinite_steps": float(state.nonfinite_steps),
            **({"own_samples/nonfinite": float(self.own_samples.nonfinite)} if self.own_samples else {}),
            "units": self.compute.spent(state.step),
            "samples_per_second": examples_per_second * self.accelerator.num_processes,
        }

    def _beside(self) -> dict[str, Stateful]:
        """What a checkpoint holds beside the network and its optimizer."""
        beside: dict[str, Stateful] = {}
        if len(self.candidates.memory):
            beside["memory_bank"] = self.candidates.memory
        if self.loss.balance:
            beside["balance"] = self.loss.balance
        if self.own_samples:
            beside["own_samples"] = self.own_samples
        if self.own_contrast:
            beside["reference"] = self.own_contrast.reference
        if self.text_frames:
            beside["text_frames"] = self.text_frames
        if self.alignment:
            beside["alignment"] = self.alignment
        return beside

    def _measure_held_out(self) -> None:
        """The validation loss, of all processes, and previews, of the main one, with the averaged weights."""
        step = self.state.step
        for due in (one for one in (self.validation, self.preview) if one and one.due(step)):
            self.system.network.eval()
            self._write_log(self.state.with_average(partial(due.make, step)))
            self.offload_encoders()
            if self.log and due is self.preview and self.preview.file:
                self.log.show(step, "preview", self.preview.file)

    def _write_log(self, row: dict[str, float]) -> None:
        if self.log:
            self.log.write(self.state.step, row)

    def _stop_if_diverged(self) -> None:
        if self.state.nonfinite_in_a_row >= self.config.max_nonfinite_steps:
            raise DivergedError(
                f"{self.state.nonfinite_in_a_row} steps in a row, up to step {self.state.step}, had a NaN or infinite "
                "gradient and were skipped. Start again in a new --output with a lower --optimizer.learning-rate, "
                "--mixed-precision bf16 or no, --loss.min-snr-gamma 5, or a smaller contrastive weight"
            )

    def _finish(self) -> Path:
        folder = self.config.output / "model"
        weights = self.state.with_average(self.state.weights) if self.config.shard else {}
        if self.main:
            if self.config.shard:
                make_whole(self.system.network, weights)
            self.system.network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            if self.text_frames:
                self.text_frames.save(folder)
            if self.config.shard:
                self.system.save(folder)
            else:
                self.state.with_average(partial(self.lora.save if self.lora else self.system.save, folder))
        self.accelerator.wait_for_everyone()
        return folder


def build_loss(schedule: NoiseSchedule, config: LossConfig) -> ContrastiveDiffusionLoss:
    """The loss module a config asks for; a bank of weight 0 is left out."""
    weights = {"target": config.target_weight, "input": config.input_weight}
    return ContrastiveDiffusionLoss(
        schedule,
        banks={name: weight for name, weight in weights.items() if weight != 0},
        temperature=config.temperature,
        normalize=config.normalize,
        gate=config.gate,
        max_timestep=config.max_timestep,
        min_snr_gamma=config.min_snr_gamma,
        flow_contrast_weight=config.flow_contrast_weight,
        balance=config.balance,
    )


def build_own_contrast(system: System, config: LossConfig, device: torch.device) -> OwnContrast | None:
    """The contrast with own samples that a config asks for; its reference is a copy of the network as it is."""
    if not config.own_weight:
        return None
    loss = OwnSampleContrast(
        system.schedule, beta=config.own_beta, weight=config.own_weight, positive_only=config.own_positive_only
    )
    return OwnContrast(loss, copy.deepcopy(system.network).to(device))


def build_lora(system: System, config: TrainConfig) -> LoraTraining | None:
    """The adapters that a config asks for, in the system's network. Raises InputError."""
    if not config.lora.rank:
        return None
    name, options = split_options(config.model)
    if "lora" in options or ((saved := read_description(locate(name))) and saved.adapter):
        raise InputError(
            f"lora.rank: model {config.model!r} has an adapter already; expected a whole model: write one by "
            f"`contrastive-i2v merge --model {config.model!r} --output FOLDER`"
        )
    return LoraTraining(system, config.lora, base=name, seed=config.seed)


def place_network(
    network: nn.Module, config: TrainConfig, lora: LoraTraining | None, device: torch.device
) -> OffloadedBlocks | None:
    """Move a network to where it computes, in place, but for the blocks that a config offloads."""
    if config.offload_blocks and lora:  # a config that offloads has a rank
        return OffloadedBlocks(network, device, lora.trainable())
    network.to(device)
    return None


def build_candidates(
    config: TrainConfig, loss: ContrastiveDiffusionLoss, system: System, accelerator: Accelerator
) -> CandidateBanks:
    """What the loss contrasts with, for rows of the size that the config asks for."""
    count, codec = len(system.window.generated), system.codec
    frame = (codec.channels, *(side // codec.downscale for side in system.size))
    by_frame = config.loss.rows == "frame"
    joined = config.gradient_accumulation if config.gradient_cache else 1
    return CandidateBanks(
        config.loss,
        loss.banks,
        latent_shape=frame if by_frame else (count, *frame),
        device=accelerator.device,
        rows=config.batch_size * joined * (count if by_frame else 1),
        processes=accelerator.num_processes,
    )


def build_optimizer(config: TrainConfig, trainable: list[Any], device: torch.device) -> torch.optim.Optimizer:
    """AdamW over the parameters that train; the others of the network are left out of it. Raises InputError."""
    kind: Any = partial(torch.optim.AdamW, fused=device.type in ("cpu", "cuda"))
    if config.optimizer.eight_bit:
        try:
            kind = importlib.import_module("bitsandbytes.optim").AdamW8bit
        except ImportError as error:
            raise InputError(
                "optimizer.eight_bit needs bitsandbytes: pip install bitsandbytes, or leave it off"
            ) from error
    optimizer: torch.optim.Optimizer = kind(
        trainable,
        lr=config.optimizer.learning_rate,
        betas=config.optimizer.betas,
        weight_decay=config.optimizer.weight_decay,
    )
    return optimizer


def use_channels_last(network: nn.Module) -> None:
    """Put the channels of two-dimensional convolutions' weights last in memory, in place; what they compute follows."""
    for parameter in network.parameters():
        if parameter.dim() == 4:  # nn.Module.to would refuse a network that has convolutions over time as well
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def build_average(config: TrainConfig, trainable: list[Any]) -> EMAModel | None:
    """The moving average of the weights that a config asks for."""
    if not config.ema_decay:
        return None
    if config.ema_on_cpu:
        return HostAverage(trainable, config.ema_decay)
    return EMAModel(trainable, decay=config.ema_decay)


def is_trained(config: TrainConfig) -> bool:
    """Whether the folder holds the model that this config ends with. Raises InputError for a config it can't read."""
    if not (config.output / "model" / DESCRIPTION).exists():  # written last
        return False
    config = resolved(config, process_state().device)
    return not differences(load_config(TrainConfig, config.output / "config.yaml"), config)


def finish(config: TrainConfig, system: System | None = None) -> Path:
    """Train, or go on from the last checkpoint, or leave a finished run as it is; returns the model's folder."""
    if is_trained(config):
        return config.output / "model"
    resume = bool(list_checkpoints(config.output / "checkpoints"))
    return Trainer(replace(config, resume=resume), system).run()


def _check_size(config: TrainConfig, system: System) -> tuple[int, int]:
    return system.check_size(as_size(config.data.resolution), "data.resolution")


def enable_gradient_checkpointing(system: System) -> None:
    """Let the network keep less for the backward pass and compute it again. Raises InputError where it can't."""
    enable = getattr(system.network, "enable_gradient_checkpointing", None)
    if enable is None:
        raise InputError(f"gradient_checkpointing: the network of {system.config.kind} can't; leave it off")
    enable()


def _goes_on(config: TrainConfig) -> bool:
    """Whether there is a checkpoint to go on from; what torchrun started anew goes on unasked. Raises InputError where
    the folder holds another run, or one not asked for."""
    saved = list_checkpoints(config.output / "checkpoints")
    if not saved:
        if config.resume and not restarted() and not (config.output / "config.yaml").exists():
            raise InputError(f"{config.output}: holds no run to resume; leave out --resume to start one")
        return False
    if not config.resume and not restarted():
        raise InputError(
            f"{config.output}: holds a run at {saved[-1].name}; add --resume to go on, or give another --output"
        )
    if changed := differences(load_config(TrainConfig, config.output / "config.yaml"), config):
        raise InputError(
            f"{config.output}: was run with another config ({'; '.join(changed)}); resume with "
            f"--config {config.output / 'config.yaml'}, or give another --output"
        )
    return True
