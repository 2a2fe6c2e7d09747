"""From text to batches: sources, tokenizers, packing, loading. Knows no models and no ranks."""
