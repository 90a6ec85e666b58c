"""Captioned videos in, latent pairs out: sources, which frames make a pair, decoding, the latent cache."""
