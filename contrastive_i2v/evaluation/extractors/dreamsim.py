"""DreamSim, for VBench's I2V background, from a file of the user's.

The package `dreamsim` downloads its weights, unpickles them and needs torchvision, so it isn't called here. Where it is
installed, its embedding becomes a TorchScript file, which needs torch alone:

    class Embed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, _ = dreamsim(pretrained=True, device="cpu")

        def forward(self, x):
            return self.model.embed(x)

    torch.jit.trace(Embed(), torch.rand(2, 3, 224, 224), check_trace=False).save("dreamsim.pt")

TorchScript holds a program, so pass only a file you trust. Which weights it holds can't be told, and the report says
so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from contrastive_i2v.errors import InputError, one_line
from contrastive_i2v.evaluation.extractors.preparation import VBENCH_I2V_BACKGROUND, ResizableNetwork
from contrastive_i2v.evaluation.extractors.weights import describe_file, existing_file, load_script
from contrastive_i2v.evaluation.results import Extractor

EXPECTED = "a TorchScript file of the package dreamsim's `embed`, pixels [N, 3, 224, 224] in [0, 1] -> [N, d]"


class DreamSim(ResizableNetwork):
    """Features whose cosine is DreamSim's similarity, of frames stretched to 224 x 224 as VBench does it.

    Fu et al., "DreamSim" (2023).
    """

    size = 224
    resize = VBENCH_I2V_BACKGROUND

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        """Raises InputError when the file is missing, or doesn't give one row of features a frame."""
        self.device = torch.device(device)
        self.path = existing_file(source, "dreamsim", EXPECTED)
        self.network = load_script(self.path, self.device)
        dimension = self(torch.zeros(2, 3, self.size, self.size)).shape[1]
        self.about = Extractor(
            name=f"dreamsim, {self.resize.name}",
            dimension=dimension,
            weights=describe_file(self.path),
            resize=self.resize.describe(self.size),
            stands_in_for="DreamSim's published weights, which its file is not known to hold",
        )

    def _features(self, frames: Tensor) -> Tensor:
        pixels = (self.resize(frames, self.size) + 1) / 2
        count = len(pixels)
        try:
            found = self.network(pixels.repeat(2, 1, 1, 1) if count == 1 else pixels)  # its squeeze() takes two or more
        except RuntimeError as error:
            reason = one_line(str(error)[-250:])
            raise InputError(f"{self.path}: could not be run as DreamSim ({reason}); expected {EXPECTED}") from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != max(2, count):
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"{self.path}: gave {shape} of {max(2, count)} frames; expected {EXPECTED}")
        return found[:count]
