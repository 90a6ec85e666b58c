"""Which backend a call gets, strict names, and life without the extension."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from problems import BACKENDS, make

import contrastive_i2v
from contrastive_i2v.ops import _backends, available_backends, build_info, contrastive_diffusion_loss

needs_extension = pytest.mark.skipif("cpu" not in BACKENDS, reason="needs the extension")
CPU = torch.device("cpu")


def run_python(code: str) -> str:
    """Output of a fresh interpreter that cannot import what `hidden` names."""
    hide = "import sys\nfor name in hidden: sys.modules[name] = None\n"
    done = subprocess.run([sys.executable, "-c", hide.join(code.split("#hide\n"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_backend_is_available_or_says_why_not() -> None:
    backends = available_backends()
    assert list(backends) == ["reference", "cpu", "triton", "cuda"]
    assert backends["reference"] == "available"
    assert all(backends.values())
    if not torch.cuda.is_available():
        assert (
            "without CUDA" in backends["cuda"]
            or "no CUDA device" in backends["cuda"]
            or "not built" in backends["cuda"]
        )


def test_build_info_tells_what_there_is() -> None:
    info = build_info()
    assert info["torch"] == torch.__version__
    assert info["extension"] == ("cpu" in BACKENDS)
    assert bool(info["reason"]) != info["extension"]


def test_import_needs_torch_alone_and_works_without_the_extension() -> None:
    out = run_python(
        """
hidden = ["contrastive_i2v._C", "diffusers", "transformers", "triton", "numpy", "accelerate", "tyro"]
#hide
import warnings, torch
from contrastive_i2v.ops import available_backends, build_info, contrastive_diffusion_loss
print(available_backends()["cpu"])
print(build_info()["extension"])
prediction = torch.ones(2, 3, requires_grad=True)
arguments = (prediction, *torch.zeros(2, 2, 3), *torch.ones(2, 2), [torch.eye(3)])
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(3):
        contrastive_diffusion_loss(*arguments).loss.backward()
print(len(said), said[0].message)
torch.ops.contrastive_i2v.diffusion_loss(
    *arguments[:5], arguments[5], [], None, 1.0, [1.0], None, None, None, [], False, True)[0].backward()
print(prediction.grad.isfinite().all().item())
try:
    contrastive_diffusion_loss(*arguments, backend="cpu")
except RuntimeError as error:
    print(error)
"""
    ).splitlines()
    assert "not built" in out[0] or "does not load" in out[0]
    assert out[1] == "False"
    assert out[2].startswith("1 contrastive_diffusion_loss runs as plain PyTorch on cpu: ")
    assert out[3] == "True"
    assert out[4].startswith("backend='cpu' cannot be used: the C++ extension")
    assert "Use backend=None or 'reference'" in out[4]


@pytest.mark.skipif(torch.cuda.is_available(), reason="they are there")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_named_backend_that_is_missing_is_an_error_with_the_way_out(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=f"backend='{backend}' cannot be used: .* Use backend=None or 'reference'"):
        contrastive_diffusion_loss(**make(2, [3], [4]), backend=backend)


@needs_extension
def test_automatic_choice_gives_every_gradient_that_is_asked_for() -> None:
    fused = (CPU, (torch.float32,))
    assert _backends.choose(None, *fused, ()) == "cpu"
    assert _backends.choose(None, *fused, ("banks",)) == "reference"
    assert _backends.choose(None, CPU, (torch.float64,), ()) == "reference"
    assert _backends.choose("reference", *fused, ()) == "reference"
    arguments = make(2, [3], [4])
    temperature = torch.tensor(0.5, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contrastive_diffusion_loss(**arguments | {"temperature": temperature}).loss.backward()
    assert temperature.grad is not None
    assert temperature.grad != 0


def test_a_kernel_that_no_gpu_has_verified_is_opt_in_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = (torch.device("cuda"), (torch.bfloat16,), ())
    monkeypatch.setattr(_backends, "_why_missing", lambda name: "")
    monkeypatch.setattr(_backends, "UNVERIFIED", frozenset({"triton", "cuda"}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CI2V_UNVERIFIED_KERNELS", raising=False)
    _backends._say_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="no real GPU has verified the triton kernels yet: opt in with backend="):
        assert _backends.choose(None, *fused) == "reference"
    assert _backends.choose("triton", *fused) == "triton"
    monkeypatch.setenv("CI2V_UNVERIFIED_KERNELS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backends.choose(None, *fused, lambda: True) == "cuda"
        assert _backends.choose(None, *fused, lambda: False) == "triton"
        assert _backends.choose(None, fused[0], (torch.float64,), ()) == "reference"
        monkeypatch.setattr(_backends, "UNVERIFIED", frozenset())
        monkeypatch.delenv("CI2V_UNVERIFIED_KERNELS")
        assert _backends.choose(None, *fused, lambda: True) == "cuda"


@needs_extension
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("banks", "gradients to the prediction only, and banks require"),
        ("temperature", "and temperature require"),
    ],
)
def test_the_named_cpu_backend_refuses_gradients_it_cannot_give(name: str, message: str) -> None:
    arguments = make(2, [3], [4]) | {"temperature": torch.tensor(0.5)}
    tensor = arguments[name][0] if name == "banks" else arguments[name]
    tensor.requires_grad_()
    with pytest.raises(RuntimeError, match=message):
        contrastive_diffusion_loss(**arguments, backend="cpu")
    with torch.no_grad():
        assert contrastive_diffusion_loss(**arguments, backend="cpu").loss.isfinite()


@needs_extension
def test_the_named_cpu_backend_refuses_float64() -> None:
    with pytest.raises(RuntimeError, match="takes float32, bfloat16 and float16, got torch.float64"):
        contrastive_diffusion_loss(**make(2, [3], [4], dtype=torch.float64), backend="cpu")


@needs_extension
def test_the_fused_op_run_directly_checks_its_arguments() -> None:
    a = make(2, [3], [4])
    latents = [a[name] for name in ("prediction", "noisy", "target", "c_skip", "c_out")]
    rest = ([1.0], None, None, None, [], False, True)
    op = torch.ops.contrastive_i2v.diffusion_loss
    with pytest.raises(ValueError, match="holds 3, but the bank has 3 rows"):
        op(*latents, a["banks"], [torch.tensor([0, 3])], None, 1.0, *rest)
    with pytest.raises(ValueError, match="noisy has shape"):
        op(latents[0], a["noisy"][:, :3], *latents[2:], a["banks"], [], None, 1.0, *rest)
    with pytest.raises(ValueError, match=r"banks\[0\] has shape \[3, 5\]"):
        op(*latents, [torch.zeros(3, 5)], [], None, 1.0, *rest)
    with pytest.raises(ValueError, match="temperature is -1"):
        op(*latents, a["banks"], [], torch.tensor(-1.0), 1.0, *rest)


def test_an_extension_for_another_torch_or_package_is_not_used() -> None:
    good = {"torch": torch.__version__, "version": contrastive_i2v.__version__}
    assert _backends.extension_mismatch(good) == ""
    assert "built for torch 1.2.3" in _backends.extension_mismatch(good | {"torch": "1.2.3"})
    assert "from contrastive_i2v 0.0.0" in _backends.extension_mismatch(good | {"version": "0.0.0"})
