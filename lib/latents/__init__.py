"""Single latents: cards that show them, explanations and how well these predict."""
