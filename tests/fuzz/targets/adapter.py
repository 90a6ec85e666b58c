"""An adapter's folder of which one file is changed: it opens, or an InputError says what is wrong."""

from __future__ import annotations

from pathlib import Path

from contrastive_i2v.models import load_system
from contrastive_i2v.models.instruct_pix2pix import InstructPix2PixConfig
from contrastive_i2v.models.lora import AdapterConfig, LoraTraining

from . import model


class Target(model.Target):
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "adapter"
        system = load_system("tiny", InstructPix2PixConfig(past_frames=2), device="cpu")
        LoraTraining(system, AdapterConfig(rank=2), base="tiny", seed=0).save(self.folder)
        self.files = {file.name: (file.read_bytes(), b"") for file in self.folder.iterdir()}
