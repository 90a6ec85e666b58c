"""The options that evaluate and compare share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from contrastive_i2v.data.sources import SourceConfig
from contrastive_i2v.data.video import as_size
from contrastive_i2v.errors import InputError, check_fields
from contrastive_i2v.sampler import SamplerOptions
from contrastive_i2v.system import Dtype


@dataclass(frozen=True, kw_only=True)
class SuiteOptions(SamplerOptions):
    """Clips, sampling and networks."""

    data: Path
    """Folder of held-out videos with captions: NAME.txt beside each, or one metadata.csv / metadata.jsonl; or a dataset
    in any form of docs/data.md."""
    source: SourceConfig = field(default_factory=SourceConfig)
    """How it is read; no split = the one for tests, where it has splits."""
    output: Path = Path("evaluation")
    """Folder of everything: report.html, report.json, videos/, and what a later run takes up again."""
    clips: int | None = None
    """The first so many clips; None = all."""
    frames: int = 16
    """Length of each video, the given first frame included."""
    frame_rate: float = 5.0
    """True frames a second."""
    resolution: int | tuple[int, int] | None = None
    """Pixels: a square's side, or height and width; None = what the first model was trained at, or the size of the
    first finished videos."""
    seeds: tuple[int, ...] = (0,)
    """Sampling seeds; clips are averaged over them, so more seeds mean less sampling noise."""
    dtype: Dtype = "float32"
    """What a model computes in while it makes videos."""
    compile: bool = False
    """Compile its network by torch.compile: some tens of seconds first, then faster frames."""
    pipeline_arguments: str = ""
    """JSON object of arguments for another diffusers pipeline, e.g. '{"num_inference_steps": 25, "fps": 7}'."""
    train_data: Path | None = None
    """Folder of captioned training videos, which retrieval answers from."""
    image: str = "efficientnet-lite0"
    """Image features of FID, KID and Inception Score: efficientnet-lite0, inception:FILE, dino:..., clip:...,
    or none."""
    subject: str | None = None
    """Image features of subject consistency, e.g. dino:FOLDER; None = those of --image."""
    i2v_background: str | None = None
    """Image features of the I2V background: dreamsim:FILE, a TorchScript of its embedding; None = those of CLIP."""
    video: str = "transnetv2"
    """Video features of FVD: transnetv2, i3d:FILE, or none."""
    clip: str | None = None
    """CLIP's folder or hub id; None = no CLIP scores."""
    text: str = "minilm"
    """Text features of the retrieval baseline."""
    flow: str = "dis"
    """Optical flow of the dynamic degree: dis (a proxy), raft:FILE (raft_large_C_T_V1), or none."""
    lpips: str | None = None
    """Backbone of LPIPS: alex, vgg or squeeze; None = no LPIPS."""
    latents: str | None = None
    """Model whose VAE encodes frames for the latent-space metrics; None = the first model's, "none" = no metrics."""
    batch_size: int | None = None
    """Videos made and measured at a time; None = 64 at 64 pixels, 16 at 128, 4 at 256, 1 from 512."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {"clips": 1, "frames": 2, "batch_size": 1}
        check_fields(self, least, positive=("frame_rate",), distinct=("seeds",))
        if self.resolution is not None and min(as_size(self.resolution)) < 8:
            raise InputError(f"resolution: expected at least 8, got {self.resolution}")
