"""Speed and accuracy of `contrastive_diffusion_loss` against the alternatives: `python -m benchmarks`."""
