"""Probes for a label of prompts: what they see, how they are fit, what a control changes, and the tables made of them."""
