"""Our CUDA kernels on small, ragged problems, to be run under compute-sanitizer: `python -m benchmarks.sanitize`.

Inputs are made on the CPU and results are checked there, so that almost only our kernels run under the tool.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor

from contrastive_i2v.ops import available_backends, contrastive_diffusion_loss

# B, candidates of each bank, D, dtype, cosine: full tiles, ragged ones, more candidates than queries. Few, as each
# takes a compilation in Triton and everything is slow under the tool.
PROBLEMS = [
    (16, (16, 16), 512, torch.bfloat16, False),
    (5, (7, 3), 123, torch.float32, True),
    (33, (50,), 200, torch.float16, False),
    (64, (64, 64), 1024, torch.float32, False),
    (130, (257, 130), 264, torch.bfloat16, True),
    (300, (300, 300), 136, torch.bfloat16, False),
]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


def run(backend: str, device: str, inputs: dict[str, object], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(loss, gradient), on the CPU in float64."""

    def place(value: object) -> object:
        if isinstance(value, list):
            return [place(one) for one in value]
        if isinstance(value, Tensor):
            value = value.to(device)
            return value.to(dtype) if value.is_floating_point() and value.dim() > 1 else value
        return value

    placed = {name: place(value) for name, value in inputs.items()}
    prediction = placed["prediction"]
    assert isinstance(prediction, Tensor)
    prediction.requires_grad_()
    loss = contrastive_diffusion_loss(**placed, backend=backend).loss  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(loss, prediction)
    return loss.detach().cpu().double(), gradient.cpu().double()


def check(backend: str, device: str = "cuda") -> int:
    """Number of results that are wrong."""
    wrong = 0
    for queries, candidates, elements, dtype, normalize in PROBLEMS:
        torch.manual_seed(queries)

        def latents(rows: int, elements: int = elements, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(rows, elements).to(dtype).float()

        inputs: dict[str, object] = {
            "prediction": latents(queries),
            "noisy": latents(queries),
            "target": latents(queries),
            "c_skip": torch.rand(queries) + 0.5,
            "c_out": -torch.rand(queries) - 0.5,
            "banks": [latents(count) for count in candidates],
            "positives": [torch.randint(-1, count, (queries,)) for count in candidates],
            "query_groups": torch.randint(0, 3, (queries,)),
            "bank_groups": [torch.randint(0, 3, (count,)) for count in candidates],
            "bank_weights": [1.0] * len(candidates),
            "temperature": 0.07 if normalize else elements**0.5,
            "normalize": normalize,
        }
        _, truth = run("reference", "cpu", inputs, torch.float32)
        _, gradient = run(backend, device, inputs, dtype)
        error = float((gradient - truth).norm() / truth.norm())
        if not error <= TOLERANCE[dtype]:
            wrong += 1
            print(f"wrong: {backend} B={queries} N={candidates} D={elements} {dtype} {normalize=}: {error:.1e}")
    return wrong


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("benchmarks.sanitize: no CUDA device is visible to torch")
    states = available_backends()
    names = [name for name in ("cuda", "triton") if states[name] == "available"]
    for name in set(("cuda", "triton")) - set(names):
        print(f"{name}: {states[name]}")
    if not names:
        sys.exit("benchmarks.sanitize: no GPU kernels to check")
    only = os.environ.get("CI2V_SANITIZE", "")
    wrong = sum(check(name) for name in names if only in ("", name))
    print(f"{wrong} wrong results")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
