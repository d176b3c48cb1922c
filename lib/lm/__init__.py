"""The language model: loading (``model``), chat tokens and spans (``spans``), on-policy text (``rollouts``)."""
