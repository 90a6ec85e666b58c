"""Triton kernels with their launchers, imported as `contrastive_i2v.kernels`. There are none yet: the C++
kernels in `csrc/cpu` and the reference in `contrastive_i2v.ops.reference` are what runs."""
