"""`guided_step`: every backend against float64, and the contract of a registered op."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from contrastive_i2v.ops import guided_step as guided_step_module
from contrastive_i2v.ops.guided_step import guidance_branches, guided_step

HAS_CPU = guided_step_module._WHY_MISSING["cpu"] == ""
BACKENDS = ["reference", "cpu"] if HAS_CPU else ["reference"]
needs_extension = pytest.mark.skipif(not HAS_CPU, reason="needs the extension")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# an element, ragged, a block and a bit, more blocks than a thread's share
SHAPES = [(1, 1), (3, 5, 7), (1, 4100), (2, 4, 90, 93)]
GUIDANCE = [(7.5, 1.5), (7.5, 1.0), (2.0, 2.0), (0.0, 1.5), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]
SCALES = (1.0172, -0.0731)


THREE = ("full", "image", "uncond")


def problem(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, names: tuple[str, ...] = THREE
) -> tuple[Tensor, dict[str, Tensor]]:
    """A sample, and the predictions of the branches: alike, as those of a denoiser are."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(shape, generator=generator)
    branches = {name: (common + 0.05 * torch.randn(shape, generator=generator)).to(dtype) for name in names}
    return torch.randn(shape, generator=generator), branches


def run(sample: Tensor, branches: dict[str, Tensor], guidance: tuple[float, float], **kwargs: Any) -> Tensor:
    scale, image_scale = guidance
    names = guidance_branches(scale, image_scale, kwargs.get("fractional", False))
    predictions = torch.cat([branches[name] for name in names])
    return guided_step(sample, predictions, *SCALES, guidance_scale=scale, image_guidance_scale=image_scale, **kwargs)


def by_definition(sample: Tensor, branches: dict[str, Tensor], guidance: tuple[float, float]) -> Tensor:
    """In the dtypes that the tensors have, from all three branches whether they have a say or not."""
    scale, image_scale = guidance
    uncond, image, full = (branches[name] for name in ("uncond", "image", "full"))
    guided = uncond + image_scale * (image - uncond) + scale * (full - image)
    return SCALES[0] * sample + SCALES[1] * guided


def wide(branches: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: block.double() for name, block in branches.items()}


def error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "dtype"), list(itertools.product(SHAPES, DTYPES)))
def test_agrees_with_float64(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    sample, branches = problem(shape, dtype)
    for guidance, copies in itertools.product(GUIDANCE, (1, 2, 3)):
        truth = by_definition(sample.double(), wide(branches), guidance)
        out = run(sample, branches, guidance, copies=copies, backend=backend)
        assert out.dtype == torch.float32
        assert out.shape == (copies * shape[0], *shape[1:])
        for block in out.chunk(copies):
            assert error(block, truth) < 1.5e-7
            assert torch.equal(block, out[: shape[0]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_no_further_from_float64_than_eager(backend: str) -> None:
    for dtype, guidance in itertools.product(DTYPES, GUIDANCE):
        sample, branches = problem((4, 4, 32, 32), dtype)
        truth = by_definition(sample.double(), wide(branches), guidance)
        eager = by_definition(sample, {name: block.float() for name, block in branches.items()}, guidance)
        ours = run(sample, branches, guidance, backend=backend)
        assert error(ours, truth) <= error(eager, truth) * 1.02


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_fractional_agrees_with_float64(guidance: tuple[float, float]) -> None:
    """e(0,0) + s_I (e(I_k,0) - e(0,0)) + (e(I,0) - e(I_k,0)) + s_T (e(I,T) - e(I,0)), whichever branches it takes."""
    sample, branches = problem((3, 5, 7), torch.float32, names=(*THREE, "history"))
    scale, image_scale = guidance
    full, image, uncond, history = wide(branches).values()
    guided = uncond + image_scale * (history - uncond) + (image - history) + scale * (full - image)
    truth = SCALES[0] * sample.double() + SCALES[1] * guided
    out = run(sample, branches, guidance, copies=2, fractional=True)
    assert all(error(block, truth) < 1.5e-7 for block in out.chunk(2))
    names = guidance_branches(*guidance, True)
    assert ("history" in names) == ("uncond" in names) == (image_scale != 1)
    if len(names) == 4 and HAS_CPU:
        with pytest.raises(RuntimeError, match="backend='cpu' cannot be used: it takes three branches at most"):
            run(sample, branches, guidance, fractional=True, backend="cpu")


def test_float64_runs_in_float64() -> None:
    sample, branches = problem((2, 3), torch.float32)
    out = run(sample.double(), branches, (7.5, 1.5))
    assert out.dtype == torch.float64
    assert error(out, by_definition(sample.double(), wide(branches), (7.5, 1.5))) < 1e-15


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_empty_batches(backend: str) -> None:
    sample, branches = problem((2, 4, 6, 5), torch.bfloat16)
    expected = run(sample, branches, (7.5, 1.5), backend=backend)
    predictions = torch.cat(list(branches.values())).to(memory_format=torch.channels_last)
    out = guided_step(
        sample.transpose(2, 3).contiguous().transpose(2, 3),
        predictions,
        *SCALES,
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        backend=backend,
    )
    assert out.is_contiguous()
    assert torch.equal(out, expected)
    nothing = run(sample[:0], {name: block[:0] for name, block in branches.items()}, (7.5, 1.5), backend=backend)
    assert nothing.shape == (0, 4, 6, 5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bitwise_the_same_again_and_for_any_number_of_threads(backend: str) -> None:
    sample, branches = problem((3, 4, 120, 121), torch.float16)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(sample, branches, (7.5, 1.5), copies=2, backend=backend))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results[1:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_reach_the_result(backend: str, value: float) -> None:
    for name in ("full", "image", "uncond", "sample"):
        sample, branches = problem((1, 9), torch.float16)
        (sample if name == "sample" else branches[name])[0, 4] = value
        finite = run(sample, branches, (7.5, 1.5), backend=backend).isfinite()
        assert not finite[0, 4]
        assert int(finite.sum()) == 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_float16_extremes_are_exact(backend: str) -> None:
    # subnormals, the largest, both zeros: one branch with scales (0, 1) is the conversion to float32 alone
    predictions = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    predictions = predictions[predictions.isfinite()][None]
    out = guided_step(
        torch.zeros(predictions.shape),
        predictions,
        0.0,
        1.0,
        guidance_scale=1.0,
        image_guidance_scale=1.0,
        backend=backend,
    )
    assert torch.equal(out, predictions.float())


def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
    sample, branches = problem((2, 3, 5), dtype)
    return (sample, torch.cat(list(branches.values())), *SCALES, [1.5, 7.5], 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    torch.library.opcheck(torch.ops.contrastive_i2v.guided_step.default, arguments(dtype))


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_compiles_as_one_graph(backend: str | None) -> None:
    sample, branches = problem((2, 3, 5), torch.bfloat16)
    torch._dynamo.reset()

    def step(sample: Tensor, full: Tensor) -> Tensor:
        return run(sample * 2, branches | {"full": full}, (7.5, 1.5), copies=3, backend=backend) + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(sample, branches["full"]), step(sample, branches["full"]))


def test_fake_tensors_have_the_real_shapes_and_dtypes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name in ("guided_step", "guided_step_triton"):
        with FakeTensorMode():
            sample, predictions = torch.empty(2, 3, 5), torch.empty(6, 3, 5, dtype=torch.bfloat16)
            fake = getattr(torch.ops.contrastive_i2v, name)(sample, predictions, *SCALES, [1.5, 7.5], 3)
        assert (fake.shape, fake.dtype) == ((6, 3, 5), torch.float32)


SAMPLE, PREDICTIONS = torch.zeros(2, 3), torch.zeros(6, 3)
BAD_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "sample dtype": ({"sample": SAMPLE.bfloat16()}, "sample is torch.bfloat16 [2, 3]: expected float32 or float64"),
    "predictions dtype": ({"predictions": PREDICTIONS.long()}, "predictions is torch.int64"),
    "predictions device": ({"predictions": PREDICTIONS.to("meta")}, "predictions is on meta"),
    "a branch too few": ({"predictions": PREDICTIONS[:4]}, "[4, 3]: expected [6, 3], sample's [2, 3] for each of"),
    "a branch too many": ({"guidance_scale": 1.5}, "[6, 3]: expected [4, 3], sample's [2, 3] for each of"),
    "another latent": ({"predictions": torch.zeros(6, 4)}, "predictions has shape [6, 4]"),
    "copies": ({"copies": 0}, "copies is 0: expected at least 1"),
    "gradient": ({"predictions": torch.zeros(6, 3, requires_grad=True)}, "predictions requires a gradient"),
    "sample is a list": ({"sample": [[0.0] * 3] * 2}, "sample is list: expected a tensor"),
    "sample is None": ({"sample": None}, "sample is NoneType: expected a tensor"),
    "sample is 0-d": ({"sample": torch.tensor(1.0)}, "sample is torch.float32 []: expected float32 or float64 [B,"),
    "sample device": ({"sample": SAMPLE.to("meta")}, "predictions is on cpu: expected sample's device, meta"),
    "predictions is an array": ({"predictions": PREDICTIONS.numpy()}, "predictions is ndarray: expected a tensor"),
    "predictions is 0-d": ({"predictions": torch.tensor(1.0)}, "predictions has shape []: expected [6, 3]"),
    "sample_scale is text": ({"sample_scale": "1.0"}, "sample_scale is '1.0': expected a number"),
    "sample_scale is None": ({"sample_scale": None}, "sample_scale is NoneType: expected a number"),
    "prediction_scale is a row": (
        {"prediction_scale": torch.ones(2)},
        "prediction_scale has shape [2]: expected one number",
    ),
    "prediction_scale is huge": ({"prediction_scale": 10**400}, "prediction_scale is 1000"),
    "copies is huge": ({"copies": 10**400}, "copies has 1329 bits: expected a 64-bit integer"),
    "guidance_scale is a list": ({"guidance_scale": [7.5]}, "guidance_scale is list: expected a number"),
    "image_guidance_scale is text": ({"image_guidance_scale": "1.5"}, "image_guidance_scale is '1.5': expected"),
    "copies is a fraction": ({"copies": 1.5}, "copies is 1.5: expected a whole number >= 1"),
    "copies is True": ({"copies": True}, "copies is True: expected a whole number >= 1"),
    "copies is a tensor": ({"copies": torch.tensor(2)}, "copies is Tensor: expected a whole number >= 1"),
    "fractional is text": ({"fractional": "no"}, "fractional is 'no': expected True or False"),
    "backend is a list": ({"backend": ["cpu"]}, "backend is ['cpu']: expected None or one of"),
    "backend is a tensor": ({"backend": SAMPLE}, "backend is tensor"),
    "backend": ({"backend": "cuda"}, "backend is 'cuda': expected None or one of reference, cpu, triton"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_a_value_error_that_says_what(case: str) -> None:
    change, message = BAD_INPUTS[case]
    given = {
        "sample": SAMPLE, "predictions": PREDICTIONS, "sample_scale": 1.0, "prediction_scale": 1.0,
        "guidance_scale": 7.5, "image_guidance_scale": 1.5,
    }  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(message)):
        guided_step(**given | change)
    if "backend" not in change:
        for backend in ("reference", "cpu", "triton"):
            with pytest.raises(ValueError, match=re.escape(message)):
                guided_step(**given | change, backend=backend)


@pytest.mark.fault(
    "guided_step's tensors are on several devices", "an error that names the one, by the registered op too"
)
def test_the_op_itself_refuses_arguments_on_several_devices() -> None:
    for given in ((SAMPLE, PREDICTIONS.to("meta")), (SAMPLE.to("meta"), PREDICTIONS)):
        for name in ("guided_step", "guided_step_triton"):
            with pytest.raises(ValueError, match="predictions is on .*: expected sample's device"):
                getattr(torch.ops.contrastive_i2v, name)(*given, *SCALES, [1.5, 7.5], 1)


@needs_extension
def test_the_cpu_kernel_run_directly_checks_its_arguments() -> None:
    op = torch.ops.contrastive_i2v.guided_step
    for given, message in (
        ((SAMPLE, PREDICTIONS, 1.0, 1.0, [1.5], 1), "predictions has shape .*: expected .*4, 3"),
        ((SAMPLE, PREDICTIONS, 1.0, 1.0, [1.0, 2.0, 3.0], 1), "guidance_scales has 3 entries"),
        ((SAMPLE, PREDICTIONS, 1.0, 1.0, [1.0, 2.0], 0), "copies is 0"),
        ((SAMPLE.double(), PREDICTIONS, 1.0, 1.0, [1.0, 2.0], 1), "sample is Double"),
        ((SAMPLE, PREDICTIONS.double(), 1.0, 1.0, [1.0, 2.0], 1), "predictions is Double"),
    ):
        with pytest.raises(ValueError, match=message):
            op(*given)


@needs_extension
def test_the_named_cpu_backend_refuses_float64() -> None:
    with pytest.raises(RuntimeError, match="got torch.float64 and torch.float32. Use backend=None or 'reference'"):
        run(SAMPLE.double(), dict.fromkeys(("full", "image", "uncond"), SAMPLE), (7.5, 1.5), backend="cpu")


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs on the CPU")
def test_the_named_triton_backend_refuses_the_cpu() -> None:
    pytest.importorskip("triton")
    with pytest.raises(RuntimeError, match="backend='triton' cannot be used: the tensors are on cpu"):
        run(SAMPLE, dict.fromkeys(("full", "image", "uncond"), SAMPLE), (7.5, 1.5), backend="triton")


def python(code: str, **environment: str) -> str:
    """Output of a fresh interpreter."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_the_extension_the_reference_runs_and_says_so_once() -> None:
    lines = python(
        """
import sys, warnings
for name in ("contrastive_i2v._C", "triton", "diffusers", "numpy"): sys.modules[name] = None
import torch
from contrastive_i2v.ops.guided_step import guided_step
arguments = (torch.ones(1, 2), torch.ones(3, 2), 2.0, 1.0)
scales = {"guidance_scale": 7.5, "image_guidance_scale": 1.5}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(3):
        print(guided_step(*arguments, **scales).tolist())
print(len(said), said[0].message)
for backend in ("cpu", "triton"):
    try:
        guided_step(*arguments, **scales, backend=backend)
    except RuntimeError as error:
        print(error)
"""
    ).splitlines()
    assert lines[0] == "[[3.0, 3.0]]"
    assert lines[3].startswith("1 guided_step runs as plain PyTorch on cpu: the C++ extension")
    assert lines[4].startswith("backend='cpu' cannot be used: the C++ extension")
    assert lines[5].startswith("backend='triton' cannot be used: triton is not installed")


@pytest.mark.triton
def test_triton_kernel_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    assert python(
        """
import itertools, torch
from contrastive_i2v.ops.guided_step import guidance_branches, guided_step
generator = torch.Generator().manual_seed(0)
guidance = [(7.5, 1.5), (7.5, 1.0), (2.0, 2.0), (0.0, 1.5), (1.0, 1.0)]
for dtype, shape, (scale, image_scale) in itertools.product(
    (torch.float32, torch.bfloat16, torch.float16), ((1, 1), (2, 3, 341), (1, 4096)), guidance
):
    branches = len(guidance_branches(scale, image_scale))
    sample = torch.randn(shape, generator=generator)
    predictions = torch.randn(shape, generator=generator).repeat(branches, *[1] * (len(shape) - 1))
    predictions = (predictions + 0.05 * torch.randn(predictions.shape, generator=generator)).to(dtype)
    for copies in (1, branches):
        run = lambda sample, predictions, backend: guided_step(
            sample, predictions, 1.02, -0.07, guidance_scale=scale, image_guidance_scale=image_scale,
            copies=copies, backend=backend)
        out = run(sample, predictions, "triton")
        truth = run(sample.double(), predictions.double(), "reference")
        assert out.shape == truth.shape and out.dtype == torch.float32
        assert (out - truth).norm() / truth.norm() < 1.5e-7, (dtype, shape, scale, image_scale)
        assert torch.equal(out, run(sample, predictions, "triton"))
arguments = (torch.randn(2, 5), torch.randn(6, 5).bfloat16(), 1.0, 0.5, [1.5, 7.5], 3)
torch.library.opcheck(torch.ops.contrastive_i2v.guided_step_triton.default, arguments)
print("done")
""",
        TRITON_INTERPRET="1",
    ).endswith("done\n")


@pytest.mark.triton
@pytest.mark.parametrize("capability", [80, 90])
def test_triton_kernel_compiles_for_a_gpu_without_spills(capability: int, tmp_path: Any) -> None:
    pytest.importorskip("triton")
    code = """
import subprocess, sys
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from contrastive_i2v.kernels.guided_step import BLOCK, NUM_WARPS, guided_step_kernel
capability, folder = int(sys.argv[1]), Path(sys.argv[2])
for dtype, size in (("fp32", "i32"), ("bf16", "i64"), ("fp16", "i32")):
    signature = {
        "p_sample": "*fp32", "p_predictions": "*" + dtype, "p_out": "*fp32", "elements": size,
        **dict.fromkeys(("sample_scale", "prediction_scale", "scale_1", "scale_2"), "fp32"),
        **dict.fromkeys(("BRANCHES", "COPIES", "BLOCK"), "constexpr"),
    }
    source = ASTSource(
        guided_step_kernel, signature, {"BRANCHES": 3, "COPIES": 3, "BLOCK": BLOCK},
        {(i,): [["tt.divisibility", 16]] for i in range(4)})
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": NUM_WARPS})
    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(folder / "kernel.cubin")]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "STACK:0 " in usage and "LOCAL:0 " in usage, usage
    assert "ld.global.v4" in kernel.asm["ptx"] and "st.global.v4" in kernel.asm["ptx"]  # 16 bytes at once
    assert "muli %offsets" in kernel.asm["ttir"] and " : i64" in kernel.asm["ttir"]
print("done")
"""
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    settings |= {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(capability), str(tmp_path)], capture_output=True, text=True, env=settings
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def test_a_gpu_gets_the_triton_kernel_only_by_name() -> None:
    sample = torch.empty(2, 3, device="meta")  # a device that is not the CPU
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says so, once
        assert guided_step_module._choose(None, sample, sample, 3) == "reference"


def test_triton_kernel_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        if os.environ.get("CI2V_REQUIRE_CUDA") == "1":
            pytest.fail("CI2V_REQUIRE_CUDA=1, and there is no GPU")
        pytest.skip("needs a GPU")
    for shape, dtype, guidance in itertools.product(SHAPES, DTYPES, GUIDANCE):
        sample, branches = problem(shape, dtype)
        truth = by_definition(sample.double(), wide(branches), guidance)
        on_gpu = {name: block.cuda() for name, block in branches.items()}
        first, again = (run(sample.cuda(), on_gpu, guidance, copies=2, backend="triton").cpu() for _ in range(2))
        assert torch.equal(first, again)
        for block in first.chunk(2):
            assert error(block, truth) < 1.5e-7


def test_triton_kernel_past_2_to_the_31_elements() -> None:
    if not torch.cuda.is_available():
        if os.environ.get("CI2V_REQUIRE_CUDA") == "1":
            pytest.fail("CI2V_REQUIRE_CUDA=1, and there is no GPU")
        pytest.skip("needs a GPU")
    elements = 2**31 + 3
    if torch.cuda.mem_get_info()[0] < 13 * elements:
        pytest.skip("needs 28 GB of GPU memory")
    sample = torch.zeros(1, elements, device="cuda")
    predictions = torch.zeros(1, elements, dtype=torch.bfloat16, device="cuda")
    predictions[0, -1], sample[0, 2**31] = 3.0, 5.0
    out = guided_step(sample, predictions, 2.0, 1.0, guidance_scale=1.0, image_guidance_scale=1.0, backend="triton")
    assert out[0, -1] == 3
    assert out[0, 2**31] == 10
    assert out.sum() == 13
