"""A model at any exit as what lm-evaluation-harness asks questions of."""
