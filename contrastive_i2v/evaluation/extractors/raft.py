"""RAFT optical flow, for the dynamic degree, from a file of the user's.

VBench's dynamic degree takes `raft-things.pth` of the original repository with 20 iterations. torchvision has these
weights as raft_large's `C_T_V1`; its other weights give other flows and are refused where the file is known. The
original files name their weights differently and are not accepted.

Two kinds of file are, both taking frames as torchvision's RAFT does (float in [-1, 1], sides that 8 divides):

- The state dict `raft_large_C_T_V1-22a6c225.pth`, where torchvision is installed.
- TorchScript with `forward(first, second, num_flow_updates)` that returns the flow `[N, 2, H, W]` or a list of them,
  the last the best, as `torch.jit.script(torchvision.models.optical_flow.raft_large(weights="C_T_V1"))` gives.
  TorchScript holds a program, so pass only a file you trust. Which weights it holds can't be told, and the report says
  so.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from contrastive_i2v.errors import InputError
from contrastive_i2v.evaluation.extractors.optical_flow import check_pair
from contrastive_i2v.evaluation.extractors.preparation import frames_at_once, in_chunks
from contrastive_i2v.evaluation.extractors.weights import (
    archive_records,
    describe_file,
    existing_file,
    load_script,
    load_state_dict,
    read_state_dict,
    require,
)
from contrastive_i2v.evaluation.results import Extractor
from contrastive_i2v.files import file_hash

ITERATIONS = 20
WEIGHTS = "raft_large_C_T_V1"
EXPECTED = (
    'a TorchScript file of torchvision\'s raft_large (torch.jit.script(raft_large(weights="C_T_V1")).save(FILE)), or '
    "its state dict raft_large_C_T_V1-22a6c225.pth where torchvision is installed"
)
PUBLISHED = {
    "22a6c225": WEIGHTS,
    "1bb1363a": "raft_large_C_T_V2",
    "0b8c9e55": "raft_large_C_T_SKHT_V1",
    "ff5fadd5": "raft_large_C_T_SKHT_V2",
    "4a6a5039": "raft_large_C_T_SKHT_K_V1",
    "b5c70766": "raft_large_C_T_SKHT_K_V2",
}
"""torchvision's files, by the start of their sha256, which is in their names."""
LEAST_SIDE = 128
"""RAFT's correlation pyramid halves a map of 1/8 the size three times."""


class RAFT:
    """Optical flow by RAFT after 20 iterations.

    Frames under 128 pixels a side are enlarged by a whole factor, the flow reduced and divided by it; sides that 8
    doesn't divide are padded by repeating the edge. Teed and Deng, "RAFT" (2020).
    """

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        """Raises InputError when the file is missing, is of neither kind, holds other published weights than VBench's,
        takes no number of iterations, or needs torchvision and there is none."""
        self.device = torch.device(device)
        self.path = existing_file(source, "raft", EXPECTED)
        published = PUBLISHED.get(file_hash(self.path)[:8], "")
        if published not in ("", WEIGHTS):
            raise InputError(f"{self.path}: holds {published}, whose flow is another; expected {EXPECTED}")
        self.network = _load(self.path, self.device)
        self.about = Extractor(
            name="raft",
            dimension=2,
            weights=f"{describe_file(self.path)}, {ITERATIONS} iterations",
            resize=f"sides under {LEAST_SIDE} enlarged by a whole factor (bilinear), padded to multiples of 8",
            stands_in_for="" if published else f"RAFT {WEIGHTS}, which its file is not known to hold",
        )

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Two `[N, 3, H, W]` in [-1, 1] -> displacement in pixels `[N, 2, H, W]` (x, y), from first to second.

        Raises:
            ValueError: another shape, type or NaN.
            InputError: the file doesn't give a flow.
        """
        check_pair(first, second, 1)
        limit = frames_at_once(self.device) // 8
        return in_chunks(self._flow, first, second, limit=limit, device=self.device)

    def _flow(self, first: Tensor, second: Tensor) -> Tensor:
        height, width = first.shape[-2:]
        factor = math.ceil(LEAST_SIDE / min(height, width))
        frames = torch.cat([first, second]).clamp(-1, 1)
        if factor > 1:
            frames = F.interpolate(frames, scale_factor=factor, mode="bilinear", align_corners=False)
        padding = (0, -width * factor % 8, 0, -height * factor % 8)
        first, second = F.pad(frames, padding, mode="replicate").chunk(2)
        flow = self._run(first, second)[..., : height * factor, : width * factor]
        return F.avg_pool2d(flow, factor) / factor

    def _run(self, first: Tensor, second: Tensor) -> Tensor:
        try:
            output = self.network(first, second, num_flow_updates=ITERATIONS)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-300:]
            raise InputError(f"{self.path}: could not be run as RAFT ({reason}); expected {EXPECTED}") from error
        flow = output[-1] if isinstance(output, (list, tuple)) else output
        expected = (len(first), 2, *first.shape[-2:])
        if not isinstance(flow, Tensor) or flow.shape != expected:
            shape = list(flow.shape) if isinstance(flow, Tensor) else type(flow).__name__
            raise InputError(f"{self.path}: gave {shape} in place of a flow {list(expected)}; expected {EXPECTED}")
        return flow


def _load(path: Path, device: torch.device) -> Any:
    if _is_script(path):
        script = load_script(path, device)
        if all(argument.name != "num_flow_updates" for argument in script.forward.schema.arguments):
            raise InputError(
                f"{path}: its forward takes no num_flow_updates, so it can't be run with {ITERATIONS} iterations; "
                f"expected {EXPECTED}"
            )
        return script
    state = read_state_dict(path)
    models = require("torchvision.models.optical_flow", "torchvision, or pass a TorchScript file", "raft")
    with torch.random.fork_rng(devices=[]):
        network = models.raft_large(weights=None)
    load_state_dict(network, state, path)
    return network.eval().to(device)


def _is_script(path: Path) -> bool:
    """Both kinds of torch file are zip archives; TorchScript has its program under code/."""
    return any("/code/" in name for name in archive_records(path))
