"""From notebooks to a report: ``notebooks`` (pairing), ``runner`` (execution), ``site``, ``promotion``; ``probe`` (own prompts)."""
