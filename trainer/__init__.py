"""Training: the recipe, one optimiser step, the loop, and what watches it."""
