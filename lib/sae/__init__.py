"""Sparse autoencoders: ``variants`` (architectures), ``penalties``, ``training``, ``metrics``."""
