"""What is the C++ backend's own: instruction sets, memory, long runs, large addresses, gradients without a copy."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import BACKENDS, error, make, run, to_double

from contrastive_i2v.ops import contrastive_diffusion_loss

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the extension")


@pytest.mark.processes
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_gives_the_same_answer(capability: str, tmp_path: Path) -> None:
    """ATEN_CPU_CAPABILITY holds for a whole process, so each runs in its own."""
    code = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from problems import make, run
results = []
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for normalize in (False, True):
        for shape in ((5, [13, 6], [252]), (33, [40, 35], [257]), (300, [211], [21])):
            arguments = make(*shape, dtype=dtype, options=True) | {"normalize": normalize}
            out, gradient = run(arguments, "cpu")
            results += [out.loss, out.contrastive, gradient]
torch.save(results, sys.argv[2])
print(torch.backends.cpu.get_cpu_capability())
"""
    results = []
    for name in (capability, None):
        path = str(tmp_path / f"{name}.pt")
        environment = os.environ | ({"ATEN_CPU_CAPABILITY": name} if name else {})
        command = [sys.executable, "-c", code, str(Path(__file__).parent), path]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if name is not None and name.upper() not in done.stdout:
            pytest.skip(f"this processor has no {name}")
        results.append(torch.load(path))
    for one, other in zip(*results, strict=True):
        rounding = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[one.dtype]
        assert error(one, other) < rounding


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_hundred_thousand_calls_leave_memory_flat() -> None:
    arguments = make(3, [4, 5], [16]) | {"positives": None}
    arguments["prediction"].requires_grad_()

    def call(times: int) -> None:
        for _ in range(times):
            contrastive_diffusion_loss(**arguments, backend="cpu").loss.backward()
            arguments["prediction"].grad = None

    call(1000)
    before = resident()
    call(100_000)
    assert resident() - before < 2 << 20  # 21 bytes a call would show


def test_rows_beyond_two_to_the_31_elements_are_found() -> None:
    """A bank of 4.3 GB, of which the untouched zeros take no memory."""
    elements = 4096
    rows = 2**31 // elements + 100
    bank = torch.from_numpy(np.zeros((rows, elements), np.uint16)).view(torch.bfloat16)
    arguments = make(1, [1], [elements]) | {"temperature": 1.0, "mse_weights": torch.zeros(1)}
    bank[-1] = 0.01
    bank[rows // 2] = 7  # would be read in place of the last row by 32-bit arithmetic, or not at all
    bank[rows // 2] = 0
    arguments["banks"] = [bank]
    arguments["positives"] = [torch.tensor([rows - 1])]
    out, gradient = run(arguments, "cpu")
    # All logits but the positive's are 0.
    double = to_double(arguments | {"banks": [bank[-1:]], "positives": [torch.tensor([0])]})
    x0 = double["c_skip"] * double["noisy"][0] + double["c_out"] * double["prediction"][0]
    z = bank[-1].double()
    logit = x0 @ z
    total = (rows - 1) + logit.exp()
    assert error(out.contrastive[0], total.log() - logit) < 1e-6
    expected = (logit.exp() / total - 1) * z * double["c_out"][0] / elements
    assert error(gradient[0], expected) < 1e-5


def test_an_unscaled_gradient_is_handed_out_without_a_copy_and_stays_safe() -> None:
    arguments = make(3, [4], [8])
    prediction = arguments["prediction"].requires_grad_()
    loss = contrastive_diffusion_loss(**arguments, backend="cpu").loss
    (first,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    expected = first.clone()
    (second,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    assert torch.equal(second, expected)
    (third,) = torch.autograd.grad(3 * loss, prediction, retain_graph=True)
    torch.testing.assert_close(third, 3 * expected)
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)  # accumulates into prediction.grad, not into the saved gradient
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad, 2 * expected)
    first.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, prediction)


def test_inputs_that_get_no_gradient_are_refused_by_the_op_itself() -> None:
    a = make(2, [3], [4])
    latents = [a[name] for name in ("prediction", "noisy", "target", "c_skip", "c_out")]
    latents[0].requires_grad_()
    rest = (None, 1.0, [1.0], None, None, None, [], False, True)
    a["banks"][0].requires_grad_()
    with pytest.raises(ValueError, match="a bank requires a gradient"):
        torch.ops.contrastive_i2v.diffusion_loss(*latents, a["banks"], a["positives"], *rest)
