"""The public function over the registered ops: checks the arguments, fills defaults, picks the backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from contrastive_i2v.ops import _validation as check
from contrastive_i2v.ops._backends import HAS_CPU_KERNEL, choose, cuda_fits


class ContrastiveDiffusionLossOutput(NamedTuple):
    """`loss = mse + sum_k(bank_weights[k] * contrastive[k])`; only `loss` carries a gradient.

    All three are float32, or float64 when the prediction is.
    """

    loss: Tensor
    """scalar, differentiable."""
    mse: Tensor
    """scalar: `mean_i(w_i * mean_d((F - target)**2))`."""
    contrastive: Tensor
    """[K]: `mean_i(s_i * CE_ki)`, each >= 0."""


def contrastive_diffusion_loss(
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
    backend: str | None = None,
) -> ContrastiveDiffusionLossOutput:
    """Diffusion loss plus contrastive losses of the reconstructed x0 against banks of latents, in one pass.

        x0_i  = c_skip_i * x_t,i + c_out_i * F_i
        l_kij = <x0_i, z_kj> / temperature                     # a cosine when normalize=True
        CE_ki = logsumexp_{j not excluded} l_kij - l_ki,positive(i)
        loss  = mean_i(w_i * mean_d((F_i - target_i)**2) + sum_k lambda_k * s_i * CE_ki)

    The gradient is made in the forward pass and scaled in the backward pass, and no logits are kept. It goes
    to `prediction`, and on the reference backend also to `banks` and a tensor `temperature`. There is no
    second derivative.

    `*latent` is any number of dimensions, `D` their product, `K` the number of banks (0 leaves the diffusion
    loss). Latents and banks are float32, bfloat16, float16 or float64, mixed freely, and are never cast by
    autocast. The maths is float32, or float64 when `prediction` is float64.

    Args:
        prediction: [B, *latent], the network's output F.
        noisy: [B, *latent], x_t.
        target: [B, *latent], what the diffusion loss regresses to (noise, velocity, sample).
        c_skip: [B], see the table in `contrastive_i2v.diffusion`.
        c_out: [B].
        banks: K tensors [N_k, *latent], clean latents, one candidate a row.
        positives: K int64 tensors [B], the row of bank k that matches query i, or -1: no contrastive term for
            this query in this bank. None, for one bank or for all, is `arange(B)`.
        temperature: a number > 0, or a tensor with one element.
        bank_weights: K numbers lambda_k; None is 1/D each.
        mse_weights: [B], w_i; None is 1.
        contrastive_weights: [B], s_i; None is 1.
        query_groups: int64 [B]. A bank row of the query's own group that is not its positive leaves the
            denominator: it is a false negative. Given together with `bank_groups`.
        bank_groups: K int64 tensors [N_k]; None for one bank excludes nothing in it.
        normalize: cosine similarity. A zero row has cosine 0 with everything and no gradient through it.
        backend: "reference", "cpu", "triton" or "cuda", strictly; None picks the fastest that can give the
            gradients that `requires_grad` asks for.

    Returns:
        `ContrastiveDiffusionLossOutput(loss, mse, contrastive)`. A NaN or infinity in an input makes the loss
        non-finite, also one in a row that the softmax ignores.

    Raises:
        ValueError: shapes, dtypes, devices or lengths disagree, a bank has no rows, a temperature is not > 0,
            a positive is out of range, or an input that gets no gradient requires one. A tensor's values are
            only looked at on the CPU; on other devices a bad positive or temperature makes the loss NaN, as
            reading it would stall the device.
        RuntimeError: a named backend is missing or cannot do what is asked.

    Source: banks {conditioning image, target image}, temperature 1, weights 1/D and no normalisation are the
    literal contrastive latent loss for image-to-video fine-tuning. The coefficients are EDM's (Karras et al.,
    2022, arXiv:2206.00364, equation 7); cross entropy over in-batch candidates is InfoNCE (van den Oord et
    al., 2018, arXiv:1807.03748, equation 4).
    """
    if (
        backend in (None, "cpu")
        and HAS_CPU_KERNEL
        and not torch.compiler.is_compiling()
        and type(prediction) in (Tensor, Parameter)
        and prediction.is_cpu
        and type(temperature) is float
        and check.fits(temperature, torch.float32)
        and isinstance(banks, (list, tuple))
        and banks  # without any the kernel doesn't look at the coefficients
        and type(normalize) is bool
        and positives is None
        and query_groups is None
        and bank_groups is None
    ):
        # The commonest call. The kernel checks it all again, in a tenth of the time that the checks below take,
        # which then say what is wrong, or find a backend that can.
        try:
            default = [prediction.shape[0] / prediction.numel()] * len(banks)
            weights = default if bank_weights is None else check.numbers("bank_weights", bank_weights, banks)
            # fmt: off
            out = torch.ops.contrastive_i2v.diffusion_loss(
                prediction, noisy, target, c_skip, c_out, banks, (), None, temperature, weights, mse_weights,
                contrastive_weights, None, (), normalize, prediction.requires_grad and torch.is_grad_enabled(),
            )
            # fmt: on
            return ContrastiveDiffusionLossOutput(out[0], out[1], out[2])
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError, OverflowError):
            pass

    check.latents(prediction, noisy, target)
    check.bank_list(prediction, banks)
    size = prediction.shape[0]
    temperature_value, temperature_tensor = check.split_temperature(prediction, temperature)
    row_vectors = {"c_skip": c_skip, "c_out": c_out}
    if mse_weights is not None:
        row_vectors["mse_weights"] = mse_weights
    if contrastive_weights is not None:
        row_vectors["contrastive_weights"] = contrastive_weights
    for name, row in row_vectors.items():
        check.row_vector(prediction, name, row)
    check.no_gradient(noisy=noisy, target=target, **row_vectors)

    if bank_weights is None:
        bank_weights = [1 / (prediction.numel() // size)] * len(banks)
    weights = check.numbers("bank_weights", bank_weights, banks)
    check.flag("normalize", normalize)
    matches = check.index_lists(prediction, "positives", positives, banks, [size] * len(banks))
    positive_rows: list[Tensor] = []
    if matches and any(match is not None for match in matches):
        positive_rows = [torch.arange(size, device=prediction.device) if m is None else m for m in matches]
    check.default_positives(prediction, banks, matches)
    bank_rows = [bank.shape[0] for bank in banks]
    groups = check.index_lists(prediction, "bank_groups", bank_groups, banks, bank_rows)
    check.groups_together(prediction, query_groups, bank_groups)
    group_rows: list[Tensor] = []
    if query_groups is not None:
        nobody = query_groups.amin() - 1
        group_rows = [nobody.expand(n) if g is None else g for g, n in zip(groups, bank_rows, strict=True)]

    with_grad = torch.is_grad_enabled()
    prediction_gradient = with_grad and prediction.requires_grad
    bank_gradient = with_grad and any(bank.requires_grad for bank in banks)
    temperature_gradient = with_grad and temperature_tensor is not None and temperature_tensor.requires_grad
    more_gradients = ("banks",) * bank_gradient + ("temperature",) * temperature_gradient
    if not banks:  # nothing of x0 has a say, but 0 * NaN would reach the gradient
        c_skip = c_out = torch.zeros_like(c_skip)
        contrastive_weights, normalize = None, False
    dtypes = tuple(tensor.dtype for tensor in (prediction, noisy, target, *banks))
    # fmt: off
    arguments = (
        prediction, noisy, target, c_skip, c_out, list(banks), positive_rows, temperature_tensor,
        temperature_value, weights, mse_weights, contrastive_weights,
        query_groups, group_rows, normalize, prediction_gradient,
    )
    # fmt: on
    chosen = choose(
        backend,
        prediction.device,
        dtypes,
        more_gradients,
        lambda: cuda_fits(size, bank_rows, prediction.numel() // size, dtypes),
    )
    if chosen == "reference":
        out = torch.ops.contrastive_i2v.diffusion_loss_reference(*arguments, bank_gradient, temperature_gradient)
    elif chosen == "triton":
        out = torch.ops.contrastive_i2v.diffusion_loss_triton(*arguments)
    else:
        out = torch.ops.contrastive_i2v.diffusion_loss(*arguments)
    return ContrastiveDiffusionLossOutput(*out[:3])
