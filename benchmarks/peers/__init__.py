"""The training steps that `benchmarks.plain` compares, each run inside its own environment."""
