"""The evidence: what each part of the recipe does, trained and measured here (docs/results.md)."""
