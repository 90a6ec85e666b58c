"""The loss against banks too large to gather: each rank keeps a shard, queries travel instead of candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from contrastive_i2v.losses._collectives import (
    all_gather,
    all_gather_integers,
    all_reduce,
    pad_rows,
    rank_and_size,
    reduce_scatter,
)
from contrastive_i2v.ops import ContrastiveDiffusionLossOutput
from contrastive_i2v.ops import _validation as check
from contrastive_i2v.ops.reference import (
    _checked_temperature,
    _full_precision,
    _inverse_norm,
    bounded_coefficients,
    gradient_dtype,
    math_dtype,
)
from contrastive_i2v.ops.sharded import merged_cross_entropy, score_shard, shard_gradient


def sharded_contrastive_diffusion_loss(
    prediction: Tensor,
    noisy: Tensor,
    target: Tensor,
    c_skip: Tensor,
    c_out: Tensor,
    banks: Sequence[Tensor],
    positives: Sequence[Tensor | None] | None = None,
    *,
    temperature: float | Tensor = 1.0,
    bank_weights: Sequence[float] | None = None,
    mse_weights: Tensor | None = None,
    contrastive_weights: Tensor | None = None,
    query_groups: Tensor | None = None,
    bank_groups: Sequence[Tensor | None] | None = None,
    normalize: bool = False,
    dtype: torch.dtype | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> ContrastiveDiffusionLossOutput:
    """`contrastive_i2v.ops.contrastive_diffusion_loss` of this rank's queries against the concatenation of all
    ranks' shards, without bringing a bank together.

        m_i  = max_r m_ri                                         all-reduce
        s_i  = sum_r exp(m_ri - m_i) s_ri                         all-reduce, with the positive's logit
        CE_i = m_i + log s_i - l_i,positive
        dX_i = sum_r sum_{j in shard r} (p_ij - y_ij) z_j         reduce-scatter

    x0 of every query goes to all ranks, each scores it against its own shard, and the gradient comes back.
    With Q queries on all ranks together, a rank sends `(ranks - 1) / ranks * Q * D * itemsize` bytes twice, once
    each way, whatever the number and size of the banks, and about `32 K * Q + 8 K * D` beside them. Gathering K
    banks of N rows sends `(ranks - 1) / ranks * K * N * D * 2`: shards pay from about N > 4 Q / K with float32,
    N > 2 Q / K with bfloat16 on the wire. The backward pass sends nothing.

    The loss is the mean over this rank's own B queries, as `gather_bank` has it. Plain PyTorch in float32 (or
    float64) on any device; the logits are made in strips and never kept, a float32 copy of one shard at a
    time is. All ranks must call it together, with the same settings. It reads sizes on the host: not for CUDA
    graphs.

    Args:
        prediction, noisy, target, c_skip, c_out: this rank's B queries; B may differ between ranks.
        banks: K tensors [N_kr, *latent], this rank's shards, constant; N_kr >= 1 may differ between ranks.
        positives: K int64 tensors [B], rows of the concatenated shards, rank 0's first; -1 is none. None, for
            one bank or for all: query i matches row i of its own rank's shard.
        temperature, bank_weights, mse_weights, contrastive_weights, normalize: as in the op.
        query_groups: int64 [B], on all ranks or on none.
        bank_groups: K int64 tensors [N_kr].
        dtype: of x0 and its gradient on the wire. None is the maths' own (exact); torch.bfloat16 halves the
            bytes, rounds x0 once, and a gradient once a hop.
        process_group: None is the default group.

    Returns:
        `ContrastiveDiffusionLossOutput(loss, mse, contrastive)`, of this rank's queries.

    Raises:
        ValueError: as the op does; also where anything but the prediction requires a gradient, and where ranks
            disagree about D or about having groups (then on all of them).

    Source: the softmax over a split vocabulary of Megatron-LM (Shoeybi et al., 2019, arXiv:1909.08053, section 3),
    with the gradient made in the same pass.
    """
    check.latents(prediction, noisy, target)
    check.bank_list(prediction, banks)
    size = len(prediction)
    row_vectors = {"c_skip": c_skip, "c_out": c_out}
    row_vectors |= {} if mse_weights is None else {"mse_weights": mse_weights}
    row_vectors |= {} if contrastive_weights is None else {"contrastive_weights": contrastive_weights}
    for name, row in row_vectors.items():
        check.row_vector(prediction, name, row)
    temperature_value, temperature_tensor = check.split_temperature(prediction, temperature)
    constants = {f"banks[{k}]": bank for k, bank in enumerate(banks)}
    if temperature_tensor is not None:
        constants["temperature"] = temperature_tensor
    check.no_gradient(noisy=noisy, target=target, **row_vectors, **constants)
    if bank_weights is None:
        bank_weights = [1 / prediction[0].numel()] * len(banks)
    weights = check.numbers("bank_weights", bank_weights, banks)
    check.flag("normalize", normalize)
    positive_rows = check.index_lists(prediction, "positives", positives, banks, [size] * len(banks))
    check.default_positives(prediction, banks, positive_rows)
    group_rows = check.index_lists(prediction, "bank_groups", bank_groups, banks, [len(bank) for bank in banks])
    check.groups_together(prediction, query_groups, bank_groups)

    def compute(gradient: bool) -> tuple[Tensor, ...]:
        with _full_precision(prediction.device.type):
            return _loss_and_gradient(
                prediction,
                noisy,
                target,
                c_skip,
                c_out,
                banks,
                positive_rows,
                _checked_temperature(temperature_tensor, temperature_value, prediction.new_empty(0, dtype=math)),
                weights,
                mse_weights,
                contrastive_weights,
                query_groups,
                group_rows,
                normalize,
                math if dtype is None else dtype,
                process_group,
                gradient,
            )

    math = math_dtype(prediction)
    if torch.is_grad_enabled() and prediction.requires_grad:
        apply: Any = _GradientOfForward.apply
        return ContrastiveDiffusionLossOutput(*apply(compute, prediction))
    with torch.no_grad():
        return ContrastiveDiffusionLossOutput(*compute(False)[:3])


def _loss_and_gradient(
    prediction: Tensor,
    noisy: Tensor,
    target: Tensor,
    c_skip: Tensor,
    c_out: Tensor,
    banks: Sequence[Tensor],
    positives: Sequence[Tensor | None],
    tau: Tensor,
    bank_weights: Sequence[float],
    mse_weights: Tensor | None,
    contrastive_weights: Tensor | None,
    query_groups: Tensor | None,
    bank_groups: Sequence[Tensor | None],
    normalize: bool,
    wire: torch.dtype,
    group: dist.ProcessGroup | None,
    gradient: bool,
) -> tuple[Tensor, ...]:
    """(loss, mse, contrastive [K], dloss/dprediction like prediction, or [0] where not asked for)."""
    size, device = len(prediction), prediction.device
    f, x, y = (tensor.flatten(1).to(tau.dtype) for tensor in (prediction, noisy, target))  # [B, D]
    skip, out = c_skip.to(tau.dtype), c_out.to(tau.dtype)
    if normalize:
        skip, out = bounded_coefficients(skip, out)
    x0 = skip[:, None] * x + out[:, None] * f
    x0_scale = _inverse_norm(x0) if normalize else torch.ones_like(skip)
    x0 = x0 * x0_scale[:, None]

    rank, ranks = rank_and_size(group)
    header = [size, f.shape[1], int(query_groups is not None), int(gradient), *(len(bank) for bank in banks)]
    headers = all_gather_integers(header, device, group)
    for name, column in (("elements in a latent", 1), ("query_groups (1) or none (0)", 2)):
        if len({row[column] for row in headers}) > 1:
            raise ValueError(f"the ranks disagree: {name} are {[row[column] for row in headers]}, rank 0 first")
    any_gradient = any(row[3] for row in headers)
    longest = max(row[0] for row in headers)
    mine = slice(rank * longest, rank * longest + size)

    # Everyone's queries, padded to the same number a rank; what pads has no positive.
    queries = all_gather(pad_rows(x0.to(wire), longest), group).flatten(0, 1).to(tau.dtype)  # [Q, D]
    offsets = [sum(row[4 + k] for row in headers[:rank]) for k in range(len(banks))]
    columns = [
        torch.arange(offset, offset + size, device=device) if rows is None else rows
        for rows, offset in zip(positives, offsets, strict=True)
    ]
    columns += [] if query_groups is None else [query_groups]
    integers = [all_gather(pad_rows(column, longest, -1), group).flatten() for column in columns]  # K or K + 1 of [Q]
    everyones_groups = None if query_groups is None else integers[-1]

    wide = torch.float32 if device.type == "mps" else torch.float64
    ones = torch.ones_like(skip)
    mse_factor = (ones if mse_weights is None else mse_weights.to(tau.dtype)).to(wide) / size
    contrastive_factor = (ones if contrastive_weights is None else contrastive_weights.to(tau.dtype)).to(wide) / size
    mse = (mse_factor.to(tau.dtype) * (f - y).square().mean(1)).sum()
    loss, contrastive = mse.clone(), f.new_zeros(len(banks))
    pull = torch.zeros_like(queries) if any_gradient else None  # [Q, D] sum_k lambda_k sum_j (p_kij - y_kij) z_kj
    for k, bank in enumerate(banks):
        total_rows = sum(row[4 + k] for row in headers)
        everyones, offset = integers[k], offsets[k]
        in_range = (everyones >= -1) & (everyones < total_rows)
        if device.type == "cpu" and not bool(in_range.all()):
            wrong = int(everyones[~in_range][0])
            raise ValueError(
                f"positives holds {wrong}, but all shards of the bank have {total_rows} rows together: expected -1 "
                "(none) or a row"
            )
        has_positive = (everyones >= 0) & in_range
        local = torch.where(everyones < offset + len(bank), everyones - offset, -1)  # < 0 where it is elsewhere
        rows = bank.flatten(1).to(tau.dtype)  # [N, D]
        if normalize:
            rows = rows * _inverse_norm(rows)[:, None]
        # What all rows share leaves no trace in a softmax, but in the rounding of the shards' parts it would.
        rows = rows - all_reduce(rows.sum(0), dist.ReduceOp.SUM, group) / total_rows
        scores = score_shard(queries, rows, local, tau, everyones_groups, bank_groups[k], any_gradient)
        maximum = all_reduce(scores.maximum.clone(), dist.ReduceOp.MAX, group)
        rest = torch.exp(scores.maximum - maximum) * scores.rest
        rest, positive_logit = all_reduce(torch.stack([rest, scores.positive_logit]), dist.ReduceOp.SUM, group)
        cross_entropy = merged_cross_entropy(maximum, rest, positive_logit, has_positive)
        cross_entropy = torch.where(in_range, cross_entropy, torch.nan)[mine]
        contrastive[k] = (contrastive_factor.to(tau.dtype) * cross_entropy).sum()
        loss += bank_weights[k] * contrastive[k]
        if pull is not None:
            part = shard_gradient(scores, rows, local, maximum, rest, positive_logit, has_positive)
            pull += part.mul_(bank_weights[k])  # alpha= takes no weight that float32 can't hold
    if pull is None:
        return loss, mse, contrastive, f.new_empty(0)
    grad = (mse_factor * (2 / f.shape[1])).to(tau.dtype)[:, None] * (f - y)
    if not banks:  # 0 * NaN would reach the gradient
        return loss, mse, contrastive, grad.to(gradient_dtype(prediction)).view_as(prediction)

    pull = reduce_scatter(pull.view(ranks, longest, -1).to(wire), group)[:size].to(tau.dtype)  # [B, D]
    if normalize:
        pull = x0_scale[:, None] * (pull - (pull * x0).sum(1, keepdim=True) * x0)
    grad += (contrastive_factor * out.to(wide) / tau.to(wide)).to(tau.dtype)[:, None] * pull
    return loss, mse, contrastive, grad.to(gradient_dtype(prediction)).view_as(prediction)


class _GradientOfForward(torch.autograd.Function):
    """The gradient that the forward pass has already made, scaled by the incoming one."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[bool], tuple[Tensor, ...]], prediction: Tensor) -> tuple[Tensor, ...]:
        loss, mse, contrastive, gradient = compute(True)
        ctx.mark_non_differentiable(mse, contrastive)
        ctx.save_for_backward(gradient)
        ctx.prediction_dtype = prediction.dtype
        return loss, mse, contrastive

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[None, Tensor]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "sharded_contrastive_diffusion_loss has no second derivative, as its gradient is made in the forward "
                "pass: call backward without create_graph=True"
            )
        (gradient,) = ctx.saved_tensors
        return None, torch.ops.contrastive_i2v.scale_gradient(gradient, grad_loss, ctx.prediction_dtype)
