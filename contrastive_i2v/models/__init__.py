"""The systems: one file each, built, loaded and saved as diffusers folders."""

from contrastive_i2v.models.instruct_pix2pix import InstructPix2Pix

__all__ = ["InstructPix2Pix"]
