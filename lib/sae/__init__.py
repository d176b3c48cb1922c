"""Sparse autoencoders: ``variants`` (architectures and their losses), ``penalties``; ``latents``, ``kernels`` and ``adam`` (the
fast step), ``training``, ``metrics``, ``exchange``."""
