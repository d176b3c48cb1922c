"""Probes for a label of prompts: the protocol, what probes look at, how they are fit, and the tables made of them."""
