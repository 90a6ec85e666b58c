"""The loss module for a diffusion training loop: schedule -> coefficients -> the fused op."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from contrastive_i2v.diffusion import NoiseSchedule
from contrastive_i2v.errors import InputError
from contrastive_i2v.losses.balance import GradientBalance
from contrastive_i2v.losses.other_targets import distance_to_other_targets
from contrastive_i2v.losses.weighting import min_snr_weights
from contrastive_i2v.ops import ContrastiveDiffusionLossOutput, contrastive_diffusion_loss

GATES = ("none", "signal")
CONDITION_BANK = "input"  # the bank whose positive is the conditioning image


class DiffusionLossOutput(NamedTuple):
    """`loss = mse + sum over banks of weight * contrastive[bank] - flow_contrast_weight * flow_contrast`. With
    `balance` the sum is multiplied by `balance_weight`."""

    loss: Tensor
    """Scalar float32, differentiable."""
    mse: Tensor
    """Scalar float32, detached: the weighted diffusion loss."""
    contrastive: dict[str, Tensor]
    """Bank name -> scalar float32, detached: the gated cross entropy, before its weight."""
    flow_contrast: Tensor | None = None
    """Scalar float32, detached: the weighted distance to other rows' targets; None where it has no weight."""
    balance_weight: Tensor | None = None
    """Scalar, detached: what multiplied the contrastive terms; None without `balance`."""


class ContrastiveDiffusionLoss(nn.Module):
    """Diffusion loss plus, for each bank of clean latents, a cross entropy that singles out the right latent.

        x0_i = c_skip_i * x_t,i + c_out_i * F_i
        l_ij = <x0_i, z_j> / temperature                              (cosines with normalize=True)
        loss = 1/B sum_i [ w_i mean_d (F_i - target_i)^2 + sum_k lambda_k s_i CE(l_ki, positive_ki) ]

    with w_i the min-SNR weight (or 1) and s_i the gate. `contrastive_i2v.ops.contrastive_diffusion_loss`
    computes it without storing the logits. The module has no parameters; with `balance` it has state, two averages.

    Banks are latents on the scale of `clean_latents`. In particular, InstructPix2Pix conditions on *unscaled*
    latents: multiply them by the VAE's scaling factor before they become the "input" bank.

    Three recipes:
        default   banks={"target": w}, temperature 0.07, normalize, gate "signal"
        literal   banks={"input": None, "target": None}, temperature 1, normalize=False, gate "none"
        baseline  banks={}: the diffusion loss alone

    Args:
        scheduler_config: a diffusers `scheduler.config`, or a `NoiseSchedule`.
        banks: name -> weight lambda; a weight None means 1/D, D the number of elements of a latent. The bank
            called "input" is the conditioning image's: queries without a condition have no positive there.
            None means {"target": 0.2}.
        temperature: of the softmax, > 0.
        normalize: cosine similarity instead of the dot product, which rewards a large norm of x0.
        gate: "signal" scales query i's cross entropies by abar_t (flow: (1 - s)^2), since x0 is a guess where
            the noise is strong; "none" doesn't.
        max_timestep: above it (noisier) a query has no contrastive terms at all. None means no such limit.
        min_snr_gamma: clip of the min-SNR weights of the diffusion loss (5 is usual); None weighs all alike.
        flow_contrast_weight: lambda of Contrastive Flow Matching, 0 <= lambda < 1: the loss minus lambda times
            `distance_to_other_targets`, with the diffusion loss's weights w_i. It rescales the optimal prediction by
            1 / (1 - lambda). At 1 and above the loss has no minimum.
        balance: multiply the contrastive terms so that their gradient to the prediction is at most this times the noise
            loss's (`GradientBalance`); the banks' weights then only say their ratio. None multiplies by nothing.
        backend: of the op; None takes the fastest there is.

    Raises:
        InputError: a setting out of range, balance without a bank, or epsilon prediction with zero terminal SNR.
    """

    def __init__(
        self,
        scheduler_config: Mapping[str, Any] | NoiseSchedule,
        *,
        banks: Mapping[str, float | None] | None = None,
        temperature: float = 0.07,
        normalize: bool = True,
        gate: str = "signal",
        max_timestep: float | None = None,
        min_snr_gamma: float | None = None,
        flow_contrast_weight: float = 0.0,
        balance: float | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(scheduler_config, NoiseSchedule):
            scheduler_config = NoiseSchedule.from_config(scheduler_config)
        self.schedule = scheduler_config
        self.banks: dict[str, float | None] = {"target": 0.2} if banks is None else dict(banks)
        self.temperature = temperature
        self.normalize = normalize
        self.gate = gate
        self.max_timestep = max_timestep
        self.min_snr_gamma = min_snr_gamma
        self.flow_contrast_weight = flow_contrast_weight
        self.backend = backend
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature={temperature}; expected a number > 0")
        if gate not in GATES:
            raise InputError(f"gate={gate!r}; expected one of {', '.join(GATES)}")
        if max_timestep is not None and not max_timestep >= 0:
            raise InputError(f"max_timestep={max_timestep}; expected a number >= 0, or None for no such limit")
        if min_snr_gamma is not None and not min_snr_gamma > 0:
            raise InputError(f"min_snr_gamma={min_snr_gamma}; expected a number > 0, or None for equal weights")
        if not 0 <= flow_contrast_weight < 1:
            raise InputError(f"flow_contrast_weight={flow_contrast_weight}; expected 0 <= weight < 1")
        for name, weight in self.banks.items():
            if weight is not None and not (math.isfinite(weight) and weight >= 0):
                raise InputError(f"the weight of bank {name!r} is {weight}; expected a number >= 0, or None for 1/D")
        if balance is not None and not (math.isfinite(balance) and balance > 0 and self.banks):
            raise InputError(f"balance={balance}; expected a number > 0, and a bank whose terms it weighs; or None")
        self.balance = None if balance is None else GradientBalance(balance)

    def forward(
        self,
        prediction: Tensor,
        noisy_latents: Tensor,
        timesteps: Tensor,
        clean_latents: Tensor,
        noise: Tensor,
        banks: Mapping[str, Tensor],
        *,
        positives: Mapping[str, Tensor] | None = None,
        groups: Tensor | None = None,
        bank_groups: Mapping[str, Tensor] | None = None,
        has_condition: Tensor | None = None,
    ) -> DiffusionLossOutput:
        """Loss of one batch.

        Args:
            prediction: [B, *latent] network output, which gets the gradient.
            noisy_latents: [B, *latent] x_t, as the network saw them (before any `scale_model_input`).
            timesteps: [B].
            clean_latents: [B, *latent] scaled latents, x0.
            noise: [B, *latent].
            banks: name -> [N, *latent] scaled clean latents; those not configured are left alone.
            positives: name -> int64 [B], the row that matches each query, -1 for none. A bank without an
                entry has query i's in row i, and its first B rows are the queries'.
            groups: int64 [B], say the video a query is from. Rows of its own group, other than its positive,
                are left out of a query's cross entropy: they are no negatives.
            bank_groups: name -> int64 [N]. A bank of B rows without an entry takes `groups`.
            has_condition: bool [B]; False (condition dropped) leaves the query without a positive in "input".

        Raises:
            InputError: a configured bank is missing, its groups can't be told, or one requires a gradient with balance.
            ValueError: shapes or devices disagree (see the op).
        """
        names = list(self.banks)
        tensors = self._select(banks)
        rows = self._positives(tensors, positives, has_condition, len(prediction))
        marks = self._groups(tensors, groups, bank_groups)
        c_skip, c_out = self.schedule.coefficients(timesteps)
        mse_weights = None
        if self.min_snr_gamma is not None:
            mse_weights = min_snr_weights(self.schedule, timesteps, self.min_snr_gamma)
        target = self.schedule.target(clean_latents, noise, timesteps)
        weights = self._weights(prediction)

        def op(prediction: Tensor, mse_weights: Tensor | None) -> ContrastiveDiffusionLossOutput:
            return contrastive_diffusion_loss(
                prediction,
                noisy_latents,
                target,
                c_skip,
                c_out,
                tensors,
                rows,
                temperature=self.temperature,
                bank_weights=weights,
                mse_weights=mse_weights,
                contrastive_weights=self._gate(timesteps),
                query_groups=groups if marks is not None else None,
                bank_groups=marks,
                normalize=self.normalize,
                backend=self.backend,
            )

        multiplier = None
        if self.balance is None:
            loss, mse, terms = op(prediction, mse_weights)
        else:
            if any(bank.requires_grad for bank in tensors):
                raise InputError("a bank requires a gradient, and balance gives it none: detach it")
            nothing = torch.zeros_like(c_skip)
            contrast = partial(op, mse_weights=nothing)
            loss, mse, terms, multiplier = self.balance(contrast, weights, prediction, target, mse_weights)
        contrastive = dict(zip(names, terms.unbind(), strict=True))
        if not self.flow_contrast_weight:
            return DiffusionLossOutput(loss, mse, contrastive, balance_weight=multiplier)
        distance = distance_to_other_targets(prediction, target, groups=groups, weights=mse_weights)
        loss = loss - self.flow_contrast_weight * distance
        return DiffusionLossOutput(loss, mse, contrastive, distance.detach(), multiplier)

    @torch.no_grad()
    def retrieval_accuracy(
        self,
        prediction: Tensor,
        noisy_latents: Tensor,
        timesteps: Tensor,
        banks: Mapping[str, Tensor],
        *,
        positives: Mapping[str, Tensor] | None = None,
        groups: Tensor | None = None,
        bank_groups: Mapping[str, Tensor] | None = None,
        has_condition: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """For each bank, the share of queries whose positive has a larger logit than every negative.

        Arguments as for `forward`. Scalars float32; NaN where no query has a positive. Ties don't count, so a
        collapsed x0 scores 0. For logging: it stores the [B, N] logits.
        """
        tensors = self._select(banks)
        size = len(prediction)
        rows = self._positives(tensors, positives, has_condition, size)
        marks = self._groups(tensors, groups, bank_groups)
        c_skip, c_out = self.schedule.coefficients(timesteps)
        x0 = c_skip[:, None] * noisy_latents.flatten(1).float() + c_out[:, None] * prediction.flatten(1).float()
        accuracy = {}
        for k, (name, bank) in enumerate(zip(self.banks, tensors, strict=True)):
            candidates = bank.flatten(1).float()  # [N, D]
            if self.normalize:
                candidates = nn.functional.normalize(candidates, dim=1)
            logits = x0 @ candidates.T  # [B, N]; x0's norm and the temperature don't change the order
            row = rows[k]
            row = torch.arange(size, device=x0.device) if row is None else row
            index = row.clamp(min=0)[:, None]
            mark = marks[k] if marks is not None else None
            if mark is not None and groups is not None:
                own = groups[:, None] == mark
                negatives = logits.masked_fill(own, -torch.inf)
            else:
                negatives = logits.clone()
            negatives.scatter_(1, index, -torch.inf)
            hit = logits.gather(1, index).squeeze(1) > negatives.amax(1)
            has_positive = row >= 0
            accuracy[name] = (hit & has_positive).sum() / has_positive.sum()
        return accuracy

    def extra_repr(self) -> str:
        """The settings, for print(module)."""
        return (
            f"{self.schedule.prediction_type}, banks={self.banks}, temperature={self.temperature}, "
            f"normalize={self.normalize}, gate={self.gate!r}, max_timestep={self.max_timestep}, "
            f"min_snr_gamma={self.min_snr_gamma}, flow_contrast_weight={self.flow_contrast_weight}, "
            f"balance={self.balance and self.balance.ratio}, "
            f"backend={self.backend!r}"
        )

    def _select(self, banks: Mapping[str, Tensor]) -> list[Tensor]:
        missing = [name for name in self.banks if name not in banks]
        if missing:
            raise InputError(
                f"banks has {sorted(banks)}, but the loss was configured with {list(self.banks)}; expected "
                f"also {missing}: pass them, or leave them out of ContrastiveDiffusionLoss(banks=...)"
            )
        return [banks[name] for name in self.banks]

    def _weights(self, prediction: Tensor) -> list[float]:
        elements = math.prod(prediction.shape[1:])
        return [1 / elements if weight is None else weight for weight in self.banks.values()]

    def _gate(self, timesteps: Tensor) -> Tensor | None:
        weights = self.schedule.signal(timesteps) if self.gate == "signal" else None
        if self.max_timestep is None:
            return weights
        kept = (timesteps <= self.max_timestep).float()
        return kept if weights is None else weights * kept

    def _positives(
        self,
        tensors: list[Tensor],
        positives: Mapping[str, Tensor] | None,
        has_condition: Tensor | None,
        size: int,
    ) -> list[Tensor | None]:
        rows: list[Tensor | None] = []
        for name, bank in zip(self.banks, tensors, strict=True):
            row = None if positives is None else positives.get(name)
            if row is None and len(bank) < size:
                raise InputError(
                    f"bank {name!r} has {len(bank)} rows for {size} queries and no positives; expected at "
                    f"least as many rows, query i's in row i, or positives={{{name!r}: int64 [{size}]}}"
                )
            if name == CONDITION_BANK and has_condition is not None:
                row = torch.arange(size, device=bank.device) if row is None else row
                row = torch.where(has_condition, row, -1)
            rows.append(row)
        return rows

    def _groups(
        self, tensors: list[Tensor], groups: Tensor | None, bank_groups: Mapping[str, Tensor] | None
    ) -> list[Tensor | None] | None:
        if groups is None:
            if bank_groups:
                raise InputError("bank_groups was given without groups; expected both, or neither")
            return None
        marks: list[Tensor | None] = []
        for name, bank in zip(self.banks, tensors, strict=True):
            mark = None if bank_groups is None else bank_groups.get(name)
            if mark is None and len(bank) != len(groups):
                raise InputError(
                    f"bank {name!r} has {len(bank)} rows for {len(groups)} queries, so `groups` doesn't say "
                    f"its groups; expected bank_groups={{{name!r}: int64 [{len(bank)}]}}"
                )
            marks.append(groups if mark is None else mark)
        return marks
