"""Sparse autoencoders: architectures and penalties, the fast training step, training, metrics, exchange with other formats."""
