"""The ops: arguments of any kind give the documented error, or what the reference says in float64.

An input is JSON: the function, its backend, and a description of each argument.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive_i2v.losses.sharded import sharded_contrastive_diffusion_loss
from contrastive_i2v.ops import contrastive_diffusion_loss
from contrastive_i2v.ops.guided_step import guidance_branches, guided_step

TOLERANCE = {"loss": 1e-5, "sharded": 1e-5, "guided_step": 1e-5}
"""Of float32, relative to the size of what is summed."""
BACKENDS = (None, None, "cpu", "reference")
FLOATS = ("float32", "bfloat16", "float16", "float64")
DTYPES = (*FLOATS, "int64", "int32", "bool", "complex64", "uint8", "float8_e4m3fn")
FILLED = {"zeros": 0, "ones": 1, "nan": math.nan, "inf": math.inf, "huge": 1e30, "tiny": 1e-40, "extreme": -(2.0**62)}
FILLS = ("randn", "randn", *FILLED)
LAYOUTS = ("plain", "transposed", "expanded", "sliced", "negated", "sparse", "mkldnn", "meta", "grad")
NUMBERS = (True, 0, -1, 2, 1.0, -1.0, 0.0, 1e-300, 1e300, 10**400, math.nan, math.inf, -math.inf)
VALUES = (*NUMBERS, None, "1", "", [], [1.0], [None], {})
KINDS = ("type", "shape", "dtype", "fill", "layout")
STEP_KINDS = ("shape", "dtype", "fill")
"""What is changed about an argument."""
OPTIONAL = (
    "bank_weights", "mse_weights", "contrastive_weights", "query_groups", "bank_groups", "positives", "normalize",
    "temperature",
)  # fmt: skip


class Target:
    def __init__(self, folder: Path) -> None:
        pass

    def draw(self, rng: random.Random) -> bytes:
        function = rng.choice(("loss", "loss", "sharded", "guided_step"))
        arguments = _step_arguments(rng) if function == "guided_step" else _loss_arguments(rng)
        for _ in range(rng.choice((0, 1, 1, 2))):
            _spoil(rng, arguments, STEP_KINDS if function == "guided_step" else KINDS)
        backend = None if function == "sharded" else rng.choice(BACKENDS)
        return json.dumps({"function": function, "backend": backend, "arguments": arguments}).encode()

    def check(self, case: bytes) -> None:
        said = json.loads(case)
        arguments = {name: _value(value) for name, value in said["arguments"].items()}
        check = {"loss": _check_loss, "sharded": _check_sharded, "guided_step": _check_step}[said["function"]]
        check(arguments, said["backend"])


def _loss_arguments(rng: random.Random) -> dict[str, Any]:
    size, latent = rng.choice((1, 2, 5, 17)), [rng.choice((1, 3, 8, 33)) for _ in range(rng.choice((1, 1, 2, 3)))]
    rows = [rng.choice((size, size + 3, 40)) for _ in range(rng.choice((0, 1, 1, 2)))]
    dtype = rng.choice(FLOATS)
    wide = "float64" if dtype == "float64" else "float32"
    arguments: dict[str, Any] = {
        name: _tensor(rng, [size, *latent], dtype) for name in ("prediction", "noisy", "target")
    }
    arguments |= {name: _tensor(rng, [size], wide) for name in ("c_skip", "c_out")}
    arguments["banks"] = [_tensor(rng, [count, *latent], dtype) for count in rows]
    options = {
        "temperature": rng.choice((1.0, 5.0, _tensor(rng, [], wide, fill="ones"))),
        "bank_weights": [1.0 + k for k in range(len(rows))],
        "mse_weights": _tensor(rng, [size], wide, fill="positive"),  # of two signs they would cancel
        "contrastive_weights": _tensor(rng, [size], wide, fill="positive"),
        "positives": [_tensor(rng, [size], "int64", fill="index", high=count) for count in rows],
        "normalize": True,
    }
    arguments |= {name: value for name, value in options.items() if rng.random() < 0.3}
    if rng.random() < 0.2:
        arguments["query_groups"] = _tensor(rng, [size], "int64", fill="index", high=3)
        arguments["bank_groups"] = [_tensor(rng, [count], "int64", fill="index", high=3) for count in rows]
    return arguments


def _step_arguments(rng: random.Random) -> dict[str, Any]:
    scales = [rng.choice((0.0, 1.0, 1.5, 7.5)) for _ in range(2)]
    shape = [rng.choice((0, 1, 3)), *[rng.choice((1, 5, 16)) for _ in range(rng.randrange(4))]]
    branches = len(guidance_branches(*scales))
    return {
        "sample": _tensor(rng, shape, rng.choice(("float32", "float32", "float64"))),
        "predictions": _tensor(rng, [branches * shape[0], *shape[1:]], rng.choice(FLOATS)),
        "sample_scale": 0.5,
        "prediction_scale": -2.0,
        "guidance_scale": scales[0],
        "image_guidance_scale": scales[1],
        "copies": rng.choice((1, 2, 3)),
    }


def _tensor(rng: random.Random, shape: list[int], dtype: str, **more: Any) -> dict[str, Any]:
    layout = rng.choice(LAYOUTS[1:5]) if rng.random() < 0.15 else "plain"
    return {"shape": shape, "dtype": dtype, "fill": "randn", "layout": layout, "seed": rng.randrange(99), **more}


def _spoil(rng: random.Random, arguments: dict[str, Any], kinds: Sequence[str]) -> None:
    """One argument of another kind, or one property of a tensor changed."""
    name = rng.choice(sorted(set(arguments) | (set(OPTIONAL) if "banks" in arguments else set())))
    value = arguments.get(name)
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        arguments[name] = [*value[:place], _spoiled(rng, value[place], kinds), *value[place + 1 :]]
    elif "type" in kinds or isinstance(value, dict):
        arguments[name] = _spoiled(rng, value, kinds)


def _spoiled(rng: random.Random, value: Any, kinds: Sequence[str]) -> Any:
    if "type" in kinds and (not isinstance(value, dict) or "shape" not in value or rng.random() < 0.15):
        small = _tensor(rng, rng.choice(([], [1], [2, 2], [0])), rng.choice(DTYPES))
        return rng.choice((*VALUES, small, [small], [small, small]))
    shape = list(value["shape"])
    place = rng.randrange(len(shape) + 1)
    shapes = (
        shape[:place],
        [*shape, 1],
        [1, *shape],
        [0 if k == place else n for k, n in enumerate(shape)],
        [2 * n for n in shape],
    )
    key = rng.choice([kind for kind in kinds if kind != "type"])
    return value | {key: rng.choice({"shape": shapes, "dtype": DTYPES, "fill": FILLS, "layout": LAYOUTS}[key])}


def _value(said: Any) -> Any:
    """What a description in JSON stands for."""
    if isinstance(said, list):
        return [_value(one) for one in said]
    if not isinstance(said, dict) or "shape" not in said:
        return said
    shape, layout = said["shape"], said["layout"]
    generator = torch.Generator().manual_seed(said["seed"])
    dtype = getattr(torch, said["dtype"])
    made = torch.randn(shape, generator=generator, dtype=torch.float64)
    fill = said["fill"]
    if fill == "index":
        made = torch.randint(-1, said["high"], shape, generator=generator)
    elif fill == "positive":
        made = made.abs()
    elif fill != "randn":
        made.view(-1)[: 1 + made.numel() // 2] = FILLED[fill]
    value = made.to(dtype)
    if layout == "transposed":
        value = value.mT.contiguous().mT if value.dim() > 1 else value
    elif layout == "expanded":
        value = value[:1].expand(shape) if value.dim() else value
    elif layout == "sliced":
        value = torch.stack([value, value], -1)[..., 1]
    elif layout == "negated" and dtype in (
        torch.float32,
        torch.float64,
    ):  # lazily: what its memory holds is not its value
        value = torch.complex(torch.zeros_like(value), -value).conj().imag
    elif layout == "sparse" and dtype != torch.float8_e4m3fn:
        value = value.to_sparse()
    elif layout == "mkldnn" and dtype == torch.float32 and value.dim() and value.numel():
        value = value.to_mkldnn()
    elif layout == "meta":
        value = value.to("meta")
    elif layout == "grad" and (value.is_floating_point() or value.is_complex()):
        value = value.requires_grad_()
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [tensor for one in value for tensor in _tensors(one)]
    return [value] if isinstance(value, Tensor) else []


def _is_refusal(error: Exception, backend: str | None) -> bool:
    """Whether an error is one of those documented, and says something."""
    if isinstance(error, ValueError):
        return bool(str(error)) and "\n" not in str(error)
    return isinstance(error, RuntimeError) and str(error).startswith(f"backend={backend!r} cannot be used: ")


def _wide(value: Any) -> Any:
    if isinstance(value, list):
        return [_wide(one) for one in value]
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _check_loss(arguments: dict[str, Any], backend: str | None) -> None:
    _check_some_loss(contrastive_diffusion_loss, arguments, backend, {"backend": backend})


def _check_sharded(arguments: dict[str, Any], backend: str | None) -> None:
    _check_some_loss(sharded_contrastive_diffusion_loss, arguments, None, {})


def _check_some_loss(function: Any, arguments: dict[str, Any], backend: str | None, more: dict[str, Any]) -> None:
    try:
        out = function(**arguments, **more)
    except Exception as error:
        if _is_refusal(error, backend):
            return
        raise
    if any(tensor.is_meta for tensor in _tensors(list(arguments.values()))):
        assert out.loss.is_meta
        return
    truth = contrastive_diffusion_loss(**_wide_arguments(arguments), backend="reference")
    wide = arguments["prediction"].dtype == torch.float64
    weights = torch.tensor(_weights(arguments), dtype=torch.float64)
    for name in ("loss", "mse"):
        got, expected = getattr(out, name).detach().double(), getattr(truth, name)
        scale = float(truth.mse.abs() + truth.contrastive.abs() @ weights) if name == "loss" else float(expected.abs())
        if math.isfinite(float(expected)) and scale < 1e30:
            assert math.isfinite(float(got)) or _is_extreme(arguments), (name, got, expected)
            if not _is_extreme(arguments):
                bound = (1e-12 if wide else TOLERANCE["loss"]) * max(scale, _sizes(arguments)[0])
                assert abs(float(got - expected)) <= bound + 1e-30, (name, got, expected)
        elif not math.isfinite(float(expected)) and name == "loss":
            assert not math.isfinite(float(got)), (name, got, expected)
    if truth.loss.isfinite() and not _is_extreme(arguments):
        _check_gradient(function, arguments, more)


def _check_gradient(function: Any, arguments: dict[str, Any], more: dict[str, Any]) -> None:
    """The prediction's, against float64: relative to its own size, or to that of the largest term that may cancel."""

    def gradient(call: Any, values: dict[str, Any], **options: Any) -> Tensor:
        prediction = values["prediction"].detach().clone().requires_grad_()
        return torch.autograd.grad(call(**{**values, "prediction": prediction}, **options).loss, prediction)[0].double()

    truth = gradient(contrastive_diffusion_loss, _wide_arguments(arguments), backend="reference")
    got = gradient(function, arguments, **more)
    dtype = arguments["prediction"].dtype
    rounding = {torch.bfloat16: 2**-8, torch.float16: 2**-10}.get(dtype, 0)
    least = truth.numel() ** 0.5 * torch.finfo(dtype).smallest_normal * max(rounding, 1e-7)  # below it steps are equal
    bound = (1e-5 + rounding) * (float(truth.norm()) + _sizes(arguments)[1])
    assert float((got - truth).norm()) <= bound + least, (got, truth)


def _wide_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: _wide(value) for name, value in arguments.items()}


def _is_extreme(arguments: dict[str, Any]) -> bool:
    """Whether a number that float32 can't hold, or whose square or product it can't, is among the arguments."""
    numbers = [
        tensor.detach().double().abs() for tensor in _tensors(list(arguments.values())) if tensor.is_floating_point()
    ]
    numbers += [torch.tensor(float(v)).abs() for v in _numbers(list(arguments.values()))]
    return any(bool(((n > 1e9) | ((n > 0) & (n < 1e-9))).any()) for n in numbers)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (list, tuple)):
        return [number for one in value for number in _numbers(one)]
    return [value] if isinstance(value, (int, float)) and abs(value) < 2**1000 else []


def _weights(arguments: dict[str, Any]) -> list[float]:
    weights = arguments.get("bank_weights")
    return [1.0] * len(arguments["banks"]) if weights is None else [abs(float(one)) for one in weights]


def _sizes(arguments: dict[str, Any]) -> tuple[float, float]:
    """What rounding is relative to: the largest logit, which a cross entropy inherits, and the largest gradient of a
    logit, each with its weights. Those of one bank may cancel."""
    if not arguments["banks"]:
        return 0.0, 0.0
    wide = _wide_arguments(arguments)
    out = wide["c_out"]
    x0 = (wide["c_skip"][:, None] * wide["noisy"].flatten(1) + out[:, None] * wide["prediction"].flatten(1)).norm(dim=1)
    temperature, rated = wide.get("temperature"), wide.get("contrastive_weights")
    logit = gradient = 0.0
    for weight, bank in zip(_weights(arguments), wide["banks"], strict=True):
        row = 1.0 if arguments.get("normalize") else float(bank.flatten(1).norm(dim=1).max())
        logit += weight * row * (1.0 if arguments.get("normalize") else float(x0.max()))
        gradient += weight * row * float((out.abs() / x0 if arguments.get("normalize") else out.abs()).max())
    factor = (1.0 if rated is None else float(rated.abs().max())) / float(1.0 if temperature is None else temperature)
    return logit * factor, gradient * factor


def _check_step(arguments: dict[str, Any], backend: str | None) -> None:
    try:
        out = guided_step(**arguments, backend=backend)
    except Exception as error:
        if isinstance(error, TypeError) or _is_refusal(error, backend):
            return
        raise
    if out.is_meta:
        return
    truth = guided_step(**_wide_arguments(arguments), backend="reference")
    assert out.shape == truth.shape and out.dtype == arguments["sample"].dtype
    if _is_extreme(arguments):
        return
    finite = truth.isfinite()
    largest = (
        float(arguments["predictions"].double().nan_to_num(posinf=0, neginf=0).abs().max()) if out.numel() else 0.0
    )
    bound = TOLERANCE["guided_step"] * (1 + largest)
    scale = 1 + sum(
        abs(float(arguments[name])) for name in ("guidance_scale", "image_guidance_scale", "prediction_scale")
    )
    assert torch.equal(out.isfinite(), truth.isfinite()), "finite where the reference isn't, or the reverse"
    assert bool(((out.double() - truth).abs()[finite] <= bound * scale**2).all()), (out, truth)
