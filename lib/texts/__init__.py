"""Texts: sources, labelled prompts, their style, documents for SAEs, anyone's own files."""
