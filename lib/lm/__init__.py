"""The language model: what it is given, what it writes, and what its residual stream holds."""
